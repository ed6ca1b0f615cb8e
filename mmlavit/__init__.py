"""mmlavit: the Less-Attention Vision Transformer for dense prediction on OpenMMLab.

Importing the package registers ``LaViT`` and the hooks ``DiagonalityLossHook`` and ``CheckNumbersHook`` in mmengine's
root registries, from where mmpretrain, mmdet and mmseg configs resolve them: ``custom_imports =
dict(imports=['mmlavit'])``. From then on mmengine loads no checkpoint that could run code, and never leaves half a file
under the name of a whole one. It needs torch, mmengine and OpenCV only.
"""

import sys

from .environment import EnvironmentProblem, check_environment, is_own_tool, main
from .errors import USER_ERROR_CODE

try:
    check_environment()  # before the imports below, whose errors would not say what to do
except EnvironmentProblem as problem:
    # python -m mmlavit.environment imports this package first.
    if sys.argv[:1] == ['-m'] and 'mmlavit.environment' in sys.orig_argv:
        sys.exit(main(sys.argv[1:]))
    if not is_own_tool():
        raise
    print(f'error: {problem}', file=sys.stderr)
    sys.exit(USER_ERROR_CODE)

from .engine.hooks import CheckNumbersHook, DiagonalityLossHook  # noqa: E402
from .models import LaViT  # noqa: E402
from .utils.checkpoint import register_loaders  # noqa: E402
from .utils.local_files import register_local_files  # noqa: E402
from .version import __version__  # noqa: E402

register_loaders()
register_local_files()

__all__ = ['CheckNumbersHook', 'DiagonalityLossHook', 'LaViT', '__version__']
