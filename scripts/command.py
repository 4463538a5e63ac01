# Copyright (c) the brats_mri_panet_segmentation authors
# SPDX-License-Identifier: Apache-2.0
"""Functions that the commands share.

A command parses its arguments first, and imports torch, MONAI and what needs them only then, within ``main``. They take
seconds, and ``--help`` answers without them.
"""

import argparse
import errno
import getpass
import logging
import os
import re
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from scripts.brats import CHANNEL_ORDER, SEQUENCES
from scripts.utils.errors import InputError, show_input_errors
from scripts.utils.files import cannot_write, keep_earlier

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


def add_cases(group: argparse._ActionsContainer) -> None:
    """Add CASE, and an option for the file of each sequence instead."""
    told = "folder of cases or of one case, a 4-D file, or the files of one case"
    group.add_argument("cases", nargs="*", type=path, metavar="CASE", help=told)
    group.add_argument("-i", "--input", nargs="+", type=path, default=[], metavar="CASE", help="the same as CASE")
    for name in SEQUENCES:
        told = f"image file of {name} instead of CASE, or number or folder of its series in the DICOM study CASE"
        group.add_argument(f"--{name}", type=path, help=told)
    group.add_argument("--name", help="name of the one case (default: that of its folder)")


def given_files(args: argparse.Namespace) -> Mapping[str, Path] | None:
    """The files of sequences that the arguments of ``add_cases`` name; None if they name cases alone.

    The cases of ``-i`` join the others in ``args.cases``.
    """
    args.cases += args.input
    given = {name: getattr(args, name) for name in SEQUENCES if getattr(args, name) is not None}
    if given and len(args.cases) > 1:
        raise InputError(f"--{next(iter(given))}: give one CASE, a DICOM study, or none.")
    if not given and not args.cases:
        raise InputError("no CASE: give a folder of a case, or --t1, --t1ce, --t2 and --flair.")
    return given or None


def add_output_dir(group: argparse._ActionsContainer) -> None:
    """Add the option ``--output-dir``, which must be given."""
    group.add_argument("-o", "--output-dir", type=path, required=True, help="folder to write to")


def add_verbosity(parser: argparse.ArgumentParser) -> None:
    """Add the options that ``show_progress`` takes."""
    group = parser.add_mutually_exclusive_group()
    group.add_argument("-q", "--quiet", action="store_true", help="say only what is wrong or doubtful")
    group.add_argument("-v", "--verbose", action="store_true", help="also what MONAI and other libraries say")


def show_progress(args: argparse.Namespace) -> None:
    """Log what the bundle says, and of others only what is wrong; by ``add_verbosity`` less or more."""
    if args.verbose:
        logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s: %(message)s", force=True)
        return
    logging.basicConfig(level=logging.WARNING, format="%(message)s", force=True)
    logging.getLogger("scripts").setLevel(logging.WARNING if args.quiet else logging.INFO)
    logging.getLogger("monai.bundle.workflows").setLevel(logging.ERROR)
    # MONAI warns of every configuration that it runs; these are the bundle's own.
    warnings.filterwarnings("ignore")


def check_output(option: str, path: Path | None, picture: bool = False) -> None:
    """Refuse a file that cannot be written, before anything is done. A missing folder is made later.

    Args:
        option: the option that names the file, for the message.
        path: the file; None if the option was not given.
        picture: whether the file is a PNG file, which its name must say.
    """
    if path is None:
        return
    if path.is_dir():
        raise InputError(f"{path}: a folder; give {option} the name of a file.")
    if picture and path.suffix.lower() != ".png":
        raise InputError(f"{option} {path}: the picture is a PNG file; give a name that ends in .png.")
    above = next(folder for folder in path.absolute().parents if folder.exists())
    if not above.is_dir() or not os.access(above, os.W_OK):
        raise cannot_write(path, PermissionError(errno.EACCES, f"{above} takes no files"))


def keep(path: Path) -> None:
    """Keep a file that is about to be replaced under a dated name, and say so."""
    if (kept := keep_earlier(path)) is not None:
        print(f"kept the earlier file as {kept.name}")


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
