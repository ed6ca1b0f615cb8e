"""tools/test.py with an exported model: the predictions and metrics that it has with the checkpoint."""

import json
import pickle

import numpy as np
import pytest
import synthetic
from tool_runs import run_tool

pytest.importorskip('onnxruntime')


def as_numbers(sample, task):
    """What is compared of a dumped sample."""
    if task == 'classifier':
        return np.asarray(sample['pred_score'])
    if task == 'upernet':
        return np.asarray(sample['pred_sem_seg']['data'])
    found = sample['pred_instances']
    return np.column_stack([found['bboxes'], found['scores'], found['labels']])


@pytest.mark.parametrize(('kind', 'runtime'), [('classifier', 'openvino'), ('upernet', None), ('mask_rcnn', None)])
def test_as_the_checkpoint(kind, runtime, exported, tmp_path, monkeypatch):
    if runtime is not None:
        pytest.importorskip(runtime)
    cfg, checkpoint, file = exported(kind)
    synthetic.write_handwritten(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv('CUDA_VISIBLE_DEVICES', '-1')
    # Workers would be forked beside the threads of a runtime, which can end the process.
    cfg.test_dataloader.update(num_workers=0, persistent_workers=False)
    # What stands in configs of mmpretrain, beside the model, and what copies models.
    cfg.data_preprocessor = cfg.model.data_preprocessor
    cfg.custom_hooks = [dict(type='EMAHook')]
    cfg.dump('config.py')
    metrics, samples = {}, {}
    for name, model, options in (
        ('torch', checkpoint, []),
        ('exported', file, ['--runtime', runtime][: 2 * bool(runtime)]),
    ):
        assert (
            run_tool(monkeypatch, 'test.py', 'config.py', model, '--work-dir', name, '--out', f'{name}.pkl', *options)
            == 0
        )
        (log,) = (tmp_path / name).glob('2*/2*.json')
        metrics[name] = json.loads(log.read_text())
        samples[name] = pickle.loads((tmp_path / f'{name}.pkl').read_bytes())
    measured = {key: value for key, value in metrics['torch'].items() if 'time' not in key}
    assert measured and measured == pytest.approx(
        {key: metrics['exported'][key] for key in measured}, rel=0.02, abs=0.2
    )
    pairs = [[as_numbers(sample, kind) for sample in pair] for pair in zip(*samples.values(), strict=True)]
    if kind == 'upernet':
        assert len(np.unique(pairs[0][0])) > 1
        assert np.mean([(a == b).mean() for a, b in pairs]) > 0.998
    elif kind == 'classifier':
        assert all(np.allclose(a, b, rtol=1e-4, atol=1e-5) for a, b in pairs)
    else:
        assert sum(len(a) for a, _ in pairs) > 3 * len(pairs)
        close = [np.abs(a[:, None] - b).max(axis=2).min(axis=1) < 0.05 for a, b in pairs if len(a) and len(b)]
        assert np.mean(np.concatenate(close)) > 0.95


@pytest.mark.parametrize(
    ('kind', 'options', 'message'),
    [
        ('classifier', ['model.head.num_classes=5'], 'changes the model or its images'),
        ('classifier', ['test_dataloader.dataset.pipeline.1.scale=64'], 'changes the model or its images'),
        ('upernet', [], 'is a model for classification, but the config is one of mmseg for segmentation'),
    ],
)
def test_another_config(kind, options, message, exported, tmp_path, monkeypatch, capsys):
    cfg, file = exported(kind)[0], exported('classifier')[2]
    synthetic.write_handwritten(tmp_path)
    monkeypatch.chdir(tmp_path)
    cfg.dump('config.py')
    code = run_tool(monkeypatch, 'test.py', 'config.py', file, *(['--cfg-options', *options] if options else []))
    said = capsys.readouterr().err
    assert code == 2 and message in said and said.count('error: ') == 1


def test_other_classes(exported, tmp_path, monkeypatch, capsys):
    """Fewer, or in another order: an error. Other names for as many: a warning."""
    cfg, _, file = exported('upernet')
    names = ['background', *'0123456789']
    synthetic.write_handwritten(tmp_path)
    monkeypatch.chdir(tmp_path)
    cfg = cfg.copy()
    cfg.test_dataloader.update(num_workers=0, persistent_workers=False)
    said = []
    for classes in (names[:3], names[::-1], [f'digit {name}' for name in names]):
        cfg.test_dataloader.dataset.metainfo = dict(classes=classes, palette=[[9, 9, 9]] * len(classes))
        cfg.dump('config.py')
        code = run_tool(monkeypatch, 'test.py', 'config.py', file)
        output = capsys.readouterr()
        said.append((code, output.out + output.err))
    known = f'{file} has the classes background, 0, 1, ... (11), but data/handwritten/'
    assert said[0][0] == 2 and f'error: {known} background, 0, 1 (3); test it with the data' in said[0][1]
    assert said[1][0] == 2 and f'error: {known} 9, 8, 7, ... (11); test it with the data' in said[1][1]
    assert said[2][0] == 0 and f'{known} digit background, digit 0, digit 1, ... (11): are they' in said[2][1]
