# Copyright (c) the brats_mri_panet_segmentation authors
# SPDX-License-Identifier: Apache-2.0
"""Two ranks on the CPU with torchrun and Gloo use each case once, train one network, and never hang."""

import json
import os
import socket
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torch.nn as nn
from monai.bundle import ConfigWorkflow
from scripts.inference.inferers import BrainWindowInferer
from scripts.networks import PriorAttentionNet
from scripts.training.losses import PriorAttentionLoss
from scripts.utils import distributed
from scripts.utils.errors import InputError, input_error_behind
from workflows import CHANNELS, ROOT, SIZE, TRAINING_SIZE, bundle_run, command, files, initialized, rows, voxels

TRAINING = {**TRAINING_SIZE, "max_epochs": 2, "val_interval": 1, "flat_epochs": 1, "folds": 3, "fold": 0}
EVALUATION = {key: value for key, value in TRAINING.items() if key not in ("max_epochs", "val_interval")}


def torchrun(names: list[str], cwd: Path, **settings):
    settings = {"bundle_root": ROOT, **settings}
    flat = [text for key, value in settings.items() for text in (f"--{key}", str(value))]
    launch = ("--standalone", "--nproc_per_node", "2", "-m", "monai.bundle", "run", "--config_file", str(names))
    return command("torch.distributed.run", *launch, *flat, cwd=cwd)


@pytest.fixture(scope="module")
def trained(small_cohort, tmp_path_factory) -> Path:
    """The folder of a training on two ranks, with four cases and two steps per epoch."""
    folder = tmp_path_factory.mktemp("ranks")
    place = {"dataset_dir": small_cohort, "output_dir": folder / "run"}
    done = torchrun(files("train.json", "multi_gpu_train.json"), folder, **place, **TRAINING)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder / "run"


# Whole trainings, evaluations, inferences.


def test_a_training_on_two_ranks_leaves_one_set_of_files(trained):
    names = {path.name for path in trained.iterdir()}
    weights = {"model.pt", "model_last.pt", "trainer_state.pt", "trainer_state_previous.pt"}
    assert names == weights | {
        "model.json",
        "model_last.json",
        "config.json",
        "run.json",
        "datalist.json",
        "tensorboard",
    }
    for kind in ("training", "validation"):
        assert len(list((trained / "tensorboard" / kind).iterdir())) == 1
    state = torch.load(trained / "trainer_state.pt", weights_only=True)
    # Four cases on two ranks make two steps per epoch.
    assert (state["epoch"], state["iteration"]) == (2, 4)
    PriorAttentionNet(channels=CHANNELS).load_state_dict(state["network"])


def test_scores_on_two_ranks_are_those_on_one(trained, small_cohort, tmp_path):
    results = []
    for name, overlays in (("one", ()), ("two", ("multi_gpu_evaluate.json",))):
        output = tmp_path / name
        settings = {"dataset_dir": str(small_cohort), "output_dir": str(output), "cases": "all", **EVALUATION}
        settings["model_file"] = str(trained / "model.pt")
        if overlays:
            done = torchrun(files("train.json", "evaluate.json", *overlays), tmp_path, **settings)
            assert done.returncode == 0, done.stderr[-3000:]
        else:
            bundle_run("train.json", "evaluate.json", **settings)
        results.append(output / "evaluation_all")
    one, two = results
    assert len(rows(one / "scores.csv")) == 6
    assert rows(one / "scores.csv") == rows(two / "scores.csv")
    assert rows(one / "summary.csv") == rows(two / "summary.csv")
    for path in one.glob("*.nii.gz"):
        assert np.array_equal(voxels(path), voxels(two / path.name))


