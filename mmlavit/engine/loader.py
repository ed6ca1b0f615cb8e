"""Training data that a resumed training can go on with: from the middle of an epoch, with the same augmentation."""

from __future__ import annotations

import inspect
import random
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.data import BatchSampler, DataLoader, Dataset

# What a seed is for. Two uses never draw from the same numbers.
_SAMPLE, _ITERATION = 1, 2


class ResumableLoader(DataLoader):
    """A data loader that can begin in the middle of an epoch, without loading what comes before.

    With a seed, the random numbers of each sample depend on its place in the training alone (seed, process, epoch,
    batch, place in the batch): not on the number of workers, nor on what was drawn before. On its place and not on its
    index, so that a sample that occurs twice in an epoch is augmented in two ways.

    Workers start when the first batch is asked for.

    Args:
        loader (DataLoader): One that mmengine has built; its dataset and options are used, itself no more.
        seed (int, optional): None leaves the random numbers of samples alone.
        rank (int): The number of this process.
    """

    def __init__(self, loader: DataLoader, seed: int | None = None, rank: int = 0) -> None:
        replaced = ('batch_size', 'shuffle', 'sampler', 'batch_sampler', 'drop_last')
        names = [name for name in inspect.signature(DataLoader).parameters if name not in replaced]
        batches = _Batches(loader.batch_sampler, None if seed is None else (_SAMPLE, seed, rank))
        super().__init__(**{name: getattr(loader, name) for name in names}, batch_sampler=batches)
        # What hooks such as mmpretrain's PreciseBNHook ask for; torch has it of loaders that make their own batches.
        for name in ('batch_size', 'drop_last'):
            object.__setattr__(self, name, getattr(loader, name))
        self.seed = seed
        self.rank = rank
        if seed is not None:
            # By this method torch asks a dataset for a batch. A wrapper around the dataset would hide it from hooks
            # that change its pipeline.
            self.dataset.__getitems__ = _SeededItems(self.dataset)

    def start(self, epoch: int, seen: int) -> None:
        """Say where the next iteration over this loader begins.

        Args:
            epoch (int): Number of the epoch.
            seen (int): Batches of it to leave out. If it has fewer, the rest is left out of the following ones.
        """
        self.batch_sampler.start(epoch, seen)

    def reseed(self, old: int, new: int) -> None:
        """Draw as a training with another seed does, from the next epoch that starts.

        Args:
            old (int): The seed until now; a sampler with a seed of its own keeps that.
            new (int): The other seed.
        """
        sampler = self.batch_sampler.sampler
        if getattr(sampler, 'seed', None) == old:
            sampler.seed = new
        if self.seed is not None:
            self.seed = new
            kind, _, rank = self.batch_sampler.seed
            self.batch_sampler.seed = kind, new, rank

    def __iter__(self) -> Iterator[Any]:
        """Yield batches."""
        # As a generator, which asks for the workers when it is first asked itself: the official mmengine asks for an
        # iterator before it knows where to begin.
        yield from super().__iter__()


class _Batches(BatchSampler):
    """The batches of another batch sampler from some place on, optionally with a place for each index.

    Attributes:
        number (int): Batches of the epoch that it has gone through, those that are left out among them.
    """

    def __init__(self, batches: BatchSampler, seed: tuple[int, ...] | None) -> None:
        self.batches = batches
        self.seed = seed
        # For mmengine, which looks for them here.
        self.sampler = batches.sampler
        self.batch_size = batches.batch_size
        self.drop_last = batches.drop_last
        self.start(0, 0)

    def start(self, epoch: int, seen: int) -> None:
        self.epoch, self.number, self.seen = epoch, 0, seen

    def __iter__(self) -> Iterator[list]:
        for batch in self.batches:
            number, self.number = self.number, self.number + 1
            if number < self.seen:
                continue
            if self.seed is None:
                yield batch
            else:
                yield [(index, (*self.seed, self.epoch, number, place)) for place, index in enumerate(batch)]

    def __len__(self) -> int:
        return len(self.batches)


class _SeededItems:
    """Gives the samples of a dataset for indices with places."""

    def __init__(self, dataset: Dataset) -> None:
        self.dataset = dataset

    def __call__(self, places: Sequence[tuple[int, tuple[int, ...]]]) -> Any:
        batches = getattr(type(self.dataset), '__getitems__', None)
        if batches is not None:  # the dataset gives whole batches
            _seed_cpu(places[0][1])
            return batches(self.dataset, [index for index, _ in places])
        samples = []
        for index, place in places:
            _seed_cpu(place)
            samples.append(self.dataset[index])
        return samples


def seed_iteration(seed: int, iteration: int, rank: int) -> None:
    """Make what this process draws depend on the iteration alone, not on what was drawn before.

    Args:
        seed (int): Seed of the training.
        iteration (int): Number of the iteration in the whole training.
        rank (int): Number of this process, so that each drops and mixes in its own way.
    """
    torch.manual_seed(_seed_cpu((_ITERATION, seed, iteration, rank)))  # on all devices


def _seed_cpu(place: Sequence[int]) -> int:
    """Seed Python, NumPy and torch on the CPU by a few numbers that are not negative; give torch's seed.

    ``torch.manual_seed`` takes 0.1 ms to look for other devices, which is too long for each sample.
    """
    first, second, high, low = np.random.SeedSequence(place).generate_state(4).tolist()
    random.seed(first)
    np.random.seed(second)
    seed = high << 32 | low
    torch.default_generator.manual_seed(seed)
    return seed
