# Copyright (c) the brats_mri_panet_segmentation authors
# SPDX-License-Identifier: Apache-2.0
"""The parts of a tumor, as pictures and the viewer number them."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from scripts.brats import CORE, CORE_LABEL, EDEMA, EDEMA_LABEL, ENHANCING, ET_LABELS, NONENHANCING_LABEL

# A picture numbers the parts from 1, in this order.
SUB_REGIONS = (CORE, EDEMA, ENHANCING)
CORE_PART, EDEMA_PART, ENHANCING_PART = 1, 2, 3
REGION_PARTS = {
    "ET": (ENHANCING_PART,),
    "TC": (CORE_PART, ENHANCING_PART),
    "WT": (CORE_PART, EDEMA_PART, ENHANCING_PART),
}


def parts_of(
    labels: npt.NDArray[Any], et_labels: Sequence[int] = ET_LABELS, edema_label: int = EDEMA_LABEL
) -> npt.NDArray[np.uint8]:
    """Numbers of the parts in ``SUB_REGIONS``, from 1, in place of the values of a label map, uint8.

    Args:
        labels: the label map, of any shape.
        et_labels: values of the enhancing tumor. Beside 4, 3 is core. Any other value than these, 1 and 2 is no part.
        edema_label: value of edema, 2 or 1. The core has the other value of the two.

    Example:
        >>> parts_of(np.array([0, 1, 2, 4])).tolist()
        [0, 1, 2, 3]
        >>> parts_of(np.array([0, 1, 2, 3, 4]), [3], edema_label=1).tolist()
        [0, 2, 1, 3, 0]
    """
    found = np.zeros(labels.shape, np.uint8)
    core_label = CORE_LABEL + EDEMA_LABEL - edema_label
    core = [core_label, *{NONENHANCING_LABEL}.difference(et_labels)]
    for part, values in ((CORE_PART, core), (EDEMA_PART, [edema_label]), (ENHANCING_PART, et_labels)):
        found[np.isin(labels, values)] = part
    return found