def test_inference_splits_the_cohort_over_the_ranks(trained, small_cohort, tmp_path):
    settings = {"dataset_dir": str(small_cohort), "output_dir": str(tmp_path / "maps"), **SIZE}
    settings["model_file"] = str(trained / "model.pt")
    overlay = tmp_path / "tell.json"
    overlay.write_text(json.dumps({"+handlers": [{"_target_": "workflows.TellCases", "folder": str(tmp_path)}]}))
    done = torchrun([*files("inference.json", "multi_gpu_evaluate.json"), str(overlay)], tmp_path, **settings)
    assert done.returncode == 0, done.stderr[-3000:]
    cases = sorted(path.name for path in small_cohort.iterdir())
    assert sorted(p.name.removesuffix(".nii.gz") for p in (tmp_path / "maps").glob("*.nii.gz")) == cases
    shares = [(tmp_path / f"rank_{number}.txt").read_text().split() for number in (0, 1)]
    assert shares == [cases[0::2], cases[1::2]]


def test_a_failure_on_one_rank_ends_all_with_its_message(small_cohort, tmp_path):
    overlay = tmp_path / "fail.json"
    handler = {"_target_": "workflows.FailAt", "iteration": 1, "rank": 1}
    overlay.write_text(json.dumps({"+train#handlers": [handler]}))
    place = {"dataset_dir": small_cohort, "output_dir": tmp_path / "run"}
    start = time.monotonic()
    done = torchrun([*files("train.json", "multi_gpu_train.json"), str(overlay)], tmp_path, **place, **TRAINING)
    assert done.returncode != 0
    assert "error: rank 1 has had enough; try again." in done.stderr
    assert time.monotonic() - start < 900, "the other rank went on waiting"


def test_a_bad_loss_on_another_rank_keeps_rank_zero_from_writing(small_cohort, tmp_path):
    overlay = tmp_path / "spoil.json"
    handler = {"_target_": "workflows.SpoilAt", "iteration": 6, "rank": 1}
    overlay.write_text(json.dumps({"+train#handlers": [handler]}))
    place = {"dataset_dir": small_cohort, "output_dir": tmp_path / "run"}
    two_epochs = {**TRAINING, "max_epochs": 3, "val_interval": 3}
    done = torchrun([*files("train.json", "multi_gpu_train.json"), str(overlay)], tmp_path, **place, **two_epochs)
    assert done.returncode != 0
    assert "the loss is nan" in done.stderr
    state = torch.load(tmp_path / "run" / "trainer_state.pt", weights_only=True)
    assert all(bool(value.isfinite().all()) for value in state["network"].values())
    assert state["iteration"] < 6


def test_a_refusal_is_said_once(small_cohort, tmp_path):
    place = {"dataset_dir": tmp_path / "nowhere", "output_dir": tmp_path / "run"}
    done = torchrun(files("train.json", "multi_gpu_train.json"), tmp_path, **place, **TRAINING)
    assert done.returncode != 0
    lines = [line for line in done.stderr.splitlines() if "error: " in line and "no such folder" in line]
    assert len(lines) == 1, done.stderr[-3000:]
    assert not (tmp_path / "run").exists()


# The parts, each in a function on two ranks.


def _rank(number: int, port: int, function, folder: str) -> None:
    os.environ.update(
        RANK=str(number), WORLD_SIZE="2", LOCAL_RANK=str(number), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port)
    )
    torch.set_num_threads(1)
    distributed.start("cpu", 2)
    torch.save(function(number), f"{folder}/{number}.pt")
    distributed.stop()


