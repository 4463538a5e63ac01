# Copyright (c) the brats_mri_panet_segmentation authors
# SPDX-License-Identifier: Apache-2.0
"""What tests start by a fork behaves as what the interpreter starts."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from forks import python

pytestmark = pytest.mark.slow

TELL = """
import json, logging, os, random, sys
print(json.dumps([__name__, os.getcwd(), sys.argv, sys.path[0], os.environ["MINE"], len(logging.root.handlers)]))
print("to stderr", file=sys.stderr)
"""


def started(program: str, *arguments: str, cwd: Path) -> tuple[int, str, str]:
    environment = {**os.environ, "MINE": "yes", "PYTHONWARNINGS": "ignore"}
    done = subprocess.run([program, *arguments], cwd=cwd, env=environment, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ["-c", TELL, "a b", "--c"],
        ["-W", "ignore", "-u", "-m", "told.inside", "a"],
        ["told/inside.py", "a"],
        ["-c", "raise SystemExit(7)"],
        ["-c", "raise SystemExit('in words')"],
        ["-c", "import sys\nsys.excepthook = lambda *error: print(error[1])\nraise ValueError('an error')"],
        ["-c", "import atexit\natexit.register(print, 'at the end')"],
        ["-c", "import os, signal\nos.kill(os.getpid(), signal.SIGKILL)"],
        ["-c", "import subprocess, sys\nsys.exit(subprocess.call([sys.executable, '-c', 'raise SystemExit(5)']))"],
    ],
)
def test_streams_status_and_place_are_those_of_the_interpreter(arguments, tmp_path):
    (tmp_path / "told").mkdir()
    (tmp_path / "told" / "inside.py").write_text(TELL)
    wanted = started(sys.executable, *arguments, cwd=tmp_path)
    assert started(python(), *arguments, cwd=tmp_path) == wanted


def test_an_uncaught_error_has_its_traceback(tmp_path):
    status, _, said = started(python(), "-c", "open('absent')", cwd=tmp_path)
    assert status == 1 and said.startswith("Traceback") and "FileNotFoundError" in said.splitlines()[-1]


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 12), (signal.SIGKILL, -signal.SIGKILL)])
def test_signals_arrive(number, status, tmp_path):
    """SIGTERM is handled by the program. Nothing goes on when the caller's own process is killed."""
    code = """
import pathlib, signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: sys.exit(12))
while True:
    pathlib.Path("alive").write_text(str(time.time()))
    time.sleep(0.01)
"""
    running = subprocess.Popen([python(), "-c", code], cwd=tmp_path)
    while not (tmp_path / "alive").exists():
        assert running.poll() is None
        time.sleep(0.02)
    running.send_signal(number)
    assert running.wait() == status
    time.sleep(0.5)
    last = (tmp_path / "alive").read_text()
    time.sleep(0.3)
    assert (tmp_path / "alive").read_text() == last
