# Copyright (c) the brats_mri_panet_segmentation authors
# SPDX-License-Identifier: Apache-2.0
"""How well a single threshold finds the whole tumour: `python -m scripts.threshold_baseline DATASET_DIR`.

For each case and modality the table gives the best Dice in hindsight over all thresholds on that modality, in both
directions, within the brain. A cohort on which this is high needs no network.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import numpy.typing as npt
from nibabel.filebasedimages import ImageFileError
from rich.console import Console
from rich.table import Table

from scripts.data.phantom import MODALITIES, best_threshold_dice

SUFFIX = "_seg.nii.gz"


def find_cases(dataset: Path) -> list[Path]:
    """The label files below a folder, sorted; hidden folders (cases being written) are left out."""
    return sorted(
        path
        for path in dataset.rglob(f"*{SUFFIX}")
        if not any(part.startswith(".") for part in path.relative_to(dataset).parts)
    )


def read(path: Path) -> npt.NDArray[np.generic]:
    """The voxels of a NIfTI file; raises OSError or ImageFileError where it cannot be read."""
    image: Any = nib.load(path)
    return np.asanyarray(image.dataobj)


def rate_case(labels: Path) -> dict[str, float]:
    """The best threshold Dice of each modality for the case of a label file; the brain is where any modality is not 0.

    Raises:
        OSError, ImageFileError: a file is absent or unreadable.
        ValueError: the images differ in shape or are empty.
    """
    stem = labels.name.removesuffix(SUFFIX)
    images = {name: read(labels.with_name(f"{stem}_{name}.nii.gz")) for name in MODALITIES}
    tumour = np.not_equal(read(labels), 0)
    brain = np.any([image != 0 for image in images.values()], axis=0)
    if brain.shape != tumour.shape:
        raise ValueError(f"the images measure {brain.shape}, the labels {tumour.shape}")
    return {name: best_threshold_dice(image[brain], tumour[brain]) for name, image in images.items()}


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns its exit status."""
    parser = argparse.ArgumentParser(prog="python -m scripts.threshold_baseline", description=__doc__)
    parser.add_argument("dataset", type=Path, metavar="DATASET_DIR", help="searched at any depth for *_seg.nii.gz")
    parser.add_argument("--limit", type=float, help="exit with status 1 if any Dice exceeds this")
    args = parser.parse_args(argv)
    if not args.dataset.is_dir():
        print(f"There is no folder {args.dataset}; give the folder that holds the BraTS 2020 cases.", file=sys.stderr)
        return 2
    cases = find_cases(args.dataset)
    if not cases:
        print(
            f"{args.dataset} holds no *{SUFFIX}; give the folder that holds the BraTS 2020 training cases, "
            "or make some with `python -m scripts.make_phantoms`.",
            file=sys.stderr,
        )
        return 2
    table = Table(title="Whole tumour: best Dice of one threshold, in hindsight")
    table.add_column("case", no_wrap=True)
    for name in MODALITIES:
        table.add_column(name, justify="right")
    worst, where = 0.0, ""
    try:
        for labels in cases:
            case, ratings = labels.name.removesuffix(SUFFIX), rate_case(labels)
            table.add_row(case, *(f"{ratings[name]:.3f}" for name in MODALITIES))
            top = max(ratings, key=ratings.__getitem__)
            if ratings[top] >= worst:
                worst, where = ratings[top], f"{case}, {top}"
    except (OSError, ImageFileError, ValueError) as error:
        print(f"Cannot rate the cases in {args.dataset}: {error}; restore or remove that case.", file=sys.stderr)
        return 2
    console = Console()
    console.print(table)
    console.print(f"Maximum over {len(cases)} case(s): {worst:.3f} ({where})", highlight=False)
    if args.limit is not None and worst > args.limit:
        print(f"A threshold reaches {worst:.3f} ({where}), above the limit of {args.limit:g}.", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
