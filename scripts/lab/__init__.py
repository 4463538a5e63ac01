# Copyright (c) the brats_mri_panet_segmentation authors
# SPDX-License-Identifier: Apache-2.0
"""The workshop: phantoms, studies, benchmarks, demonstration and packaging. No package holds it."""
