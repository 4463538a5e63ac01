# Copyright (c) the brats_mri_panet_segmentation authors
# SPDX-License-Identifier: Apache-2.0
"""Epochs that mix cases of several sources, such as patients and phantoms."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from scripts.errors import InputError
from torch.utils.data import Sampler


class MixedSampler(Sampler[int]):
    """A sampler that draws, in each epoch, a fixed number of cases of each source, in random order.

    No case is drawn twice in an epoch. The draw depends on the seed and the epoch alone, so that a resumed training
    goes on as if it had not been stopped.

    Args:
        sizes: numbers of cases of the sources, which follow each other in the dataset.
        counts: numbers of cases to draw of each source. None stands for all cases of the source.
        num_replicas, rank: number of processes and number of this process, as in torch's ``DistributedSampler``. Each
            process draws the same number of cases, so the last few may be left out.
        seed: seed of the draw.

    Raises:
        InputError: a source has fewer cases than an epoch needs.

    Example:
        >>> sampler = MixedSampler(sizes=[2, 100], counts=[None, 3], seed=1)
        >>> epoch = list(sampler)
        >>> len(epoch), sorted(index for index in epoch if index < 2)
        (5, [0, 1])
    """

    def __init__(
        self, sizes: Sequence[int], counts: Sequence[int | None], num_replicas: int = 1, rank: int = 0, seed: int = 0
    ) -> None:
        self.sizes = list(sizes)
        self.counts = [size if count is None else count for size, count in zip(sizes, counts, strict=True)]
        self.num_replicas = num_replicas
        self.rank = rank
        self.seed = seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Draw for this epoch from now on."""
        self.epoch = epoch

    def __len__(self) -> int:
        """Return the number of cases that this process draws in an epoch."""
        return sum(self.counts) // self.num_replicas

    def __iter__(self) -> Iterator[int]:
        """Return the cases of the epoch, as positions in the dataset."""
        for size, count in zip(self.sizes, self.counts, strict=True):
            if count > size:
                raise InputError(f"An epoch needs {count} cases of a source that has {size}; add cases, or take fewer.")
        random = np.random.default_rng([self.seed, self.epoch])
        starts = np.cumsum([0, *self.sizes[:-1]])
        drawn = [
            start + random.permutation(size)[:count]
            for start, size, count in zip(starts, self.sizes, self.counts, strict=True)
        ]
        order = random.permutation(np.concatenate(drawn))
        return iter(order[self.rank :: self.num_replicas][: len(self)].tolist())
