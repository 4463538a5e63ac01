# Copyright (c) the brats_mri_panet_segmentation authors
# SPDX-License-Identifier: Apache-2.0
"""`make gpu-check` runs all tests for a GPU, and it needs no package that a machine with a GPU may lack."""

import ast
import json
import os
import re
import subprocess
import sys
import zipfile
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from scripts.lab.gpu_check import __main__ as gpu_check
from scripts.lab.gpu_check.__main__ import GPU_TESTS, Step, run_step, steps
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
def test_its_step_of_tests_collects_these_files_alone(device, tmp_path):
    arguments = steps(device, True, tmp_path, tmp_path)["tests"].arguments
    assert [argument for argument in arguments if argument.startswith("tests")] == list(GPU_TESTS)
    assert ("gpu" in arguments) == (device == "cuda")


def test_its_steps_come_in_the_order_of_what_matters_and_only_one_of_them_compiles(tmp_path):
    made = steps("cuda", False, tmp_path, tmp_path)
    names = ["begin", "tests", "maps", "runs", "training", "network", "kernels", "compiled", "ranks", "cohort"]
    assert list(made) == names
    trainings = {name: step.arguments for name, step in made.items() if "training" in step.arguments}
    compiles = [name for name, arguments in trainings.items() if "--no-compile" not in arguments]
    assert compiles == ["compiled"] and made["compiled"].arguments[-4:-2] == ["--only", "train_fast.yaml"]
    outputs = [made[name].arguments[made[name].arguments.index("--output") + 1] for name in names[2:]]
    assert outputs == [str(tmp_path / f"{name}.json") for name in names[2:]]


def contents(archive: Path) -> dict[str, str]:
    with zipfile.ZipFile(archive) as file:
        return {name: file.read(name).decode() for name in file.namelist()}


@pytest.fixture
def checked(monkeypatch, tmp_path):
    """Run the check with other steps; return its status and the content of its one file."""

    def run(*arguments: str, **made: Step):
        monkeypatch.setattr(gpu_check, "steps", lambda *_: made)
        place = tmp_path / "out"
        status = gpu_check.main(["--device", "cpu", "--output_dir", str(place), *arguments])
        return status, contents(place / "gpu_check.zip")

    return run


HELP, FAILING = ["json.tool", "--help"], ["json.tool", "/absent"]
LONG = ["http.server", "0", "--bind", "127.0.0.1"]


def test_one_file_holds_the_results_of_all_steps(checked, tmp_path, capsys):
    status, found = checked(one=Step(300, HELP), two=Step(300, FAILING), three=Step(300, HELP))
    assert status == 1 and sorted(found) == ["gpu_check.json", "one.txt", "three.txt", "two.txt"]
    assert "usage" in found["one.txt"] and "usage" in capsys.readouterr().out
    outcomes = {name: step["outcome"] for name, step in json.loads(found["gpu_check.json"])["steps"].items()}
    assert outcomes == {"one": "done", "two": "failed", "three": "done"}
    # The earlier file is kept.
    assert checked(one=Step(300, HELP))[0] == 0
    assert len(list((tmp_path / "out").iterdir())) == 2


def test_if_the_first_step_fails_the_others_are_not_run(checked):
    status, found = checked(begin=Step(300, FAILING), cohort=Step(300, HELP))
    assert status == 1 and list(json.loads(found["gpu_check.json"])["steps"]) == ["begin"]


def test_single_steps_can_be_chosen(checked):
    status, found = checked("--steps", "two", one=Step(300, FAILING), two=Step(300, HELP))
    assert status == 0 and list(json.loads(found["gpu_check.json"])["steps"]) == ["two"]


def test_a_step_that_takes_too_long_is_stopped_and_what_it_has_written_is_saved(tmp_path, monkeypatch):
    log, seen = tmp_path / "log.txt", []
    monkeypatch.setattr(gpu_check, "SAVED_EVERY_S", 0.2)
    assert run_step(HELP, log, 300) == "done"
    assert "usage" in log.read_text()
    assert run_step(FAILING, log, 300) == "failed"
    assert run_step(LONG, log, 1, lambda: seen.append(1)) == "no time left"
    assert 1 <= len(seen) <= 5
    assert run_step(HELP, log, 0) == "no time left"


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
from scripts.lab.gpu_check import __main__, begin, kernels, maps, ranks, runs
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
