# Copyright (c) the brats_mri_panet_segmentation authors
# SPDX-License-Identifier: Apache-2.0
"""Random numbers that do not depend on what was done before.

All random numbers of an epoch follow from the seed, the epoch, the rank and the case alone. So a training that is
stopped and resumed after any epoch goes on as if it had not been stopped, with any number of loader workers.
"""

import hashlib
import random
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from ignite.engine import Events
from monai.engines.workflow import Workflow
from monai.transforms import Compose
from scripts.data.cases import image_name, resolve_image
from torch.utils.data import DistributedSampler


def derive_seed(*parts: int | str) -> int:
    """A seed below 2**32 that depends on all ``parts`` and their order.

    Example:
        >>> derive_seed(0, 5, "BraTS20_Training_001")  # seed, epoch and case
        2580991720
        >>> derive_seed(1, 2) == derive_seed(2, 1)
        False
    """
    hashed = hashlib.blake2b("/".join(map(str, parts)).encode(), digest_size=4)
    return int.from_bytes(hashed.digest(), "big")


def choose_algorithms(
    deterministic: bool = True, network: torch.nn.Module | None = None, channels_last: bool = False
) -> None:
    """Make cuDNN use its deterministic algorithms, or let it time its algorithms and use the fastest.

    The results of the fastest algorithms may differ in the last digits from run to run.

    Args:
        deterministic: use the deterministic algorithms.
        network: a three-dimensional network. Call this function before the network is replicated and before an
            optimizer is made.
        channels_last: store the channels of each voxel beside each other, as tensor cores need them. If false, torch's
            layout stays.
    """
    torch.backends.cudnn.deterministic = deterministic
    torch.backends.cudnn.benchmark = not deterministic
    if network is not None and channels_last:
        network.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]


class SeededCompose(Compose):
    """MONAI's ``Compose``, seeded for each case by the training's seed, the epoch, the rank and the case's name.

    Args:
        transforms: as in ``Compose``.
        seed: seed of the training.
        rank: number of the process.

    Example:
        >>> from monai.transforms import RandGaussianNoised
        >>> transform = SeededCompose([RandGaussianNoised("image", prob=1.0)], seed=1)
        >>> first, again = (transform({"case": "a", "image": torch.zeros(1, 2)})["image"] for _ in range(2))
        >>> transform.epoch = 2
        >>> later = transform({"case": "a", "image": torch.zeros(1, 2)})["image"]
        >>> torch.equal(first, again), torch.equal(first, later)
        (True, False)
    """

    def __init__(self, transforms: Any = None, seed: int = 0, rank: int = 0) -> None:
        super().__init__(transforms)
        self.seed = seed
        self.rank = rank
        # Shared memory lets loader workers that outlive an epoch see the new number.
        self._epoch = torch.zeros(1, dtype=torch.int64).share_memory_()

    @property
    def epoch(self) -> int:
        """Number of the epoch, which ``EpochSeeds`` sets."""
        return int(self._epoch)

    @epoch.setter
    def epoch(self, epoch: int) -> None:
        self._epoch.fill_(epoch)

    def __call__(
        self, input_: Any, start: int = 0, end: int | None = None, threading: bool = False, lazy: bool | None = None
    ) -> Any:
        """Transform one case."""
        # MONAI fills a cache with threading, and this involves no random transform.
        if not threading and isinstance(input_, Mapping):
            # An item of another program has no name, so that of its image's file is taken.
            case = input_.get("case") or image_name(resolve_image(input_["image"]))
            self.set_random_state(derive_seed(self.seed, self.epoch, self.rank, str(case)))
        return super().__call__(input_, start=start, end=end, threading=threading, lazy=lazy)


class EpochSeeds:
    """A handler that, before each epoch, gives its number to sampler and transforms, and seeds everything else.

    Attach it on every rank, before all handlers that draw random numbers.

    Args:
        seed: seed of the training.
        rank: number of the process.
        sampler: sampler that shuffles by seed and epoch.
        transform: transforms that draw their random numbers by the epoch.
    """

    def __init__(self, seed: int, rank: int, sampler: DistributedSampler, transform: SeededCompose) -> None:
        self.seed = seed
        self.rank = rank
        self.sampler = sampler
        self.transform = transform

    def attach(self, engine: Workflow) -> None:
        """Follow ``engine``, which makes a new iterator of its loader after the epoch's start."""
        engine.add_event_handler(Events.EPOCH_STARTED, self.epoch_started)

    def epoch_started(self, engine: Workflow) -> None:
        """Set this epoch's random state."""
        epoch = engine.state.epoch
        self.sampler.set_epoch(epoch)
        self.transform.epoch = epoch
        seed = derive_seed(self.seed, epoch, self.rank)
        random.seed(seed)
        np.random.seed(seed)  # noqa: NPY002 - third-party transforms draw from it
        torch.manual_seed(seed)
