# Copyright (c) the brats_mri_panet_segmentation authors
# SPDX-License-Identifier: Apache-2.0
"""MONAI's networks behind the bundle's interface (``protocol``), for comparisons with the Prior Attention Network."""

from __future__ import annotations

import copy
import importlib.util
import math
from collections.abc import Sequence
from typing import Dict, Union

import monai.networks.nets as nets
import torch
import torch.nn as nn
from monai.networks.nets.dynunet import DynUNetSkipLayer
from scripts.networks.blocks import LayerSpec
from scripts.utils.errors import InputError

# The loss knows the maps of these levels.
LEVELS = ("level1", "level2", "level3")


class MONAINetwork(nn.Module):
    """A network of MONAI that follows ``SegmentationNetwork``. Its weights lie under ``network``.

    In training mode the result is a dict of logit maps at the input's size. In evaluation mode, and in every scripted,
    traced or exported form, the result is one tensor of logits.

    Args:
        network: the network of MONAI.
        spatial_dims: 2 or 3.
        in_channels: number of input sequences.
        out_channels: number of output maps.
        size_multiple: divisor of each spatial size.
    """

    def __init__(
        self, network: nn.Module, spatial_dims: int, in_channels: int, out_channels: int, size_multiple: int
    ) -> None:
        super().__init__()
        self.network = network
        self.spatial_dims = spatial_dims
        self.in_channels = in_channels
        self.out_channels = out_channels
        self.size_multiple = size_multiple

    def forward(self, x: torch.Tensor) -> Union[torch.Tensor, Dict[str, torch.Tensor]]:
        """Segment ``x``, (batch, in_channels, *size). The docstring of the class describes the result."""
        if torch.jit.is_scripting() or torch.jit.is_tracing() or not self.training:
            return self.network(x)
        return self.named_maps(self.network(x))

    @torch.jit.unused
    def named_maps(self, result: torch.Tensor) -> Dict[str, torch.Tensor]:
        """The maps by name, from what MONAI's network returns in training mode."""
        return {"out": result}


class SegResNet(MONAINetwork):
    """MONAI's SegResNet, by which Myronenko won BraTS 2018 (arXiv 1810.11654), without its autoencoder.

    In training mode the result is a dict that holds ``out`` alone.

    Args:
        spatial_dims, in_channels, out_channels: as in ``MONAINetwork``.
        init_filters: feature maps of the first level. They double at each level.
        blocks_down: residual blocks of each level of the encoder.
        blocks_up: residual blocks of each level of the decoder, one level fewer.
        norm: normalization, as MONAI names it.
        dropout_prob: probability of dropout behind the first convolution. None leaves it out.

    Raises:
        ValueError: the levels of encoder and decoder do not fit.

    Example:
        >>> net = SegResNet(init_filters=8, blocks_down=(1, 1), blocks_up=(1,))
        >>> net.size_multiple, net(torch.zeros(1, 4, 16, 16, 16))["out"].shape
        (2, torch.Size([1, 4, 16, 16, 16]))
    """

    def __init__(
        self,
        spatial_dims: int = 3,
        in_channels: int = 4,
        out_channels: int = 4,
        init_filters: int = 32,
        blocks_down: Sequence[int] = (1, 2, 2, 4),
        blocks_up: Sequence[int] = (1, 1, 1),
        norm: LayerSpec = ("group", {"num_groups": 8}),
        dropout_prob: float | None = 0.2,
    ) -> None:
        if len(blocks_up) != len(blocks_down) - 1:
            raise ValueError(f"blocks_up must have one level fewer than blocks_down, got {blocks_up}, {blocks_down}.")
        network = nets.SegResNet(
            spatial_dims=spatial_dims,
            init_filters=init_filters,
            in_channels=in_channels,
            out_channels=out_channels,
            dropout_prob=dropout_prob,
            norm=norm,
            blocks_down=tuple(blocks_down),
            blocks_up=tuple(blocks_up),
        )
        super().__init__(network, spatial_dims, in_channels, out_channels, 2 ** len(blocks_up))


