# Copyright (c) the brats_mri_panet_segmentation authors
# SPDX-License-Identifier: Apache-2.0
"""The commands of the documentation, and running them."""

import os
import re
import shlex
import subprocess
from collections.abc import Iterable
from pathlib import Path

from forks import python
from workflows import ROOT

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
PAGES += sorted((ROOT / "models").rglob("README.md"))
PROGRAMS = ("python ", "panet ", "torchrun ", "make ", "tensorboard ")


def commands(page: Path) -> list[str]:
    """All commands of a page, in blocks and in the text, with ``<...>`` where the user fills something in."""
    text = page.read_text(encoding="utf-8")
    without_blocks = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    # A command in the text may be broken into two lines. One without arguments is the name of a program.
    codes = [" ".join(code.split()) for code in re.findall(r"`([^`]+)`", without_blocks)]
    return in_blocks(page) + of_programs(code for code in codes if code.startswith("make ") or len(code.split()) > 3)


def in_blocks(page: Path, language: str = "[a-z]*") -> list[str]:
    """The commands in a page's blocks of a language."""
    blocks = re.findall(rf"```{language}\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
    return of_programs(line for block in blocks for line in whole(block.replace("\\\n", " ").splitlines()))


def of_programs(lines: Iterable[str]) -> list[str]:
    """The lines that are commands, without what is about them."""
    found = [re.sub(r'^/usr/bin/time( -f "[^"]*")? ', "", line.split("   #")[0].strip()) for line in lines]
    # The first round of a loop over folds.
    found = [re.sub(r"^for fold in (\d) .*; do (.*\$fold.*); done$", once, line) for line in found]
    return [line for line in found if line.startswith(PROGRAMS) and "..." not in line]


def once(loop: re.Match[str]) -> str:
    return loop[2].replace("$fold", loop[1])


def whole(lines: list[str]) -> list[str]:
    """The lines, joined where a text in quotes goes on in the next line."""
    joined: list[str] = []
    for line in lines:
        if joined and joined[-1].count('"') % 2:
            joined[-1] += " " + line.strip()
        else:
            joined.append(line)
    return joined


def run(line: str, folder: Path, *more: str, **settings: object) -> subprocess.CompletedProcess:
    """Run a command in ``folder``, with more arguments and settings at its end. It must succeed."""
    program, *arguments = shlex.split(line)
    start = {
        "python": [python()],
        "panet": [python(), "-m", "scripts.panet"],
        "torchrun": [python(), "-m", "torch.distributed.run"],
        "make": ["make", f"BIN={Path(python()).parent}", "--assume-old=.venv/.installed"],
    }[program]
    options = [text for key, value in settings.items() for text in (f"--{key}", str(value))]
    environment = {**os.environ, "PYTHONWARNINGS": "ignore", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [*start, *arguments, *options, *more], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{line}\n{done.stdout[-1500:]}{done.stderr[-3000:]}"
    return done


# By page and line.
ALL = sorted({(str(page.relative_to(ROOT)), line) for page in PAGES for line in commands(page)})
