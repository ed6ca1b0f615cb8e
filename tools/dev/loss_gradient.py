#!/usr/bin/env python
"""Compare the first gradient of a training with and without the diagonality loss, on images of several kinds.

The images are a batch of the config: as they are; padded (shrunk to half their sides and padded back, annotations left
as they were); flat (each image its mean colour); and all zero after normalisation. The gradient is that of all weights
of the backbone, before the first step.
"""

from __future__ import annotations

import argparse
import copy

import torch
from mmengine.config import Config
from mmengine.logging import MMLogger
from mmengine.registry import MODELS, init_default_scope
from mmengine.runner import Runner, set_random_seed
from torch import Tensor, nn

from mmlavit.engine.hooks import DiagonalityLossHook
from mmlavit.errors import one_line_errors
from mmlavit.utils.arguments import add_options_argument
from mmlavit.utils.config_files import load_config
from mmlavit.utils.config_types import model_config
from mmlavit.utils.data_paths import require_data
from mmlavit.utils.toolbox import load_toolbox

WEIGHTS = (0.01, 0.1, 1.0)


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config', help='config of a classifier, detector or segmentor with less-attention layers')
    parser.add_argument('--seeds', type=int, default=3, metavar='N', help='random starts; default: %(default)s')
    add_options_argument(parser, 'change the config, such as train_dataloader.batch_size=2')
    return parser.parse_args()


def change(inputs: Tensor, samples: list, kind: str) -> Tensor:
    """Make normalised images (B, 3, H, W) of another kind."""
    if kind == 'as they are':
        return inputs
    if kind == 'padded':
        padded = torch.zeros_like(inputs)
        height, width = inputs.shape[-2] // 2, inputs.shape[-1] // 2
        padded[..., :height, :width] = nn.functional.interpolate(inputs, (height, width), mode='area')
        for sample in samples:
            # As mmdet's data preprocessor marks a batch that it has padded.
            sample.set_metainfo(dict(img_shape=(height, width), batch_input_shape=tuple(inputs.shape[-2:])))
        return padded
    return inputs.mean(dim=(2, 3), keepdim=True).expand_as(inputs) * (kind == 'flat')


def gradient(model: nn.Module, loss: Tensor) -> Tensor:
    """Gradient of a loss with respect to all weights of the backbone, as one vector."""
    parameters = [p for p in model.backbone.parameters() if p.requires_grad]
    grads = torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)
    return torch.cat(
        [torch.zeros_like(p).flatten() if g is None else g.flatten() for p, g in zip(parameters, grads, strict=True)]
    )


def compare(cfg: Config, batch: dict, kind: str, seed: int) -> list[float]:
    """Norm of the task's gradient, and what it is multiplied by with each weight of the loss."""
    set_random_seed(seed)
    model = MODELS.build(model_config(cfg))
    model.init_weights()
    model.train()
    hook = DiagonalityLossHook(weight=1.0)
    hook.attach(model)
    data = model.data_preprocessor(copy.deepcopy(batch), training=True)
    data['inputs'] = change(data['inputs'], data['data_samples'], kind)
    losses = model(**data, mode='loss')
    diagonality = losses.pop('loss_diag')
    task, diagonality = gradient(model, model.parse_losses(losses)[0]), gradient(model, diagonality)
    norm = task.norm()
    return [norm.item(), *((task + weight * diagonality).norm().item() / norm.item() for weight in WEIGHTS)]


def main() -> None:
    """Print a table."""
    args = parse_args()
    with one_line_errors():
        cfg = load_config(args.config, args.cfg_options)
        load_toolbox(cfg.default_scope)
        init_default_scope(cfg.default_scope)
        require_data(cfg, ['train'])
        MMLogger.get_instance('loss_gradient', log_level='ERROR')  # not each parameter's initialisation
        cfg.train_dataloader.update(num_workers=0, persistent_workers=False)
        set_random_seed(0)  # augmentation, too, draws the same in each run
        batch = next(iter(Runner.build_dataloader(cfg.train_dataloader, seed=0)))
        print(f'first gradient, mean of {args.seeds} random starts: norm without the loss, then times that with weight')
        print(f'{"images":12}{"norm":>10}' + ''.join(f'{weight:>8g}' for weight in WEIGHTS))
        for kind in ('as they are', 'padded', 'flat', 'zero'):
            rows = torch.tensor([compare(cfg, batch, kind, seed) for seed in range(args.seeds)])
            norm, *factors = rows.mean(dim=0).tolist()
            print(f'{kind:12}{norm:10.3g}' + ''.join(f'{factor:8.2f}' for factor in factors), flush=True)


if __name__ == '__main__':
    main()
