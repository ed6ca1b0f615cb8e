"""Whether a public dataset is whole: its folders, numbers of files and annotations.

Files are counted and compared by name; a few images, drawn at random, are decoded. What is found is one
line each: what is wrong, what was expected, what to do.
"""

from __future__ import annotations

import json
import os
import random
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from mmlavit.errors import first_few

from ..handwritten import FOLDERS, META, README, UNFINISHED, HandwrittenConfig
from ..handwritten_annotations import CLASSES
from .coco import read_coco

PICTURES = ('.jpeg', '.jpg', '.png')

COCO_COUNTS = {'train2017': (118287, 860001), 'val2017': (5000, 36781)}  # images, objects
COCO_CLASSES = 80
ADE20K_COUNTS = {'training': 20210, 'validation': 2000}
ADE20K_LABELS = range(151)  # 0: none of the 150 classes
IMAGENET_COUNTS = {'train': 1281167, 'val': 50000}
IMAGENET_CLASSES = 1000


@dataclass(frozen=True)
class DataSet:
    """A dataset that the configs use.

    Args:
        title (str): Its name.
        root (str): Where the configs expect it.
        source (str): Where it is obtained officially, and which files.
        terms (str): Under what terms, in short; the terms themselves are at the source.
        check (Callable): Yields findings, given the folder and how many images of a folder to decode.
    """

    title: str
    root: str
    source: str
    terms: str
    check: Callable[[Path, int], Iterator[str]]


def check_coco(root: Path, decode: int) -> Iterator[str]:
    """Yield what is wrong with COCO 2017 in a folder.

    Args:
        root (Path): With ``annotations/``, ``train2017/`` and ``val2017/``.
        decode (int): Number of images to decode of each split.
    """
    for split, (pictures, objects) in COCO_COUNTS.items():
        names = _names(root / split)
        remedy = f'unpack {split}.zip again, into {root}'
        yield from _check_number(root / split, names, pictures, remedy)
        yield from _check_pictures(root / split, names, decode, remedy)
        file = root / f'annotations/instances_{split}.json'
        remedy = f'unpack annotations_trainval2017.zip again, into {root}'
        content, problem = read_coco(file)
        if problem:
            yield f'{file} {problem}: {remedy}'
            continue
        yield from _check_coco_content(file, content, pictures, objects, COCO_CLASSES, remedy)
        if names:
            listed = {image['file_name'] for image in content['images']}
            yield from _check_missing(root / split, listed - set(names), f'unpack {split}.zip again, into {root}')


def check_ade20k(root: Path, decode: int) -> Iterator[str]:
    """Yield what is wrong with ADE20K (ADEChallengeData2016) in a folder.

    Args:
        root (Path): With ``images/`` and ``annotations/``, ``training/`` and ``validation/`` in each.
        decode (int): Number of images and of label maps to decode of each split.
    """
    remedy = f'unpack ADEChallengeData2016.zip again, into {root.parent}'
    for split, number in ADE20K_COUNTS.items():
        pictures, maps = root / 'images' / split, root / 'annotations' / split
        names, labels = _names(pictures, ('.jpg',)), _names(maps, ('.png',))
        yield from _check_number(pictures, names, number, remedy)
        yield from _check_number(maps, labels, number, remedy)
        if names and labels:
            without = {Path(name).stem for name in names} - {Path(name).stem for name in labels}
            yield from _check_missing(maps, {f'{stem}.png' for stem in without}, remedy)
        yield from _check_pictures(pictures, names, decode, remedy)
        yield from _check_pictures(maps, labels, decode, remedy, ADE20K_LABELS)


