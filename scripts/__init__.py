# Copyright (c) the brats_mri_panet_segmentation authors
# SPDX-License-Identifier: Apache-2.0
"""What the bundle's configurations are made of: network, loss, transforms, metrics, handlers and commands."""
