"""Transforms of less attention that are decayed, or learn faster than their layers, by an oversight in a config."""

from __future__ import annotations

from mmengine.hooks import Hook

from mmlavit.models.lavit import LessAttention
from mmlavit.models.plain_vit import PlainLessAttention

from ..plain_model import unwrap


class RatesHook(Hook):
    """Say so where weight decay pulls the transforms to the identity, or ``lr_mult`` of a backbone leaves them out."""

    def before_train(self, runner) -> None:
        """Compare what the optimizer does to the transforms with what it does to the values of their layers."""
        model = unwrap(runner.model)
        optimizer = getattr(runner.optim_wrapper, 'optimizer', None)  # there may be several
        groups = {id(p): group for group in getattr(optimizer, 'param_groups', ()) for p in group['params']}
        decayed, rates = False, set()
        for layer in model.modules():
            if not isinstance(layer, (LessAttention, PlainLessAttention)) or not hasattr(layer, 'delta_psi'):
                continue
            values = groups.get(id(getattr(layer.v, 'weight', None)))  # none of an adapter's
            for transform in (groups.get(id(layer.delta_psi)), groups.get(id(layer.delta_theta))):
                if values is None or transform is None:  # frozen, or in pieces
                    continue
                decayed |= transform.get('weight_decay', 0) > 0
                both = tuple(group.get('initial_lr', group['lr']) for group in (transform, values))
                rates |= {both} if both[0] > both[1] else set()
        keys = 'paramwise_cfg.custom_keys (docs/own_project.md of mmlavit, fine-tune from weights)'
        if decayed:
            runner.logger.warning(
                'Weight decay pulls the transforms of less attention to the identity: set decay_mult=0.0 for '
                f'.delta_psi and .delta_theta in {keys}'
            )
        for fast, slow in sorted(rates):
            runner.logger.warning(
                f'The transforms of less attention learn at a rate of {fast:g}, their layers at {slow:g}: repeat the '
                f"layers' lr_mult for .delta_psi and .delta_theta in {keys}"
            )
