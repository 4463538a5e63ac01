# Copyright (c) the brats_mri_panet_segmentation authors
# SPDX-License-Identifier: Apache-2.0
"""What users run, on a GPU: inference, evaluation, training with its validation, float16, resumption, compilation.

Each test runs on a CPU, too, with `make test-lab`.
"""

import logging

import pytest
import torch
from monai.metrics import compute_dice
from scripts.data.regions import labels_to_regions
from scripts.inference.inferers import CompiledInferer
from scripts.networks import PriorAttentionNet
from scripts.training.losses import PriorAttentionLoss
from scripts.training.training_state import newest_state
from scripts.utils.machine import computes_in
from workflows import CHANNELS, SIZE, TRAINING_SIZE, bundle_run, rows, voxels

pytestmark = [pytest.mark.slow, pytest.mark.lab]
# All that a network without training finds is kept, so that the maps are not empty.
KEPT = {"thresholds#min_et_mm3": 0, "thresholds#min_component_mm3": 0}


def skip_where_emulated(device, dtype):
    if dtype is not None and not computes_in(device, dtype):
        pytest.skip(f"{device} does not compute in {dtype}")


def segmented(cohort, model_file, output, *overlays, **settings):
    """Return the regions of each case."""
    place = {"dataset_dir": str(cohort), "model_file": model_file, "output_dir": str(output)}
    bundle_run("inference.json", *overlays, **{**SIZE, **KEPT, **place, **settings})
    maps = sorted(output.glob("*.nii.gz"))
    return [labels_to_regions(torch.as_tensor(voxels(path)), et_label=4) for path in maps]


@pytest.mark.parametrize(
    ("overlays", "settings"),
    [
        ((), {}),
        ((), {"amp": False}),
        ((), {"amp_dtype": "float16"}),
        (("whole_brain.yaml",), {}),
        (("tta.yaml",), {}),
        (("inference_pipelined.yaml",), {"num_workers": 1}),
        # Windows of 32 voxels have edges within the brain, and several are computed at a time.
        (("inference_pipelined.yaml",), {"num_workers": 1, "roi_size": [32] * 3, "sw_batch_size": 4}),
    ],
)
def test_maps_are_those_of_float32_on_the_cpu(overlays, settings, device, small_cohort, model_file, tmp_path):
    settings = {"amp": True, "amp_dtype": "bfloat16", **settings}
    skip_where_emulated(device, settings["amp_dtype"])
    window = {key: settings[key] for key in ("roi_size",) if key in settings}
    plain = tuple(name for name in overlays if name != "inference_pipelined.yaml")
    wanted = segmented(small_cohort, model_file, tmp_path / "cpu", *plain, device="cpu", amp=False, **window)
    found = segmented(small_cohort, model_file, tmp_path / "found", *overlays, device=str(device), **settings)
    assert len(found) == len(wanted) == 6
    for ours, theirs in zip(found, wanted, strict=True):
        dice = compute_dice(ours[None], theirs[None], include_background=False, ignore_empty=False)
        # A network without training is unsure nearly everywhere, so rounding decides more voxels than after training.
        assert dice.min() > 0.95, dice


def train(cohort, output, device, *overlays, **settings):
    place = {"dataset_dir": str(cohort), "output_dir": str(output), "device": str(device), "publish": False}
    bundle_run("train.json", *overlays, **{**TRAINING_SIZE, "max_epochs": 2, "val_interval": 1, **place, **settings})
    return newest_state(output)[1]


@pytest.mark.parametrize("dtype", [None, "bfloat16", "float16"])
def test_a_training_with_validation_is_resumed(dtype, device, small_cohort, tmp_path):
    skip_where_emulated(device, dtype)
    settings = {"amp": dtype is not None, **({"amp_dtype": dtype} if dtype else {})}
    first = train(small_cohort, tmp_path / "run", device, **settings)
    second = train(small_cohort, tmp_path / "run", device, **settings, max_epochs=3, resume=True)
    assert (first["epoch"], second["epoch"]) == (2, 3) and second["iteration"] == 1.5 * first["iteration"]
    for state in (first, second):
        assert 0 <= state["best_metric"] <= 1 and state["best_metric_epoch"] >= 1
        assert all(bool(value.isfinite().all()) for value in state["network"].values())
        # float16 needs a scaled loss, whose factor is kept, too.
        assert (dtype == "float16") == bool(state["scaler"])
    if dtype == "float16":
        assert second["scaler"]["scale"] > 0


def test_a_training_from_the_cache_with_two_workers_is_done(device, small_cohort, tmp_path):
    settings = {"cache_dir": str(tmp_path / "cache"), "num_workers": 2}
    state = train(small_cohort, tmp_path / "run", device, "train_cached.yaml", **settings)
    assert state["epoch"] == 2 and list((tmp_path / "cache").iterdir())


def test_scores_are_those_of_the_cpu(device, small_cohort, model_file, tmp_path):
    size = {key: value for key, value in TRAINING_SIZE.items() if key != "max_epochs"}
    summaries = []
    for name, chosen in (("cpu", "cpu"), ("found", str(device))):
        place = {"dataset_dir": str(small_cohort), "output_dir": str(tmp_path / name), "model_file": model_file}
        more = {"cases": "all", "device": chosen, "amp": False, "lesion_wise": True, **KEPT}
        bundle_run("train.json", "evaluate.json", **{**size, **place, **more})
        summaries.append(rows(tmp_path / name / "evaluation_all" / "summary.csv")["mean"])
    wanted, found = summaries
    for column in wanted:
        if column.startswith(("dice", "specificity", "volume")):
            assert float(found[column]) == pytest.approx(float(wanted[column]), rel=0.02, abs=0.01), column


def test_a_compiled_network_gives_the_losses_and_gradients_of_the_plain_one(device, caplog):
    torch.manual_seed(0)
    image = torch.randn(1, 4, 32, 32, 32, device=device)
    regions = (image > 0.5).to(torch.uint8)
    gradients = []
    for enabled in (False, True):
        torch.manual_seed(1)
        network = PriorAttentionNet(channels=CHANNELS).train().to(device)
        with caplog.at_level(logging.WARNING):
            loss = PriorAttentionLoss()(CompiledInferer(enabled)(image, network), regions)
        loss.backward()
        gradients.append(torch.cat([parameter.grad.flatten() for parameter in network.parameters()]))
    assert "torch.compile failed" not in caplog.text
    plain, compiled = gradients
    assert (compiled - plain).norm() < 1e-2 * plain.norm()
