# Copyright (c) the brats_mri_panet_segmentation authors
# SPDX-License-Identifier: Apache-2.0
"""NVFlare's simulator runs a round with MONAI's clients: a server and two sites with different patients."""

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from consumers import PACKAGES
from forks import python

SIMULATOR = """
import sys
sys.path.append(sys.argv[3])
from nvflare.private.fed.app.simulator.simulator_runner import SimulatorRunner
sys.exit(SimulatorRunner(sys.argv[1], workspace=sys.argv[2], n_clients=2, threads=2).run())
"""
SERVER = {
    "format_version": 2,
    "components": [
        {
            "id": "persistor",
            "path": "monai_nvflare.monai_bundle_persistor.MonaiBundlePersistor",
            "args": {"bundle_root": "config/brats_mri_panet_segmentation"},
        },
        {
            "id": "generator",
            "path": "nvflare.app_common.shareablegenerators.full_model_shareable_generator.FullModelShareableGenerator",
        },
        {
            "id": "aggregator",
            "path": (
                "nvflare.app_common.aggregators.intime_accumulate_model_aggregator.InTimeAccumulateWeightedAggregator"
            ),
            "args": {"expected_data_kind": "WEIGHT_DIFF"},
        },
    ],
    "workflows": [
        {
            "id": "rounds",
            "path": "nvflare.app_common.workflows.scatter_and_gather.ScatterAndGather",
            "args": {
                "min_clients": 2,
                "num_rounds": 1,
                "wait_time_after_min_received": 0,
                "aggregator_id": "aggregator",
                "persistor_id": "persistor",
                "shareable_generator_id": "generator",
                "train_task_name": "train",
            },
        }
    ],
}


def client(place: dict[str, str]) -> dict:
    algorithm = {
        "bundle_root": "config/brats_mri_panet_segmentation",
        "local_epochs": 1,
        "train_kwargs": place,
        "eval_kwargs": place,
    }
    return {
        "format_version": 2,
        "executors": [
            {
                "tasks": ["train"],
                "executor": {
                    "path": "monai_nvflare.client_algo_executor.ClientAlgoExecutor",
                    "args": {"client_algo_id": "algorithm", "key_metric": "val_mean_dice"},
                },
            }
        ],
        "components": [{"id": "algorithm", "path": "monai.fl.client.MonaiAlgo", "args": algorithm}],
    }


def application(folder: Path, bundle: Path, name: str, content: dict) -> None:
    """Put the bundle below ``config``, and its scripts in ``custom``, which NVFlare adds to the import path."""
    shutil.copytree(bundle, folder / "config" / bundle.name, ignore=shutil.ignore_patterns("scripts", "models"))
    shutil.copytree(bundle / "scripts", folder / "custom" / "scripts")
    seen = folder.parent.parent / "seen"
    with (folder / "custom" / "scripts" / "__init__.py").open("a") as file:
        file.write(f"\nimport pathlib\n(pathlib.Path({str(seen)!r}) / {folder.name!r}).touch()\n")
    (folder / "config" / name).write_text(json.dumps(content))


@pytest.mark.lab
def test_the_server_holds_the_weighted_mean_of_what_two_sites_trained(bundle, small_cohort, tmp_path):
    for package in ("nvflare", "monai_nvflare"):
        if not list(PACKAGES.glob(f"{package}-*.dist-info")):
            pytest.skip(f"{package} is not installed")
    job = tmp_path / "job"
    job.mkdir()
    (tmp_path / "seen").mkdir()
    places = {"server": ["server"], "site-1": ["site-1"], "site-2": ["site-2"]}
    (job / "meta.json").write_text(
        json.dumps({"name": "panet", "min_clients": 2, "resource_spec": {}, "deploy_map": places})
    )
    application(job / "server", bundle, "config_fed_server.json", SERVER)
    for site, numbers in (("site-1", (1, 2)), ("site-2", (3, 4, 5, 6))):
        for number in numbers:
            name = f"BraTS20_Training_{number:03d}"
            shutil.copytree(small_cohort / name, tmp_path / "data" / site / name)
        place = {"dataset_dir": str(tmp_path / "data" / site), "output_dir": str(tmp_path / site)}
        application(job / site, bundle, "config_fed_client.json", client(place))

    done = subprocess.run(
        [python(), "-c", SIMULATOR, str(job), str(tmp_path / "workspace"), str(PACKAGES)],
        cwd=tmp_path,
        env={**os.environ, "PYTHONWARNINGS": "ignore"},
        capture_output=True,
        text=True,
        check=False,
        timeout=1800,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert {path.name for path in (tmp_path / "seen").iterdir()} == {"server", "site-1", "site-2"}

    saved = tmp_path / "workspace" / "server" / "simulate_job" / "app_server" / "FL_global_model.pt"
    mean = torch.load(saved, weights_only=True)["model"]
    first, second = (torch.load(tmp_path / site / "model_last.pt", weights_only=True) for site in ("site-1", "site-2"))
    assert mean.keys() == first.keys()
    assert not torch.equal(first["outputs.3.weight"], second["outputs.3.weight"])
    # The first site makes one step, the second site three.
    for name, value in mean.items():
        wanted = (first[name].double() + 3 * second[name].double()) / 4
        assert torch.allclose(value.double(), wanted, rtol=1e-5, atol=1e-6), name
