# Copyright (c) the brats_mri_panet_segmentation authors
# SPDX-License-Identifier: Apache-2.0
"""All commands of the bundle in one: panet segment, panet check and so on."""

import argparse
import difflib
import importlib
import sys
from collections.abc import Sequence

from scripts import command
from scripts.utils.errors import printable
from scripts.utils.run_json import bundle_version

# The module of each sub-command.
COMMANDS = {
    "segment": "segment",
    "prepare": "prepare",
    "check": "check",
    "report": "report",
    "compare": "compare",
    "render": "render_case",
    "export": "export_program",
    "import": "import_checkpoint",
    "average": "average_weights",
    "calibrate": "calibrate_weights",
}


def _parser() -> argparse.ArgumentParser:
    modules = {name: importlib.import_module(f"scripts.{module}") for name, module in COMMANDS.items()}
    lines = [f"  {name:10}{(module.__doc__ or '').partition(chr(10))[0]}" for name, module in modules.items()]
    examples = ["  panet segment ann -o out", "  panet check brats", "  panet segment --help"]
    parser = argparse.ArgumentParser(
        prog="panet",
        usage="panet [-h] [--version] COMMAND ...",
        description="Segment brain tumors with the Prior Attention Network.",
        epilog="\n".join(["commands:", *lines, "", "examples:", *examples]),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=bundle_version())
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run a sub-command and return its exit status, which is 2 if there is no such command."""
    words = list(sys.argv[1:] if argv is None else argv)
    if not words or words[0].startswith("-"):
        parser = _parser()
        parser.parse_args(words)
        parser.print_help()
        return 0
    name, *arguments = words
    if name not in COMMANDS:
        close = difflib.get_close_matches(name, COMMANDS, n=1)
        remedy = f"did you mean panet {close[0]}?" if close else f"choose one of {', '.join(COMMANDS)}."
        print(f"error: panet {printable(name)}: no such command; {remedy}", file=sys.stderr)
        return 2
    status: int = importlib.import_module(f"scripts.{COMMANDS[name]}").main(arguments)
    return status


def run() -> None:
    """The program ``panet``."""
    command.run(main)


if __name__ == "__main__":
    run()
