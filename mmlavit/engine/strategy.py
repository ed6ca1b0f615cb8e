"""Sharded training (FSDP, DeepSpeed) of models with a LaViT, through mmengine's strategies.

Configs name both by their full path, so nothing else imports this module.
"""

from __future__ import annotations

import logging

import torch
from mmengine._strategy import DeepSpeedStrategy, FSDPStrategy
from mmengine.device import get_device
from mmengine.logging import print_log
from torch import nn
from torch.distributed.fsdp import FullyShardedDataParallel

from mmlavit.errors import UserError, first_few
from mmlavit.models.lavit import Block
from mmlavit.utils.checkpoint import load_from_local


def shard_blocks(module: nn.Module, recurse: bool, nonwrapped_numel: int) -> bool:
    """Make each block of a LaViT a unit of its own; everything else is one unit with the whole model.

    Nothing smaller can be a unit: a block reads weights of its linears without calling them, and the parameters of a
    unit are there only while the unit itself is called. Nor can a head: its ``loss`` is called, not its ``forward``.

    Args:
        module (nn.Module): The module in question.
        recurse (bool): Whether the question is about its children.
        nonwrapped_numel (int): Parameters in it; not looked at.

    Returns:
        bool: Whether to look into the module, or whether it becomes a unit.
    """
    return recurse or isinstance(module, Block)


class ResumableFSDPStrategy(FSDPStrategy):
    """mmengine's strategy, whose checkpoints can also be resumed, and which runs without a GPU as well.

    Takes the arguments of ``FSDPStrategy``.
    """

    def load_model_state_dict(self, state_dict: dict, *, strict: bool = False, revise_keys: list | None = None) -> None:
        """Load weights, and say what of them does not fit, of which mmengine's says nothing.

        Args:
            state_dict (dict): Weights by name.
            strict (bool): Whether all have to fit.
            revise_keys (list, optional): Not used: ``module.`` is cut off.

        Raises:
            UserError: If nothing fits.
        """
        state_dict = {name.removeprefix('module.'): value for name, value in state_dict.items()}
        own, buffers = (
            {name.replace('_fsdp_wrapped_module.', '') for name, _ in named}
            for named in (self.model.named_parameters(), self.model.named_buffers())
        )
        if not any('_flat_param' in name for name in own):  # else use_orig_params=False, which hides the names
            missing, unknown = sorted(own - {*state_dict}), sorted({*state_dict} - own - buffers)
            if len(missing) == len(own):
                raise UserError(
                    f'no weight of the checkpoint fits the model: it has {first_few(unknown)}, the model needs '
                    f'{first_few(missing)}'
                )
            for what, names in (('are not in the checkpoint', missing), ('are only in the checkpoint', unknown)):
                if names:
                    print_log(f'{len(names)} tensors {what} ({first_few(names)})', 'current', logging.WARNING)
        self.model.load_state_dict(state_dict, strict=strict)

    def optim_state_dict(self) -> dict:
        """Give the optimizer's state, and what else its wrapper has: base learning rate, loss scale."""
        return {**super().optim_state_dict(), **_extras(self.optim_wrapper.state_dict())}

    def load_optim_state_dict(self, state_dict: dict) -> None:
        """Load the optimizer's state.

        Args:
            state_dict (dict): As :meth:`optim_state_dict` gives it.
        """
        # torch 2.1 changed the order of these arguments; mmengine still passes them in the old one.
        sharded = FullyShardedDataParallel.optim_state_dict_to_load(
            model=self.model, optim=self.optim_wrapper.optimizer, optim_state_dict=state_dict
        )
        self.optim_wrapper.load_state_dict({**sharded, **_extras(state_dict)})

    def _wrap_model(self, model: nn.Module) -> nn.Module:
        if get_device() == 'cpu':
            self.model_wrapper = dict(self.model_wrapper or {}, device_id='cpu')
            # What is on the CPU is not copied there, so torch would free it twice.
            for config in (self.state_dict_config, self.optim_state_dict_config):
                config.offload_to_cpu = False
        return super()._wrap_model(model)


class SafeDeepSpeedStrategy(DeepSpeedStrategy):
    """mmengine's strategy, whose checkpoints are read without running code that may be in them, as all others are.

    Takes the arguments of ``DeepSpeedStrategy``.
    """

    def _wrap_model(self, model: nn.Module) -> nn.Module:
        from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler, LossScaler
        from deepspeed.runtime.zero.config import ZeroStageEnum
        from deepspeed.utils.tensor_fragment import fragment_address

        wrapper = super()._wrap_model(model)
        if wrapper.model.load_universal_checkpoint():
            raise UserError("DeepSpeed's universal checkpoints can run code; resume from those of a training instead")
        torch.serialization.add_safe_globals([DynamicLossScaler, LossScaler, ZeroStageEnum, fragment_address])
        wrapper.model.checkpoint_engine.load = load_from_local
        return wrapper


def _extras(state_dict: dict) -> dict:
    """Give what an optimizer wrapper adds to the state of its optimizer; torch's FSDP drops it."""
    return {key: value for key, value in state_dict.items() if key not in ('state', 'param_groups')}