def check_imagenet(root: Path, decode: int) -> Iterator[str]:
    """Yield what is wrong with ImageNet-1k in a folder.

    Args:
        root (Path): With ``train/`` and ``val/``, a folder for each class in each; or with a list of the images and
            their labels, ``meta/train.txt`` or ``meta/val.txt``, which mmpretrain reads instead where it exists.
        decode (int): Number of images to decode of each split.
    """
    classes = {}
    for split, number in IMAGENET_COUNTS.items():
        folder = root / split
        remedy = f'unpack ILSVRC2012_img_{split}.tar again'
        if not folder.is_dir():
            yield f'{folder} does not exist: unpack ILSVRC2012_img_{split}.tar there, one folder for each class'
            continue
        folders = sorted(entry.name for entry in os.scandir(folder) if entry.is_dir())
        files = {name: _names(folder / name) for name in folders}
        loose = _names(folder)
        names = [*loose, *(f'{name}/{file}' for name in folders for file in files[name])]
        yield from _check_pictures(folder, names, decode, remedy)
        if (root / f'meta/{split}.txt').exists():
            yield from _check_imagenet_list(root / f'meta/{split}.txt', folder, names, number, remedy)
            continue
        if loose:
            yield (
                f'{folder} has {len(loose):,} images outside of class folders: move each into the folder of its '
                f'class (for val, the script valprep.sh of github.com/soumith/imagenetloader.torch does that)'
            )
        else:
            yield from _check_number(folder, names, number, remedy)
        if len(folders) != IMAGENET_CLASSES:
            yield f'{folder} has {len(folders):,} class folders, expected {IMAGENET_CLASSES:,}: {remedy}'
        empty = [name for name in folders if not files[name]]
        if empty:
            yield f'{folder} has {len(empty):,} empty class folders ({first_few(empty)}): {remedy}'
        classes[split] = set(folders)
    if len(classes) == 2 and all(classes.values()) and classes['train'] != classes['val']:
        # Classes are numbered by their folders: one folder more shifts the labels of all after it.
        different = sorted(classes['train'] ^ classes['val'])
        yield f'{root}: train/ and val/ differ in class folders ({first_few(different)}): their labels would not agree'


def _check_imagenet_list(file: Path, folder: Path, names: Collection[str], number: int, remedy: str) -> Iterator[str]:
    """Yield findings on a list of images and labels."""
    lines = [line.rsplit(maxsplit=1) for line in file.read_text().splitlines() if line.strip()]
    labels = {line[-1] for line in lines}
    if labels == {str(label) for label in range(1, IMAGENET_CLASSES + 1)}:
        yield f'{file} has labels from 1 to {IMAGENET_CLASSES:,}; mmpretrain counts from 0: get the list it documents'
    elif len(lines) != number or labels != {str(label) for label in range(IMAGENET_CLASSES)}:
        yield (
            f'{file} lists {len(lines):,} images of {len(labels):,} classes, expected {number:,} of '
            f'{IMAGENET_CLASSES:,}: get it again, or remove it if {folder} has class folders'
        )
    yield from _check_missing(folder, {line[0] for line in lines} - set(names), remedy)


def check_handwritten(root: Path, decode: int) -> Iterator[str]:
    """Yield what is wrong with the handwritten scenes in a folder.

    Args:
        root (Path): What ``tools/dataset_converters/handwritten.py`` wrote.
        decode (int): Number of images and of masks to decode of each split.
    """
    remedy = f'run python tools/dataset_converters/handwritten.py --root {root} again'
    try:
        meta = json.loads((root / META).read_text())
        counts, options = meta['counts'], meta['options']
    except (OSError, ValueError, KeyError, TypeError):
        if (root / UNFINISHED).exists():
            yield f'{root} was not finished: {remedy}'
            return
        # Without its note, the tool takes these for another dataset's.
        left = [name for name in (*FOLDERS, README, META) if (root / name).exists()]
        first = f'remove {", ".join(left)} there, then ' if left else ''
        yield f'{root} has no {META} of theirs: {first}{remedy}'
        return
    default = vars(HandwrittenConfig())
    changed = {name: value for name, value in options.items() if value != json.loads(json.dumps(default.get(name)))}
    flags = [f'--{name.replace("_", "-")} {" ".join(map(str, np.ravel(value)))}' for name, value in changed.items()]
    # Without --overwrite, a damaged file would be taken for a good one.
    remedy = ' '.join([remedy.removesuffix(' again'), *flags, '--overwrite'])
    for split, count in counts.items():
        images, masks, crops = root / 'images' / split, root / 'masks' / split, root / 'classification' / split
        if count['scenes']:
            for folder, labels in ((images, None), (masks, range(len(CLASSES) + 1))):
                names = _names(folder)
                yield from _check_number(folder, names, count['scenes'], remedy)
                yield from _check_pictures(folder, names, decode, remedy, labels)
            file = root / f'annotations/{split}.json'
            content, problem = read_coco(file)
            if problem:
                yield f'{file} {problem}: {remedy}'
            else:
                numbers = (count['scenes'], count['instances'], len(CLASSES))
                yield from _check_coco_content(file, content, *numbers, remedy)
        if count['crops']:
            names = [f'{digit}/{name}' for digit in CLASSES for name in _names(crops / digit)]
            yield from _check_number(crops, names, count['crops'], remedy)
            yield from _check_pictures(crops, names, decode, remedy)


