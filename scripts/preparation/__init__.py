# Copyright (c) the brats_mri_panet_segmentation authors
# SPDX-License-Identifier: Apache-2.0
"""From scans as the scanner made them to sequences as the network knows them: one grid, no skull, BraTS's pose."""
