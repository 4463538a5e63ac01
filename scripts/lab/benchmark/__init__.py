# Copyright (c) the brats_mri_panet_segmentation authors
# SPDX-License-Identifier: Apache-2.0
"""Benchmarks of the bundle; `python -m scripts.lab.benchmark --help` lists what they can measure."""
