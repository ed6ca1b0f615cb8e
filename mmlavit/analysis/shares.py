"""What each mechanism of a model costs: its share of the parameters, of the multiply-adds and of the measured time."""

from __future__ import annotations

import math
import statistics
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook

from mmlavit.models.lavit import AttentionResidual, LaViT, LessAttention, VanillaAttention
from mmlavit.models.layers import FeedForward, PatchEmbed, SpatialReduction

from .breakdown import part_of
from .complexity import model_complexity
from .figures import save_figure
from .flops import Operation
from .maps import LESS, VANILLA
from .trained import Picture, Trained

TRANSFORMS, BACKBONE, REST = 'transforms (Psi, Theta)', 'norms and the rest of LaViT', 'before, between and after'

# What runs in modules of these classes; the innermost one counts.
_MODULES = {
    PatchEmbed: 'patch embedding',
    SpatialReduction: 'reduction of keys and values',
    VanillaAttention: 'vanilla attention',
    LessAttention: 'less attention',
    AttentionResidual: 'attention residual',
    FeedForward: 'feed-forward',
    LaViT: BACKBONE,
}
MECHANISMS = {
    'patch embedding': '#9aa5b1',
    'reduction of keys and values': '#a9c8ea',
    'vanilla attention': VANILLA,
    'less attention': LESS,
    TRANSFORMS: '#f0b878',
    'attention residual': '#2d8659',
    'feed-forward': '#5b6770',
    BACKBONE: '#d5dadf',
}
"""Mechanisms of a LaViT with their colours, in the order of pictures and tables."""
_DARK = {MECHANISMS['feed-forward'], VANILLA, LESS, MECHANISMS['attention residual']}


class Share(NamedTuple):
    """What one mechanism, or one part of a model outside of its LaViT, costs.

    Args:
        name (str): The mechanism or part.
        params (int): Parameters.
        macs (int): Multiply-adds.
        seconds (float): Median of the time that it took.
    """

    name: str
    params: int
    macs: int
    seconds: float


def measure_shares(trained: Trained, picture: Picture, repeats: int = 7) -> list[Share]:
    """Measure what a prediction on one image costs, and where.

    Time is that of ``test_step``, from the image as the pipeline gives it to the result. Multiply-adds are counted at
    the size that the model gets it in, or for all windows of a segmentor that is tested in windows.

    Args:
        trained (Trained): The model.
        picture (Picture): The image.
        repeats (int): How often it is run, after one run that is not counted.

    Returns:
        list[Share]: Mechanisms of a LaViT in the order of :data:`MECHANISMS`, then other parts.

    Raises:
        UserError: If the multiply-adds of the model cannot be counted.
    """
    owners = _owners(trained.model)
    params, seconds = Counter(), _measure_time(trained.model, owners, picture.data, repeats)
    for path, parameter in trained.model.named_parameters():
        module, _, name = path.rpartition('.')
        # Those of a plain transformer are not told apart in work and time, so they are not here.
        transform = name in ('delta_psi', 'delta_theta') and owners[module] in MECHANISMS
        params[TRANSFORMS if transform else owners[module]] += parameter.numel()
    shape, times = _passes(trained.model, picture.whole)
    complexity, _ = model_complexity(trained.cfg, shape, _find_mechanism)
    macs = Counter()
    for (path, role), count in complexity.cells.items():
        macs[TRANSFORMS if role == TRANSFORMS else owners[path]] += times * count
    names = [*MECHANISMS, *(name for name in [*params, *macs, *seconds] if name not in MECHANISMS)]
    shares = [Share(name, params[name], macs[name], seconds[name]) for name in dict.fromkeys(names)]
    return [share for share in shares if any(share[1:])]


