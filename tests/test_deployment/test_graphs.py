"""The graphs of an export, still in eager mode, against the test of the toolbox."""

import numpy as np
import pytest
import torch
from exportable import KINDS, build, make_config
from mmengine.structures import BaseDataElement

from mmlavit.apis.inference import build_model
from mmlavit.deployment.models import build_graph
from mmlavit.errors import ConfigError


def make_samples(scope, shape):
    """Data samples of an image that was not resized."""
    meta = dict(img_shape=shape, ori_shape=shape, pad_shape=shape, scale_factor=(1.0, 1.0), img_path='')
    if scope == 'mmdet':
        from mmdet.structures import DetDataSample as Sample
    elif scope == 'mmseg':
        from mmseg.structures import SegDataSample as Sample
    else:
        from mmpretrain.structures import DataSample as Sample
    return [Sample(metainfo=meta)]


@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize('shape', [(160, 192), (150, 211)])
def test_as_the_toolbox(kind, shape):
    cfg = make_config(kind)
    model = build(cfg)
    scope = cfg.default_scope
    image = torch.randint(0, 256, (*shape, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    data = dict(inputs=[image.permute(2, 0, 1)], data_samples=make_samples(scope, shape))
    if scope == 'mmpretrain':
        data['inputs'] = torch.stack(data['inputs'])
    graph = build_graph(model, scope)
    with torch.no_grad():
        (expected,) = model.test_step(data)
        if scope == 'mmseg':
            found = graph(image[None], torch.tensor(shape))
        else:
            found = graph(image[None])
    assert isinstance(expected, BaseDataElement)
    if scope == 'mmpretrain':
        torch.testing.assert_close(found[0], expected.pred_score)
    elif scope == 'mmseg':
        assert (found[0] == expected.pred_sem_seg.data[0]).float().mean() > 0.999
        assert found.unique().numel() > 1
    else:
        instances = expected.pred_instances
        assert len(instances) > 5
        boxes, scores, labels = found[:3]
        torch.testing.assert_close(scores, instances.scores, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(boxes, instances.bboxes, rtol=1e-4, atol=1e-2)
        assert torch.equal(labels, instances.labels)


def test_segmentation_at_another_size():
    """The result is resized twice, as by mmseg: to the image, then to what was asked for."""
    cfg = make_config('upernet')
    model = build(cfg)
    image = torch.randint(0, 256, (1, 96, 128, 3), dtype=torch.uint8)
    samples = make_samples('mmseg', (96, 128))
    samples[0].set_metainfo(dict(ori_shape=(61, 99)))
    with torch.no_grad():
        (expected,) = model.test_step(dict(inputs=[image[0].permute(2, 0, 1)], data_samples=samples))
        found = build_graph(model, 'mmseg')(image, torch.tensor([61, 99]))
    assert found.shape == (1, 61, 99)
    assert (found == expected.pred_sem_seg.data).float().mean() > 0.999


@pytest.mark.parametrize('padding', [dict(size_divisor=32), dict(test_cfg=dict(size_divisor=32))], ids=repr)
def test_padding_of_segmentors(padding):
    """mmseg pads for a test as test_cfg says; size_divisor is for training."""
    cfg = make_config('upernet')
    cfg.model.data_preprocessor.pop('size')
    cfg.model.data_preprocessor.update(padding)
    model = build(cfg)
    image = torch.randint(0, 256, (1, 150, 211, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    data = dict(inputs=[image[0].permute(2, 0, 1)], data_samples=make_samples('mmseg', (150, 211)))
    with torch.no_grad():
        (expected,) = model.test_step(data)
        found = build_graph(model, 'mmseg')(image, torch.tensor([150, 211]))
    assert (found == expected.pred_sem_seg.data).float().mean() > 0.999


@pytest.mark.parametrize('kind', ['retinanet', 'upernet'])
def test_padding_with_other_values(kind):
    cfg = make_config(kind)
    padding = dict(pad_val=9, test_cfg=dict(size_divisor=32), size=None) if kind == 'upernet' else dict(pad_value=9)
    cfg.model.data_preprocessor.update(padding)
    with pytest.raises(ConfigError, match='data_preprocessor pads with 9, expected 0 for an export'):
        build_graph(build(cfg), cfg.default_scope)


def make_ocr():
    """A segmentor of two heads, one after the other."""
    cfg = make_config('upernet')
    head = dict(cfg.model.decode_head, type='FCNHead', num_convs=1, channels=16)
    head.pop('pool_scales', None)
    ocr = dict(head, type='OCRHead', ocr_channels=16)
    ocr.pop('num_convs')
    cfg.model.update(type='CascadeEncoderDecoder', num_stages=2)
    cfg.model.decode_head = [
        dict(one, in_channels=32, in_index=3, norm_cfg=dict(type='BN'), align_corners=False) for one in (head, ocr)
    ]
    return cfg


def make_solo():
    """A detector of masks without boxes, and without a second stage."""
    cfg = make_config('retinanet')
    head = dict(type='SOLOHead', num_classes=10, in_channels=64, feat_channels=32, stacked_convs=1)
    cfg.model.update(
        type='SOLO',
        mask_head=dict(
            head,
            loss_mask=dict(type='DiceLoss', use_sigmoid=True),
            loss_cls=dict(type='FocalLoss', use_sigmoid=True),
        ),
        test_cfg=dict(nms_pre=50, score_thr=0.1, mask_thr=0.5, filter_thr=0.05, sigma=2.0, max_per_img=7),
    )
    cfg.model.neck.update(out_channels=64, num_outs=5)
    cfg.model.pop('bbox_head')
    return cfg


def test_given_proposals():
    cfg = make_config('mask_rcnn')
    cfg.model.type = 'FastRCNN'
    cfg.model.roi_head.mask_head = cfg.model.roi_head.mask_roi_extractor = None
    for part in (cfg.model, cfg.model.train_cfg, cfg.model.test_cfg):
        for name in ('rpn_head', 'rpn', 'rpn_proposal'):
            part.pop(name, None)
    with pytest.raises(ConfigError, match='FastRCNN has no rpn_head: what needs given proposals cannot be exported'):
        build_graph(build(cfg), cfg.default_scope)


def test_proposals_alone():
    """An RPN keeps its levels apart where boxes overlap, a RetinaNet its classes."""
    cfg = make_config('mask_rcnn')
    cfg.model.update(type='RPN', train_cfg=None, test_cfg=cfg.model.test_cfg)
    for part in ('roi_head',):
        del cfg.model[part]
    with pytest.raises(ConfigError, match='RPNHead cannot be exported alone; expected a RetinaHead'):
        build_graph(build(cfg), cfg.default_scope)


@pytest.mark.parametrize(('make', 'expected'), [(make_ocr, 4 * 11 + 16), (make_solo, 2 * 7)])
def test_memory_of_other_models(make, expected, tmp_path):
    """What torch can run and an export cannot."""
    cfg = make()
    model = build(cfg)
    torch.save(dict(state_dict=model.state_dict()), tmp_path / 'a.pth')
    built = build_model(cfg, str(tmp_path / 'a.pth'), 'cpu', 0.3)
    assert built._bytes_for_image == expected and built.predict([np.zeros((64, 96, 3), np.uint8)])
    with pytest.raises(ConfigError, match='cannot be exported'):
        build_graph(model, cfg.default_scope)


def test_head_without_softmax(monkeypatch):
    """As those of regression."""
    cfg = make_config('classifier')
    model = build(cfg)
    monkeypatch.setattr(type(model.head), '_get_predictions', lambda self, scores, samples: samples)
    with pytest.raises(ConfigError, match='LinearClsHead cannot be exported: probabilities are by softmax'):
        build_graph(model, cfg.default_scope)


PANOPTIC = {
    'type': 'PanopticFPN',
    'semantic_head': dict(type='PanopticFPNHead', num_things_classes=8, num_stuff_classes=2, in_channels=64),
    'panoptic_fusion_head': dict(type='HeuristicFusionHead', num_things_classes=8, num_stuff_classes=2),
    'test_cfg.panoptic': dict(score_thr=0.6, max_per_img=10, mask_thr_binary=0.5, mask_overlap=0.5, nms=None),
}


@pytest.mark.parametrize(
    ('kind', 'change', 'message'),
    [
        ('mask_rcnn', {'test_cfg.rcnn.nms.type': 'soft_nms'}, 'test_cfg.rcnn has nms='),
        ('mask_rcnn', {'test_cfg.rcnn.nms.class_agnostic': True}, 'without more arguments'),
        ('mask_rcnn', {'roi_head.bbox_head.loss_cls': dict(type='SeesawLoss', num_classes=10)}, 'loss_cls=SeesawLoss'),
        ('upernet', {'data_preprocessor.test_cfg': dict(size=(256, 256))}, 'expected size_divisor, or no padding'),
        ('retinanet', {'test_cfg.nms_pre': -1}, 'RetinaHead with nms_pre=-1'),
        ('retinanet', {'test_cfg.min_bbox_size': 4}, 'test_cfg has min_bbox_size=4, in pixels'),
        ('upernet', {'test_cfg.mode': 'slide'}, "mode='whole'"),
        ('mask_rcnn', {'roi_head.bbox_roi_extractor.roi_layer.pool_mode': 'max'}, 'RoIAlign'),
        ('mask_rcnn', {'test_cfg.rpn.min_bbox_size': 4}, 'test_cfg.rpn has min_bbox_size=4'),
        ('mask_rcnn', PANOPTIC, 'PanopticFPN cannot be exported: what its semantic_head and panoptic_fusion_head'),
        ('classifier', {'head.type': 'MultiLabelLinearClsHead'}, 'MultiLabelLinearClsHead cannot be exported'),
    ],
)
def test_refused(kind, change, message):
    cfg = make_config(kind)
    cfg.merge_from_dict({f'model.{key}': value for key, value in change.items()})
    if kind == 'upernet':
        cfg.model.test_cfg.update(crop_size=(64, 64), stride=(32, 32))
    if kind == 'classifier':
        del cfg.model.head['loss']  # of one label
    model = build(cfg)
    with pytest.raises(ConfigError, match=message):
        build_graph(model, cfg.default_scope)
