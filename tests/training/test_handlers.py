# Copyright (c) the brats_mri_panet_segmentation authors
# SPDX-License-Identifier: Apache-2.0
"""Handlers on small engines write the right values at the right time."""

import csv
import hashlib
import json
import logging
import re
import statistics
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from ignite.engine import Engine, Events
from monai.data import MetaTensor
from monai.engines import SupervisedTrainer
from scripts.scores.evaluation import EvaluationReport, summarize
from scripts.scores.table import EXPECTED, columns_of
from scripts.training.handlers import ClipGradients, FiniteTraining, LazySummaryWriter, MemoryAdvice, TrainingScalars
from scripts.training.losses import PriorAttentionLoss
from scripts.training.lr_schedulers import WarmupFlatCosineLR
from scripts.training.training_state import ResumeTraining, TrainingFiles, newest_state
from scripts.utils.errors import InputError
from scripts.utils.progress import ProgressHandler
from scripts.weights.record import UNKNOWN
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

SETTINGS = {"network": {"class": "Linear", "arguments": {}, "defaults": {}}, "spacing": [1.0]}


def training(output_dir, scores=None, max_epochs=4, steps=3):
    """Train one linear layer whose validation gives the listed scores; return what the files are compared with."""
    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2))
    optimizer = torch.optim.Adam(network.parameters(), lr=0.1)
    scheduler = WarmupFlatCosineLR(optimizer, max_epochs, steps, warmup_epochs=1, flat_epochs=1)

    def step(engine, batch):
        optimizer.zero_grad()
        network(batch).square().mean().backward()
        optimizer.step()
        scheduler.step()

    trainer = Engine(step)
    trainer.scaler = torch.amp.GradScaler("cpu", enabled=False)
    evaluator = None
    if scores is not None:
        evaluator = Engine(lambda engine, batch: None)
        evaluator.state.best_metric, evaluator.state.best_metric_epoch = -1, -1

        @trainer.on(Events.EPOCH_COMPLETED)
        def validate(engine):
            score = scores.get(engine.state.epoch)
            # MONAI's evaluator keeps its best score in this way, possibly as a tensor.
            if score is not None and score > evaluator.state.best_metric:
                evaluator.state.best_metric = torch.tensor(score)
                evaluator.state.best_metric_epoch = engine.state.epoch

    weights = {}

    @trainer.on(Events.EPOCH_COMPLETED)
    def remember(engine):
        weights[engine.state.epoch] = {name: value.clone() for name, value in network.state_dict().items()}

    TrainingFiles(output_dir, network, optimizer, scheduler, evaluator, settings=SETTINGS).attach(trainer)
    batches = list(torch.randn(steps, 8, 3, generator=torch.Generator().manual_seed(1)))
    return SimpleNamespace(
        run=lambda: trainer.run(batches, max_epochs=max_epochs),
        trainer=trainer,
        network=network,
        optimizer=optimizer,
        scheduler=scheduler,
        evaluator=evaluator,
        weights=weights,
    )


def load(path):
    return torch.load(path, weights_only=True)


def same(a, b):
    return list(a) == list(b) and all(torch.equal(a[name], b[name]) for name in a)


def leaves(value):
    if isinstance(value, dict):
        yield from (leaf for key, item in value.items() for leaf in (key, *leaves(item)))
    elif isinstance(value, (list, tuple)):
        yield from (leaf for item in value for leaf in leaves(item))
    else:
        yield value


# Files of a training.


