# Copyright (c) the brats_mri_panet_segmentation authors
# SPDX-License-Identifier: Apache-2.0
"""Convolution and residual blocks of the Prior Attention Network, in two or three dimensions."""

import math
from typing import ClassVar

import torch
import torch.nn as nn
import torch.nn.functional as F
from monai.networks.layers.factories import Conv, split_args
from monai.networks.layers.utils import get_act_layer, get_norm_layer

# MONAI names a layer in this form: "instance", or ("group", {"num_groups": 8}).
LayerSpec = str | tuple[str, dict]

DEFAULT_NUM_GROUPS = 8


def is_group_norm(norm: LayerSpec) -> bool:
    """Whether ``norm`` names group normalization."""
    return bool(split_args(norm)[0].lower() == "group")


class Conv3d(nn.Conv3d):
    """torch's convolution, with a right gradient of its weights on small maps in bfloat16 on a CPU.

    If an axis of the map has two voxels, torch 2.13 computes a wrong gradient of a 3x3x3 kernel there, even an infinite
    one. So this class computes such a map in float32. It is small, and takes no time.
    """

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Convolve (batch, channel, *size)."""
        if not torch.jit.is_scripting() and not torch.jit.is_tracing():
            mixed = (
                not torch.compiler.is_compiling() and input.device.type == "cpu" and torch.is_autocast_enabled("cpu")
            )
            if mixed and 2 in input.shape[2:]:
                with torch.autocast("cpu", enabled=False):
                    return self._conv_forward(input.float(), self.weight, self.bias)
        return self._conv_forward(input, self.weight, self.bias)


class InstanceNorm3d(nn.InstanceNorm3d):
    """torch's instance normalization, which keeps the layout of a single sample on a CPU.

    torch's own form copies a sample whose channels lie beside each other to another layout and back, which takes a
    quarter of a training step. For one sample the statistics of a batch are those of the instance.

    Attributes:
        as_batch: kinds of devices on which a single sample is normalized as a batch, of all layers. The benchmark of
            a training compares both ways on a GPU.
    """

    as_batch: ClassVar[set[str]] = {"cpu"}

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Normalize (batch, channel, *size)."""
        if not torch.jit.is_scripting() and not torch.jit.is_tracing():
            # An export must not be bound to one sample.
            exported = torch.compiler.is_compiling()
            if not exported and len(input) == 1 and input.device.type in self.as_batch:
                return F.batch_norm(input, None, None, self.weight, self.bias, training=True, eps=self.eps)
        return F.instance_norm(input, None, None, self.weight, self.bias, eps=self.eps)


def build_norm(norm: LayerSpec, spatial_dims: int, channels: int) -> nn.Module:
    """Normalization over ``channels`` feature maps.

    Group normalization takes the largest number of groups that divides both ``num_groups`` (default 8) and
    ``channels``. So it has the authors' 8 groups wherever 8 divides ``channels``. It has fewer groups for widths that
    the authors' program cannot build.

    Example:
        >>> build_norm("group", 3, channels=16).num_groups, build_norm("group", 3, channels=20).num_groups
        (8, 4)
    """
    if is_group_norm(norm):
        args = dict(split_args(norm)[1])
        args["num_groups"] = math.gcd(args.get("num_groups", DEFAULT_NUM_GROUPS), channels)
        norm = ("group", args)
    name, args = split_args(norm)
    if name.lower() == "instance" and spatial_dims == 3 and not args.get("track_running_stats"):
        return InstanceNorm3d(channels, **args)
    return get_norm_layer(norm, spatial_dims=spatial_dims, channels=channels)


class ConvNorm(nn.Sequential):
    """Convolution without bias, normalization and optional activation.

    With group normalization the order is normalization, activation, convolution, as in the authors' program.

    Args:
        spatial_dims: 2 or 3.
        in_channels, out_channels: feature maps in and out.
        kernel_size: odd edge length of the kernel. Padding keeps the size at stride 1.
        stride: stride of the convolution.
        norm, act: MONAI layer specifications. ``act=None`` leaves the activation out.

    Example:
        >>> [name for name, _ in ConvNorm(3, 4, 8, kernel_size=3).named_children()]
        ['conv', 'norm', 'act']
        >>> [name for name, _ in ConvNorm(3, 4, 8, kernel_size=3, norm="group").named_children()]
        ['norm', 'act', 'conv']
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
        kind = Conv3d if spatial_dims == 3 else Conv[Conv.CONV, spatial_dims]
        conv = kind(in_channels, out_channels, kernel_size, stride=stride, padding=(kernel_size - 1) // 2, bias=False)
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
    """Residual block, which adds a body and a shortcut and then activates the sum.

    The body is two ``ConvNorm`` layers with kernels of size 3, or a bottleneck of three with kernels of size 1, 3 and
    1. The shortcut is the identity if neither the channels nor the size change. Otherwise it is a ``ConvNorm`` with a
    kernel of size 1. The shortcut and the last ``ConvNorm`` of the body have no activation (paper, section III). The
    authors use the bottleneck in networks wider than 320 channels.

    With group normalization every ``ConvNorm`` has an activation, and the sum has none, as in the authors' program.

    Args:
        spatial_dims: 2 or 3.
        in_channels, out_channels: feature maps in and out.
        stride: stride of the block.
        norm, act: MONAI layer specifications.
        bottleneck: use the bottleneck form. Its middle has ``in_channels // 4`` feature maps, but at least one.

    Example:
        >>> ResBlock(3, in_channels=8, out_channels=8).shortcut
        Identity()
        >>> block = ResBlock(3, in_channels=4, out_channels=8, stride=2)
        >>> block(torch.zeros(1, 4, 16, 16, 16)).shape, block.shortcut.conv.kernel_size
        (torch.Size([1, 8, 8, 8, 8]), (1, 1, 1))
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
    """Convolution with bias and a kernel of size 3, then ReLU.

    It is the first encoder block of the authors' networks with group normalization.
    """

    def __init__(self, spatial_dims: int, in_channels: int, out_channels: int, stride: int = 1) -> None:
        conv = Conv[Conv.CONV, spatial_dims](in_channels, out_channels, 3, stride=stride, padding=1)
        super().__init__(conv, nn.ReLU())
