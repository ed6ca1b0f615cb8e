"""Mistakes in a config that show only when its parts are built: unknown types, arguments that nobody takes."""

from __future__ import annotations

import difflib
import inspect
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, redirect_stdout, suppress
from io import StringIO
from typing import Any

import mmengine.registry
from mmengine.config import Config
from mmengine.registry import OPTIMIZERS, Registry

from mmlavit.environment import SCOPES
from mmlavit.errors import UserError

from .config_types import type_name

# Of a train loop without a type: what it refuses, and why.
_LENGTHS = {'max_epochs': (False, 'max_iters'), 'max_iters': (True, 'max_epochs')}

# Those of mmdet and mmseg know some backbones by name; mmpretrain's asks a classifier's backbone.
_LAYER_DECAY = (
    'LearningRateDecayOptimizerConstructor',
    'LayerDecayOptimizerConstructor',
    'LearningRateDecayOptimWrapperConstructor',
)


@contextmanager
def blame_config(cfg: Config | Mapping[str, Any], options: Mapping[str, Any] | None = None) -> Iterator[None]:
    """Report a type or an argument that is not known as a mistake of the user, if the config has it.

    Args:
        cfg (Config or Mapping): The config that is run.
        options (Mapping, optional): Dotted keys given on the command line.

    Raises:
        UserError: If a ``TypeError`` names an unexpected keyword or comes from an unknown optimizer, or a ``KeyError``
            names an unknown type or the metric of ``save_best``, that stands in the config, or a ``ValueError`` is
            about the ends of a schedule, or a ``NotImplementedError`` comes from a layer-wise decay.
    """
    try:
        yield
    except (TypeError, KeyError, ValueError, NotImplementedError) as error:
        text = str(error.args[0]) if error.args else ''
        cfg = cfg._cfg_dict if isinstance(cfg, Config) else cfg
        mistake = (
            _find_unknown_argument(cfg, options or {}, text)
            or _find_unknown_type(cfg, text)
            or _find_unknown_optimizer(cfg, text)
            or _find_unknown_metric(cfg, text, error)
            or _find_schedule(cfg, text)
            or _find_layer_decay(cfg, error)
        )
        if not mistake:
            raise
        raise UserError(mistake) from error


def _find_unknown_argument(cfg: Mapping[str, Any], options: Mapping[str, Any], text: str) -> str:
    found = re.search(r"(\S+)\(\) got an unexpected keyword argument '(\w+)'", text)
    if not found:
        return ''
    owner, name = found[1].removesuffix('.__init__'), found[2]
    if name == 'pretrained' and cfg.get('model', {}).get('pretrained') is not None:
        return (
            f'model.pretrained is {cfg["model"]["pretrained"]!r}, left over from a base config; {owner} takes its '
            'weights by init_cfg: set model.pretrained=None'
        )
    for key in options:
        if name in key.split('.'):
            return f'--cfg-options {key}: {owner} takes no argument {name!r}; check its spelling'
    for place, node in _walk(cfg):
        if place == 'train_cfg' and 'type' not in node and name in node and name in _LENGTHS:
            by_epoch, other = _LENGTHS[name]
            return (
                f'train_cfg has {name}, but with by_epoch={by_epoch} the length is {other}; if {name} is left over '
                f'from a base config, write train_cfg=dict(_delete_=True, by_epoch={by_epoch}, {other}=N)'
            )
        if type_name(node) == owner.rpartition('.')[2] and name in node:
            hint = _hint(name, _arguments(owner))
            return (
                f'{place}: {owner} takes no argument {name!r}; {hint} If it is left over from the type of a base '
                'config, add _delete_=True beside the new type'
            )
    return ''


def _find_unknown_metric(cfg: Mapping[str, Any], text: str, error: Exception) -> str:
    for place, node in _walk(cfg) if isinstance(error, KeyError) else ():
        wanted = node.get('save_best')
        if text and text in ([wanted] if isinstance(wanted, str) else wanted or ()):
            return f"{place}.save_best: the validation gave no {text!r}; take one of the names in its log, or 'auto'"
    return ''


