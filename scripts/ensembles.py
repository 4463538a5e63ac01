# Copyright (c) the brats_mri_panet_segmentation authors
# SPDX-License-Identifier: Apache-2.0
"""Several model files as the networks of MONAI's ``EnsembleEvaluator``, with memory for one of them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn as nn
from monai.utils import ensure_tuple
from scripts.errors import InputError
from scripts.files import load_torch


class EnsembleMember(nn.Module):
    """One model file's weights, loaded into a network that all members share when this one's turn comes.

    Args:
        network: the shared network, in a list, so that it is no part of each member.
        model_file: weights of this member.
        loaded: the file that the network holds just now, shared by all members.
    """

    def __init__(self, network: list[nn.Module], model_file: str | Path, loaded: list[str]) -> None:
        super().__init__()
        self.shared = network
        self.model_file = str(model_file)
        self.loaded = loaded

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The network's output for ``x`` with this member's weights, in this member's mode."""
        network = self.shared[0]
        if self.loaded != [self.model_file]:
            network.load_state_dict(load_torch(self.model_file))
            self.loaded[:] = [self.model_file]
        network.train(self.training)
        result: torch.Tensor = network(x)
        return result


def ensemble_members(network: nn.Module, model_file: str | Sequence[str]) -> list[EnsembleMember]:
    """Members that share ``network``, one for each model file, which is read when its turn comes."""
    loaded: list[str] = []
    return [EnsembleMember([network], file, loaded) for file in ensure_tuple(model_file)]


def prediction_keys(model_file: str | Sequence[str]) -> list[str]:
    """Keys of the members' predictions, one for each model file."""
    return [f"pred_{number}" for number in range(len(ensure_tuple(model_file)))]


def shared_network(network: nn.Module, model_file: str | Sequence[str]) -> nn.Module:
    """The network that all members share.

    Raises:
        InputError: there are fewer than two model files, of which MONAI's mean would be that over channels.
    """
    if len(ensure_tuple(model_file)) < 2:
        raise InputError("--model_file: an ensemble needs two model files or more; for one, leave out the overlay.")
    return network
