"""Handwritten scenes: a small dataset for detection, segmentation and classification.

Real scanned digits are drawn over real photographs, both shipped inside scikit-learn, so nothing
is downloaded. ``docs/handwritten.md`` describes the files. How an image is drawn is in
``handwritten_drawing.py``; this file plans the images and writes them with their annotations
(``handwritten_annotations.py``).
"""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import cv2
import numpy as np
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from mmlavit.errors import ConfigError
from mmlavit.utils.local_files import write_file

from .handwritten_annotations import CLASSES, coco_annotations, coco_categories, coco_image, semantic_map
from .handwritten_drawing import BACKGROUND_COLUMNS, NUM_CLASSES, SPLITS, Sources, draw_scene, load_sources

NAME = 'handwritten scenes'
FORMAT = 1  # raise it when the same options give other images
CROP_FILL = (0.5, 0.78)  # side of a scan in a classification crop, as a share of the crop's

META = 'meta.json'
README = 'README.txt'
UNFINISHED = '.handwritten-unfinished'
FOLDERS = ('images', 'annotations', 'masks', 'classification')

# First number of a generator's key: two purposes never share random numbers.
PLAN, SCENE, CROP = range(3)

CREDITS = """\
Handwritten scenes
==================
Made by mmlavit (tools/dataset_converters/handwritten.py) from real scans and photographs.
The options and the seed are in meta.json, the layout is described in docs/handwritten.md.

Digits: Optical Recognition of Handwritten Digits, E. Alpaydin and C. Kaynak, 1998,
  UCI Machine Learning Repository, https://doi.org/10.24432/C50P49, CC BY 4.0
  (https://creativecommons.org/licenses/by/4.0/). The copy of its test set in scikit-learn
  (load_digits) was enlarged, rotated, sheared and coloured.

Photographs: the two of scikit-learn's load_sample_images, CC BY 2.0
  (https://creativecommons.org/licenses/by/2.0/), cropped, scaled, mirrored, faded, drawn over.
  china.jpg: danielbuechele, https://www.flickr.com/photos/danielbuechele/6061409035/
  flower.jpg: vultilion, https://www.flickr.com/photos/vultilion/6056698931/
    (scikit-learn's note names danielbuechele and links to this page of vultilion's)

Keep these credits when you pass the images on.
"""


@dataclass(frozen=True)
class HandwrittenConfig:
    """What to generate. A count of 0 leaves that part out.

    Args:
        train_scenes (int): Number of training images for detection and segmentation.
        val_scenes (int): Number of validation images.
        image_size (int): Side of these square images in pixels.
        digits (tuple[int, int]): Fewest and most digits in an image.
        digit_size (tuple[int, int]): Smallest and largest side of a digit's scan in an image, in pixels.
        train_crops (int): Number of training images for classification, one digit each.
        val_crops (int): Number of validation images for classification.
        crop_size (int): Side of these square images in pixels.
        seed (int): Picks scans, places, colours and backgrounds. The split between train and val does
            not depend on it.

    Raises:
        ConfigError: an option is out of range.
    """

    train_scenes: int = 800
    val_scenes: int = 120
    image_size: int = 160
    digits: tuple[int, int] = (3, 9)
    digit_size: tuple[int, int] = (28, 60)
    train_crops: int = 6000
    val_crops: int = 1000
    crop_size: int = 64
    seed: int = 0

    def __post_init__(self) -> None:
        """Check every option."""
        minima = dict(train_scenes=0, val_scenes=0, train_crops=0, val_crops=0, seed=0)
        for name, least in dict(minima, image_size=32, crop_size=32).items():
            if getattr(self, name) < least:
                raise ConfigError(f'{name} must be at least {least}, got {getattr(self, name)}')
        for name, least in dict(digits=1, digit_size=12).items():
            low, high = getattr(self, name)
            if not least <= low <= high:
                raise ConfigError(f'{name} must be two numbers, {least} <= smallest <= largest, got {low} {high}')
        if self.digit_size[1] > self.image_size:
            raise ConfigError(
                f'digits of {self.digit_size[1]} px do not fit images of {self.image_size} px: '
                f'lower digit_size or raise image_size'
            )

    def scenes(self, split: str) -> int:
        """Give the number of images for detection and segmentation in 'train' or 'val'."""
        return {'train': self.train_scenes, 'val': self.val_scenes}[split]

    def crops(self, split: str) -> int:
        """Give the number of images for classification in 'train' or 'val'."""
        return {'train': self.train_crops, 'val': self.val_crops}[split]


