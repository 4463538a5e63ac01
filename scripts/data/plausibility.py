# Copyright (c) the brats_mri_panet_segmentation authors
# SPDX-License-Identifier: Apache-2.0
"""Doubts about images that can be read but may not be what their names say.

The limits were set on 76 real cases and on phantoms of each difficulty (docs/reference.md has the rates). All doubts
are warnings, apart from one image under two names.
"""

import itertools
from collections.abc import Mapping
from functools import reduce

import nibabel as nib
import numpy as np
from scipy import ndimage
from scipy.stats import rankdata
from scripts.brats import SEQUENCE_TITLES
from scripts.data.findings import Findings

# A brain has 1 to 1.8 liters, and phantoms up to 2.6. A head has 3 and more.
LARGEST_BRAIN_ML = 2800.0
# Tissue brighter than this share of the brain, from the darkest voxel on, beyond a gap of this width round the brain.
# In real brains it has at most 11 ml; the scalp over the crown of the head alone has 66.
BRIGHT_SHARE, GAP_MM, LARGEST_SHELL_ML = 0.3, 4.0, 20.0
# The brain holds together after its bright tissue has shrunk by this much. Thin bridges to a scalp are gone then.
BRIDGE_MM = 3.0
# Sequences of one case have the same brain mask up to 0.2 % of the brain.
LARGEST_MASK_DIFFERENCE = 0.05
LARGEST_SHARE_OUTSIDE = 0.01
# The lowest fifth of a real brain, with the cerebellum, lies at least 10 % of its length behind its center. In a turned
# head it lies at most 5.9 % behind it.
LEAST_SHIFT_BACK = 0.06
# Exchanged sequences of a real case fit better by 0.28 and more when they are exchanged back.
LEAST_GAIN = 0.2
# T1 with contrast agent, divided by T1: in ET at least 1.01 times as much as elsewhere in the brain.
LEAST_ENHANCEMENT = 0.9
# A correlation of ranks over this many voxels is exact enough.
SAMPLES = 40_000


def doubt_images(
    found: Findings, images: Mapping[str, np.ndarray], files: Mapping[str, str], first: nib.Nifti1Image
) -> np.ndarray:
    """Add to ``found`` what is doubtful about the images of a case.

    ``images`` are the voxels by sequence, on one grid, without those that could not be read. ``first`` is an image of
    the case, whose header gives the grid.

    Returns:
        The brain: the voxels in which an image is not 0, bool of shape (*size).
    """
    twice = [pair for pair in itertools.combinations(images, 2) if np.array_equal(images[pair[0]], images[pair[1]])]
    for one, other in twice:
        found.add(
            "same image twice",
            f"{files[other]}: {SEQUENCE_TITLES[other]} is the same image as {SEQUENCE_TITLES[one]} ({files[one]}); "
            "export the right sequence.",
        )
    masks: dict[str, np.ndarray] = {}
    for sequence, voxels in images.items():
        background = background_of(voxels)
        masks[sequence] = voxels != background
        if background:
            found.add(
                "background is not 0",
                f"{files[sequence]}: its background is {background:g}; subtract this value from every voxel, so that "
                "it is exactly 0 outside the brain.",
            )
    # Masks are combined one by one. A stack of them would have another order in memory, which is slow.
    votes = reduce(np.add, (mask.astype(np.uint8) for mask in masks.values()))
    common = np.asarray(votes * 2 > len(masks))
    size = max(int(common.sum()), 1)
    for sequence, mask in masks.items():
        if (share := float((mask ^ common).sum() / size)) > LARGEST_MASK_DIFFERENCE:
            found.add(
                "different brains",
                f"{files[sequence]}: {share:.0%} of its brain (the voxels that are not 0) differs from the other "
                "sequences'; use one brain mask for all.",
            )
    volume = float(common.sum() * abs(np.linalg.det(first.affine[:3, :3])) / 1000)
    sequence = next((name for name in ("t1", "t1ce") if name in images), next(iter(images)))
    skull = ""
    if volume > LARGEST_BRAIN_ML:
        skull = f"{next(iter(files.values()))}: {volume / 1000:.1f} liters are not 0, which is more than a brain"
    elif (shell := shell_ml(images[sequence], common, first.affine)) > LARGEST_SHELL_ML:
        skull = (
            f"{files[sequence]}: {shell:.0f} ml of bright tissue lie beyond a dark gap round the brain, like a scalp"
        )
    if skull:
        found.add("skull not stripped", f"{skull}; strip the skull and set the background to exactly 0.")
    elif (shift := shift_back(common, first.affine)) is not None and shift < LEAST_SHIFT_BACK:
        found.add(
            "contradicting header",
            f"{next(iter(files.values()))}: by its header, the lowest part of the brain lies too far in front, so the "
            "head may be turned round or upside down; correct the affine.",
        )
    if not twice and not skull:
        doubt_sequences(found, images, masks, files)
    return np.asarray(votes > 0)


def background_of(voxels: np.ndarray) -> float:
    """The value that all eight corners of an image have and that a fifth of its voxels have; else 0."""
    corners = voxels[np.ix_((0, -1), (0, -1), (0, -1))]
    value = float(corners.flat[0])
    if value and (corners == value).all() and (voxels == value).mean() > 0.2:
        return value
    return 0.0


