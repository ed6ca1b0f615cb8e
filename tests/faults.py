"""Tiny datasets of the three tasks, and everything that can be wrong with them, one at a time."""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

ROOT = Path(__file__).parents[1]
CLASSES = ('one', 'two')
WIDTH, HEIGHT, NUMBER = 64, 48, 6

CONFIGS = dict(
    detection="""
_base_ = '{root}/configs/handwritten/mask_rcnn_lavit_nano.py'
model = dict(roi_head=dict(bbox_head=dict(num_classes=2), mask_head=dict(num_classes=2)))
data = dict(
    metainfo=dict(classes=('one', 'two'), palette=[(0, 0, 0), (9, 9, 9)]),
    data_root='data/', ann_file='train.json', data_prefix=dict(img='images/'), test_mode=False,
)
""",
    segmentation="""
_base_ = '{root}/configs/handwritten/upernet_lavit_nano.py'
loss = dict(class_weight=None)
model = dict(
    data_preprocessor=dict(size=(64, 64)),
    decode_head=dict(num_classes=2, loss_decode=loss), auxiliary_head=dict(num_classes=2, loss_decode=loss),
)
data = dict(
    metainfo=dict(classes=('one', 'two'), palette=[[0, 0, 0], [9, 9, 9]]), data_root='data/', img_suffix='.jpg',
    data_prefix=dict(img_path='images', seg_map_path='maps'),
    pipeline=[
        dict(type='LoadImageFromFile'), dict(type='LoadAnnotations'), dict(type='RandomCrop', crop_size=(48, 64)),
        dict(type='PackSegInputs'),
    ],
)
""",
    classification="""
_base_ = '{root}/configs/handwritten/classify_lavit_nano.py'
model = dict(data_preprocessor=dict(num_classes=2), head=dict(num_classes=2))
pipeline = [dict(type='LoadImageFromFile'), dict(type='Resize', scale=(64, 64)), dict(type='PackInputs')]
data = dict(
    data_root='data/images', data_prefix='', ann_file='../train.txt', metainfo=dict(classes=('one', 'two')),
    pipeline=pipeline,
)
""",
)
LOADERS = """
train_dataloader = dict(batch_size=2, num_workers={workers}, persistent_workers=False, dataset=data)
val_cfg = val_dataloader = val_evaluator = test_cfg = test_dataloader = test_evaluator = None
train_cfg = dict({length}, val_interval=99)
default_hooks = dict(logger=dict(interval=1), checkpoint=dict(save_best=None))
{more}
"""


def write_data(folder: Path, task: str, workers: int = 0, more: str = '') -> Path:
    """Write a dataset into ``folder/data`` and a config beside it; give the config."""
    rng = np.random.default_rng(0)
    images = folder / 'data/images'
    images.mkdir(parents=True)
    for i in range(NUMBER):
        Image.fromarray(rng.integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)).save(images / f'{i}.jpg')
    if task == 'detection':
        write_coco(folder / 'data/train.json')
    elif task == 'segmentation':
        (folder / 'data/maps').mkdir()
        for i in range(NUMBER):
            labels = rng.integers(0, 2, (HEIGHT, WIDTH), np.uint8)
            labels[:4] = 255
            Image.fromarray(labels).save(folder / f'data/maps/{i}.png')
    else:
        lines = [f'{i}.jpg {i % 2}' for i in range(NUMBER)]
        (folder / 'data/train.txt').write_text('\n'.join(lines) + '\n')
    length = 'max_iters=3' if task == 'segmentation' else 'max_epochs=1'
    config = folder / f'{task}.py'
    config.write_text((CONFIGS[task] + LOADERS).format(root=ROOT, workers=workers, length=length, more=more))
    return config


