#!/usr/bin/env python
"""Keep the tables and metafiles of the zoo (configs/zoo) in step with the configs: everything in them is counted."""

import argparse
import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
import yaml
from mmengine.config import Config
from mmengine.logging import MMLogger

from mmlavit.analysis.complexity import model_complexity
from mmlavit.analysis.flops import Complexity
from mmlavit.errors import UserError, one_line_errors

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = ROOT / 'configs'
ZOO = CONFIGS / 'zoo'
PAPER = dict(
    Title='You Only Need Less Attention at Each Stage in Vision Transformers', URL='https://arxiv.org/abs/2406.00427'
)
BEGIN, END = '<!-- written by tools/dev/zoo.py -->\n', '<!-- end -->\n'

Shape = tuple[int, int]


class Family(NamedTuple):
    """Configs that share a page and a metafile.

    Args:
        title (str): Its name.
        pattern (str): Its configs, as a pattern below ``configs/``.
        data (str): What it is trained on.
        parts (tuple[str, ...]): Parts of the models beside LaViT.
        shapes (tuple[Shape, ...]): Heights and widths of the images that multiply-adds are counted for.
        others (Mapping[str, Shape]): That of single configs that differ.
    """

    title: str
    pattern: str
    data: str
    parts: tuple[str, ...]
    shapes: tuple[Shape, ...]
    others: Mapping[str, Shape] = {}


COCO, ADE20K = ((800, 1344),), ((512, 512), (512, 2048))
FAMILIES = {
    'classification': Family(
        'Classification', 'lavit_*_in1k.py', 'ImageNet-1k', (), ((224, 224),), {'lavit_s_384_in1k': (384, 384)}
    ),
    'retinanet': Family('RetinaNet', 'retinanet_*.py', 'COCO 2017', ('FPN', 'RetinaNet'), COCO),
    'mask_rcnn': Family('Mask R-CNN', 'mask_rcnn_*.py', 'COCO 2017', ('FPN', 'Mask R-CNN'), COCO),
    'cascade_mask_rcnn': Family(
        'Cascade Mask R-CNN', 'cascade_mask_rcnn_*.py', 'COCO 2017', ('FPN', 'Cascade Mask R-CNN'), COCO
    ),
    'upernet': Family('UperNet', 'upernet_*.py', 'ADE20K', ('UperNet',), ADE20K),
    'semantic_fpn': Family('Semantic FPN', 'fpn_*.py', 'ADE20K', ('FPN',), ADE20K),
    'handwritten': Family(
        'Handwritten', 'handwritten/*.py', 'Handwritten scenes', (), ((160, 160),), {'classify_lavit_nano': (64, 64)}
    ),
}

# What the paper's tables say of the model that a config rebuilds; nothing here is a result of this project.
PAPER_REPORTS = {
    'lavit_t_in1k': '10.9 M, 1.6 G, top-1 79.2 %',
    'lavit_s_in1k': '22.4 M, 3.3 G, top-1 82.6 %',
    'lavit_b_in1k': '39.6 M, 6.1 G, top-1 83.1 %',
    'retinanet_lavit_t': '202 G, AP 46.2',
    'retinanet_lavit_s': '290 G, AP 46.7',
    'retinanet_lavit_t_3x': 'AP 48.4',
    'retinanet_lavit_s_3x': 'AP 48.9',
    'upernet_lavit_s': '920 G, mIoU 47.2; 49.5 with many scales',
    'fpn_lavit_s': '122 G, mIoU 44.1',
}


def _order(config: Path) -> tuple:
    """Key that sorts the configs of a family."""
    stem = config.stem.removesuffix('_in1k')
    arch, suffix = re.fullmatch(r'.*lavit_(pvtv2_b2|[a-z]+?)((?:_\w+)?)', stem).groups()
    own = 'tsb'.find(arch)
    return own < 0, suffix not in ('', '_3x'), suffix, own, config.stem


class Entry(NamedTuple):
    """A config as tables and metafiles show it.

    Args:
        config (Path): Its file.
        unit (str): 'Epochs' or 'Iterations'.
        length (int): How many of them.
        processes (int): Processes that its learning rate is for.
        images (int): Images per process.
        complexities (dict[Shape, Complexity]): Parameters and multiply-adds by height and width of the image.
    """

    config: Path
    unit: str
    length: int
    processes: int
    images: int
    complexities: dict[Shape, Complexity]


def read_entries(family: Family) -> Iterator[Entry]:
    """Read and count the configs of a family: T, S, B; then those at 3x; then the variants."""
    known: dict[tuple[str, Shape], Complexity] = {}  # schedules and ablations of training share a model
    for config in sorted(CONFIGS.glob(family.pattern), key=_order):
        cfg = Config.fromfile(config)
        other = family.others.get(config.stem)
        shapes = (other,) if other else family.shapes
        for shape in shapes:
            if (str(cfg.model), shape) not in known:
                with torch.device('meta'):  # no time for weights
                    known[str(cfg.model), shape], _ = model_complexity(cfg, shape)
        by_epoch, images = cfg.train_cfg.by_epoch, cfg.train_dataloader.batch_size
        yield Entry(
            config=config,
            unit='Epochs' if by_epoch else 'Iterations',
            length=cfg.train_cfg.max_epochs if by_epoch else cfg.train_cfg.max_iters,
            processes=cfg.auto_scale_lr.base_batch_size // images,
            images=images,
            complexities={shape: known[str(cfg.model), shape] for shape in shapes},
        )


