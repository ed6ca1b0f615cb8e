"""Add the diagonality-preserving loss to the losses of any model with a LaViT backbone."""

from __future__ import annotations

from collections.abc import Callable

import torch
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from mmlavit.errors import ConfigError
from mmlavit.models.arguments import is_number
from mmlavit.models.diagonality import diagonality_loss, score_statistics, share_inside, square_grid, square_scores
from mmlavit.models.factored import AnyScores
from mmlavit.models.lavit import LaViT, LessAttention, VanillaAttention
from mmlavit.models.observation import refuse_control
from mmlavit.models.plain_vit import PlainLessAttention, WithLessAttention
from mmlavit.models.resample import Grid

from ..padding import find_image_sizes
from ..plain_model import unwrap

DEFAULT_WEIGHT = 0.1


@HOOKS.register_module()
class DiagonalityLossHook(Hook):
    """Train any classifier, detector or segmentor that has less attention with the diagonality-preserving loss.

    The loss joins the dictionary that the model returns in ``mode='loss'``, inside its forward. So it is parsed,
    scaled (AMP), accumulated, reduced and logged as every other loss, and DDP sees it as an output. It is the
    mean over all less-attention layers, each counted once, also with gradient checkpointing. Forwards of a teacher or a
    momentum encoder, which have no gradients, do not count. What the data preprocessors of mmdet and mmseg pad to make
    a batch does not count; padding by the pipeline or inside the backbone does.

    Logged: ``loss_diag`` (weighted), and for the same scores ``la_magnitude``, the mean absolute score, and
    ``la_entropy``, the mean attention entropy in nats.

    Example:
        >>> custom_hooks = [dict(type='DiagonalityLossHook', weight=0.1)]

    Args:
        weight (float): Factor of the loss.

    Raises:
        ConfigError: If the weight is not positive; in a training, if the loss is not computed, or in some layers only.
    """

    def __init__(self, weight: float = DEFAULT_WEIGHT) -> None:
        if not is_number(weight) or weight <= 0:
            raise ConfigError(
                f'DiagonalityLossHook: weight must be a positive number, got {weight!r}; to have no such loss, remove '
                'the hook'
            )
        self.weight = weight
        self._handles: list[RemovableHandle] = []
        self._backbones: list[LaViT] = []
        self._observing = False
        self._learning = False
        self._called = False  # whether the model has been
        self._learners = 0  # less-attention layers that learn
        self._lost = 0  # those of a pass that ran without gradients all the same
        self._observers: list[Callable | None] = []  # of a user, while ours are in their place
        self._branches: list[tuple[Tensor, Tensor | None]] = []
        self._sizes: Tensor | None = None
        self._terms: list[Tensor] = []
        self._magnitudes: list[Tensor] = []
        self._entropies: list[Tensor] = []

    def before_train(self, runner) -> None:
        """Attach to the model."""
        self.attach(unwrap(runner.model))

    def after_train_iter(self, runner, batch_idx: int, data_batch=None, outputs=None) -> None:
        """Make sure that the loss is there."""
        if not self._called:
            model = unwrap(runner.model)
            raise ConfigError(
                f'DiagonalityLossHook: training does not call {type(model).__name__}, but a model inside of it, so '
                'there is no such loss; remove the hook from custom_hooks'
            )

    def after_train(self, runner) -> None:
        """Detach from the model."""
        self.detach()

    def attach(self, model: nn.Module) -> None:
        """Attach to a model outside a Runner.

        Args:
            model (nn.Module): Model whose forward takes ``mode`` as mmengine's BaseModel does; not wrapped.

        Raises:
            ConfigError: If no less-attention layer is inside, of a LaViT or a ``WithLessAttention``, or a control
                stands in its place.
        """
        for module in model.modules():
            refuse_control(
                module, 'which has no transforms for DiagonalityLossHook to act on; remove the hook from custom_hooks'
            )
        if not any(isinstance(m, (LessAttention, PlainLessAttention)) for m in model.modules()):
            raise ConfigError(
                'DiagonalityLossHook: the model has no less-attention layer (a LaViT with num_va_layers below depths, '
                'or a WithLessAttention); remove the hook from custom_hooks'
            )
        learning = (LessAttention, PlainLessAttention)
        self._learners = sum(isinstance(m, learning) and m.delta_theta.requires_grad for m in model.modules())
        self._backbones = [m for m in model.modules() if isinstance(m, LaViT)]
        plain = [m for m in model.modules() if isinstance(m, PlainLessAttention)]
        whole = [m for m in model.modules() if isinstance(m, (LaViT, WithLessAttention))]
        self._handles = [
            *(backbone.register_forward_pre_hook(self._choose_branch) for backbone in whole),
            *(layer.register_forward_hook(self._observe_plain) for layer in plain),
            model.register_forward_pre_hook(self._start, with_kwargs=True),
            model.register_forward_hook(self._finish, with_kwargs=True, always_call=True),
        ]

    def detach(self) -> None:
        """Remove everything that :meth:`attach` put on the model."""
        for handle in self._handles:
            handle.remove()
        self._handles = []
        self._clear()

    def _start(self, model: nn.Module, args: tuple, kwargs: dict) -> None:
        if _mode(args, kwargs) == 'loss':
            self._observing = self._called = True
            self._learning = torch.is_grad_enabled()
            inputs, samples = _argument(args, kwargs, 0, 'inputs'), _argument(args, kwargs, 1, 'data_samples')
            if isinstance(inputs, dict) and isinstance(samples, dict):  # of mmdet's MultiBranchDataPreprocessor
                self._branches = [(inputs[name], _relative_sizes(inputs[name], samples[name])) for name in inputs]
            else:
                self._sizes = _relative_sizes(inputs, samples)
            self._observers = [backbone.score_observer for backbone in self._backbones]
            for backbone in self._backbones:
                backbone.score_observer = self._observe

    def _choose_branch(self, backbone: nn.Module, args: tuple) -> None:
        """Find the sizes of the images that a backbone gets, if there are several batches."""
        if self._branches:
            self._sizes = next((sizes for images, sizes in self._branches if images is args[0]), None)

    def _observe(self, attn: VanillaAttention | LessAttention, scores: AnyScores) -> None:
        if isinstance(attn, LessAttention):
            self._collect(attn, scores, attn.reduction.reduced_grid(scores.grid), attn.reference_grid)

    def _observe_plain(self, attn: PlainLessAttention, args: tuple, output: Tensor) -> None:
        if self._observing:
            scores = attn.cell_scores()
            self._collect(attn, scores, scores.grid, attn.reference_grid)

    def _collect(self, attn: nn.Module, scores: AnyScores, key_grid: Grid, reference_grid: Grid) -> None:
        """Collect the terms of a less-attention layer, in float32 whatever autocast says."""
        if self._learning and not torch.is_grad_enabled():
            self._lost += attn.delta_theta.requires_grad  # those of a teacher do not learn
            return
        with torch.autocast(attn.delta_theta.device.type, enabled=False):
            square = square_scores(scores, key_grid, reference_grid)
            inside = None
            if self._sizes is not None and len(self._sizes) == len(square):
                inside = share_inside(self._sizes, square_grid(key_grid, reference_grid))
            self._terms.append(diagonality_loss(square, inside))
            magnitude, entropy = score_statistics(square, inside)
        self._magnitudes.append(magnitude)
        self._entropies.append(entropy)

    def _finish(self, model: nn.Module, args: tuple, kwargs: dict, losses):
        if _mode(args, kwargs) != 'loss':
            return None
        fault = ''
        if isinstance(losses, dict):  # not when the forward raised
            if self._lost and len(self._terms) < self._learners:
                fault = (
                    f"{self._lost} of the less-attention layers run without gradients at first, as with mmengine's "
                    'activation_checkpointing, so their loss is missing; set with_cp=True of the backbone instead, or '
                    'remove the hook'
                )
            elif not self._terms:
                fault = 'no less-attention layer ran, so there is no such loss; remove the hook from custom_hooks'
        if isinstance(losses, dict) and not fault:
            losses = dict(
                losses,
                loss_diag=self.weight * torch.stack(self._terms).mean(),
                la_magnitude=torch.stack(self._magnitudes).mean(),
                la_entropy=torch.stack(self._entropies).mean(),
            )
        self._clear()
        if fault:
            raise ConfigError(f'DiagonalityLossHook: {fault}')
        return losses

    def _clear(self) -> None:
        self._observing = self._learning = False
        self._branches = []
        for backbone, observer in zip(self._backbones, self._observers, strict=False):
            backbone.score_observer = observer
        self._observers = []
        self._lost = 0
        self._sizes, self._terms, self._magnitudes, self._entropies = None, [], [], []


def _mode(args: tuple, kwargs: dict) -> str:
    """Find the ``mode`` of ``forward(inputs, data_samples, mode)``."""
    return _argument(args, kwargs, 2, 'mode') or 'tensor'


def _argument(args: tuple, kwargs: dict, place: int, name: str):
    return kwargs.get(name, args[place] if len(args) > place else None)


def _relative_sizes(inputs, data_samples) -> Tensor | None:
    """Height and width of each image over those of a padded batch, (B, 2); None if it is not known to be padded."""
    sizes = find_image_sizes(inputs, data_samples)
    if sizes is None:
        return None
    height, width = inputs.shape[-2:]
    return torch.tensor([(h / height, w / width) for h, w in sizes], device=inputs.device).clamp(max=1)
