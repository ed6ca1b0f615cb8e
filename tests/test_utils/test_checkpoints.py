"""Checkpoint files are looked for before anything is built."""

import pytest
from mmengine.config import Config

from mmlavit.errors import UserError
from mmlavit.utils.checkpoints import require_checkpoint, require_checkpoints


def test_missing_file(tmp_path):
    (tmp_path / 'a.pth').touch()
    require_checkpoint(str(tmp_path / 'a.pth'))
    require_checkpoint('https://example.org/a.pth')
    require_checkpoint('torchvision://resnet50')
    with pytest.raises(UserError, match='checkpoint nope.pth does not exist'):
        require_checkpoint('nope.pth')


def test_checkpoints_of_a_config():
    init = dict(type='Pretrained', checkpoint='backbone.pth', prefix='backbone.')
    cfg = Config(dict(model=dict(backbone=dict(init_cfg=[dict(type='Normal'), init])), load_from=None))
    with pytest.raises(UserError, match='init_cfg.checkpoint backbone.pth'):
        require_checkpoints(cfg)
    cfg.model.backbone.init_cfg[1].checkpoint = None
    require_checkpoints(cfg)
    cfg.load_from = 'whole.pth'
    with pytest.raises(UserError, match='checkpoint whole.pth'):
        require_checkpoints(cfg)
