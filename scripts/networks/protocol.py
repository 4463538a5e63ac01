# Copyright (c) the brats_mri_panet_segmentation authors
# SPDX-License-Identifier: Apache-2.0
"""The interface that the rest of the bundle requires of a network."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

import torch


@runtime_checkable
class SegmentationNetwork(Protocol):
    """A ``torch.nn.Module`` that a configuration may name as ``network_def``.

    In training mode it returns a dict of logit maps by name, and the loss knows these names. In evaluation mode, and in
    every exported form, it returns one tensor of logits, (batch, ``out_channels``, *size), of its input's size.

    Attributes:
        spatial_dims: 2 or 3.
        in_channels: number of input sequences.
        out_channels: number of output maps.
        size_multiple: divisor of each spatial size. One of the sizes must be at least twice this number.

    Example:
        >>> from scripts.networks import PriorAttentionNet
        >>> net = PriorAttentionNet(channels=(2, 2, 4, 4, 4))
        >>> isinstance(net, SegmentationNetwork), net.size_multiple
        (True, 16)
    """

    spatial_dims: int
    in_channels: int
    out_channels: int
    size_multiple: int

    def state_dict(self) -> dict[str, torch.Tensor]:
        """The network's weights by name."""
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
