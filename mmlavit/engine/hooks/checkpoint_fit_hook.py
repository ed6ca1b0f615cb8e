"""Say what of a checkpoint does not fit."""

from __future__ import annotations

from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from mmlavit.utils.checkpoint import has_weights_only
from mmlavit.utils.weights import load_what_fits, require_whole


class CheckpointFormatHook(Hook):
    """Refuse to resume from a file of weights, and give weights alone the form that mmengine's hooks expect.

    Args:
        path (str): The file or address, for the message.
        begins (bool): Whether a training begins with it. It then starts from the averaged weights, and its own average
            begins anew: mmpretrain's ``EMAHook`` would go on with that of the earlier training, and its length.
    """

    priority = 'HIGHEST'  # before EMAHook, which looks for 'state_dict'

    def __init__(self, path: str, begins: bool = False) -> None:
        self.path = path
        self.begins = begins

    def after_load_checkpoint(self, runner, checkpoint: dict) -> None:
        """Look into it."""
        if self.begins:
            checkpoint.pop('ema_state_dict', None)  # the weights that were not averaged; those that were stay
        if 'state_dict' not in checkpoint:
            weights = dict(checkpoint)
            checkpoint.clear()
            checkpoint['state_dict'] = weights
        # mmengine cannot go on without the history of the log, which all its training checkpoints have.
        if runner._resume and 'message_hub' not in checkpoint:
            raise has_weights_only(self.path)


class CheckpointFitHook(Hook):
    """Refuse a checkpoint of another model, or say in one line what of it was not loaded.

    mmengine logs what does not fit, and tests or trains with what was in its place.

    Args:
        path (str): The file or address, for the messages.
        whole (bool): Whether all weights of the model have to be there, as for a test or to resume. Otherwise it is
            enough that some are.
    """

    priority = 'LOWEST'  # after EMAHook, which puts the averaged weights into place

    def __init__(self, path: str, whole: bool) -> None:
        self.path = path
        self.whole = whole

    def after_load_checkpoint(self, runner, checkpoint: dict) -> None:
        """Load the weights, before mmengine does."""
        model = runner.model
        if isinstance(model, DistributedDataParallel):
            model = model.module
        if not isinstance(model, nn.Module) or is_model_wrapper(model):
            return  # not built yet, or sharded
        load = require_whole if self.whole else load_what_fits
        load(model, checkpoint.get('state_dict', checkpoint), self.path)
