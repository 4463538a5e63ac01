# Copyright (c) the brats_mri_panet_segmentation authors
# SPDX-License-Identifier: Apache-2.0
"""Every fenced block of docs/interoperability.md runs, section by section, in a folder as the page describes it."""

import contextlib
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from consumers import monai_deploy, monai_label
from forks import python
from workflows import ROOT

PAGE = ROOT / "docs" / "interoperability.md"
# Packages that a block may import, with the function that imports each of them.
PACKAGES = {"monailabel": lambda: monai_label("monailabel"), "monai.deploy": lambda: monai_deploy("monai.deploy.core")}


# The programs of these sections run beside the bundle's folder; all others run in it.
BESIDE = {"MONAI's bundle functions", "Federated learning", "MONAI Label", "MONAI Deploy"}
# Packages that a shell block needs, by a word in the block.
NEEDS = {"onnx_export": ("onnx", "onnxscript", "onnxruntime")}


def sections(text: str) -> dict[str, list[tuple[str, str]]]:
    """Return the fenced blocks, as language and content, by the second-level heading above them."""
    found: dict[str, list[tuple[str, str]]] = {}
    for section in re.split(r"^## ", text, flags=re.MULTILINE):
        blocks = re.findall(r"^```(\w*)\n(.*?)^```$", section, flags=re.MULTILINE | re.DOTALL)
        if blocks:
            found[section.splitlines()[0]] = blocks
    return found


SECTIONS = sections(PAGE.read_text(encoding="utf-8"))


def test_all_blocks_are_found():
    text = PAGE.read_text(encoding="utf-8")
    assert sum(map(len, SECTIONS.values())) == text.count("```") // 2 > 0
    # Blocks that cannot be run here have the language "text".
    assert {language for blocks in SECTIONS.values() for language, _ in blocks} <= {"python", "sh", "text"}
    assert set(SECTIONS) >= BESIDE


def run_python(content: str) -> None:
    with contextlib.ExitStack() as stack:
        for name, imported in PACKAGES.items():
            if re.search(rf"\b(import|from) {re.escape(name)}\b", content):
                stack.enter_context(imported())
        exec(compile(content, str(PAGE), "exec"), {"__name__": "__main__"})


def run_shell(content: str) -> None:
    for word, packages in NEEDS.items():
        if word in content:
            for package in packages:
                pytest.importorskip(package)
    content = f'panet() {{ python -m scripts.panet "$@"; }}\n{content}'
    path = f"{Path(python()).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "PYTHONWARNINGS": "ignore"}
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", content], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-1000:] + done.stderr[-3000:]


@pytest.mark.parametrize("section", SECTIONS)
def test_the_blocks_of_a_section_run(section, fresh_bundle, small_cohort, tmp_path, monkeypatch):
    # The page asks for the bundle's folder, which here has the tiny network, and for patients.
    assert fresh_bundle == tmp_path / "brats_mri_panet_segmentation"
    shutil.copytree(small_cohort, tmp_path / "patients")
    monkeypatch.chdir(tmp_path if section in BESIDE else fresh_bundle)
    monkeypatch.setattr(sys, "path", list(sys.path))
    for language, content in SECTIONS[section]:
        if language != "text":
            {"python": run_python, "sh": run_shell}[language](content)
