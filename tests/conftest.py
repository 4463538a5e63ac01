# Copyright (c) the brats_mri_panet_segmentation authors
# SPDX-License-Identifier: Apache-2.0
"""What several test modules share."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from scripts import make_phantoms

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="session")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three phantoms (seed 2; the third has no ET): the second is added by a second call, the third by two workers."""
    out = tmp_path_factory.mktemp("phantoms") / "cohort"
    assert make_phantoms.main([str(out), "--cases", "1", "--seed", "2", "--workers", "1"]) == 0
    assert make_phantoms.main([str(out), "--cases", "3", "--seed", "2", "--workers", "2"]) == 0
    return out


@pytest.fixture(scope="session")
def real_cases() -> Path:
    """The two real cases, found by the environment variable BRATS_PANET_SHARED."""
    shared = os.environ.get("BRATS_PANET_SHARED")
    if not shared or not (Path(shared) / "data").is_dir():
        pytest.skip("the real cases are not here: BRATS_PANET_SHARED names no folder with data/")
    return Path(shared) / "data"
