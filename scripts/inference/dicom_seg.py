# Copyright (c) the brats_mri_panet_segmentation authors
# SPDX-License-Identifier: Apache-2.0
"""Label maps as DICOM Segmentation objects, which a viewer shows over the series that was segmented."""

import importlib.util
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scripts.brats import CORE, CORE_LABEL, EDEMA, EDEMA_LABEL, ENHANCING
from scripts.data.dicom import arranged, is_dicom, read_dataset, series_of
from scripts.data.images import read_header, read_image, voxels_of
from scripts.data.placement import check_grid
from scripts.utils.errors import InputError, one_line
from scripts.utils.files import replacing
from scripts.utils.run_json import bundle_version

NAME = "brats_mri_panet_segmentation"
SERIES_NUMBER = 9000  # far from the numbers that scanners give
USE = "for research only"
LONGEST_TEXT = 64  # of a short description
# The segments, numbered from 1, with their codes in SNOMED.
PARTS = ((CORE, "Necrosis"), (EDEMA, "Edema"), (ENHANCING, "Neoplasm"))
# What the object refers to.
NEEDED = ("FrameOfReferenceUID", "SOPInstanceUID", "SOPClassUID")
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
    """Check, before anything is segmented, that an object can be written for an image.

    Raises:
        InputError: the image is no DICOM series, highdicom is missing, or the headers lack what an object needs.
    """
    if not is_dicom(image):
        raise InputError(f"{image}: no DICOM file; leave out --dicom-seg, which needs DICOM series as input.")
    if importlib.util.find_spec("highdicom") is None:
        raise InputError("--dicom-seg needs the package highdicom; install it (pip install highdicom).")
    slices = _slices(image)
    masks = np.zeros((len(slices), slices[0].Rows, slices[0].Columns, len(PARTS)), np.uint8)
    masks[0, 0, 0] = 1
    _segmentation(slices, masks, "", image)


def save_dicom_seg(
    label_map: str | Path, image: str | Path, et_label: int, path: str | Path, weights: Mapping[str, Any]
) -> None:
    """Write a label map as a DICOM Segmentation object, at ``path``.

    Its segments are 1 core, 2 edema and 3 enhancing tumor, whether the label map holds them or not.

    Args:
        label_map: file of the label map, in the grid of ``image``.
        image: a file of the DICOM series that the label map belongs to. ``check_source`` accepts it.
        et_label: value of ET in the label map.
        weights: ``file`` and ``checksum`` of the weights, for the descriptions.

    Raises:
        InputError: the grid of the label map is another.
    """
    slices = _slices(image)
    label_image = read_image(label_map)
    labels = voxels_of(label_image, label_map)
    check_grid(str(label_map), label_image, str(image), read_header(image))
    # A frame of the object is a slice of the series: rows first.
    values = (CORE_LABEL, EDEMA_LABEL, et_label)
    masks = np.stack([labels == value for value in values], axis=-1).transpose(2, 1, 0, 3).astype(np.uint8)
    file = Path(weights["file"])
    name = f"{file.parent.name}/{file.name} {weights['checksum'][:8]}"
    found = _segmentation(slices, masks, f"; weights {name}", image)
    with replacing(path) as temporary:
        found.save_as(temporary)


def _slices(image: str | Path) -> list[Any]:
    """The slices of a series, in order, with the elements that an object needs and that follow from others."""
    files, affine = arranged(series_of(image))
    slices = [read_dataset(file) for file in files]
    for data in slices:
        for name in MAY_BE_EMPTY:
            if name not in data:
                setattr(data, name, "")
        if not data.get("SliceThickness"):
            data.SliceThickness = float(np.linalg.norm(affine[:3, 2]))
    return slices


def _segmentation(slices: Sequence[Any], masks: np.ndarray, told: str, image: str | Path) -> Any:
    import highdicom
    from highdicom.color import CIELabColor
    from highdicom.seg import Segmentation, SegmentDescription
    from pydicom.sr.codedict import codes

    for name in NEEDED:
        for data in slices:
            if not data.get(name):
                raise InputError(
                    f"{data.filename}: no {name}, without which no DICOM Segmentation object can be written; export "
                    "the series with it, or leave out --dicom-seg."
                )
    description = f"{USE}{told}"
    algorithm = highdicom.AlgorithmIdentificationSequence(
        NAME, family=codes.cid7162.ArtificialIntelligence, version=bundle_version(), parameters={"use": description}
    )
    segments = [
        SegmentDescription(
            segment_number=number,
            segment_label=part.name,
            segmented_property_category=codes.SCT.MorphologicallyAbnormalStructure,
            segmented_property_type=getattr(codes.SCT, code),
            algorithm_type="AUTOMATIC",
            algorithm_identification=algorithm,
            display_color=CIELabColor.from_string(part.color),
        )
        for number, (part, code) in enumerate(PARTS, 1)
    ]
    for segment in segments:
        segment.SegmentDescription = description
    try:
        return Segmentation(
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
            content_label="BRAIN_TUMOR",
            content_description=description[:LONGEST_TEXT],
            series_description=f"Brain tumor, {USE}",
        )
    # highdicom reads many elements, and says in many ways that one is missing or odd.
    except Exception as error:
        raise InputError(
            f"{image}: no DICOM Segmentation object can be made of its series ({one_line(error)}); export the series "
            "again, or leave out --dicom-seg."
        ) from error