def _text(shape: Shape) -> str:
    return f'{shape[0]}x{shape[1]}'


def table(family: Family, entries: Sequence[Entry]) -> str:
    """Write the table of a family's page, in Markdown."""
    reported = any(entry.config.stem in PAPER_REPORTS for entry in entries)
    rows = [
        ['config', 'model', 'schedule', 'batch', 'parameters']
        + [f'multiply-adds, {_text(shape)}' for shape in family.shapes]
        + ['the paper reports'] * reported,
        ['---'] * 4 + ['---:'] * (1 + len(family.shapes)) + ['---'] * reported,
    ]
    for config, unit, length, processes, images, complexities in entries:
        [params] = {complexity.params for complexity in complexities.values()}
        macs = [
            f'{complexity.macs / 1e9:#.3g}'.rstrip('.') + f' G{"" if shape in family.shapes else f" at {_text(shape)}"}'
            for shape, complexity in complexities.items()
        ]
        row = [
            f'[`{config.stem}`](../{config.relative_to(CONFIGS)})',
            config.read_text().splitlines()[0].removeprefix('# ').removesuffix('.'),
            f'{length:,} {unit.lower()}',
            f'{processes} x {images}',
            f'{params / 1e6:.2f} M',
            *macs,
        ]
        rows.append(row + [PAPER_REPORTS.get(config.stem, '')] * reported)
    return ''.join('| ' + ' | '.join(row) + ' |\n' for row in rows)


def page(name: str, entries: Sequence[Entry]) -> str:
    """Write the page of a family as it should be: its prose as it is, its table anew.

    Raises:
        UserError: If the page or the place of its table is missing.
    """
    path = ZOO / f'{name}.md'
    prose = path.read_text() if path.exists() else ''
    before, begin, rest = prose.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise UserError(f'{path} has no place for a table; expected the lines {BEGIN.strip()} and {END.strip()}')
    return f'{before}{BEGIN}\n{table(FAMILIES[name], entries)}\n{END}{after}'


def metafile(name: str, entries: Sequence[Entry]) -> str:
    """Write the metafile of a family as it should be; results that it has stay."""
    family, path = FAMILIES[name], ZOO / f'{name}.yml'
    known = yaml.safe_load(path.read_text())['Models'] if path.exists() else []
    results = {model['Name']: dict(Results=model['Results']) for model in known if 'Results' in model}
    collection = dict(
        Name=f'LaViT {family.title}',
        Metadata={'Training Data': family.data, 'Architecture': ['LaViT', *family.parts]},
        Paper=PAPER,
        README=f'configs/zoo/{name}.md',
    )
    models = []
    for config, unit, length, processes, images, complexities in entries:
        shape, complexity = next(iter(complexities.items()))
        metadata = {
            unit: length,
            'Batch Size': processes * images,
            'Parameters': complexity.params,
            'FLOPs': complexity.macs,  # OpenMMLab's name for multiply-adds
            'Input Size': _text(shape),
        }
        place = f'configs/{config.relative_to(CONFIGS)}'
        model = {'Name': config.stem, 'In Collection': collection['Name'], 'Config': place, 'Metadata': metadata}
        models.append({**model, **results.get(config.stem, {})})
    comment = '# Written by tools/dev/zoo.py, except for results: only what we measured. FLOPs are multiply-adds.\n'
    return comment + yaml.dump(dict(Collections=[collection], Models=models), sort_keys=False, width=120)


def expected_files(names: Iterable[str]) -> Iterator[tuple[Path, str]]:
    """Yield every generated file of some families, and the index, with the text it should have."""
    for name in names:
        entries = list(read_entries(FAMILIES[name]))
        yield ZOO / f'{name}.md', page(name, entries)
        yield ZOO / f'{name}.yml', metafile(name, entries)
    # What `mim` reads first.
    index = dict(Import=[*(f'configs/zoo/{name}.yml' for name in FAMILIES), 'weights/metafile.yml'])
    yield ROOT / 'model-index.yml', yaml.dump(index, sort_keys=False)


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description='Count every config anew and compare with the tables and metafiles in configs/zoo and with '
        'model-index.yml. Ends with code 1 if one of them is out of date.'
    )
    parser.add_argument('family', nargs='*', metavar='FAMILY', help=f'some of {", ".join(FAMILIES)}; default: all')
    parser.add_argument('--write', action='store_true', help='write what is out of date anew')
    args = parser.parse_args()
    unknown = [name for name in args.family if name not in FAMILIES]
    if unknown:
        parser.error(f'unknown family {unknown[0]}, expected some of {", ".join(FAMILIES)}')
    return args


def main() -> int:
    """Compare, and write if asked to."""
    args = parse_args()
    stale = 0
    with one_line_errors():
        for path, text in expected_files(args.family or FAMILIES):
            if path.exists() and path.read_text() == text:
                continue
            stale += 1
            print(f'{path.relative_to(ROOT)}: {"written" if args.write else "out of date"}')
            if args.write:
                path.write_text(text)
    if stale and not args.write:
        print('write them anew with: python tools/dev/zoo.py --write')
        return 1
    return 0


if __name__ == '__main__':
    MMLogger.get_instance('zoo', log_level='WARNING')  # the toolboxes tell much about models that nobody trains
    sys.exit(main())