@pytest.mark.parametrize(
    ("scores", "best"),
    [
        ({1: 0.2, 2: 0.5, 3: 0.4, 4: 0.1}, 2),
        ({1: 0.2, 2: 0.3, 3: 0.4, 4: 0.5}, 4),
        ({2: 0.5, 4: 0.5}, 2),
        ({1: 0.0, 3: 0.0}, 1),
    ],
)
def test_model_is_of_the_best_validation_and_last_of_the_last_epoch(tmp_path, scores, best, caplog):
    run = training(tmp_path / "new", scores)
    with caplog.at_level(logging.INFO):
        run.run()
    assert sorted(p.name for p in (tmp_path / "new").iterdir()) == [
        "model.json",
        "model.pt",
        "model_last.json",
        "model_last.pt",
        "trainer_state.pt",
        "trainer_state_previous.pt",
    ]
    assert same(load(tmp_path / "new" / "model.pt"), run.weights[best])
    assert same(load(tmp_path / "new" / "model_last.pt"), run.weights[4])
    for name, epoch in (("model", best), ("model_last", 4)):
        record = json.loads((tmp_path / "new" / f"{name}.json").read_text())
        # Only the preparation of a run counts the cases, so they are unknown here, as in a federated client.
        assert (record["scores"]["epoch"], record["trained_on"], record["spacing"]) == (epoch, UNKNOWN, [1.0])
        assert record["checksum"] == hashlib.sha256((tmp_path / "new" / f"{name}.pt").read_bytes()).hexdigest()
    assert f"{scores[best]:.4f}, after epoch {best}" in [m for m in caplog.messages if "Best" in m][-1]
    state = load(tmp_path / "new" / "trainer_state.pt")
    assert (state["best_metric"], state["best_metric_epoch"]) == (pytest.approx(scores[best]), best)


def test_without_validation_the_newest_weights_are_the_model(tmp_path):
    run = training(tmp_path)
    run.run()
    assert same(load(tmp_path / "model.pt"), run.weights[4])
    assert same(load(tmp_path / "model_last.pt"), run.weights[4])
    state = load(tmp_path / "trainer_state.pt")
    assert state["best_metric"] is None and state["best_metric_epoch"] is None


def test_a_training_that_never_validates_leaves_its_last_weights_and_says_so(tmp_path, caplog):
    run = training(tmp_path, scores={})
    seen = []
    run.trainer.add_event_handler(Events.EPOCH_COMPLETED, lambda engine: seen.append((tmp_path / "model.pt").exists()))
    run.run()
    assert seen == [False, False, False, True]
    assert same(load(tmp_path / "model.pt"), run.weights[4])
    assert load(tmp_path / "trainer_state.pt")["best_metric_epoch"] == -1
    assert "No epoch was validated" in caplog.text


def test_state_holds_tensors_and_plain_values_only_and_all_it_takes_to_go_on(tmp_path):
    run = training(tmp_path, {1: 0.25, 2: 0.5})
    run.run()
    state = load(tmp_path / "trainer_state.pt")
    allowed = (torch.Tensor, str, int, float, bool, type(None))
    assert not [leaf for leaf in leaves(state) if not isinstance(leaf, allowed)]
    assert same(state["network"], run.network.state_dict())
    assert (state["epoch"], state["iteration"], state["max_epochs"]) == (4, 12, 4)
    assert state["lr_scheduler"]["last_epoch"] == 12
    assert state["optimizer"]["param_groups"][0]["lr"] == run.optimizer.param_groups[0]["lr"]
    for index, parameter in enumerate(run.network.parameters()):
        kept = state["optimizer"]["state"][index]
        assert torch.equal(kept["exp_avg"], run.optimizer.state[parameter]["exp_avg"])
        assert float(kept["step"]) == 12
    assert state["scaler"] == {}
    # Fresh objects can load the state.
    other = training(tmp_path / "other")
    other.network.load_state_dict(state["network"])
    other.optimizer.load_state_dict(state["optimizer"])
    other.scheduler.load_state_dict(state["lr_scheduler"])
    assert other.scheduler.get_last_lr() == run.scheduler.get_last_lr()
    assert other.scheduler.factor(7) == run.scheduler.factor(7)


def test_the_scaler_of_mixed_precision_is_kept_and_taken_up(tmp_path):
    run = training(tmp_path)
    run.trainer.scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    run.run()
    kept = load(tmp_path / "trainer_state.pt")["scaler"]
    assert kept["scale"] == 1024.0
    other = training(tmp_path, max_epochs=5)
    other.trainer.scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    ResumeTraining(tmp_path, other.network, other.optimizer, other.scheduler).attach(other.trainer)
    other.run()
    assert other.trainer.scaler.get_scale() == 1024.0
    assert (other.trainer.state.epoch, other.trainer.state.iteration) == (5, 15)
    assert other.scheduler.last_epoch == 15


