# Copyright (c) the brats_mri_panet_segmentation authors
# SPDX-License-Identifier: Apache-2.0
"""Command line of the benchmarks."""

from collections.abc import Sequence

from scripts import command
from scripts.lab.benchmark import (
    case,
    cohort,
    network,
    pipeline,
    plot,
    postprocessing,
    preparation,
    ranks,
    scores,
    training,
)
from scripts.utils.distributed import use_device

SUBCOMMANDS = {
    "network": network,
    "case": case,
    "preparation": preparation,
    "pipeline": pipeline,
    "training": training,
    "postprocessing": postprocessing,
    "scores": scores,
    "cohort": cohort,
    "ranks": ranks,
    "plot": plot,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one benchmark and return the exit status."""
    parser = command.Parser(prog="python -m scripts.lab.benchmark")
    subparsers = parser.add_subparsers(dest="what", required=True)
    for name, module in SUBCOMMANDS.items():
        description = (module.__doc__ or "").strip().splitlines()[0]
        module.add_arguments(subparsers.add_parser(name, help=description, description=description))
    args = parser.parse_args(argv)
    # Times and memory are those of the current GPU.
    use_device(getattr(args, "device", "cpu"))
    SUBCOMMANDS[args.what].run(args)
    return 0


if __name__ == "__main__":
    command.run(main)
