# Copyright (c) the brats_mri_panet_segmentation authors
# SPDX-License-Identifier: Apache-2.0
"""The folder of a run's results: whether it is free, and that no result would replace a file that the run reads."""

import logging
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from monai.engines.workflow import Workflow
from monai.utils import ensure_tuple
from scripts.data.cases import NO_FILE, image_files
from scripts.data.datalist_file import LONGEST_NAME, is_plain_name, read_datalist
from scripts.inference.writers import map_files
from scripts.utils.errors import InputError
from scripts.utils.files import keep_earlier, remove_unfinished
from scripts.utils.locks import LOCKS_FOLDER, enter_run, leave_run, lock_file, locked
from scripts.utils.run_json import CONFIG_FILE, RUN_FILE, read_run_json
from scripts.workflow.configuration import Configuration
from scripts.workflow.recipe import NOT_OF_THE_MAPS, changed_recipe

logger = logging.getLogger(__name__)

Items = Sequence[Mapping[str, Any]]
# The cases of a run, in the run's folder.
DATALIST_FILE = "datalist.json"
RUN_FILES = (RUN_FILE, CONFIG_FILE, DATALIST_FILE)


@dataclass(frozen=True)
class Output:
    """Where the results of a run go.

    Attributes:
        folder: folder of the run.
        map_dir: folder for label maps and maps of regions; None if none are saved.
        overwrite: keep an earlier run's folder under a dated name instead of refusing it.
        case_folders: the maps of each case have a folder of their own in ``map_dir``.
    """

    folder: str
    map_dir: str | None = None
    overwrite: bool = False
    case_folders: bool = False

    def maps_of(self, items: Items) -> list[Path]:
        """All files that the maps of these cases may have; none if no maps are saved."""
        if self.map_dir is None:
            return []
        return [
            path
            for item in items
            for path in map_files(str(item["case"]), self.map_dir, case_folders=self.case_folders)
        ]

    @property
    def holds_run(self) -> bool:
        """Whether the folder holds an earlier run."""
        return (Path(self.folder) / RUN_FILE).exists()

    def refuse_used(self, dataset_dir: str, resume: bool = False) -> None:
        """Check, before any case is read, that the results have a folder of their own, or ``resume`` an earlier run.

        Raises:
            InputError: the folder holds an earlier run (without ``overwrite``) or the data, or it is a file.
        """
        folder = Path(self.folder)
        if folder.exists() and not folder.is_dir():
            raise InputError(f"{folder}: not a folder; choose another --output_dir.")
        if Path(dataset_dir).exists() and Path(dataset_dir).resolve().is_relative_to(folder.resolve()):
            raise InputError(f"{folder}: holds the data ({dataset_dir}); choose another --output_dir.")
        self.refuse_earlier(resume or self.overwrite)

    def refuse_earlier(self, may_hold: bool) -> None:
        """Refuse a folder that holds an earlier run, unless it may."""
        if self.holds_run and not may_hold:
            raise InputError(
                f"{self.folder}: holds an earlier run; choose another --output_dir, or add --overwrite "
                "(the earlier folder is then kept under a dated name)."
            )

    def refuse_meeting(self, items: Items) -> None:
        """Check that no two results have one name, none the name of the run's own files, and none too long a name."""
        if self.map_dir is None:
            return
        owners: dict[Path, str] = {}
        for item in items:
            case = str(item["case"])
            if not is_plain_name(case):
                raise InputError(
                    f"{case}: longer than {LONGEST_NAME} bytes; results are named after it, so shorten it."
                )
            if case in RUN_FILES or (not self.case_folders and f"{case}.json" in RUN_FILES):
                raise InputError(f"{case}: the run has a file of this name; rename the case.")
            for path in self.maps_of([item]):
                if (owner := owners.setdefault(path, case)) != case:
                    raise InputError(
                        f"{path.name}: {owner} and {case} would both have a map of this name; rename one of them, or "
                        "segment them into two folders."
                    )

    def refuse_replacing(self, items: Items, datalist_file: str | None = None, resume: bool = False) -> None:
        """Check, before any volume is read, that no result replaces a file that the run reads.

        With ``resume``, the folder is not moved, and its datalist is not written again.

        Raises:
            InputError: a result would replace a file that the run reads, directly or by a link, or such a file lies in
                a folder that would be moved away.
        """
        read = [file for item in items for file in (*image_files(item["image"]), item.get("label")) if file]
        written = self.maps_of(items)
        if not resume and self.holds_run:
            folder = os.path.realpath(self.folder)
            for file in read:
                if any(Path(path).is_relative_to(folder) for path in (os.path.abspath(file), os.path.realpath(file))):
                    raise InputError(f"{self.folder}: holds {file}, which the run reads; choose another --output_dir.")
        elif not resume and datalist_file is not None:
            read.append(datalist_file)
            written.append(Path(self.folder) / DATALIST_FILE)
        known = {_identity(file): file for file in read}
        for path in written:
            if (identity := _identity(path)) is not None and identity in known:
                raise InputError(
                    f"{path}: would be written over {known[identity]}, an input; choose another --output_dir."
                )

    def refuse_other_run(self, configuration: Configuration, facts: Mapping[str, Any]) -> None:
        """Check that a second run into the folder has the same settings and ``facts`` (entries of ``run.json``)."""
        record, file = read_run_json(self.folder), Path(self.folder) / CONFIG_FILE
        changed = [key for key, value in facts.items() if record.get(key) != value]
        if configuration.content and file.is_file():
            changed += changed_recipe(configuration.content, file, NOT_OF_THE_MAPS)
        if changed:
            raise InputError(
                f"{self.folder}: holds an earlier run with other settings ({', '.join(changed)}); choose another "
                "--output_dir, or add --overwrite (the earlier folder is then kept under a dated name)."
            )

    @contextmanager
    def claimed(self, resume: bool = False, shared: bool = False) -> Iterator[None]:
        """Take the folder for this run until its end, and hold the lock of its lists in the block.

        With ``overwrite``, an earlier run's folder is kept under a dated name, unless this run resumes it. If the block
        fails, the folder is given up. A run that is ``shared`` must look again, in the block, which run the folder
        holds: another process may have come first.

        Raises:
            InputError: another process works in the folder, or has done so meanwhile.
        """
        if self.holds_run and self.overwrite and not resume:
            enter_run(self.folder)
            kept = keep_earlier(self.folder)
            assert kept is not None
            shutil.rmtree(kept / LOCKS_FOLDER)
            logger.info("Kept the earlier run as %s", kept)
        enter_run(self.folder, shared)
        try:
            with locked(lock_file(self.folder, "lists"), wait=True):
                if not shared:
                    self.refuse_earlier(resume)
                for name in RUN_FILES:
                    remove_unfinished(Path(self.folder, name))
                yield
        except BaseException:
            leave_run(self.folder)
            raise


def run_engine(engine: Workflow, folder: str) -> None:
    """Run the engine of a training or an evaluation in its folder, which is given up at the end."""
    try:
        engine.run()
    finally:
        leave_run(folder)


def earlier_cases(output_dir: str, dataset_dir: str) -> dict[str, dict[str, Any]]:
    """The entries of the cases that earlier inferences into ``output_dir`` were given, by name.

    ``dataset_dir`` is the folder of the cases for a record that does not say it.
    """
    listed = Path(output_dir) / DATALIST_FILE
    if not listed.is_file() or not (Path(output_dir) / RUN_FILE).is_file():
        return {}
    root = read_run_json(output_dir).get("dataset_dir", dataset_dir)
    items = read_datalist(listed, root, with_labels=False).get("testing", [])
    return {str(item["case"]): item for item in items}


def same_images(item: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether two entries have the same files for the same sequences, however their paths are written."""
    first, second = (
        [file if file == NO_FILE else os.path.realpath(file) for file in ensure_tuple(one["image"])]
        for one in (item, other)
    )
    return first == second


def _identity(path: str | Path) -> tuple[int, int] | None:
    """Device and inode, which all links to a file share; None if there is no file."""
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino
