# Copyright (c) the brats_mri_panet_segmentation authors
# SPDX-License-Identifier: Apache-2.0
"""Convolution and residual blocks of the Prior Attention Network, in two or three dimensions."""

from __future__ import annotations

import math

import torch
import torch.nn as nn
from monai.networks.layers.factories import Conv, split_args
from monai.networks.layers.utils import get_act_layer, get_norm_layer

# A layer as MONAI names it: "instance", or ("group", {"num_groups": 8}).
LayerSpec = str | tuple[str, dict]

DEFAULT_NUM_GROUPS = 8


def is_group_norm(norm: LayerSpec) -> bool:
    """Whether ``norm`` names group normalization."""
    return bool(split_args(norm)[0].lower() == "group")


def build_norm(norm: LayerSpec, spatial_dims: int, channels: int) -> nn.Module:
    """Normalization over ``channels`` feature maps.

    Group normalization takes the largest number of groups that divides both ``num_groups`` (default 8) and
    ``channels``: the authors' 8 wherever they can be had, and fewer for widths that their program cannot build.
    """
    if is_group_norm(norm):
        args = dict(split_args(norm)[1])
        args["num_groups"] = math.gcd(args.get("num_groups", DEFAULT_NUM_GROUPS), channels)
        norm = ("group", args)
    return get_norm_layer(norm, spatial_dims=spatial_dims, channels=channels)


class ConvNorm(nn.Sequential):
    """Convolution without bias, normalization and, unless told not to, activation.

    With group normalization the order is normalization, activation, convolution, as in the authors' program.

    Args:
        spatial_dims: 2 or 3.
        in_channels, out_channels: feature maps in and out.
        kernel_size: odd edge length of the kernel; padding keeps the size at stride 1.
        stride: stride of the convolution.
        norm, act: MONAI layer specifications; ``act=None`` leaves the activation out.
    """

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        stride: int = 1,
        norm: LayerSpec = "instance",
        act: LayerSpec | None = ("prelu", {"init": 0.25}),
    ) -> None:
        super().__init__()
        conv = Conv[Conv.CONV, spatial_dims](
            in_channels, out_channels, kernel_size, stride=stride, padding=(kernel_size - 1) // 2, bias=False
        )
        norm_first = is_group_norm(norm)
        norm_layer = build_norm(norm, spatial_dims, in_channels if norm_first else out_channels)
        if not norm_first:
            self.add_module("conv", conv)
        self.add_module("norm", norm_layer)
        if act is not None:
            self.add_module("act", get_act_layer(act))
        if norm_first:
            self.add_module("conv", conv)


class ResBlock(nn.Module):
    """Residual block: two 3-wide ``ConvNorm``, or a bottleneck of 1, 3 and 1, plus a shortcut, then activation.

    The shortcut is the identity where neither channels nor size change, else a 1-wide ``ConvNorm``. Neither it nor the
    body's last ``ConvNorm`` activates (paper, section III; the bottleneck is the authors' choice for networks wider
    than 320 channels).

    With group normalization it is the other way round, as in the authors' program: each ``ConvNorm`` activates, and
    the sum does not.

    Args:
        spatial_dims: 2 or 3.
        in_channels, out_channels: feature maps in and out.
        stride: stride of the block.
        norm, act: MONAI layer specifications.
        bottleneck: use the bottleneck form, whose middle has ``in_channels // 4`` (at least one) feature maps.
    """

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        out_channels: int,
        stride: int = 1,
        norm: LayerSpec = "instance",
        act: LayerSpec = ("prelu", {"init": 0.25}),
        bottleneck: bool = False,
    ) -> None:
        super().__init__()
        norm_first = is_group_norm(norm)
        last_act = act if norm_first else None
        if bottleneck:
            middle = max(in_channels // 4, 1)
            self.body = nn.Sequential(
                ConvNorm(spatial_dims, in_channels, middle, 1, 1, norm, act),
                ConvNorm(spatial_dims, middle, middle, 3, stride, norm, act),
                ConvNorm(spatial_dims, middle, out_channels, 1, 1, norm, last_act),
            )
        else:
            self.body = nn.Sequential(
                ConvNorm(spatial_dims, in_channels, out_channels, 3, stride, norm, act),
                ConvNorm(spatial_dims, out_channels, out_channels, 3, 1, norm, last_act),
            )
        self.shortcut: nn.Module = nn.Identity()
        if in_channels != out_channels or stride != 1:
            self.shortcut = ConvNorm(spatial_dims, in_channels, out_channels, 1, stride, norm, last_act)
        self.act = nn.Identity() if norm_first else get_act_layer(act)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (batch, in_channels, *size) to (batch, out_channels, *size / stride)."""
        return self.act(self.body(x) + self.shortcut(x))


class PlainStem(nn.Sequential):
    """Convolution with bias, 3 wide, then ReLU: the authors' first encoder block of networks with group normalization.

    Args:
        spatial_dims: 2 or 3.
        in_channels, out_channels: feature maps in and out.
        stride: stride of the convolution.
    """

    def __init__(self, spatial_dims: int, in_channels: int, out_channels: int, stride: int = 1) -> None:
        conv = Conv[Conv.CONV, spatial_dims](in_channels, out_channels, 3, stride=stride, padding=1)
        super().__init__(conv, nn.ReLU())
