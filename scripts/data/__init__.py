# Copyright (c) the brats_mri_panet_segmentation authors
# SPDX-License-Identifier: Apache-2.0
"""Cases on disk: finding, checking, splitting, and making synthetic ones."""
