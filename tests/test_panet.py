# Copyright (c) the brats_mri_panet_segmentation authors
# SPDX-License-Identifier: Apache-2.0
"""The program panet: its help comes at once and shows runnable examples, and wrong words get one line."""

import argparse
import getpass
import importlib
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import zipfile
from dataclasses import fields, replace
from pathlib import Path

import pytest
from scripts import command, panet, segment
from scripts.patients.options import Options
from workflows import ROOT

# They take a second or more each, or are built on what does.
HEAVY = {"torch", "monai", "matplotlib", "scipy", "nibabel", "pandas", "ignite", "itk"}
HELPS = [[], ["--version"], *([name, "--help"] for name in panet.COMMANDS)]


@pytest.fixture
def as_panet(monkeypatch):
    """Start sub-commands as the installed program does."""

    def start(*words: str) -> int:
        monkeypatch.setattr(sys, "argv", ["/usr/bin/panet", *words])
        return panet.main()

    return start


def helped(start, capsys, *words: str) -> str:
    with pytest.raises(SystemExit) as caught:
        start(*words)
    assert caught.value.code == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("words", HELPS, ids=" ".join)
def test_help_loads_no_heavy_library(words):
    code = "import atexit, sys; from scripts import panet; atexit.register(lambda: print('loaded', *sys.modules)); "
    done = subprocess.run(
        [sys.executable, "-c", f"{code} sys.exit(panet.main({words}))"],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=True,
    )
    assert not HEAVY & set(done.stdout.splitlines()[-1].split())


def test_version_is_the_bundles(as_panet, capsys):
    version = json.loads((ROOT / "configs" / "metadata.json").read_text())["version"]
    assert helped(as_panet, capsys, "--version") == f"{version}\n"


def test_without_a_command_the_help_lists_each_of_them(as_panet, capsys):
    assert as_panet() == 0
    shown = capsys.readouterr().out
    assert shown == helped(as_panet, capsys, "--help")
    for name, module in panet.COMMANDS.items():
        first = importlib.import_module(f"scripts.{module}").__doc__.splitlines()[0]
        assert re.search(rf"^  {name} +{re.escape(first)}$", shown, re.MULTILINE)


@pytest.mark.parametrize(
    ("word", "remedy"),
    [
        ("segmnt", "did you mean panet segment?"),
        ("xyz", "choose one of segment, prepare, check, report, compare, render, export, import, average, calibrate."),
        ("x\ny", "choose one of segment, prepare, check, report, compare, render, export, import, average, calibrate."),
    ],
)
def test_an_unknown_command_gets_one_line(word, remedy, as_panet, capsys):
    assert as_panet(word, "--help") == 2
    told = capsys.readouterr()
    shown = word.replace("\n", "\\n")
    assert (told.out, told.err) == ("", f"error: panet {shown}: no such command; {remedy}\n")


@pytest.mark.parametrize("name", panet.COMMANDS)
def test_the_help_of_a_command_has_groups_and_two_examples_that_it_takes(name, as_panet, capsys, monkeypatch):
    shown = helped(as_panet, capsys, name, "--help")
    assert shown.startswith(f"usage: panet {name} ")
    groups, examples = shown.split("\nexamples:\n")
    assert {"input:", "output:"} <= set(groups.splitlines()) or {"model:", "output:"} <= set(groups.splitlines())
    assert "positional arguments:" not in groups
    lines = examples.splitlines()
    assert len(lines) == 2 and all(line.startswith(f"  panet {name} ") for line in lines)
    taken = []
    parse = argparse.ArgumentParser.parse_args

    def parse_only(self, *arguments):
        taken.append(parse(self, *arguments))
        raise InterruptedError

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parse_only)
    for line in lines:
        with pytest.raises(InterruptedError):
            as_panet(*shlex.split(line)[1:])
    assert len(taken) == 2


def test_a_module_names_itself_in_its_help(capsys):
    shown = helped(segment.main, capsys, ["--help"])
    assert shown.startswith("usage: python -m scripts.segment ")
    assert "  python -m scripts.segment ann -o out\n" in shown


def parsed(*words: str) -> argparse.Namespace:
    return segment._parser().parse_args(["ann", *words])


def test_every_option_of_a_segmentation_is_one_of_the_command():
    assert segment.given_options(parsed("-o", "out")) == Options()
    switches = [field.name for field in fields(Options) if isinstance(field.default, bool)]
    assert sorted(switches) == [
        "dicom_seg", "fast", "overwrite", "pictures", "prepare", "probabilities", "surface", "tta", "uncertainty",
    ]  # fmt: skip
    for name in switches:
        flag = "--no-pictures" if name == "pictures" else f"--{name.replace('_', '-')}"
        changed = replace(Options(), **{name: name != "pictures"})
        assert segment.given_options(parsed("-o", "out", flag)) == changed
    values = parsed("-o", "out", "--model", "a.pt", "--et-label", "3", "--device", "cpu")
    assert segment.given_options(values) == Options(model=Path("a.pt"), et_label=3, device="cpu")


def test_underscores_in_options_are_dashes():
    given = parsed("--output_dir=my_out", "--et_label", "3", "--name", "a_b")
    assert (given.output_dir, given.et_label, given.name) == (Path("my_out"), 3, "a_b")


def test_the_program_is_installed():
    assert 'panet = "scripts.panet:run"' in (ROOT / "pyproject.toml").read_text()
    program = Path(sys.executable).with_name("panet")
    assert program.exists() or not program.is_relative_to(ROOT)


@pytest.fixture
def project(tmp_path) -> Path:
    """What an installation reads."""
    shutil.copytree(ROOT / "scripts", tmp_path / "scripts", ignore=shutil.ignore_patterns("__pycache__", "lab"))
    for name in ("pyproject.toml", "setup.py"):
        shutil.copy(ROOT / name, tmp_path)
    return tmp_path


def build(project: Path, what: str) -> subprocess.CompletedProcess:
    code = f"import setuptools.build_meta as build; build.build_{what}('dist')"
    return subprocess.run([sys.executable, "-c", code], cwd=project, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("what", ["wheel", "sdist"])
def test_no_wheel_and_no_source_archive_is_built(what, project):
    done = build(project, what)
    assert done.returncode == 1 and "make install" in done.stderr.splitlines()[-1]
    assert not list(project.glob("dist/*"))


def test_an_editable_installation_has_the_program(project):
    done = build(project, "editable")
    assert done.returncode == 0, done.stderr
    (wheel,) = (project / "dist").iterdir()
    with zipfile.ZipFile(wheel) as archive:
        (entry,) = [name for name in archive.namelist() if name.endswith("entry_points.txt")]
        assert "panet = scripts.panet:run" in archive.read(entry).decode()


def test_a_user_without_a_name_is_given_one(monkeypatch):
    """Without it, MONAI's import fails. A container may be started with any user's number."""

    def absent() -> str:
        raise KeyError("getpwuid(): uid not found: 54321")

    monkeypatch.setattr(getpass, "getuser", absent)
    monkeypatch.setenv("USER", "someone")
    importlib.reload(command)
    assert os.environ["USER"] == str(os.getuid())
