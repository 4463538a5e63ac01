# Copyright (c) the brats_mri_panet_segmentation authors
# SPDX-License-Identifier: Apache-2.0
"""A training that is killed and resumed ends like an uninterrupted one, to the last bit."""

import json
import os
from pathlib import Path

import pytest
import torch
from scripts.utils.errors import input_error_behind
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from workflows import CONFIGS, ROOT, TRAINING_SIZE, bundle_run, command, files

# With two folds, three cases are for training, so an epoch has three iterations.
TRAINING = {**TRAINING_SIZE, "max_epochs": 4, "val_interval": 2, "flat_epochs": 1, "folds": 2, "fold": 0}
KILLED_IN = 8  # This is the second iteration of the third epoch.


def settings(cohort: Path, output: Path, **changes) -> dict:
    return {"dataset_dir": str(cohort), "output_dir": str(output), **TRAINING, **changes}


MIDDLE_OF_EPOCH = {"_target_": "workflows.KillAt", "iteration": KILLED_IN}
HALF_A_FILE = {"_target_": "workflows.KillWhileSaving", "epoch": 3}


def kill(cohort: Path, output: Path, folder: Path, handler: dict = MIDDLE_OF_EPOCH, **changes) -> None:
    """Train in a process of its own, which ``handler`` kills in the third epoch."""
    overlay = folder / "kill.json"
    overlay.write_text(json.dumps({"+train#handlers": [handler]}))
    chosen = {"bundle_root": ROOT, **settings(cohort, output, **changes)}
    flat = [text for key, value in chosen.items() for text in (f"--{key}", str(value))]
    config = str([*files("train.json"), str(overlay)])
    done = command("monai.bundle", "run", "--config_file", config, *flat, cwd=folder)
    assert done.returncode == -9, done.stderr[-2000:]


def resume(cohort: Path, output: Path, **changes) -> None:
    bundle_run("train.json", **settings(cohort, output, **changes), resume=True)


def spoil(cohort: Path, output: Path, folder: Path, what: str, iteration: int, **changes) -> str:
    """Train until images or weights become NaN in the given iteration, and return the one line of the error."""
    overlay = folder / "spoil.json"
    handler = {"_target_": "workflows.SpoilAt", "iteration": iteration, "what": what, "network": "@network"}
    overlay.write_text(json.dumps({"+train#handlers": [handler]}))
    chosen = {"bundle_root": ROOT, **settings(cohort, output, **changes)}
    flat = [text for key, value in chosen.items() for text in (f"--{key}", str(value))]
    config = str([*files("train.json"), str(overlay)])
    done = command("monai.bundle", "run", "--config_file", config, *flat, cwd=folder)
    assert done.returncode == 1, done.stderr[-2000:]
    assert "Traceback" not in done.stderr
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    return line


def load(path: Path) -> dict:
    return torch.load(path, weights_only=True)


def assert_same(a, b, where: str = "") -> None:
    """Check that two nested values are equal to the last bit."""
    if isinstance(a, dict):
        assert list(a) == list(b), where
        for key in a:
            assert_same(a[key], b[key], f"{where}/{key}")
    elif isinstance(a, (list, tuple)):
        assert len(a) == len(b), where
        for index, (x, y) in enumerate(zip(a, b, strict=True)):
            assert_same(x, y, f"{where}/{index}")
    elif isinstance(a, torch.Tensor):
        assert torch.equal(a, b), where
    else:
        assert a == b, where


@pytest.fixture(scope="module")
def uninterrupted(small_cohort, tmp_path_factory) -> Path:
    output = tmp_path_factory.mktemp("uninterrupted") / "run"
    bundle_run("train.json", **settings(small_cohort, output))
    return output


@pytest.fixture(scope="module")
def killed(small_cohort, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("killed")
    kill(small_cohort, folder / "run", folder)
    return folder / "run"


def copy(run: Path, to: Path) -> Path:
    """Copy the folder of a run as hard links; replacing a file in the copy leaves the original as it is."""
    for path in run.rglob("*"):
        if path.is_file():
            target = to / path.relative_to(run)
            target.parent.mkdir(parents=True, exist_ok=True)
            os.link(path, target)
    return to


def test_the_killed_training_was_in_the_middle_of_an_epoch(killed):
    state = load(killed / "trainer_state.pt")
    assert (state["epoch"], state["iteration"]) == (2, 6)


def test_resumed_it_ends_as_if_never_stopped(small_cohort, uninterrupted, killed, tmp_path):
    output = copy(killed, tmp_path / "run")
    resume(small_cohort, output)
    for name in ("trainer_state.pt", "model.pt", "model_last.pt"):
        assert_same(load(output / name), load(uninterrupted / name), name)
    assert load(output / "trainer_state.pt")["epoch"] == 4
    assert load(output / "trainer_state.pt")["best_metric"] > 0
    before, after = (load(run / "model_last.pt")["outputs.3.weight"] for run in (killed, output))
    assert not torch.equal(before, after)
    record = json.loads((output / "run.json").read_text())
    assert [entry["until_epoch"] for entry in record["resumed"]] == [2]
    assert len(list(output.glob("config_*.json"))) == 1, "the configuration that it started with is kept"


@pytest.mark.parametrize(
    ("what", "iteration", "said"),
    [
        # Iteration 8 is in the middle of the third epoch. Iteration 12 is the last one before a validation.
        ("images", 8, "error: iteration 8 (epoch 3): the loss is nan"),
        ("images", 12, "error: iteration 12 (epoch 4): the loss is nan"),
        ("weights", 12, "error: epoch 4: weights are not finite"),
    ],
)
def test_a_loss_that_is_not_finite_ends_it_with_the_last_good_state(
    small_cohort, uninterrupted, tmp_path, what, iteration, said
):
    output = tmp_path / "run"
    line = spoil(small_cohort, output, tmp_path, what, iteration)
    epoch = 2 if iteration == 8 else 3
    assert line == (
        f"{said}; nothing of this epoch was written: go on after epoch {epoch} with --resume True (and "
        "--amp False, if the precision may be the cause), or train again with a lower --learning_rate, or with "
        "--amp False."
    )
    assert load(output / "trainer_state.pt")["epoch"] == epoch
    for name in ("model.pt", "model_last.pt"):
        assert all(bool(value.isfinite().all()) for value in load(output / name).values())
    assert load(output / "trainer_state.pt")["best_metric_epoch"] == 2
    resume(small_cohort, output)
    for name in ("trainer_state.pt", "model.pt", "model_last.pt"):
        assert_same(load(output / name), load(uninterrupted / name), name)


def test_a_loss_that_is_not_finite_in_the_first_epoch_leaves_nothing_to_resume(small_cohort, tmp_path):
    line = spoil(small_cohort, tmp_path / "run", tmp_path, "images", 2)
    assert line == (
        "error: iteration 2 (epoch 1): the loss is nan; train again with a lower --learning_rate, or with --amp False."
    )
    assert not list((tmp_path / "run").glob("*.pt"))


def test_with_a_fused_optimizer_it_goes_on_in_another_layout(small_cohort, uninterrupted, tmp_path):
    output = tmp_path / "run"
    kill(small_cohort, output, tmp_path, **{"optimizer#fused": True})
    before = load(output / "model_last.pt")
    resume(small_cohort, output, channels_last=True, **{"optimizer#fused": True})
    wanted, found = (load(run / "model_last.pt") for run in (uninterrupted, output))
    learned = [name for name in wanted if name.endswith(("weight", "bias"))]
    moved = torch.cat([(wanted[name] - before[name]).flatten() for name in learned])
    apart = torch.cat([(found[name] - wanted[name]).flatten() for name in learned])
    # The weights differ by rounding only. If the state had another layout than its weights, they would differ more.
    assert apart.norm() < 0.05 * moved.norm()


def scalars(run: Path, kind: str, tag: str) -> list[tuple[int, float]]:
    events = EventAccumulator(str(run / "tensorboard" / kind))
    events.Reload()
    return [(event.step, event.value) for event in events.Scalars(tag)]


def test_curves_of_a_resumed_training_have_each_step_once(small_cohort, uninterrupted, killed, tmp_path):
    """This holds even if it continues from a step before the last logged one."""
    output = copy(killed, tmp_path / "run")
    (output / "trainer_state.pt").unlink()
    resume(small_cohort, output)
    for kind, tag in (("training", "train/loss"), ("validation", "val_mean_dice")):
        assert scalars(output, kind, tag) == scalars(uninterrupted, kind, tag)
    assert [step for step, _ in scalars(output, "training", "train/loss")] == list(range(1, 13))
    assert [step for step, _ in scalars(output, "validation", "val_mean_dice")] == [2, 4]


def test_killed_while_it_writes_its_state(small_cohort, uninterrupted, tmp_path):
    """The half-written file is never read, and it is gone after the training was resumed."""
    output = tmp_path / "run"
    kill(small_cohort, output, tmp_path, HALF_A_FILE)
    assert [path for path in output.iterdir() if path.name.startswith(".trainer_state.pt.")]
    assert load(output / "trainer_state.pt")["epoch"] == 2
    resume(small_cohort, output)
    assert not [path for path in output.iterdir() if path.name.startswith(".")]
    for name in ("trainer_state.pt", "model.pt"):
        assert_same(load(output / name), load(uninterrupted / name), name)


def test_with_two_workers_too(small_cohort, uninterrupted, tmp_path):
    bundle_run("train.json", **settings(small_cohort, tmp_path / "whole", num_workers=2))
    kill(small_cohort, tmp_path / "run", tmp_path, num_workers=2)
    resume(small_cohort, tmp_path / "run", num_workers=2)
    for name in ("trainer_state.pt", "model.pt"):
        assert_same(load(tmp_path / "run" / name), load(tmp_path / "whole" / name), name)
    # The random numbers are the same as without workers. Only sums differ, since a worker computes with one thread.
    a, b = (load(run / "model_last.pt")["outputs.3.weight"] for run in (tmp_path / "whole", uninterrupted))
    assert torch.allclose(a, b, atol=1e-3)


def test_a_truncated_state_is_passed_over_for_the_one_before(small_cohort, uninterrupted, killed, tmp_path, caplog):
    output = copy(killed, tmp_path / "run")
    content = (output / "trainer_state.pt").read_bytes()
    (output / "trainer_state.pt").unlink()
    (output / "trainer_state.pt").write_bytes(content[: len(content) // 2])
    resume(small_cohort, output)
    assert any("Passed over" in m and "trainer_state.pt: not a readable file" in m for m in caplog.messages)
    record = json.loads((output / "run.json").read_text())
    assert record["resumed"][0]["until_epoch"] == 1
    assert_same(load(output / "trainer_state.pt"), load(uninterrupted / "trainer_state.pt"))


def test_a_finished_training_goes_on_when_lengthened(small_cohort, uninterrupted, tmp_path):
    output = copy(uninterrupted, tmp_path / "run")
    resume(small_cohort, output)
    assert_same(load(output / "trainer_state.pt"), load(uninterrupted / "trainer_state.pt"))
    resume(small_cohort, output, max_epochs=5)
    state = load(output / "trainer_state.pt")
    assert (state["epoch"], state["iteration"], state["max_epochs"]) == (5, 15, 5)


def nothing(output: Path) -> dict:
    (output / "trainer_state.pt").unlink()
    (output / "trainer_state_previous.pt").write_bytes(b"")
    return {}


REFUSED = {
    "no valid state": (nothing, "no valid trainer state (trainer_state.pt or trainer_state_previous.pt)"),
    "another network": (lambda output: {"network_def#channels": [4] * 5}, "state of another network (encoder.2"),
    "another optimizer": (
        lambda output: {"overlays": ["train_sgd.yaml"]},
        "state of another optimizer (Adam, not SGD)",
    ),
    "another batch size": (lambda output: {"batch_size": 3}, "6 iterations in 2 epochs, but an epoch now has 1"),
    "another kind of outputs": (lambda output: {"exclusive": True}, "model_last.pt: by its record ("),
    "no such folder": (lambda output: {"output_dir": str(output / "nowhere")}, "give the --output_dir of a stopped"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_cannot_be_resumed_is_refused_and_left_alone(kind, small_cohort, killed, tmp_path):
    output = copy(killed, tmp_path / "run")
    change, said = REFUSED[kind]
    changes = change(output)
    before = {path: path.stat().st_mtime_ns for path in output.rglob("*")}
    with pytest.raises(RuntimeError) as caught:
        names = ("train.json", *changes.pop("overlays", []))
        bundle_run(*names, **{**settings(small_cohort, output), **changes}, resume=True)
    error = input_error_behind(caught.value)
    assert error is not None and said in str(error) and "\n" not in str(error)
    assert {path: path.stat().st_mtime_ns for path in output.rglob("*")} == before


def test_a_finetuning_is_resumed_without_its_file(small_cohort, killed, tmp_path):
    pretrained = tmp_path / "start.pt"
    pretrained.write_bytes((killed / "model.pt").read_bytes())
    names, output = ["train.json", "train_finetune.yaml"], tmp_path / "run"
    first = {**settings(small_cohort, output, max_epochs=1), "pretrained_file": str(pretrained)}
    bundle_run(*names, **first)
    pretrained.unlink()
    bundle_run(*names, **{**first, "max_epochs": 2, "resume": True})
    assert load(output / "trainer_state.pt")["epoch"] == 2


def test_other_settings_than_at_the_start_are_warned_of(small_cohort, killed, tmp_path, caplog):
    output = copy(killed, tmp_path / "run")
    resume(small_cohort, output, learning_rate=2e-3)
    config = next(output.glob("config_*.json"))
    # The killing handler was part of "train", so this setting differs as well.
    said = f"The training started with other settings of learning_rate, train ({output / 'config.json'}); "
    assert any(message.startswith(said) for message in caplog.messages)
    assert json.loads((output / "run.json").read_text())["recipe_changed"] == ["learning_rate", "train"]
    assert (
        json.loads(config.read_text())["learning_rate"]
        == json.loads((CONFIGS / "train.json").read_text())["learning_rate"]
    )
