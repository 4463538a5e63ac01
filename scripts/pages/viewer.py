# Copyright (c) the brats_mri_panet_segmentation authors
# SPDX-License-Identifier: Apache-2.0
"""What the viewer of a page shows of a patient: sequences and label maps, cut to the brain and in few gray levels."""

import base64
import gzip
from typing import Any

import nibabel as nib
import numpy as np
import numpy.typing as npt
from scripts.pictures.patient import Patient
from scripts.pictures.planes import affine_of_box, box_of, gray_window

# Lesions are brightest in it, so the viewer begins with it.
FIRST_SEQUENCE = "flair"
# Noise hardly compresses. With 64 gray levels a case takes a third less than with 256, and looks the same.
GRAY_STEP = 4

Bytes = npt.NDArray[np.uint8]


def viewer_content(patient: Patient) -> dict[str, Any]:
    """What ``assets/viewer.js`` reads of a patient.

    Returns:
        The name of the ``first`` sequence, the ``size`` of the volumes, the ``center`` (the slices of the preview),
        the ``places`` of all slices in the file and in mm, by axis, and ``encoded`` volumes in LPS order: the
        ``images`` by sequence, and the ``maps`` "reference" and "prediction", whose parts are numbered from 1 in the
        order of ``SUB_REGIONS``.
    """
    brain = patient.brain
    cut = box_of(patient.drawn)
    affine = affine_of_box(patient.affine, cut)
    given = {"reference": patient.reference, "prediction": patient.prediction}
    maps = {name: parts[cut] for name, parts in given.items() if parts is not None}
    return {
        "first": FIRST_SEQUENCE if FIRST_SEQUENCE in patient.images else next(iter(patient.images)),
        "size": brain[cut].shape,
        "center": [at - s.start for at, s in zip(patient.slices, cut, strict=True)],
        "places": [[", ".join(patient.place(axis, at)) for at in range(s.start, s.stop)] for axis, s in enumerate(cut)],
        "images": {name: encoded(gray_values(image, brain)[cut], affine) for name, image in patient.images.items()},
        "maps": {name: encoded(parts, affine) for name, parts in maps.items()},
    }


def gray_values(image: npt.NDArray[Any], brain: npt.NDArray[np.bool_]) -> Bytes:
    """Gray values from 0 to 255 in steps of ``GRAY_STEP``, by the window of the values in the brain (``gray_window``).

    Example:
        >>> image = np.arange(0.0, 1001.0)
        >>> gray_values(image, image > 0)[[0, 100, 500, 1000]].tolist()
        [0, 24, 128, 255]
    """
    low, high = gray_window(image, brain)
    scaled = np.clip((image - low) / max(high - low, float(np.finfo(np.float32).tiny)), 0, 1) * 255
    return np.minimum(np.round(scaled / GRAY_STEP) * GRAY_STEP, 255).astype(np.uint8)


def encoded(volume: Bytes, affine: npt.NDArray[np.float64]) -> str:
    """A volume as base64 of a gzip file of NIfTI. The same volume gives the same text."""
    nifti = nib.Nifti1Image(volume, affine)
    return base64.b64encode(gzip.compress(nifti.to_bytes(), mtime=0)).decode("ascii")
