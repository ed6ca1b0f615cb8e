#!/usr/bin/env python
"""Keep the tables and metafiles of the zoo (configs/zoo) in step with the configs: everything in them is counted."""

import argparse
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

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
    Title='You Only Need Less Attention at Each Stage in Vision Transformers',
    URL='https://arxiv.org/abs/2406.00427',
)
BEGIN, END = '<!-- written by tools/dev/zoo.py -->\n', '<!-- end -->\n'

Shape = tuple[int, int]


@dataclass(frozen=True)
class Family:
    """Configs that share a page and a metafile.

    Args:
        title: Its name.
        pattern: Its configs, as a pattern below ``configs/``.
        shapes: Heights and widths of the images that multiply-adds are counted for.
        data: What it is trained on.
        architecture: Parts of the models.
        others: Image sizes of single configs that differ from that.
    """

    title: str
    pattern: str
    shapes: tuple[Shape, ...]
    data: str
    architecture: tuple[str, ...]
    others: tuple[tuple[str, Shape], ...] = ()

    def configs(self) -> list[Path]:
        """Its configs: T, S, B; then those at 3x; then the variants."""
        return sorted(CONFIGS.glob(self.pattern), key=_order)

    def shapes_of(self, config: Path) -> tuple[Shape, ...]:
        """Heights and widths of the images that a config's multiply-adds are counted for."""
        other = dict(self.others).get(config.stem)
        return self.shapes if other is None else (other,)


