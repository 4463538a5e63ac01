# Copyright (c) the brats_mri_panet_segmentation authors
# SPDX-License-Identifier: Apache-2.0
"""Processes that end themselves by SIGKILL at a chosen change in the folder of their results."""

import json
import os
import signal
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from forks import python
from workflows import ROOT

# It runs a module with arguments. A change is a file opened to be written, or a file or folder renamed or removed.
PROGRAM = """
import json, os, runpy, signal, sys
given = json.loads(sys.argv[1])
changes = 0
def audit(event, args):
    global changes
    changed = event in ("os.rename", "os.remove", "os.mkdir", "os.rmdir") or (
        event == "open" and isinstance(args[2], int) and args[2] & (os.O_WRONLY | os.O_RDWR)
    )
    if changed and any(given["out"] in str(one) for one in args[:2]):
        changes += 1
        if changes == given["kill"]:
            os.kill(os.getpid(), signal.SIGKILL)
sys.addaudithook(audit)
exec(given["before"])
sys.argv = [given["module"], *given["arguments"]]
try:
    runpy.run_module(given["module"], run_name="__main__", alter_sys=True)
finally:
    print("changes:", changes)
"""


def start(
    module: str, arguments: Sequence[object], out: Path, kill: int = 0, before: str = ""
) -> subprocess.Popen[str]:
    """Start ``python -m module`` after the code ``before``; it is killed at a change in ``out``, by number from 1."""
    given = {"module": module, "arguments": [*map(str, arguments)], "out": str(out), "kill": kill, "before": before}
    environment = {**os.environ, "PYTHONWARNINGS": "ignore", "OMP_NUM_THREADS": "1"}
    environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    return subprocess.Popen(
        [python(), "-c", PROGRAM, json.dumps(given)],
        cwd=out.parent,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def ended(process: subprocess.Popen[str]) -> tuple[int, str]:
    """The status of a process, and the lines of its errors."""
    _, said = process.communicate()
    return process.returncode, "".join(line for line in said.splitlines(True) if line.startswith(("error", "Trace")))


def check_kills(
    run: Callable[[int], subprocess.Popen[str]], found: Callable[[], dict], clear: Callable[[], None], number: int
) -> None:
    """Kill a process at a number of moments, evenly over an undisturbed run, and start it again each time.

    Args:
        run: start the process as a user would, and kill it at this change, or not if it is 0.
        found: the results.
        clear: remove them.
    """
    process = run(0)
    said, errors = process.communicate()
    assert process.returncode == 0, errors[-2000:]
    changes, whole = int(said.rpartition("changes:")[2]), found()
    assert changes > number and whole
    for moment in np.linspace(1, changes, number).round().astype(int).tolist():
        clear()
        status, errors = ended(run(moment))
        # Threads that wait for each other's locks may open them once more or less often.
        assert status == -signal.SIGKILL or (status, moment) == (0, changes), errors
        assert ended(run(0)) == (0, "")
        assert found() == whole, f"change {moment} of {changes}"
