"""Train any classifier, detector or segmentor with less attention to do what a teacher does, without labels."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from mmengine.dist import broadcast
from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.registry import HOOKS
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torch.utils.hooks import RemovableHandle

from mmlavit.converters.less_attention import build_twin, copy_teacher, find_twin, fit_transforms, gives_the_same
from mmlavit.errors import ConfigError, first_few
from mmlavit.models.arguments import is_integer, require_number
from mmlavit.models.distillation import attention_distance, find_distances
from mmlavit.models.lavit import Block, LaViT
from mmlavit.models.plain_vit import WithLessAttention, find_blocks, find_transformer

from ..padding import find_image_sizes
from ..plain_model import unwrap
from ..teacher import build_teacher


@HOOKS.register_module()
class DistillationHook(Hook):
    """Replace the losses of a model by distances to a frozen teacher that sees the same images (ours).

    The model stays what it is, so checkpoints, resuming, AMP, DDP and the log are those of any training. What is
    compared, each where both models have it in the same shape, and logged under these names:

    * ``loss_blocks``: tokens after each block of the stages that both have, if the teacher's backbone is a PVTv2 with
      the student's sizes, which then runs as the student's vanilla twin, or a LaViT with its depths and widths. Or if
      it is a plain transformer with those of the student's ``WithLessAttention``.
    * ``loss_maps``: the maps of the backbone, which neck or head read.
    * ``loss_neck``: the maps of the neck, which the heads of a detector read.
    * ``loss_logits``: the class scores of classifiers and segmentors, by Kullback-Leibler divergence.

    The other three are squared distances over the variance of the teacher's. Heads that nothing is compared after get
    no gradient and keep their weights.

    Before the first iteration, the student takes the teacher's weights where it has room for them, and its transforms
    are fitted to the teacher's scores on some of the images (:mod:`mmlavit.converters.less_attention`); this start is
    saved as ``start.pth``. In the first ``layerwise_iters`` iterations each attention layer learns alone, to give its
    teacher layer's output from that layer's input (``loss_attention``).

    Args:
        teacher (dict): Config of the teacher's model.
        checkpoint (str): Its weights.
        scope (str): The teacher's toolbox: 'mmdet', 'mmseg' or 'mmpretrain'.
        layerwise_iters (int): Iterations of learning layer by layer.
        fit_images (int): Images that the transforms are fitted to; 0: they keep their initial values, which did better
            where we compared the two.
        weights (dict, optional): Factors of the losses 'attention', 'blocks', 'maps', 'neck' and 'logits'; 1 where
            nothing is said, 0 to leave one out.

    Raises:
        ConfigError: If an argument is out of its range.
    """

    LOSSES = ('attention', 'blocks', 'maps', 'neck', 'logits')

    def __init__(
        self,
        teacher: Mapping[str, Any],
        checkpoint: str,
        scope: str,
        layerwise_iters: int = 0,
        fit_images: int = 0,
        weights: Mapping[str, float] | None = None,
    ) -> None:
        unknown = set(weights or {}) - set(self.LOSSES)
        if unknown:
            raise ConfigError(
                f'DistillationHook: weights has {", ".join(sorted(unknown))}; expected {", ".join(self.LOSSES)}'
            )
        if not all(is_integer(number) and number >= 0 for number in (layerwise_iters, fit_images)):
            raise ConfigError(
                'DistillationHook: layerwise_iters and fit_images must be integers, 0 or more, got '
                f'{layerwise_iters!r} and {fit_images!r}'
            )
        for name, factor in (weights or {}).items():
            require_number(f'DistillationHook: weights[{name!r}]', factor, 0, math.inf)
        if layerwise_iters and (weights or {}).get('attention') == 0:
            raise ConfigError('DistillationHook: layerwise_iters trains by the loss attention, whose weight is 0')
        self.teacher_cfg = teacher
        self.checkpoint = checkpoint
        self.scope = scope
        self.layerwise_iters = layerwise_iters
        self.fit_images = fit_images
        self.weights = {**dict.fromkeys(self.LOSSES, 1.0), **(weights or {})}
        self._layerwise = False
        self._said = False
        self._handles: list[RemovableHandle] = []

    def before_train(self, runner) -> None:
        """Build the teacher, start the student unless it goes on with an earlier run, and attach."""
        model = unwrap(runner.model)
        device = next(model.parameters()).device
        teacher, state = build_teacher(self.teacher_cfg, self.scope, self.checkpoint)
        twin = self._find_twin(model.backbone, getattr(teacher, 'backbone', None), runner.cfg.model.backbone, state)
        if twin is not None:
            teacher.backbone = twin
        teacher.to(device)
        if runner.iter == 0:
            self._start(runner, model, teacher, state, twin)
        else:
            _check_schedules(runner)
        self.attach(model, teacher)

    def before_train_iter(self, runner, batch_idx: int, data_batch=None) -> None:
        """Choose between the layers alone and the whole."""
        before, self._layerwise = self._layerwise, runner.iter < self.layerwise_iters
        if before and not self._layerwise:
            for name in ('loss', 'loss_attention'):  # the log would go on with their last mean
                runner.message_hub.log_scalars.pop(f'train/{name}', None)

    def after_train(self, runner) -> None:
        """Detach from the model."""
        self.detach()

    def attach(self, model: nn.Module, teacher: nn.Module) -> None:
        """Attach to a model outside a Runner.

        Args:
            model (nn.Module): The student, with ``backbone`` a LaViT or a ``WithLessAttention``; not wrapped.
            teacher (nn.Module): The teacher. Blocks are compared if its backbone has the same kind, depths and widths,
                as far as both have stages.

        Raises:
            ConfigError: If layers are to learn alone but the teacher has other layers.
        """
        self._model, self._teacher = model, teacher.eval().requires_grad_(False)
        comparable = _count_alike(model.backbone, getattr(teacher, 'backbone', None))
        stages = len(model.backbone.stages) if isinstance(model.backbone, LaViT) else 0
        if self.layerwise_iters and not (stages and comparable == stages):
            raise ConfigError(
                'DistillationHook: layerwise_iters needs a LaViT as student, and a teacher whose backbone is a PVTv2 '
                'or a LaViT with the depths and widths of the student; set it to 0'
            )
        self._same_images = _normalise_alike(model.data_preprocessor, teacher.data_preprocessor)
        self._records = (_Record(), _Record())
        self._handles = []
        for record, network in zip(self._records, (model, teacher), strict=True):
            self._handles += _watch(network, record, comparable)
        # All three toolboxes call it for mode='loss', inside of the model's forward, where DDP and AMP expect it.
        model.loss = self._loss

    def detach(self) -> None:
        """Remove everything that :meth:`attach` put on the model."""
        for handle in self._handles:
            handle.remove()
        self._handles = []
        del self._model.loss

    def _find_twin(
        self, student: nn.Module, teacher: nn.Module | None, cfg: Mapping[str, Any], state: Mapping[str, Tensor]
    ) -> nn.Module | None:
        """Give the teacher's backbone as the student's vanilla twin; None if it is another network."""
        if teacher is None:
            return None
        if isinstance(student, WithLessAttention):
            twin = find_twin(student, teacher)
            if twin is None and _count_alike(student, teacher):
                print_log(
                    "The teacher's backbone has the depth and width of the student's, but other shapes or heads "
                    '(another img_size?), or less attention: nothing of it is copied',
                    'current',
                    logging.WARNING,
                )
            return twin
        reduction = self.teacher_cfg.get('backbone', {}).get('key_reduction', 'conv')
        # Of timm, a PVTv2 gives the map of its last stage, or with features_only=True those that it says.
        features = getattr(getattr(teacher, 'timm_model', None), 'feature_info', None)
        maps = getattr(teacher, 'out_indices', None) or getattr(features, 'out_indices', None) or [3]
        twin = build_twin({**cfg, 'key_reduction': reduction, 'out_indices': tuple(maps)}, state)
        why = None
        if twin is None and isinstance(teacher, LaViT):
            why = (
                'is a LaViT, but not with the sizes of the student, vanilla layers only (num_va_layers=depths) and '
                'attention_residual=False'
            )
        elif twin is not None and not gives_the_same(twin, teacher):
            why = "has the sizes of the student's, but gives other maps (other heads or another key grid?)"
        if why is not None:
            print_log(f"The teacher's backbone {why}: nothing of it is copied", 'current', logging.WARNING)
            return None
        return twin

    def _start(
        self, runner, model: nn.Module, teacher: nn.Module, state: Mapping[str, Tensor], twin: nn.Module | None
    ) -> None:
        """Give the student what it can have of the teacher, and save it."""
        if runner.cfg.get('load_from'):
            raise ConfigError(
                f"DistillationHook: load_from is {runner.cfg.load_from}, but a student starts from its teacher's "
                'weights; set load_from to None'
            )
        copied = copy_teacher(model, state, twin)
        backbone = sum(name.startswith('backbone.') for name in copied)
        rest = len(copied) - backbone
        print_log(f'Copied from the teacher: {backbone} tensors of the backbone, {rest} of neck and heads', 'current')
        others = {name for name, _ in model.named_parameters() if not name.startswith('backbone.')} - set(copied)
        if others:
            modules = sorted({name.rpartition('.')[0] for name in others})
            print_log(
                f'Not copied, since the teacher has none of this name and shape: {first_few(modules)}. What is not '
                'trained here either, such as heads of detectors and layers of other classes, stays random: fine-tune '
                'it with labels afterwards',
                'current',
                logging.WARNING,
            )
        if twin is not None and self.fit_images:
            images = _draw_images(runner.train_dataloader, model, teacher, self.fit_images)
            for fit in fit_transforms(model.backbone, twin, images):
                print_log(f'Scores of {fit.name}: relative error {fit.before:.3f} -> {fit.after:.3f}', 'current')
        for tensor in model.state_dict().values():
            broadcast(tensor)  # every process has seen other images
        runner.save_checkpoint(
            runner.work_dir, 'start.pth', save_optimizer=False, save_param_scheduler=False, by_epoch=False
        )

    def _loss(self, inputs: Tensor, data_samples: list | None = None) -> dict[str, Tensor]:
        """Stand for the model's own ``loss``: images (B, 3, H, W), data samples without labels."""
        student, teacher = self._records
        student.open = teacher.open = True
        try:
            with torch.no_grad():
                images = inputs
                if not self._same_images:
                    ours, theirs = self._model.data_preprocessor, self._teacher.data_preprocessor
                    images = _renormalise(inputs, data_samples, ours, theirs)
                teacher['logits'] = _run(self._teacher, images, data_samples)
            if self._layerwise:
                distances = dict(attention=attention_distance(self._model.backbone, teacher['blocks']))
            else:
                student['logits'] = _run(self._model, inputs, data_samples)
                distances = find_distances(student, teacher, sigmoid=_has_sigmoids(self._model))
        finally:
            student.close()
            teacher.close()
        if not self._said and not self._layerwise:
            self._say(distances)
        return {f'loss_{name}': self.weights[name] * value for name, value in distances.items() if self.weights[name]}

    def _say(self, distances: Mapping[str, Tensor]) -> None:
        """Log once what is compared."""
        compared = [name for name in distances if self.weights[name]]
        if not compared:
            raise ConfigError(
                'DistillationHook: student and teacher have nothing in common that could be compared: no map of the '
                'same channels and size, no neck, no class scores of the same number of classes'
            )
        print_log(f'Compared with the teacher: {", ".join(compared)}', 'current')
        self._said = True


