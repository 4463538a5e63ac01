# Copyright (c) the brats_mri_panet_segmentation authors
# SPDX-License-Identifier: Apache-2.0
"""Every command of the documentation is one that the bundle understands: its programs, files, options and settings.

``test_walkthroughs.py`` runs the commands of two pages as they stand there, and ``test_modes.py`` runs every overlay.
"""

from __future__ import annotations

import argparse
import importlib
import re
import shlex
from pathlib import Path

import monai.bundle
import pytest
import yaml
from monai.bundle import ConfigParser
from workflows import ROOT, initialized

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
PAGES += sorted((ROOT / "models").rglob("README.md"))
PROGRAMS = ("python ", "panet-segment ", "torchrun ", "make ")


def commands(page: Path) -> list[str]:
    """All commands of a page, in blocks and in the text, with ``x`` in the place of what the user fills in."""
    text = page.read_text(encoding="utf-8")
    blocks = re.findall(r"```[a-z]*\n(.*?)```", text, re.DOTALL)
    lines = [line for block in blocks for line in whole(block.replace("\\\n", " ").splitlines())]
    without_blocks = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    # A command in the text may be broken into two lines. One without arguments is the name of a program.
    codes = [" ".join(code.split()) for code in re.findall(r"`([^`]+)`", without_blocks)]
    lines += [code for code in codes if code.startswith("make ") or len(code.split()) > 3]
    found = [re.sub(r"<[^<>]*>", "x", line.split("   #")[0]).strip() for line in lines]
    found = [re.sub(r'^/usr/bin/time( -f "[^"]*")? ', "", line) for line in found]
    return [line for line in found if line.startswith(PROGRAMS) and "..." not in line]


def whole(lines: list[str]) -> list[str]:
    """The lines, joined where a text in quotes goes on in the next line."""
    joined: list[str] = []
    for line in lines:
        if joined and joined[-1].count('"') % 2:
            joined[-1] += " " + line.strip()
        else:
            joined.append(line)
    return joined


ALL = sorted({(str(page.relative_to(ROOT)), line) for page in PAGES for line in commands(page)})


def of(*starts: str) -> list:
    return [pytest.param(line, id=f"{page}: {line}") for page, line in ALL if re.match("|".join(starts), line)]


class UnderstoodError(Exception):
    pass


@pytest.mark.parametrize("line", of("python -m scripts", "panet-segment"))
def test_a_program_of_the_bundle_takes_the_arguments(line, monkeypatch):
    parse = argparse.ArgumentParser.parse_args

    def parse_only(self, *arguments, **options):
        parse(self, *arguments, **options)
        raise UnderstoodError

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parse_only)
    # The reader has a GPU, and a machine of the tests may have none.
    words = shlex.split(line.replace("--device cuda", "--device cpu"))
    name, arguments = ("scripts.segment", words[1:]) if words[0] == "panet-segment" else (words[2], words[3:])
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
