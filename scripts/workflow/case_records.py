# Copyright (c) the brats_mri_panet_segmentation authors
# SPDX-License-Identifier: Apache-2.0
"""The cases of an inference: which are done, which this process works on, and what each result was made of.

A case's record, ``<case>.json``, is written after its maps. It holds the checksums of all files that were read, and one
of the weights and settings. A case is done if its maps are there and its record fits the files, weights and settings of
now. Several processes may work in one folder; each case has a lock (``scripts.utils.locks``).
"""

import functools
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import IO, Any

from monai.engines import SupervisedEvaluator
from monai.utils import ensure_tuple
from scripts.data.cases import resolve_image
from scripts.data.images import inputs_of
from scripts.inference.failures import CASE_ERRORS, CaseFailures
from scripts.inference.label_tables import TABLE_ENDINGS
from scripts.inference.writers import REGION_MAP_KINDS, map_files, record_file
from scripts.scores.certainty import Signs
from scripts.scores.expected_dice import expected
from scripts.utils.distributed import from_rank_zero, on_rank_zero
from scripts.utils.errors import InputError
from scripts.utils.files import keep_earlier, read_json, remove_unfinished, save_json
from scripts.utils.locks import acquired, leave_run, lock_file, release
from scripts.weights.record import calibrations_of, model_checksum
from scripts.workflow.configuration import Configuration
from scripts.workflow.recipe import NOT_OF_THE_MAPS, fingerprint

logger = logging.getLogger(__name__)

Item = Mapping[str, Any]
Inputs = Sequence[Mapping[str, str]]
# What panet segment writes beside the label map, in the case's own folder.
ENDINGS = (".dcm", ".png", "_3d.png")