class _Record(dict):
    """What a forward gives, for as long as a loss is computed: not in a validation, nor where layers run once more."""

    open = False

    def close(self) -> None:
        """Forget it."""
        self.open = False
        self.clear()


def _find_stages(backbone: nn.Module | None) -> list[Sequence[nn.Module]] | None:
    """Blocks with ``attn``, by stages; None for a backbone without such blocks."""
    if isinstance(backbone, LaViT):
        return [stage.blocks for stage in backbone.stages]
    try:
        return [find_blocks(find_transformer(backbone))]
    except ConfigError:
        return None


def _count_alike(student: nn.Module, teacher: nn.Module | None) -> int:
    """Count the stages that two backbones have alike: all that both have, or none."""
    pair = _find_stages(student), _find_stages(teacher)
    if None in pair or isinstance(student, LaViT) != isinstance(teacher, LaViT):
        return 0
    count = min(map(len, pair))
    ours, theirs = ([[_width(block) for block in blocks] for blocks in stages[:count]] for stages in pair)
    return count if ours == theirs else 0


def _width(block: nn.Module) -> int:
    """Channels of a block; a control may lack the attention of LaViT's, and plain ones differ in their norms."""
    return block.norm2.normalized_shape[0] if isinstance(block, Block) else block.attn.proj.in_features


