# Copyright (c) the brats_mri_panet_segmentation authors
# SPDX-License-Identifier: Apache-2.0
"""Linear resizing of feature maps, the network's only interpolation."""

from __future__ import annotations

import torch
import torch.nn.functional as F


def resize_like(x: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    """Resize (batch, channel, *spatial) to the spatial size of ``reference``, bilinear or trilinear."""
    mode = "trilinear" if x.dim() == 5 else "bilinear"
    return F.interpolate(x, size=reference.shape[2:], mode=mode, align_corners=False)
