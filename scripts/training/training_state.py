# Copyright (c) the brats_mri_panet_segmentation authors
# SPDX-License-Identifier: Apache-2.0
"""A training's weights and state on disk, and the resumption of a stopped training from them."""

import logging
from pathlib import Path
from typing import Any

import torch
from ignite.engine import Events
from monai.engines.workflow import Workflow
from scripts.utils.distributed import rank, unwrap
from scripts.utils.errors import InputError
from scripts.utils.files import remove_unfinished, replacing
from scripts.utils.tensors import load_torch
from scripts.weights.loading import weights_difference
from scripts.weights.record import UNKNOWN, Record, record_file, save_weights
from torch.optim.lr_scheduler import LRScheduler

logger = logging.getLogger(__name__)

STATE_FILES = ("trainer_state.pt", "trainer_state_previous.pt")
STATE_KEYS = {"network", "optimizer", "optimizer_class", "lr_scheduler", "scaler", "epoch", "iteration", "best_metric"}


class TrainingParts:
    """The parts of a training whose state is kept. ``evaluator`` is None if nothing is validated."""

    def __init__(
        self,
        output_dir: str | Path,
        network: torch.nn.Module,
        optimizer: torch.optim.Optimizer,
        lr_scheduler: LRScheduler,
        evaluator: Workflow | None = None,
    ) -> None:
        self.output_dir = Path(output_dir)
        self.network = network
        self.optimizer = optimizer
        self.lr_scheduler = lr_scheduler
        self.evaluator = evaluator