def on_two_ranks(function, folder: Path) -> list:
    """Return what ``function`` returns on each rank."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    mp.start_processes(_rank, (port, function, str(folder)), nprocs=2, start_method="fork")
    return [torch.load(folder / f"{number}.pt", weights_only=True) for number in (0, 1)]


def batch() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    image = torch.randn(2, 4, 32, 16, 16, generator=generator)
    regions = (torch.rand(2, 4, 32, 16, 16, generator=generator) > 0.5).float()
    return image, regions


def step(network: nn.Module, image: torch.Tensor, target: torch.Tensor) -> dict[str, torch.Tensor]:
    """Return the weights after one step of plain gradient descent, which moves them by the gradients."""
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    loss = PriorAttentionLoss()(network.train()(image), target)
    loss.backward()
    optimizer.step()
    return {name: value.detach().clone() for name, value in distributed.unwrap(network).state_dict().items()}


def build() -> PriorAttentionNet:
    torch.manual_seed(5)
    # Batch normalization of all samples needs GPUs.
    return PriorAttentionNet(channels=[4, 4, 8, 8, 8], head_norm="instance")


def one_rank_step(number: int) -> dict[str, torch.Tensor]:
    image, target = batch()
    network = distributed.replicate(build(), "cpu")
    return step(network, image[number : number + 1], target[number : number + 1])


def test_two_ranks_of_one_sample_step_as_one_rank_of_two(tmp_path):
    """Gradients are averaged, and the loss is a mean over samples."""
    first, second = on_two_ranks(one_rank_step, tmp_path)
    alone = step(build(), *batch())
    moved = build().state_dict()
    for name, value in alone.items():
        assert torch.equal(first[name], second[name]), name
        assert torch.allclose(first[name], value, atol=2e-6), name
    assert not torch.allclose(alone["head.output.weight"], moved["head.output.weight"], atol=1e-5)


def evaluation_on_a_rank(folder: Path, failing: tuple[int, ...], **settings):
    """Return a function that evaluates on a rank, where all cases fail if the rank is among ``failing``."""

    def evaluate(number: int) -> str:
        def broken(self, *args, **kwargs):
            raise RuntimeError("the network is gone")

        with pytest.MonkeyPatch.context() as patch:
            if number in failing:
                patch.setattr(BrainWindowInferer, "__call__", broken)
            names = ("train.json", "evaluate.json", "multi_gpu_evaluate.json")
            try:
                bundle_run(*names, output_dir=str(folder), device="cpu", **settings)
            except (RuntimeError, ValueError) as error:
                return str(input_error_behind(error) or error)
        return "done"

    return evaluate


@pytest.mark.parametrize("failing", [(1,), (0, 1)])
def test_the_cases_of_other_ranks_are_scored_where_all_of_one_fail(failing, small_cohort, model_file, tmp_path):
    settings = {"dataset_dir": str(small_cohort), "model_file": model_file, "cases": "all", **EVALUATION}
    told = on_two_ranks(evaluation_on_a_rank(tmp_path / "run", failing, **settings), tmp_path)
    cases = sorted(path.name for path in small_cohort.iterdir())
    failed = sorted(case for number in failing for case in cases[number::2])
    others = ", and the others are done" if len(failing) == 1 else ""
    assert told[0] == told[1] and told[0].startswith(f"{len(failed)} of 6 cases failed{others}: ")
    folder = tmp_path / "run" / "evaluation_all"
    assert sorted(json.loads((folder / "run.json").read_text())["failed"]) == failed
    if len(failing) == 2:
        assert not (folder / "scores.csv").exists()
        return
    bundle_run("train.json", "evaluate.json", output_dir=str(tmp_path / "one"), **settings)
    wanted = rows(tmp_path / "one" / "evaluation_all" / "scores.csv")
    assert rows(folder / "scores.csv") == {case: row for case, row in wanted.items() if case not in failed}


def local_rank(number: int) -> torch.Tensor:
    import ignite.distributed as idist

    return torch.tensor(idist.get_local_rank())


def test_within_a_job_of_slurm_a_rank_knows_its_device(tmp_path, monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.delenv("SLURM_LOCALID", raising=False)
    assert [int(number) for number in on_two_ranks(local_rank, tmp_path)] == [0, 1]


@pytest.mark.slow
def test_what_synchronizes_is_left_out_of_the_compilation(monkeypatch):
    """torch has the synchronized normalization on GPUs alone; here another one cuts the graph as it does."""

    def forward(self, x):
        torch._dynamo.graph_break()
        return nn.functional.batch_norm(x, None, None, self.weight, self.bias, training=True)

    monkeypatch.setattr(nn.SyncBatchNorm, "forward", forward)
    image = torch.randn(1, 4, 32, 16, 16)
    graphs = []

    def count(graph, inputs):
        graphs.append(graph)
        return graph.forward

    network = nn.SyncBatchNorm.convert_sync_batchnorm(PriorAttentionNet(channels=CHANNELS)).train()
    distributed.leave_out_of_compilation(network)
    torch.compiler.reset()
    compiled = torch.compile(network, backend=count, dynamic=False)
    for _ in range(2):
        compiled(image)
    torch.compiler.reset()
    # Otherwise there would be one for each of the head's four norms and more, and at last none.
    assert 2 <= len(graphs) <= 3


def samples(number: int) -> torch.Tensor:
    data = {"train#dataset#data": [{"case": str(n)} for n in range(8)]}
    made = initialized("train.json", "multi_gpu_train.json", kind="train", **data)
    sampler = made.parser.get_parsed_content("train#sampler")
    epochs = []
    for epoch in (1, 2):
        sampler.set_epoch(epoch)
        epochs.append(list(sampler))
    return torch.tensor(epochs)


def test_each_sample_once_an_epoch_in_a_new_order(tmp_path):
    first, second = on_two_ranks(samples, tmp_path)
    for epoch in (0, 1):
        assert sorted([*first[epoch].tolist(), *second[epoch].tolist()]) == list(range(8))
    assert not torch.equal(first[0], first[1])


# Settings.


def test_several_processes_for_a_configuration_of_one_are_refused(small_cohort, tmp_path, monkeypatch):
    """Otherwise, each process would train a network of its own, and all would write into one folder."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(RuntimeError) as caught:
        place = {"dataset_dir": str(small_cohort), "output_dir": str(tmp_path / "run")}
        bundle_run("train.json", **place, **TRAINING)
    assert "2 processes were started (WORLD_SIZE) for a configuration of one; add multi_gpu_train.json" in str(
        input_error_behind(caught.value)
    )
    assert not (tmp_path / "run").exists()


