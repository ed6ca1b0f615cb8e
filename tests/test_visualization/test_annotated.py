"""Annotations drawn as predictions are."""

import numpy as np
import pytest
import synthetic

from mmlavit.utils.toolbox import load_toolbox
from mmlavit.visualization.annotated import as_result
from mmlavit_serve.drawing import class_colour

SIZE = (120, 160)


@pytest.mark.parametrize('scope', ['mmdet', 'mmseg', 'mmpretrain'])
def test_as_result(scope):
    load_toolbox(scope)
    classes = tuple('abcdefghij')
    batch = synthetic.make_batch(scope, 10, [SIZE])
    [sample] = batch['data_samples']
    result = as_result(sample, dict(classes=classes, palette=[[9 * i, 200, 50] for i in range(10)]), SIZE)
    image = np.full((*SIZE, 3), 255, np.uint8)
    drawn = result.draw(image)
    if scope == 'mmdet':
        labels = sample.gt_instances.labels.tolist()
        assert [entry['label'] for entry in result.to_dict()['objects']] == labels
        assert result.describe() == f'2 objects: {classes[labels[0]]}, {classes[labels[1]]}'  # without scores
        x1, y1, _, y2 = sample.gt_instances.bboxes.tensor[0].round().int().tolist()
        assert tuple(drawn[(y1 + y2) // 2, x1][::-1]) == class_colour(labels[0])
        assert np.array_equal(result.masks, sample.gt_instances.masks.masks.astype(bool))
    elif scope == 'mmseg':
        assert np.array_equal(result.labels, sample.gt_sem_seg.data[0])
        assert (drawn[..., 0] < 255).mean() > 0.9
    else:
        assert result.describe().startswith(f'{classes[int(sample.gt_label)]} 1.00')
        assert (drawn[:20, :20] != 255).any() and (drawn[60:] == 255).all()