def shell_ml(image: np.ndarray, inside: np.ndarray, affine: np.ndarray) -> float:
    """Volume of the bright tissue beyond a gap round the brain, in ml, which a stripped brain has hardly any of.

    ``image`` is of shape (*size), and ``inside``, bool, says where it is not background. Bone is dark in every
    sequence, and so is fluid in T1. Therefore a scalp is bright tissue that does not hang together with the brain.
    """
    if inside.sum() < 5000:
        return 0.0
    spacing = nib.affines.voxel_sizes(affine)
    steps = [max(round(2 / mm), 1) for mm in spacing]
    (box,) = ndimage.find_objects(inside.astype(np.uint8))
    coarse = tuple(slice(side.start, side.stop, step) for side, step in zip(box, steps, strict=True))
    spacing = spacing * steps
    values, mask = image[coarse].astype(np.float32), np.pad(inside[coarse], 1)
    depth = ndimage.distance_transform_edt(mask, sampling=spacing)[1:-1, 1:-1, 1:-1]
    center, mask = depth > 0.6 * depth.max(), mask[1:-1, 1:-1, 1:-1]
    low, middle = float(np.percentile(values[mask], 1)), float(np.median(values[center]))
    bright = mask & (values > low + BRIGHT_SHARE * (middle - low))
    thick = ndimage.distance_transform_edt(np.pad(bright, 1), sampling=spacing)[1:-1, 1:-1, 1:-1] > BRIDGE_MM
    parts, count = ndimage.label(thick)
    in_center = np.bincount(parts[center & thick], minlength=count + 1)
    if not in_center[1:].any():
        return 0.0
    brain = parts == 1 + int(in_center[1:].argmax())
    far = ndimage.distance_transform_edt(~brain, sampling=spacing) > BRIDGE_MM + GAP_MM
    return float((bright & far).sum() * np.prod(spacing) / 1000)


def shift_back(brain: np.ndarray, affine: np.ndarray) -> float | None:
    """How far the lowest fifth of a brain, bool of shape (*size), lies behind its center, as a share of its length.

    The cerebellum is there, so the shift is positive if the affine is right. None if the brain is too small to tell.
    """
    if brain.sum() < 5000:
        return None
    to_ras = nib.orientations.io_orientation(affine)
    turned = nib.orientations.apply_orientation(brain, to_ras)
    heights = np.flatnonzero(turned.any((0, 1)))
    depths = np.flatnonzero(turned.any((0, 2)))
    low = turned[:, :, heights[0] : heights[0] + max(round(len(heights) / 5), 1)]

    def center(mask: np.ndarray) -> float:
        return float(np.average(np.arange(mask.shape[1]), weights=mask.sum((0, 2))))

    return (center(turned) - center(low)) / int(depths[-1] - depths[0] + 1)


def doubt_sequences(
    found: Findings, images: Mapping[str, np.ndarray], masks: Mapping[str, np.ndarray], files: Mapping[str, str]
) -> None:
    """Add the doubt that a T2 image is in another sequence's place.

    Fluid is bright in T2 alone, so T2 is less like both T1 images than they are like each other and like FLAIR.
    """
    if len(images) < 4:
        return
    everywhere = reduce(np.logical_and, masks.values())
    inside = np.flatnonzero(everywhere)
    inside = inside[:: max(len(inside) // SAMPLES, 1)]
    if len(inside) < 1000:
        return
    places = np.unravel_index(inside, everywhere.shape)
    names = list(images)
    correlations = np.corrcoef([rankdata(voxels[places]) for voxels in images.values()])

    def like(one: str, other: str) -> float:
        return float(correlations[names.index(one), names.index(other)])

    def fit(t2: str) -> float:
        # How well the images fit if T2 and the sequence of this name were exchanged; "t2" leaves all in place.
        t1, t1ce, flair = ("t2" if sequence == t2 else sequence for sequence in ("t1", "t1ce", "flair"))
        of_flair, of_t2 = (like(t1, other) + like(t1ce, other) for other in (flair, t2))
        return like(t1, t1ce) + of_flair / 2 - of_t2

    swapped = max(("t2", "t1", "t1ce", "flair"), key=fit)
    if fit(swapped) - fit("t2") > LEAST_GAIN:
        found.add(
            "likely swapped sequences",
            f"{files[swapped]}: by its contrast, this may be T2, and {files['t2']} may be {SEQUENCE_TITLES[swapped]}; "
            "look at both, and exchange their names if so.",
        )


def doubt_label(
    found: Findings,
    images: Mapping[str, np.ndarray],
    files: Mapping[str, str],
    brain: np.ndarray,
    label: np.ndarray,
    path: str,
    et: int,
) -> None:
    """Add to ``found`` what is doubtful about a label map, (*size), in the file ``path``, with the value ``et`` of ET.

    The brain is the one that ``doubt_images`` returns.
    """
    tumor = label != 0
    if tumor.any() and (share := float((tumor & ~brain).sum() / tumor.sum())) > LARGEST_SHARE_OUTSIDE:
        found.add(
            "label outside the brain",
            f"{path}: {share:.0%} of the tumor lies where all images are 0; check that it belongs to this case.",
        )
    if not {"t1", "t1ce"} <= set(images):
        return
    valid = (images["t1"] > 0) & (images["t1ce"] > 0)
    enhancing, other = valid & (label == et), valid & ~tumor
    if enhancing.sum() < 200 or other.sum() < 1000:
        return
    step = max(int(other.sum()) // SAMPLES, 1)
    gains = []
    for part, pace in ((enhancing, 1), (other, step)):
        places = np.unravel_index(np.flatnonzero(part)[::pace], part.shape)
        gains.append(float(np.median(images["t1ce"][places] / images["t1"][places].astype(np.float32))))
    if gains[0] < LEAST_ENHANCEMENT * gains[1]:
        found.add(
            "likely swapped sequences",
            f"{files['t1ce']}: the enhancing tumor of {path} is darker in it than in {files['t1']}; they may be "
            "exchanged: look at both, and exchange their names if so.",
        )
