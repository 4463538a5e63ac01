# Copyright (c) the brats_mri_panet_segmentation authors
# SPDX-License-Identifier: Apache-2.0
"""MONAI's clients for federated learning run the unchanged bundle: two clients train on different patients."""

import shutil

import numpy as np
import pytest
import torch
from monai.fl.client import MonaiAlgo, MonaiAlgoStats
from monai.fl.utils.constants import ExtraItems, FlStatistics, ModelType, WeightType
from monai.fl.utils.exchange_object import ExchangeObject
from scripts.networks import PriorAttentionNet
from workflows import CHANNELS, TRAINING_SIZE, bundle_run, rows, voxels

# Cases 1 and 2 are a phantom and its mirror image. Cases 3 to 6 are two other phantoms and their mirror images.
CASES = {"site_a": range(1, 3), "site_b": range(3, 7)}


@pytest.fixture(scope="module")
def sites(small_cohort, tmp_path_factory):
    """Each client's own cases: one training case at one site, three at the other, and one validation case at each."""
    root = tmp_path_factory.mktemp("sites")
    for site, numbers in CASES.items():
        for number in numbers:
            name = f"BraTS20_Training_{number:03d}"
            shutil.copytree(small_cohort / name, root / site / "data" / name)
    return root


@pytest.fixture(scope="module")
def start():
    """The weights with which the server starts."""
    torch.manual_seed(3)
    return PriorAttentionNet(channels=CHANNELS).state_dict()


def client(bundle, sites, site, root):
    place = {"dataset_dir": str(sites / site / "data"), "output_dir": str(root / site)}
    algorithm = MonaiAlgo(
        str(bundle), train_kwargs=dict(place), eval_kwargs={**place, "thresholds#min_et_mm3": 0}, send_weight_diff=True
    )
    algorithm.initialize(extra={ExtraItems.CLIENT_NAME: site})
    return algorithm


def exchange(weights):
    return ExchangeObject(weights={name: value.clone() for name, value in weights.items()})


def test_two_clients_train_a_round_and_evaluate_the_mean(bundle, sites, start, tmp_path):
    total, differences, steps = dict.fromkeys(start, 0.0), {}, {}
    clients = {site: client(bundle, sites, site, tmp_path) for site in CASES}
    for site, algorithm in clients.items():
        algorithm.train(exchange(start))
        sent = algorithm.get_weights()
        assert sent.weight_type == WeightType.WEIGHT_DIFF
        differences[site], steps[site] = sent.weights, sent.statistics[FlStatistics.NUM_EXECUTED_ITERATIONS]
        assert differences[site].keys() == start.keys()
    assert steps == {"site_a": 1, "site_b": 3}

    # A round of a client equals an epoch of ordinary training from the server's weights.
    torch.save(start, tmp_path / "start.pt")
    epoch = {**TRAINING_SIZE, "max_epochs": 1, "pretrained_file": str(tmp_path / "start.pt")}
    bundle_run("train.json", dataset_dir=str(sites / "site_b" / "data"), output_dir=str(tmp_path / "alone"), **epoch)
    alone = torch.load(tmp_path / "alone" / "model_last.pt", weights_only=True)
    assert any(difference.any() for difference in differences["site_b"].values())
    for name, value in alone.items():
        assert torch.allclose(start[name] + differences["site_b"][name], value, rtol=0, atol=1e-6), name

    # The mean is weighted by the number of steps, as in NVFlare's aggregator.
    for site, difference in differences.items():
        total = {name: total[name] + difference[name].double() * steps[site] / 4 for name in total}
    mean = {name: (value + total[name]).to(value.dtype) for name, value in start.items()}
    assert not torch.equal(mean["outputs.3.weight"], alone["outputs.3.weight"])
    metrics = {site: algorithm.evaluate(exchange(mean)).metrics for site, algorithm in clients.items()}
    torch.save(mean, tmp_path / "mean.pt")
    size = {key: value for key, value in TRAINING_SIZE.items() if key != "max_epochs"}
    for site in CASES:
        place = {"dataset_dir": str(sites / site / "data"), "output_dir": str(tmp_path / f"{site}_again")}
        place |= {"model_file": str(tmp_path / "mean.pt"), "thresholds#min_et_mm3": 0}
        bundle_run("train.json", "evaluate.json", **place, **size)
        (row,) = rows(tmp_path / f"{site}_again" / "evaluation_validation" / "scores.csv").values()
        dice = {region: float(row[f"dice_{region}"]) for region in ("ET", "TC", "WT")}
        assert metrics[site]["val_mean_dice"] == pytest.approx(np.mean(list(dice.values())), abs=1e-4)
        assert metrics[site]["val_dice_WT"] == pytest.approx(dice["WT"], abs=1e-4)

    # A second round continues with the schedule and the state of the optimizer.
    rates = {}
    for site, algorithm in clients.items():
        algorithm.train(exchange(mean))
        assert algorithm.trainer.state.epoch == 2
        rates[site] = algorithm.trainer.optimizer.param_groups[0]["lr"]
        algorithm.finalize()
    assert rates["site_a"] == rates["site_b"] == 1e-3


