"""Whether the weights of a file are those of a model: what does not fit is told, not dropped."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from mmengine.logging import print_log
from mmengine.model import BaseTTAModel, is_model_wrapper
from torch import Tensor, nn

from mmlavit.errors import UserError, first_few

_LEAST = 0.1  # of the tensors; another depth of the same widths leaves more


class Fit(NamedTuple):
    """How the tensors of a file fit a model that they were loaded into.

    Args:
        total (int): Tensors of the model that a file must have: parameters and running statistics.
        missing (list[str]): Those of them that the file lacks.
        misshapen (list[str]): Those that have another shape there, with both shapes.
        unknown (list[str]): Tensors of the file that the model has no place for.
    """

    total: int
    missing: list[str]
    misshapen: list[str]
    unknown: list[str]

    @property
    def loaded(self) -> int:
        """Number of tensors that fitted."""
        return self.total - len(self.missing) - len(self.misshapen)

    def describe(self) -> str:
        """Name what does not fit, in one line; '' if all does."""
        parts = (
            (self.missing, 'missing in the file'),
            (self.misshapen, 'of another shape there'),
            (self.unknown, 'in the file alone'),
        )
        return '; '.join(f'{len(names)} {what} ({first_few(names)})' for names, what in parts if names)


def load_weights(model: nn.Module, state: Mapping[str, Tensor]) -> Fit:
    """Load what fits into a model, as mmengine does, and say what does not.

    Modules that rename keys while they load do so here as well.

    Args:
        model (nn.Module): The model; weights that fit change.
        state (Mapping[str, Tensor]): Weights by name; a leading ``module.`` is left out.

    Returns:
        Fit: What fitted.
    """
    metadata = getattr(state, '_metadata', None) or {}  # versions of modules, as torch saves them
    missing: list[str] = []
    unknown: list[str] = []
    errors: list[str] = []

    def load(module: nn.Module, state: dict[str, Tensor], prefix: str = '') -> None:
        if is_model_wrapper(module) or isinstance(module, BaseTTAModel):
            module = module.module
        module._load_from_state_dict(state, prefix, metadata.get(prefix[:-1], {}), True, missing, unknown, errors)
        for name, child in module._modules.items():
            if child is not None:
                inner = f'{prefix}{name}.'
                load(child, {key: value for key, value in state.items() if key.startswith(inner)}, inner)

    load(model, {key.removeprefix('module.'): value for key, value in state.items()})
    needed = _find_needed(model)
    misshapen = [_shorten(error) for error in errors]
    return Fit(len(needed), [name for name in missing if name in needed], misshapen, unknown)


def require_whole(model: nn.Module, state: Mapping[str, Tensor], path: str) -> None:
    """Load all weights of a model, or refuse.

    Args:
        model (nn.Module): The model.
        state (Mapping[str, Tensor]): Weights by name.
        path (str): File or address they are from, for the message.

    Raises:
        UserError: If a weight is missing or has another shape.
    """
    fit = load_weights(model, state)
    if fit.missing or fit.misshapen:
        heads = not fit.missing and all('head' in line.split(':')[0] for line in fit.misshapen)
        more = ', or set num_classes to its number; init_cfg or load_from start a training from it' if heads else ''
        raise UserError(
            f'{path} is not a checkpoint of this config: of {fit.total} tensors of the model {fit.loaded} fit; '
            f'{fit.describe()}; name the config that it was trained with{more}'
        )
    if fit.unknown:
        print_log(f'{path}: {fit.describe()}', 'current', logging.WARNING)


def load_what_fits(model: nn.Module, state: Mapping[str, Tensor], path: str) -> None:
    """Start a model from weights of another, and say in one line what does not fit.

    Args:
        model (nn.Module): The model.
        state (Mapping[str, Tensor]): Weights by name.
        path (str): File or address they are from, for the messages.

    Raises:
        UserError: If nothing fits, or less than a tenth of both the file and the model.
    """
    fit = load_weights(model, state)
    if not fit.loaded:
        advice = ''
        if any(name.startswith('backbone.') for name in state):
            advice = "; it is of a whole model: add prefix='backbone.' to init_cfg"
        raise UserError(f'nothing in {path} fits {type(model).__name__}: {fit.describe()}{advice}')
    offered = fit.loaded + len(fit.misshapen) + len(fit.unknown)
    if fit.loaded < _LEAST * min(fit.total, offered):  # heads alone, or an adapter, are few and fit
        raise UserError(
            f'{path} is of another model: of {fit.total} tensors of {type(model).__name__} {fit.loaded} fit; '
            f'{fit.describe()}; does arch fit the checkpoint?'
        )
    rest = fit.describe()
    level = logging.WARNING if fit.missing or fit.misshapen else logging.INFO
    what = f'{fit.loaded} of {fit.total} tensors of {type(model).__name__}'
    print_log(f'Loaded from {path}: {what}' + (f'; not: {rest}' if rest else ''), 'current', level)
    if level == logging.WARNING:
        names = [*fit.missing, *fit.misshapen]
        print_log(f'Not loaded from {path}: {", ".join(names)}', 'current', logging.WARNING)


def cut_prefix(state: Mapping[str, Any], prefix: str, path: str) -> dict[str, Any]:
    """Give the weights of a part of a model.

    Args:
        state (Mapping[str, Any]): Weights by name.
        prefix (str): What their names begin with, such as ``backbone.``.
        path (str): File or address they are from, for the message.

    Returns:
        dict[str, Any]: Weights by the rest of their names.

    Raises:
        UserError: If no name begins with it.
    """
    prefix = f'{prefix.removesuffix(".")}.'
    state = {key.removeprefix('module.'): value for key, value in state.items()}
    part = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
    if not part:
        known = sorted({f'{key.partition(".")[0]}.' for key in state})
        raise UserError(f'{path} has no weights whose names begin with {prefix!r}; they begin with {first_few(known)}')
    return part


def _find_needed(model: nn.Module) -> set[str]:
    """Names of what a file must have: buffers besides statistics are computed, or counts."""
    model = model.module if isinstance(model, BaseTTAModel) else model
    statistics = {name for name, _ in model.named_buffers() if name.endswith(('running_mean', 'running_var'))}
    return {name for name, _ in model.named_parameters()} | statistics


def _shorten(error: str) -> str:
    """Shorten torch's message about a shape to the name and the shapes."""
    found = re.search(r'size mismatch for (\S+): .*?torch.Size\(\[(.*?)\]\).*torch.Size\(\[(.*?)\]\)', error, re.DOTALL)
    return f'{found[1]}: {found[2]} instead of {found[3]}' if found else ' '.join(error.split())
