# Copyright (c) the brats_mri_panet_segmentation authors
# SPDX-License-Identifier: Apache-2.0
"""What is fast and what is not: `python -m scripts.benchmark --help` names what can be measured."""
