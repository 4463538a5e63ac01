# Copyright (c) the brats_mri_panet_segmentation authors
# SPDX-License-Identifier: Apache-2.0
"""The bundle's code: commands (``python -m scripts.<command>``), and the library that they and the configurations name.

A module in this folder is a command, or library that belongs to no one role. The folders below hold one role each. What
is built on what, docs/architecture.md shows.
"""
