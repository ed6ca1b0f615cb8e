"""Multiply-adds of a model: what every operator of one run costs, by the module and the role it runs in."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry, sdpa_flop_count

aten = torch.ops.aten

# Products of a matrix and a vector, which torch's own counter leaves out: the operand that has one number for each.
_VECTOR_PRODUCTS = {aten.dot: 0, aten.vdot: 0, aten.mv: 0, aten.addmv: 1}

# Operators without multiply-adds that are not free: counted in numbers that they write. Names without the underscore
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

ATTENTION = 'scaled_dot_product_attention'
WEIGHTED, PRODUCT = 'linear layers', 'products of activations'


class Operation(NamedTuple):
    """One call of an operator that multiplies and adds.

    Args:
        name (str): Name of the operator.
        kind (str): 'convolutions', 'linear layers' (an operand is a weight) or 'products of activations'.
        macs (int): Multiply-adds.
        args (tuple): Arguments of the operator; of fused attention, queries, keys and values.
        modules (Sequence[nn.Module]): Modules that run, the innermost last.
    """

    name: str
    kind: str
    macs: int
    args: tuple
    modules: Sequence[nn.Module]


Roles = Callable[[Operation], Mapping[str, int]]
"""Shares the multiply-adds of an operation among roles; nothing: its kind is its role."""


@dataclass(frozen=True)
class Complexity:
    """Size and cost of a model for one input.

    Args:
        params (int): Parameters.
        cells (Mapping): Multiply-adds of matrix products, convolutions and attention products, by the path of the
            innermost module and the role that they were counted for.
        elements (Mapping): Numbers written by operators that are none of these, by path and kind: 'softmax',
            'norms', 'activations', 'resizing and pooling'.
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
        model (nn.Module): Model whose modules are told apart.
        roles (Roles, optional): Finds the roles of an operation.
    """

    def __init__(self, model: nn.Module, roles: Roles | None) -> None:
        super().__init__()
        self.roles = roles
        self.path, self.modules = [''], [model]
        self.cells, self.elements = Counter(), Counter()
        # Views share the storage, so that the transposed weight of a linear is known as one.
        self.weights = {_storage(parameter) for parameter in model.parameters()}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        """Run an operator and add what it costs."""
        kwargs, packet = kwargs or {}, func._overloadpacket
        name = packet.__name__
        if name == ATTENTION:
            # As a whole: every device has other kernels for it.
            query, key, value = args[:3]
            # torch counts it for one leading dimension; some networks have windows beside the batch. Heads and images
            # may share keys and values.
            batch = torch.broadcast_shapes(*(x.shape[:-3] for x in (query, key, value))).numel()
            shapes = ((batch, query.shape[-3], *x.shape[-2:]) for x in (query, key, value))
            self.add(name, args, sdpa_flop_count(*shapes) // 2)
            self.elements[self.path[-1], 'softmax'] += batch * query.shape[-3:-1].numel() * key.shape[-2]
            return func(*args, **kwargs)
        kind = _ELEMENTWISE.get(name) or _ELEMENTWISE.get(name.removesuffix('_'))
        if packet not in flop_registry and kind is None:
            # Composite operators such as matmul.
            with self:
                out = func.decompose(*args, **kwargs)
            if out is not NotImplemented:
                return out
        out = func(*args, **kwargs)
        if kind is not None:
            self.elements[self.path[-1], kind] += (out if isinstance(out, Tensor) else out[0]).numel()
        elif packet in _VECTOR_PRODUCTS:
            self.add(name, args, args[_VECTOR_PRODUCTS[packet]].numel())
        elif packet in flop_registry:
            self.add(name, args, flop_registry[packet](*args, **kwargs, out_val=out) // 2)
        return out

    def add(self, name: str, args: tuple, macs: int) -> None:
        """Add the multiply-adds of an operator."""
        operands = [arg for arg in args if isinstance(arg, Tensor)][-2:]  # the bias of addmm comes first
        kind = WEIGHTED if self.weights & {*map(_storage, operands)} else PRODUCT
        kind = 'convolutions' if 'convolution' in name else kind
        operation = Operation(name, kind, macs, args, self.modules)
        for role, share in ((self.roles and self.roles(operation)) or {operation.kind: macs}).items():
            self.cells[self.path[-1], role] += share

    @contextmanager
    def follow(self, model: nn.Module) -> Iterator[None]:
        """Keep track of the module that runs."""
        paths = {module: path for path, module in model.named_modules()}

        def enter(module: nn.Module, args: tuple) -> None:
            self.path.append(paths.get(module, self.path[-1]))
            self.modules.append(module)

        def leave(module: nn.Module, args: tuple, out: object) -> None:
            self.path.pop()
            self.modules.pop()

        # For all modules at once: hooks of its own would tell a LaViT that somebody watches, and it would not fold.
        handles = [register_module_forward_pre_hook(enter), register_module_forward_hook(leave, always_call=True)]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


def count_complexity(model: nn.Module, run: Callable[[], object], roles: Roles | None = None) -> Complexity:
    """Count what one call costs. On the device 'meta' nothing is computed and no memory is taken.

    Args:
        model (nn.Module): Model.
        run (Callable): Runs the model once, without arguments; in inference mode.
        roles (Roles, optional): Finds the roles of operations; default: their kinds.

    Returns:
        Complexity: Parameters of the model, and what the call cost.
    """
    meter = _Meter(model, roles)
    # The fast path of nn.MultiheadAttention is one operator that no counter sees into.
    fast_path = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        # Without it, composite operators, among them attention, would be taken apart before the meter sees them.
        with torch.inference_mode(), meter.follow(model), meter:
            run()
    finally:
        torch.backends.mha.set_fastpath_enabled(fast_path)
    return Complexity(
        params=sum(parameter.numel() for parameter in model.parameters()),
        cells=dict(meter.cells),
        elements=dict(meter.elements),
    )
