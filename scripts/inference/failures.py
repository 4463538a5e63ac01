# Copyright (c) the brats_mri_panet_segmentation authors
# SPDX-License-Identifier: Apache-2.0
"""Cases that fail in the middle of a run. The others are done, and the run says at its end which cases failed."""

import logging
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol

import torch
from ignite.engine import Events
from monai.data import CacheDataset, MetaTensor
from monai.engines import SupervisedEvaluator
from monai.engines.workflow import Workflow
from monai.handlers import IgniteMetricHandler, from_engine
from scripts.data.cases import image_name
from scripts.data.findings import Finding, warnings_by_case
from scripts.data.images import READ
from scripts.data.inspection import CheckedCase, seen_before
from scripts.data.transforms import REMOVED_ML
from scripts.scores.certainty import SIGNS, Signs
from scripts.utils.distributed import gathered, rank, world_size
from scripts.utils.errors import InputError, WriteError, input_error_behind, one_line
from scripts.utils.files import save_json
from scripts.utils.locks import lock_file, locked
from scripts.utils.machine import out_of_memory
from scripts.utils.run_json import RUN_FILE, read_run_json

logger = logging.getLogger(__name__)

# What loading, the network, the post-processing or a writer may raise. MONAI makes every error of a transform a
# RuntimeError, and torch says so when memory is short.
CASE_ERRORS = (RuntimeError, ValueError, OSError, MemoryError)
# The key of the reason in an item that could not be loaded.
REASON = "reason"
# The key of what was found in the files of an item (``CheckedCase``).
CHECKED = "checked"
# The key of its files with their checksums.
INPUTS = "inputs"
# From this volume on, removed tumors are told; there are many specks.
TOLD_ML = 1.0
REMOVED = (
    "{case}: {ml:.1f} ml of tumor beside the largest one were removed, because the network is not sure of them "
    "(thresholds#min_tumor_probability); maps of probabilities show where they were (panet: --probabilities)."
)


def case_of(item: Mapping[str, Any]) -> str:
    """Name of the case of an entry, or of what the preprocessing has made of it."""
    if "case" in item:
        return str(item["case"])
    image = item["image"]
    return image_name(image.meta["filename_or_obj"] if isinstance(image, MetaTensor) else image)


def reason_of(error: BaseException) -> str:
    """What an error, or its first cause, says on one line."""
    if wrong := input_error_behind(error):
        return str(wrong)
    while error.__cause__ is not None:
        error = error.__cause__
    return f"{type(error).__name__}: {one_line(error)}"


class CaseDataset(CacheDataset):
    """MONAI's dataset, in which an item that cannot be loaded holds its case and the reason instead."""

    def load(self, index: int) -> Any:
        """Load and transform an item."""
        return super()._transform(index)

    def _transform(self, index: int) -> Any:
        try:
            return self.load(index)
        except CASE_ERRORS as error:
            case = case_of(self.data[index])
            if input_error_behind(error) is None:
                logger.exception("%s could not be loaded", case)
            return {"case": case, REASON: reason_of(error)}


class Records(Protocol):
    """What ``scripts.workflow.case_records`` has for each case of an inference."""

    def begin(self, case: str, inputs: Any) -> bool:
        """Take on a case that was read; whether it is to be done here."""

    def end(self, case: str, read: Any, signs: Signs) -> None:
        """Write down that the maps of a case are written."""

    def leave(self, case: str) -> None:
        """Give up a case, done or not."""


