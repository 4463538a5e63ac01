# Copyright (c) the brats_mri_panet_segmentation authors
# SPDX-License-Identifier: Apache-2.0
"""The learning-rate schedule of the PANet authors, which neither torch nor MONAI has as one scheduler."""

import math
from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

# First and last factor of the learning rate, as in the authors' program.
FLOOR = 1e-3


class WarmupFlatCosineLR(LambdaLR):
    """A schedule of three stretches: a linear warm-up, a flat stretch, and half a cosine down.

    The scheduler is stepped once in each iteration. The rate starts and ends at a thousandth of the optimizer's
    learning rate. The cosine takes the epochs after the first two stretches. If there are none, the rate stays flat to
    the end.

    Args:
        optimizer: the optimizer. Its learning rate is the rate of the flat stretch.
        max_epochs: length of the training.
        iterations_per_epoch: steps in an epoch.
        warmup_epochs, flat_epochs: lengths of the first two stretches.

    Example:
        >>> import torch
        >>> optimizer = torch.optim.SGD([torch.zeros(1)], lr=0.1)
        >>> schedule = WarmupFlatCosineLR(optimizer, max_epochs=100, iterations_per_epoch=10)
        >>> [round(schedule.factor(10 * epoch), 3) for epoch in (0, 5, 40, 70, 100)]
        [0.001, 1.0, 1.0, 0.5, 0.001]
    """

    def __init__(
        self,
        optimizer: Optimizer,
        max_epochs: int,
        iterations_per_epoch: int,
        warmup_epochs: float = 5,
        flat_epochs: float = 35,
    ) -> None:
        self.max_epochs = max_epochs
        self.iterations_per_epoch = max(iterations_per_epoch, 1)
        self.warmup_epochs = warmup_epochs
        self.flat_epochs = flat_epochs
        super().__init__(optimizer, self.factor)

    def state_dict(self) -> dict[str, Any]:
        """The position in the schedule.

        The shape of the schedule is left out: the configuration sets it, and it may lengthen a resumed training.
        """
        return {name: getattr(self, name) for name in ("base_lrs", "last_epoch", "_step_count", "_last_lr")}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go to a position that ``state_dict`` returned."""
        self.__dict__.update(state_dict)

    def factor(self, iteration: int) -> float:
        """Factor of the learning rate in ``iteration``, counted from 0."""
        epoch = iteration / self.iterations_per_epoch
        cosine_start = self.warmup_epochs + self.flat_epochs
        if epoch < self.warmup_epochs:
            return FLOOR + (1 - FLOOR) * epoch / self.warmup_epochs
        if epoch < cosine_start or cosine_start >= self.max_epochs:
            return 1.0
        progress = min((epoch - cosine_start) / (self.max_epochs - cosine_start), 1.0)
        return FLOOR + (1 - FLOOR) * (1 + math.cos(math.pi * progress)) / 2
