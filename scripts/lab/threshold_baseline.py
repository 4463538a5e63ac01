# Copyright (c) the brats_mri_panet_segmentation authors
# SPDX-License-Identifier: Apache-2.0
"""Measure how well a single threshold finds the whole tumor: `python -m scripts.lab.threshold_baseline DATASET_DIR`.

For each case and sequence, the table gives the best Dice of all thresholds on that sequence within the brain. The
threshold and its direction are chosen in hindsight, with the reference. A cohort with a high Dice needs no network.

With `--voxelwise` the table gives the Dice of a classifier that knows the four intensities of a voxel and nothing of
its neighbors. It learns from one half of the cases and is tested on the other, and then the halves change places.
"""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import track
from rich.table import Table
from scripts import command
from scripts.brats import SEQUENCES
from scripts.data.datalist import labeled_items
from scripts.data.inspection import check_cases
from scripts.lab.phantoms.cohort import best_threshold_dice
from scripts.lab.voxelwise import VoxelClassifier, cells_of, dice, voxels_of_case
from scripts.utils.errors import InputError


def rate_case(item: Mapping[str, Any]) -> dict[str, float]:
    """Return the best threshold Dice of one datalist entry by sequence; the brain is where any sequence is not 0."""
    images, tumor = voxels_of_case(item)
    return {name: best_threshold_dice(image, tumor) for name, image in zip(SEQUENCES, images, strict=True)}


def rate_voxelwise(items: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Return the Dice of the classifier of single voxels by case.

    Args:
        items: datalist entries. Those at even places are tested by a classifier of those at odd places, and vice versa.
    """
    classifiers = (VoxelClassifier(), VoxelClassifier())
    screen = Console(stderr=True)
    options: dict[str, Any] = {"console": screen, "transient": True, "disable": not screen.is_terminal}
    for number, item in enumerate(track(items, "Learning", **options)):
        images, tumor = voxels_of_case(item)
        classifiers[number % 2].add(cells_of(images), tumor)
    rated = {}
    for number, item in enumerate(track(items, "Testing", **options)):
        images, tumor = voxels_of_case(item)
        rated[str(item["case"])] = dice(classifiers[1 - number % 2].predict(cells_of(images)), tumor)
    return rated


def voxelwise(items: Sequence[Mapping[str, Any]], limit: float | None) -> int:
    """Print the table of the classifier of single voxels and return the exit status."""
    rated = rate_voxelwise(items)
    table = Table("case", "Dice", title="Whole tumor: a classifier of single voxels on unseen cases")
    for case, rating in rated.items():
        table.add_row(case, f"{rating:.3f}")
    console = Console()
    console.print(table)
    mean = sum(rated.values()) / len(rated)
    console.print(f"Mean over {len(rated)} cases: {mean:.3f}", highlight=False)
    if limit is not None and mean > limit:
        print(f"A classifier of voxels reaches {mean:.3f}, above the limit of {limit:g}.", file=sys.stderr)
        return 1
    return 0


def main(argv: list[str] | None = None) -> int:
    """Run the command and return its exit status."""
    parser = command.parser("lab.threshold_baseline", __doc__)
    parser.add_argument(
        "dataset", type=Path, metavar="DATASET_DIR", help="folder that is searched at any depth for BraTS cases"
    )
    parser.add_argument("--voxelwise", action="store_true", help="rate a classifier of single voxels instead")
    limit = "exit with status 1 if any Dice, or the mean Dice with --voxelwise, exceeds this value"
    parser.add_argument("--limit", type=float, help=limit)
    args = parser.parse_args(argv)
    items = [item for item in labeled_items(args.dataset) if isinstance(item["image"], list)]
    check_cases(items, args.dataset, "labeled cases")
    if args.voxelwise:
        if len(items) < 2:
            raise InputError(
                f"{args.dataset}: one labeled case; --voxelwise learns from one half and needs two or more."
            )
        return voxelwise(items, args.limit)

    table = Table(title="Whole tumor: best Dice of one threshold, in hindsight")
    table.add_column("case", no_wrap=True)
    for name in SEQUENCES:
        table.add_column(name, justify="right")
    worst, where = 0.0, ""
    screen = Console(stderr=True)
    for item in track(items, "Rating", console=screen, transient=True, disable=not screen.is_terminal):
        ratings = rate_case(item)
        table.add_row(item["case"], *(f"{rating:.3f}" for rating in ratings.values()))
        top = max(ratings, key=ratings.__getitem__)
        if ratings[top] >= worst:
            worst, where = ratings[top], f"{item['case']}, {top}"
    console = Console()
    console.print(table)
    console.print(f"Maximum over {len(items)} case(s): {worst:.3f} ({where})", highlight=False)
    if args.limit is not None and worst > args.limit:
        print(f"A threshold reaches {worst:.3f} ({where}), above the limit of {args.limit:g}.", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    command.run(main)
