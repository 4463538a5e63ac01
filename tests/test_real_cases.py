# Copyright (c) the brats_mri_panet_segmentation authors
# SPDX-License-Identifier: Apache-2.0
"""Two real glioma patients: grids, negative intensities, a case without ET, and proof that the bundle can learn."""

import json

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.bundle import ConfigWorkflow
from scripts.data.datalist import labeled_items
from scripts.networks import PriorAttentionNet
from workflows import CHANNELS, CONFIGS, ROOT, SIZE, bundle_run, rows

VOXELS = {"TCGA-FG-6692": (30179, 9317, 6840), "TCGA-DU-7294": (24188, 9281, 0)}  # WT, TC and ET by the README


@pytest.fixture
def weights(tmp_path) -> str:
    """Untrained weights that call every voxel of the brain whole tumor and none ET, so that maps are not empty."""
    torch.manual_seed(0)
    network = PriorAttentionNet(channels=CHANNELS)
    with torch.no_grad():
        network.outputs[3].weight.zero_()
        network.outputs[3].bias.copy_(torch.tensor([-9.0, -9.0, -9.0, 9.0]))
    torch.save(network.state_dict(), tmp_path / "model.pt")
    return str(tmp_path / "model.pt")


def test_datalist_takes_them(real_cases):
    items = {item["case"]: item for item in labeled_items(real_cases)}
    assert set(items) == set(VOXELS)
    made = ConfigWorkflow(str(CONFIGS / "train.json"), workflow_type="train", logging_file=False, bundle_root=str(ROOT))
    made.initialize()
    for case, (wt, tc, et) in VOXELS.items():
        assert items[case]["et_label"] == 4
        regions = made.val_preprocessing(items[case])["label"]
        assert [int(channel.sum()) for channel in regions] == [regions[0].numel() - wt, et, tc, wt]


def test_negative_intensities_are_brain(real_cases):
    inference = ConfigWorkflow(
        str(CONFIGS / "inference.json"), workflow_type="infer", logging_file=False, bundle_root=str(ROOT)
    )
    inference.initialize()
    for item in labeled_items(real_cases):
        raw = np.stack([np.asanyarray(nib.load(path).dataobj) for path in item["image"]]).astype(np.float64)
        assert (raw < 0).any()
        box = [np.flatnonzero((raw != 0).any(axis=tuple(a for a in range(4) if a != axis))) for axis in (1, 2, 3)]
        cut = raw[(slice(None), *(slice(b[0], b[-1] + 1) for b in box))]
        done = inference.preprocessing({"image": item["image"]})["image"].numpy()
        assert done.shape == cut.shape
        for channel in range(4):
            brain = cut[channel] != 0
            wanted = (cut[channel][brain] - cut[channel][brain].mean()) / cut[channel][brain].std()
            assert np.allclose(done[channel][brain], wanted, atol=1e-3)
            assert not done[channel][~brain].any()


def test_inference_writes_their_exact_grid(real_cases, weights, tmp_path):
    output = tmp_path / "maps"
    bundle_run("inference.json", dataset_dir=str(real_cases), output_dir=str(output), model_file=weights, **SIZE)
    for case in VOXELS:
        result, source = nib.load(output / f"{case}.nii.gz"), nib.load(real_cases / case / f"{case}_t1.nii.gz")
        assert result.shape == source.shape == (240, 240, 155)
        assert np.array_equal(result.affine, source.affine)
        assert result.get_data_dtype() == np.uint8
        # These weights call exactly the voxels in the brain's box tumor, and no voxel of the box is lost.
        labels = np.asanyarray(result.dataobj)
        brain = np.any([np.asanyarray(nib.load(p).dataobj) != 0 for p in (real_cases / case).glob("*_[tf]*")], axis=0)
        box = tuple(slice(b.min(), b.max() + 1) for b in np.nonzero(brain))
        assert (labels[box] == 2).all()
        assert labels.sum() == 2 * labels[box].size


def test_case_without_et_is_scored_by_the_rules(real_cases, weights, tmp_path):
    """An absent ET without a prediction scores Dice 1 and HD95 0; the other case's missed ET scores 0 and 373.12866."""
    names = ("train.json", "evaluate.json")
    output = tmp_path / "run"
    bundle_run(*names, dataset_dir=str(real_cases), output_dir=str(output), model_file=weights, cases="all", **SIZE)
    scores = rows(output / "evaluation_all" / "scores.csv")
    without, with_et = scores["TCGA-DU-7294"], scores["TCGA-FG-6692"]
    assert (float(without["dice_ET"]), float(without["hd95_ET"])) == (1, 0)
    assert (float(with_et["dice_ET"]), float(with_et["hd95_ET"])) == (0, pytest.approx(373.12866, abs=1e-3))
    for case, (wt, tc, et) in VOXELS.items():
        row = scores[case]
        assert [float(row[f"reference_volume_{region}"]) for region in ("WT", "TC", "ET")] == [wt, tc, et]
        predicted = float(row["volume_WT"])
        assert float(row["dice_WT"]) == pytest.approx(2 * wt / (predicted + wt), abs=1e-4)
        assert float(row["dice_TC"]) == 0


@pytest.mark.slow
@pytest.mark.lab
def test_a_small_network_learns_a_real_case(real_cases, tmp_path):
    """Within minutes, training on one patient reaches a whole-tumor Dice of 0.8 there; six seeds had 0.86 to 0.89."""
    item = next(item for item in labeled_items(real_cases) if item["case"] == "TCGA-FG-6692")
    lists = tmp_path / "one_patient.json"
    lists.write_text(json.dumps({"training": [item], "validation": [item]}))
    output = tmp_path / "run"
    common = {"dataset_dir": str(real_cases), "output_dir": str(output), "datalist_file": str(lists)}
    # A patch that holds most of a brain at 3 mm takes less than half the time of one at 2 mm.
    common |= {"spacing": [3.0] * 3, "patch_size": [48] * 3}
    epochs = 160  # An epoch has one iteration.
    schedule = {"max_epochs": epochs, "val_interval": epochs, "warmup_epochs": 6, "flat_epochs": 84}
    bundle_run("train.json", "train_demo.yaml", **common, **schedule)
    bundle_run("train.json", "train_demo.yaml", "evaluate.json", **common)
    row = rows(output / "evaluation_validation" / "scores.csv")["TCGA-FG-6692"]
    assert float(row["dice_WT"]) >= 0.8
