# Copyright (c) the brats_mri_panet_segmentation authors
# SPDX-License-Identifier: Apache-2.0
"""Locks between processes, by files (``flock``). The system releases a lock when its process ends, however it ends.

A run's folder has its locks in ``.locks``: one of the run, which inferences share and any other run has alone; one of
the lists (``run.json``, ``config.json``, ``datalist.json``), for moments; and one of each case in work.
"""

import atexit
import errno
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from scripts.utils.errors import InputError
from scripts.utils.files import cannot_write

LOCKS_FOLDER = ".locks"
# Another process has the lock; NFS says EACCES.
BUSY = (errno.EWOULDBLOCK, errno.EACCES)
# The last holder removed the file or its folder in between; NFS says ESTALE.
REMOVED = (errno.ENOENT, errno.ESTALE)

# The runs of this process, by their folders.
_runs: dict[Path, IO[str]] = {}


def lock_file(folder: str | Path, name: str) -> Path:
    """The file of the lock ``name`` of a run's folder."""
    return Path(folder) / LOCKS_FOLDER / name


def acquired(path: Path, wait: bool = False, shared: bool = False) -> IO[str] | None:
    """The open file of a lock, which holds the lock until ``release``; None if another process has the lock.

    With ``wait``, it waits for the other. A process that inherits the open file holds the lock, too.

    Raises:
        WriteError: the file cannot be made or locked.
    """
    mode = (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | (0 if wait else fcntl.LOCK_NB)
    while True:
        try:
            # Not exist_ok: it raises if the folder is removed between its two looks.
            with suppress(FileExistsError):
                path.parent.mkdir(parents=True)
            file = path.open("a+", encoding="utf-8")
        except OSError as error:
            if error.errno in REMOVED:
                continue
            raise cannot_write(path, error) from error
        try:
            fcntl.flock(file, mode)
            if os.path.samestat(os.fstat(file.fileno()), path.stat()):
                return file
            file.close()
        except OSError as error:
            file.close()
            if error.errno in BUSY:
                return None
            if error.errno not in REMOVED:
                raise cannot_write(path, error) from error


def release(file: IO[str], path: Path) -> None:
    """Give up a lock. Its file is removed, unless other processes share the lock or the file has content."""
    with suppress(OSError):
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        found = os.fstat(file.fileno())
        if not found.st_size and os.path.samestat(found, path.stat()):
            path.unlink()
            path.parent.rmdir()
    # A process that was forked meanwhile may have the file open still.
    fcntl.flock(file, fcntl.LOCK_UN)
    file.close()


@contextmanager
def locked(path: Path, wait: bool = False) -> Iterator[IO[str] | None]:
    """Hold a lock in a block; as ``acquired``."""
    file = acquired(path, wait)
    try:
        yield file
    finally:
        if file is not None:
            release(file, path)


def enter_run(folder: str | Path, shared: bool = False) -> None:
    """Hold the lock of the run in ``folder`` until ``leave_run`` or the end of the process.

    Raises:
        InputError: another process works there, and one of the two does not share.
    """
    leave_run(folder)
    path = lock_file(folder, "run")
    file = acquired(path, shared=shared)
    if file is None:
        raise InputError(
            f"{folder}: another process works here; wait for its end, stop it, or choose another --output_dir."
        )
    _runs[path] = file


def leave_run(folder: str | Path) -> None:
    """Give up the lock of the run in ``folder``, if this process holds it."""
    path = lock_file(folder, "run")
    if (file := _runs.pop(path, None)) is not None:
        release(file, path)


@atexit.register
def _leave_all() -> None:
    for path, file in _runs.items():
        release(file, path)
