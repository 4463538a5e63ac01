# Copyright (c) the brats_mri_panet_segmentation authors
# SPDX-License-Identifier: Apache-2.0
"""What the rest of the bundle relies on in a network."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

import torch


@runtime_checkable
class SegmentationNetwork(Protocol):
    """A ``torch.nn.Module`` that a configuration may name as ``network_def``.

    In training mode it returns a dict of logit maps by name, which the loss knows; in evaluation mode, and in every
    exported form, one tensor of logits, (batch, ``out_channels``, *size), of its input's size.

    Attributes:
        spatial_dims: 2 or 3.
        in_channels: input sequences.
        out_channels: output maps.
        size_multiple: what each spatial size must be a multiple of; one of them must be twice that at least.
    """

    spatial_dims: int
    in_channels: int
    out_channels: int
    size_multiple: int

    def state_dict(self) -> dict[str, torch.Tensor]:
        """Its weights by name."""
        ...

    def load_state_dict(self, state_dict: Mapping[str, torch.Tensor]) -> Any:
        """Take weights of the same names and shapes."""
        ...

    def eval(self) -> Any:
        """Go to evaluation mode."""
        ...

    def __call__(self, x: torch.Tensor) -> torch.Tensor | dict[str, torch.Tensor]:
        """Logits for ``x``, (batch, ``in_channels``, *size)."""
        ...
