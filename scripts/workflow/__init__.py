# Copyright (c) the brats_mri_panet_segmentation authors
# SPDX-License-Identifier: Apache-2.0
"""What the ``run`` list of a configuration does before and after its engine: check, prepare, record, publish."""
