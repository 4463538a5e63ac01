# Copyright (c) the brats_mri_panet_segmentation authors
# SPDX-License-Identifier: Apache-2.0
"""The parts of a tumor in pictures."""

from __future__ import annotations

from scripts.brats import CORE, EDEMA, ENHANCING

# A picture numbers the parts from 1, in this order.
SUB_REGIONS = (CORE, EDEMA, ENHANCING)
CORE_PART, EDEMA_PART, ENHANCING_PART = 1, 2, 3
REGION_PARTS = {
    "ET": (ENHANCING_PART,),
    "TC": (CORE_PART, ENHANCING_PART),
    "WT": (CORE_PART, EDEMA_PART, ENHANCING_PART),
}