class TrainingFiles(TrainingParts):
    """A handler that keeps a training's weights and state on disk. Each file is whole at any moment.

    It writes these files to ``output_dir``:

    - ``model.pt``: bare weights of the best validation so far; without validation, the newest weights.
    - ``model_last.pt``: the newest bare weights.
    - ``model.json``, ``model_last.json``: the records of these weights (``scripts.weights.record``).
    - ``trainer_state.pt``: everything that a resumption needs, as tensors and plain values only.
    - ``trainer_state_previous.pt``: the state of the epoch before, in case the newest is damaged.

    Args:
        args, kwargs: as in ``TrainingParts``.
        settings: what the weights depend on, for their record (``scripts.weights.settings.weights_settings``).
    """

    def __init__(self, *args: Any, settings: Record, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.settings = settings

    def attach(self, engine: Workflow) -> None:
        """Write after each epoch of ``engine``. Attach this handler after the validation."""
        engine.add_event_handler(Events.EPOCH_COMPLETED, self.epoch_completed)

    def epoch_completed(self, engine: Workflow) -> None:
        """Write the files that are due after this epoch."""
        epoch = engine.state.epoch
        last = epoch == engine.state.max_epochs
        if self.evaluator is not None and self.evaluator.state.best_metric_epoch == epoch:
            self._save("model.pt", epoch)
            logger.info("Best validation so far: %.4f, after epoch %d", self.evaluator.state.best_metric, epoch)
        if self.evaluator is None or (last and self.evaluator.state.best_metric_epoch < 0):
            if self.evaluator is not None:
                logger.warning(
                    "No epoch was validated (val_interval is longer than the training): model.pt is the last epoch's."
                )
            self._save("model.pt", epoch)
        self._save("model_last.pt", epoch)
        newest, previous = (self.output_dir / name for name in STATE_FILES)
        with replacing(newest) as temporary:
            torch.save(self._state(engine), temporary)
            if newest.exists():
                newest.replace(previous)

    def _save(self, name: str, epoch: int) -> None:
        scores: dict[str, Any] = {"epoch": epoch}
        if self.evaluator is not None and self.evaluator.state.metrics and self.evaluator.state.epoch == epoch:
            scores |= {key: value for key, value in self.evaluator.state.metrics.items() if isinstance(value, float)}
        # The preparation of a run sets trained_on; the training of a federated client has no preparation.
        record = {"trained_on": UNKNOWN, **self.settings, "scores": scores}
        save_weights(self._weights(), self.output_dir / name, record)

    def _weights(self) -> dict[str, torch.Tensor]:
        return {name: value.cpu() for name, value in unwrap(self.network).state_dict().items()}

    def _state(self, engine: Workflow) -> dict[str, Any]:
        scaler = getattr(engine, "scaler", None)
        best = self.evaluator.state if self.evaluator is not None else None
        return {
            "network": self._weights(),
            "optimizer": self.optimizer.state_dict(),
            "optimizer_class": type(self.optimizer).__name__,
            "lr_scheduler": self.lr_scheduler.state_dict(),
            "scaler": scaler.state_dict() if scaler is not None else {},
            "epoch": engine.state.epoch,
            "iteration": engine.state.iteration,
            "max_epochs": engine.state.max_epochs,
            "best_metric": float(best.best_metric) if best is not None else None,
            "best_metric_epoch": int(best.best_metric_epoch) if best is not None else None,
        }


def newest_state(folder: str | Path) -> tuple[Path, dict[str, Any]]:
    """The file of the newest valid trainer state in ``folder``, and this state.

    A state that cannot be read is passed over, and a warning is logged.

    Raises:
        InputError: there is no valid state.
    """
    valid: list[tuple[Path, dict[str, Any]]] = []
    for path in (Path(folder) / name for name in STATE_FILES):
        if not path.is_file():
            continue
        try:
            state = load_torch(path)
        except InputError as error:
            logger.warning("Passed over: %s", error)
            continue
        if isinstance(state, dict) and set(state) >= STATE_KEYS:
            valid.append((path, state))
        else:
            logger.warning("Passed over: %s: not the state of a training.", path)
    if not valid:
        raise InputError(
            f"{folder}: no valid trainer state ({' or '.join(STATE_FILES)}) to resume from; give the --output_dir of "
            "a stopped training, or start over without --resume."
        )
    return max(valid, key=lambda entry: int(entry[1]["epoch"]))


class ResumeTraining(TrainingParts):
    """A handler that continues a stopped training from its newest valid state, which is of the end of an epoch.

    It restores weights, optimizer, position in the schedule, AMP scaler, epoch, iteration and the best score. It does
    not restore random numbers, since they follow from the seed and the epoch (``scripts.training.reproducibility``).
    Attach it on every rank, before every other handler that reads the epoch.

    Raises:
        InputError: (at the start) there is no valid state, or it belongs to another network, optimizer or epoch length.
    """

    def attach(self, engine: Workflow) -> None:
        """Resume when ``engine`` starts."""
        engine.add_event_handler(Events.STARTED, self.started)

    def started(self, engine: Workflow) -> None:
        """Restore the state."""
        path, state = newest_state(self.output_dir)
        network = unwrap(self.network)
        epoch, iteration = int(state["epoch"]), int(state["iteration"])
        check_resumable(state, path, network, self.optimizer, int(engine.state.epoch_length or 0))
        network.load_state_dict(state["network"])
        self.optimizer.load_state_dict(state["optimizer"])
        for parameter, values in self.optimizer.state.items():
            for name, value in values.items():
                # Fused optimizers assume that both have one memory layout; otherwise their results are wrong.
                if torch.is_tensor(value) and value.shape == parameter.shape:
                    values[name] = torch.empty_like(parameter).copy_(value)
        self.lr_scheduler.load_state_dict(state["lr_scheduler"])
        scaler = getattr(engine, "scaler", None)
        if scaler is not None and state["scaler"]:
            scaler.load_state_dict(state["scaler"])
        engine.state.epoch, engine.state.iteration = epoch, iteration
        if self.evaluator is not None and state["best_metric"] is not None:
            self.evaluator.state.best_metric = state["best_metric"]
            self.evaluator.state.best_metric_epoch = state["best_metric_epoch"]
        if rank() == 0:
            logger.info("Resumed after epoch %d of %d, from %s", epoch, engine.state.max_epochs, path)


def check_resumable(
    state: dict[str, Any], path: Path, network: torch.nn.Module, optimizer: torch.optim.Optimizer, epoch_length: int
) -> None:
    """Refuse a state that does not belong to this network, optimizer and number of iterations in an epoch.

    Raises:
        InputError: the state does not belong to them; the message names the file.
    """
    if difference := weights_difference(network, state["network"]):
        raise InputError(f"{path}: state of another network ({difference}); resume with the run's own configuration.")
    if (kept := state["optimizer_class"]) != (own := type(optimizer).__name__):
        raise InputError(f"{path}: state of another optimizer ({kept}, not {own}); resume with its configuration.")
    epoch, iteration = int(state["epoch"]), int(state["iteration"])
    if iteration != epoch * epoch_length:
        raise InputError(
            f"{path}: {iteration} iterations in {epoch} epochs, but an epoch now has {epoch_length}; "
            "resume with the same cases, batch_size and number of ranks."
        )


def remove_unfinished_state(output_dir: str | Path) -> None:
    """Remove files that a killed training has left half written."""
    weights = ("model.pt", "model_last.pt")
    for name in (*STATE_FILES, *weights, *(record_file(file).name for file in weights)):
        remove_unfinished(Path(output_dir) / name)