def test_a_worse_validation_after_resuming_does_not_replace_the_best_weights(tmp_path):
    first = training(tmp_path, {1: 0.2, 2: 0.9})
    first.run()
    best = load(tmp_path / "model.pt")
    second = training(tmp_path, {5: 0.5, 6: 0.6}, max_epochs=6)
    ResumeTraining(tmp_path, second.network, second.optimizer, second.scheduler, second.evaluator).attach(
        second.trainer
    )
    second.run()
    assert same(load(tmp_path / "model.pt"), best)
    state = load(tmp_path / "trainer_state.pt")
    assert (state["epoch"], state["best_metric"], state["best_metric_epoch"]) == (6, pytest.approx(0.9), 2)


def test_the_newer_of_two_valid_states_is_taken(tmp_path):
    run = training(tmp_path, {1: 0.25, 2: 0.5})
    run.run()
    path, state = newest_state(tmp_path)
    assert (path.name, state["epoch"]) == ("trainer_state.pt", 4)
    path.unlink()
    path, state = newest_state(tmp_path)
    assert (path.name, state["epoch"]) == ("trainer_state_previous.pt", 3)
    torch.save({"epoch": 9}, tmp_path / "trainer_state.pt")
    assert newest_state(tmp_path)[1]["epoch"] == 3


def test_weights_of_a_parallel_network_have_the_bare_names(tmp_path):
    run = training(tmp_path)
    wrapped = torch.nn.DataParallel(run.network)
    handler = TrainingFiles(tmp_path, wrapped, run.optimizer, run.scheduler, settings=SETTINGS)
    handler.epoch_completed(SimpleNamespace(state=SimpleNamespace(epoch=1, max_epochs=1, iteration=3)))
    assert same(load(tmp_path / "model.pt"), run.network.state_dict())


def test_a_failed_write_keeps_the_earlier_files(tmp_path, monkeypatch):
    run = training(tmp_path, {1: 0.5})
    run.trainer.run(list(torch.randn(3, 8, 3)), max_epochs=1)
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}

    def full_disk(value, path):
        path.write_bytes(b"half")
        raise OSError("No space left on device")

    monkeypatch.setattr(torch, "save", full_disk)
    handler = TrainingFiles(tmp_path, run.network, run.optimizer, run.scheduler, settings=SETTINGS)
    with pytest.raises(OSError, match="No space left"):
        handler.epoch_completed(run.trainer)
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before


# TensorBoard.


def events(folder):
    accumulator = EventAccumulator(str(folder))
    accumulator.Reload()
    return {tag: [(e.step, e.value) for e in accumulator.Scalars(tag)] for tag in accumulator.Tags()["scalars"]}


def test_no_file_is_made_before_the_first_value(tmp_path):
    writer = LazySummaryWriter(str(tmp_path / "tensorboard"))
    writer.flush()
    writer.close()
    assert not (tmp_path / "tensorboard").exists()
    writer.add_scalar("a", 2.5, 7)
    writer.add_scalar("a", 3.5, 8)
    writer.flush()
    assert len(list((tmp_path / "tensorboard").iterdir())) == 1
    writer.close()
    assert events(tmp_path / "tensorboard") == {"a": [(7, 2.5), (8, 3.5)]}


def iterations(loss, optimizer, writer, scalars, steps):
    """Run steps with logits of 0 and a target of 1; the learning rate is an eighth of the step's number."""
    target = torch.ones(1, 4, 2, 2, 2)
    for step in steps:
        loss({"out": torch.zeros(1, 4, 2, 2, 2), "prior": torch.zeros(1, 1, 2, 2, 2)}, target)
        optimizer.param_groups[0]["lr"] = step / 8
        scalars(SimpleNamespace(state=SimpleNamespace(iteration=step)), writer)


