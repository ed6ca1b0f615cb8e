#!/usr/bin/env python
"""Train a classifier with a long chain of less-attention layers, and print how large the scores of each layer are.

Each less-attention layer multiplies the scores of the one before by a learned matrix on either side, so in a chain they
could grow without bound. The images are gratings in ten directions, under noise.
"""

import argparse
import math

import torch
from mmengine.logging import MMLogger
from torch import Tensor, nn
from torch.nn import functional as F

from mmlavit import LaViT
from mmlavit.models.observation import Observed, observe_attention

CLASSES = 10
# The widths of LaViT-nano. The third stage has one vanilla layer and a chain as long as that of LaViT-B.
CHAIN = 16
ARCH = dict(
    embed_dims=(32, 64, 128, 192),
    num_heads=(1, 2, 4, 6),
    depths=(1, 1, 1 + CHAIN, 1),
    num_va_layers=(1, 1, 1, 1),
    mlp_ratios=(4, 4, 4, 4),
    key_grid=4,
    query_grids=(4, 4, 8, 4),
)


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--iters', type=int, default=600, help='iterations; default: %(default)s')
    parser.add_argument('--batch', type=int, default=16, help='images in each; default: %(default)s')
    parser.add_argument('--lr', type=float, default=1e-3, help='learning rate; default: %(default)s')
    parser.add_argument(
        '--transform-lr-mult', type=float, default=1.0, help='factor on it for the transforms; default: %(default)s'
    )
    parser.add_argument('--every', type=int, default=100, help='print after so many iterations; default: %(default)s')
    return parser.parse_args()


def make_images(number: int, side: int = 128) -> tuple[Tensor, Tensor]:
    """Draw gratings (number, 3, side, side) and their directions (number,)."""
    labels = torch.randint(CLASSES, (number,))
    angle = (labels * math.pi / CLASSES).view(-1, 1, 1)
    y, x = torch.meshgrid(torch.arange(side), torch.arange(side), indexing='ij')
    frequency, phase = (low + width * torch.rand(number, 1, 1) for low, width in ((0.2, 0.4), (0.0, 6.3)))
    waves = torch.sin(frequency * (x * angle.cos() + y * angle.sin()) + phase)
    return waves[:, None] + torch.randn(number, 3, side, side), labels


class Classifier(nn.Module):
    """A LaViT, the mean over positions, and a linear."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = LaViT(ARCH, out_indices=(3,), drop_path_rate=0.0)
        self.backbone.init_weights()
        self.head = nn.Linear(ARCH['embed_dims'][-1], CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        """Images (B, 3, H, W) to logits (B, CLASSES)."""
        return self.head(self.backbone(images)[-1].mean(dim=(2, 3)))


def measure(model: Classifier, images: Tensor) -> list[float]:
    """Mean absolute score of the vanilla layer of the third stage and of each layer of the chain."""
    found = []

    def see(layer: Observed) -> None:
        if layer.name.startswith('stages.2.'):
            found.append(layer.scores.abs().mean().item())

    with torch.no_grad(), observe_attention(model.backbone, see):
        model(images)
    return found


def main() -> None:
    """Train and print."""
    args = parse_args()
    MMLogger.get_instance('score_growth', log_level='WARNING')  # not each parameter's initialisation
    torch.manual_seed(0)
    model, (images, labels) = Classifier(), make_images(64)
    deltas = [value for name, value in model.named_parameters() if '.delta_' in name]
    others = [value for name, value in model.named_parameters() if '.delta_' not in name]
    transforms = dict(params=deltas, lr=args.lr * args.transform_lr_mult)
    optimizer = torch.optim.AdamW([dict(params=others), transforms], lr=args.lr, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda i: min(1, (i + 1) / 50))
    print(f'mean |score|: VA layer, then less-attention layers 1, 4, 8, 12 and {CHAIN} of the chain')
    for i in range(args.iters + 1):
        if i % args.every == 0:
            scores = measure(model.eval(), images)
            with torch.no_grad():
                accuracy = (model(images).argmax(1) == labels).float().mean().item()
            shown = '  '.join(f'{scores[layer]:6.3f}' for layer in (0, 1, 4, 8, 12, CHAIN))
            print(f'{i:5d} iterations, accuracy {accuracy:4.0%}:  {shown}  largest {max(scores):.3f}', flush=True)
        batch, targets = make_images(args.batch)
        loss = F.cross_entropy(model.train()(batch), targets)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        optimizer.step()
        schedule.step()


if __name__ == '__main__':
    main()
