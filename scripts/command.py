# Copyright (c) the brats_mri_panet_segmentation authors
# SPDX-License-Identifier: Apache-2.0
"""What the commands (``python -m scripts.<command>``) share."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn

from scripts.errors import show_input_errors
from scripts.files import BUNDLE_ROOT, CONFIGS


def parser(name: str, description: str | None) -> argparse.ArgumentParser:
    """The parser of the command ``python -m scripts.<name>``, described by the first line of its module's text."""
    first = (description or "").strip().splitlines()[:1]
    return argparse.ArgumentParser(prog=f"python -m scripts.{name}", description="".join(first))


def config_files(names: Sequence[str]) -> str:
    """The value of MONAI's ``--config_file`` for some of the bundle's configurations."""
    return str([str(CONFIGS / name) for name in names])


def workflow_arguments(names: Sequence[str], settings: Mapping[str, Any]) -> list[str]:
    """What follows ``python -m`` to run a workflow of the bundle, from whichever folder.

    Args:
        names: of configurations.
        settings: values by key, which overrule those of the configurations.
    """
    options = [text for key, value in settings.items() for text in (f"--{key}", str(value))]
    return ["monai.bundle", "run", "--bundle_root", str(BUNDLE_ROOT), "--config_file", config_files(names), *options]


def run(main: Callable[[], int]) -> NoReturn:
    """Run a command in a process of its own, which ends with the status that ``main`` returns.

    Wrong input (``InputError``) ends it with one line and status 1.
    """
    show_input_errors()
    sys.exit(main())
