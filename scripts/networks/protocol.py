# Copyright (c) the brats_mri_panet_segmentation authors
# SPDX-License-Identifier: Apache-2.0
"""The interface that the rest of the bundle requires of a network."""

from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

import torch
from scripts.utils.errors import InputError


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


def refuse_one_size(network: object, form: str) -> None:
    """Refuse an exported form that takes images of every size, of a network that has none.

    Args:
        network: the network. It says ``exports_every_size = False`` if its computation depends on the image's size in
            a way that no export keeps.
        form: the exported form, in words.

    Raises:
        InputError: the network has no such form.

    Example:
        >>> network = torch.nn.Identity()
        >>> refuse_one_size(network, "torch.export")
        >>> network.exports_every_size = False
        >>> refuse_one_size(network, "torch.export")  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        scripts.utils.errors.InputError: Identity: torch.export would fix one size of images; trace it ...
    """
    if not getattr(network, "exports_every_size", True):
        raise InputError(
            f"{type(network).__name__}: {form} would fix one size of images; trace it for one size instead "
            "(docs/networks.md)."
        )