def _watch(network: nn.Module, record: _Record, stages: int) -> Iterable[RemovableHandle]:
    """Record what backbone, neck and the blocks of some stages give, and what their attention takes and gives."""

    def keep(name: str, module: nn.Module, args: tuple, output: Any) -> None:
        if record.open:
            record[name] = output

    # Blocks and attention of a LaViT give tokens and scores, those of plain transformers tokens.
    def keep_block(module: nn.Module, args: tuple, output: Any) -> None:
        if record.open:
            tokens = output[0] if isinstance(output, tuple) else output
            record.setdefault('blocks', []).append((args[0], *args[1:2], record.pop('attention'), tokens))

    def keep_attention(module: nn.Module, args: tuple, output: Any) -> None:
        if record.open:
            record['attention'] = output[0] if isinstance(output, tuple) else output

    for name in ('backbone', 'neck'):
        if getattr(network, name, None) is not None:
            yield getattr(network, name).register_forward_hook(partial(keep, name))
    if stages:
        for stage in _find_stages(network.backbone)[:stages]:
            for block in stage:
                yield block.attn.register_forward_hook(keep_attention)
                yield block.register_forward_hook(keep_block)


def _check_schedules(runner) -> None:
    """Raise an error if the checkpoint that a run goes on from has schedules of another length than the config."""
    configured = runner.cfg.get('param_scheduler') or []
    configured = [configured] if isinstance(configured, Mapping) else configured
    restored = runner.param_schedulers
    for cfg, scheduler in zip(configured, restored if isinstance(restored, list) else [], strict=False):
        end = cfg.get('end')
        if end is not None and not cfg.get('by_epoch', True) and scheduler.end != end:
            raise ConfigError(
                f'DistillationHook: the checkpoint has a {type(scheduler).__name__} that ends after {scheduler.end} '
                f'iterations, the config one that ends after {end}: resume with as many iterations as before, or '
                'distil anew in another work dir'
            )


