# Copyright (c) the brats_mri_panet_segmentation authors
# SPDX-License-Identifier: Apache-2.0
"""The anatomy of a template, deformed at random, as a base of varied phantoms beside the drawn anatomy.

The template is ICBM 2009a nonlinear symmetric, an average of 152 healthy adults: maps of gray and of white matter, and
a brain without skull, at 1 mm (Fonov et al., NeuroImage 54, 2011). The package nilearn holds it. nilearn need not be
imported, and none of it comes with this bundle. The template has terms of its own:

    Copyright (C) 1993-2004 Louis Collins, McConnell Brain Imaging Centre, Montreal Neurological Institute, McGill
    University. Permission to use, copy, modify, and distribute this software and its documentation for any purpose and
    without fee is hereby granted, provided that the above copyright notice appear in all copies. The authors and McGill
    University make no representations about the suitability of this software for any purpose. It is provided "as is"
    without express or implied warranty.
"""

import functools
import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import numpy.typing as npt
from scipy import ndimage
from scripts.lab.phantoms.anatomy import (
    HALF,
    STEP,
    Float,
    Head,
    Mask,
    PhantomLesion,
    Tissue,
    grid_points,
    push_aside,
    ramp,
    signed_distance,
    smooth_noise,
    upsample,
)
from scripts.utils.errors import InputError

FILES = "mni_icbm152_{}_tal_nlin_sym_09a_converted.nii.gz"
# Where the center of the phantoms' box lies in the template's coordinates (RAS), mm.
CENTER = (0.0, -18.0, 8.0)


@dataclass(frozen=True)
class Template:
    """The template's maps at 1 mm, and the affine from voxels to coordinates (RAS, mm)."""

    gray: Float
    white: Float
    brain: Float
    affine: npt.NDArray[np.float64]

    def at(self, volume: Float, point: list[Float]) -> Float:
        """Values of a map at coordinates of the phantoms' box (x to the left, y to the front, z up), mm."""
        place = [-point[0] + CENTER[0], point[1] + CENTER[1], point[2] + CENTER[2]]
        back = np.linalg.inv(self.affine)
        index = [sum(back[row, axis] * place[axis] for axis in range(3)) + back[row, 3] for row in range(3)]
        found: Float = ndimage.map_coordinates(volume, index, order=1, mode="constant").astype(np.float32)
        return found


@functools.lru_cache(maxsize=1)
def load_template() -> Template:
    """Read the template from the package nilearn.

    Raises:
        InputError: nilearn is not installed, or it does not hold the template.
    """
    found = importlib.util.find_spec("nilearn")
    if found is None or found.origin is None:
        raise InputError(
            "The template is in the package nilearn, which is absent; pip install --no-deps nilearn==0.14.1."
        )
    folder = Path(found.origin).parent / "datasets" / "data"
    volumes: list[Float] = []
    affine: Any = None
    for name in ("gm", "wm", "t1"):
        path = folder / FILES.format(name)
        if not path.is_file():
            raise InputError(f"{path}: no such file; pip install --no-deps nilearn==0.14.1, which holds the template.")
        image: Any = nib.load(path)  # type: ignore[attr-defined]
        volumes.append(np.asarray(image.dataobj, dtype=np.float32) / np.float32(255))
        affine = image.affine
    brain = np.asarray(ndimage.binary_fill_holes(volumes[2] > 0), dtype=np.float32)
    return Template(volumes[0], volumes[1], brain, affine)


def shape_template(rng: np.random.Generator, template: Template) -> Head:
    """Deform the template at random: its size, its tilt, its shape at large and its folds."""
    point = [
        p / np.float32(s)
        for p, s in zip(grid_points(), rng.uniform((0.92, 0.92, 0.94), (1.08, 1.06, 1.06)), strict=True)
    ]
    for (first, second), angle in zip(((0, 1), (0, 2), (1, 2)), rng.normal(0, 0.06, 3), strict=True):
        cosine, sine = np.float32(np.cos(angle)), np.float32(np.sin(angle))
        a, b = point[first], point[second]
        point[first], point[second] = cosine * a + sine * b, cosine * b - sine * a
    large, small = rng.uniform(1.5, 3.5), rng.uniform(0.3, 1.5)
    point = [
        p + np.float32(large) * smooth_noise(rng, 70.0) + np.float32(small) * smooth_noise(rng, 22.0) for p in point
    ]
    brain = brain_mask(template, point)
    _, y, z = (p + np.float32(c) for p, c in zip(point, CENTER, strict=True))
    cerebellum: Mask = (z < -8 - 0.30 * (y + 40)) & (y < -32)
    stem: Mask = (np.abs(point[0]) < 22) & (z < -8) & (y > -50) & (y < -5)
    distance = ndimage.gaussian_filter(signed_distance(brain, STEP), 0.8)
    beside = np.full(HALF, -20, np.float32)  # these parts are masks here, which hold no lesion
    return Head(
        point=point,
        brain=distance,
        cerebrum=brain & ~cerebellum & ~stem,
        temporal=beside,
        cerebellum=np.where(cerebellum, np.float32(5), beside),
        stem=np.where(stem, np.float32(5), beside),
    )


def brain_mask(template: Template, point: list[Float]) -> Mask:
    """The brain on the 2 mm grid. Nothing of it touches the border of the grid."""
    mask: Mask = template.at(template.brain, point) > 0.5
    for face in range(3):
        np.moveaxis(mask, face, 0)[[0, -1]] = False
    return mask


def template_tissue(rng: np.random.Generator, template: Template, head: Head, lesions: list[PhantomLesion]) -> Tissue:
    """The template's tissues on the 1 mm box, which the lesions push aside.

    The average of many brains is blurred, so the shares of the tissues are made sharper by a random amount.
    """
    point = push_aside(head.point, lesions)
    brain: Mask = upsample(brain_mask(template, point).astype(np.float32)) > 0.5
    fine = [upsample(p) for p in point]
    gray, white = template.at(template.gray, fine), template.at(template.white, fine)
    sharp, dry = np.float32(rng.uniform(1.2, 2.6)), np.float32(rng.uniform(0, 0.25))
    solid = gray + white
    csf = np.where(brain, np.clip((1 - solid - dry) * sharp, 0, 1), np.float32(1)).astype(np.float32)
    white = (1 - csf) * np.clip((white / (solid + np.float32(1e-3)) - np.float32(0.5)) * sharp + np.float32(0.5), 0, 1)
    depth = ndimage.distance_transform_edt(brain).astype(np.float32)
    parts, _ = ndimage.label((csf > 0.5) & (depth > 18) & (np.abs(fine[0]) < 45))
    sizes = np.bincount(parts.ravel())
    sizes[0] = 0
    wall = signed_distance((sizes > 600)[parts], 1.0)  # deep fluid is in the ventricles
    # The hemispheres join through the corpus callosum only.
    joined = ramp(np.abs(fine[2]) - np.float32(24), 6)
    return Tissue(
        brain=brain,
        csf=csf,
        gray=1 - csf - white,
        white=white,
        depth=depth,
        ventricle=wall,
        choroid=np.minimum(wall - 1, 4 - np.abs(np.abs(fine[0]) - 22)),
        cerebrum=upsample(head.cerebrum.astype(np.float32)),
        across=(2 * ramp(fine[0], 2) - 1) * joined,
    )
