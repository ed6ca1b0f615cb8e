"""Training checkpoints of mmengine are read by torch's safe loading, and by nothing less safe."""

import pickle

import numpy as np
import pytest
import torch
from mmengine.logging import HistoryBuffer, MessageHub

from mmlavit.utils.checkpoint import allow_mmengine_checkpoints

pytestmark = pytest.mark.skipif(
    tuple(int(number) for number in torch.__version__.split('.')[:2]) < (2, 6), reason='loads everything by default'
)


@pytest.fixture(autouse=True)
def allowed():
    allow_mmengine_checkpoints()


def save_and_load(content, tmp_path):
    torch.save(content, tmp_path / 'checkpoint.pth')
    return torch.load(tmp_path / 'checkpoint.pth', weights_only=True)


def test_message_hub(tmp_path):
    hub = MessageHub.get_instance('test_checkpoint')
    hub.update_scalar('train/loss', 2.0)
    hub.update_scalar('train/loss', 1.0)
    hub.update_info('best_score', np.float64(0.5))
    loaded = save_and_load(hub.state_dict(), tmp_path)
    history = loaded['log_scalars']['train/loss']
    assert isinstance(history, HistoryBuffer)
    assert history.mean() == 1.5
    assert history.statistics('min') == 1.0
    assert loaded['runtime_info']['best_score'] == 0.5


@pytest.mark.parametrize('kind', [np.bool_, np.int32, np.int64, np.float32, np.float64])
def test_numpy_numbers(kind, tmp_path):
    loaded = save_and_load({'number': kind(1), 'array': np.ones(2, kind)}, tmp_path)
    assert loaded['number'] == 1
    assert loaded['array'].tolist() == [1, 1]
    assert loaded['array'].dtype == kind


def test_numpy_of_another_generation(tmp_path):
    """NumPy 1 and 2 write the same objects under different module names."""
    here = b'numpy._core.' if hasattr(np, '_core') else b'numpy.core.'
    other = b'numpy.core.' if hasattr(np, '_core') else b'numpy._core.'

    class Renaming:
        """A pickle module whose pickles name the modules of the other generation."""

        @staticmethod
        class Pickler:
            def __init__(self, file, protocol):
                self.file, self.protocol = file, protocol

            def dump(self, content):
                self.file.write(pickle.dumps(content, self.protocol).replace(here, other))

    torch.save({'number': np.float64(1)}, tmp_path / 'checkpoint.pth', pickle_module=Renaming)
    assert other in (tmp_path / 'checkpoint.pth').read_bytes()
    assert torch.load(tmp_path / 'checkpoint.pth', weights_only=True)['number'] == 1


class Access:
    """Asks for an attribute when it is loaded."""

    def __init__(self, owner, name):
        self.arguments = (owner, name)

    def __reduce__(self):
        return getattr, self.arguments


@pytest.mark.parametrize(
    ('owner', 'name'), [(HistoryBuffer, '__init__'), (np.ndarray, 'tofile'), (torch.Tensor, 'mean')]
)
def test_attributes_of_other_objects_stay_out_of_reach(owner, name, tmp_path):
    with pytest.raises(Exception, match='may not access'):
        save_and_load(Access(owner, name), tmp_path)
