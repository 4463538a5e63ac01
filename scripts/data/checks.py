# Copyright (c) the brats_mri_panet_segmentation authors
# SPDX-License-Identifier: Apache-2.0
"""Checks of the data before long work starts: each fault found here costs seconds instead of hours.

A workflow's ``run`` list calls ``check_cases`` before its engine. Constructing a workflow does not call it, so that a
bundle can be loaded, inspected and given other data where there is none.
"""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from rich.console import Console
from rich.progress import track
from scripts.brats import CHANNEL_ORDER, OTHER_TUMORS, SEQUENCES, check_label_values, other_tumor, sequence_named
from scripts.data.cases import LOOKED_FOR, find_cases, image_files
from scripts.data.images import read_image, voxels_of
from scripts.data.phantom import PHANTOM_DESCRIPTION
from scripts.errors import InputError
from scripts.machine import available_memory, container_memory, processors

logger = logging.getLogger(__name__)

# The BraTS preprocessing resamples to this grid; a network trained on it knows no other scale.
EXPECTED_SPACING_MM = 1.0

# Real brains fill 13 to 19 % of BraTS's grid.
LARGEST_BRAIN = 0.5


# What reading a case takes at most: four float32 sequences of BraTS's grid, unpacked and as an array, and a mask.
MEMORY_PER_CASE = 500e6


@dataclass(frozen=True)
class CheckedCase:
    """What the check of a case has found.

    Attributes:
        phantom: it is a synthetic phantom, by its header.
        brain: share of the grid in which a sequence is not 0, which is what counts as brain.
    """

    phantom: bool
    brain: float


def check_grid(path: str, image: nib.Nifti1Image, first_path: str, first: nib.Nifti1Image, label: bool = False) -> None:
    """Check that a file of a case has the grid of the case's first; the origin alone of a label map may differ.

    Raises:
        InputError: they differ in shape or affine.
    """
    same_axes = image.shape[:3] == first.shape[:3] and np.allclose(image.affine[:3, :3], first.affine[:3, :3])
    # As strict as MONAI, which stacks the sequences and would stop there.
    if same_axes and np.allclose(image.affine, first.affine):
        return
    if label and same_axes:
        # As BraTS 2017 ships some. No transform brings image and label map together by their origins.
        logger.warning(
            "%s: its origin differs from that of the images, its shape and axes do not; taken voxel by voxel.", path
        )
        return
    raise InputError(
        f"{path}: its grid (shape {image.shape}) differs from that of {first_path} (shape {first.shape}), "
        "or lies elsewhere; co-register and resample all sequences to one grid."
    )


def is_phantom(image: nib.Nifti1Image) -> bool:
    """Whether an image is one of a synthetic phantom, by its header."""
    return bytes(image.header["descrip"].item()).decode("latin-1").startswith(PHANTOM_DESCRIPTION)


def check_case(item: Mapping[str, Any]) -> CheckedCase:
    """Read each file of a case once and whole: one grid, sequences that show something, labels of their release.

    Raises:
        InputError: a file is absent or damaged, of another grid than the first, an image empty or not finite, or a
            label unexpected.
    """
    files = image_files(item["image"])
    channels = len(SEQUENCES) if len(files) == 1 else 0
    first = read_image(files[0], channels)
    spacing = first.header.get_zooms()[:3]
    if not np.allclose(spacing, EXPECTED_SPACING_MM, atol=0.05):
        logger.warning(
            "%s: voxels of %s mm; the network expects BraTS preprocessing (1 mm, skull-stripped).",
            files[0],
            " x ".join(f"{mm:g}" for mm in spacing),
        )
    brain = np.zeros(first.shape[:3], dtype=bool)
    for path in files:
        image = first if path == files[0] else read_image(path)
        check_grid(path, image, files[0], first)
        brain |= check_image(path, voxels_of(image, path))
    if "label" in item:
        label = read_image(item["label"])
        check_grid(item["label"], label, files[0], first, label=True)
        values = np.unique(voxels_of(label, item["label"]))
        check_label_values(values, int(item["et_label"]), item["label"], bool(item.get("resection_cavity", 0)))
    return CheckedCase(is_phantom(first), float(brain.mean()))


def check_image(path: str, voxels: np.ndarray) -> np.ndarray:
    """Check that each sequence in the voxels of a file shows something; returns where one does, bool of (*size).

    Raises:
        InputError: a sequence is 0 everywhere, or a voxel is not finite.
    """
    channels = np.moveaxis(voxels, -1, 0) if voxels.ndim == 4 else voxels[None]
    for number, channel in enumerate(channels):
        if not channel.any():
            where = f"channel {number} is " if voxels.ndim == 4 else ""
            raise InputError(f"{path}: {where}empty, every voxel is 0; export the sequence again.")
    if not np.isfinite(voxels).all():
        raise InputError(f"{path}: holds voxels that are no finite numbers; export the sequence again.")
    return np.asarray(channels.any(axis=0))


def reading_threads() -> int:
    """How many cases to read at a time: one for each processor, as far as memory goes."""
    return max(1, min(processors(), int(min(available_memory(), container_memory()) / MEMORY_PER_CASE)))


def warn_of_other_tumors(items: Sequence[Mapping[str, Any]]) -> None:
    """Warn, once for each kind, of cases whose names say that they are no gliomas."""
    kinds: dict[str, list[str]] = {}
    for item in items:
        if kind := other_tumor(str(item["case"])):
            kinds.setdefault(kind, []).append(str(item["case"]))
    for kind, cases in kinds.items():
        logger.warning(
            "%s: %s, by its name; the weights of this bundle and its reading of label values are for gliomas.",
            cases[0] if len(cases) == 1 else f"{cases[0]} and {len(cases) - 1} more",
            OTHER_TUMORS[kind],
        )


