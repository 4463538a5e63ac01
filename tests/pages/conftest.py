# Copyright (c) the brats_mri_panet_segmentation authors
# SPDX-License-Identifier: Apache-2.0
"""What the tests of reports share."""

from pathlib import Path

import pytest
from known_run import DICE, write_case, write_evaluation


@pytest.fixture
def evaluated(tmp_path) -> Path:
    """An evaluation of three cases, the folder of which is not beside a training."""
    for name in DICE:
        write_case(tmp_path / "data", name)
    return write_evaluation(tmp_path / "runs" / "evaluation_all", tmp_path / "data")
