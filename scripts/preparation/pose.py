# Copyright (c) the brats_mri_panet_segmentation authors
# SPDX-License-Identifier: Apache-2.0
"""The pose of BraTS's images: how a head lies in them, by way of a template that a maintained package holds.

BraTS's own template (SRI24) is in no such package. A fixed matrix takes its pose to that of the ICBM 2009a template
(Fonov et al., NeuroImage 54, 2011), which nilearn holds; both were registered to each other once.
"""

import functools

import nibabel as nib
import numpy as np
from scipy import ndimage
from scripts.preparation.grids import RAS_TO_LPS, Array, Volume, resample
from scripts.preparation.packages import TEMPLATE, file_of
from scripts.preparation.registration import FAST_MM, coarse, rigid

# The grid of BraTS's images.
SHAPE = (240, 240, 155)
AFFINE = np.array([[-1.0, 0, 0, 0], [0, -1, 0, 239], [0, 0, 1, 0], [0, 0, 0, 1]])
# From a point of BraTS's pose to one of the template, mm in LPS: a turn of 12.1 degrees.
BRATS_TO_TEMPLATE_LPS = np.array(
    [
        [0.9999856, 0.00285766, 0.00454323, -119.12904961],
        [-0.0018432, 0.97783778, -0.20935586, 139.04261714],
        [-0.00504081, 0.20934447, 0.97782896, -39.43343057],
        [0.0, 0.0, 0.0, 1.0],
    ]
)
BRATS_TO_TEMPLATE = RAS_TO_LPS @ BRATS_TO_TEMPLATE_LPS @ RAS_TO_LPS


@functools.lru_cache(maxsize=1)
def load_template() -> Volume:
    """The template, a brain without skull, at 1 mm."""
    image = nib.nifti1.load(file_of(*TEMPLATE))
    return Volume(np.asarray(image.dataobj, np.float32), image.affine)


def center_of(mask: Array, affine: Array) -> Array:
    """The center of a mask, mm, (3,)."""
    place: Array = affine[:3, :3] @ ndimage.center_of_mass(mask) + affine[:3, 3]
    return place


def to_template(head: Volume, brain: Array) -> tuple[Array, float]:
    """The rigid matrix from mm of a head to mm of the template, and how well the brain's shape fits the template's.

    The template is an average, so a rigid registration to it is turned by up to 28 degrees: the brain's own shape
    decides too much. An affine one finds the shape, and its rotation is that of the head (2 to 6 degrees).

    Args:
        head: on a ``coarse`` grid of 4 mm, 0 outside the brain.
        brain: mask of its brain.

    Returns:
        The matrix, and the Dice of the brain with the template's after an affine registration, in the field of view.
    """
    template = load_template()
    shape = template.like(ndimage.binary_fill_holes(template.voxels > 0).astype(np.float32))
    near = ndimage.binary_dilation(brain, iterations=3)
    start = np.eye(4)
    start[:3, 3] = center_of(shape.voxels, shape.affine) - center_of(brain, head.affine)
    affine = rigid(head, coarse(template, FAST_MM), start, near, freedom=12)
    there = resample(shape, head.affine, head.voxels.shape, affine).voxels > 0.5
    dice = round(float(2 * (there & brain).sum() / max(there.sum() + brain.sum(), 1)), 4)
    left, _, right = np.linalg.svd(affine[:3, :3])
    center = center_of(brain, head.affine)
    matrix = np.eye(4)
    matrix[:3, :3] = left @ right
    matrix[:3, 3] = affine[:3, :3] @ center + affine[:3, 3] - matrix[:3, :3] @ center
    return matrix, dice