class CaseFailures:
    """The cases that failed in a run of an evaluator.

    An evaluator takes it as ``iteration_update`` and as the last of its handlers. An error of a case is then logged,
    and the evaluator goes on. At the end an error names the failed cases, and ``failed`` in ``run.json`` holds them
    with their reasons. The run ends at once if a file cannot be written, or an evaluation if every case has failed.

    What was found in a case's files is told when its turn comes, and what an inference has removed as a doubtful tumor
    when it is done; ``warnings`` in ``run.json`` holds both. A case with the same image as an earlier one fails.

    Args:
        output_dir: folder of the run.
        records: an inference's records of its cases. A case that another process has done or works on is passed over.

    Attributes:
        finish: called with the name of each case that was segmented, and with the function that has read its files,
            if ``CheckedDataset`` keeps it, in a thread while the next case is segmented. The case fails if this fails.
        in_background: another thread ends each case (``scripts.inference.background``).
        failed: the cases that failed, of all ranks, after the run.
        warnings: the warnings of each case (``warnings_by_case``).

    Raises:
        InputError: (at the end of the run) a case failed.
    """

    def __init__(self, output_dir: str | Path, records: Records | None = None) -> None:
        self.output_dir = Path(output_dir)
        self.records = records
        self.finish: Callable[[str, Any], None] | None = None
        self.executor: ThreadPoolExecutor | None = None
        self.finishing: Future[None] | None = None
        self.in_background = False
        self.failed: dict[str, str] = {}
        self.reasons: dict[str, str] = {}
        self.seen: dict[str, CheckedCase] = {}
        self.warnings: dict[str, list[dict[str, str]]] = {}

    def attach(self, engine: Workflow) -> None:
        """Follow ``engine``. Attach this handler after all others."""
        engine.add_event_handler(Events.STARTED, self.started)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self.epoch_completed)
        engine.add_event_handler(Events.COMPLETED, self.completed)

    def started(self, engine: Workflow) -> None:
        """Forget an earlier run."""
        self.reasons, self.seen, self.failed = {}, {}, {}

    def __call__(self, engine: SupervisedEvaluator, batch: dict[str, Any]) -> Any:
        """Do one iteration, a batch of one case. The output of a case that fails is an empty list."""
        output = self._output(engine, batch)
        if self.records is None and engine.state.iteration == engine.state.epoch_length:
            shares = gathered((self.reasons, engine.state.epoch_length))
            failed = {case: reason for reasons, _ in shares for case, reason in reasons.items()}
            if len(failed) == sum(count for _, count in shares):
                # Metrics would have no value.
                self.conclude(failed, len(failed))
        return output

    def _output(self, engine: SupervisedEvaluator, batch: dict[str, Any]) -> Any:
        memory_was_short = False
        if REASON in batch:
            self._note(batch["case"][0], batch[REASON][0])
        else:
            checked, inputs, read = (batch.pop(key, None) for key in (CHECKED, INPUTS, READ))
            case = _case_of_batch(batch)
            try:
                if checked is not None:
                    self._tell(checked)
                if self.records is None or self.records.begin(case, inputs):
                    output = engine._iteration(engine, batch)
                    if not self.in_background:
                        self.end(case, read, output[0])
                    return output
            except CASE_ERRORS as error:
                memory_was_short = self.add(case, error)
        engine.state.output = []
        if memory_was_short:
            torch.cuda.empty_cache()
        return []

    def end(self, case: str, read: Any, output: Mapping[str, Any]) -> None:
        """Note that a case is segmented; ``read`` has read its files, and ``output`` is that of the post-processing."""
        if self.records is not None:
            if (removed := output.get(REMOVED_ML, 0)) >= TOLD_ML:
                self._warn([Finding("doubtful tumor removed", case, REMOVED.format(case=case, ml=removed))])
            self.records.end(case, read, output.get(SIGNS, {}))
        if self.finish is None:
            self._leave(case)
            return
        if self.finishing is not None:
            self.finishing.result()  # no more than one case waits, with its images in memory
        self.executor = self.executor or ThreadPoolExecutor(1, thread_name_prefix="finishing")
        self.finishing = self.executor.submit(self._finish, case, read)

    def _finish(self, case: str, read: Any) -> None:
        try:
            if self.finish is not None:
                self.finish(case, read)
            self._leave(case)
        except CASE_ERRORS as error:
            self.add(case, error)

    def _leave(self, case: str) -> None:
        if self.records is not None:
            self.records.leave(case)

    def unfinished(self) -> int:
        """The number of cases that were segmented and are not finished."""
        return int(self.finishing is not None and not self.finishing.done())

    def wait(self) -> None:
        """Wait until the last case is finished. An error that ends the run is raised."""
        executor, self.executor = self.executor, None
        finishing, self.finishing = self.finishing, None
        if executor is not None:
            executor.shutdown()
        if finishing is not None:
            finishing.result()

    def _tell(self, checked: CheckedCase) -> None:
        self._warn(checked.findings)
        if (twin := seen_before(checked, self.seen)) is not None:
            raise InputError(twin.message, twin.kind)

    def _warn(self, findings: Sequence[Finding]) -> None:
        for finding in dict.fromkeys(findings):
            logger.warning("%s", finding.message)
        if findings:
            for case, found in warnings_by_case(findings).items():
                known = self.warnings.setdefault(case, [])
                known += [one for one in found if one not in known]
            self._record(warnings=self.warnings)

    def add(self, case: str, error: Exception) -> bool:
        """Note that ``case`` failed. The error of a file that cannot be written is raised.

        Returns:
            Whether memory was short. Then empty torch's cache, once ``error`` is gone, which holds the case's tensors.
        """
        self._leave(case)
        wrong = input_error_behind(error)
        if isinstance(wrong, WriteError):
            raise error
        short, reason = wrong is None and out_of_memory(error), reason_of(error)
        if short:
            told = reason.partition(" GPU ")[0]
            reason = f"out of memory; set --sw_batch_size 1, or leave out whole_brain.yaml (panet: --fast) ({told})"
        # Wrong input and too little memory need no traceback.
        self._note(case, reason, None if wrong or short else error)
        return short

    def _note(self, case: str, reason: str, error: Exception | None = None) -> None:
        self.reasons[case] = reason
        logger.error("%s failed: %s", case, reason, exc_info=error)

    def epoch_completed(self, engine: Workflow) -> None:
        """Finish the last case, unless a thread that segments it still works."""
        if not self.in_background:
            self.wait()

    def completed(self, engine: Workflow) -> None:
        """Name the cases that failed, of all ranks."""
        self.wait()
        shares = gathered((self.reasons, int(engine.state.epoch_length or 0), self.seen, self.warnings))
        self.failed = {case: reason for reasons, *_ in shares for case, reason in reasons.items()}
        seen: dict[str, CheckedCase] = {}
        for checked in [checked for _, _, share, _ in shares for checked in share.values()]:
            # Each rank has seen its own cases alone.
            if (finding := seen_before(checked, seen)) is not None:
                self.failed[checked.case] = finding.message
        if warnings := {case: found for *_, share in shares for case, found in share.items()}:
            self._record(warnings=warnings)
        self.conclude(self.failed, sum(count for _, count, *_ in shares))

    def conclude(self, failed: Mapping[str, str], count: int) -> None:
        """Write down the cases that failed of ``count``, and name them in an InputError; nothing if there are none."""
        if failed:
            self._record(failed=failed)
            raise InputError(self.summary(failed, count))

    def _record(self, **told: Mapping[str, Any]) -> None:
        if rank() == 0:
            with locked(lock_file(self.output_dir, "lists"), wait=True):
                record = read_run_json(self.output_dir)
                # Earlier runs into the folder have their own cases there.
                record |= {key: {**record.get(key, {}), **cases} for key, cases in told.items()}
                save_json(record, self.output_dir / RUN_FILE)

    @staticmethod
    def summary(failed: Mapping[str, str], count: int) -> str:
        """The line that names the failed cases, given their reasons and the number of all cases.

        Example:
            >>> CaseFailures.summary({"p1": "p1_t1.nii: damaged; copy it again."}, 12)
            '1 of 12 cases failed, and the others are done: p1 (p1_t1.nii: damaged; copy it again.)'
        """
        names, more = list(failed), ""
        if len(names) > 10:
            names, more = names[:10], f" and {len(failed) - 10} more; run.json has all of them"
        if len(names) == 1:
            more = f" ({failed[names[0]]})"
        others = ", and the others are done" if len(failed) < count else ""
        return f"{len(failed)} of {count} case{'s' * (count > 1)} failed{others}: {', '.join(names)}{more}"


