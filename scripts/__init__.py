# Copyright (c) the brats_mri_panet_segmentation authors
# SPDX-License-Identifier: Apache-2.0
"""The bundle's code: the commands of ``panet``, and the library that they and the configurations use.

A module in this folder is a command, or a part of the library that several roles share. Each folder below holds one
role. docs/architecture.md shows which part is built on which.
"""
