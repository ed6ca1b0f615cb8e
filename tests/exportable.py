"""Small models of every kind that can be exported, with weights that find something."""

from pathlib import Path

import cv2
import numpy as np
import torch
from mmengine.config import Config
from mmengine.model import BaseModule
from mmengine.registry import MODELS, init_default_scope
from torch import nn

from mmlavit.utils.toolbox import load_toolbox

ROOT = Path(__file__).parents[1]
DIGITS = tuple('0123456789')
# Every mechanism, and no more layers: an export takes seconds for each.
ARCH = dict(
    embed_dims=[16, 16, 32, 32],
    depths=[1, 1, 2, 1],
    num_heads=[1, 1, 2, 2],
    mlp_ratios=[2, 2, 2, 2],
    num_va_layers=[1, 1, 1, 1],
)
IN_CHANNELS = ARCH['embed_dims']
KINDS = ['classifier', 'retinanet', 'mask_rcnn', 'cascade', 'upernet', 'fpn']


@MODELS.register_module()
class FourConvolutions(BaseModule):
    """Maps of the sizes and channels of a LaViT, from fewer operators to export."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, IN_CHANNELS[0], 3, 2, 1)
        channels = [IN_CHANNELS[0], *IN_CHANNELS]
        self.stages = nn.ModuleList(nn.Conv2d(*pair, 3, 2, 1) for pair in zip(channels, channels[1:]))

    def forward(self, x):
        """Give maps of strides 4, 8, 16 and 32."""
        x, maps = self.stem(x), []
        for stage in self.stages:
            x = stage(x.relu())
            maps.append(x)
        return tuple(maps)


def make_config(kind: str) -> Config:
    """A config of this kind: a handwritten one, or one of the large ones made as small."""
    name = {
        'classifier': 'handwritten/classify_lavit_nano.py',
        'retinanet': 'handwritten/retinanet_lavit_nano.py',
        'mask_rcnn': 'handwritten/mask_rcnn_lavit_nano.py',
        'cascade': 'cascade_mask_rcnn_lavit_s_3x.py',
        'upernet': 'handwritten/upernet_lavit_nano.py',
        'fpn': 'fpn_lavit_s.py',
    }[kind]
    cfg = Config.fromfile(ROOT / 'configs' / name)
    model = cfg.model
    model.backbone.update(arch=dict(ARCH), init_cfg=None)
    if kind == 'classifier':
        model.head.in_channels = IN_CHANNELS[-1]
    elif kind == 'upernet':
        model.decode_head.in_channels = IN_CHANNELS
        model.pop('auxiliary_head')
    else:
        model.neck.in_channels = IN_CHANNELS
    if kind == 'cascade':
        model.rpn_head.update(feat_channels=256)
        for head in model.roi_head.bbox_head:
            head.update(num_classes=10, fc_out_channels=64)
            if 'num_shared_fcs' not in head:
                head.update(conv_out_channels=16, num_shared_convs=1)
        model.roi_head.mask_head.update(num_convs=1, conv_out_channels=16, num_classes=10)
        model.test_cfg.rpn.update(nms_pre=200, max_per_img=50)
    return cfg


def build(cfg: Config) -> torch.nn.Module:
    """The model, with random weights that are large enough to tell classes and boxes apart."""
    load_toolbox(cfg.default_scope)
    init_default_scope(cfg.default_scope)
    torch.manual_seed(0)
    model = MODELS.build(cfg.model)
    model.init_weights()
    for name, parameter in model.named_parameters():
        if name.endswith(('fc_cls.weight', 'rpn_cls.weight', 'conv_logits.weight', 'conv_seg.weight')):
            torch.nn.init.normal_(parameter, std=10 * parameter[0].numel() ** -0.5)
        elif name.endswith('retina_cls.weight'):
            torch.nn.init.normal_(parameter, std=1.5 * parameter[0].numel() ** -0.5)
        elif name.endswith(('fc_reg.weight', 'retina_reg.weight', 'rpn_reg.weight')):
            torch.nn.init.normal_(parameter, std=0.5 * parameter[0].numel() ** -0.5)
        elif name.endswith('retina_cls.bias'):
            torch.nn.init.constant_(parameter, -3.0)
    return model.eval()


def save_random(cfg, checkpoint):
    """Save a checkpoint of random weights, with names and colours of as many classes as the model has."""
    classes = {10: DIGITS, 11: ('background', *DIGITS), 150: tuple(map(str, range(150)))}[num_classes(cfg)]
    palette = [[index, 0, 255 - index] for index in range(len(classes))]
    meta = dict(dataset_meta=dict(classes=classes, palette=palette))
    torch.save(dict(state_dict=build(cfg).state_dict(), meta=meta), checkpoint)


def num_classes(cfg):
    """The number of classes of a segmentor; all others have ten."""
    return cfg.model.decode_head.num_classes if cfg.default_scope == 'mmseg' else 10


def make_image(size, seed=0):
    """Noise at several scales, which gives a random model different things to see."""
    rng = np.random.default_rng(seed)
    image = np.zeros((*size, 3), np.float64)
    for side in (4, 16, 64):
        image += cv2.resize(rng.uniform(0, 85, (side, side, 3)), size[::-1])
    return image.astype(np.uint8)
