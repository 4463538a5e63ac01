# Copyright (c) the brats_mri_panet_segmentation authors
# SPDX-License-Identifier: Apache-2.0
"""Ignite handlers that MONAI does not have: time left, training curves, a report by case, and others."""

from __future__ import annotations

import atexit
import logging
import math
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ignite.engine import Events
from monai.engines.trainer import SupervisedTrainer
from monai.engines.utils import IterationEvents
from monai.engines.workflow import Workflow
from monai.utils import evenly_divisible_all_gather, string_list_all_gather
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from scripts.brats import REGIONS
from scripts.distributed import on_any_rank, rank, unwrap
from scripts.errors import InputError
from scripts.files import save_csv
from scripts.losses import PriorAttentionLoss
from torch.utils.tensorboard import SummaryWriter

logger = logging.getLogger(__name__)

# Without a terminal, progress goes to the log, with at least this many seconds between two lines.
LOG_INTERVAL_S = 30.0


class ProgressHandler:
    """A handler that shows the progress of a whole run and the time left.

    On a terminal it shows a bar. Otherwise it writes a line to the log now and then.

    Args:
        description: name of the work, such as "Training".
        unit: name of an iteration, such as "case".
        loss: show the loss. Reading it waits for the device, so it is read only when the display is refreshed, at most
            once a second.
    """

    def __init__(self, description: str, unit: str = "iteration", loss: bool = False) -> None:
        self.description = description
        self.unit = unit
        self.loss = loss
        self._progress: Progress | None = None
        self._task: Any = None
        self._start = 0.0
        self._first = 0
        self._shown = 0.0

    def attach(self, engine: Workflow) -> None:
        """Follow ``engine``."""
        engine.add_event_handler(Events.STARTED, self.start)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self.advance)
        engine.add_event_handler(Events.COMPLETED, self.stop)
        engine.add_event_handler(Events.TERMINATE, self.stop)

    def start(self, engine: Workflow) -> None:
        """Open the display."""
        self._start = self._shown = time.monotonic()
        self._first = engine.state.iteration
        if sys.stderr.isatty():
            columns = (
                TextColumn("{task.description}"),
                BarColumn(),
                TextColumn("{task.completed:.0f}/{task.total:.0f}"),
                TimeElapsedColumn(),
                TextColumn("left"),
                TimeRemainingColumn(),
            )
            # Validation makes the pace uneven, so the estimate looks back over ten minutes.
            self._progress = Progress(*columns, console=Console(stderr=True), speed_estimate_period=600)
            self._task = self._progress.add_task(self.description, total=self._total(engine), completed=self._first)
            self._progress.start()
            # An interrupted engine fires no event. Without this, the terminal would be left without a cursor.
            atexit.register(self._progress.stop)

    def advance(self, engine: Workflow) -> None:
        """Show that one more iteration is done."""
        now = time.monotonic()
        done, total = engine.state.iteration, self._total(engine)
        if now - self._shown < (1.0 if self._progress else LOG_INTERVAL_S) and done < total:
            return
        self._shown = now
        text = self.description
        if engine.state.max_epochs > 1:
            text += f", epoch {engine.state.epoch}/{engine.state.max_epochs}"
        if self.loss:
            text += f", loss {_mean_loss(engine.state.output):.3f}"
        if self._progress is not None:
            self._progress.update(self._task, completed=done, description=text)
        else:
            left = (now - self._start) / max(done - self._first, 1) * (total - done)
            logger.info("%s: %s %d of %d, %s left", text, self.unit, done, total, _duration(left))

    def stop(self, engine: Workflow) -> None:
        """Close the display."""
        if self._progress is not None:
            self._progress.stop()
            atexit.unregister(self._progress.stop)
            self._progress = None

    @staticmethod
    def _total(engine: Workflow) -> int:
        # MONAI's evaluator counts the epochs of a training, but it counts its iterations from 0 in each run.
        epochs = 1 if hasattr(engine, "mode") else engine.state.max_epochs
        return int(epochs * engine.state.epoch_length)


