# Copyright (c) the brats_mri_panet_segmentation authors
# SPDX-License-Identifier: Apache-2.0
"""Write a cohort of synthetic patients in the layout of BraTS 2020: `python -m scripts.lab.phantoms OUT`."""

import argparse
import os
import sys
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from scripts import command
from scripts.lab.phantoms.cohort import COHORT_FOLDER, DIFFICULTIES, GRID, check_cohort, missing_cases, write_cohort
from scripts.utils.errors import InputError


def parse(argv: list[str] | None) -> argparse.Namespace:
    """Read the command line; a wrong one ends the process with status 2 and a line on stderr."""
    parser = command.parser("lab.phantoms", __doc__)
    parser.add_argument("out", type=Path, metavar="OUT", help="new or empty folder, or a cohort to be completed")
    parser.add_argument("--cases", type=int, default=10, help="number of patients (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the whole cohort (default: %(default)s)")
    parser.add_argument(
        "--difficulty", choices=list(DIFFICULTIES), default="demo", help="how hard the cases are (default: %(default)s)"
    )
    parser.add_argument(
        "--size",
        type=int,
        nargs=3,
        default=list(GRID),
        metavar="N",
        help="voxels along each axis; fewer are larger, since the field of view stays (default: 240 240 155)",
    )
    parser.add_argument(
        "--workers",
        type=int,
        default=min(2, os.cpu_count() or 1),
        help="number of processes; each needs about 0.5 GB (default: %(default)s)",
    )
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Run the command and return its exit status."""
    args = parse(argv)
    for option, least in (("cases", 1), ("seed", 0), ("workers", 1)):
        if getattr(args, option) < least:
            raise InputError(f"--{option} must be {least} or more, not {getattr(args, option)}.")
    if min(args.size) < 16:
        raise InputError(f"--size {' '.join(map(str, args.size))}: a brain needs 16 voxels at least along each axis.")
    screen = Console(stderr=True)
    try:
        check_cohort(args.out, args.seed, args.difficulty, args.size)
        todo = len(missing_cases(args.out, args.cases))
        if todo < args.cases:
            print(f"Reusing {args.cases - todo} complete case(s) of {args.cases} in {args.out}.")
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, console=screen, transient=True, disable=not screen.is_terminal) as progress:
            task = progress.add_task("phantoms", total=todo)
            for _ in write_cohort(args.out, args.cases, args.seed, args.difficulty, args.workers, args.size):
                progress.advance(task)
    except OSError as error:
        raise InputError(f"{args.out}: cannot write the phantoms ({error}).") from error
    except BrokenProcessPool as error:
        # The usual cause is that the memory ran out.
        raise InputError("A worker was killed; repeat the command with --workers 1 to go on.") from error
    except KeyboardInterrupt:
        print(f"Stopped; the same command completes the cohort in {args.out}.", file=sys.stderr)
        return 130
    cohort = args.out / COHORT_FOLDER
    size = sum(path.stat().st_size for path in cohort.rglob("*.nii.gz"))
    count = sum(path.is_dir() for path in cohort.iterdir())
    print(f"{count} synthetic patients ({args.difficulty}, seed {args.seed}) in {cohort}, {size / 1e6:.0f} MB.")
    return 0


if __name__ == "__main__":
    command.run(main)
