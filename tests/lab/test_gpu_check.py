# Copyright (c) the brats_mri_panet_segmentation authors
# SPDX-License-Identifier: Apache-2.0
"""`make gpu-check` runs all tests for a GPU, and it needs no package that a machine with a GPU may lack."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from scripts.lab.gpu_check import GPU_TESTS, steps
from workflows import ROOT, command

# These modules are installed there, or `make gpu-wheels` brings them. The bundle does not need scikit-image.
ALLOWED = {"torch", "functorch", "monai", "ignite", "nibabel", "numpy", "scipy", "tensorboard", "rich", "matplotlib"}
ALLOWED |= {"pytest", "_pytest", "yaml", "jsonschema", "filelock"}
# These modules are installed only for other tests or for a single overlay, so they may be missing there.
OTHERS = {"hypothesis", "itk", "openvino", "pydicom", "onnx", "onnxscript", "onnxruntime", "skimage", "mlflow", "tqdm"}
SUPPORT = ("tests/conftest.py", "tests/forks.py", "tests/times.py", "tests/tiny.py", "tests/workflows.py")


def imported(path: Path) -> set[str]:
    """Return the top-level names of all modules that a file imports, also inside its functions."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add(node.module or "")
    return {name.partition(".")[0] for name in names}


@pytest.mark.slow
def test_its_tests_are_all_that_there_are_for_a_gpu():
    done = command("pytest", "--collect-only", "-q", "-m", "gpu", "-p", "no:cacheprovider", "tests", cwd=ROOT)
    assert done.returncode == 0, done.stdout[-2000:]
    found = re.findall(r"^(\S+\.py)::", done.stdout, re.MULTILINE)
    assert len(found) >= 10 and set(found) == set(GPU_TESTS)


@pytest.mark.parametrize("device", ["cuda", "cpu"])
def test_its_first_step_collects_these_files_alone(device, tmp_path):
    correctness = steps(device, True, tmp_path, tmp_path)["correctness"]
    assert [argument for argument in correctness if argument.startswith("tests")] == list(GPU_TESTS)
    assert ("gpu" in correctness) == (device == "cuda")


@pytest.mark.parametrize("name", [*GPU_TESTS, *SUPPORT])
def test_the_files_import_what_is_there(name):
    own = {"scripts", "forks", "times", "tiny", "workflows"}
    assert imported(ROOT / name) <= ALLOWED | own | set(sys.stdlib_module_names)


CHILD = """
import importlib.machinery, sys
others = set(sys.argv[1].split())
class Less(importlib.machinery.PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name.partition(".")[0] in others else super().find_spec(name, path, target)
sys.meta_path[:] = [Less if f is importlib.machinery.PathFinder else f for f in sys.meta_path]
import pytest
status = pytest.main(["-q", "-p", "no:cacheprovider", "-k", "cpu and (resiz or evaluation)", *sys.argv[2:]])
import scripts.lab.benchmark.__main__
assert not others & set(sys.modules), others & set(sys.modules)
sys.exit(status)
"""


@pytest.mark.slow
def test_the_files_run_and_the_benchmarks_start_where_nothing_else_is():
    """Some of the tests run here on the CPU."""
    assert OTHERS & set(packages_distributions()) >= {"hypothesis", "itk", "skimage", "openvino", "pydicom"}
    environment = {**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "PYTHONWARNINGS": "ignore"}
    environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    done = subprocess.run(
        [sys.executable, "-c", CHILD, " ".join(sorted(OTHERS)), *GPU_TESTS],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert int(re.findall(r"(\d+) passed", done.stdout)[0]) >= 3
