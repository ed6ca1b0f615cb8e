"""Multiply-adds of a model: what every operator of one run costs, by the module and the role it runs in."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry, sdpa_flop_count

Roles = Callable[[FrameType, int], Mapping[str, int]]
"""Given the frame that ran an operator and its multiply-adds, shares them among roles; nothing: not known there."""

aten = torch.ops.aten

# Products of a matrix and a vector, which torch's own counter leaves out: the operand that has one number for each.
_VECTOR_PRODUCTS = {aten.dot: 0, aten.vdot: 0, aten.mv: 0, aten.addmv: 1}

# Operators that are no multiply-adds, but not free: counted in numbers that they write. Names without the underscore
# of their in-place forms.
_ELEMENTWISE = {
    name: kind
    for kind, names in {
        'softmax': '_softmax _log_softmax _safe_softmax',
        'norms': 'native_layer_norm native_group_norm native_batch_norm _native_batch_norm_legit '
        '_native_batch_norm_legit_no_training cudnn_batch_norm _fused_rms_norm',
        'activations': 'relu relu6 gelu silu mish elu celu selu leaky_relu hardtanh hardswish hardsigmoid sigmoid '
        'tanh softplus glu _prelu_kernel',
        'resizing and pooling': 'upsample_nearest1d upsample_nearest2d _upsample_nearest_exact2d upsample_bilinear2d '
        'upsample_bicubic2d grid_sampler_2d avg_pool2d _adaptive_avg_pool2d max_pool2d_with_indices '
        'adaptive_max_pool2d',
    }.items()
    for name in names.split()
}


@dataclass(frozen=True)
class Complexity:
    """Size and cost of a model for one input.

    Args:
        params: Parameters.
        cells: Multiply-adds of matrix products, convolutions and attention products, by the path of the innermost
            module and the role that they were counted for.
        elements: Numbers written by operators that are none of these, by path and kind: 'softmax', 'norms',
            'activations', 'resizing and pooling'.
    """

    params: int
    cells: Mapping[tuple[str, str], int]
    elements: Mapping[tuple[str, str], int]

    @property
    def macs(self) -> int:
        """Multiply-adds."""
        return sum(self.cells.values())


class _Meter(TorchDispatchMode):
    """Add up what operators cost while it is on.

    Args:
        model: Model whose modules are told apart.
        roles: Finds the roles of an operator, before they are taken from the operator alone.
    """

    def __init__(self, model: nn.Module, roles: Roles | None) -> None:
        super().__init__()
        self.roles = roles
        self.path = ['']
        self.cells, self.elements = Counter(), Counter()
        # Views share the storage, so that the transposed weight of a linear is known as one.
        self.weights = {_storage(parameter) for parameter in model.parameters()}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        """Run an operator and add what it costs."""
        kwargs = kwargs or {}
        name, path = func._overloadpacket.__name__, self.path[-1]
        kind = _ELEMENTWISE.get(name) or _ELEMENTWISE.get(name.removesuffix('_'))
        if func._overloadpacket not in flop_registry and kind is None:
            # In inference mode composite operators such as matmul arrive whole.
            with self:
                out = func.decompose(*args, **kwargs)
            if out is not NotImplemented:
                return out
        out = func(*args, **kwargs)
        if kind is not None:
            self.elements[path, kind] += (out if isinstance(out, Tensor) else out[0]).numel()
            return out
        macs = _multiply_adds(func._overloadpacket, args, kwargs, out)
        if macs:
            shares = self.roles(sys._getframe(1), macs) if self.roles else {}
            for role, share in (shares or {self._role_of_operands(name, args): macs}).items():
                self.cells[path, role] += share
        if name.startswith('_scaled_dot_product'):
            query, key = args[:2]
            self.elements[path, 'softmax'] += query.shape[:-1].numel() * key.shape[-2]
        return out

    def _role_of_operands(self, name: str, args: tuple) -> str:
        if 'convolution' in name:
            return 'convolutions'
        operands = [arg for arg in args if isinstance(arg, Tensor)][-2:]  # the bias of addmm comes first
        return 'linear layers' if self.weights & {*map(_storage, operands)} else 'products of activations'

    @contextmanager
    def follow(self, model: nn.Module) -> Iterator[None]:
        """Keep track of the module that runs."""
        paths = {module: path for path, module in model.named_modules()}

        def enter(module: nn.Module, args: tuple) -> None:
            self.path.append(paths.get(module, self.path[-1]))

        def leave(module: nn.Module, args: tuple, out: object) -> None:
            self.path.pop()

        # For all modules at once: hooks of its own would tell a LaViT that somebody watches, and it would not fold.
        handles = [register_module_forward_pre_hook(enter), register_module_forward_hook(leave)]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


def _multiply_adds(packet, args: tuple, kwargs: dict, out: object) -> int:
    """Multiply-adds of one call of an operator."""
    if packet.__name__.startswith('_scaled_dot_product'):
        # Of all devices' kernels torch's own counter knows only some.
        return sdpa_flop_count(*(tensor.shape for tensor in args[:3])) // 2
    if packet in _VECTOR_PRODUCTS:
        return args[_VECTOR_PRODUCTS[packet]].numel()
    formula = flop_registry.get(packet)
    return formula(*args, **kwargs, out_val=out) // 2 if formula else 0


def count_complexity(model: nn.Module, run: Callable[[], object], roles: Roles | None = None) -> Complexity:
    """Count what one call costs. On the device 'meta' nothing is computed and no memory is taken.

    Args:
        model: Model.
        run: Runs the model once, without arguments; gradients are off meanwhile.
        roles: Finds the roles of operators. Where it knows none, the role is 'convolutions', 'linear layers' (of a
            weight of the model) or 'products of activations'.

    Returns:
        Parameters of the model, and what the call cost.
    """
    meter = _Meter(model, roles)
    # The fast path of nn.MultiheadAttention is one operator that no counter sees into.
    fast_path = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with torch.no_grad(), meter.follow(model), meter:
            run()
    finally:
        torch.backends.mha.set_fastpath_enabled(fast_path)
    return Complexity(
        params=sum(parameter.numel() for parameter in model.parameters()),
        cells=dict(meter.cells),
        elements=dict(meter.elements),
    )