class LazySummaryWriter:
    """A TensorBoard writer that opens its file with the first value, so that constructing a workflow writes no file.

    Values of an earlier file in the folder are hidden from this writer's first step on, since a resumed training writes
    them again.

    Args:
        log_dir: folder of the event file.
    """

    def __init__(self, log_dir: str) -> None:
        self.log_dir = log_dir

        self._writer: SummaryWriter | None = None

    def add_scalar(self, tag: str, value: Any, step: int) -> None:
        """Write one value."""
        if self._writer is None:
            self._writer = SummaryWriter(log_dir=self.log_dir, purge_step=step)
        self._writer.add_scalar(tag, value, step)

    def flush(self) -> None:
        """Write all values to the disk."""
        if self._writer is not None:
            self._writer.flush()

    def close(self) -> None:
        """Close the file."""
        if self._writer is not None:
            self._writer.close()


class TrainingScalars:
    """A writer of training curves for TensorBoard: the loss, its terms by level, and the learning rate.

    ``TensorBoardStatsHandler`` takes it as its writer of iterations and of epochs. Reading a value waits for the
    device, so the values are collected there. They are written at the end of an epoch and, during an epoch, every half
    minute.

    Args:
        loss_function: the loss, which keeps its terms in ``last_terms``.
        optimizer: the optimizer, which holds the learning rate.
    """

    def __init__(self, loss_function: PriorAttentionLoss, optimizer: torch.optim.Optimizer) -> None:
        self.loss_function = loss_function
        self.optimizer = optimizer
        self._waiting: list[tuple[int, float, dict[str, torch.Tensor]]] = []
        self._written = time.monotonic()

    def __call__(self, engine: Workflow, writer: LazySummaryWriter) -> None:
        """Note the values of the iteration that ``engine`` has finished."""
        rate = self.optimizer.param_groups[0]["lr"]
        self._waiting.append((engine.state.iteration, rate, self.loss_function.last_terms))
        if time.monotonic() - self._written > LOG_INTERVAL_S:
            self.write(engine, writer)

    def write(self, engine: Workflow, writer: LazySummaryWriter) -> None:
        """Write the values that have been noted."""
        self._written = time.monotonic()
        waiting, self._waiting = self._waiting, []
        if not waiting:
            return
        # One transfer from the device serves all values. The terms of an iteration sum to its loss.
        values = torch.stack([term for _, _, terms in waiting for term in terms.values()]).tolist()
        for step, rate, terms in waiting:
            own, values = values[: len(terms)], values[len(terms) :]
            writer.add_scalar("train/loss", sum(own), step)
            for name, value in zip(terms, own, strict=True):
                writer.add_scalar(f"train/loss_{name}", value, step)
            writer.add_scalar("train/learning_rate", rate, step)


class FiniteTraining:
    """A handler that ends a training whose loss or weights are not finite, before that epoch's validation and files.

    So the last good state survives, and the training can be resumed from it. No step waits for the device: the losses
    stay there. They are checked together with the weights at the end of the epoch, and every half minute before it.

    With several ranks, each rank checks its own losses, and all ranks end together. The other ranks would not notice
    the fault themselves, since a scaler that skips bad gradients keeps their weights finite.

    Ignite's ``TerminateOnNan`` would wait for the device in every step. It would also end the training as if it were
    complete, with exit status 0, after the epoch's files were written.

    Args:
        network: the network that is trained.

    Raises:
        InputError: (during or at the end of an epoch) the loss of an iteration or a weight is not finite.
    """

    def __init__(self, network: torch.nn.Module) -> None:
        self.network = network
        self._waiting: list[tuple[int, torch.Tensor]] = []
        self._looked = time.monotonic()

    def attach(self, engine: Workflow) -> None:
        """Follow ``engine``. Attach this handler before the validation and before handlers that write files."""
        engine.add_event_handler(Events.ITERATION_COMPLETED, self.iteration_completed)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self.epoch_completed)

    def iteration_completed(self, engine: Workflow) -> None:
        """Note the loss of the iteration."""
        items = engine.state.output if isinstance(engine.state.output, list) else [engine.state.output]
        self._waiting += [(engine.state.iteration, torch.as_tensor(item["loss"]).detach()) for item in items]
        if time.monotonic() - self._looked > LOG_INTERVAL_S and (fault := self.fault(engine)):
            raise InputError(f"{fault}; {_remedy(engine)}")

    def epoch_completed(self, engine: Workflow) -> None:
        """Check the epoch's losses and the weights."""
        fault = self.fault(engine)
        values = [value for value in unwrap(self.network).state_dict().values() if value.is_floating_point()]
        if not fault and not bool(torch.stack([value.isfinite().all() for value in values]).all()):
            fault = f"epoch {engine.state.epoch}: weights are not finite"
        if on_any_rank(bool(fault), values[0].device):
            fault = fault or f"epoch {engine.state.epoch}: the loss of another process is not finite"
            raise InputError(f"{fault}; {_remedy(engine)}")

    def fault(self, engine: Workflow) -> str:
        """The first fault of the losses that have been noted, in words; empty if there is none."""
        self._looked = time.monotonic()
        waiting, self._waiting = self._waiting, []
        if not waiting:
            return ""
        # One transfer from the device serves all losses.
        losses = torch.stack([loss.float().mean() for _, loss in waiting]).tolist()
        for (iteration, _), loss in zip(waiting, losses, strict=True):
            if not math.isfinite(loss):
                return f"iteration {iteration} (epoch {engine.state.epoch}): the loss is {loss}"
        return ""


