# Copyright (c) the brats_mri_panet_segmentation authors
# SPDX-License-Identifier: Apache-2.0
"""The Prior Attention Network (Zhao et al., IEEE TMI 2022, doi 10.1109/TMI.2022.3197180, arXiv 2110.04735)."""

import math
from collections.abc import Sequence
from typing import Dict, List, Optional, Tuple, Union

import torch
import torch.nn as nn
from monai.networks.layers.factories import Conv
from scripts.networks.attention_heads import FCNHead, ParallelHead
from scripts.networks.blocks import LayerSpec, PlainStem, ResBlock, is_group_norm
from scripts.networks.resize import resize_like

HEADS = {"fcn": FCNHead, "parallel": ParallelHead}
UPSAMPLING = ("interpolate", "deconv")
# The authors use bottleneck blocks in networks with more channels than this.
BOTTLENECK_ABOVE = 320


class DecoderLevel(nn.Module):
    """Decoder level: upsample the coarser level, weight the skip connection by the prior, join and refine both.

    Args:
        spatial_dims: 2 or 3.
        deep_channels: feature maps of the coarser level.
        skip_channels: feature maps of the skip connection and of the result.
        stride: factor between the sizes of the two levels.
        norm, act, bottleneck: as in ``ResBlock``.
        deconv: upsample by transposed convolution instead of linear interpolation.
        prior_attention: weight the skip connection as ``(p + attention) * features``. The scalar p is learned and is 1
            at first (paper, section III-C: parametrized skip connection).
    """

    def __init__(
        self,
        spatial_dims: int,
        deep_channels: int,
        skip_channels: int,
        stride: int,
        norm: LayerSpec,
        act: LayerSpec,
        bottleneck: bool,
        deconv: bool,
        prior_attention: bool,
    ) -> None:
        super().__init__()
        self.upsample: nn.Module | None = None
        if deconv:
            conv_trans = Conv[Conv.CONVTRANS, spatial_dims]
            self.upsample = conv_trans(
                deep_channels, deep_channels, 3, stride=stride, padding=1, output_padding=stride - 1
            )
        self.skip_weight = nn.Parameter(torch.ones(1)) if prior_attention else None
        self.block = ResBlock(spatial_dims, skip_channels + deep_channels, skip_channels, 1, norm, act, bottleneck)

    def forward(self, deep: torch.Tensor, skip: torch.Tensor, attention: Optional[torch.Tensor]) -> torch.Tensor:
        """Return feature maps of the shape of ``skip``."""
        deep = self.upsample(deep) if self.upsample is not None else resize_like(deep, skip)
        if self.skip_weight is not None and attention is not None:
            skip = (self.skip_weight + attention) * skip
        return self.block(torch.cat([skip, deep], dim=1))


