# Copyright (c) the brats_mri_panet_segmentation authors
# SPDX-License-Identifier: Apache-2.0
"""A label map whose header has another origin than the images fits them voxel by voxel; BraTS 2017 ships such maps."""

import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from scripts.data.datalist import labeled_items
from scripts.data.inspection import check_cases
from workflows import TRAINING_SIZE, bundle_run, initialized, rows, voxels

# The shifts are not whole voxels, and binary numbers cannot express them exactly.
ORIGIN = (13.3, -71.9, 5.7)


def moved(case: Path, out: Path, origin=ORIGIN) -> Path:
    """Copy the case, and give its label map another origin in the header."""
    shutil.copytree(case, out / case.name)
    file = out / case.name / f"{case.name}_seg.nii.gz"
    image = nib.load(file)
    affine = image.affine.copy()
    affine[:3, 3] = origin
    nib.save(nib.Nifti1Image(np.asanyarray(image.dataobj), affine), file)
    return out


def preprocessed(folder: Path, kind: str, spacing: float, tmp_path: Path) -> dict[str, torch.Tensor]:
    """Return the first case of the folder as training, validation, or training with the cache reads it."""
    names = ("train.json", "train_cached.yaml") if kind == "cached" else ("train.json",)
    settings = {"dataset_dir": str(folder), "spacing": [spacing] * 3, "patch_size": [96] * 3, "num_workers": 0}
    if kind == "cached":
        settings["cache_dir"] = str(tmp_path / "cache" / folder.name)
    made = initialized(*names, kind="train", **settings)
    if kind == "cached":
        dataset = made.train_dataset
        # The first access fills the cache, and the second one reads from it.
        assert torch.equal(dataset[0]["label"], dataset[0]["label"])
        return dataset[0]
    steps = made.val_preprocessing if kind == "validation" else made.train_preprocessing
    return steps(labeled_items(folder)[0])


def origin_of(case: Path) -> np.ndarray:
    return nib.load(case / f"{case.name}_t1.nii.gz").affine[:3, 3]


@pytest.mark.parametrize("spacing", [1.0, 2.0])
@pytest.mark.parametrize("kind", ["training", "validation", "cached"])
def test_regions_are_those_of_the_unmoved_label_map(kind, spacing, cohort, tmp_path):
    case = next(cohort.rglob("BraTS20_Training_001"))
    wanted = preprocessed(moved(case, tmp_path / "same", origin_of(case)), kind, spacing, tmp_path)
    found = preprocessed(moved(case, tmp_path / "moved"), kind, spacing, tmp_path)
    assert all(int(region.sum()) > 100 for region in wanted["label"])
    for key in ("image", "label"):
        assert torch.equal(torch.as_tensor(found[key]), torch.as_tensor(wanted[key])), key


def test_scores_are_those_of_the_unmoved_label_map(small_cohort, training, tmp_path):
    size = {key: value for key, value in TRAINING_SIZE.items() if key != "max_epochs"}
    case = small_cohort / "BraTS20_Training_001"
    scores = {}
    for name, origin in (("same", origin_of(case)), ("moved", ORIGIN)):
        data = moved(case, tmp_path / name, origin)
        place = {"dataset_dir": str(data), "output_dir": str(tmp_path / f"{name}_run"), "cases": "all"}
        bundle_run("train.json", "evaluate.json", **place, model_file=str(training / "model.pt"), **size)
        scores[name] = rows(tmp_path / f"{name}_run" / "evaluation_all" / "scores.csv")
    assert scores["moved"] == scores["same"]
    assert float(scores["same"][case.name]["dice_WT"]) > 0


def test_the_real_case_of_another_origin(shifted_case, tmp_path, caplog):
    """Its regions equal the regions of its label map with the origin of the images."""
    case = shifted_case
    (tmp_path / "shipped").mkdir()
    (tmp_path / "shipped" / case.name).symlink_to(case)
    moved(case, tmp_path / "mended", origin_of(case))
    for kind in ("training", "validation"):
        for spacing in (1.0, 2.0):
            found, wanted = (preprocessed(tmp_path / name, kind, spacing, tmp_path) for name in ("shipped", "mended"))
            for key in ("image", "label"):
                assert torch.equal(torch.as_tensor(found[key]), torch.as_tensor(wanted[key])), (kind, spacing, key)
    assert int(wanted["label"][3].sum()) == int((voxels(case / f"{case.name}_seg.nii.gz") > 0).sum())
    assert not any(check_cases(labeled_items(tmp_path / "shipped"), tmp_path / "shipped"))
    assert [message for message in caplog.messages if "its origin differs" in message]
