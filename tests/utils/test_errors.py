# Copyright (c) the brats_mri_panet_segmentation authors
# SPDX-License-Identifier: Apache-2.0
"""Wrong input is shown as one line; every other error keeps its traceback."""

import os
import pickle
import subprocess
from pathlib import Path

import pytest
from forks import python
from scripts.utils.errors import InputError, input_error_behind

ROOT = Path(__file__).parents[1]


def run(code):
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run([python(), "-c", code], env=env, capture_output=True, text=True, check=False)


IMPORT = "from scripts.utils.errors import InputError, show_input_errors\nshow_input_errors()\nshow_input_errors()\n"
SHOWN = {
    "raised as it is": "raise InputError('a.nii: cut off')",
    "wrapped": (
        "try:\n  raise InputError('a.nii: cut off')\nexcept ValueError as e:\n  raise RuntimeError('x\\ny') from e"
    ),
    "wrapped unnamed": "try:\n  raise InputError('a.nii: cut off')\nexcept ValueError:\n  raise RuntimeError('x')",
    "wrapped twice": (
        "try:\n  try:\n    raise InputError('a.nii: cut off')\n"
        "  except ValueError as e:\n    raise KeyError('x') from e\n"
        "except KeyError as e:\n  raise RuntimeError('y') from e"
    ),
    "by a worker": (
        "raise InputError('Caught InputError in DataLoader worker process 0.\\nOriginal Traceback:\\n'\n"
        "  'scripts.utils.errors.InputError: a.nii: cut off\\n')"
    ),
    "caused itself": "try:\n  open('/absent')\nexcept OSError as e:\n  raise InputError('a.nii: cut off') from e",
}


@pytest.mark.slow
@pytest.mark.parametrize("raised", SHOWN)
def test_wrong_input_is_one_line_and_status_1_however_it_is_wrapped(raised):
    done = run(IMPORT + SHOWN[raised])
    assert done.stderr == "error: a.nii: cut off\n"
    assert done.stdout == ""
    assert done.returncode == 1


@pytest.mark.slow
@pytest.mark.parametrize(
    ("calls", "said"),
    [
        ("show_input_errors()", "stopped"),
        (
            "show_input_errors(); show_input_errors('repeat the command'); show_input_errors()",
            "stopped; repeat the command",
        ),
    ],
)
def test_a_run_that_the_user_stops_ends_in_one_line(calls, said):
    done = run(f"from scripts.utils.errors import show_input_errors\n{calls}\nraise KeyboardInterrupt")
    assert done.stderr == said + "\n"
    assert done.returncode != 0


@pytest.mark.slow
@pytest.mark.parametrize(
    "code",
    [
        "raise ValueError('a.nii: cut off')",
        "try:\n  1 / 0\nexcept ZeroDivisionError as e:\n  raise RuntimeError('x') from e",
    ],
)
def test_other_errors_keep_their_traceback(code):
    done = run(IMPORT + code)
    assert done.stderr.startswith("Traceback (most recent call last):")
    assert "error: " not in done.stderr.lower().splitlines()[0]
    assert done.stderr.splitlines()[-1].split(":")[0] in ("ValueError", "RuntimeError")
    assert done.returncode == 1


def test_an_input_error_keeps_its_kind_in_another_process():
    error = pickle.loads(pickle.dumps(InputError("a.nii: cut off", "damaged file")))
    assert (str(error), repr(error), error.kind) == ("a.nii: cut off", "InputError('a.nii: cut off')", "damaged file")


@pytest.mark.slow
def test_importing_the_bundle_leaves_the_programs_own_display_of_errors():
    done = run(
        "import sys\nhook = sys.excepthook = lambda *error: print('mine')\n"
        "import scripts.workflow.preparation, scripts.lab.demo\nassert sys.excepthook is hook\n"
        "from scripts.utils.errors import show_input_errors\nshow_input_errors()\n1 / 0"
    )
    # An existing hook still gets every error except wrong input.
    assert (done.stdout, done.returncode) == ("mine\n", 1), done.stderr


def test_a_program_that_catches_the_error_sees_nothing_else():
    done = run(IMPORT + "try:\n  raise InputError('a')\nexcept ValueError as e:\n  print(type(e).__name__, e)")
    assert (done.stdout, done.stderr, done.returncode) == ("InputError a\n", "", 0)


def test_the_cause_is_found_along_the_chain_and_only_there():
    wrong = InputError("a")
    outer = RuntimeError("b")
    outer.__cause__ = KeyError("c")
    outer.__cause__.__context__ = wrong
    assert input_error_behind(outer) is wrong
    assert input_error_behind(wrong) is wrong
    assert input_error_behind(RuntimeError("b")) is None
    assert input_error_behind(None) is None
