# Copyright (c) the brats_mri_panet_segmentation authors
# SPDX-License-Identifier: Apache-2.0
"""Functions that the commands (``python -m scripts.<command>``) share."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from scripts.brats import CHANNEL_ORDER, SEQUENCES
from scripts.utils.errors import show_input_errors
from scripts.utils.files import BUNDLE_ROOT, CONFIGS
from scripts.utils.literals import literal


def parser(name: str, description: str | None) -> argparse.ArgumentParser:
    """The argument parser of the command ``python -m scripts.<name>``.

    Args:
        name: name of the command's module.
        description: docstring of the module. Its first line describes the command.
    """
    first = (description or "").strip().splitlines()[:1]
    return argparse.ArgumentParser(prog=f"python -m scripts.{name}", description="".join(first))


def add_channel_order(parser: argparse.ArgumentParser) -> None:
    """Add the option ``--channel_order``."""
    parser.add_argument(
        "--channel_order",
        nargs=len(SEQUENCES),
        choices=SEQUENCES,
        default=list(CHANNEL_ORDER),
        help="sequences in the order of a four-dimensional file's channels (default: %(default)s)",
    )


def config_files(names: Sequence[str]) -> str:
    """The value of MONAI's ``--config_file`` for the bundle's configurations ``names``."""
    return str([str(CONFIGS / name) for name in names])


def workflow_arguments(names: Sequence[str], settings: Mapping[str, Any]) -> list[str]:
    """The arguments after ``python -m`` that run a workflow of the bundle from any folder.

    Args:
        names: names of configurations.
        settings: values by key, which override the values of the configurations. MONAI evaluates texts, not paths.

    Example:
        >>> workflow_arguments(["inference.json"], {"dataset_dir": Path("/data")})[-2:]
        ['--dataset_dir', "$'/data'"]
    """
    given = {"bundle_root": BUNDLE_ROOT, **settings}
    texts = {key: literal(str(value)) if isinstance(value, Path) else str(value) for key, value in given.items()}
    options = [text for key, value in texts.items() for text in (f"--{key}", value)]
    return ["monai.bundle", "run", "--config_file", config_files(names), *options]


def run(main: Callable[[], int]) -> NoReturn:
    """Run a command and end the process with the status that ``main`` returns.

    Wrong input (``InputError``) ends the process with one line and status 1.
    """
    show_input_errors()
    # A name may hold what the terminal's encoding lacks.
    sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    sys.exit(main())
