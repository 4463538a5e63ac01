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
import os
import sys
import zlib
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from nibabel.filebasedimages import ImageFileError
from nibabel.spatialimages import HeaderDataError
from nibabel.wrapstruct import WrapStructError
from rich.console import Console
from rich.progress import track
from scripts.data.datalist import CHANNEL_ORDER, LOOKED_FOR, SEQUENCES, find_cases, image_files, sequence_named
from scripts.data.phantom import PHANTOM_DESCRIPTION
from scripts.errors import InputError
from scripts.transforms import check_label_values

logger = logging.getLogger(__name__)

# What nibabel raises for a file that is no NIfTI image, or only part of one.
UNREADABLE = (ImageFileError, HeaderDataError, WrapStructError, OSError, EOFError, ValueError, zlib.error)

# The BraTS preprocessing resamples to this grid; a network trained on it knows no other scale.
EXPECTED_SPACING_MM = 1.0


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
    try:
        image = nib.nifti1.Nifti1Image.from_filename(path)
    except UNREADABLE as error:
        raise InputError(f"{path}: not a readable NIfTI image ({_one_line(error)}); copy it again.") from error
    if channels and image.shape[3:] != (channels,):
        raise InputError(
            f"{path}: of shape {image.shape}, not one file with {channels} channels; "
            "give such a file, or a folder with one file per sequence."
        )
    if not channels and len(image.shape) != 3:
        raise InputError(f"{path}: {len(image.shape)} dimensions instead of 3; give one file per sequence.")
    return image


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())


def check_grid(item: Mapping[str, Any]) -> bool:
    """Check that a case's files share one grid, reading headers only.

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
        content = gzip.decompress(content) if str(path).endswith(".gz") else content
        voxels = np.asanyarray(nib.nifti1.Nifti1Image.from_bytes(content).dataobj)
    except UNREADABLE as error:
        raise InputError(f"{path}: damaged ({_one_line(error)}); copy it again.") from error
    if voxels.dtype.kind not in "iuf":
        kind = "complex numbers" if voxels.dtype.kind == "c" else "colours"
        raise InputError(f"{path}: its voxels are {kind}, not plain ones; export the sequence again, as grey values.")
    return voxels


def check_voxels(item: Mapping[str, Any]) -> None:
    """Read a case whole: each sequence shows something, and the label map holds its release's values and no other.

    Raises:
        InputError: a file is damaged, an image empty or not finite, or a label unexpected.
    """
    files = image_files(item["image"])
    for path in files:
        voxels = read_voxels(path)
        channels = np.moveaxis(voxels, -1, 0) if len(files) == 1 else voxels[None]
        for number, channel in enumerate(channels):
            if not channel.any():
                where = f"channel {number} is " if len(files) == 1 else ""
                raise InputError(f"{path}: {where}empty, every voxel is 0; export the sequence again.")
        if not np.isfinite(voxels).all():
            raise InputError(f"{path}: holds voxels that are no finite numbers; export the sequence again.")
    if "label" in item:
        values = np.unique(read_voxels(item["label"]))
        check_label_values(values, int(item["et_label"]), item["label"], bool(item.get("resection_cavity", 0)))


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
    pool = ThreadPoolExecutor(os.cpu_count())
    try:
        done = pool.map(check_voxels, items)
        step = f"Reading {len(items)} {cases}"
        for _ in track(done, step, len(items), console=console, transient=True, disable=quiet):
            pass
    finally:
        # At the first fault the rest need not be read.
        pool.shutdown(cancel_futures=True)
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
