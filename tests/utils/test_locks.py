# Copyright (c) the brats_mri_panet_segmentation authors
# SPDX-License-Identifier: Apache-2.0
"""A lock is held by one process, or shared; it ends with its process, and leaves nothing."""

import errno
import os
import signal
import subprocess
import sys
import threading

import pytest
from scripts.utils.errors import InputError, WriteError
from scripts.utils.locks import acquired, enter_run, leave_run, locked, release
from workflows import ROOT

# A process that holds a lock until it is killed, and a child that has inherited it or not.
HOLD = """
import subprocess, sys
from pathlib import Path
from scripts.utils.locks import acquired
file = acquired(Path(sys.argv[1]), shared=sys.argv[2] == "shared")
if sys.argv[3] == "child":
    subprocess.Popen(["sleep", "30"], pass_fds=[file.fileno()])
print("held", flush=True)
sys.stdin.read()
"""


def holder(path, how="alone", child="none") -> subprocess.Popen:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(path), how, child], cwd=ROOT, stdin=-1, stdout=-1, text=True
    )
    assert process.stdout.readline() == "held\n"
    return process


def kill(process: subprocess.Popen) -> None:
    process.send_signal(signal.SIGKILL)
    process.communicate()


def test_a_lock_dies_with_its_process(tmp_path):
    path = tmp_path / "out" / ".locks" / "run"
    process = holder(path)
    assert acquired(path) is None and acquired(path, shared=True) is None
    with pytest.raises(InputError, match=r"out: another process works here; wait for its end, stop it, or choose"):
        enter_run(tmp_path / "out")
    kill(process)
    with locked(path) as file:
        assert file is not None
    assert not path.parent.exists()


def test_what_shares_a_lock_is_no_obstacle_and_the_last_one_removes_the_file(tmp_path):
    path = tmp_path / ".locks" / "run"
    process = holder(path, "shared")
    enter_run(tmp_path, shared=True)
    assert acquired(path) is None
    leave_run(tmp_path)
    assert path.is_file()
    enter_run(tmp_path, shared=True)
    kill(process)
    leave_run(tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_process_that_inherits_the_file_holds_the_lock(tmp_path):
    """The processes of a study go on when their parent is killed."""
    process = holder(tmp_path / "lock", child="child")
    # The child shares this pipe, too.
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert acquired(tmp_path / "lock") is None


def test_who_waits_gets_the_lock_although_its_file_was_removed(tmp_path):
    path, got = tmp_path / "lock", []
    first = acquired(path)
    waiting = threading.Thread(target=lambda: got.append(acquired(path, wait=True)))
    waiting.start()
    waiting.join(0.2)
    assert not got
    release(first, path)
    waiting.join(300)
    assert got and path.is_file() and acquired(path) is None
    release(got[0], path)
    assert not path.exists()


def test_a_folder_that_another_process_removes_at_once_is_made_again(tmp_path, monkeypatch):
    folder, mkdir, calls = tmp_path / ".locks", os.mkdir, []

    def removed_by_another(*arguments):
        calls.append(arguments)
        mkdir(*arguments)
        if len(calls) == 1:
            folder.rmdir()
            raise FileExistsError(errno.EEXIST, "File exists", str(folder))

    monkeypatch.setattr(os, "mkdir", removed_by_another)
    assert acquired(folder / "lock") is not None
    assert len(calls) == 2


def test_a_folder_that_takes_no_files_is_one_line(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(WriteError, match="cannot be written"):
        acquired(tmp_path / "file" / "lock")
