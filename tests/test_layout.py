# Copyright (c) the brats_mri_panet_segmentation authors
# SPDX-License-Identifier: Apache-2.0
"""The house: no part imports from one above it, the drawing shows every part, and tests lie like their code."""

import ast
import re
from pathlib import Path

import pytest
from scripts import panet
from workflows import ROOT

SCRIPTS = ROOT / "scripts"
# The layers from the ground up. Parts of one layer do not import each other. A module that is in no layer is a command,
# on top of all layers.
LAYERS = (
    ("utils",),
    ("brats",),
    ("networks", "data", "command"),
    ("weights", "scores"),
    ("inference", "training", "pictures"),
    ("workflow", "preparation"),
    ("pages", "patients"),
)
LEVEL = {part: level for level, parts in enumerate(LAYERS) for part in parts}
LAB = "lab"
PARTS = {path.relative_to(SCRIPTS).parts[0].removesuffix(".py") for path in SCRIPTS.rglob("*.py")}
COMMANDS = sorted(PARTS - {*LEVEL, LAB, "__init__"})


def part_of(path: Path) -> str:
    return path.relative_to(SCRIPTS).parts[0].removesuffix(".py")


def imported(path: Path) -> set[str]:
    """Return the parts of the bundle that a module imports from."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module == "scripts":
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("scripts."):
            found.add(str(node.module).split(".")[1])
        elif isinstance(node, ast.Import):
            found |= {alias.name.split(".")[1] for alias in node.names if alias.name.startswith("scripts.")}
    return found


@pytest.mark.parametrize("path", sorted(SCRIPTS.rglob("*.py")), ids=lambda path: str(path.relative_to(SCRIPTS)))
def test_no_part_imports_from_its_own_layer_or_one_above(path):
    own = part_of(path)
    if own != LAB:  # the workshop may use everything, and nothing that ships may use the workshop
        top = len(LAYERS)
        assert {part for part in imported(path) - {own} if LEVEL.get(part, top) >= LEVEL.get(own, top)} == set()


def test_every_command_is_one():
    for name in COMMANDS:
        text = (SCRIPTS / f"{name}.py").read_text(encoding="utf-8")
        assert "command.run(main)" in text, name
        assert name == "panet" or f'command.parser("{name}", __doc__, EXAMPLES)' in text, name
    assert sorted(panet.COMMANDS.values()) == sorted({*COMMANDS} - {"panet"})


def test_the_drawing_shows_every_part_and_no_other():
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    (drawing,) = re.findall(r"```mermaid\nflowchart TB\n(.*?)```", text, re.DOTALL)
    shown = set(re.findall(r"^ *(\w+)\[", drawing, re.MULTILINE)) - {"commands"}
    assert shown == {*LEVEL, LAB}
    (listed,) = re.findall(r"commands\[\"(.*?)\"\]", drawing)
    assert set(re.findall(r"\w+", listed.replace("<br/>", " "))) - {"commands"} == set(COMMANDS)
    # An arrow goes from a part to another part that it imports from.
    imports = {part: set() for part in PARTS}
    for path in SCRIPTS.rglob("*.py"):
        imports[part_of(path)].update(imported(path))
    for start, end in re.findall(r"^ *(\w+) --> (\w+)$", drawing, re.MULTILINE):
        assert start == "commands" or end in imports[start], f"{start} --> {end}"


def test_tests_lie_where_their_code_lies():
    for folder in (ROOT / "tests").iterdir():
        if folder.is_dir() and folder.name not in ("golden", "interoperability", "model_zoo", "__pycache__"):
            assert (SCRIPTS / folder.name).is_dir(), folder.name
