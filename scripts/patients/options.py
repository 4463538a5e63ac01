# Copyright (c) the brats_mri_panet_segmentation authors
# SPDX-License-Identifier: Apache-2.0
"""Options of a segmentation. ``panet segment`` has an option of the command line for each field of ``Options``."""

import argparse
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from scripts import command
from scripts.brats import ET_LABELS, REFERENCE, SEQUENCES
from scripts.data.findings import ACCEPTABLE, PREPARATION_DOUBTS

# The value of ``native`` that leaves results in the grid of the prepared sequences.
PREPARED_GRID = "prepared"


def _option(group: str, explanation: str, **arguments: Any) -> dict[str, Any]:
    """The option of a field: title of its group, line of the help, and further arguments of ``add_argument``."""
    return {"group": group, "arguments": {"help": explanation, **arguments}}


@dataclass(frozen=True)
class Options:
    """How to segment. The text of each field explains its option; that of ``pictures`` is ``--no-pictures``."""

    model: Path | None = field(
        default=None,
        metadata=_option(
            "model", "weights with their record (default: models/model.pt, or the starter)", type=command.path
        ),
    )
    tta: bool = field(default=False, metadata=_option("model", "the mean over all eight flips"))
    device: str | None = field(
        default=None, metadata=_option("device and speed", "cpu, cuda or cuda:1 (default: a GPU if there is one)")
    )
    fast: bool = field(
        default=False, metadata=_option("device and speed", "the whole brain in one forward, and no flips")
    )
    accept: tuple[str, ...] = field(
        default=(),
        metadata=_option(
            "input",
            f"segment cases in spite of this doubt; may be repeated: {', '.join((*ACCEPTABLE, *PREPARATION_DOUBTS))}",
            action="append",
            choices=(*ACCEPTABLE, *PREPARATION_DOUBTS),
            metavar="KIND",
        ),
    )
    prepare: bool = field(
        default=False, metadata=_option("input", "prepare scans as the scanner made them (panet prepare) first")
    )
    native: str = field(
        default=REFERENCE,
        metadata=_option(
            "output",
            "with --prepare, the scan in whose grid the results are, or prepared (default: %(default)s)",
            choices=(*SEQUENCES, PREPARED_GRID),
        ),
    )
    et_label: int = field(
        default=ET_LABELS[-1],
        metadata=_option("output", "value of ET to write (default: %(default)s)", type=int, choices=ET_LABELS),
    )
    probabilities: bool = field(default=False, metadata=_option("output", "also write maps of probabilities"))
    uncertainty: bool = field(default=False, metadata=_option("output", "also write maps of uncertainty"))
    dicom_seg: bool = field(
        default=False, metadata=_option("output", "also write a DICOM Segmentation object, if the input is DICOM")
    )
    pictures: bool = field(default=True, metadata=_option("output", "write no pictures"))
    surface: bool = field(
        default=False, metadata=_option("output", "also draw brain and tumor in three dimensions (seconds a case)")
    )
    overwrite: bool = field(
        default=False,
        metadata=_option("output", "start over; the folder of an earlier call is kept under a dated name"),
    )


def add_options(groups: Mapping[str, argparse._ArgumentGroup]) -> None:
    """Add an option for each field of ``Options`` to these groups of a parser, which have titles as keys."""
    for option in fields(Options):
        name = option.name.replace("_", "-")
        arguments = {"dest": option.name, "default": option.default, **option.metadata["arguments"]}
        if option.default == ():
            arguments["default"] = None  # argparse would add to it
        if isinstance(option.default, bool):
            arguments["action"] = "store_false" if option.default else "store_true"
        flag = f"--no-{name}" if option.default is True else f"--{name}"
        groups[option.metadata["group"]].add_argument(flag, **arguments)


def given_options(args: argparse.Namespace) -> Options:
    """The options that the arguments of a command give."""
    given = {option.name: getattr(args, option.name) for option in fields(Options)}
    return Options(**{**given, "accept": tuple(given["accept"] or ())})
