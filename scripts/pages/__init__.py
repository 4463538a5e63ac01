# Copyright (c) the brats_mri_panet_segmentation authors
# SPDX-License-Identifier: Apache-2.0
"""Reports of runs, each in one HTML file that needs no network (``panet report``)."""
