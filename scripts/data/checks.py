# Copyright (c) the brats_mri_panet_segmentation authors
# SPDX-License-Identifier: Apache-2.0
"""Checks of the data before long work starts: each fault found here costs seconds instead of hours.

A workflow's ``run`` list begins with ``check_cases``. Constructing a workflow does not call it, so that a bundle can be
loaded, inspected and given other data where there is none.
"""

from __future__ import annotations

import gzip
import json
import logging
import math
import os
import re
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from rich.console import Console
from rich.progress import track
from scripts.data.datalist import CHANNEL_ORDER, LOOKED_FOR, SEQUENCES, find_cases, image_files, sequence_named
from scripts.data.phantom import PHANTOM_DESCRIPTION
from scripts.data.readers import UNREADABLE, check_suffix, one_line
from scripts.errors import InputError
from scripts.transforms import check_label_values

logger = logging.getLogger(__name__)

# The BraTS preprocessing resamples to this grid; a network trained on it knows no other scale.
EXPECTED_SPACING_MM = 1.0

# Real brains fill 13 to 19 % of BraTS's grid.
LARGEST_BRAIN = 0.5

# What reading a case takes at most: four float32 sequences of BraTS's grid, unpacked and as an array, and a mask.
MEMORY_PER_CASE = 500e6

# Releases of other tumors have the names of 2023, and label values of their own meaning.
OTHER_TUMORS = {"PED": "pediatric tumors", "MEN": "meningiomas", "MET": "metastases"}
_OTHER_TUMOR = re.compile(rf"BraTS-(?P<kind>{'|'.join(OTHER_TUMORS)})-.*", re.IGNORECASE)


