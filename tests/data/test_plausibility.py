# Copyright (c) the brats_mri_panet_segmentation authors
# SPDX-License-Identifier: Apache-2.0
"""What images and headers say about each other, in closed form; test_inspection.py has the findings of whole cases."""

import numpy as np
import pytest
from scripts.data.plausibility import shift_back


def test_the_lowest_fifth_of_a_brain_is_compared_with_the_whole():
    brain = np.zeros((30, 40, 30), bool)
    brain[5:25, 5:35, 10:25] = True
    # Of 15 slices, 3 are the lowest fifth. The next two lie in front, and count for the whole alone.
    brain[:, 15:, 10:13] = brain[:, :25, 13:15] = False
    center = (3 * 10 * 9.5 + 2 * 10 * 29.5 + 10 * 30 * 19.5) / (3 * 10 + 2 * 10 + 10 * 30)
    shift = (center - 9.5) / 30
    assert shift_back(brain, np.eye(4)) == pytest.approx(shift)
    # Turned round about the vertical axis, the same part is in front.
    assert shift_back(brain, np.diag([-1, -1, 1, 1])) == pytest.approx(-shift)
    assert shift_back(brain[:6, :, 20:], np.eye(4)) is None
