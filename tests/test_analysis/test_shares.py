"""Shares of mechanisms in parameters, multiply-adds and time, against sums over the model and a slowed part of it."""

from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch
from mmengine.registry import MODELS, DefaultScope
from small_vit import DIM, VIT

from mmlavit.analysis import shares
from mmlavit.analysis.complexity import model_complexity
from mmlavit.analysis.shares import BACKBONE, MECHANISMS, TRANSFORMS, measure_shares, plot_shares
from mmlavit.analysis.trained import load_trained, read_pictures
from mmlavit.models.lavit import LaViT, LessAttention
from mmlavit.models.layers import FeedForward
from mmlavit.utils.config_files import load_config
from mmlavit.utils.toolbox import load_toolbox

CONFIGS = Path(__file__).parents[2] / 'configs'


@pytest.fixture(scope='module')
def make(tmp_path_factory):
    """Build a model with random weights and read an image for it."""
    root = tmp_path_factory.mktemp('shares')
    cv2.imwrite(str(root / 'a.png'), np.random.default_rng(0).integers(0, 256, (96, 128, 3), np.uint8))

    def make(name):
        cfg = load_config(str(CONFIGS / name))
        load_toolbox(cfg.default_scope)
        with DefaultScope.overwrite_default_scope(cfg.default_scope):
            torch.save(MODELS.build(cfg.model).state_dict(), root / 'weights.pth')
        trained = load_trained(str(CONFIGS / name), str(root / 'weights.pth'))
        return trained, next(read_pictures(trained, [root / 'a.png']))

    return make


def test_plain_transformer(make, tmp_path):
    """Its transforms are not told apart, in none of the three."""
    config = tmp_path / 'vit.py'
    base, vit = (
        CONFIGS / 'handwritten/classify_lavit_nano.py',
        dict(type='WithLessAttention', backbone=VIT, layers=[1, 3]),
    )
    config.write_text(
        f"_base_ = '{base}'\nmodel = dict(backbone=dict(_delete_=True, **{vit}), head=dict(in_channels={DIM}))\n"
    )
    trained, picture = make(config)
    found = {share.name: share for share in measure_shares(trained, picture, repeats=1)}
    assert TRANSFORMS not in found
    assert sum(share.params for share in found.values()) == sum(p.numel() for p in trained.model.parameters())


def test_segmentor_in_windows(make, tmp_path):
    """As many multiply-adds as its windows have, which are counted while it runs."""
    config = tmp_path / 'slide.py'
    config.write_text(
        f"_base_ = '{CONFIGS / 'handwritten/upernet_lavit_nano.py'}'\n"
        "model = dict(test_cfg=dict(mode='slide', crop_size=(64, 96), stride=(48, 64)))\n"
    )
    trained, picture = make(config)
    shapes = []
    hook = trained.model.backbone.register_forward_pre_hook(lambda module, args: shapes.append(args[0].shape[-2:]))
    trained.model.test_step(picture.data)
    hook.remove()
    assert len(shapes) > 1 and len({*shapes}) == 1
    complexity, _ = model_complexity(trained.cfg, shapes[0])
    found = measure_shares(trained, picture, repeats=1)
    assert sum(share.macs for share in found) == len(shapes) * complexity.macs


def test_sums(make, tmp_path):
    trained, picture = make('handwritten/classify_lavit_nano.py')
    found = {share.name: share for share in measure_shares(trained, picture, repeats=1)}
    assert sum(share.params for share in found.values()) == sum(p.numel() for p in trained.model.parameters())
    complexity, _ = model_complexity(trained.cfg, picture.inputs.shape[-2:])
    assert sum(share.macs for share in found.values()) == complexity.macs
    layers = [module for module in trained.model.modules() if isinstance(module, LessAttention)]
    deltas = sum(layer.delta_psi.numel() + layer.delta_theta.numel() for layer in layers)
    assert found[TRANSFORMS].params == deltas and found[TRANSFORMS].seconds > 0
    feed_forward = sum(p.numel() for m in trained.model.modules() if isinstance(m, FeedForward) for p in m.parameters())
    assert found['feed-forward'].params == feed_forward
    assert {*MECHANISMS} <= {*found} and 'head' in found
    assert not any('transform' in vars(layer) for layer in layers)  # nothing is left behind

    # Theta takes every score of 16 keys to 16, Psi every score of its n queries to n; resampling comes on top.
    height, width = picture.inputs.shape[-2:]
    products = 0
    for stride, heads, n, layers_here in ((4, 1, 16, 1), (8, 2, 16, 1), (16, 4, 64, 2), (32, 6, 16, 1)):
        queries = (height // stride) * (width // stride)
        products += layers_here * heads * (queries * 16 * 16 + n * n * 16)
    assert products < found[TRANSFORMS].macs < 2 * products
    plot_shares([*found.values()], 'somewhere', tmp_path / 'a.png')
    assert cv2.imread(str(tmp_path / 'a.png')) is not None


def test_time_goes_to_what_takes_it(make, monkeypatch):
    """By a clock that only some functions advance; each of them calls others that do."""
    trained, picture = make('handwritten/classify_lavit_nano.py')
    now = 0.0
    steps = {(LessAttention, 'forward'): 1000, (LessAttention, 'transform'): 100, (FeedForward, 'forward'): 10}
    for (cls, method), step in {**steps, (LaViT, 'forward'): 1}.items():
        original = getattr(cls, method)

        def slow(self, *args, original=original, step=step):
            nonlocal now
            now += step
            return original(self, *args)

        monkeypatch.setattr(cls, method, slow)
    monkeypatch.setattr(shares, 'time', SimpleNamespace(perf_counter=lambda: now))
    seconds = {share.name: share.seconds for share in measure_shares(trained, picture, repeats=3)}
    assert seconds['less attention'] == 5 * 1000 and seconds[TRANSFORMS] == 5 * 100
    assert seconds['feed-forward'] == 9 * 10 and seconds[BACKBONE] == 1
    assert sum(seconds.values()) == 5591


def test_twin(make):
    trained, picture = make('experiments/lavit_vanilla_nano_in275.py')
    names = [share.name for share in measure_shares(trained, picture, repeats=1)]
    assert 'vanilla attention' in names and 'less attention' not in names and TRANSFORMS not in names
