# Copyright (c) the brats_mri_panet_segmentation authors
# SPDX-License-Identifier: Apache-2.0
"""Functions that the commands share.

A command parses its arguments first, and imports torch, MONAI and what needs them only then, within ``main``. They take
seconds, and ``--help`` answers without them.
"""

from __future__ import annotations

import argparse
import getpass
import os
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from scripts.brats import CHANNEL_ORDER, SEQUENCES
from scripts.utils.errors import show_input_errors

try:
    getpass.getuser()
except (KeyError, OSError):
    # In a container, a user may have no entry in the password file. MONAI's import fails then, unless a name is set.
    os.environ["USER"] = str(os.getuid())


class Parser(argparse.ArgumentParser):
    """A parser that takes an underscore in an option for a dash, since messages about data name settings so."""

    # argparse declares two signatures, which this one covers.
    def parse_known_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, namespace: Any = None
    ) -> tuple[Any, list[str]]:
        """Parse the arguments, by default those of the process."""
        words = [
            re.sub("^--[^=]+", lambda option: option[0].replace("_", "-"), word)
            for word in (sys.argv[1:] if args is None else args)
        ]
        return super().parse_known_args(words, namespace)


def parser(name: str, description: str | None, examples: Sequence[str] = ()) -> Parser:
    """The argument parser of the command in the module ``name``.

    It shows the first line of the description, which is the module's docstring, and calls with these arguments.
    """
    program = f"panet {sys.argv[1]}" if Path(sys.argv[0]).stem == "panet" else f"python -m scripts.{name}"
    return Parser(
        prog=program,
        description=(description or "").partition("\n")[0],
        epilog="\n".join(["examples:", *(f"  {program} {example}" for example in examples)]) if examples else None,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def path(text: str) -> Path:
    """The path that an argument names."""
    # Of a variable that is not set; Path("") would mean the current folder.
    if not text:
        raise argparse.ArgumentTypeError("the path is empty; name a file or a folder, or leave the option out")
    return Path(text)


def add_channel_order(group: argparse._ActionsContainer) -> None:
    """Add the option ``--channel-order``."""
    group.add_argument(
        "--channel-order",
        nargs=len(SEQUENCES),
        choices=SEQUENCES,
        default=list(CHANNEL_ORDER),
        help="sequences in the order of a four-dimensional file's channels (default: %(default)s)",
    )


def run(main: Callable[[], int]) -> NoReturn:
    """Run a command and end the process with the status that ``main`` returns, or for wrong input with a line and 1."""
    show_input_errors()
    # A name may hold what the terminal's encoding lacks.
    sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    sys.exit(main())
