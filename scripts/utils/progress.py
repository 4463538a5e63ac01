# Copyright (c) the brats_mri_panet_segmentation authors
# SPDX-License-Identifier: Apache-2.0
"""The progress of a run, with the time left."""

import atexit
import logging
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from ignite.engine import Events
from monai.engines.workflow import Workflow
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

logger = logging.getLogger(__name__)
# Without a terminal, progress goes to the log, with at least this many seconds between two lines.
LOG_INTERVAL_S = 30.0


class ProgressHandler:
    """A handler that shows the progress of a whole run and the time left, as a bar or as lines in the log.

    Args:
        description: name of the work, such as "Training".
        unit: name of an iteration, such as "case".
        loss: show the loss. Reading it waits for the device, so it is read once a second at most.
        unfinished: gives the number of iterations that are completed and whose results are still being written.
    """

    def __init__(
        self, description: str, unit: str = "iteration", loss: bool = False, unfinished: Callable[[], int] = int
    ) -> None:
        self.description = description
        self.unit = unit
        self.loss = loss
        self.unfinished = unfinished
        self._progress: Progress | None = None
        self._task: Any = None
        self._start = 0.0
        self._first = self._done = 0
        self._shown = 0.0

    def attach(self, engine: Workflow) -> None:
        """Follow ``engine``."""
        # ignite says of every engine of MONAI that it resumes, even from the first iteration.
        engine.logger.addFilter(lambda record: "resuming from iteration 0," not in record.getMessage())
        engine.add_event_handler(Events.STARTED, self.start)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self.advance)
        engine.add_event_handler(Events.COMPLETED, self.advance)
        engine.add_event_handler(Events.COMPLETED, self.stop)
        engine.add_event_handler(Events.TERMINATE, self.stop)

    def start(self, engine: Workflow) -> None:
        """Open the display."""
        self._start = self._shown = time.monotonic()
        self._first = self._done = engine.state.iteration
        if sys.stderr.isatty() and logger.isEnabledFor(logging.INFO):
            columns = (
                TextColumn("{task.description}"),
                BarColumn(),
                TextColumn("{task.completed:.0f}/{task.total:.0f}"),
                TimeElapsedColumn(),
                TextColumn("left"),
                TimeRemainingColumn(),
            )
            # Validation makes the pace uneven, so the estimate looks back over ten minutes.
            # What is printed goes above the bar, unless it goes to a file.
            self._progress = Progress(
                *columns, console=Console(stderr=True), speed_estimate_period=600, redirect_stdout=sys.stdout.isatty()
            )
            self._task = self._progress.add_task(self.description, total=self._total(engine), completed=self._first)
            self._progress.start()
            # An interrupted engine fires no event. Without this, the terminal would be left without a cursor.
            atexit.register(self._progress.stop)

    def advance(self, engine: Workflow) -> None:
        """Show that one more iteration is done."""
        now = time.monotonic()
        done, total = engine.state.iteration - self.unfinished(), self._total(engine)
        too_soon = now - self._shown < (1.0 if self._progress else LOG_INTERVAL_S) and done < total
        if too_soon or done == self._done:
            return
        self._shown, self._done = now, done
        text = self.description
        if engine.state.max_epochs > 1:
            text += f", epoch {engine.state.epoch}/{engine.state.max_epochs}"
        if self.loss:
            text += f", loss {_mean_loss(engine.state.output):.3f}"
        if self._progress is not None:
            self._progress.update(self._task, completed=done, description=text)
        else:
            left = (now - self._start) / (done - self._first) * (total - done)
            logger.info("%s: %s %d of %d, %s left", text, self.unit, done, total, duration(left))

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


def _mean_loss(output: Any) -> float:
    items = output if isinstance(output, list) else [output]
    return float(np.mean([float(torch.as_tensor(item["loss"]).detach()) for item in items]))


def duration(seconds: float) -> str:
    """A time for readers.

    Example:
        >>> duration(60), duration(600), duration(7500)
        ('60 s', '10 min', '2.1 h')
    """
    minutes, hours = round(seconds / 60), round(seconds / 3600, 1)
    return f"{seconds:.0f} s" if seconds < 90 else f"{minutes} min" if minutes < 90 else f"{hours} h"
