# Copyright (c) the brats_mri_panet_segmentation authors
# SPDX-License-Identifier: Apache-2.0
"""What lies beside a label map belongs to it; test_segmentation.py has whole calls."""

from __future__ import annotations

import os

import pytest
from scripts.patients.options import Options
from scripts.patients.results import Results

ENDINGS = (".json", ".dcm", ".png", "_3d.png")


@pytest.mark.parametrize(("made", "stays"), [(-1, True), (0, True), (1, False), (None, False)])
def test_what_is_older_than_the_label_map_or_has_none_is_kept_under_a_dated_name(made, stays, tmp_path):
    """The label map is of the given second after its results, or absent."""
    (tmp_path / "p").mkdir()
    results = Results({"p": {}}, tmp_path, Options(), {}, {})
    for path in [tmp_path / "p" / f"p{ending}" for ending in ENDINGS]:
        path.write_text(path.name)
        os.utime(path, (10**9, 10**9))
    if made is not None:
        results.label_map("p").touch()
        os.utime(results.label_map("p"), (10**9 + made, 10**9 + made))
    results.set_aside("p")
    present = {path.name: path.read_text() for path in (tmp_path / "p").iterdir() if path.suffix != ".gz"}
    assert sorted(present.values()) == sorted(f"p{ending}" for ending in ENDINGS)
    assert [name == text for name, text in present.items()] == [stays] * 4
