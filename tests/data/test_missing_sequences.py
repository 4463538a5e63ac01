# Copyright (c) the brats_mri_panet_segmentation authors
# SPDX-License-Identifier: Apache-2.0
"""A case that lacks a sequence is segmented by weights that bear it, and refused otherwise."""

import json
import logging
import shutil

import numpy as np
import pytest
import torch
from scripts.brats import SEQUENCES
from scripts.data.cases import NO_FILE
from scripts.data.datalist import labeled_items, unlabeled_items
from scripts.data.images import LoadImageByReaderd, SequenceReader
from scripts.data.inspection import check_cases
from scripts.utils.errors import InputError, input_error_behind
from tiny import make_cases
from workflows import SIZE, bundle_run, rows, voxels


def copied(cohort, root, *without):
    """A copy of one case without the files of some sequences."""
    source = next(cohort.rglob("BraTS20_Training_002"))
    shutil.copytree(source, root / source.name)
    for sequence in without:
        (root / source.name / f"{source.name}_{sequence}.nii.gz").unlink()
    return root


def test_the_loader_gives_zeros_in_its_place(cohort, tmp_path):
    (whole,) = unlabeled_items(copied(cohort, tmp_path / "whole"))
    (lacking,) = unlabeled_items(copied(cohort, tmp_path / "lacking", "t1", "flair"))
    assert [file == NO_FILE for file in lacking["image"]] == [True, False, False, True]
    load = LoadImageByReaderd("image", SequenceReader(), image_only=True)
    found, wanted = load(lacking)["image"], load(whole)["image"]
    assert not found[0].any() and not found[3].any()
    assert torch.equal(found[1:3], wanted[1:3]) and torch.equal(found.affine, wanted.affine)
    with pytest.raises(InputError, match="no image; give a file of one sequence at least"):
        load({"image": [NO_FILE] * 4})


@pytest.mark.parametrize(("may_lack", "without"), [(0, ["t2"]), (1, ["t1", "flair"])])
def test_more_missing_than_the_weights_bear_is_refused(tmp_path, may_lack, without):
    root = make_cases(tmp_path / "data", count=2)
    for sequence in without:
        (root / "BraTS20_Training_002" / f"BraTS20_Training_002_{sequence}.nii.gz").unlink()
    items = unlabeled_items(root)
    bear = "the weights bear 1 missing sequence at most; " * may_lack
    for listed, said in (
        (None, f"incomplete, there is no .*_{without[0]}.nii.gz.*; {bear}add it, or move the folder away"),
        ("list.csv", f"BraTS20_Training_002 lacks {' and '.join(without)}; {bear}add it, or leave the case out"),
    ):
        with pytest.raises(InputError, match=said):
            check_cases(items, root, datalist_file=listed, may_lack=may_lack)


def test_as_many_as_the_weights_bear_are_warned_of(cohort, tmp_path, caplog):
    root = copied(cohort, tmp_path / "data", "flair")
    caplog.set_level(logging.WARNING)
    assert check_cases(unlabeled_items(root), root, may_lack=1) == [True]
    assert caplog.messages[0].startswith("BraTS20_Training_002 lacks flair. The weights were trained to bear this")


def test_a_training_takes_complete_cases_only(cohort, tmp_path):
    root = copied(cohort, tmp_path / "data", "flair")
    assert labeled_items(root) == [] and len(labeled_items(root, incomplete=True)) == 1


@pytest.mark.parametrize("sequence", SEQUENCES)
def test_a_case_without_a_sequence_is_segmented(small_cohort, training, tmp_path, sequence):
    """The result is that of the whole case whose sequence is left out on purpose."""
    shutil.copy(training / "model.pt", tmp_path)
    record = json.loads((training / "model.json").read_text())
    (tmp_path / "model.json").write_text(json.dumps({**record, "missing_sequences": 1}))
    lacking, whole = copied(small_cohort, tmp_path / "lacking", sequence), copied(small_cohort, tmp_path / "whole")
    settings = {**SIZE, "model_file": str(tmp_path / "model.pt"), "save_probabilities": True}
    bundle_run("inference.json", **settings, dataset_dir=str(lacking), output_dir=str(tmp_path / "a"))
    settings |= {"dataset_dir": str(whole), "output_dir": str(tmp_path / "b"), "missing_sequence": sequence}
    bundle_run("inference.json", "missing_sequence.yaml", **settings)
    for name in ("", "_prob_enhance", "_prob_core", "_prob_whole"):
        found, wanted = (voxels(tmp_path / run / f"BraTS20_Training_002{name}.nii.gz") for run in "ab")
        np.testing.assert_array_equal(found, wanted)


def test_the_starter_segments_a_case_without_a_sequence(cohort, tmp_path):
    place = {"dataset_dir": str(copied(cohort, tmp_path / "data", "flair")), "output_dir": str(tmp_path / "maps")}
    bundle_run("inference.json", "starter.yaml", **place)
    assert voxels(tmp_path / "maps" / "BraTS20_Training_002.nii.gz").any()


def test_it_is_evaluated_too(cohort, tmp_path):
    place = {"dataset_dir": str(copied(cohort, tmp_path / "data", "t1")), "output_dir": str(tmp_path / "run")}
    bundle_run("train.json", "evaluate.json", "starter.yaml", **place, cases="all")
    assert list(rows(tmp_path / "run" / "evaluation_all" / "scores.csv")) == ["BraTS20_Training_002"]


def test_weights_that_do_not_bear_it_refuse_it(training, cohort, tmp_path):
    place = {"dataset_dir": str(copied(cohort, tmp_path / "data", "t1")), "output_dir": str(tmp_path / "maps")}
    with pytest.raises(RuntimeError) as caught:
        bundle_run("inference.json", **place, **SIZE, model_file=str(training / "model.pt"))
    assert "incomplete, there is no BraTS20_Training_002_t1.nii.gz; add it" in str(input_error_behind(caught.value))
    assert not (tmp_path / "maps").exists()