FAMILIES = {
    'classification': Family(
        'Classification',
        'lavit_*_in1k.py',
        ((224, 224),),
        'ImageNet-1k',
        ('LaViT',),
        others=(('lavit_s_384_in1k', (384, 384)),),
    ),
    'retinanet': Family('RetinaNet', 'retinanet_*.py', ((800, 1344),), 'COCO 2017', ('LaViT', 'FPN', 'RetinaNet')),
    'mask_rcnn': Family('Mask R-CNN', 'mask_rcnn_*.py', ((800, 1344),), 'COCO 2017', ('LaViT', 'FPN', 'Mask R-CNN')),
    'cascade_mask_rcnn': Family(
        'Cascade Mask R-CNN',
        'cascade_mask_rcnn_*.py',
        ((800, 1344),),
        'COCO 2017',
        ('LaViT', 'FPN', 'Cascade Mask R-CNN'),
    ),
    'upernet': Family('UperNet', 'upernet_*.py', ((512, 512), (512, 2048)), 'ADE20K', ('LaViT', 'UperNet')),
    'semantic_fpn': Family('Semantic FPN', 'fpn_*.py', ((512, 512), (512, 2048)), 'ADE20K', ('LaViT', 'FPN')),
    'handwritten': Family(
        'Handwritten',
        'handwritten/*.py',
        ((160, 160),),
        'Handwritten scenes',
        ('LaViT',),
        others=(('classify_lavit_nano', (64, 64)),),
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
    arch, suffix = re.fullmatch(r'.*lavit_([a-z]+?)((?:_\w+)?)', config.stem.removesuffix('_in1k')).groups()
    return suffix not in ('', '_3x'), suffix, 'tsb'.find(arch), config.stem


@dataclass(frozen=True)
class Entry:
    """A config as tables and metafiles show it.

    Args:
        config: Its file.
        headline: What it is, as its first line says.
        unit: 'Epochs' or 'Iterations'.
        length: How many of them.
        processes: Processes that its learning rate is for.
        images: Images per process.
        complexities: Parameters and multiply-adds by height and width of the image.
    """

    config: Path
    headline: str
    unit: str
    length: int
    processes: int
    images: int
    complexities: dict[Shape, Complexity]


def read_entries(family: Family) -> Iterator[Entry]:
    """Read and count the configs of a family."""
    known: dict[tuple[str, Shape], Complexity] = {}  # schedules and ablations of training share a model
    for config in family.configs():
        cfg = Config.fromfile(config)
        complexities = {}
        for shape in family.shapes_of(config):
            key = str(cfg.model), shape
            if key not in known:
                with torch.device('meta'):  # no time for weights
                    known[key], _ = model_complexity(cfg, shape)
            complexities[shape] = known[key]
        images = cfg.train_dataloader.batch_size
        yield Entry(
            config=config,
            headline=config.read_text().splitlines()[0].removeprefix('# ').removesuffix('.'),
            unit='Epochs' if cfg.train_cfg.by_epoch else 'Iterations',
            length=cfg.train_cfg.max_epochs if cfg.train_cfg.by_epoch else cfg.train_cfg.max_iters,
            processes=cfg.auto_scale_lr.base_batch_size // images,
            images=images,
            complexities=complexities,
        )


def table(family: Family, entries: Sequence[Entry]) -> str:
    """The table of a family's page, in Markdown."""
    sizes = [f'multiply-adds, {_text(shape)}' for shape in family.shapes]
    reported = any(entry.config.stem in PAPER_REPORTS for entry in entries)
    rows = [
        ['config', 'model', 'schedule', 'batch', 'parameters', *sizes] + ['the paper reports'] * reported,
        ['---'] * 4 + ['---:'] * (1 + len(sizes)) + ['---'] * reported,
    ]
    for entry in entries:
        macs = [
            f'{complexity.macs / 1e9:#.3g}'.rstrip('.') + f' G{"" if shape in family.shapes else f" at {_text(shape)}"}'
            for shape, complexity in entry.complexities.items()
        ]
        [params] = {complexity.params for complexity in entry.complexities.values()}
        row = [
            f'[`{entry.config.stem}`](../{entry.config.relative_to(CONFIGS)})',
            entry.headline,
            f'{entry.length:,} {entry.unit.lower()}',
            f'{entry.processes} x {entry.images}',
            f'{params / 1e6:.2f} M',
            *macs,
        ]
        rows.append(row + [PAPER_REPORTS.get(entry.config.stem, '')] * reported)
    return ''.join('| ' + ' | '.join(row) + ' |\n' for row in rows)


def page(name: str, entries: Sequence[Entry]) -> str:
    """The page of a family as it should be: its prose as it is, its table anew.

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
    """The metafile of a family as it should be; results that it has stay."""
    family, path = FAMILIES[name], ZOO / f'{name}.yml'
    known = yaml.safe_load(path.read_text())['Models'] if path.exists() else []
    results = {model['Name']: model['Results'] for model in known if 'Results' in model}
    collection = dict(
        Name=f'LaViT {family.title}',
        Metadata={'Training Data': family.data, 'Architecture': list(family.architecture)},
        Paper=PAPER,
        README=f'configs/zoo/{name}.md',
    )
    models = []
    for entry in entries:
        shape, complexity = next(iter(entry.complexities.items()))
        model = {
            'Name': entry.config.stem,
            'In Collection': collection['Name'],
            'Config': f'configs/{entry.config.relative_to(CONFIGS)}',
            'Metadata': {
                entry.unit: entry.length,
                'Batch Size': entry.processes * entry.images,
                'Parameters': complexity.params,
                'FLOPs': complexity.macs,  # OpenMMLab's name for multiply-adds
                'Input Size': _text(shape),
            },
        }
        if entry.config.stem in results:
            model['Results'] = results[entry.config.stem]
        models.append(model)
    comment = '# Written by tools/dev/zoo.py, except for results: only what we measured. FLOPs are multiply-adds.\n'
    return comment + yaml.dump(dict(Collections=[collection], Models=models), sort_keys=False, width=120)


def _text(shape: Shape) -> str:
    return f'{shape[0]}x{shape[1]}'


def index() -> str:
    """The model index, which ``mim`` reads first."""
    return yaml.dump(dict(Import=[f'configs/zoo/{name}.yml' for name in FAMILIES]), sort_keys=False)


def expected_files(names: Iterable[str]) -> Iterator[tuple[Path, str]]:
    """Yield every generated file of some families, and the index, with the text it should have."""
    for name in names:
        entries = list(read_entries(FAMILIES[name]))
        yield ZOO / f'{name}.md', page(name, entries)
        yield ZOO / f'{name}.yml', metafile(name, entries)
    yield ROOT / 'model-index.yml', index()


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description='Count every config anew and compare with the tables and metafiles in configs/zoo and with '
        'model-index.yml. Ends with code 1 if one of them is out of date.',
    )
    parser.add_argument(
        'family', nargs='*', metavar='FAMILY', default=[], help=f'some of {", ".join(FAMILIES)}; default: all'
    )
    parser.add_argument('--write', action='store_true', help='mend what is out of date')
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
        print('mend them with: python tools/dev/zoo.py --write')
        return 1
    return 0


if __name__ == '__main__':
    MMLogger.get_instance('zoo', log_level='WARNING')  # the toolboxes tell much about models that nobody trains
    sys.exit(main())