def _remedy(engine: Workflow) -> str:
    anew = "train anew with a lower --learning_rate, or with --amp False"
    if engine.state.epoch < 2:
        return f"{anew}."
    return (
        f"nothing of this epoch was written: go on after epoch {engine.state.epoch - 1} with train_resume.yaml "
        f"(and --amp False, if the precision may be the cause), or {anew}."
    )


class AsynchronousSteps:
    """A handler that keeps training steps from waiting for the device.

    MONAI's trainer takes each output apart, which copies the loss to the host. Give the trainer ``decollate=False`` to
    prevent that. This handler then makes each output a list of one, which MONAI's other handlers can read.
    """

    def attach(self, engine: Workflow) -> None:
        """Set up ``engine`` after each step."""
        engine.add_event_handler(IterationEvents.MODEL_COMPLETED, self.model_completed)

    def model_completed(self, engine: Workflow) -> None:
        """Make the output a list of one."""
        if isinstance(engine.state.output, dict):
            engine.state.output = [engine.state.output]


class ClipGradients:
    """A handler that scales the gradients down where their norm exceeds a limit, so that one odd case does no harm.

    Args:
        network: the network in training.
        max_norm: the largest norm of all gradients together.
    """

    def __init__(self, network: torch.nn.Module, max_norm: float) -> None:
        self.network = network
        self.max_norm = max_norm

    def attach(self, engine: Workflow) -> None:
        """Clip after each backward pass of the trainer ``engine``."""
        engine.add_event_handler(IterationEvents.BACKWARD_COMPLETED, self.backward_completed)

    def backward_completed(self, engine: SupervisedTrainer) -> None:
        """Clip the gradients, which a scaler has made larger for float16."""
        if engine.scaler is not None:
            engine.scaler.unscale_(engine.optimizer)
        torch.nn.utils.clip_grad_norm_(self.network.parameters(), self.max_norm)


def _mean_loss(output: Any) -> float:
    items = output if isinstance(output, list) else [output]
    return float(np.mean([float(torch.as_tensor(item["loss"]).detach()) for item in items]))


def _duration(seconds: float) -> str:
    minutes, hours = round(seconds / 60), round(seconds / 3600, 1)
    return f"{seconds:.0f} s" if seconds < 90 else f"{minutes} min" if minutes < 90 else f"{hours} h"


