# Copyright (c) the brats_mri_panet_segmentation authors
# SPDX-License-Identifier: Apache-2.0
"""Checks of the data before long work starts.

A fault that is found here costs seconds instead of hours. The ``run`` list of a workflow calls ``check_cases`` before
its engine. Constructing a workflow does not call it. So a bundle without data can be loaded and inspected, and a caller
can give it other data.
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
from scripts.data.cases import LOOKED_FOR, find_cases, image_files, missing_sequences
from scripts.data.images import read_image, voxels_of
from scripts.data.phantom import PHANTOM_DESCRIPTION
from scripts.errors import InputError
from scripts.machine import available_memory, container_memory, processors

logger = logging.getLogger(__name__)

# The BraTS preprocessing resamples to this spacing. A network that was trained on it knows no other scale.
EXPECTED_SPACING_MM = 1.0

# Real brains fill 13 to 19 % of the BraTS grid.
LARGEST_BRAIN = 0.5

# Reading a case takes at most this many bytes: four float32 sequences on the BraTS grid, both unpacked and as an array,
# and a mask.
MEMORY_PER_CASE = 500e6


@dataclass(frozen=True)
class CheckedCase:
    """Findings of the check of one case.

    Attributes:
        phantom: the header says that the case is a synthetic phantom.
        brain: share of the grid that counts as brain, because a sequence is not 0 there.
    """

    phantom: bool
    brain: float


def check_grid(path: str, image: nib.Nifti1Image, first_path: str, first: nib.Nifti1Image, label: bool = False) -> None:
    """Check that a file of a case has the same grid as the first file of the case.

    Args:
        path: the file, for the message.
        image: its image.
        first_path: the first file of the case, for the message.
        first: image of the first file.
        label: the file is a label map, whose origin may differ. A different origin is only warned of.

    Raises:
        InputError: the grids differ in shape or affine.

    Example:
        >>> first, other = (nib.Nifti1Image(np.zeros(size, np.uint8), np.eye(4)) for size in ((4, 4, 4), (4, 4, 5)))
        >>> check_grid("p1_t2.nii", other, "p1_t1.nii", first)  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        scripts.errors.InputError: p1_t2.nii: its grid (shape (4, 4, 5)) differs from that of p1_t1.nii ...
    """
    same_axes = image.shape[:3] == first.shape[:3] and np.allclose(image.affine[:3, :3], first.affine[:3, :3])
    # The check is as strict as MONAI, which stacks the sequences and would stop at a difference.
    if same_axes and np.allclose(image.affine, first.affine):
        return
    if label and same_axes:
        # BraTS 2017 holds such label maps. No transform uses the origins to align image and label map.
        logger.warning(
            "%s: its origin differs from the images' origin, but its shape and axes are equal; "
            "it is matched to the images voxel by voxel.",
            path,
        )
        return
    raise InputError(
        f"{path}: its grid (shape {image.shape}) differs from that of {first_path} (shape {first.shape}), "
        "or lies elsewhere; co-register and resample all sequences to one grid."
    )


def is_phantom(image: nib.Nifti1Image) -> bool:
    """Whether the header of an image says that it shows a synthetic phantom."""
    return bytes(image.header["descrip"].item()).decode("latin-1").startswith(PHANTOM_DESCRIPTION)


def check_case(item: Mapping[str, Any]) -> CheckedCase:
    """Read each file of a case once and completely, and check it.

    All files must have one grid, no sequence may be empty, and the label map may hold only the values of its release.

    Args:
        item: the datalist entry of the case.

    Raises:
        InputError: a file is absent or damaged, or it has another grid than the first. Other causes are an image that
            is empty or holds values that are not finite, and an unexpected label.
    """
    files = image_files(item["image"])
    channels = len(SEQUENCES) if isinstance(item["image"], str | Path) else 0
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
    """Check that no sequence in a file is empty and that every voxel is finite.

    Args:
        path: the file, for the message.
        voxels: voxels of one sequence, (*size), or of several, (*size, channel).

    Returns:
        The voxels in which a sequence is not 0, bool of shape (*size).

    Raises:
        InputError: a sequence is 0 everywhere, or a voxel is not finite.

    Example:
        >>> check_image("p1_t1.nii", np.array([[[0, 300, 0, 250]]])).tolist()
        [[[False, True, False, True]]]
        >>> check_image("p1_t2.nii", np.zeros((1, 1, 4)))
        Traceback (most recent call last):
        scripts.errors.InputError: p1_t2.nii: empty, every voxel is 0; export the sequence again.
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
    """Number of cases to read at the same time: one for each processor, or fewer if memory is short."""
    return max(1, min(processors(), int(min(available_memory(), container_memory()) / MEMORY_PER_CASE)))


def warn_of_other_tumors(items: Sequence[Mapping[str, Any]]) -> None:
    """Warn of cases whose names say that they are no gliomas, with one warning for each kind of tumor."""
    kinds: dict[str, list[str]] = {}
    for item in items:
        if kind := other_tumor(str(item["case"])):
            kinds.setdefault(kind, []).append(str(item["case"]))
    for kind, cases in kinds.items():
        logger.warning(
            "%s: the name says %s; the weights of this bundle and its reading of label values are for gliomas.",
            cases[0] if len(cases) == 1 else f"{cases[0]} and {len(cases) - 1} more",
            OTHER_TUMORS[kind],
        )


