"""A toolbox, without remarks of its own that tell a user nothing."""

from __future__ import annotations

import re
import warnings
from contextlib import redirect_stdout
from importlib import import_module
from io import StringIO

from mmengine.config import Config

from mmlavit.environment import SCOPES, check_environment
from mmlavit.errors import UserError

TASKS = {'mmpretrain': 'classification', 'mmdet': 'detection', 'mmseg': 'segmentation'}

# What is left out, by the module that says it. Other messages of these modules are shown.
_WARNINGS = {
    'mmengine.visualization.visualizer': 'Warning: The ',  # ... bbox or polygon is out of bounds; it is drawn cut off
    'mmdet.evaluation.metrics.faster_coco_metric': 'faster_coco_eval is not installed',  # nor used
    'mmseg.engine.hooks.visualization_hook': 'The draw is False',  # unless asked to draw
    'mmseg.models.builder': '``build_loss`` would be deprecated soon',  # called by mmseg itself
    'mmseg.models.losses.cross_entropy_loss': 'Default ``avg_non_ignore`` is False',  # as in all recipes of the field
}
# Printed while datasets are imported, whatever the level of the log.
_PRINTED = 'Could not import OneDL'


def find_scope(cfg: Config) -> str:
    """Find the toolbox of a config.

    Args:
        cfg (Config): The config, with ``default_scope``.

    Returns:
        str: 'mmdet', 'mmseg' or 'mmpretrain'.

    Raises:
        UserError: If it is for none of them.
    """
    scope = cfg.get('default_scope')
    if scope not in SCOPES:
        name = cfg.filename or 'the config'
        raise UserError(f'{name} has default_scope={scope!r}, expected one of {", ".join(SCOPES)}')
    return scope


def load_toolbox(scope: str) -> None:
    """Check a toolbox and import it.

    Args:
        scope (str): 'mmdet', 'mmseg' or 'mmpretrain'.

    Raises:
        EnvironmentProblem: If it cannot work as installed.
    """
    check_environment(scope)
    for module, text in _WARNINGS.items():
        warnings.filterwarnings('ignore', re.escape(text), UserWarning, re.escape(module))
    printed = StringIO()
    try:
        with redirect_stdout(printed):
            import_module(f'{scope}.datasets')
    finally:
        lines = printed.getvalue().splitlines(keepends=True)
        print(*(line for line in lines if _PRINTED not in line), sep='', end='')
