# Copyright (c) the brats_mri_panet_segmentation authors
# SPDX-License-Identifier: Apache-2.0
"""The attention U-Net (Oktay et al., 2018, arXiv 1804.03999) of the blocks of the Prior Attention Network."""

from collections.abc import Sequence
from typing import List, Optional, Tuple

import torch
import torch.nn as nn
from scripts.networks.blocks import ConvNorm, LayerSpec
from scripts.networks.prior_attention_net import PriorAttentionNet
from scripts.networks.resize import resize_like


class AttentionGate(nn.Module):
    """Gate that weights a skip connection by what the coarser level knows.

    The weight of each voxel is ``sigmoid(psi(relu(gating(deep) + skip(x))))``. It is computed at the coarser level's
    size, and then resized to the skip connection's size.

    Args:
        spatial_dims: 2 or 3.
        deep_channels: feature maps of the coarser level.
        skip_channels: feature maps of the skip connection and of the sum.
        stride: factor between the sizes of the two levels.
        norm: MONAI layer specification. The authors use batch normalization in the gates.

    Example:
        >>> gate = AttentionGate(3, deep_channels=8, skip_channels=4, stride=2, norm="batch")
        >>> gate(torch.zeros(2, 8, 4, 4, 4), torch.ones(2, 4, 8, 8, 8)).unique().tolist()
        [0.5]
    """

    def __init__(self, spatial_dims: int, deep_channels: int, skip_channels: int, stride: int, norm: LayerSpec) -> None:
        super().__init__()
        self.gating = ConvNorm(spatial_dims, deep_channels, skip_channels, 1, norm=norm, act=None)
        self.skip = ConvNorm(spatial_dims, skip_channels, skip_channels, 1, stride, norm=norm, act=None)
        self.psi = ConvNorm(spatial_dims, skip_channels, 1, 1, norm=norm, act=None)

    def forward(self, deep: torch.Tensor, skip: torch.Tensor) -> torch.Tensor:
        """Return the weighted feature maps, of the shape of ``skip``."""
        weight = torch.sigmoid(self.psi(torch.relu(self.gating(deep) + self.skip(skip))))
        return skip * resize_like(weight, skip)


class AttentionUNet(PriorAttentionNet):
    """U-Net that weights each skip connection by an attention gate. The paper compares the network with it.

    It is the plain U-Net that ``PriorAttentionNet`` is without its two switches, with gates before the decoder's
    levels. Nothing supervises the gates themselves. In training mode the result is a dict that holds ``out`` alone. In
    evaluation mode, and in every scripted, traced or exported form, the result is the tensor ``out``.

    Args:
        gate_norm: normalization in the gates. The authors use batch normalization.
        spatial_dims, in_channels, out_channels, channels, strides, norm, act, upsample, bottleneck: as in
            ``PriorAttentionNet``.

    Raises:
        ValueError: an argument has an invalid value, or (in ``forward``) the network cannot take an input of this size.

    Example:
        >>> net = AttentionUNet(channels=(2, 2, 4, 4, 4))
        >>> {name: list(values.shape) for name, values in net(torch.zeros(1, 4, 16, 16, 32)).items()}
        {'out': [1, 4, 16, 16, 32]}
        >>> net.eval()(torch.zeros(1, 4, 16, 16, 32)).shape
        torch.Size([1, 4, 16, 16, 32])
    """

    def __init__(
        self,
        spatial_dims: int = 3,
        in_channels: int = 4,
        out_channels: int = 4,
        channels: Sequence[int] = (32, 64, 128, 256, 320),
        strides: Sequence[int] = (1, 2, 2, 2, 2),
        norm: LayerSpec = "instance",
        act: LayerSpec = ("prelu", {"init": 0.25}),
        upsample: str = "interpolate",
        gate_norm: LayerSpec = "batch",
        bottleneck: bool | None = None,
    ) -> None:
        super().__init__(
            spatial_dims,
            in_channels,
            out_channels,
            channels,
            strides,
            norm,
            act,
            upsample,
            prior_attention=False,
            deep_supervision=False,
            bottleneck=bottleneck,
        )
        # The list runs from the coarsest level (3) to the finest (0), as the decoder does.
        self.gates = nn.ModuleList(
            AttentionGate(spatial_dims, channels[level + 1], channels[level], strides[level + 1], gate_norm)
            for level in (3, 2, 1, 0)
        )

    def decode(self, x: torch.Tensor) -> Tuple[List[torch.Tensor], Optional[torch.Tensor]]:
        """Decode the features of ``x``.

        Returns:
            The decoder's feature maps d3, d2, d1, d0, and None in the place of a prior.
        """
        if not torch.jit.is_tracing():
            self.check_input(x)
        x0 = self.encoder[0](x)
        x1 = self.encoder[1](x0)
        x2 = self.encoder[2](x1)
        x3 = self.encoder[3](x2)
        x4 = self.encoder[4](x3)
        d3 = self.decoder[0](x4, self.gates[0](x4, x3), None)
        d2 = self.decoder[1](d3, self.gates[1](d3, x2), None)
        d1 = self.decoder[2](d2, self.gates[2](d2, x1), None)
        d0 = self.decoder[3](d1, self.gates[3](d1, x0), None)
        prior: Optional[torch.Tensor] = None
        return [d3, d2, d1, d0], prior
