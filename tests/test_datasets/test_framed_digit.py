"""The task of the framed digit: which labels are kept follows from the frame alone."""

import cv2
import numpy as np
import pytest

from mmlavit.datasets.framed_digit import FrameDigit

FRAME = np.array((255, 0, 255))


def scene(name='a/000001.png'):
    """Two ones, one two, three threes: blocks of 16x16, in an image of 96x96."""
    labels = np.zeros((96, 96), np.uint8)
    for label, y, x in ((1, 8, 8), (1, 8, 72), (2, 40, 40), (3, 72, 8), (3, 72, 40), (3, 72, 72)):
        labels[y : y + 16, x : x + 16] = label
    return dict(img=np.full((96, 96, 3), 90, np.uint8), gt_seg_map=labels, img_path=name)


def framed_block(image):
    """Where the frame is: its inside."""
    ys, xs = np.nonzero((image == FRAME).all(axis=-1))
    return slice(ys.min() + 5, ys.max() - 4), slice(xs.min() + 5, xs.max() - 4)


@pytest.mark.parametrize('test', [False, True])
def test_labels_follow_the_frame(test):
    np.random.seed(0)
    seen = set()
    for number in range(20):
        before = scene(f'{number:06d}.png')
        labels = before['gt_seg_map']
        after = FrameDigit(test).transform(scene(f'{number:06d}.png'))
        inside = framed_block(after['img'])
        label = int(np.unique(labels[inside])[-1])
        seen.add((label, inside[0].start, inside[1].start))
        assert label in (1, 3)  # of which there are several
        wanted = np.where(labels == label, label, np.where(labels > 0, 11, 0))
        if test:
            part = np.zeros_like(labels, bool)
            part[inside] = True
            wanted[part & (labels == label)] = 255
        assert np.array_equal(after['gt_seg_map'], wanted) and after['gt_seg_map'].dtype == np.uint8
    assert len(seen) == 5  # each of the digits sometimes


def test_a_test_is_always_the_same_and_leaves_the_image_it_was_given():
    first, second = (scene(f'{folder}/000003.png') for folder in 'ab')
    image = first['img']
    np.random.seed(0)
    one = FrameDigit(test=True).transform(first)
    np.random.seed(1)
    other = FrameDigit(test=True).transform(second)
    assert all(np.array_equal(one[key], other[key]) for key in ('img', 'gt_seg_map'))
    assert (image == 90).all() and (one['img'] == FRAME).all(axis=-1).any()


def test_without_frame_and_without_digits():
    bare = FrameDigit(test=True, framed=False).transform(scene())
    assert (bare['img'] == 90).all()
    assert np.array_equal(bare['gt_seg_map'], FrameDigit(test=True).transform(scene())['gt_seg_map'])
    unlabelled = dict(img=scene()['img'], img_path='a.png')
    assert FrameDigit().transform(dict(unlabelled)) == unlabelled
    empty = scene()
    empty['gt_seg_map'] = cv2.merge([np.zeros((96, 96), np.uint8)])
    empty['gt_seg_map'][0, 0] = 255
    after = FrameDigit().transform(dict(empty))
    assert np.array_equal(after['gt_seg_map'], empty['gt_seg_map']) and (after['img'] == 90).all()
