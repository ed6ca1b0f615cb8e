"""Diagonality of checkpoints, against what the hook logs in a training."""

import math
from types import SimpleNamespace

import pytest
import torch
from mmengine.model import BaseModel
from mmengine.structures import BaseDataElement
from small_vit import VIT

from mmlavit import DiagonalityLossHook, LaViT
from mmlavit.analysis.curves import Log
from mmlavit.analysis.diagonality import History, measure_diagonality
from mmlavit.analysis.runs import Run, each_checkpoint
from mmlavit.models.plain_vit import WithLessAttention
from mmlavit.utils.toolbox import load_toolbox


class Model(BaseModel):
    def __init__(self, backbone):
        super().__init__()
        self.backbone = backbone

    def forward(self, inputs, data_samples=None, mode='tensor'):
        return dict(loss=self.backbone(inputs)[-1].mean())


@pytest.mark.parametrize('kind', ['lavit', 'vit'])
@pytest.mark.parametrize('size', [(64, 96), (160, 192)])
def test_measured_as_logged(kind, size):
    load_toolbox('mmpretrain')
    torch.manual_seed(0)
    model = Model(LaViT('nano', drop_path_rate=0.0) if kind == 'lavit' else WithLessAttention(VIT, [1, 3])).eval()
    for parameter in model.parameters():
        parameter.data += 0.2 * torch.randn_like(parameter)
    x = torch.randn(2, 3, *size)
    hook = DiagonalityLossHook(weight=1)
    hook.attach(model)
    logged = model(x, None, mode='loss')
    hook.detach()
    measured = measure_diagonality(model.backbone, [x[:1], x[1:]])
    assert [*measured] == pytest.approx(
        [logged[key].item() for key in ('loss_diag', 'la_magnitude', 'la_entropy')], 1e-4
    )


def test_padding_is_left_out_as_in_a_training():
    torch.manual_seed(0)
    model = Model(LaViT('nano', drop_path_rate=0.0)).eval()
    for parameter in model.parameters():
        parameter.data += 0.2 * torch.randn_like(parameter)
    x, inner = torch.randn(1, 3, 256, 256), (130, 200)
    x[:, :, inner[0] :] = 0
    x[..., inner[1] :] = 0
    hook = DiagonalityLossHook(weight=1)
    hook.attach(model)
    sample = BaseDataElement(metainfo=dict(batch_input_shape=(256, 256), img_shape=inner))
    logged = model(x, [sample], mode='loss')['loss_diag'].item()
    hook.detach()
    assert measure_diagonality(model.backbone, [x], [inner]).loss == pytest.approx(logged, 1e-4)
    assert measure_diagonality(model.backbone, [x]).loss != pytest.approx(logged, 1e-2)


def test_checkpoints_of_an_earlier_training_in_the_folder(tmp_path):
    """A second, shorter training leaves the later checkpoints of the first."""
    model = Model(LaViT('nano', drop_path_rate=0.0)).eval()
    for i in (1, 2, 3):
        torch.save(dict(state_dict=model.state_dict(), meta=dict(iter=10 * i)), tmp_path / f'epoch_{i}.pth')
    run = Run(tmp_path, SimpleNamespace(model=model), None)
    assert list(each_checkpoint(Run(tmp_path / 'empty', run.trained, None))) == []
    assert list(each_checkpoint(run)) == [10, 20, 30]
    (tmp_path / 'last_checkpoint').write_text(str(tmp_path / 'epoch_2.pth'))
    assert list(each_checkpoint(run)) == [10, 20]


def test_without_less_attention():
    assert measure_diagonality(LaViT('nano', num_va_layers=(2, 2, 3, 2)).eval(), [torch.randn(1, 3, 64, 64)]) is None


def test_logged_without_the_weight():
    log = Log([dict(step=i, lr=1, loss_diag=0.2 * i, la_entropy=2.0) for i in (1, 2)])
    history = History('run', log, 0.1, [])
    assert history.logged('la_entropy') == [(1, 2.0), (2, 2.0)]
    assert all(math.isclose(value, 2 * step) for step, value in history.logged('loss_diag'))
    assert history.logged('la_magnitude') == [] == history._replace(weight=None).logged('loss_diag')