def test_iterations_leave_loss_terms_and_learning_rates(tmp_path):
    loss = PriorAttentionLoss()
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))])
    writer = LazySummaryWriter(str(tmp_path))
    scalars = TrainingScalars(loss, optimizer)
    iterations(loss, optimizer, writer, scalars, (9, 10))
    assert not list(tmp_path.iterdir())
    scalars.write(SimpleNamespace(), writer)
    scalars.write(SimpleNamespace(), writer)
    writer.close()
    # The probability is 0.5 and the target is 1 in all 8 voxels, so Dice is 1 - 8 / (2 + 8) with the squared
    # denominator, and the cross-entropy is log 2.
    term = pytest.approx(0.2 + np.log(2), rel=1e-4)
    total = pytest.approx(0.4 + 2 * np.log(2), rel=1e-4)
    assert events(tmp_path) == {
        "train/loss": [(9, total), (10, total)],
        "train/loss_out": [(9, term), (10, term)],
        "train/loss_prior": [(9, term), (10, term)],
        "train/learning_rate": [(9, 9 / 8), (10, 10 / 8)],
    }


def test_a_long_epoch_is_written_on_the_way(tmp_path, monkeypatch):
    loss = PriorAttentionLoss()
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))])
    writer = LazySummaryWriter(str(tmp_path))
    now = [1000.0]
    monkeypatch.setattr("scripts.training.handlers.time.monotonic", lambda: now[0])
    scalars = TrainingScalars(loss, optimizer)
    iterations(loss, optimizer, writer, scalars, (1, 2))
    now[0] += 31
    iterations(loss, optimizer, writer, scalars, (3, 4))
    writer.close()
    assert [step for step, _ in events(tmp_path)["train/loss"]] == [1, 2, 3]


# Losses and weights that are not finite.


def finite_training(losses, network=None, steps=4, epochs=2):
    """Make an engine whose iterations have the listed losses; two more handlers record what else runs, and when."""
    network = network or torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.BatchNorm1d(2))
    engine = Engine(lambda engine, batch: [{"loss": torch.tensor(losses[engine.state.iteration - 1])}])
    handler = FiniteTraining(network)
    handler.attach(engine)
    done = []
    engine.add_event_handler(Events.ITERATION_COMPLETED, lambda engine: done.append(engine.state.iteration))
    engine.add_event_handler(Events.EPOCH_COMPLETED, lambda engine: done.append("files"))
    return engine, handler, done, lambda: engine.run(range(steps), max_epochs=epochs)


def test_finite_losses_and_weights_pass():
    _, _, done, run = finite_training([0.5] * 8)
    run()
    assert done == [1, 2, 3, 4, "files", 5, 6, 7, 8, "files"]


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("iteration", [5, 6, 8])
def test_a_loss_that_is_not_finite_ends_the_epoch_before_its_files(bad, iteration):
    losses = [0.5] * 8
    losses[iteration - 1 :] = [bad] * (9 - iteration)
    _, _, done, run = finite_training(losses)
    with pytest.raises(InputError) as caught:
        run()
    assert str(caught.value).startswith(
        f"iteration {iteration} (epoch 2): the loss is {bad}; nothing of this epoch was"
    )
    assert "go on after epoch 1 with --resume True" in str(caught.value)
    assert done == [1, 2, 3, 4, "files", 5, 6, 7, 8]


@pytest.mark.parametrize("name", ["0.weight", "1.running_var"])
def test_weights_and_statistics_that_are_not_finite_end_it_too(name):
    """With several ranks, this happens if the loss of another rank is not finite."""
    network = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.BatchNorm1d(2))
    network.state_dict()[name].view(-1)[1] = float("inf")
    _, _, done, run = finite_training([0.5] * 8, network)
    with pytest.raises(InputError, match=r"^epoch 1: weights are not finite; train again with a lower --learning_rate"):
        run()
    assert done == [1, 2, 3, 4]


def test_no_step_reads_a_loss_but_now_and_then(monkeypatch):
    """Reading a loss waits for the device, so within a long epoch this is done only every half a minute."""
    now, read = [1000.0], []
    monkeypatch.setattr("scripts.training.handlers.time.monotonic", lambda: now[0])
    tolist = torch.Tensor.tolist
    monkeypatch.setattr(torch.Tensor, "tolist", lambda self: (read.append(len(self)), tolist(self))[1])
    monkeypatch.setattr(torch.Tensor, "item", lambda self: pytest.fail("a step waits for the device"))
    monkeypatch.setattr(torch.Tensor, "__bool__", lambda self: pytest.fail("a step waits for the device"))
    engine, handler, _, _ = finite_training([0.5] * 8)
    for iteration in range(1, 8):
        engine.state.iteration = iteration
        engine.state.output = [{"loss": torch.tensor(float("nan") if iteration == 7 else 0.5)}]
        if iteration == 4:
            now[0] += 31
        if iteration == 7:
            now[0] += 31
            with pytest.raises(InputError, match="iteration 7 "):
                handler.iteration_completed(engine)
        else:
            handler.iteration_completed(engine)
    assert read == [4, 3]