def write_coco(file: Path) -> None:
    """Write two objects for each image."""
    annotations = []
    for i in range(2 * NUMBER):
        x, y, w, h = 5 + i % 2 * 25, 6, 22, 30
        polygon = [x, y, x + w, y, x + w, y + h, x, y + h]
        box = dict(bbox=[x, y, w, h], area=w * h, segmentation=[polygon], iscrowd=0)
        annotations.append(dict(id=i + 1, image_id=i // 2, category_id=1 + i % 2, **box))
    images = [dict(id=i, file_name=f'{i}.jpg', width=WIDTH, height=HEIGHT) for i in range(NUMBER)]
    categories = [dict(id=i + 1, name=name) for i, name in enumerate(CLASSES)]
    file.write_text(json.dumps(dict(images=images, annotations=annotations, categories=categories)))


class Fault(NamedTuple):
    """What is wrong, and what is said about it.

    Args:
        make: Does it to the data in a folder.
        check: Part of what check_data finds; '' if nothing is wrong with it.
        train: Part of the error that ends a training; '' if it goes on.
        skips: Whether a training that leaves out what is broken goes on.
    """

    make: Callable[[Path], None]
    check: str
    train: str
    skips: bool = True


def picture(change: Callable[[Path], None]) -> Callable[[Path], None]:
    """Do something to the file of an image."""
    return lambda folder: change(folder / 'data/images/1.jpg')


def label_map(change: Callable[[Path], None]) -> Callable[[Path], None]:
    return lambda folder: change(folder / 'data/maps/1.png')


def coco(change: Callable[[dict], object]) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        file = folder / 'data/train.json'
        content = json.loads(file.read_text())
        change(content)
        file.write_text(json.dumps(content))

    return make


def listed(change: Callable[[list[str]], object]) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        file = folder / 'data/train.txt'
        lines = file.read_text().splitlines()
        change(lines)
        file.write_text('\n'.join(lines) + '\n')

    return make


def config(old: str, new: str) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        (file,) = folder.glob('*.py')
        assert old in file.read_text()
        file.write_text(file.read_text().replace(old, new))

    return make


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def turn(path: Path) -> None:
    """Store an image as a camera does that was held upright: on its side, with a tag."""
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.open(path).save(path, exif=exif)


def write_16_bits(path: Path) -> None:
    """Write values of 12 bits, as cameras and scanners of medicine do; a PNG, whatever its name."""
    values = np.random.default_rng(0).integers(0, 4096, (HEIGHT, WIDTH)).astype(np.uint16)
    Image.fromarray(values).save(path, 'PNG')


def write_huge(path: Path) -> None:
    """Write the header of a PNG of 20,000 by 20,000 pixels, and one row."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack('>I', len(data)) + kind + data + struct.pack('>I', zlib.crc32(kind + data))

    head = struct.pack('>IIBBBBB', 20000, 20000, 8, 0, 0, 0, 0)
    rows = zlib.compress(bytes(20001))
    path.write_bytes(b'\x89PNG\r\n\x1a\n' + chunk(b'IHDR', head) + chunk(b'IDAT', rows) + chunk(b'IEND', b''))


def resave(mode: str) -> Callable[[Path], None]:
    return lambda path: Image.open(path).convert(mode).save(path, 'JPEG')


def resized(width: int, height: int) -> Callable[[Path], None]:
    """Another size; for label maps and annotations, too, where there are some."""

    def make(folder: Path) -> None:
        for path in folder.glob('data/*/1.*'):
            Image.open(path).resize((width, height), Image.Resampling.NEAREST).save(path)
        if (folder / 'data/train.json').exists():
            coco(lambda c: c['images'][1].update(width=width, height=height))(folder)
            coco(lambda c: [a.update(image_id=0) for a in c['annotations'] if a['image_id'] == 1])(folder)

    return make


# Of images, whatever the task.
IMAGES = {
    'cut off': Fault(picture(cut), '1.jpg is cut off: get it again', '1.jpg is cut off: get it again'),
    'empty file': Fault(picture(lambda p: p.write_bytes(b'')), '1.jpg is empty', '1.jpg is empty'),
    'no image': Fault(picture(lambda p: p.write_text('<html>')), '1.jpg is not an image', '1.jpg is not an image'),
    'missing': Fault(picture(Path.unlink), '1.jpg does not exist', '1.jpg does not exist'),
    '16 bits': Fault(picture(write_16_bits), '1.jpg has 16 bits', 'nothing but black is left'),
    'grayscale': Fault(picture(resave('L')), '', ''),
    'CMYK': Fault(picture(resave('CMYK')), '', ''),
    '1x1': Fault(resized(1, 1), '', ''),
    'long': Fault(resized(20000, 2), '', ''),  # 20,000 pixels
}
HUGE = Fault(picture(write_huge), '1.jpg has more than 179 million pixels', '1.jpg has more than 179 million pixels')

DETECTION = {
    'turned by EXIF': Fault(picture(turn), '1.jpg is 48x64 as it is loaded, but', '1.jpg is 48x64 as it is'),
    'image without objects': Fault(
        coco(lambda c: c.update(annotations=c['annotations'][2:])),
        'note: data/train.json: 1 of 6 images have no objects (0.jpg)', '',
    ),
    'no annotations': Fault(
        coco(lambda c: c.update(images=[], annotations=[])), 'train.json has 0 images and 0 annotations',
        'train.json has 0 images and 0 annotations', skips=False,
    ),
    'box outside': Fault(
        coco(lambda c: c['annotations'][3].update(bbox=[70, 6, 20, 20])),
        'objects have a box outside of their image, and are left out in training (annotation 4 of 1.jpg)', '',
    ),
    'box reaching out': Fault(
        coco(lambda c: c['annotations'][3].update(bbox=[50, 6, 20, 20])), 'that reaches out of their image', '',
    ),
    'box without area': Fault(
        coco(lambda c: c['annotations'][3].update(bbox=[30, 6, 0, 20])), 'objects have no area, or a box below one', '',
    ),
    'mask without area': Fault(
        coco(lambda c: c['annotations'][3].update(segmentation=[[5, 5, 9, 9, 5, 5]])), 'have no mask with an', '',
    ),
    'no mask': Fault(
        coco(lambda c: c['annotations'][3].update(segmentation=[])), 'objects have no mask with an area',
        '1.jpg has an object without a mask',
    ),
    'box that is no number': Fault(
        coco(lambda c: c['annotations'][3].update(bbox=[float('nan'), 6, 20, 20])), 'no box of four finite numbers',
        '',
    ),
    'box of three numbers': Fault(
        coco(lambda c: c['annotations'][3].update(bbox=[1, 6, 20])), 'annotations have no box of four finite numbers',
        'annotations have no box of four finite numbers', skips=False,
    ),
    'label out of range': Fault(
        coco(lambda c: c['annotations'][3].update(category_id=9)), 'have a category_id that no category', '',
    ),
    'image id twice': Fault(
        coco(lambda c: c['images'][1].update(id=0)), 'train.json: 1 images have an id that others have, too (0)', '',
    ),
    'annotation id twice': Fault(
        coco(lambda c: c['annotations'][3].update(id=1)), '1 annotations have an id that others have, too (1)',
        '1 annotations have an id that others have, too (1)', skips=False,
    ),
    'annotations cut off': Fault(
        lambda folder: cut(folder / 'data/train.json'), 'data/train.json is cut off or damaged: get it again',
        'data/train.json is cut off or damaged: get it again', skips=False,
    ),
    'classes of another file': Fault(
        coco(lambda c: c['categories'][1].update(name='zwei')), 'train.json has no categories two, which',
        'train.json has no categories two, which metainfo.classes', skips=False,
    ),
    'classes in another order': Fault(
        coco(lambda c: c['categories'].reverse()), 'has its categories in another order than metainfo.classes',
        'has its categories in another order than metainfo.classes', skips=False,
    ),
    'classes as a string': Fault(
        config("('one', 'two')", "('one')"), "metainfo.classes is the string 'one'; expected a list",
        "metainfo.classes is the string 'one'; expected a list", skips=False,
    ),
    'all left out': Fault(
        config('test_mode=False,', 'test_mode=False, filter_cfg=dict(min_size=999),'),
        "train.json: filter_cfg={'min_size': 999} leaves none of its 6 images",
        "train.json: filter_cfg={'min_size': 999} leaves none of its 6 images", skips=False,
    ),
    'head of other classes': Fault(
        config('bbox_head=dict(num_classes=2)', 'bbox_head=dict(num_classes=3)'),
        'model.roi_head.bbox_head.num_classes is 3, but', 'model.roi_head.bbox_head.num_classes is 3, but', skips=False,
    ),
}  # fmt: skip

SEGMENTATION = {
    'missing': Fault(picture(Path.unlink), '', ''),  # images are those that are there
    '1x1': Fault(resized(1, 1), '1.png is a label map of one pixel', '1.png is a label map of one pixel'),
    'turned by EXIF': Fault(picture(turn), '1.png is 64x48, but its image is', '1.png is 64x48, but its image is'),
    'map cut off': Fault(label_map(cut), '1.png is cut off: get it again', '1.png is cut off: get it again'),
    'map missing': Fault(label_map(Path.unlink), '1.png does not exist', '1.png does not exist'),
    'map in colour': Fault(
        label_map(lambda p: Image.open(p).convert('RGB').save(p)), '1.png is not a label map', '1.png is not a label',
    ),
    'label out of range': Fault(
        label_map(lambda p: Image.fromarray(np.full((HEIGHT, WIDTH), 7, np.uint8)).save(p)),
        '1.png has labels that no class has (7)', '1.png has labels that no class has (7)',
    ),
    'nothing but ignored': Fault(
        label_map(lambda p: Image.fromarray(np.full((HEIGHT, WIDTH), 255, np.uint8)).save(p)), '', '',
    ),
    'another ending': Fault(
        config(".jpg'", ".jpeg'"), 'no image is there: no file in data/images ends in .jpeg; set img_suffix',
        'no image is there: no file in data/images ends in .jpeg; set img_suffix', skips=False,
    ),
    'head of other classes': Fault(
        config('decode_head=dict(num_classes=2', 'decode_head=dict(num_classes=3'), 'decode_head.num_classes is 3, but',
        'model.decode_head.num_classes is 3, but', skips=False,
    ),
}  # fmt: skip

CLASSIFICATION = {
    'turned by EXIF': Fault(picture(turn), '', ''),
    'label out of range': Fault(
        listed(lambda lines: lines.append('0.jpg 2')), '0.jpg (label 2) is out of range', '0.jpg has the label 2, but',
    ),
    'listed twice': Fault(listed(lambda lines: lines.append('0.jpg 0')), '0.jpg is listed more than once', ''),
    'empty list': Fault(listed(list.clear), 'train.txt', 'train.txt', skips=False),
    'head of other classes': Fault(
        config(' head=dict(num_classes=2)', ' head=dict(num_classes=3)'), 'model.head.num_classes is 3, but',
        'model.head.num_classes is 3, but', skips=False,
    ),
}  # fmt: skip

FAULTS = dict(detection=IMAGES | DETECTION, segmentation=IMAGES | SEGMENTATION, classification=IMAGES | CLASSIFICATION)
ALL = [(task, name) for task, faults in FAULTS.items() for name in faults]
