# Copyright (c) the brats_mri_panet_segmentation authors
# SPDX-License-Identifier: Apache-2.0
"""From a network and a case to a label map: inferers, engines that run the network, and writers of maps."""
