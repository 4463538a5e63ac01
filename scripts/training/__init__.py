# Copyright (c) the brats_mri_panet_segmentation authors
# SPDX-License-Identifier: Apache-2.0
"""What a training needs beyond MONAI's trainer: augmentation, cache, schedule, random numbers, resumption."""