class EvaluationReport:
    """A handler that writes scores and volumes of every case to disk, and their summary to disk and to the screen.

    ``scores.csv`` has one row for each case: the scores of the metrics, and the volumes (mm^3) of prediction and
    reference, each for ET, TC and WT. ``summary.csv`` has mean, standard deviation, median and quartiles of each
    column. With several ranks, each rank evaluates its share of the cases, and rank 0 writes the report of all cases.
    So attach the handler on every rank.

    Args:
        output_dir: folder of the two files.
        metrics: names of scores by the names of the evaluator's metrics. A metric gives each of its scores for each
            region, the first score of all regions first. A metric without names is left out.
    """

    def __init__(self, output_dir: str | Path, metrics: Mapping[str, str | Sequence[str]]) -> None:
        self.output_dir = Path(output_dir)
        self.metrics = {name: [scores] if isinstance(scores, str) else scores for name, scores in metrics.items()}
        self.cases: list[str] = []
        self.volumes: list[list[float]] = []

    def attach(self, engine: Workflow) -> None:
        """Follow the evaluator ``engine``, whose outputs hold regions under ``pred`` and ``label``."""
        engine.add_event_handler(Events.STARTED, self.started)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self.iteration_completed)
        engine.add_event_handler(Events.COMPLETED, self.completed)

    def started(self, engine: Workflow) -> None:
        """Forget an earlier evaluation."""
        self.cases, self.volumes = [], []

    def iteration_completed(self, engine: Workflow) -> None:
        """Note the case's name and volumes. A case that failed has no output (``scripts.inference.failures``)."""
        if not engine.state.output:
            return
        for item, output in zip(engine.state.batch, engine.state.output, strict=True):
            self.cases.append(item["case"])
            row = []
            for regions in (output["pred"], output["label"]):
                # The affine's determinant is a voxel's volume.
                voxel = abs(float(np.linalg.det(np.asarray(regions.affine)[:3, :3])))
                row += [float((regions[channel] > 0).sum()) * voxel for channel in range(1, 1 + len(REGIONS))]
            self.volumes.append(row)

    def completed(self, engine: Workflow) -> None:
        """Write and print the report."""
        # The metrics gather the ranks' cases in this order too.
        cases = string_list_all_gather(self.cases)
        volumes = evenly_divisible_all_gather(torch.tensor(self.volumes, dtype=torch.float64), concat=True).numpy()
        if rank() != 0:
            return
        order = np.argsort(cases, kind="stable")
        columns: dict[str, np.ndarray] = {}
        for name, scores in self.metrics.items():
            found = [f"{score}_{region}" for score in scores for region in REGIONS]
            if found:
                values = np.asarray(engine.state.metric_details[name].cpu(), dtype=float)
                columns |= dict(zip(found, values.T, strict=True))
        for i, of in enumerate(("volume", "reference_volume")):
            columns |= {f"{of}_{region}": volumes[:, i * len(REGIONS) + j] for j, region in enumerate(REGIONS)}

        rows = [[cases[i], *(f"{values[i]:.4f}" for values in columns.values())] for i in order]
        save_csv(["case", *columns], rows, self.output_dir / "scores.csv")
        summary = {name: summarize(values) for name, values in columns.items()}
        statistics = list(next(iter(summary.values())))
        rows = [[s, *(f"{values[s]:.4f}" for values in summary.values())] for s in statistics]
        save_csv(["statistic", *columns], rows, self.output_dir / "summary.csv")
        self._print(summary, statistics, len(cases))

    def _print(self, summary: dict[str, dict[str, float]], statistics: list[str], count: int) -> None:
        rules = "HD95 in mm, volumes in mm^3; BraTS 2020 rules for empty regions"
        table = Table(title=f"{count} case{'s' * (count != 1)}; {rules}")
        table.add_column("")
        for statistic in statistics:
            table.add_column(statistic, justify="right")
        for name, values in summary.items():
            # A specificity differs from 1 only in its last digits.
            digits = 0 if "volume" in name else 2 if "hd95" in name else 4 if "specificity" in name else 3
            # A line parts the scores.
            last = name.endswith(REGIONS[-1])
            table.add_row(name, *(f"{values[s]:.{digits}f}" for s in statistics), end_section=last)
        Console().print(table)
        logger.info("Scores by case: %s", self.output_dir / "scores.csv")


def summarize(values: np.ndarray) -> dict[str, float]:
    """Mean, standard deviation (of a sample; 0 for one value), median and quartiles of a column.

    Example:
        >>> summarize(np.array([0.5, 0.75, 1.0]))
        {'mean': 0.75, 'std': 0.25, 'median': 0.75, 'quartile1': 0.625, 'quartile3': 0.875}
    """
    low, median, high = np.percentile(values, [25, 50, 75])
    return {
        "mean": float(np.mean(values)),
        "std": float(np.std(values, ddof=1)) if len(values) > 1 else 0.0,
        "median": float(median),
        "quartile1": float(low),
        "quartile3": float(high),
    }
