# Copyright (c) the brats_mri_panet_segmentation authors
# SPDX-License-Identifier: Apache-2.0
"""Several model files as one prediction, with memory for one network."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from monai.inferers import Inferer
from monai.utils import ensure_tuple
from scripts.distributed import unwrap
from scripts.errors import InputError
from scripts.files import load_torch
from scripts.inference.inferers import MeanProbability

logger = logging.getLogger(__name__)


class EnsembleInferer(Inferer):
    """The mean, at the level of probabilities, of another inferer's results with each of several model files' weights.

    The result is again logits, those of the mean, so that nothing that follows need know of it. The network takes each
    member's weights when its turn comes; MONAI's ``EnsembleEvaluator`` keeps all networks in memory.

    Args:
        inferer: what the volume is given to.
        model_file: bare weights, of two members or more.
        exclusive: the channels exclude each other (softmax) instead of overlapping (sigmoid).

    Raises:
        InputError: there are fewer than two model files.
    """

    # Nothing else is to load weights into the network, and it must not be one in training.
    reads_model_file = True

    def __init__(self, inferer: Inferer, model_file: str | Sequence[str], exclusive: bool = False) -> None:
        super().__init__()
        self.inferer = inferer
        self.members = [str(file) for file in ensure_tuple(model_file)]
        self.exclusive = exclusive
        if len(self.members) < 2:
            raise InputError("--model_file: an ensemble needs two model files or more; for one, leave out the overlay.")
        self.loaded: tuple[str, torch.nn.Module] | None = None

    def __call__(
        self, inputs: torch.Tensor, network: Callable[..., torch.Tensor], *args: Any, **kwargs: Any
    ) -> torch.Tensor:
        """Logits of the mean probability, of the size of ``inputs``, (batch, channel, *size)."""
        mean = MeanProbability(self.exclusive)
        for member in self.members:
            self.load(member, network)
            logits = self.inferer(inputs, network, *args, **kwargs)
            if not bool(torch.isfinite(logits).all()):
                # The mean is not finite either, and ends the run; nothing there tells which member it was.
                logger.warning("%s: the output with these weights is not finite.", member)
            mean.add(logits)
        return mean.logits()

    def load(self, model_file: str | Path, network: Any) -> None:
        """Give ``network`` the weights in ``model_file``, unless they were the last that it was given."""
        if self.loaded is None or self.loaded[0] != model_file or self.loaded[1] is not network:
            unwrap(network).load_state_dict(load_torch(model_file))
            self.loaded = (str(model_file), network)
