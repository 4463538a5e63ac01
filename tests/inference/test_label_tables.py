# Copyright (c) the brats_mri_panet_segmentation authors
# SPDX-License-Identifier: Apache-2.0
"""Label tables have the values, names and colors of the label map."""

import shlex

import pytest
from matplotlib.colors import to_rgb
from scripts.brats import CORE, EDEMA, ENHANCING
from scripts.inference.label_tables import save_label_tables


@pytest.mark.parametrize("et_label", [3, 4])
def test_both_tables_name_and_color_each_value(et_label, tmp_path):
    save_label_tables(tmp_path / "p.1.nii.gz", et_label)
    parts = {1: CORE, 2: EDEMA, et_label: ENHANCING}
    colors = {value: [round(255 * share) for share in to_rgb(part.color)] for value, part in parts.items()}
    header, *lines = (tmp_path / "p.1_itksnap.txt").read_text().splitlines()
    assert header == "# ITK-SnAP Label Description File"
    clear, *rows = map(shlex.split, lines)
    assert clear == [*"0000000", "Clear Label"]
    assert [(int(row[0]), list(map(int, row[1:4])), row[4:]) for row in rows] == [
        (value, colors[value], ["1", "1", "1", parts[value].name]) for value in sorted(parts)
    ]
    header, count, background, *lines = (tmp_path / "p.1_slicer.ctbl").read_text().splitlines()
    assert (header, count, background) == ("# Color table file", "# 4 values", "0 background 0 0 0 0")
    rows = [line.split() for line in lines]
    assert [(int(row[0]), row[1].replace("_", " "), list(map(int, row[2:]))) for row in rows] == [
        (value, parts[value].name, [*colors[value], 255]) for value in sorted(parts)
    ]