def _case_of_batch(batch: Mapping[str, Any]) -> str:
    if "case" in batch:
        return str(batch["case"][0])
    return image_name(batch["image"].meta["filename_or_obj"][0])


def from_done(keys: list[str]) -> Any:
    """MONAI's ``from_engine(keys)`` for evaluators in which a case may have failed. A failed case gives no value.

    Example:
        >>> select = from_done(["pred", "label"])
        >>> select([{"pred": 1, "label": 2}]), select([])
        (([1], [2]), ([], []))
    """
    select = from_engine(keys)
    return lambda output: select(output) if output else tuple([] for _ in keys)


class DoneMetricHandler(IgniteMetricHandler):
    """MONAI's handler of a metric, for evaluators in which all cases of a rank may have failed.

    Such a rank has no row to share, and with MONAI's own gathering the other ranks would wait for it.
    """

    def compute(self) -> Any:
        """Gather the rows of all ranks, at least one of which has one, and aggregate them."""
        metric: Any = self.metric_fn
        if world_size() > 1:
            own = metric._buffers and [torch.stack(rows).cpu() for rows in metric._buffers]
            shares = [share for share in gathered(own) if share]
            metric._synced_tensors = [torch.cat(parts) for parts in zip(*shares, strict=True)]
            metric._synced = True
        return super().compute()