@dataclass(frozen=True)
class Summary:
    """What ``generate`` left in a folder.

    Args:
        root (Path): The folder.
        created (bool): False if it was up to date and nothing was written.
        counts (dict[str, dict]): Split to the numbers of 'scenes', 'instances', 'crops' and 'scans' (different
            digit images that the split may use), and 'instances_per_class'.
    """

    root: Path
    created: bool
    counts: dict[str, dict]

    def __str__(self) -> str:
        """One line for people."""
        parts = [
            f'{split} {c["scenes"]} scenes with {c["instances"]} digits and {c["crops"]} crops from {c["scans"]} scans'
            for split, c in self.counts.items()
        ]
        state = 'written' if self.created else 'up to date, nothing to do'
        return f'{self.root}: {"; ".join(parts)} ({state})'


def generate(
    root: str | Path, config: HandwrittenConfig | None = None, overwrite: bool = False, progress: bool = True
) -> Summary:
    """Write the dataset, or find it complete and leave it alone.

    Each image depends on the options, its split and its number only, not on how many others are
    made. ``meta.json`` is written last; a folder that was left unfinished is made again.

    Args:
        root (str or Path): The folder; created if missing. Files that are not of this dataset are kept.
        config (HandwrittenConfig, optional): What to generate; the defaults if None.
        overwrite (bool): Replace a dataset of this kind even if complete or made with other options.
        progress (bool): Show a progress bar.

    Raises:
        ConfigError: ``root`` holds something else, or this dataset made with other options and
            ``overwrite`` is False, or scikit-learn is missing.
        OSError: a file cannot be written.
    """
    root, config = Path(root), config or HandwrittenConfig()
    options = json.loads(json.dumps(asdict(config)))  # as read back: tuples become lists
    meta = _read_meta(root)
    if meta and not overwrite:
        _check_same_options(root, meta, options)
        if _is_complete(root, config):
            return Summary(root, False, meta['counts'])
    sources = load_sources()
    root.mkdir(parents=True, exist_ok=True)
    (root / UNFINISHED).write_text('Generation has not finished: run it again.\n')
    (root / META).unlink(missing_ok=True)
    for name in FOLDERS:
        if (root / name).exists():
            shutil.rmtree(root / name)
    counts = {}
    columns = (TextColumn('{task.description:<12}'), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, TimeRemainingColumn(), disable=not progress) as bar:
        for split in SPLITS:
            steps = bar.track(range(config.scenes(split)), description=f'{split} scenes')
            per_class = _write_scenes(root, sources, config, split, steps)
            steps = bar.track(range(config.crops(split)), description=f'{split} crops')
            _write_crops(root, sources, config, split, steps)
            counts[split] = dict(
                scenes=config.scenes(split),
                instances=sum(per_class),
                instances_per_class=per_class,
                crops=config.crops(split),
                scans=sum(len(pool) for pool in sources.pools[split]),
            )
    (root / README).write_text(CREDITS)
    meta = dict(dataset=NAME, format=FORMAT, options=options, counts=counts)
    meta = json.dumps(dict(meta, background_columns=BACKGROUND_COLUMNS), indent=2)
    write_file(root / META, f'{meta}\n'.encode())
    (root / UNFINISHED).unlink()
    return Summary(root, True, counts)


def _read_meta(root: Path) -> dict | None:
    """Read what is known about a finished dataset in ``root``; None if there is none to protect."""
    if root.exists() and not root.is_dir():
        raise ConfigError(f'{root} is a file: give a folder')
    ours = (*FOLDERS, README, META)
    if (root / UNFINISHED).exists() or not any((root / name).exists() for name in ours):
        return None
    try:
        meta = json.loads((root / META).read_text())
    except (FileNotFoundError, ValueError):  # ValueError: not JSON
        meta = None
    if not isinstance(meta, dict) or meta.get('dataset') != NAME:
        raise ConfigError(
            f'{root} holds other files than handwritten scenes (it has no {META} of theirs): give another folder'
        )
    return meta


def _check_same_options(root: Path, meta: dict, options: dict) -> None:
    """Refuse a dataset that was made with other options or by another version."""
    there = dict(meta['options'], format=meta['format'])
    wanted = dict(options, format=FORMAT)
    different = [
        f'{name} {there.get(name)} instead of {value}' for name, value in wanted.items() if there.get(name) != value
    ]
    if different:
        raise ConfigError(
            f'{root} was made with other options ({", ".join(different)}): '
            f'use --overwrite to replace it, or give another folder'
        )


