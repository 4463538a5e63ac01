# Copyright (c) the brats_mri_panet_segmentation authors
# SPDX-License-Identifier: Apache-2.0
"""Files of weights: the record beside them, checking and loading them, and importing those of the authors."""