def _passes(model: nn.Module, shape: tuple[int, int]) -> tuple[tuple[int, int], int]:
    """Size of what runs through a model for one image, and how often: once, or the windows of mmseg's 'slide'."""
    test_cfg = getattr(model, 'test_cfg', None) or {}
    if test_cfg.get('mode') != 'slide':
        return shape, 1
    sides = list(zip(shape, test_cfg['crop_size'], test_cfg['stride'], strict=True))
    counts = [max(side - window + stride - 1, 0) // stride + 1 for side, window, stride in sides]
    return tuple(min(side, window) for side, window, _ in sides), math.prod(counts)


def _owners(model: nn.Module) -> dict[str, str]:
    """Mechanism or part of each module, by its path."""
    owners = {}
    for path, module in model.named_modules():
        own = next((name for cls, name in _MODULES.items() if isinstance(module, cls)), None)
        parent = owners.get(path.rpartition('.')[0])
        inside = parent if parent in MECHANISMS else part_of(path) if path else REST
        owners[path] = own or inside
    return owners


def _find_mechanism(operation: Operation) -> Mapping[str, int]:
    """Tell the transforms apart from the rest of a less-attention layer, by the function that runs."""
    if operation.modules and isinstance(operation.modules[-1], LessAttention):
        code = LessAttention.transform.__code__
        if any(frame.f_code is code for frame, _ in traceback.walk_stack(None)):
            return {TRANSFORMS: operation.macs}
    return {}


class _Stopwatch:
    """Adds up time by what is entered and left; only the innermost runs.

    Args:
        device (torch.device): Where the work is done; a GPU is waited for.
    """

    def __init__(self, device: torch.device) -> None:
        self.wait = partial(torch.cuda.synchronize, device) if device.type == 'cuda' else lambda: None
        self.seconds: Counter[str] = Counter()
        self.stack: list[str] = [REST]
        self.last = 0.0

    def tick(self) -> None:
        """Credit the time since the last tick to what is running."""
        self.wait()
        now = time.perf_counter()
        self.seconds[self.stack[-1]] += now - self.last
        self.last = now

    def enter(self, name: str) -> None:
        """Begin something inside of what is running."""
        self.tick()
        self.stack.append(name)

    def leave(self) -> None:
        """End what was begun last."""
        self.tick()
        self.stack.pop()

    def time(self, run: Callable[[], object]) -> dict[str, float]:
        """Run something; give the seconds of each name."""
        self.seconds.clear()
        self.wait()
        self.last = time.perf_counter()
        run()
        self.tick()
        return dict(self.seconds)


@contextmanager
def _watch(model: nn.Module, owners: Mapping[str, str], watch: _Stopwatch) -> Iterator[None]:
    """Have modules and transforms of a model tell a stopwatch when they run."""
    names = {module: owners[path] for path, module in model.named_modules()}

    def enter(module: nn.Module, args: tuple) -> None:
        watch.enter(names.get(module, watch.stack[-1]))

    def timed(transform: Callable) -> Callable:
        def run(*args: Any) -> Any:
            watch.enter(TRANSFORMS)
            try:
                return transform(*args)
            finally:
                watch.leave()

        return run

    layers = [module for module in model.modules() if isinstance(module, LessAttention)]
    # For all modules at once: hooks of its own would tell a LaViT that somebody watches, and it would not fold.
    handles = [
        register_module_forward_pre_hook(enter),
        register_module_forward_hook(lambda module, args, out: watch.leave(), always_call=True),
    ]
    try:
        for layer in layers:
            layer.transform = timed(layer.transform)  # in front of the method of the class
        yield
    finally:
        for layer in layers:
            vars(layer).pop('transform', None)
        for handle in handles:
            handle.remove()


@torch.no_grad()
def _measure_time(model: nn.Module, owners: Mapping[str, str], data: Mapping, repeats: int) -> Counter[str]:
    """Median seconds of each name, scaled so that they add up to the median of a whole run."""
    watch = _Stopwatch(next(model.parameters()).device)
    inputs = [deepcopy(data) for _ in range(repeats + 1)]  # a data preprocessor may write into its samples
    with _watch(model, owners, watch):
        runs = [watch.time(lambda batch=batch: model.test_step(batch)) for batch in inputs][1:]
    medians = {name: statistics.median(run.get(name, 0) for run in runs) for name in set().union(*runs)}
    scale = statistics.median(sum(run.values()) for run in runs) / sum(medians.values())
    return Counter({name: seconds * scale for name, seconds in medians.items()})


def plot_shares(shares: Sequence[Share], conditions: str, path: Path) -> None:
    """Draw shares as three bars: those of the mechanisms of a LaViT, or of all parts of another model.

    Args:
        shares (Sequence[Share]): Of :func:`measure_shares`.
        conditions (str): Size, device and threads.
        path (Path): Picture to write; its folder is made.
    """
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    shown = [share for share in shares if share.name in MECHANISMS] or shares
    colours = {share.name: MECHANISMS.get(share.name, f'C{i}') for i, share in enumerate(shown)}
    figure = Figure(figsize=(9, 3.2), layout='constrained')
    axes = figure.subplots()
    units = (('parameters', 1e6, '{:.2f} M'), ('multiply-adds', 1e9, '{:.2f} G'), ('time', 1e-3, '{:.0f} ms'))
    for row, (name, unit, form) in enumerate(units, 1):
        part, whole = (sum(share[row] for share in some) for some in (shown, shares))
        left = 0.0
        for share in shown:
            width = share[row] / part if part else 0
            axes.barh(row, width, left=left, color=colours[share.name], edgecolor='white')
            if width > 0.035:
                ink = 'white' if colours[share.name] in _DARK else 'black'
                axes.text(left + width / 2, row, f'{width:.0%}', ha='center', va='center', fontsize=8, color=ink)
            left += width
        share_of_all = '' if shown is shares or not whole else f'\n{part / whole:.0%} of the model'
        axes.text(-0.01, row, f'{name}: {form.format(part / unit)}{share_of_all}', ha='right', va='center', fontsize=9)
    axes.invert_yaxis()
    axes.set(xlim=(0, 1), xticks=[], yticks=[])
    axes.spines[:].set_visible(False)
    axes.set_title(conditions, fontsize=9, loc='left')
    marks = [Patch(color=colour, label=name) for name, colour in colours.items()]
    figure.legend(handles=marks, loc='outside lower center', ncols=4, fontsize=8, frameon=False)
    save_figure(figure, path)