def _names(folder: Path, suffixes: tuple[str, ...] = PICTURES) -> list[str]:
    """List the images in a folder, by name; none if there is no folder."""
    if not folder.is_dir():
        return []
    return sorted(entry.name for entry in os.scandir(folder) if entry.name.lower().endswith(suffixes))


def _check_number(folder: Path, found: Collection, expected: int, remedy: str) -> Iterator[str]:
    """Yield a finding if a folder has another number of files."""
    if not folder.is_dir():
        yield f'{folder} does not exist: {remedy}'
    elif len(found) != expected:
        yield f'{folder} has {len(found):,} images, expected {expected:,}: {remedy}'


def _check_missing(folder: Path, missing: Collection[str], remedy: str) -> Iterator[str]:
    """Yield a finding if files are missing that others refer to."""
    if missing:
        yield f'{folder} misses {len(missing):,} files that belong to others ({first_few(sorted(missing))}): {remedy}'


def _check_pictures(
    folder: Path, names: Sequence[str], number: int, remedy: str, labels: Collection[int] | None = None
) -> Iterator[str]:
    """Yield findings on images drawn at random; on label maps also if they have other labels."""
    drawn = random.sample(names, min(number, len(names)))
    broken, strange = [], []
    for name in drawn:
        try:
            with Image.open(folder / name) as image:
                pixels = np.asarray(image)
        except (OSError, SyntaxError, ValueError):  # SyntaxError is Pillow's for a broken PNG
            broken.append(name)
            continue
        if labels is not None and (pixels.ndim != 2 or not set(np.unique(pixels).tolist()) <= set(labels)):
            strange.append(name)
    if broken:
        yield f'{folder}: {len(broken)} of {len(drawn)} images cannot be decoded ({first_few(broken)}): {remedy}'
    if strange:
        values = f'values from {min(labels)} to {max(labels)}'
        share = f'{len(strange)} of {len(drawn)}'
        yield f'{folder}: {share} are not label maps with {values} ({first_few(strange)}): {remedy}'


def _check_coco_content(
    file: Path, content: dict, images: int, objects: int, classes: int, remedy: str
) -> Iterator[str]:
    """Yield findings on the numbers in an annotation file."""
    expected = {'images': images, 'annotations': objects, 'categories': classes}
    for key, number in expected.items():
        if len(content[key]) != number:
            yield f'{file} has {len(content[key]):,} {key}, expected {number:,}: {remedy}'


DATA_SETS = {
    'coco': DataSet(
        'COCO 2017',
        'data/coco',
        'https://cocodataset.org/#download: train2017.zip (18 GB), val2017.zip (1 GB), annotations_trainval2017.zip',
        'annotations CC BY 4.0; images under the terms of Flickr, the consortium does not own them',
        check_coco,
    ),
    'ade20k': DataSet(
        'ADE20K (scene parsing, 150 classes)',
        'data/ade/ADEChallengeData2016',
        'http://sceneparsing.csail.mit.edu: ADEChallengeData2016.zip (923 MB)',
        'images for non-commercial research and education, annotations BSD 3-Clause; '
        'https://ade20k.csail.mit.edu/terms',
        check_ade20k,
    ),
    'imagenet': DataSet(
        'ImageNet-1k (ILSVRC 2012)',
        'data/imagenet',
        'https://image-net.org/download.php, with an account: ILSVRC2012_img_train.tar (138 GB), '
        'ILSVRC2012_img_val.tar (6 GB)',
        'non-commercial research and education only, after accepting the terms of access',
        check_imagenet,
    ),
    'handwritten': DataSet(
        'handwritten scenes',
        'data/handwritten',
        'python tools/dataset_converters/handwritten.py (no download)',
        'CC BY; keep the credits of its README.txt when you pass images on',
        check_handwritten,
    ),
}