class PriorAttentionNet(nn.Module):
    """U-Net that weights its skip connections by a prior of the whole lesion, which a small head predicts first.

    In training mode the result is a dict of logit maps at the input's size. It always holds ``out``. With
    ``deep_supervision`` it also holds ``level1``, ``level2`` and ``level3`` (coarser decoder levels, resized). With
    ``prior_attention`` it also holds ``prior`` (one channel, resized). In evaluation mode, and in every scripted,
    traced or exported form, the result is the tensor ``out``.

    Args:
        spatial_dims: 2 or 3.
        in_channels: number of input sequences. In BraTS these are t1, t2, t1ce, flair.
        out_channels: number of output maps. In BraTS these are background, ET, TC, WT.
        channels: feature maps of the five levels.
        strides: strides of the five encoder blocks.
        norm: normalization outside the head, as MONAI names it: "instance", "batch", "group", or a tuple with
            arguments. Group normalization comes before activation and convolution. The first block is then a plain
            convolution and ReLU (``PlainStem``), as in the authors' program.
        act: activation outside the head, as MONAI names it.
        upsample: "interpolate" (linear) or "deconv" (transposed convolution) in the decoder.
        head: attention-guiding head, "fcn" or "parallel". It is unused without ``prior_attention``.
        head_norm: normalization in the head. The authors use batch normalization in every network.
        head_act: activation in the head. The authors use PReLU in every network.
        prior_attention: predict the prior and weight the skip connections by it. Without it the network is the paper's
            "enhanced" U-Net.
        deep_supervision: also return the maps of the coarser levels in training mode. Without it and without
            ``prior_attention`` the network is the plain residual U-Net.
        bottleneck: build all blocks in bottleneck form. None follows the authors, who do so if the last width exceeds
            320.

    Raises:
        ValueError: an argument has an invalid value, or (in ``forward``) the network cannot take an input of this size.

    Example:
        >>> net = PriorAttentionNet(channels=(2, 2, 4, 4, 4))
        >>> maps = net(torch.zeros(1, 4, 16, 16, 32))
        >>> sorted(maps), maps["prior"].shape
        (['level1', 'level2', 'level3', 'out', 'prior'], torch.Size([1, 1, 16, 16, 32]))
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
        head: str = "fcn",
        head_norm: LayerSpec = "batch",
        head_act: LayerSpec = ("prelu", {"init": 0.25}),
        prior_attention: bool = True,
        deep_supervision: bool = True,
        bottleneck: bool | None = None,
    ) -> None:
        super().__init__()
        if spatial_dims not in (2, 3):
            raise ValueError(f"spatial_dims must be 2 or 3, got {spatial_dims}.")
        if len(channels) != 5 or len(strides) != 5:
            raise ValueError(f"channels and strides must have five values, got {channels} and {strides}.")
        for name, switch in (("prior_attention", prior_attention), ("deep_supervision", deep_supervision)):
            if not isinstance(switch, bool):
                raise ValueError(f"{name} must be True or False, got {switch!r}.")
        if upsample not in UPSAMPLING:
            raise ValueError(f"upsample must be one of {UPSAMPLING}, got {upsample!r}.")
        if head not in HEADS:
            raise ValueError(f"head must be one of {tuple(HEADS)}, got {head!r}.")
        self.spatial_dims = spatial_dims
        self.in_channels = in_channels
        self.out_channels = out_channels
        self.size_multiple = math.prod(strides)
        self.deep_supervision = deep_supervision
        if bottleneck is None:
            bottleneck = channels[-1] > BOTTLENECK_ABOVE

        self.encoder = nn.ModuleList()
        for c_in, c_out, stride in zip([in_channels, *channels[:-1]], channels, strides, strict=True):
            if not self.encoder and is_group_norm(norm):
                self.encoder.append(PlainStem(spatial_dims, c_in, c_out, stride))
            else:
                self.encoder.append(ResBlock(spatial_dims, c_in, c_out, stride, norm, act, bottleneck))

        conv = Conv[Conv.CONV, spatial_dims]
        self.head: nn.Module | None = None
        self.prior_downsample: nn.Module | None = None
        if prior_attention:
            self.head = HEADS[head](spatial_dims, (channels[2], channels[3], channels[4]), head_norm, head_act)
            # The convolution has no padding, as in the authors' program. With it the coarsest attention map is learned
            # and not only resized.
            self.prior_downsample = conv(1, 1, 3, stride=2)

        # The lists of the decoder run from the coarsest level (3) to the finest (0).
        self.decoder = nn.ModuleList(
            DecoderLevel(
                spatial_dims,
                channels[level + 1],
                channels[level],
                strides[level + 1],
                norm,
                act,
                bottleneck,
                deconv=upsample == "deconv",
                prior_attention=prior_attention,
            )
            for level in (3, 2, 1, 0)
        )
        supervised = (3, 2, 1, 0) if deep_supervision else (0,)
        self.outputs = nn.ModuleList(conv(channels[level], out_channels, 1) for level in supervised)

    def forward(self, x: torch.Tensor) -> Union[torch.Tensor, Dict[str, torch.Tensor]]:
        """Segment ``x``, (batch, in_channels, *size). The docstring of the class describes the result.

        Raises:
            ValueError: the network cannot take an input of this size.
        """
        if torch.jit.is_scripting() or torch.jit.is_tracing() or not self.training:
            return self.predict(x)
        return self.predict_all(x)

    def predict(self, x: torch.Tensor) -> torch.Tensor:
        """Logits of the regions, (batch, out_channels, *size)."""
        decoded, _ = self.decode(x)
        return resize_like(self.outputs[-1](decoded[3]), x)

    @torch.jit.unused
    def predict_all(self, x: torch.Tensor) -> Dict[str, torch.Tensor]:
        """All supervised logit maps by name, each at the input's size, in training and in evaluation mode."""
        decoded, prior = self.decode(x)
        maps = {"out": resize_like(self.outputs[-1](decoded[3]), x)}
        if self.deep_supervision:
            for level in (1, 2, 3):
                maps[f"level{level}"] = resize_like(self.outputs[3 - level](decoded[3 - level]), x)
        if prior is not None:
            maps["prior"] = resize_like(prior, x)
        return maps

    def decode(self, x: torch.Tensor) -> Tuple[List[torch.Tensor], Optional[torch.Tensor]]:
        """Decode the features of ``x``.

        Returns:
            The decoder's feature maps d3, d2, d1, d0, and the logits of the prior at the size of x2. Without
            ``prior_attention`` these logits are None.
        """
        if not torch.jit.is_tracing():
            self.check_input(x)
        x0 = self.encoder[0](x)
        x1 = self.encoder[1](x0)
        x2 = self.encoder[2](x1)
        x3 = self.encoder[3](x2)
        x4 = self.encoder[4](x3)

        prior: Optional[torch.Tensor] = None
        a0: Optional[torch.Tensor] = None
        a1: Optional[torch.Tensor] = None
        a2: Optional[torch.Tensor] = None
        a3: Optional[torch.Tensor] = None
        if self.head is not None and self.prior_downsample is not None:
            prior = self.head(x2, x3, x4)
            a2 = torch.sigmoid(prior)
            a3 = resize_like(self.prior_downsample(a2), x3)
            a1 = resize_like(a2, x1)
            a0 = resize_like(a2, x0)

        d3 = self.decoder[0](x4, x3, a3)
        d2 = self.decoder[1](d3, x2, a2)
        d1 = self.decoder[2](d2, x1, a1)
        d0 = self.decoder[3](d1, x0, a0)
        return [d3, d2, d1, d0], prior

    def check_input(self, x: torch.Tensor) -> None:
        """Refuse an input that the network cannot take.

        Each spatial size must be a multiple of the product of the strides, so that every level fits the next one
        exactly. One size must be at least twice the product, because instance normalization of a single voxel is
        undefined.

        Raises:
            ValueError: ``x`` has other channels or dimensions, or a size that does not fit.
        """
        size = x.shape[2:]
        if len(size) != self.spatial_dims or x.shape[1] != self.in_channels:
            raise ValueError(
                f"Expected an input of {self.in_channels} channels and {self.spatial_dims} spatial dimensions, "
                f"got the shape {list(x.shape)}."
            )
        divisible = True
        smallest = True
        for n in size:
            if n < self.size_multiple or n % self.size_multiple != 0:
                divisible = False
            if n != self.size_multiple:
                smallest = False
        if not divisible or smallest:
            raise ValueError(
                f"Each spatial size must be a multiple of {self.size_multiple}, one of them at least "
                f"{2 * self.size_multiple}; got {list(size)}. Pad the input."
            )
