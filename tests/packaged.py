# Copyright (c) the brats_mri_panet_segmentation authors
# SPDX-License-Identifier: Apache-2.0
"""What holds in every package: the model zoo's pre-commit hooks pass, and no page leads out of the package."""

import json
import re
import shlex
from pathlib import Path

import yaml
from pages import commands


def check_hooks(folder: Path) -> None:
    """The hooks of the zoo's .pre-commit-config.yaml that depend on what is in a file.

    They are end-of-file-fixer, trailing-whitespace, check-yaml, check-case-conflict, check-added-large-files with
    --maxkb=1024, detect-private-key and pretty-format-json. Weights have an address in the zoo (large_files.yml).
    """
    files = [path for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    assert len({str(path).lower() for path in files}) == len(files)
    for path in files:
        if path.suffix in (".pt", ".ts"):
            continue
        assert path.stat().st_size <= 1024 * 1024, path
        if path.suffix == ".png":
            continue
        text = path.read_text(encoding="utf-8")
        assert not re.search(r"[ \t\r]$", text, re.MULTILINE), path
        assert not text or (text.endswith("\n") and not text.endswith("\n\n")), path
        assert "PRIVATE KEY" not in text
        if path.suffix == ".json":
            assert text == json.dumps(json.loads(text), indent=4) + "\n", path
        if path.suffix in (".yaml", ".yml"):
            yaml.safe_load(text)


def check_workshop_is_absent(folder: Path) -> None:
    """Nothing in the package names the workshop, and every class and function of a configuration is there."""
    for path in folder.rglob("*"):
        if path.suffix in (".py", ".json", ".yaml", ".yml", ".md", ".js", ".html"):
            assert not re.search(r"scripts[./]lab\b", path.read_text(encoding="utf-8")), path
    for path in (folder / "configs").iterdir():
        for module in re.findall(r"\bscripts((?:\.[a-z_]+)+)", path.read_text(encoding="utf-8")):
            place = folder / "scripts" / module[1:].replace(".", "/")
            # The last word may be that of a function.
            assert any(where.with_suffix(".py").is_file() or where.is_dir() for where in (place, place.parent)), module


def check_pages(folder: Path) -> None:
    """Each link leads to a file, each command to a module and to configurations that are in the package."""
    for page in folder.glob("docs/*.md"):
        text = page.read_text(encoding="utf-8")
        assert "<!--" not in text, page
        for target, anchor in re.findall(r"\]\(([^)#\s]*)(#[^)\s]*)?\)", text):
            if "//" in target:
                continue
            path = page.parent / target if target else page
            assert path.exists(), f"{page}: {target}"
            headings = re.findall(r"^#+ (.*)$", path.read_text(encoding="utf-8"), re.MULTILINE) if anchor else []
            assert not anchor or anchor[1:] in {slug(heading) for heading in headings}, f"{page}: {target}{anchor}"
        for line in commands(page):
            words = shlex.split(line.replace("<", "").replace(">", ""))
            assert words[0] in ("python", "torchrun", "tensorboard"), line
            if "-m" in words and (module := words[words.index("-m") + 1]).startswith("scripts."):
                assert (folder / f"{module.replace('.', '/')}.py").is_file(), line
        for name in re.findall(r"configs/[\w]+\.(?:json|yaml)", text):
            assert (folder / name).is_file(), f"{page}: {name}"


def slug(heading: str) -> str:
    """The anchor that GitHub gives a heading."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