class CaseRecords:
    """The records and the locks of an inference's cases.

    Args:
        configuration: the running configuration.
        output_dir: folder of the run.
        case_folders: as in ``map_files``.
        probabilities: the maps of probabilities belong to a result.
        uncertainty: those of uncertainty, too.

    Attributes:
        describe: gives further entries of the record of a case that was segmented, by its name and the function that
            has read its files.
    """

    def __init__(
        self,
        configuration: Configuration,
        output_dir: str,
        case_folders: bool = False,
        probabilities: bool = False,
        uncertainty: bool = False,
    ) -> None:
        self.configuration = configuration
        self.output_dir = output_dir
        self.case_folders = case_folders
        wanted = zip(REGION_MAP_KINDS, (probabilities, uncertainty), strict=True)
        self.kinds = [kind for kind, is_wanted in wanted if is_wanted]
        self.describe: Callable[[str, Any], Mapping[str, Any]] | None = None
        # By case: the record when the run began, what this process has read, and the lock that it holds.
        self.known: dict[str, dict[str, Any]] = {}
        self.read: dict[str, Inputs] = {}
        self.locks: dict[str, IO[str]] = {}

    def maps(self, case: str) -> list[Path]:
        """The maps of a case, the label map first."""
        return map_files(case, self.output_dir, self.kinds, self.case_folders)

    def record(self, case: str) -> dict[str, Any]:
        """The record of a case; empty if there is none."""
        return read_json(record_file(self.maps(case)[0]))

    @functools.cached_property
    def made_by(self) -> str:
        """Checksum of the settings and weights of this run."""
        get = self.configuration.get
        weights = [model_checksum(file) for file in ensure_tuple(get("model_file"))]
        return fingerprint(self.configuration.content, NOT_OF_THE_MAPS, [weights, get("thresholds")])

    def fits(self, case: str, inputs: Callable[[], Inputs]) -> bool:
        """Whether a case is done, given what gives its files with their checksums."""
        record = self.record(case)
        # The files are read last, and only if all else fits.
        if record.get("made_by") != self.made_by or not all(path.is_file() for path in self.maps(case)):
            return False
        # The same files may lie elsewhere now.
        then, now = ([(one["sequence"], one["sha256"]) for one in files] for files in (record["inputs"], inputs()))
        return then == now

    def is_done(self, item: Item) -> bool:
        """Whether an entry's case is done, by its files as they are now."""
        if not self.record(str(item["case"])):
            return False
        try:
            return self.fits(str(item["case"]), lambda: inputs_of(resolve_image(item["image"])))
        except (InputError, OSError):  # what cannot be read is refused before the run
            return False

    def _files(self, case: str) -> list[Path]:
        """All files that a case may have; its record first, so that it never describes other maps."""
        label_map, *maps = map_files(case, self.output_dir, case_folders=self.case_folders)
        beside = [label_map.with_name(case + ending) for ending in ENDINGS] if self.case_folders else []
        return [record_file(label_map), label_map, *maps, *beside]

    def _lock(self, case: str) -> Path:
        # The file has content while the case is in work, and stays so if the process is killed.
        return lock_file(self.output_dir, f"case {case}")

    def begin(self, case: str, inputs: Inputs) -> bool:
        """Take on a case that was read; whether this process is to do it, and no other has done it or works on it.

        Results of other images, weights or settings are kept under dated names. What a killed process has left of the
        case is removed.

        Raises:
            InputError: another process has written results of other images since this run began.
        """
        self.read[case] = inputs
        if (lock := acquired(self._lock(case))) is None:
            return False
        self.locks[case] = lock
        if self.fits(case, lambda: inputs):
            self.leave(case)
            return False
        if self.record(case) != self.known.get(case, {}):
            raise InputError(self._other_images(case))
        is_left_over = self._is_unfinished(case)
        self._remove_half_written(case)
        for file in self._files(case):
            if is_left_over:
                file.unlink(missing_ok=True)
            elif (kept := keep_earlier(file)) is not None:
                logger.info("Kept an earlier %s as %s", file, kept.name)
        lock.write("in work")
        lock.flush()
        return True

    def _remove_half_written(self, case: str) -> None:
        """Remove the temporary files of a killed process, of a case whose lock this process has."""
        label_map, *_ = self.maps(case)
        for file in (*self._files(case), *(label_map.with_name(case + ending) for ending in TABLE_ENDINGS)):
            remove_unfinished(file)

    def _is_unfinished(self, case: str) -> bool:
        """Whether what the case has is of a work that did not come to its record."""
        return os.fstat(self.locks[case].fileno()).st_size > 0 and not record_file(self.maps(case)[0]).is_file()

    def _other_images(self, case: str) -> str:
        return (
            f"{self.maps(case)[0]}: another process has written it meanwhile, of other images of this name; choose "
            "another --output_dir."
        )

    @functools.cached_property
    def calibrations(self) -> list[dict[str, Any]]:
        """The calibrations of the expected Dice of the weights."""
        return calibrations_of(self.configuration.get("model_file"))

    def end(self, case: str, read: Any, signs: Signs) -> None:
        """Write the record of a case whose maps are written.

        ``read`` has read its files, and may remember them. By ``signs`` the Dice of the result is expected.
        """
        self._check_maps(case)
        date = datetime.now().astimezone().isoformat(timespec="seconds")
        described = {"case": case, "date": date, "expected_dice": expected(self.calibrations, signs)}
        if self.describe is not None:
            described |= self.describe(case, read)
        record = {**described, "inputs": self.read[case], "made_by": self.made_by}
        save_json(record, record_file(self.maps(case)[0]))

    def leave(self, case: str) -> None:
        """Give up the lock of a case, if this process has it. Maps without a record are removed."""
        if case not in self.locks:
            return
        if self._is_unfinished(case):
            for file in self._files(case):
                file.unlink(missing_ok=True)
        self.locks[case].truncate(0)
        release(self.locks.pop(case), self._lock(case))

    def run(self, evaluator: SupervisedEvaluator, items: Sequence[Item], failures: CaseFailures) -> None:
        """Run the evaluator on what is left of these entries. At the end every case has its results.

        Raises:
            InputError: a case failed, or another process has not done its work; the others are done.
        """
        failure = None
        try:
            try:
                if len(evaluator.data_loader.dataset):  # type: ignore[arg-type, union-attr]
                    evaluator.run()
            except (RuntimeError, ValueError) as error:
                if not failures.failed:
                    raise
                failure = error
            on_rank_zero(lambda: self._settle([str(item["case"]) for item in items], failures))
            if failure is not None:
                raise failure
        finally:
            try:
                failures.wait()
            finally:
                for case in list(self.locks):
                    self.leave(case)
                leave_run(self.output_dir)

    def _settle(self, cases: Sequence[str], failures: CaseFailures) -> None:
        """Wait for cases that other processes work on, and make what is missing beside the maps of any case."""
        failed: dict[str, str] = {}
        for case in cases:
            if case in failures.failed:
                continue
            if (lock := acquired(self._lock(case))) is None:
                logger.info("%s: another process works on it; waiting.", case)
                lock = acquired(self._lock(case), wait=True)
            self.locks[case] = lock  # type: ignore[assignment]
            # The process may have been killed when the record was written and the rest was not.
            self._remove_half_written(case)
            try:
                self._check_settled(case)
                if failures.finish is not None:
                    failures.finish(case, None)
            except CASE_ERRORS as error:
                failures.add(case, error)
                failed[case] = failures.reasons[case]
            self.leave(case)
        failures.conclude(failed, len(cases))

    def _check_settled(self, case: str) -> None:
        if not self.record(case):
            raise InputError(f"{case}: another process began with it and did not end; segment the case again.")
        self._check_maps(case)
        if case in self.read and not self.fits(case, lambda: self.read[case]):
            raise InputError(self._other_images(case))

    def _check_maps(self, case: str) -> None:
        for path in self.maps(case):
            if not path.is_file():
                raise InputError(f"{case}: no label map was written ({path}); segment the case again.")


def left_to_do(items: Sequence[Item], records: CaseRecords, overwrite: bool = False) -> list[Item]:
    """The cases that no earlier run has done, by ``records``; all of them with ``overwrite``. All ranks agree."""
    if overwrite:
        return list(items)
    records.known = {str(item["case"]): records.record(str(item["case"])) for item in items}
    done = from_rank_zero(lambda: [records.is_done(item) for item in items])
    return [item for item, is_done in zip(items, done, strict=True) if not is_done]
