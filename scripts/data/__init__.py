# Copyright (c) the brats_mri_panet_segmentation authors
# SPDX-License-Identifier: Apache-2.0
"""Cases on disk: reading, finding, listing, checking and making them; nothing here knows of a network."""