def _run(model: nn.Module, inputs: Tensor, data_samples: list | None) -> Tensor | None:
    """Run a model up to its class scores, a detector up to its neck."""
    heads = getattr(model, 'decode_head', None)
    heads = heads if isinstance(heads, nn.ModuleList) else [heads]
    kinds = [cls for some in (model, *heads) for cls in type(some).__mro__]
    # mmseg's MaskFormer and Mask2Former have heads of mmdet, and its PointRend samples points by labels.
    if any(cls.__module__.startswith('mmdet.') or cls.__name__ == 'PointHead' for cls in kinds):
        model.extract_feat(inputs)
        return None
    return model.forward(inputs, data_samples, mode='tensor')


def _has_sigmoids(model: nn.Module) -> bool:
    """Tell whether each class of a classifier has a probability of its own, as with several labels for an image."""
    return any(cls.__name__ == 'MultiLabelClsHead' for cls in type(getattr(model, 'head', None)).__mro__)


def _renormalise(inputs: Tensor, data_samples: list | None, ours: nn.Module, theirs: nn.Module) -> Tensor:
    """Images as the student gets them, (B, channels, H, W), to images as the teacher wants them.

    Padding, which the toolboxes add to normalised images, stays what it is.
    """
    (mean, std), (other_mean, other_std) = _statistics(ours, inputs), _statistics(theirs, inputs)
    images = inputs * std + mean
    if _swaps_channels(ours) != _swaps_channels(theirs):
        images = images.flip(1)
    images = (images - other_mean) / other_std
    sizes = find_image_sizes(inputs, data_samples)
    if sizes is None:
        return images
    padded = inputs.clone()
    for i, (height, width) in enumerate(sizes):
        padded[i, :, :height, :width] = images[i, :, :height, :width]
    return padded


def _normalise_alike(ours: nn.Module, theirs: nn.Module) -> bool:
    """Whether two preprocessors give the same images."""
    pairs = zip(_statistics(ours, torch.zeros(())), _statistics(theirs, torch.zeros(())), strict=True)
    return _swaps_channels(ours) == _swaps_channels(theirs) and all(torch.equal(*pair) for pair in pairs)


def _statistics(preprocessor: nn.Module, like: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of shape (channels, 1, 1); (1, 1, 1) where nothing is normalised."""
    if not getattr(preprocessor, '_enable_normalize', False):
        return like.new_zeros(1, 1, 1), like.new_ones(1, 1, 1)
    return preprocessor.mean.to(like), preprocessor.std.to(like)


def _swaps_channels(preprocessor: nn.Module) -> bool:
    """Whether it makes RGB of OpenCV's BGR; the toolboxes name the flag differently."""
    return any(getattr(preprocessor, name, False) for name in ('_channel_conversion', 'channel_conversion', 'to_rgb'))


def _draw_images(loader: DataLoader, model: nn.Module, teacher: nn.Module, count: int) -> Iterable[Tensor]:
    """Yield images as the teacher gets them, drawn from a data loader's dataset, in its batches.

    Not from the loader itself: an endless sampler ends for good when one of its iterators does.
    """
    ours, theirs = model.data_preprocessor, teacher.data_preprocessor
    same = _normalise_alike(ours, theirs)
    order = torch.randperm(len(loader.dataset), generator=torch.Generator().manual_seed(0))[:count]
    for indices in order.split(loader.batch_sampler.batch_size):
        batch = loader.collate_fn([loader.dataset[int(i)] for i in indices])
        data = ours(batch, True)  # padded or cropped as in training
        yield data['inputs'] if same else _renormalise(data['inputs'], data['data_samples'], ours, theirs)