def warn_of_large_brains(items: Sequence[Mapping[str, Any]], shares: Sequence[float]) -> None:
    """Warn of cases of which more than half the grid counts as brain: their background may not be 0."""
    cases = [str(item["case"]) for item, share in zip(items, shares, strict=True) if share > LARGEST_BRAIN]
    if cases:
        logger.warning(
            "%s: more than half of the grid is not 0, and all that is not 0 counts as brain. Well if the images are "
            "cut close to the brain; otherwise strip the skull and set the background to exactly 0.",
            ", ".join(cases[:10]) + (f" and {len(cases) - 10} more" if len(cases) > 10 else ""),
        )


def check_channel_order(item: Mapping[str, Any], channel_order: Sequence[str]) -> None:
    """Refuse a four-dimensional file whose data set says another order of channels than the setting does.

    The Medical Segmentation Decathlon says it as ``modality`` in ``dataset.json`` beside ``imagesTr``. Where no such
    file lies, the setting alone says it.

    Raises:
        InputError: they differ, or the names there are not those of the four sequences.
    """
    files = image_files(item["image"])
    stated = Path(files[0]).parent.parent / "dataset.json"
    if len(files) != 1 or not stated.is_file():
        return
    try:
        modality = json.loads(stated.read_text(encoding="utf-8"))["modality"]
        order = [str(modality[str(number)]) for number in range(len(modality))]
    except (OSError, ValueError, KeyError, TypeError):
        return
    known = [sequence_named(name) for name in order]
    if None in known or sorted(map(str, known)) != sorted(SEQUENCES):
        raise InputError(
            f"{stated}: the channels are {', '.join(order)}, and not each of {', '.join(SEQUENCES)} once; write these "
            f"names there, or, if --channel_order ({', '.join(channel_order)}) is right, move that file away."
        )
    if known != list(channel_order):
        raise InputError(
            f"{stated}: the channels are {', '.join(order)}, but --channel_order says {', '.join(channel_order)}; "
            f'set --channel_order "{known}".'
        )


def check_cases(
    items: Sequence[Mapping[str, Any]],
    dataset_dir: str | Path | None,
    cases: str = "cases",
    datalist_file: str | Path | None = None,
    channel_order: Sequence[str] = CHANNEL_ORDER,
) -> list[bool]:
    """Refuse data that a workflow would stumble over later.

    Args:
        items: the datalist that the workflow will read.
        dataset_dir: the folder it came from, None where a caller brought its own list. A case in it that lacks a
            sequence is refused too, since leaving it out in silence would change the cohort; unless the user chose the
            cases by ``datalist_file``.
        cases: what the items are, for the messages.
        datalist_file: the file that the items came from, if there was one.
        channel_order: what the channels of four-dimensional files are.

    Returns:
        Of each item, whether it is a synthetic phantom.

    Raises:
        InputError: there is no case, one is incomplete, two have one name, or a file is absent, damaged, empty, of
            another grid than the rest of its case, or a label map with unexpected values. The message names it.
    """
    found = find_cases(dataset_dir) if datalist_file is None and dataset_dir is not None else []
    for case in found:
        if case.missing:
            raise InputError(
                f"{case.folder}: incomplete, there is no {' and no '.join(case.missing)}; "
                "add it, or move the folder away."
            )
    if not items:
        raise InputError(_nothing_found(Path(dataset_dir or "."), cases, len(found)))
    names: dict[str, Any] = {}
    for item in items:
        # A datalist may hold one patient on both sides of the split, to see whether a network can learn it.
        file = image_files(item["image"])[0]
        if names.get(item["case"], file) != file:
            raise InputError(
                f"{file}: the case {item['case']} is also in {Path(names[item['case']]).parent}; "
                "results are named after cases, so keep only one of them below --dataset_dir."
            )
        names[item["case"]] = file
        check_channel_order(item, channel_order)
    # Without a terminal a bar would only leave empty lines in the log.
    quiet = not sys.stderr.isatty()
    console = Console(stderr=True)
    # Decompression releases the interpreter's lock, so threads use all cores.
    pool = ThreadPoolExecutor(reading_threads())
    try:
        done = pool.map(check_case, items)
        step = f"Reading {len(items)} {cases}"
        checked = list(track(done, step, len(items), console=console, transient=True, disable=quiet))
    finally:
        # At the first fault the rest need not be read.
        pool.shutdown(cancel_futures=True)
    phantoms = [case.phantom for case in checked]
    warn_of_large_brains(items, [case.brain for case in checked])
    warn_of_other_tumors(items)
    logger.info("%s: %s %d, checked", dataset_dir or "Given list", cases, len(items))
    if any(phantoms):
        logger.warning("%d of %d %s are synthetic phantoms, not patients.", sum(phantoms), len(items), cases)
    return phantoms


def _nothing_found(dataset_dir: Path, cases: str, found: int) -> str:
    if not dataset_dir.is_dir():
        return f"{dataset_dir}: no such folder; set --dataset_dir to a folder of {LOOKED_FOR}."
    if found:
        return f"{dataset_dir}: {found} cases, but no {cases}; those need a segmentation (seg) beside the sequences."
    return f"{dataset_dir}: no {cases} found; looked for {LOOKED_FOR}, at any depth."
