# Copyright (c) the brats_mri_panet_segmentation authors
# SPDX-License-Identifier: Apache-2.0
"""Files of weights: their records, their checks, their loading, and the import of the PANet authors' checkpoints."""
