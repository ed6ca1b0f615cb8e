#!/usr/bin/env python
"""Compute the class scores of a teacher for a folder of images once, to train students with them.

The file is what the transform AddTeacherScores reads. Each image is seen as the test pipeline of the config gives it,
and mirrored; the scores of both are averaged.
"""

import argparse
import os.path as osp
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from mmengine.registry import DefaultScope
from rich.progress import track
from torch.utils.data import DataLoader

from mmlavit.apis.inference import require_device
from mmlavit.datasets.guard import guard_dataset
from mmlavit.datasets.teacher_scores import TeacherScores
from mmlavit.datasets.unlabelled import UnlabelledImages
from mmlavit.deployment.pipeline import find_test_dataset
from mmlavit.engine.teacher import build_teacher
from mmlavit.errors import UserError, one_line_errors
from mmlavit.utils.arguments import add_trust_argument
from mmlavit.utils.config_files import load_config
from mmlavit.utils.config_types import model_config
from mmlavit.utils.local_files import expand_home, require_folder
from mmlavit.utils.toolbox import load_toolbox


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config', help='config of a classifier: a file, or mmpretrain::FILE')
    parser.add_argument('checkpoint', help='its weights')
    parser.add_argument(
        '--images', type=expand_home, required=True, help='folder of images; the folders in it are searched, too'
    )
    parser.add_argument('--out', type=expand_home, required=True, help='such as scores.npz')
    parser.add_argument(
        '--classes',
        type=expand_home,
        metavar='FILE',
        help="classes to keep, a synset such as n01440764 on each line; for a teacher of ImageNet's 1000 classes",
    )
    parser.add_argument('--batch-size', type=int, default=64, metavar='N', help='default: %(default)s')
    parser.add_argument('--workers', type=int, default=0, metavar='N', help='processes that load images (default: 0)')
    parser.add_argument('--amp', action='store_true', help='compute in bfloat16 where autocast allows it')
    parser.add_argument('--device', default='cpu', help='default: %(default)s')
    add_trust_argument(parser)
    return parser.parse_args()


def find_columns(path: str) -> list[int]:
    """Find where the classes in a file stand among those of ImageNet, which are in the order of their synsets."""
    try:
        from timm.data import ImageNetInfo
    except ImportError as error:
        raise UserError('--classes needs timm: pip install timm') from error

    synsets = ImageNetInfo('imagenet-1k').label_names()
    if not Path(path).is_file():
        raise UserError(f'--classes {path} does not exist')
    wanted = Path(path).read_text().split()
    unknown = sorted(set(wanted) - set(synsets))
    if unknown or not wanted:
        raise UserError(f'{path}: expected synsets of ImageNet, a line each, got {unknown[0] if unknown else "none"}')
    return [synsets.index(name) for name in wanted]


def _score(model: torch.nn.Module, images: list[torch.Tensor], amp: bool) -> torch.Tensor:
    """Add the scores (B, classes) of images of one size and of their mirror images."""
    inputs = model.data_preprocessor(dict(inputs=images))['inputs'].to(memory_format=torch.channels_last)
    with torch.autocast(inputs.device.type, torch.bfloat16, enabled=amp):
        return model(inputs).float() + model(inputs.flip(-1)).float()


@torch.inference_mode()
def predict(args: argparse.Namespace, columns: Sequence[int] | None) -> TeacherScores:
    """Run the teacher on all images."""
    cfg = load_config(args.config)
    if cfg.get('default_scope') != 'mmpretrain':
        raise UserError(f'{args.config} has default_scope={cfg.get("default_scope")!r}; expected a classifier')
    load_toolbox('mmpretrain')
    require_device(args.device)
    pipeline = find_test_dataset(cfg).pipeline
    model, _ = build_teacher(model_config(cfg), 'mmpretrain', args.checkpoint)
    model.to(args.device, memory_format=torch.channels_last)
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        dataset = UnlabelledImages(str(args.images), pipeline)
    guard_dataset(dataset, None, None)
    loader = DataLoader(dataset, args.batch_size, num_workers=args.workers, collate_fn=list)
    found = []
    for batch in track(loader, description='Scores'):
        images = [sample['inputs'] for sample in batch]
        # One by one where the pipeline leaves them at different sizes: padding would change what the teacher sees.
        groups = [images] if len({image.shape for image in images}) == 1 else [[image] for image in images]
        logits = torch.cat([_score(model, group, args.amp) for group in groups])
        if columns is not None and logits.shape[1] != 1000:
            raise UserError(f'--classes is for a teacher of 1000 classes, but this one has {logits.shape[1]}')
        found.append((logits if columns is None else logits[:, columns]).div(2).cpu().numpy())
    names = [osp.relpath(dataset.get_data_info(i)['img_path'], args.images) for i in range(len(dataset))]
    return TeacherScores(names, np.concatenate(found))


def main() -> None:
    """Predict and save."""
    args = parse_args()
    with one_line_errors():
        if args.out.suffix != '.npz':
            raise UserError(f'{args.out}: expected a name that ends in .npz')
        require_folder(args.out.parent, '--out')
        if args.batch_size < 1 or args.workers < 0:
            raise UserError('--batch-size must be positive and --workers not negative')
        columns = None if args.classes is None else find_columns(args.classes)
        scores = predict(args, columns)
        scores.save(args.out)
    print(f'{args.out}: {scores.logits.shape[0]} images, {scores.logits.shape[1]} classes')


if __name__ == '__main__':
    main()
