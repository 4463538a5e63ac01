# Copyright (c) the brats_mri_panet_segmentation authors
# SPDX-License-Identifier: Apache-2.0
"""Attention-guiding heads, which predict the prior of the lesion from the encoder's three deepest levels.

A head takes (x2, x3, x4). With strides of 2 these are the feature maps at 1/4, 1/8 and 1/16 of the input's size. The
head returns one channel of logits at the size of x2 (paper, section III-B).
"""

import torch
import torch.nn as nn
from monai.networks.layers.factories import Conv
from scripts.networks.blocks import ConvNorm, LayerSpec
from scripts.networks.resize import resize_like


class FCNHead(nn.Module):
    """Head after the fully convolutional network (FCN): it upsamples deep maps and adds them to shallow maps.

    Args:
        spatial_dims: 2 or 3.
        channels: numbers of feature maps of x2, x3 and x4.
        norm, act: MONAI layer specifications. The authors use batch normalization and PReLU in the head of every
            network.

    Example:
        >>> head = FCNHead(3, (4, 8, 8), norm="batch", act="prelu")
        >>> head(torch.zeros(2, 4, 8, 8, 8), torch.zeros(2, 8, 4, 4, 4), torch.zeros(2, 8, 2, 2, 2)).shape
        torch.Size([2, 1, 8, 8, 8])
    """

    def __init__(self, spatial_dims: int, channels: tuple[int, int, int], norm: LayerSpec, act: LayerSpec) -> None:
        super().__init__()
        c2, c3, c4 = channels
        self.reduce4 = ConvNorm(spatial_dims, c4, c3, 1, norm=norm, act=act)
        self.fuse3 = ConvNorm(spatial_dims, c3, c3, 3, norm=norm, act=act)
        self.reduce3 = ConvNorm(spatial_dims, c3, c2, 1, norm=norm, act=act)
        self.fuse2 = ConvNorm(spatial_dims, c2, c2, 3, norm=norm, act=act)
        self.output = Conv[Conv.CONV, spatial_dims](c2, 1, 1)

    def forward(self, x2: torch.Tensor, x3: torch.Tensor, x4: torch.Tensor) -> torch.Tensor:
        """Return logits of shape (batch, 1, *x2's size)."""
        f3 = self.fuse3(self.reduce4(resize_like(x4, x3)) + x3)
        f2 = self.fuse2(self.reduce3(resize_like(f3, x2)) + x2)
        return self.output(f2)


class ParallelHead(nn.Module):
    """Head after the parallel partial decoder: it resizes all maps to the size of x2 and then joins them.

    Args:
        spatial_dims: 2 or 3.
        channels: numbers of feature maps of x2, x3 and x4. Each branch has half as many feature maps as x2.
        norm, act: MONAI layer specifications. The authors use batch normalization and PReLU in the head of every
            network.

    Example:
        >>> head = ParallelHead(3, (4, 8, 8), norm="batch", act="prelu")
        >>> head.reduce2(torch.zeros(2, 4, 8, 8, 8)).shape
        torch.Size([2, 2, 8, 8, 8])
    """

    def __init__(self, spatial_dims: int, channels: tuple[int, int, int], norm: LayerSpec, act: LayerSpec) -> None:
        super().__init__()
        c2, c3, c4 = channels
        width = c2 // 2
        self.reduce2 = ConvNorm(spatial_dims, c2, width, 1, norm=norm, act=act)
        self.reduce3 = ConvNorm(spatial_dims, c3, width, 1, norm=norm, act=act)
        self.reduce4 = ConvNorm(spatial_dims, c4, width, 1, norm=norm, act=act)
        self.join_deep = ConvNorm(spatial_dims, 2 * width, width, 3, norm=norm, act=act)
        self.join_shallow = ConvNorm(spatial_dims, 2 * width, width, 3, norm=norm, act=act)
        self.output = Conv[Conv.CONV, spatial_dims](3 * width, 1, 1)

    def forward(self, x2: torch.Tensor, x3: torch.Tensor, x4: torch.Tensor) -> torch.Tensor:
        """Return logits of shape (batch, 1, *x2's size)."""
        f2 = self.reduce2(x2)
        f3 = self.reduce3(resize_like(x3, x2))
        f4 = self.reduce4(resize_like(x4, x2))
        deep = self.join_deep(torch.cat([f3, f4], dim=1))
        shallow = self.join_shallow(torch.cat([f2, deep], dim=1))
        return self.output(torch.cat([shallow, deep, f4], dim=1))
