# Copyright (c) the brats_mri_panet_segmentation authors
# SPDX-License-Identifier: Apache-2.0
"""Label maps as DICOM Segmentation objects, which a viewer shows over the series that was segmented."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
from scripts.brats import CORE, CORE_LABEL, EDEMA, EDEMA_LABEL, ENHANCING
from scripts.data.dicom import arranged, is_dicom, series_of
from scripts.data.images import read_header, read_image, voxels_of
from scripts.data.placement import check_grid
from scripts.utils.errors import InputError
from scripts.utils.files import replacing
from scripts.utils.run_json import bundle_version

NAME = "brats_mri_panet_segmentation"
SERIES_NUMBER = 9000  # far from the numbers that scanners give
# The standard wants these in the object, and lets them be empty. Anonymization removes some of them.
MAY_BE_EMPTY = (
    "PatientID",
    "PatientName",
    "PatientBirthDate",
    "PatientSex",
    "AccessionNumber",
    "StudyID",
    "StudyDate",
    "StudyTime",
)


def check_source(image: str | Path) -> None:
    """Check, before anything is segmented, that an object can be written for an image."""
    if not is_dicom(image):
        raise InputError(f"{image}: no DICOM file; leave out --dicom-seg, which needs DICOM series as input.")
    if importlib.util.find_spec("highdicom") is None:
        raise InputError("--dicom-seg needs the package highdicom; install it (pip install highdicom).")
    import pydicom

    if "FrameOfReferenceUID" not in pydicom.dcmread(image, stop_before_pixels=True):
        raise InputError(
            f"{image}: no FrameOfReferenceUID, so an object could not be laid over it; export the series with it, or "
            "leave out --dicom-seg."
        )


def save_dicom_seg(label_map: str | Path, image: str | Path, et_label: int, path: str | Path) -> None:
    """Write a label map as a DICOM Segmentation object, at ``path``, with one segment for each part of the tumor.

    Args:
        label_map: file of the label map, in the grid of ``image``.
        image: a file of the DICOM series that the label map belongs to. ``check_source`` accepts it.
        et_label: value of ET in the label map.

    Raises:
        InputError: the label map is empty, or its grid is another.
    """
    import highdicom
    import pydicom
    from highdicom.seg import Segmentation, SegmentDescription
    from pydicom.sr.codedict import codes

    files, _ = arranged(series_of(image))
    label_image = read_image(label_map)
    labels = voxels_of(label_image, label_map)
    slices = [pydicom.dcmread(file) for file in files]
    for data in slices:
        for name in MAY_BE_EMPTY:
            if name not in data:
                setattr(data, name, "")
    check_grid(str(label_map), label_image, str(image), read_header(image))
    algorithm = highdicom.AlgorithmIdentificationSequence(
        NAME, family=codes.cid7162.ArtificialIntelligence, version=bundle_version()
    )
    parts = ((CORE, CORE_LABEL, "Necrosis"), (EDEMA, EDEMA_LABEL, "Edema"), (ENHANCING, et_label, "Neoplasm"))
    present = [(part, value, code) for part, value, code in parts if (labels == value).any()]
    if not present:
        raise InputError(f"{label_map}: no tumor was found, so there is no segment to write.")
    segments = [
        SegmentDescription(
            segment_number=number,
            segment_label=part.name,
            segmented_property_category=codes.SCT.MorphologicallyAbnormalStructure,
            segmented_property_type=getattr(codes.SCT, code),
            algorithm_type="AUTOMATIC",
            algorithm_identification=algorithm,
        )
        for number, (part, _, code) in enumerate(present, 1)
    ]
    # A frame of the object is a slice of the series: rows first.
    masks = np.stack([labels == value for _, value, _ in present], axis=-1).transpose(2, 1, 0, 3).astype(np.uint8)
    found = Segmentation(
        source_images=slices,
        pixel_array=masks,
        segmentation_type="BINARY",
        segment_descriptions=segments,
        series_instance_uid=highdicom.UID(),
        series_number=SERIES_NUMBER,
        sop_instance_uid=highdicom.UID(),
        instance_number=1,
        manufacturer=NAME,
        manufacturer_model_name=NAME,
        software_versions=bundle_version(),
        device_serial_number="none",
        series_description="Brain tumor segmentation",
    )
    with replacing(path) as temporary:
        found.save_as(temporary)