def test_more_ranks_than_gpus_are_refused(monkeypatch):
    for name, value in {"RANK": "0", "WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "4"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(InputError) as caught:
        distributed.start("cuda:0", 4)
    assert str(caught.value) == (
        "--nproc_per_node 4: this machine has 2 GPUs; start at most one process for each, or add --device cpu."
    )
    assert not dist.is_initialized()


def test_a_run_uses_its_device_for_calls_that_name_none(monkeypatch):
    used = []
    monkeypatch.setattr(torch.cuda, "set_device", used.append)
    for device in ("cuda:1", "cuda", "cpu"):
        distributed.start(device, 1)
    assert used == [torch.device("cuda:1")]


def test_without_torchrun_it_is_one_process(caplog):
    assert (distributed.launched_rank(), distributed.launched_world_size()) == (0, 1)
    assert (distributed.rank(), distributed.world_size()) == (0, 1)
    assert "Not started by torchrun: one process does all the work." in caplog.messages
    distributed.start("cpu", 1)
    assert not dist.is_initialized()
    network = build()
    assert distributed.replicate(network, "cpu") is network
    done = []
    distributed.on_rank_zero(lambda: done.append(1))
    assert done == [1]


@pytest.mark.parametrize(
    ("names", "kind"),
    [
        (("train.json", "multi_gpu_train.json"), "train"),
        (("train.json", "evaluate.json", "multi_gpu_evaluate.json"), "train"),
        (("inference.json", "multi_gpu_evaluate.json"), "infer"),
    ],
)
def test_properties_are_complete_without_torchrun(names, kind, tmp_path):
    made = ConfigWorkflow(
        files(*names), workflow_type=kind, logging_file=False, bundle_root=str(ROOT), dataset_dir=str(tmp_path)
    )
    made.initialize()
    assert made.check_properties() == []
    made.finalize()
