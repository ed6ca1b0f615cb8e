"""What the command line tools share: options, checks and the way to a runner."""

from .arguments import add_common_arguments, load_config, merge_test_args, merge_train_args
from .data_paths import missing_data, require_data
from .distributed import local_rank
from .errors import UserError, one_line_errors
from .runner import run

__all__ = [
    'UserError',
    'add_common_arguments',
    'load_config',
    'local_rank',
    'merge_test_args',
    'merge_train_args',
    'missing_data',
    'one_line_errors',
    'require_data',
    'run',
]