def _is_complete(root: Path, config: HandwrittenConfig) -> bool:
    """Tell whether all files are there, by number; their content is not read."""
    for split in SPLITS:
        expected = {
            f'images/{split}/*.png': config.scenes(split),
            f'masks/{split}/*.png': config.scenes(split),
            f'annotations/{split}.json': min(config.scenes(split), 1),
            f'classification/{split}/*/*.png': config.crops(split),
        }
        if any(sum(1 for _ in root.glob(glob)) != number for glob, number in expected.items()):
            return False
    return True


def _rng(seed: int, purpose: int, split: str, index: int) -> np.random.Generator:
    """Make the random numbers of one image, the same however many others are made."""
    key = (purpose, SPLITS.index(split), index)
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=key))


def _planned_digits(config: HandwrittenConfig, split: str, index: int) -> np.ndarray:
    """Plan which digits go into scene ``index``, as an int array.

    Scenes are planned in blocks in which every number of digits occurs ten times and every digit
    equally often, so classes are balanced to within one block.
    """
    numbers = np.arange(config.digits[0], config.digits[1] + 1).repeat(NUM_CLASSES)
    block, place = divmod(index, len(numbers))
    rng = _rng(config.seed, PLAN, split, block)
    ends = rng.permutation(numbers).cumsum()
    digits = rng.permutation(np.arange(NUM_CLASSES).repeat(numbers.sum() // NUM_CLASSES))
    return np.split(digits, ends[:-1])[place]


def _write_scenes(
    root: Path, sources: Sources, config: HandwrittenConfig, split: str, steps: Iterator[int]
) -> list[int]:
    """Write images, semantic maps and the COCO file of a split.

    Returns:
        list[int]: How many instances there are of each of the ten digits.
    """
    if config.scenes(split) == 0:
        return [0] * NUM_CLASSES
    for folder in (root / 'images' / split, root / 'masks' / split, root / 'annotations'):
        folder.mkdir(parents=True, exist_ok=True)
    images, annotations = [], []
    for index in steps:
        digits = _planned_digits(config, split, index)
        rng = _rng(config.seed, SCENE, split, index)
        scene = draw_scene(sources, split, digits, config.image_size, config.digit_size, rng)
        name = f'{index:06d}.png'
        _write_png(root / 'images' / split / name, scene.image[..., ::-1])
        _write_png(root / 'masks' / split / name, semantic_map(scene))
        images.append(coco_image(scene, index, name))
        # COCOeval takes an id of 0 for "no match".
        annotations += coco_annotations(scene, index, first_id=len(annotations) + 1)
    info = dict(description=f'{NAME}, {split}; sources and licences are in README.txt')
    coco = dict(info=info, images=images, annotations=annotations, categories=coco_categories())
    write_file(root / 'annotations' / f'{split}.json', f'{json.dumps(coco)}\n'.encode())
    labels = [annotation['category_id'] - 1 for annotation in annotations]
    return np.bincount(labels, minlength=NUM_CLASSES).tolist()


def _write_crops(root: Path, sources: Sources, config: HandwrittenConfig, split: str, steps: Iterator[int]) -> None:
    """Write the images of one digit each, and from which scan and photograph each was made."""
    if config.crops(split) == 0:
        return
    folder = root / 'classification' / split
    for name in CLASSES:
        (folder / name).mkdir(parents=True, exist_ok=True)
    size = config.crop_size
    digit_size = tuple(share * size for share in CROP_FILL)
    with open(folder.with_suffix('.csv'), 'w', newline='') as file:
        table = csv.writer(file, lineterminator='\n')
        table.writerow(['file', 'scan', 'photo', 'x', 'y', 'width', 'height'])
        for index in steps:
            number, digit = divmod(index, NUM_CLASSES)
            rng = _rng(config.seed, CROP, split, index)
            scene = draw_scene(sources, split, np.array([digit]), size, digit_size, rng)
            name = f'{digit}/{digit}_{number:06d}.png'  # unique without its folder, as images of predictions are named
            _write_png(folder / name, scene.image[..., ::-1])
            table.writerow([name, scene.instances[0].scan, scene.photo, *scene.crop])


def _write_png(path: Path, image: np.ndarray) -> None:
    """Write BGR or grey pixels; unlike ``cv2.imwrite`` it raises when the disk is full."""
    path.write_bytes(cv2.imencode('.png', image)[1].tobytes())