def read_header(path: str | Path, channels: int = 0) -> nib.Nifti1Image:
    """Open a NIfTI image without reading its voxels.

    Args:
        path: the file.
        channels: how many channels it must hold, in its fourth dimension; 0 where it must have three dimensions.

    Raises:
        InputError: the file is absent, no NIfTI image, or of other dimensions.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path}: no such file; check the datalist or --dataset_dir.")
    check_suffix(path)
    try:
        image = nib.nifti1.Nifti1Image.from_filename(path)
    except UNREADABLE as error:
        raise InputError(f"{path}: not a readable NIfTI image ({one_line(error)}); copy it again.") from error
    if channels and image.shape[3:] != (channels,):
        raise InputError(
            f"{path}: of shape {image.shape}, not one file with {channels} channels; "
            "give such a file, or a folder with one file per sequence."
        )
    if not channels and len(image.shape) != 3:
        raise InputError(f"{path}: {len(image.shape)} dimensions instead of 3; give one file per sequence.")
    return image


def check_grid(item: Mapping[str, Any]) -> bool:
    """Check that a case's files share one grid, reading headers only; a label map's origin alone may differ.

    Returns:
        Whether the case is a synthetic phantom.

    Raises:
        InputError: two files differ in shape or affine, or one cannot be read.
    """
    images = image_files(item["image"])
    files = [*images, *([item["label"]] if "label" in item else [])]
    first = read_header(files[0], channels=len(SEQUENCES) if len(images) == 1 else 0)
    for file in files[1:]:
        other = read_header(file)
        same_axes = other.shape == first.shape[:3] and np.allclose(other.affine[:3, :3], first.affine[:3, :3])
        if file == item.get("label") and same_axes and not np.allclose(other.affine, first.affine):
            # As BraTS 2017 ships some. No transform brings image and label map together by their origins.
            logger.warning(
                "%s: its origin differs from that of the images, its shape and axes do not; taken voxel by voxel.", file
            )
            continue
        # As strict as MONAI, which stacks the sequences and would stop there.
        if other.shape != first.shape[:3] or not np.allclose(other.affine, first.affine):
            raise InputError(
                f"{file}: its grid (shape {other.shape}) differs from that of {files[0]} (shape {first.shape}), "
                "or lies elsewhere; co-register and resample all sequences to one grid."
            )
    spacing = first.header.get_zooms()[:3]
    if not np.allclose(spacing, EXPECTED_SPACING_MM, atol=0.05):
        logger.warning(
            "%s: voxels of %s mm; the network expects BraTS preprocessing (1 mm, skull-stripped).",
            files[0],
            " x ".join(f"{mm:g}" for mm in spacing),
        )
    return bytes(first.header["descrip"].item()).decode("latin-1").startswith(PHANTOM_DESCRIPTION)


def read_voxels(path: str | Path) -> np.ndarray:
    """All voxels of a NIfTI file.

    Raises:
        InputError: the file is damaged, or its voxels are no plain numbers.
    """
    try:
        # Whole, since nibabel stops at the last voxel, and gzip's checksum comes after it.
        content = Path(path).read_bytes()
        content = gzip.decompress(content) if str(path).lower().endswith(".gz") else content
        voxels = np.asanyarray(nib.nifti1.Nifti1Image.from_bytes(content).dataobj)
    except UNREADABLE as error:
        raise InputError(f"{path}: damaged ({one_line(error)}); copy it again.") from error
    if voxels.dtype.kind not in "iuf":
        kind = "complex numbers" if voxels.dtype.kind == "c" else "colours"
        raise InputError(f"{path}: its voxels are {kind}, not plain ones; export the sequence again, as grey values.")
    return voxels


def check_voxels(item: Mapping[str, Any]) -> float:
    """Read a case whole: each sequence shows something, and the label map holds its release's values and no other.

    Returns:
        The share of the grid in which a sequence is not 0, which is what counts as brain.

    Raises:
        InputError: a file is damaged, an image empty or not finite, or a label unexpected.
    """
    files = image_files(item["image"])
    brain = np.zeros(1, dtype=bool)
    for path in files:
        voxels = read_voxels(path)
        channels = np.moveaxis(voxels, -1, 0) if len(files) == 1 else voxels[None]
        for number, channel in enumerate(channels):
            if not channel.any():
                where = f"channel {number} is " if len(files) == 1 else ""
                raise InputError(f"{path}: {where}empty, every voxel is 0; export the sequence again.")
        if not np.isfinite(voxels).all():
            raise InputError(f"{path}: holds voxels that are no finite numbers; export the sequence again.")
        brain = np.logical_or(brain, channels.any(axis=0))
    if "label" in item:
        values = np.unique(read_voxels(item["label"]))
        check_label_values(values, int(item["et_label"]), item["label"], bool(item.get("resection_cavity", 0)))
    return float(brain.mean())


def processors() -> int:
    """How many processors this process may use, which a scheduler may limit."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def container_memory() -> float:
    """Memory that this process's control group still grants, in bytes; infinite where none is limited."""
    try:
        limit, used = (Path("/sys/fs/cgroup", name).read_text() for name in ("memory.max", "memory.current"))
        return float(limit) - float(used)
    except (OSError, ValueError):
        return math.inf


def available_memory() -> float:
    """Memory that can be had without swapping, in bytes; half of all where the system does not say it."""
    try:
        found = re.search(r"^MemAvailable: *(\d+) kB", Path("/proc/meminfo").read_text(encoding="ascii"), re.MULTILINE)
    except OSError:
        found = None
    if found is None:
        return float(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")) / 2
    return float(found[1]) * 1024


def reading_threads() -> int:
    """How many cases to read at a time: one for each processor, as far as memory goes."""
    return max(1, min(processors(), int(min(available_memory(), container_memory()) / MEMORY_PER_CASE)))


def warn_of_other_tumors(items: Sequence[Mapping[str, Any]]) -> None:
    """Warn, once for each kind, of cases whose names say that they are no gliomas."""
    kinds: dict[str, list[str]] = {}
    for item in items:
        if found := _OTHER_TUMOR.fullmatch(str(item["case"])):
            kinds.setdefault(found["kind"].upper(), []).append(str(item["case"]))
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
    phantoms = [check_grid(item) for item in items]
    # Decompression releases the interpreter's lock, so threads use all cores.
    pool = ThreadPoolExecutor(reading_threads())
    try:
        done = pool.map(check_voxels, items)
        step = f"Reading {len(items)} {cases}"
        shares = list(track(done, step, len(items), console=console, transient=True, disable=quiet))
    finally:
        # At the first fault the rest need not be read.
        pool.shutdown(cancel_futures=True)
    warn_of_large_brains(items, shares)
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
