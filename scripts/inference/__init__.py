# Copyright (c) the brats_mri_panet_segmentation authors
# SPDX-License-Identifier: Apache-2.0
"""From a network and a case to a label map: ways to run the network over a volume, engines to run it with, writers."""
