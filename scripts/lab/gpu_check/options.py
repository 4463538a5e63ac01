# Copyright (c) the brats_mri_panet_segmentation authors
# SPDX-License-Identifier: Apache-2.0
"""The options that steps of the GPU check share."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from scripts import command
from scripts.lab.benchmark.measure import device_name
from scripts.utils.distributed import use_device


def parse(
    name: str, description: str | None, argv: Sequence[str] | None, cases: str = "", small: str = "use sizes for a CPU"
) -> argparse.Namespace:
    """The options of a step of this name, whose device is set for the process. ``cases`` says what it needs."""
    parser = command.parser(f"lab.gpu_check.{name}", description)
    if cases:
        parser.add_argument("--dataset-dir", type=Path, required=True, help=cases)
    parser.add_argument("--device", type=device_name, default="cuda")
    parser.add_argument("--output", type=Path, required=True, help="JSON file to write")
    parser.add_argument("--small", action="store_true", help=small)
    args: argparse.Namespace = parser.parse_args(argv)
    use_device(args.device)
    return args
