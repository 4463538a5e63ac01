# Copyright (c) the brats_mri_panet_segmentation authors
# SPDX-License-Identifier: Apache-2.0
"""The Prior Attention Network and its parts."""

from scripts.networks.prior_attention_net import PriorAttentionNet

__all__ = ["PriorAttentionNet"]
