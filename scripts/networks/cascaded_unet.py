# Copyright (c) the brats_mri_panet_segmentation authors
# SPDX-License-Identifier: Apache-2.0
"""A cascade of two U-Nets: the first finds the whole tumor, and the second separates the regions in it."""

from collections.abc import Sequence
from typing import Dict, Tuple, Union

import torch
import torch.nn as nn
from scripts.networks.blocks import LayerSpec
from scripts.networks.prior_attention_net import PriorAttentionNet


class CascadedUNet(nn.Module):
    """Two plain U-Nets, of which the second sees the image multiplied by 1 + the mask that the first one finds.

    The mask is 1 where the first stage gives the whole tumor a probability above 0.5, and 0 elsewhere. The mask has no
    gradient, so each stage learns from its own output alone. This is the cascade that the paper's single network
    replaces.

    In training mode the result is a dict of logit maps at the input's size: ``out``, and ``prior`` (the first stage's,
    one channel). In evaluation mode, and in every scripted, traced or exported form, the result is the tensor ``out``.

    Args:
        out_channels: number of output maps of the second stage. In BraTS these are background, ET, TC, WT.
        spatial_dims, in_channels, channels, strides, norm, act, upsample, bottleneck: as in ``PriorAttentionNet``, for
            both stages.

    Raises:
        ValueError: an argument has an invalid value, or (in ``forward``) the network cannot take an input of this size.

    Example:
        >>> net = CascadedUNet(channels=(2, 2, 4, 4, 4))
        >>> {name: list(values.shape) for name, values in net(torch.zeros(1, 4, 16, 16, 32)).items()}
        {'out': [1, 4, 16, 16, 32], 'prior': [1, 1, 16, 16, 32]}
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
        bottleneck: bool | None = None,
    ) -> None:
        super().__init__()
        self.spatial_dims = spatial_dims
        self.in_channels = in_channels
        self.out_channels = out_channels

        def stage(outputs: int) -> PriorAttentionNet:
            return PriorAttentionNet(
                spatial_dims,
                in_channels,
                outputs,
                channels,
                strides,
                norm,
                act,
                upsample,
                prior_attention=False,
                deep_supervision=False,
                bottleneck=bottleneck,
            )

        self.first_stage = stage(1)
        self.second_stage = stage(out_channels)
        self.size_multiple = self.second_stage.size_multiple

    def forward(self, x: torch.Tensor) -> Union[torch.Tensor, Dict[str, torch.Tensor]]:
        """Segment ``x``, (batch, in_channels, *size). The docstring of the class describes the result.

        Raises:
            ValueError: the network cannot take an input of this size.
        """
        out, prior = self.predict_both(x)
        if torch.jit.is_scripting() or torch.jit.is_tracing() or not self.training:
            return out
        return {"out": out, "prior": prior}

    def predict_both(self, x: torch.Tensor) -> Tuple[torch.Tensor, torch.Tensor]:
        """Logits of the regions, (batch, out_channels, *size), and of the whole tumor, (batch, 1, *size)."""
        prior = self.first_stage.predict(x)
        mask = (torch.sigmoid(prior) > 0.5).to(x.dtype)
        return self.second_stage.predict(x * (1 + mask)), prior