def warn_of_large_brains(items: Sequence[Mapping[str, Any]], shares: Sequence[float]) -> None:
    """Warn of cases in which more than half of the grid counts as brain, since their background may not be 0."""
    cases = [str(item["case"]) for item, share in zip(items, shares, strict=True) if share > LARGEST_BRAIN]
    if cases:
        logger.warning(
            "%s: more than half of the grid is not 0, and every voxel that is not 0 counts as brain. This is fine if "
            "the images are cut close to the brain; otherwise strip the skull and set the background to exactly 0.",
            ", ".join(cases[:10]) + (f" and {len(cases) - 10} more" if len(cases) > 10 else ""),
        )


def check_channel_order(item: Mapping[str, Any], channel_order: Sequence[str]) -> None:
    """Refuse a four-dimensional file if its dataset states another order of channels than the setting.

    The Medical Segmentation Decathlon states the order as ``modality`` in the file ``dataset.json`` beside
    ``imagesTr``. Without such a file the setting alone decides.

    Args:
        item: the datalist entry of a case.
        channel_order: the setting.

    Raises:
        InputError: the two orders differ, or the names in the file are not the four sequences.
    """
    stated = Path(image_files(item["image"])[0]).parent.parent / "dataset.json"
    if not isinstance(item["image"], str | Path) or not stated.is_file():
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
    may_lack: int = 0,
) -> list[bool]:
    """Refuse data on which a workflow would fail later.

    Args:
        items: the datalist that the workflow will read.
        dataset_dir: the folder of the cases, or None if a caller brought its own list. An incomplete case in this
            folder is refused too, because leaving it out without notice would change the cohort. It is not refused if
            the user chose the cases by ``datalist_file``.
        cases: word for the items in the messages.
        datalist_file: the file that the items came from, or None.
        channel_order: the sequences in the order of the channels of four-dimensional files.
        may_lack: how many sequences a case may lack, by the record of the weights.

    Returns:
        For each item, whether it is a synthetic phantom.

    Raises:
        InputError: there is no case, a case is incomplete, or two cases have the same name. Other causes are a file
            that is absent, damaged, empty or on another grid than the rest of its case, and a label map with unexpected
            values. The message names the file.
    """
    found = find_cases(dataset_dir) if datalist_file is None and dataset_dir is not None else []
    for case in found:
        if len(case.missing) > may_lack:
            raise InputError(
                f"{case.folder}: incomplete, there is no {' and no '.join(case.missing)}; {_bearable(may_lack)}"
                "add it, or move the folder away."
            )
        if case.doubled:
            raise InputError(f"{case.doubled[0]}: {case.name} has this image twice; keep one of the two files.")
    if not items:
        raise InputError(_nothing_found(Path(dataset_dir or "."), cases, len(found)))
    names: dict[str, Any] = {}
    for item in items:
        # A datalist may hold the same case on both sides of the split, to test whether a network can learn it.
        file = image_files(item["image"])[0]
        if names.get(item["case"], file) != file:
            raise InputError(
                f"{file}: the case {item['case']} is also in {Path(names[item['case']]).parent}; "
                "results are named after cases, so keep only one of them below --dataset_dir."
            )
        names[item["case"]] = file
        if absent := missing_sequences(item["image"]):
            if len(absent) > may_lack:
                raise InputError(
                    f"{file}: {item['case']} lacks {' and '.join(absent)}; {_bearable(may_lack)}add it, or leave the "
                    "case out."
                )
            logger.warning(
                "%s lacks %s. The weights were trained to bear this, but the result is worse than with all sequences.",
                item["case"],
                " and ".join(absent),
            )
        check_channel_order(item, channel_order)
    # Without a terminal a progress bar would only leave empty lines in the log.
    quiet = not sys.stderr.isatty()
    console = Console(stderr=True)
    # Decompression releases the interpreter's lock, so threads use all cores.
    pool = ThreadPoolExecutor(reading_threads())
    try:
        done = pool.map(check_case, items)
        step = f"Reading {len(items)} {cases}"
        checked = list(track(done, step, len(items), console=console, transient=True, disable=quiet))
    finally:
        # After the first fault the remaining cases are not read.
        pool.shutdown(cancel_futures=True)
    phantoms = [case.phantom for case in checked]
    warn_of_large_brains(items, [case.brain for case in checked])
    warn_of_other_tumors(items)
    logger.info("%s: %s %d, checked", dataset_dir or "Given list", cases, len(items))
    if any(phantoms):
        logger.warning("%d of %d %s are synthetic phantoms, not patients.", sum(phantoms), len(items), cases)
    return phantoms


def _bearable(may_lack: int) -> str:
    return f"the weights bear {may_lack} missing sequence at most; " if may_lack else ""


def _nothing_found(dataset_dir: Path, cases: str, found: int) -> str:
    if not dataset_dir.is_dir():
        return f"{dataset_dir}: no such folder; set --dataset_dir to a folder of {LOOKED_FOR}."
    if found:
        return f"{dataset_dir}: {found} cases, but no {cases}; these need a segmentation (seg) beside the sequences."
    return f"{dataset_dir}: no {cases} found; looked for {LOOKED_FOR}, at any depth."
