# Copyright (c) the brats_mri_panet_segmentation authors
# SPDX-License-Identifier: Apache-2.0
"""Ignite handlers of a training that MONAI does not have: curves, checks of finite numbers, clipping."""

import logging
import math
import time
from typing import Any

import torch
from ignite.engine import Events
from monai.engines.trainer import SupervisedTrainer
from monai.engines.utils import IterationEvents
from monai.engines.workflow import Workflow
from scripts.training.losses import PriorAttentionLoss
from scripts.utils.distributed import on_any_rank, unwrap
from scripts.utils.errors import InputError, input_error_behind, one_line
from scripts.utils.machine import out_of_memory
from scripts.utils.progress import LOG_INTERVAL_S
from torch.utils.tensorboard import SummaryWriter

logger = logging.getLogger(__name__)


class LazySummaryWriter:
    """A TensorBoard writer that opens its file with the first value, so that constructing a workflow writes no file.

    Values of an earlier file in the folder are hidden from this writer's first step on, since a resumed training writes
    them again.
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
    again = "train again with a lower --learning_rate, or with --amp False"
    if engine.state.epoch < 2:
        return f"{again}."
    return (
        f"nothing of this epoch was written: go on after epoch {engine.state.epoch - 1} with --resume True "
        f"(and --amp False, if the precision may be the cause), or {again}."
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


class MemoryAdvice:
    """A handler that says in one line which setting needs less memory, if the memory of the device is used up.

    Attach it before the validation.
    """

    STEP = "a training step: lower --batch_size or --patch_size"
    VALIDATION = "the validation: set --sw_batch_size 1, or leave out whole_brain.yaml"

    advice = STEP

    def attach(self, engine: Workflow) -> None:
        """Follow the trainer ``engine``."""
        engine.add_event_handler(Events.EPOCH_STARTED, self.begin, self.STEP)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self.begin, self.VALIDATION)
        engine.add_event_handler(Events.EXCEPTION_RAISED, self.exception_raised)

    def begin(self, engine: Workflow, advice: str) -> None:
        """Note what helps where memory is short from here on."""
        self.advice = advice

    def exception_raised(self, engine: Workflow, error: Exception) -> None:
        """Raise ``error``, or the line.

        Raises:
            InputError: memory was short.
        """
        # The engine passes its own error on to itself.
        if input_error_behind(error) or not out_of_memory(error):
            raise error
        cause = one_line(error.__cause__ or error).partition(" GPU ")[0]
        raise InputError(f"out of memory in {self.advice} ({cause})") from error


class ClipGradients:
    """A handler that scales the gradients down where their norm exceeds a limit, so that one odd case does no harm.

    The norm is that of all gradients together.
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
