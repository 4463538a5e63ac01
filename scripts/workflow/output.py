# Copyright (c) the brats_mri_panet_segmentation authors
# SPDX-License-Identifier: Apache-2.0
"""The folder of a run's results: that it is free, and that no result takes the place of a file that the run reads."""

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
        folder: of the run.
        map_dir: for label maps and maps of regions; None where none are saved.
        overwrite: keep an earlier run's folder under a dated name instead of refusing it.
    """

    folder: str
    map_dir: str | None = None
    overwrite: bool = False

    def refuse_used(self, dataset_dir: str) -> None:
        """Make sure, before anything is read, that the results can have a folder of their own.

        Raises:
            InputError: the folder holds an earlier run (unless ``overwrite``), or the data, or is a file.
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
        """Make sure, before anything is read at length, that no result takes the place of a file that the run reads.

        Args:
            items: what the run reads.
            datalist_file: a training's, also read; one of the run's own is written to the folder.
            resume: the run goes on in the folder, which is then not moved, nor is its datalist written again.

        Raises:
            InputError: a file to be written is one of them, whatever links lead there, or they would be moved away.
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
        """Keep the folder of an earlier run under a dated name, so that nothing of two runs mixes."""
        if (Path(self.folder) / RECORD_FILE).exists():
            logger.info("Kept the earlier run as %s", keep_earlier(self.folder))


def _identity(path: str | Path) -> tuple[int, int] | None:
    """What is the same for all links to a file; None where there is no file."""
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino
