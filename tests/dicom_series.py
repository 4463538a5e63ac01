# Copyright (c) the brats_mri_panet_segmentation authors
# SPDX-License-Identifier: Apache-2.0
"""DICOM series of the voxels and the place of NIfTI images."""

from pathlib import Path

import nibabel as nib
import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, generate_uid
from pydicom.valuerep import format_number_as_ds

MR_IMAGE = "1.2.840.10008.5.1.4.1.1.4"
DESCRIPTIONS = {"t1": "AX T1 SE", "t2": "AX T2 TSE", "t1ce": "AX T1 SE POST GD", "flair": "t2_tirm_tra_dark-fluid"}
LPS = np.diag([-1.0, -1.0, 1.0, 1.0])


def header(study: str = "1.2.3", series: str = "1.2.3.4", **values: object) -> Dataset:
    """The header of an MR image without a place and without voxels; ``values`` are set in it."""
    data = Dataset()
    data.file_meta = FileMetaDataset()
    data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data.SOPClassUID = data.file_meta.MediaStorageSOPClassUID = MR_IMAGE
    data.SOPInstanceUID = data.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    data.StudyInstanceUID, data.SeriesInstanceUID, data.Modality = study, series, "MR"
    data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
    data.BitsAllocated = data.BitsStored = 16
    data.HighBit, data.PixelRepresentation = 15, 0
    for name, value in values.items():
        setattr(data, name, value)
    return data


def save(data: Dataset, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    data.save_as(path, enforce_file_format=True)
    return path


def write_series(
    folder: Path,
    voxels: np.ndarray,
    affine: np.ndarray,
    names: list[str] | None = None,
    rescaled: tuple[float, float] = (1.0, 0.0),
    **values: object,
) -> list[Path]:
    """Write a series with one file for each index of the last axis.

    Args:
        folder: where to.
        voxels: (columns, rows, slices), whole numbers from 0 to 65535. What is read is these numbers, rescaled.
        affine: in nibabel's convention.
        names: of the files.
        rescaled: slope and intercept.
        values: further elements of the headers.
    """
    lps = LPS @ affine
    spacing = np.linalg.norm(lps[:3, :3], axis=0)
    direction = lps[:3, :3] / spacing
    made = []
    for number in range(voxels.shape[2]):
        data = header(**values)
        data.ImageOrientationPatient = [format_number_as_ds(float(v)) for v in direction[:, :2].T.flatten()]
        data.ImagePositionPatient = [format_number_as_ds(float(v)) for v in (lps @ (0, 0, number, 1))[:3]]
        data.PixelSpacing = [format_number_as_ds(float(v)) for v in (spacing[1], spacing[0])]
        data.SliceThickness = format_number_as_ds(float(spacing[2]))
        data.RescaleSlope, data.RescaleIntercept = rescaled
        data.InstanceNumber = number + 1
        data.Columns, data.Rows = voxels.shape[:2]
        data.PixelData = np.ascontiguousarray(voxels[:, :, number].T).astype("<u2").tobytes()
        made.append(save(data, folder / (names[number] if names else f"IM{number + 1:04d}")))
    return made


def write_case(folder: Path, images: dict[str, nib.Nifti1Image], together: bool = False, study: str = "") -> Path:
    """Write the images of a case, of whole numbers that are not negative, as the series of one study.

    Args:
        folder: the folder of the case.
        images: image of each sequence.
        together: put all files into one folder, under shuffled names, instead of a folder for each series.
        study: identifier of the study.
    """
    study = study or generate_uid()
    rng = np.random.default_rng(0)
    for number, (sequence, image) in enumerate(images.items()):
        numbers = rng.permutation(image.shape[2]) + (1000 * number if together else 0)
        write_series(
            folder if together else folder / f"series {number}",
            np.asanyarray(image.dataobj),
            image.affine,
            [f"IM{n:05d}" for n in numbers],
            study=study,
            series=generate_uid(),
            SeriesNumber=number + 1,
            SeriesDescription=DESCRIPTIONS[sequence],
            **({"ContrastBolusAgent": "Gadovist"} if sequence == "t1ce" else {}),
        )
    return folder
