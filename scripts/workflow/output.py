# Copyright (c) the brats_mri_panet_segmentation authors
# SPDX-License-Identifier: Apache-2.0
"""The folder of a run's results.

Before a run, this module checks that the folder is free and that no result would replace a file that the run reads.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scripts.data.cases import image_files
from scripts.errors import InputError
from scripts.files import keep_earlier
from scripts.inference.writers import map_files
from scripts.run_record import RECORD_FILE

logger = logging.getLogger(__name__)

Items = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Output:
    """Where the results of a run go.

    Attributes:
        folder: folder of the run.
        map_dir: folder for label maps and maps of regions; None if none are saved.
        overwrite: keep an earlier run's folder under a dated name instead of refusing it.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = Path(folder, RECORD_FILE).write_text("{}")
        ...     Output(folder).refuse_used(dataset_dir="data")  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        scripts.errors.InputError: ...: holds an earlier run; choose another --output_dir, or add --overwrite True ...
    """

    folder: str
    map_dir: str | None = None
    overwrite: bool = False

    def refuse_used(self, dataset_dir: str) -> None:
        """Check, before any case is read, that the results can have a folder of their own.

        Raises:
            InputError: the folder holds an earlier run (without ``overwrite``) or the data, or it is a file.
        """
        folder = Path(self.folder)
        if folder.exists() and not folder.is_dir():
            raise InputError(f"{folder}: not a folder; choose another --output_dir.")
        if Path(dataset_dir).exists() and Path(dataset_dir).resolve().is_relative_to(folder.resolve()):
            raise InputError(f"{folder}: holds the data ({dataset_dir}); choose another --output_dir.")
        if (folder / RECORD_FILE).exists() and not self.overwrite:
            raise InputError(
                f"{folder}: holds an earlier run; choose another --output_dir, or add --overwrite True "
                "(the earlier folder is then kept under a dated name)."
            )

    def refuse_replacing(self, items: Items, datalist_file: str | None = None, resume: bool = False) -> None:
        """Check, before any volume is read, that no result replaces a file that the run reads.

        Args:
            items: the cases that the run reads.
            datalist_file: the datalist that a training reads. The run writes a datalist of its own to the folder.
            resume: the run goes on in the folder. The folder is then not moved, and its datalist is not written again.

        Raises:
            InputError: a result would replace a file that the run reads, directly or by a link, or such a file lies in
                a folder that would be moved away.
        """
        read = [file for item in items for file in (*image_files(item["image"]), item.get("label")) if file]
        written: list[Path] = []
        if self.map_dir is not None:
            written = [path for item in items for path in map_files(str(item["case"]), self.map_dir)]
        if not resume and (Path(self.folder) / RECORD_FILE).exists():
            folder = os.path.realpath(self.folder)
            for file in read:
                if any(Path(path).is_relative_to(folder) for path in (os.path.abspath(file), os.path.realpath(file))):
                    raise InputError(f"{self.folder}: holds {file}, which the run reads; choose another --output_dir.")
        elif not resume and datalist_file is not None:
            read.append(datalist_file)
            written.append(Path(self.folder) / "datalist.json")
        known = {_identity(file): file for file in read}
        for path in written:
            if (identity := _identity(path)) is not None and identity in known:
                raise InputError(
                    f"{path}: would be written over {known[identity]}, an input; choose another --output_dir."
                )

    def claim(self) -> None:
        """Keep the folder of an earlier run under a dated name, so that files of two runs do not mix."""
        if (Path(self.folder) / RECORD_FILE).exists():
            logger.info("Kept the earlier run as %s", keep_earlier(self.folder))


def _identity(path: str | Path) -> tuple[int, int] | None:
    """Device and inode, which all links to a file share; None if there is no file."""
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino
