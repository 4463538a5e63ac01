# Copyright (c) the brats_mri_panet_segmentation authors
# SPDX-License-Identifier: Apache-2.0
"""Cases on disk: this package finds, reads, lists, checks and makes them. It does not depend on the network."""
