"""What the benchmark can measure: backbones, from their public builds, and sizes of inputs."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

from mmengine.registry import MODELS, DefaultScope
from torch import nn

from mmlavit.environment import check_environment, find_installed
from mmlavit.errors import UserError
from mmlavit.models.arch import ARCH_ZOO
from mmlavit.utils.config_files import load_config
from mmlavit.utils.config_types import type_name
from mmlavit.utils.toolbox import find_scope, load_toolbox

from .runtimes import EXPORTED, TITLES


@dataclass(frozen=True)
class Subject:
    """A backbone that returns a map at each of the strides 4, 8, 16 and 32, or a plain vision transformer with one map.

    No weights are downloaded.

    Args:
        name (str): What it is called on the command line.
        title (str): What it is, for readers.
        target (str): Dotted name of the class or function that builds it.
        kwargs (Mapping): Its arguments; plain data, since another process builds the backbone.
        toolbox (str, optional): The package besides mmlavit that it comes from: 'timm', 'mmdet', 'mmseg' or
            'mmpretrain'; None for LaViT.
        runtime (str): What runs it: a key of :data:`~mmlavit.analysis.benchmark.runtimes.RUNTIMES`.
        one_size (bool): Whether it is built for images of one size, which it takes as ``img_size``.
    """

    name: str
    title: str
    target: str
    kwargs: Mapping[str, object] = field(default_factory=dict)
    toolbox: str | None = None
    runtime: str = 'eager'
    one_size: bool = False

    @property
    def backbone(self) -> str:
        """Its name in any runtime."""
        return self.name.removesuffix(f'_{self.runtime}')

    @property
    def is_lavit(self) -> bool:
        """Whether it is a LaViT, or something with less attention: plots show them in a colour of their own."""
        return self.toolbox is None or self.title.startswith('LaViT') or 'less attention' in self.title

    def run_by(self, runtime: str) -> Subject:
        """Return the same backbone for another runtime."""
        if runtime == self.runtime:
            return self
        return replace(self, name=f'{self.name}_{runtime}', title=f'{self.title}, {TITLES[runtime]}', runtime=runtime)

    def build(self, height: int, width: int) -> nn.Module:
        """Build the backbone with random weights.

        Args:
            height (int): Rows of the images that it will see.
            width (int): Columns of these.

        Returns:
            nn.Module: The backbone.

        Raises:
            EnvironmentProblem: If its toolbox is unusable in a way that :func:`check_environment` can name.
            ImportError: If it cannot be imported for another reason.
        """
        module, _, name = self.target.rpartition('.')
        try:
            factory = getattr(import_module(module), name)
        except ImportError:
            if self.toolbox not in (None, 'timm'):
                check_environment(self.toolbox)  # says what to do
            raise
        if self.toolbox == 'timm' and self.runtime in EXPORTED:
            from timm.layers import set_fused_attn

            set_fused_attn(False)  # of whose forms with windows torch's exporter knows none
        size = dict(img_size=(height, width)) if self.one_size else {}
        return factory(**self.kwargs, **size)


def _lavits() -> Iterator[Subject]:
    for arch in ('tiny', 'small', 'base'):
        variants = {
            '': ('', {}),
            '_pool': (', pooled keys', dict(key_reduction='pool')),
            '_twin': (', all layers vanilla', dict(num_va_layers=ARCH_ZOO[arch].depths, attention_residual=False)),
        }
        if arch == 'small':
            variants['_no_ar'] = (' without attention residual', dict(attention_residual=False))
        for suffix, (text, kwargs) in variants.items():
            name, title = f'lavit_{arch[0]}{suffix}', f'LaViT-{arch[0].upper()}{text}'
            yield Subject(name, title, 'mmlavit.LaViT', dict(arch=arch, **kwargs))


def _converted() -> Iterator[Subject]:
    """Yield transformers of others, and the same with less attention."""
    arch = 'pvt_v2_b2'
    twin = dict(num_va_layers=ARCH_ZOO[arch].depths, attention_residual=False)
    yield Subject('pvt_v2_b2_less', 'PVTv2-B2 with less attention', 'mmlavit.LaViT', dict(arch=arch))
    yield Subject('pvt_v2_b2_twin', 'PVTv2-B2 as LaViT, all layers vanilla', 'mmlavit.LaViT', dict(arch=arch, **twin))
    deit = dict(type='mmpretrain.VisionTransformer', arch='deit-small', img_size=224, out_type='featmap', **_DROP)
    vit = dict(type='mmpretrain.TIMMBackbone', model_name='vit_small_patch16_224', dynamic_img_size=True, **_DROP)
    for name, title, backbone in (('deit_s', 'DeiT-S (mmpretrain)', deit), ('vit_s', 'ViT-S (timm)', vit)):
        for suffix, text, layers in (('', '', []), ('_less', ', less attention in every second layer', _EVERY_SECOND)):
            kwargs = dict(backbone=backbone, layers=layers)
            yield Subject(f'{name}{suffix}', f'{title}{text}', 'mmlavit.models.WithLessAttention', kwargs, 'mmpretrain')


def _peer(name: str, title: str, toolbox: str, target: str, **kwargs: object) -> Subject:
    return Subject(name, f'{title} ({toolbox})', f'{toolbox}.{target}', kwargs, toolbox)


def _timm(name: str, title: str, model_name: str, one_size: bool = False, **kwargs: object) -> Subject:
    arguments = dict(model_name=model_name, pretrained=False, features_only=True, **kwargs)
    return replace(_peer(name, title, 'timm', 'create_model', **arguments), one_size=one_size)


# Stochastic depth costs the same everywhere when all have it; LaViT's default is 0.1, some peers' is 0.
_DROP = dict(drop_path_rate=0.1)
_TINY = dict(arch='tiny', out_indices=(0, 1, 2, 3), **_DROP)
_EVERY_SECOND = [1, 3, 5, 7, 9, 11]
_B2 = dict(embed_dims=64, num_layers=[3, 4, 6, 3], **_DROP)

SUBJECTS = {
    subject.name: subject
    for subject in [
        *_lavits(),
        *_converted(),
        _timm('pvt_v2_b2', 'PVTv2-B2', 'pvt_v2_b2', **_DROP),
        _peer('pvt_v2_b2_mmdet', 'PVTv2-B2', 'mmdet', 'models.PyramidVisionTransformerV2', **_B2),
        # Maps smaller than a window, of inputs below 224 px, are otherwise refused.
        _peer('swin_t', 'Swin-T', 'mmpretrain', 'models.SwinTransformer', pad_small_map=True, **_TINY),
        _peer('swin_t_mmdet', 'Swin-T', 'mmdet', 'models.SwinTransformer', **_DROP),
        _peer('convnext_t', 'ConvNeXt-T', 'mmpretrain', 'models.ConvNeXt', gap_before_final_norm=False, **_TINY),
        _peer('resnet50', 'ResNet-50', 'mmdet', 'models.ResNet', depth=50, style='pytorch', norm_eval=False),
        _peer('mit_b2', 'MiT-B2', 'mmseg', 'models.MixVisionTransformer', num_heads=[1, 2, 5, 8], **_B2),
        _timm('hiera_t', 'Hiera-T', 'hiera_tiny_224', one_size=True, **_DROP),
        _timm('cpubone_b3', 'CPUBone-B3', 'cpubone_b3', **_DROP),
        _timm('cpubone_b2', 'CPUBone-B2', 'cpubone_b2_bfrobust', **_DROP),
        # It has no stochastic depth.
        _timm('efficientvit_b2', 'EfficientViT-B2', 'efficientvit_b2'),
        _timm('mobilenetv4_m', 'MobileNetV4-M', 'mobilenetv4_conv_medium', out_indices=(1, 2, 3, 4), **_DROP),
    ]
}
"""All backbones, by name, in the order of the tables."""


def build_backbone(config: str) -> nn.Module:
    """Build the backbone of a config's model, with random weights.

    Args:
        config (str): Config file of one of the three toolboxes.

    Returns:
        nn.Module: The backbone.
    """
    cfg = load_config(config)
    load_toolbox(cfg.default_scope)
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        return MODELS.build(cfg.model.backbone)


def _of_config(path: str) -> Subject:
    """Make a subject of the backbone of a config, which must have one."""
    cfg = load_config(path)
    scope = find_scope(cfg)
    if 'type' not in cfg.get('model', {}).get('backbone', {}):
        raise UserError(f'{path} has no model.backbone; expected the config of a classifier, detector or segmentor')
    target = f'{__name__}.{build_backbone.__name__}'
    return Subject(Path(path).stem, f'{type_name(cfg.model.backbone)} of {path}', target, dict(config=path), scope)


def resolve_subjects(names: Sequence[str]) -> list[Subject]:
    """Look up backbones and check that what they come from is installed.

    Args:
        names (Sequence[str]): Keys of :data:`SUBJECTS`, or config files, whose names end in ``.py`` and without it are
            what their backbones are called; repetitions are dropped.

    Returns:
        list[Subject]: The backbones, in the order of the names.

    Raises:
        UserError: If a name is unknown, a config does not exist or has no backbone, two would have one name, or timm is
            not installed.
        EnvironmentProblem: If a toolbox is not installed.
    """
    unknown = [name for name in names if name not in SUBJECTS and not name.endswith('.py')]
    if unknown:
        raise UserError(f'unknown backbone {", ".join(unknown)}; known are {", ".join(SUBJECTS)}, and config files')
    subjects = [SUBJECTS[name] if name in SUBJECTS else _of_config(name) for name in dict.fromkeys(names)]
    called = Counter(subject.name for subject in subjects)
    if twice := [subject.title for subject in subjects if called[subject.name] > 1]:
        raise UserError(f'{" and ".join(twice)} would have the same name in the table; rename a file, or make a copy')
    installed = find_installed()
    for toolbox in dict.fromkeys(subject.toolbox for subject in subjects if subject.toolbox):
        # Only what is not there at all ends the run: for instance, mmcv's ops can lack CUDA, which no backbone uses.
        if toolbox == 'timm':
            if find_spec('timm') is None:
                names = ', '.join(subject.name for subject in subjects if subject.toolbox == 'timm')
                raise UserError(f'timm is not installed, but {names} come from it; `pip install timm` installs it')
        elif toolbox not in installed:
            check_environment(toolbox)
    return subjects


@dataclass(frozen=True)
class InputSize:
    """Size of a batch of images.

    Args:
        batch (int): Images.
        height (int): Rows of each.
        width (int): Columns of each.
    """

    batch: int
    height: int
    width: int

    def __str__(self) -> str:
        return f'{self.batch}x{self.image}'

    @property
    def image(self) -> str:
        """Rows and columns, as text."""
        return f'{self.height}x{self.width}'

    @property
    def pixels(self) -> int:
        """Pixels of one image."""
        return self.height * self.width

    @property
    def title(self) -> str:
        """What stands above tables and plots."""
        return f'{self.image}, batch {self.batch}'


PRESETS = {
    '224': InputSize(8, 224, 224),
    '512': InputSize(2, 512, 512),
    'coco': InputSize(1, 800, 1344),
    'cityscapes': InputSize(1, 1024, 2048),
}
"""Inputs as classification, segmentation and detection see them."""


def parse_input(text: str) -> InputSize:
    """Read the size of an input.

    Args:
        text (str): A key of :data:`PRESETS` or BATCHxHEIGHTxWIDTH.

    Returns:
        InputSize: The size.

    Raises:
        UserError: If it is neither.
    """
    if text in PRESETS:
        return PRESETS[text]
    numbers = re.fullmatch(r'([1-9]\d*)x([1-9]\d*)x([1-9]\d*)', text)
    if not numbers:
        presets = ', '.join(f'{name} ({size})' for name, size in PRESETS.items())
        raise UserError(f'unknown input {text!r}; expected BATCHxHEIGHTxWIDTH, such as 2x512x512, or {presets}')
    return InputSize(*map(int, numbers.groups()))