def test_the_best_weights_of_a_client_are_those_on_its_disk(bundle, sites, start, tmp_path):
    place = {"dataset_dir": str(sites / "site_a" / "data"), "output_dir": str(tmp_path / "run"), "val_interval": 1}
    algorithm = MonaiAlgo(
        str(bundle),
        train_kwargs=place,
        config_evaluate_filename=None,
        best_model_filepath=str(tmp_path / "run/model.pt"),
    )
    algorithm.initialize()
    algorithm.train(exchange(start))
    best = algorithm.get_weights(extra={ExtraItems.MODEL_TYPE: ModelType.BEST_MODEL}).weights
    trained = algorithm.trainer.network.state_dict()
    assert all(torch.equal(best[name], value) for name, value in trained.items())
    algorithm.finalize()


def test_statistics_of_a_clients_data(bundle, sites, tmp_path):
    app = tmp_path / "app"
    shutil.copytree(bundle, app / "bundle")
    # In an application that a server sends, the data lie in the bundle's own folder for data.
    shutil.copytree(sites / "site_b" / "data", app / "bundle" / "data")
    algorithm = MonaiAlgoStats("bundle")
    algorithm.initialize(extra={ExtraItems.CLIENT_NAME: "site_b", ExtraItems.APP_ROOT: str(app)})
    sent = algorithm.get_data_stats(extra={FlStatistics.HIST_BINS: 50, FlStatistics.HIST_RANGE: [0, 2000]}).statistics
    assert (sent["train"][FlStatistics.DATA_COUNT], sent["train"][FlStatistics.FAIL_COUNT]) == (3, 0)
    assert sent["eval"][FlStatistics.DATA_COUNT] == 1
    total = sent[FlStatistics.TOTAL_DATA]
    assert total[FlStatistics.DATA_COUNT] == 4
    cases = sorted((app / "bundle" / "data").iterdir())
    image = total[FlStatistics.DATA_STATS]["image_stats"]
    assert image["channels"]["min"] == image["channels"]["max"] == 4
    # MONAI's statistics cover the first channel, within the box around the voxels above 0.
    t1 = [voxels(case / f"{case.name}_t1.nii.gz") for case in cases]
    assert image["intensity"]["max"] == max(v.max() for v in t1)
    assert image["intensity"]["min"] == min(v.min() for v in t1)
    edema = [(voxels(case / f"{case.name}_seg.nii.gz") == 2).mean() for case in cases]
    found = total[FlStatistics.DATA_STATS]["label_stats"]["label"][2]["foreground_percentage"]["mean"]
    assert found == pytest.approx(np.mean(edema), rel=1e-5)
