# Copyright (c) the brats_mri_panet_segmentation authors
# SPDX-License-Identifier: Apache-2.0
"""Studies: variants of the network or of its training, compared on the same unseen patients."""
