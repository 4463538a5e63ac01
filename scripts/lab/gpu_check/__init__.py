# Copyright (c) the brats_mri_panet_segmentation authors
# SPDX-License-Identifier: Apache-2.0
"""``make gpu-check``: whether results on a GPU are right, and how long they take, in the time for which it is lent."""
