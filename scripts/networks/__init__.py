# Copyright (c) the brats_mri_panet_segmentation authors
# SPDX-License-Identifier: Apache-2.0
"""Networks and their parts. ``protocol`` says what the rest of the bundle requires of a network."""

from scripts.networks.attention_unet import AttentionUNet
from scripts.networks.cascaded_unet import CascadedUNet
from scripts.networks.monai_networks import DynUNet, SegResNet, SwinUNETR
from scripts.networks.prior_attention_net import PriorAttentionNet

__all__ = ["AttentionUNet", "CascadedUNet", "DynUNet", "PriorAttentionNet", "SegResNet", "SwinUNETR"]
