# Copyright (c) the brats_mri_panet_segmentation authors
# SPDX-License-Identifier: Apache-2.0
"""The folder of a prepared case: its four sequences under names of BraTS, and beside them how they came about."""

import shutil
import tempfile
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from scripts.brats import REFERENCE
from scripts.data.findings import Finding
from scripts.pictures.figure import save_figure
from scripts.preparation import packages
from scripts.preparation.grids import RAS_TO_LPS, Array, Volume
from scripts.preparation.judging import Judge
from scripts.preparation.picture import picture
from scripts.preparation.preparing import Preparation
from scripts.preparation.scans import read_scans
from scripts.utils.errors import InputError
from scripts.utils.files import cannot_write, keep_earlier, read_json, save_json, save_text
from scripts.utils.run_json import bundle_version, versions

RECORD, PICTURE, TRANSFORMS = "prepared.json", "prepared.png", "transforms"


def image_file(folder: Path, case: str, sequence: str) -> Path:
    """File of a prepared sequence."""
    return folder / f"{case}_{sequence}.nii.gz"


def refuse_used(folder: Path, overwrite: bool) -> None:
    """Refuse a folder that exists already, unless it may be kept under a dated name."""
    if folder.exists() and not overwrite:
        raise InputError(f"{folder}: exists already; choose another --output-dir, or add --overwrite.")


def save_prepared(prepared: Preparation, folder: Path, overwrite: bool = False) -> Path:
    """Write a prepared case to ``folder``, whole or not at all.

    With ``overwrite``, an earlier folder is kept under a dated name.

    Raises:
        InputError: there is a folder already, or it cannot be written.
    """
    refuse_used(folder, overwrite)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    except OSError as error:
        raise cannot_write(folder, error) from error
    try:
        _write(prepared, temporary)
        temporary.chmod(0o755)
        if folder.exists():
            keep_earlier(folder)
        temporary.rename(folder)
    except OSError as error:
        raise cannot_write(folder, error) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return folder


def _write(prepared: Preparation, folder: Path) -> None:
    case = prepared.case
    with prepared.timed("resampling and writing"):
        for sequence in prepared.scans:
            nib.save(prepared.image(sequence).as_image(), image_file(folder, case, sequence))
        nib.save(prepared.brain.as_image(), folder / f"{case}_brain.nii.gz")
        for sequence in prepared.scans:
            there = prepared.to_scan[sequence] @ prepared.pose
            # ITK's transforms take points of the new grid to points of the image that is resampled.
            save_text(itk_transform(there), folder / TRANSFORMS / f"{sequence}_to_prepared.tfm")
            save_text(itk_transform(np.linalg.inv(there)), folder / TRANSFORMS / f"prepared_to_{sequence}.tfm")
    with prepared.timed("picture"):
        save_figure(picture(prepared), folder / PICTURE)
    save_json(record_of(prepared), folder / RECORD)


def itk_transform(matrix: Array) -> str:
    """A matrix, from mm to mm, as a text that ITK, ANTs and 3D Slicer read (in LPS)."""
    lps = RAS_TO_LPS @ matrix @ RAS_TO_LPS
    numbers = " ".join(f"{value:.12g}" for value in [*lps[:3, :3].ravel(), *lps[:3, 3]])
    return (
        "#Insight Transform File V1.0\n#Transform 0\nTransform: AffineTransform_double_3_3\n"
        f"Parameters: {numbers}\nFixedParameters: 0 0 0\n"
    )


def record_of(prepared: Preparation) -> dict[str, Any]:
    """What ``prepared.json`` says. Matrices take mm to mm, to the right, to the front and up, as nibabel's affines."""
    scans = {
        sequence: {
            "file": scan.file,
            "sha256": scan.sha256,
            "shape": list(scan.volume.voxels.shape),
            "affine": scan.volume.affine.tolist(),
            "to_prepared": np.linalg.inv(prepared.to_scan[sequence] @ prepared.pose).tolist(),
        }
        for sequence, scan in prepared.scans.items()
    }
    found = prepared.judge.found
    return {
        "case": prepared.case,
        "kind": prepared.kind,
        "brain_ml": round(float((prepared.brain.voxels > 0).sum() * prepared.brain.voxel_ml), 1),
        "warnings": [{"kind": one.kind, "text": one.message} for one in found],
        "accepted": prepared.judge.accepted,
        "measured": prepared.measured,
        "scans": scans,
        "seconds": prepared.seconds,
        "bundle_version": bundle_version(),
        "packages": versions(packages.PACKAGES.values()),
    }


def draw_prepared(record: str | Path, label: Volume, sequence: str | None) -> None:
    """Draw the picture of a prepared case again, with a label map.

    The label map is on the grid of the scan of this sequence, or if it is None on that of the prepared sequences.
    """
    folder, found = Path(record).parent, read_json(record)
    case, scans = found["case"], read_scans({name: scan["file"] for name, scan in found["scans"].items()})
    brain = nib.nifti1.load(folder / f"{case}_brain.nii.gz")
    first = nib.nifti1.load(image_file(folder, case, REFERENCE))
    to_prepared = {name: np.array(scan["to_prepared"]) for name, scan in found["scans"].items()}
    pose = np.linalg.inv(to_prepared[REFERENCE])
    prepared = Preparation(
        case=case,
        scans=scans,
        kind=found["kind"],
        brain=Volume(np.asarray(brain.dataobj), brain.affine),
        to_scan={name: np.linalg.inv(pose @ matrix) for name, matrix in to_prepared.items()},
        pose=pose,
        affine=first.affine,
        shape=first.shape,
        judge=Judge(case, found=[Finding(one["kind"], case, one["text"]) for one in found["warnings"]]),
    )
    to_label = prepared.to_scan[sequence] if sequence else to_prepared[REFERENCE]
    save_figure(picture(prepared, label, to_label), folder / PICTURE)
