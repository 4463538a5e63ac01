# Copyright (c) the brats_mri_panet_segmentation authors
# SPDX-License-Identifier: Apache-2.0
"""The bundle's folder, and files that are whole or absent: they are written beside their place, then moved there."""

import csv
import errno
import glob
import hashlib
import io
import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

from scripts.utils.errors import InputError, WriteError

BUNDLE_ROOT = Path(__file__).resolve().parents[2]
CONFIGS = BUNDLE_ROOT / "configs"

# What an operating system says of a disk that takes no more, or nothing at all.
FULL = (errno.ENOSPC, errno.EDQUOT)
TAKES_NOTHING = (*FULL, errno.EROFS)


def cannot_write(path: str | Path, error: OSError) -> WriteError:
    """The refusal for ``error`` in writing ``path``."""
    remedy = "make room there, or choose another folder" if error.errno in FULL else "choose another folder"
    return WriteError(f"{path}: cannot be written ({error.strerror}); {remedy}.")


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Give a temporary path, which replaces ``path`` on success and is removed on failure.

    The temporary file has the name of ``path``, in a temporary folder beside it, so writers find the right extension.

    Raises:
        WriteError: the folder of ``path`` cannot be made or written, or its disk is full.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        folder = tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent)
    except OSError as error:
        raise cannot_write(path, error) from error
    temporary = Path(folder) / path.name
    try:
        yield temporary
        os.replace(temporary, path)
    except (OSError, RuntimeError) as error:
        if isinstance(error, OSError) and error.errno in TAKES_NOTHING:
            raise cannot_write(path, error) from error
        if "inline_container" in str(error):  # torch's writer of archives, when a disk is full
            raise cannot_write(path, OSError(errno.ENOSPC, "torch could not write all of it")) from error
        raise
    finally:
        shutil.rmtree(folder)


def remove_unfinished(path: str | Path) -> None:
    """Remove what a killed process has left of ``path`` while it was ``replacing`` it."""
    path = Path(path)
    for folder in path.parent.glob(f".{glob.escape(path.name)}.*"):
        shutil.rmtree(folder)


def save_text(text: str, path: str | Path) -> None:
    """Write UTF-8 text and move the file into place. A byte of a name that is no UTF-8 is written as its escape."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")


def save_csv(header: Sequence[str], rows: Iterable[Iterable[Any]], path: str | Path) -> None:
    """Write a CSV file and move it into place."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    save_text(text.getvalue(), path)


def save_json(value: Any, path: str | Path) -> None:
    """Write indented JSON and move the file into place. A value that JSON cannot hold, such as a path, becomes text."""
    save_text(json.dumps(value, indent=4, default=str) + "\n", path)


def read_json(path: str | Path) -> dict[str, Any]:
    """The object in a JSON file; empty if there is no file.

    Raises:
        InputError: the file is not JSON, or it holds something else than an object.
    """
    path = Path(path)
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{path}: not JSON ({error}); restore or remove it.") from error
    if not isinstance(content, dict):
        raise InputError(f"{path}: not a record, which is a JSON object; restore or remove it.")
    return content


def refuse_pointer(path: str | Path) -> None:
    """Refuse a file that git-annex or Git LFS has left in place of the content."""
    file = Path(path)
    try:
        if file.is_symlink() and not file.exists():
            start = os.fsencode(os.readlink(file))
        else:
            with file.open("rb") as stream:
                start = stream.read(100)
    except OSError:
        return
    if b"annex/objects/" in start:
        keeper, command = "git-annex", f"git annex get {file.name}"
    elif start.startswith(b"version https://git-lfs.github.com/spec/"):
        keeper, command = "Git LFS", "git lfs pull"
    else:
        return
    told = f"{path}: a pointer of {keeper} in place of the content; get it ({command})."
    raise InputError(told, "pointer in place of a file")


def file_checksum(path: str | Path, algorithm: str = "sha256", **options: Any) -> str:
    """Checksum of a file's bytes in hexadecimal digits. ``algorithm`` and ``options`` are those of ``hashlib.new``."""
    found = hashlib.new(algorithm, **options)
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            found.update(block)
    return found.hexdigest()


def keep_earlier(path: str | Path) -> Path | None:
    """Rename ``path`` to a dated name beside it, and return this name; None if nothing was there.

    Raises:
        WriteError: the folder takes no changes.

    Example:
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder) / "model.pt"
        ...     keep_earlier(path) is None
        ...     path.touch()
        ...     os.utime(path, (datetime(2020, 3, 1, 12, 30).timestamp(),) * 2)
        ...     keep_earlier(path).name
        True
        'model_20200301_123000.pt'
    """
    path = Path(path)
    if not path.exists():
        return None
    changed = datetime.fromtimestamp(path.stat().st_mtime)
    # Path.suffix alone would be .gz.
    suffix = ".nii.gz" if path.name.endswith(".nii.gz") else path.suffix
    dated = f"{path.name.removesuffix(suffix)}_{changed:%Y%m%d_%H%M%S}"
    kept = path.with_name(dated + suffix)
    number = 1
    while kept.exists():
        number += 1
        kept = path.with_name(f"{dated}_{number}{suffix}")
    try:
        path.rename(kept)
    except OSError as error:
        raise cannot_write(kept, error) from error
    return kept