# Report.


@pytest.mark.parametrize(
    ("values", "wanted"),
    [
        ([3.0], {"mean": 3, "std": 0, "median": 3, "quartile1": 3, "quartile3": 3}),
        (
            [1.0, 2.0, 3.0, 4.0],
            {"mean": 2.5, "std": (5 / 3) ** 0.5, "median": 2.5, "quartile1": 1.75, "quartile3": 3.25},
        ),
        (
            [0.0, 0.0, 373.12866],
            {"mean": 124.37622, "std": 215.42593, "median": 0, "quartile1": 0, "quartile3": 186.56433},
        ),
    ],
)
def test_summary_of_a_column(values, wanted):
    assert summarize(np.array(values)) == pytest.approx(wanted, rel=1e-6)


def test_summary_is_that_of_the_standard_library():
    values = np.random.default_rng(0).normal(size=31)
    found = summarize(values)
    low, middle, high = statistics.quantiles(values.tolist(), n=4, method="inclusive")
    assert [found["quartile1"], found["median"], found["quartile3"]] == pytest.approx([low, middle, high])
    assert found["std"] == pytest.approx(statistics.stdev(values.tolist()))


AFFINE = torch.diag(torch.tensor([-1.0, 2.0, 1.5, 1.0], dtype=torch.float64))  # A voxel has 3 mm^3.


def regions(et, tc, wt):
    values = torch.zeros(4, 4, 4, 4)
    for channel, count in enumerate((et, tc, wt), 1):
        values[channel].view(-1)[:count] = 1
    return MetaTensor(values, affine=AFFINE)


CASES = ["b_case", "a_case", "c_case"]
PREDICTED = [(1, 2, 3), (0, 4, 64), (5, 5, 5)]
REFERENCE = [(2, 2, 2), (0, 0, 0), (5, 6, 7)]
DICE = [[0.5, 1.0, 0.8], [1.0, 0.0, 0.0], [0.123456, 0.75, 0.25]]
HD95 = [[1.0, 0.0, 2.0], [0.0, 373.12866, 373.12866], [10.0, 1.5, 2.5]]


def evaluate(report, batches=((0, 1), (2,)), details=None):
    def step(engine, indices):
        engine.state.batch = [{"case": CASES[i]} for i in indices]
        return [{"pred": regions(*PREDICTED[i]), "label": regions(*REFERENCE[i])} for i in indices]

    engine = Engine(step)
    report.attach(engine)
    done = [i for batch in batches for i in batch]
    details = details or {("dice",): [DICE[i] for i in done], ("hd95",): [HD95[i] for i in done]}
    # MONAI's handlers leave a metric's scores of all cases, and its means by name.
    engine.state.metric_details = {str(names): torch.tensor(values) for names, values in details.items()}
    engine.state.metrics = {
        str(names): {f"val_{name}_{region}": 0.0 for name in names for region in ("ET", "TC", "WT")}
        for names in details
    }
    engine.state.metric_details["val_mean_dice"] = torch.tensor([DICE[i] for i in done])
    engine.state.metrics["val_mean_dice"] = 0.5
    engine.run(list(batches))


def read_csv(path):
    with path.open(newline="") as file:
        return list(csv.reader(file))


HEADER = [f"{c}_{r}" for c in ("dice", "hd95", "volume", "reference_volume") for r in ("ET", "TC", "WT")]