def _find_schedule(cfg: Mapping[str, Any], text: str) -> str:
    found = re.match(r'end should be larger than begin, but got begin=(\S+), end=(\S+)', text)
    for place, node in _walk(cfg) if found else ():
        if 'param_scheduler' in place and (str(node.get('begin', 0)), str(node.get('end'))) == found.groups():
            return f'{place}: {type_name(node)} begins at {found[1]} and ends at {found[2]}; its end must come later'
    return ''


def _find_layer_decay(cfg: Mapping[str, Any], error: Exception) -> str:
    kind = (cfg.get('optim_wrapper') or {}).get('constructor')
    if isinstance(error, NotImplementedError) and str(kind).rpartition('.')[2] in _LAYER_DECAY:
        return (
            f'optim_wrapper.constructor: {kind} does not know the layers of this backbone; decay learning rates by '
            'paramwise_cfg.custom_keys instead (docs/own_project.md of mmlavit)'
        )
    return ''


def _find_unknown_type(cfg: Mapping[str, Any], text: str) -> str:
    found = re.search(r'^(\S+) is not in the (.+?) registry', text)
    for place, node in _walk(cfg) if found else ():
        if node.get('type') == found[1]:
            wanted = found[1].rpartition('.')[2]
            elsewhere = _find_elsewhere(found[2].rpartition('::')[2], wanted)
            if elsewhere:
                return f'{place}: no {found[1]} is registered in {found[2]}; did you mean {" or ".join(elsewhere)}?'
            hint = _hint(wanted, _known_types())
            return (
                f'{place}: no {found[1]} is registered in {found[2]}; {hint} A class of your own has to be imported: '
                "custom_imports=dict(imports=['its.module'])"
            )
    return ''


def _find_unknown_optimizer(cfg: Mapping[str, Any], text: str) -> str:
    """Find the optimizer that the constructor looked up without success, and went on with None."""
    for place, node in _walk(cfg) if text == 'None is not a callable object' else ():
        kind = node.get('type')
        if place.rpartition('.')[2] == 'optimizer' and isinstance(kind, str) and OPTIMIZERS.get(kind) is None:
            return f'{place}: no {kind} is registered in {OPTIMIZERS.name}; {_hint(kind, OPTIMIZERS.module_dict)}'
    return ''


def _hint(name: str, known: Iterable[str]) -> str:
    """Name what is nearest to a name, whatever the case of its letters."""
    known = {one.lower(): one for one in known}
    close = difflib.get_close_matches(name.lower(), known, n=1)
    return f'did you mean {known[close[0]]}?' if close else 'check its spelling.'


def _walk(node: Any, place: str = '') -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield all dicts of a config and where they stand."""
    if isinstance(node, Mapping):
        if place:
            yield place, node
        entries = node.items()
    else:
        entries = enumerate(node) if isinstance(node, (list, tuple)) else ()
    for name, child in entries:
        yield from _walk(child, f'{place}.{name}' if place else str(name))


def _registries() -> Iterator[Registry]:
    for registry in vars(mmengine.registry).values():
        if isinstance(registry, Registry):
            yield registry
            yield from registry.children.values()


def _known_types() -> list[str]:
    return sorted({name for registry in _registries() for name in registry.module_dict})


def _find_elsewhere(kind: str, name: str) -> list[str]:
    """Look for a class in the registries of that kind of all toolboxes that are installed."""
    found = []
    for root in vars(mmengine.registry).values():
        for scope in SCOPES if isinstance(root, Registry) and root.name == kind else ():
            with suppress(Exception), redirect_stdout(StringIO()):  # a toolbox that cannot be imported
                if root.get(f'{scope}.{name}') is not None:
                    found.append(f'{scope}.{name}')
    return found


def _arguments(owner: str) -> list[str]:
    """Names of the arguments of a registered class."""
    name = owner.rpartition('.')[2]
    found = next((registry.module_dict[name] for registry in _registries() if name in registry.module_dict), None)
    try:
        return [] if found is None else [*inspect.signature(found).parameters]
    except (TypeError, ValueError):
        return []
