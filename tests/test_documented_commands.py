# Copyright (c) the brats_mri_panet_segmentation authors
# SPDX-License-Identifier: Apache-2.0
"""Every command of the documentation is one that the bundle understands: its programs, files, options and settings.

``test_documented_runs.py`` runs them.
"""

import argparse
import importlib
import re
import shlex
from pathlib import Path

import monai.bundle
import pytest
import yaml
from monai.bundle import ConfigParser
from pages import ALL
from scripts.workflow.configuration import Configuration
from workflows import ROOT, initialized

# By page and line, with ``x`` in the place of what the user fills in.
COMMANDS = sorted({(page, re.sub(r"<[^<>]*>", "x", line)) for page, line in ALL})


def of(*starts: str) -> list:
    return [pytest.param(line, id=f"{page}: {line}") for page, line in COMMANDS if re.match("|".join(starts), line)]


class UnderstoodError(Exception):
    pass


@pytest.mark.parametrize("line", of("python -m scripts", "panet "))
def test_a_program_of_the_bundle_takes_the_arguments(line, monkeypatch):
    parse = argparse.ArgumentParser.parse_args

    def parse_only(self, *arguments, **options):
        parse(self, *arguments, **options)
        raise UnderstoodError

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parse_only)
    # The reader has a GPU, and a machine of the tests may have none.
    words = shlex.split(line.replace("--device cuda", "--device cpu"))
    name, arguments = ("scripts.panet", words[1:]) if words[0] == "panet" else (words[2], words[3:])
    if (ROOT / name.replace(".", "/")).is_dir():
        name += ".__main__"
    with pytest.raises(UnderstoodError):
        importlib.import_module(name).main(arguments)


@pytest.mark.parametrize("line", of(r".*-m monai\.bundle"))
def test_a_command_of_monai_names_files_and_settings_that_exist(line):
    words = shlex.split(line)
    command, *arguments = words[words.index("monai.bundle") + 1 :]
    options: dict[str, str] = {}
    for place, word in enumerate(arguments):
        if word.startswith("--"):
            options[word[2:]] = arguments[place + 1]
    root = options.pop("bundle_root", ".")
    assert hasattr(monai.bundle, command)
    names = [Path(name).relative_to(root) for name in _list(options.pop("config_file", "[]"))]
    assert all((ROOT / name).is_file() for name in names)
    if command != "run":
        return
    config = ConfigParser.load_config_files([str(ROOT / name) for name in names])
    assert arguments[0] == Configuration(ConfigParser(config)).workflow
    settings = {key: yaml.safe_load(value) for key, value in options.items()}
    for key in settings:
        assert ConfigParser(config).get(key.replace("#", "::"), default=_ABSENT) is not _ABSENT, key
    kind = "infer" if "inference.json" in str(names) else "train"
    initialized(*(name.name for name in names), kind=kind, **settings).finalize()


_ABSENT = object()


def _list(value: str) -> list[str]:
    read = yaml.safe_load(value)
    return read if isinstance(read, list) else [read]


@pytest.mark.parametrize("line", of("make "))
def test_make_knows_the_target(line):
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    named = [word for word in shlex.split(line)[1:] if "=" not in word]
    assert named and set(named) <= set(targets)