def test_report_has_the_scores_and_volumes_of_every_case(tmp_path, capsys):
    evaluate(EvaluationReport(tmp_path / "out"))
    header, *rows = read_csv(tmp_path / "out" / "scores.csv")
    assert header == ["case", *HEADER, *columns_of(EXPECTED)]
    values = [
        [*dice, *hd95, *(3.0 * n for n in predicted), *(3.0 * n for n in reference)]
        for dice, hd95, predicted, reference in zip(DICE, HD95, PREDICTED, REFERENCE, strict=True)
    ]
    by_name = sorted(zip(CASES, values, strict=True))
    assert [row[0] for row in rows] == sorted(CASES)
    unknown = [""] * len(columns_of(EXPECTED))
    assert [row[1:] for row in rows] == [[*(f"{np.float32(v):.4f}" for v in row), *unknown] for _, row in by_name]
    header, *rows = read_csv(tmp_path / "out" / "summary.csv")
    assert header == ["statistic", *HEADER]
    summary = {row[0]: [float(v) for v in row[1:]] for row in rows}
    columns = list(zip(*values, strict=True))
    assert list(summary) == ["mean", "std", "median", "quartile1", "quartile3"]
    assert summary["mean"] == pytest.approx([statistics.mean(c) for c in columns], abs=1e-4)
    assert summary["std"] == pytest.approx([statistics.stdev(c) for c in columns], abs=1e-4)
    assert summary["median"] == pytest.approx([statistics.median(c) for c in columns], abs=1e-4)
    quartiles = [statistics.quantiles(c, n=4, method="inclusive") for c in columns]
    assert summary["quartile1"] == pytest.approx([q[0] for q in quartiles], abs=1e-4)
    assert summary["quartile3"] == pytest.approx([q[2] for q in quartiles], abs=1e-4)
    shown = capsys.readouterr().out
    assert "3 cases" in shown and "HD95 (mm)" in shown and f"{(0.5 + 1 + 0.123456) / 3:.3f}" in shown


def test_a_metric_may_give_several_scores(tmp_path, capsys):
    """The first score of all regions comes first."""
    two = [[*hd95, *dice] for hd95, dice in zip(HD95, DICE, strict=True)]
    evaluate(EvaluationReport(tmp_path), details={("hd95", "specificity"): two})
    header, *rows = read_csv(tmp_path / "scores.csv")
    assert header[1:7] == [f"{score}_{region}" for score in ("hd95", "specificity") for region in ("ET", "TC", "WT")]
    assert header[7] == "volume_ET"
    assert rows[1][1:7] == ["1.0000", "0.0000", "2.0000", "0.5000", "1.0000", "0.8000"]
    assert f"{(0.5 + 1 + 0.123456) / 3:.4f}" in capsys.readouterr().out
    # A metric that names more scores than it gives is an error.
    with pytest.raises(ValueError, match="zip"):
        evaluate(EvaluationReport(tmp_path), details={("hd95", "specificity"): HD95})


def test_a_second_evaluation_forgets_the_first(tmp_path):
    report = EvaluationReport(tmp_path)
    evaluate(report)
    evaluate(report, batches=((2,), (1,)))
    rows = read_csv(tmp_path / "scores.csv")[1:]
    assert [row[0] for row in rows] == ["a_case", "c_case"]
    assert [row[1:4] for row in rows] == [["1.0000", "0.0000", "0.0000"], ["0.1235", "0.7500", "0.2500"]]


# Progress.


def said(caplog):
    """Return what the handlers logged, without the messages of engines, which a workflow may have turned on."""
    return [record.getMessage() for record in caplog.records if record.name == "scripts.utils.progress"]


def test_progress_without_a_terminal_is_a_line_in_the_log_at_the_end(caplog):
    engine = Engine(lambda engine, batch: {"loss": 0.5})
    ProgressHandler("Training", loss=True).attach(engine)
    with caplog.at_level(logging.INFO, "scripts.utils.progress"):
        engine.run([0] * 5, max_epochs=2)
    assert said(caplog) == ["Training, epoch 2/2, loss 0.500: iteration 10 of 10, 0 s left"]


def test_progress_of_an_evaluation_counts_one_pass(caplog):
    engine = Engine(lambda engine, batch: None)
    engine.mode = "eval"  # MONAI's evaluators have this mode.
    ProgressHandler("Evaluating", unit="case").attach(engine)
    with caplog.at_level(logging.INFO, "scripts.utils.progress"):
        engine.run([0] * 3)
    assert said(caplog) == ["Evaluating: case 3 of 3, 0 s left"]


