"""Boxes of PASCAL VOC, and files in folders that a dataset does not use."""

from pathlib import Path

import cv2
import numpy as np
import pytest
from mmengine.registry import DATASETS, DefaultScope

from mmlavit.datasets.check.boxes import find_box_faults
from mmlavit.datasets.check.folders import find_unlisted
from mmlavit.utils.toolbox import load_toolbox

XML = """<annotation><size><width>160</width><height>120</height><depth>3</depth></size>
<object><name>{name}</name><difficult>0</difficult>
<bndbox><xmin>{0}</xmin><ymin>{1}</ymin><xmax>{2}</xmax><ymax>{3}</ymax></bndbox></object></annotation>"""


def write(path, size=(120, 160)):
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_bytes(cv2.imencode('.png', np.zeros((*size, 3), np.uint8))[1].tobytes())


def entries_of(dataset):
    return [dataset.get_data_info(i) for i in range(len(dataset))]


def test_voc(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    boxes = dict(a=('cat', 10, 10, 60, 60), b=('Dog', 10, 10, 60, 60), c=('dog', 10, 10, 900, 900))
    boxes |= dict(d=('dog', 90, 90, 20, 20), e=('cat', 400, 10, 460, 60))
    for name, (kind, *box) in boxes.items():
        write(f'VOC2007/JPEGImages/{name}.jpg')
        Path('VOC2007/Annotations').mkdir(exist_ok=True)
        Path(f'VOC2007/Annotations/{name}.xml').write_text(XML.format(*box, name=kind))
    Path('VOC2007/all.txt').write_text('\n'.join(boxes) + '\n')
    load_toolbox('mmdet')
    with DefaultScope.overwrite_default_scope('mmdet'):
        cfg = dict(
            type='XMLDataset', data_root='', ann_file='VOC2007/all.txt', data_prefix=dict(sub_data_root='VOC2007/')
        )
        dataset = DATASETS.build(dict(cfg, metainfo=dict(classes=('cat', 'dog')), pipeline=[]))
    found = [*find_box_faults(entries_of(dataset), ('cat', 'dog'), 'all.txt')]
    assert len(found) == 4 and all('(VOC2007/JPEGImages/' in line for line in found[:3])
    for line, (fault, image) in zip(
        found, [('reaches out of its image', 'c.jpg'), ('has a box without area', 'd.jpg'), ('outside of', 'e.jpg')]
    ):
        assert line.removeprefix('note: ').startswith('all.txt: 1 objects: each has a box')
        assert fault in line and image in line and line.startswith('note: ') == (image == 'c.jpg')
    assert found[3] == 'note: all.txt has 1 objects that metainfo.classes does not name (Dog): left out'


@pytest.mark.parametrize('scope', ['mmpretrain', 'mmseg'])
def test_files_that_are_not_used(scope, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    load_toolbox(scope)
    if scope == 'mmpretrain':
        for name in ('a/0.jpg', 'a/1.webp', 'b/2.tiff', 'b/3.PNG'):
            write(f'data/{name}')
        cfg = dict(type='CustomDataset', data_root='data', data_prefix='', pipeline=[])
        wanted = ['data/ has 2 image files that are not used (data/a/1.webp, data/b/2.tiff): it looks for .bmp, .jpeg']
    else:
        for name in ('images/0.jpg', 'images/1.JPG', 'maps/0.png', 'maps/2.png'):
            write(f'data/{name}')
        prefix = dict(img_path='images', seg_map_path='maps')
        cfg = dict(
            type='BaseSegDataset', data_root='data', data_prefix=prefix, metainfo=dict(classes=('x',)), pipeline=[]
        )
        wanted = [
            'data/images has 1 image files that are not used (data/images/1.JPG): it looks for .jpg',
            'data/maps has 1 image files that are not used (data/maps/2.png): no image belongs to them',
        ]
    with DefaultScope.overwrite_default_scope(scope):
        dataset = DATASETS.build(cfg)
    found = [*find_unlisted(dataset, entries_of(dataset))]
    assert len(found) == len(wanted)
    assert all(line.startswith(f'note: {some}') for line, some in zip(found, wanted))
