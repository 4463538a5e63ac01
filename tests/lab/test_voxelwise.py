# Copyright (c) the brats_mri_panet_segmentation authors
# SPDX-License-Identifier: Apache-2.0
"""A classifier of single voxels is the best of its kind, and does not solve the hard phantoms."""

from itertools import combinations

import numpy as np
import pytest
from scripts.data.datalist import labeled_items
from scripts.lab import threshold_baseline
from scripts.lab.phantoms import __main__ as make_phantoms
from scripts.lab.voxelwise import VoxelClassifier, cells_of, dice


def test_the_chosen_cells_have_the_best_dice_of_all_choices():
    rng = np.random.default_rng(0)
    cells = rng.integers(0, 6, 200)
    tumor = rng.random(200) < cells / 8
    classifier = VoxelClassifier(sequences=1)
    # The order of the cases does not matter.
    for part in (slice(100, None), slice(0, 100)):
        classifier.add(cells[part], tumor[part])
    choices = [choice for count in range(1, 7) for choice in combinations(range(6), count)]
    best = max(dice(np.isin(cells, choice), tumor) for choice in choices)
    assert dice(classifier.predict(cells), tumor) == best > 0.5


def test_cells_do_not_depend_on_a_scanners_scale():
    images = np.random.default_rng(0).normal(size=(4, 500))
    assert np.array_equal(cells_of(images), cells_of(100 + 7 * images))
    assert len(np.unique(cells_of(images))) > 100


def test_intensities_that_give_the_tumor_away_are_found():
    tumor = np.arange(1000) < 100
    images = np.random.default_rng(0).normal(size=(4, 1000)) + np.where(tumor, [[0.0], [0.0], [0.0], [20.0]], 0.0)
    classifier = VoxelClassifier()
    classifier.add(cells_of(images), tumor)
    assert dice(classifier.predict(cells_of(images)), tumor) == 1.0


@pytest.mark.slow
def test_hard_phantoms_cannot_be_solved_voxel_by_voxel(tmp_path, capsys):
    made = ["--cases", "4", "--seed", "11", "--difficulty", "hard", "--workers", "1"]
    assert make_phantoms.main([str(tmp_path / "hard"), *made]) == 0
    rated = threshold_baseline.rate_voxelwise(labeled_items(tmp_path / "hard"))
    assert len(rated) == 4
    mean = sum(rated.values()) / 4
    # It finds some of the tumor, but far less than a network.
    assert 0.2 < mean < 0.7
    capsys.readouterr()
    arguments = [str(tmp_path / "hard"), "--voxelwise", "--limit", "0.2"]
    assert threshold_baseline.main(arguments) == 1
    said = capsys.readouterr()
    assert f"Mean over 4 cases: {mean:.3f}" in said.out
    assert said.err.endswith(f"A classifier of voxels reaches {mean:.3f}, above the limit of 0.2.\n")