class DynUNet(MONAINetwork):
    """MONAI's DynUNet, which is the network of nnU-Net (Isensee et al., Nature Methods 2021), with deep supervision.

    In training mode the result is a dict that holds ``out`` and the maps of coarser levels (``level1`` is half the
    size), which MONAI resizes by the nearest voxel.

    Args:
        spatial_dims, in_channels, out_channels: as in ``MONAINetwork``.
        filters: feature maps of each level.
        strides: strides of each level. All kernels have the size 3.
        norm: normalization, as MONAI names it.
        deep_supr_num: number of coarser levels to supervise, 0 to 3. At least one level above the coarsest must remain.
        res_block: build the levels of residual blocks, as in nnU-Net's form with a residual encoder. MONAI's decoder
            keeps plain blocks.

    Raises:
        ValueError: an argument has an invalid value.

    Example:
        >>> net = DynUNet(filters=(4, 4, 8, 8), strides=(1, 2, 2, 2), deep_supr_num=2)
        >>> maps = net(torch.zeros(1, 4, 16, 16, 16))
        >>> net.size_multiple, sorted(maps), maps["level2"].shape
        (8, ['level1', 'level2', 'out'], torch.Size([1, 4, 16, 16, 16]))
    """

    def __init__(
        self,
        spatial_dims: int = 3,
        in_channels: int = 4,
        out_channels: int = 4,
        filters: Sequence[int] = (32, 64, 128, 256, 320, 320),
        strides: Sequence[int] = (1, 2, 2, 2, 2, 2),
        norm: LayerSpec = ("instance", {"affine": True}),
        deep_supr_num: int = 3,
        res_block: bool = False,
    ) -> None:
        if len(filters) != len(strides):
            raise ValueError(f"filters and strides must have the same number of values, got {filters} and {strides}.")
        if not 0 <= deep_supr_num <= len(LEVELS):
            raise ValueError(f"deep_supr_num must be 0 to {len(LEVELS)}, the levels of the loss, got {deep_supr_num}.")
        network = nets.DynUNet(
            spatial_dims=spatial_dims,
            in_channels=in_channels,
            out_channels=out_channels,
            kernel_size=[3] * len(strides),
            strides=strides,
            upsample_kernel_size=strides[1:],
            filters=filters,
            norm_name=norm,
            deep_supervision=deep_supr_num > 0,
            deep_supr_num=max(deep_supr_num, 1),
            res_block=res_block,
        )
        super().__init__(network, spatial_dims, in_channels, out_channels, math.prod(strides))
        self.names = ("out", *LEVELS[:deep_supr_num])

    @torch.jit.unused
    def named_maps(self, result: torch.Tensor) -> Dict[str, torch.Tensor]:
        """The maps by name. MONAI stacks those of all levels on the second axis, (batch, map, channel, *size)."""
        if len(self.names) == 1:
            return {"out": result}
        return dict(zip(self.names, result.unbind(1), strict=True))

    def __prepare_scriptable__(self) -> DynUNet:
        """The network that ``torch.jit.script`` compiles in the place of this one, with the same weights.

        It lacks the outputs of the coarser levels, which MONAI stores in a list that TorchScript cannot compile.
        Evaluation does not use them.
        """
        network = self.network
        assert isinstance(network, nets.DynUNet)
        # The last training step left tensors with a gradient there, which cannot be copied.
        network.heads[:] = [head.detach() for head in network.heads]
        made = copy.deepcopy(self)
        for layer in made.modules():
            if isinstance(layer, DynUNetSkipLayer):
                layer.super_head = layer.heads = None
            elif isinstance(layer, nets.DynUNet):
                layer.deep_supervision = False
        return made


class SwinUNETR(MONAINetwork):
    """MONAI's Swin UNETR (Hatamizadeh et al., 2022, arXiv 2201.01266), a transformer in windows with a CNN decoder.

    In training mode the result is a dict that holds ``out`` alone. MONAI computes the masks of shifted windows in
    Python from the image's size. So the network can be traced for one size, but no exported form takes every size.

    Args:
        spatial_dims, in_channels, out_channels: as in ``MONAINetwork``.
        feature_size: feature maps of the first level, a multiple of 12.
        depths: transformer layers of each level.
        num_heads: attention heads of each level.
        window_size: edge of an attention window, in patches of 2 voxels.
        use_checkpoint: compute the transformer's activations again in the backward pass, which saves memory.

    Raises:
        InputError: the package einops is not installed.
        ValueError: MONAI refuses an argument, or (in ``forward``) a size that is not a multiple of 32.

    Example:
        >>> net = SwinUNETR(feature_size=12, use_checkpoint=False).eval()
        >>> with torch.no_grad():
        ...     net(torch.zeros(1, 4, 64, 32, 32)).shape
        torch.Size([1, 4, 64, 32, 32])
    """

    exports_every_size = False

    def __init__(
        self,
        spatial_dims: int = 3,
        in_channels: int = 4,
        out_channels: int = 4,
        feature_size: int = 48,
        depths: Sequence[int] = (2, 2, 2, 2),
        num_heads: Sequence[int] = (3, 6, 12, 24),
        window_size: int = 7,
        use_checkpoint: bool = True,
    ) -> None:
        if importlib.util.find_spec("einops") is None:
            raise InputError("SwinUNETR needs the package einops; pip install einops, or choose another network.")
        network = nets.SwinUNETR(
            in_channels=in_channels,
            out_channels=out_channels,
            feature_size=feature_size,
            depths=depths,
            num_heads=num_heads,
            window_size=window_size,
            use_checkpoint=use_checkpoint,
            spatial_dims=spatial_dims,
        )
        # The patches have 2 voxels, and four levels halve the size after them.
        super().__init__(network, spatial_dims, in_channels, out_channels, 2**5)

    def __prepare_scriptable__(self) -> SwinUNETR:
        """Refuse ``torch.jit.script``, which calls this function first.

        Raises:
            InputError: always.
        """
        raise InputError(
            "SwinUNETR: torch.jit.script cannot compile it; trace it for one size of windows (ckpt_export with "
            '--use_trace True --input_shape "[1,4,128,128,128]").'
        )