def test_progress_is_logged_now_and_then_with_the_time_left(caplog, monkeypatch):
    clock = iter(range(0, 10_000, 20))  # The start and each iteration take 20 s.
    monkeypatch.setattr("scripts.training.handlers.time.monotonic", lambda: next(clock))
    engine = Engine(lambda engine, batch: None)
    ProgressHandler("Evaluating", unit="case").attach(engine)
    with caplog.at_level(logging.INFO, "scripts.utils.progress"):
        engine.run([0] * 7)
    found = [re.search(r"case (\d) of 7, (.*) left", m).groups() for m in said(caplog)]
    # A line comes at most every 30 s, that is, after every second iteration of 20 s and after the last one.
    assert found == [("2", "2 min"), ("4", "60 s"), ("6", "20 s"), ("7", "0 s")]


def test_progress_does_not_count_what_is_still_being_written(caplog, monkeypatch):
    """Such as the pictures of a case; without them, the end would come with no time left and long silence."""
    clock = iter(range(0, 10_000, 40))
    monkeypatch.setattr("scripts.training.handlers.time.monotonic", lambda: next(clock))
    engine, waiting = Engine(lambda engine, batch: None), [1, 1, 1, 0]
    ProgressHandler("Segmenting", unit="case", unfinished=lambda: waiting.pop(0)).attach(engine)
    with caplog.at_level(logging.INFO, "scripts.utils.progress"):
        engine.run([0] * 3)
    assert said(caplog) == [
        f"Segmenting: case {done} of 3, {left} left" for done, left in ((1, "3 min"), (2, "60 s"), (3, "0 s"))
    ]


@pytest.mark.parametrize("scale", [None, 2.0**16])
def test_gradients_are_clipped_to_their_norm_also_where_the_loss_is_scaled(scale):
    """Without the clipping, the weights would move by their gradient of 30 and 40."""
    network = torch.nn.Linear(2, 1, bias=False)
    before = network.weight.detach().clone()
    optimizer = torch.optim.SGD(network.parameters(), lr=1.0)
    trainer = SupervisedTrainer(
        device="cpu",
        max_epochs=1,
        train_data_loader=[{"image": torch.tensor([[30.0, 40.0]]), "label": torch.zeros(1, 1)}],
        network=network,
        optimizer=optimizer,
        loss_function=lambda found, wanted: found.sum(),
        train_handlers=[ClipGradients(network, max_norm=10.0)],
    )
    if scale is not None:
        trainer.amp, trainer.scaler = True, torch.amp.GradScaler("cpu", init_scale=scale)
    trainer.run()
    torch.testing.assert_close(before - network.weight.detach(), torch.tensor([[6.0, 8.0]]))


def test_gradients_within_the_norm_stay():
    network = torch.nn.Linear(2, 1, bias=False)
    network.weight.grad = torch.tensor([[3.0, 4.0]])
    ClipGradients(network, max_norm=5.5).backward_completed(SimpleNamespace(scaler=None))
    assert network.weight.grad.tolist() == [[3.0, 4.0]]


def fails_in(place, error):
    """Run a trainer that raises ``error`` in its step or in its validation."""

    def step(engine, batch):
        if place == "step":
            raise error

    trainer = Engine(step)
    MemoryAdvice().attach(trainer)

    @trainer.on(Events.EPOCH_COMPLETED)
    def validate(engine):
        raise error

    trainer.run([1, 2])


FULL = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has 79 GiB.\nSee PyTorch's pages.")


@pytest.mark.parametrize(
    ("place", "advice"),
    [
        ("step", "a training step: lower --batch_size or --patch_size"),
        ("validation", "the validation: set --sw_batch_size 1, or leave out whole_brain.yaml"),
    ],
)
def test_memory_that_is_short_is_one_line_that_names_the_setting(place, advice):
    with pytest.raises(InputError) as caught:
        fails_in(place, FULL)
    assert str(caught.value) == f"out of memory in {advice} (CUDA out of memory. Tried to allocate 2.00 GiB.)"


@pytest.mark.parametrize("error", [RuntimeError("other shapes"), InputError("wrong; mend it.")])
def test_other_errors_stay_as_they_are(error):
    with pytest.raises(type(error), match=str(error)):
        fails_in("step", error)
