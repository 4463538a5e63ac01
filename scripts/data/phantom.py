# Copyright (c) the brats_mri_panet_segmentation authors
# SPDX-License-Identifier: Apache-2.0
"""Synthetic glioma patients in the layout and geometry of BraTS 2020.

The phantoms stand in for the real cohort when no data are at hand. Every patient is drawn from
`numpy.random.default_rng([seed, index])` alone. So a case depends neither on the size of the cohort nor on the number
of workers.

Smooth fields (signed distances, fold phase, noise) on a 2 mm grid describe the anatomy. The grid covers the box of the
brain. The fields are interpolated to 1 mm and only then cut into tissues, which keeps edges fine and the work small.
Coordinates are millimeters from the center of the box: x to the left, y to the front, z up.
"""

from __future__ import annotations

import functools
import gzip
import itertools
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import numpy.typing as npt
from scipy import fft, ndimage
from scripts.brats import BRATS_2020, CORE_LABEL, EDEMA_LABEL
from scripts.errors import InputError

Float = npt.NDArray[np.float32]
Mask = npt.NDArray[np.bool_]
Int16 = npt.NDArray[np.int16]
Images = dict[str, Int16]  # the keys are modalities

GENERATOR_VERSION = 1
# Older phantom files are recognized by this text, so its spelling must stay.
PHANTOM_DESCRIPTION = "synthetic brain tumour phantom, not a patient"
# The random numbers of the modalities are drawn in this order, which is part of the generator's version.
MODALITIES = ("t1", "t1ce", "t2", "flair")
GRID = (240, 240, 155)
AFFINE: npt.NDArray[np.float64] = np.array(
    [[-1.0, 0.0, 0.0, 0.0], [0.0, -1.0, 0.0, 239.0], [0.0, 0.0, 1.0, 0.0], [0.0, 0.0, 0.0, 1.0]]
)
COHORT_FOLDER = "MICCAI_BraTS2020_TrainingData"
MANIFEST = "phantoms.json"

_HALF = (78, 96, 72)  # the 2 mm grid
_BOX = (156, 192, 144)  # the same extent at 1 mm
_STEP = 2.0
_BLUR = 0.6  # standard deviation of the point spread, mm


@dataclass(frozen=True)
class Difficulty:
    """Difficulty of a cohort. Intensities are in units of the patient's white matter (about 1)."""

    name: str
    volume_cm3: tuple[float, float]  # range of the whole tumor's volume, which is log-uniform
    contrast: float  # contrast between lesion and normal tissue, 1 = clearly visible
    noise: float  # standard deviation of the noise before the point spread
    bias: float  # standard deviation of the logarithm of the bias field
    mimics: float  # volume of FLAIR-bright normal tissue, in whole-tumor volumes
    vessels: float  # radius of T1ce-bright vessels, mm
    rim: int  # least thickness of the enhancing rim, mm
    dice_ceiling: float  # best Dice that a threshold on one modality may reach (see `fade_until_hidden`)


DIFFICULTIES = {
    "demo": Difficulty("demo", (15.0, 150.0), 1.0, 0.035, 0.09, 0.7, 0.9, 3, 0.45),
    "hard": Difficulty("hard", (10.0, 90.0), 0.8, 0.07, 0.14, 1.1, 1.3, 2, 0.45),
}


# ---------------------------------------------------------------------------------------------------- smooth fields


@functools.lru_cache(maxsize=1)
def _frequency() -> Float:
    """Spatial frequency (cycles per mm) of every bin of a real FFT over the 2 mm grid."""
    fx, fy = (fft.fftfreq(n, _STEP)[:, None] for n in _HALF[:2])
    fz = fft.rfftfreq(_HALF[2], _STEP)
    radius: Float = np.sqrt(fx[:, None] ** 2 + fy[None] ** 2 + fz[None, None] ** 2).astype(np.float32)
    return radius


def smooth_noise(rng: np.random.Generator, wavelength: float, bandwidth: float | None = None) -> Float:
    """Gaussian noise of mean 0 and deviation 1 on the 2 mm grid.

    With a bandwidth (relative, about 0.3) all waves measure about `wavelength` mm. Without a bandwidth only waves that
    are much shorter are removed.
    """
    waves = _frequency() * np.float32(wavelength)
    gain = np.exp(-(waves**2)) if bandwidth is None else np.exp(-(((waves - 1) / np.float32(bandwidth)) ** 2))
    spectrum = fft.rfftn(rng.standard_normal(_HALF, dtype=np.float32)) * gain
    field: Float = fft.irfftn(spectrum, s=_HALF).astype(np.float32)
    field -= field.mean()
    field /= field.std()
    return field


def upsample(field: Float) -> Float:
    """Interpolate linearly from the 2 mm grid to the 1 mm grid."""
    for axis in (2, 1, 0):  # axis 0 comes last, when the array is largest, because its memory layout is best
        size = field.shape[axis]
        near = np.float32(0.75) * field
        before = near + np.float32(0.25) * field.take(np.maximum(np.arange(size) - 1, 0), axis)
        near += np.float32(0.25) * field.take(np.minimum(np.arange(size) + 1, size - 1), axis)
        shape = list(field.shape)
        shape[axis] *= 2
        field = np.stack([before, near], axis + 1).reshape(shape)
    return field


def ramp(distance: Float, width: float = 1.0) -> Float:
    """Share of a voxel that lies beyond distance 0 (mm): 0 well below this distance and 1 well above it."""
    share: Float = np.clip(distance / np.float32(width) + np.float32(0.5), 0, 1)
    return share


def ellipsoid(point: list[Float], center: tuple[float, float, float], radii: tuple[float, float, float]) -> Float:
    """Approximate distance (mm) to the surface of an ellipsoid, positive inside."""
    scaled = [(p - c) / r for p, c, r in zip(point, center, radii, strict=True)]
    inside: Float = (1 - np.sqrt(scaled[0] ** 2 + scaled[1] ** 2 + scaled[2] ** 2)) * min(radii)
    return inside.astype(np.float32)


def tube(point: list[Float], nodes: list[tuple[float, float, float, float]]) -> Float:
    """Distance (mm) to the wall of a tube through nodes (x, y, z, radius), positive inside."""
    best = np.full(_HALF, -np.inf, np.float32)
    for start, end in itertools.pairwise(nodes):
        a, b = np.array(start[:3]), np.array(end[:3])
        along = b - a
        share = sum((p - float(o)) * float(d) for p, o, d in zip(point, a, along, strict=True)) / float(along @ along)
        share = np.clip(share, 0, 1)
        gap = sum((p - float(o) - share * float(d)) ** 2 for p, o, d in zip(point, a, along, strict=True))
        radius = start[3] + share * (end[3] - start[3])
        np.maximum(best, (radius - np.sqrt(gap)).astype(np.float32), out=best)
    return best


# ---------------------------------------------------------------------------------------------------------- anatomy


@dataclass(frozen=True)
class Head:
    """The outer shape of the head. Each array has the shape of the 2 mm grid."""

    point: list[Float]  # coordinates that follow the shape of the head, mm
    brain: Float  # distance to the surface of the brain's envelope, positive inside
    cerebrum: Mask
    temporal: Float
    cerebellum: Float
    stem: Float


@dataclass(frozen=True)
class Lesion:
    """Plan of one tumor."""

    center: tuple[float, float, float]  # mm
    volume: float  # voxels of 1 mm
    core: float  # share of the core in the volume
    necrosis: float  # share of the necrosis in the core


@dataclass(frozen=True)
class Tissue:
    """Tissues on the 1 mm box: masks, shares in 0..1 and distances in mm."""

    brain: Mask
    csf: Float
    gray: Float
    white: Float
    depth: Float  # from the brain's surface and the fissures
    ventricle: Float  # distance to the ventricles' wall, positive inside
    choroid: Float
    cerebrum: Float
    across: Float  # -1 in the right hemisphere, 1 in the left hemisphere, 0 where they join


def grid_points() -> list[Float]:
    """Coordinates of the 2 mm grid in mm: three arrays, which increase to the left, to the front and up."""
    axes = [((np.arange(n, dtype=np.float32) + 0.5) * _STEP - n) for n in _HALF]
    x, y, z = np.meshgrid(*axes, indexing="ij")
    return [x, -y, z]


def shape_head(rng: np.random.Generator) -> Head:
    """Draw the outer shape: cerebrum with temporal lobes, cerebellum, brainstem."""
    size = rng.uniform((0.94, 0.94, 1.00), (1.03, 1.02, 1.08))
    point = [
        (p / np.float32(s) + np.float32(1.3) * smooth_noise(rng, 70.0)).astype(np.float32)
        for p, s in zip(grid_points(), size, strict=True)
    ]
    x, y, z = point
    side: Float = np.abs(x)
    taper = 1 - 0.15 * np.clip(y / 86, -0.3, 1)  # the forehead is narrower than the parietal lobes
    floor = np.where(y > 0, 29, 32).astype(np.float32)
    height = np.where(z > 3, 58, floor)
    hull = (side / (69 * taper)) ** 2.05 + np.abs((y + 1) / 86) ** 2.05 + np.abs((z - 3) / height) ** 2.05
    lobe = ellipsoid([side, y, z + 0.10 * y], (43.0, 3.0, -23.0), (23.0, 45.0, 23.0))
    lobe += np.float32(1.6) * smooth_noise(rng, 28.0)  # without noise the Sylvian fissure would be a neat arc
    cerebellum = np.maximum(
        ellipsoid([side, y, z], (23.0, -47.0, -38.0), (29.0, 35.0, 24.0)),
        ellipsoid([side, y, z], (0.0, -45.0, -37.0), (15.0, 29.0, 24.0)),
    )
    stem = np.maximum(
        tube(point, [(0, -12, -4, 15), (0, -10, -26, 14), (0, -17, -50, 10), (0, -22, -72, 8)]),
        ellipsoid(point, (0.0, -7.0, -36.0), (18.0, 14.0, 14.0)),
    )
    cerebellum = np.where(hull < 1.05, -np.abs(cerebellum), cerebellum).astype(np.float32)
    cerebrum: Mask = (hull < 1) | (lobe > 0)
    union: Mask = cerebrum | (cerebellum > 0) | ((stem > 0) & (z > -61))
    # Closing by 5 mm bridges sulci and cisterns, as a skull-stripping mask does.
    wide = ndimage.distance_transform_edt(~union, sampling=_STEP) < 5
    for face in range(3):  # everything beyond the grid is outside
        np.moveaxis(wide, face, 0)[[0, -1]] = False
    closed = ndimage.distance_transform_edt(wide, sampling=_STEP) > 5
    signed = ndimage.distance_transform_edt(closed, sampling=_STEP) - ndimage.distance_transform_edt(
        ~closed, sampling=_STEP
    )
    brain = ndimage.gaussian_filter(signed.astype(np.float32), 0.8)
    return Head(point, brain, cerebrum, lobe, cerebellum, stem)


def push_aside(point: list[Float], lesions: list[Lesion]) -> list[Float]:
    """Mass effect: every lesion pushes the tissue away.

    Returns:
        For each place, the coordinates that its tissue had before.
    """
    here = grid_points()
    moved = [p.copy() for p in point]
    for lesion in lesions:
        radius = (lesion.volume * 0.75 / np.pi) ** (1 / 3)
        away = [p - np.float32(c) for p, c in zip(here, lesion.center, strict=True)]
        reach = 1.6 * radius
        pull = np.exp(-(away[0] ** 2 + away[1] ** 2 + away[2] ** 2) / (2 * reach**2)) * np.float32(0.28)
        for target, offset in zip(moved, away, strict=True):
            target -= offset * pull
    return moved


def lay_ventricles(point: list[Float], swelling: float) -> Float:
    """Distance (mm) to the wall of the lateral, third and fourth ventricles, positive inside.

    Args:
        point: the coordinates, mm, on the 2 mm grid.
        swelling: length to add to every radius, mm. Ventricles differ much between patients.
    """
    x, y, z = point
    side: Float = np.abs(x)
    # In the frontal plane the bodies look like commas that lean outwards.
    slant: list[Float] = [side - np.float32(0.45) * (z - 14), y, 14 + np.float32(0.72) * (z - 14)]
    body = tube(slant, [(7, 35, 9, 3.0), (8, 24, 13, 5.0), (8, 2, 18, 4.6), (13, -18, 18, 5.0), (24, -34, 9, 6.5)])
    occipital = tube([side, y, z], [(24, -34, 9, 6.5), (24, -46, 5, 4.0), (21, -58, 4, 1.5)])
    low = tube([side, y, z], [(24, -34, 9, 6.0), (33, -24, -8, 3.2), (35, -8, -20, 2.4), (31, 6, -24, 1.2)])
    lateral = np.maximum(np.maximum(body, occipital), low) + swelling
    lateral = np.minimum(lateral, side - 1.2)  # septum pellucidum
    third = np.minimum(1.6 + 0.4 * swelling - side, ellipsoid(point, (0, 0, -3), (20, 15, 13)))
    fourth = ellipsoid(point, (0, -29, -38), (6, 5, 9))
    wall: Float = np.maximum(np.maximum(lateral, third), fourth).astype(np.float32)
    return wall


def lay_nuclei(point: list[Float]) -> Float:
    """Distance (mm) to the surface of caudate, lentiform nucleus and thalamus on both sides, positive inside."""
    x, y, z = point
    side: Float = np.abs(x)
    caudate = tube([side, y, z], [(14, 32, 5, 5.5), (17, 16, 13, 5.0), (20, -8, 19, 3.0), (24, -20, 18, 1.5)])
    lean: Float = (side - np.float32(0.22) * (12 - np.abs(y - 4))).astype(np.float32)
    lentiform = ellipsoid([lean, y, z], (26, 5, 2), (7, 20, 12))
    thalamus = ellipsoid([side + np.float32(0.25) * (y + 12), y, z], (12, -14, 5), (9, 15, 9))
    surface: Float = np.maximum(np.maximum(caudate, lentiform), thalamus)
    return surface


def fold_cortex(rng: np.random.Generator, head: Head, point: list[Float], callosum: Float) -> tuple[Float, Float]:
    """Fold the cerebral cortex.

    Args:
        rng: source of the random numbers.
        head: the outer shape.
        point: the coordinates inside the head after mass effect, mm, on the 2 mm grid.
        callosum: distance to the region where the hemispheres join, positive inside.

    Returns:
        Two distances on the 1 mm box, mm: the distance to the fluid in sulci and fissures (negative in the fluid), and
        the depth below the unfolded surface.
    """
    x, y, z = point
    side: Float = np.abs(x)
    stem = np.where(z < 0, head.stem, np.float32(-9))
    between = np.maximum(callosum, stem)  # there is no falx where this is positive
    medial = np.maximum(27 - side, np.abs(y - 15) - 45)  # there is no Sylvian fissure where this is positive
    falx: Mask = (side < 1.3) & (between < 0)
    sylvian: Mask = (np.abs(head.temporal) < 1.3) & (medial < 0)
    solid: Mask = (head.cerebrum | (head.stem > -1)) & ~falx & ~sylvian & (head.brain > 0)
    depth = ndimage.distance_transform_edt(solid, sampling=_STEP).astype(np.float32)
    depth = ndimage.gaussian_filter(depth, 0.6)

    # Sulci are the zeros of a wave pattern on the surface. Each voxel takes the pattern of its nearest surface.
    inward = np.gradient(ndimage.gaussian_filter(depth, 1.5), _STEP)
    places = [
        index - depth * step * np.float32(0.9 / _STEP)
        for index, step in zip(np.indices(_HALF, np.float32), inward, strict=True)
    ]
    pattern = smooth_noise(rng, float(rng.uniform(19, 22)), 0.42)
    fold = ndimage.map_coordinates(pattern, places, order=1, mode="nearest").astype(np.float32)
    fold = ndimage.gaussian_filter(fold, 0.7)
    slope = np.sqrt(sum(g**2 for g in np.gradient(fold, _STEP)) + np.float32(0.08**2))
    reach = np.clip(12 + np.float32(3.5) * smooth_noise(rng, 35.0), 5, 20)

    depth = upsample(depth)
    beyond = np.maximum(depth - upsample(reach), 0)
    to_sulcus = np.sqrt((upsample(fold) / upsample(slope)) ** 2 + beyond**2)
    width = np.float32(rng.uniform(0.25, 0.7)) * (1 + np.exp(-depth / 4))  # sulci open toward the surface
    to_fluid = np.minimum(to_sulcus - width, depth - 1)
    sheets = np.minimum(
        np.maximum(np.abs(upsample(x)), upsample(between)),
        np.maximum(np.abs(upsample(head.temporal)), upsample(medial)),
    )
    return np.minimum(to_fluid, sheets - np.float32(1.1)), depth


def grow_tissue(rng: np.random.Generator, head: Head, lesions: list[Lesion]) -> Tissue:
    """Fill the head with fluid, gray matter and white matter, which the lesions push aside."""
    x, y, z = push_aside(head.point, lesions)
    x = x + np.float32(0.8) * smooth_noise(rng, 40.0)  # the falx is never quite straight
    point = [x, y, z]
    callosum: Float = (1 - np.sqrt(((y + 2) / 40) ** 2 + ((z - 2) / 27) ** 2)) * 27
    to_fluid, depth = fold_cortex(rng, head, point, callosum)
    csf = ramp(-to_fluid)
    gray = ramp(np.float32(rng.uniform(2.6, 3.2)) - to_fluid, 1.3)

    # The leaves of the cerebellum fan out from the fourth ventricle.
    fan = np.arctan2(z + 36, -(y + 22)) + np.float32(0.04) * smooth_noise(rng, 12.0)
    leaf, cerebellum, stem = upsample(np.sin(26 * fan)), upsample(head.cerebellum), upsample(head.stem)
    share = ramp(cerebellum - np.float32(0.6)) * (stem < 0)
    gaps = np.float32(0.7) * ramp(np.float32(0.02) * (8 - cerebellum) - leaf - np.float32(0.80), 0.3)
    csf += share * (gaps - csf)
    gray += share * (ramp(9 + 3 * leaf - cerebellum, 2) - gray)
    # The brainstem is a mixture of tracts and nuclei and has no cortex.
    share = ramp(stem + np.float32(0.5), 2) * ramp(2 - upsample(head.point[2]), 6)
    csf *= 1 - share
    gray += share * (np.float32(0.35) - gray)

    gray = np.maximum(gray, np.float32(0.85) * ramp(upsample(lay_nuclei(point)) - np.float32(0.3), 1.5))
    wall = upsample(lay_ventricles(point, swelling=float(rng.uniform(-1.0, 1.5))))
    brain: Mask = upsample(head.brain) > 0
    csf = np.where(brain, np.maximum(csf, ramp(wall)), np.float32(1))
    gray = np.minimum(gray, 1 - csf)
    choroid = tube([np.abs(x), y, z], [(10, -14, 16, 1.6), (24, -34, 8, 3.6), (31, -26, -6, 2.0)])
    return Tissue(
        brain=brain,
        csf=csf,
        gray=gray,
        white=1 - csf - gray,
        depth=depth,
        ventricle=wall,
        choroid=upsample(choroid),
        cerebrum=upsample((head.cerebrum & (head.stem < 2)).astype(np.float32)),
        across=(2 * ramp(upsample(x), 2) - 1) * ramp(upsample(-callosum), 4),
    )


# ---------------------------------------------------------------------------------------------------------- lesions


def without_enhancement(seed: int, index: int) -> bool:
    """Whether this case has no enhancing tumor.

    One case in five has none, but never the first. The size of the cohort does not matter.
    """
    return index % 5 == (0, 2, 3, 4)[seed % 4]


def place_lesions(rng: np.random.Generator, head: Head, level: Difficulty, enhancing: bool) -> list[Lesion]:
    """Draw one to four lesions inside the cerebrum. The first is the largest."""
    low, high = level.volume_cm3
    total = 1000 * float(np.exp(rng.uniform(np.log(low), np.log(high))))
    count = int(rng.choice([1, 2, 3, 4], p=[0.55, 0.25, 0.13, 0.07]))
    shares = np.sort(rng.dirichlet(np.full(count, 1.5)))[::-1]
    volumes = np.maximum(total * shares, 1500)
    volumes[0] = max(total - volumes[1:].sum(), total / 2)
    room = ndimage.distance_transform_edt(head.cerebrum & (head.brain > 0), sampling=_STEP)
    wall = lay_ventricles(head.point, swelling=1.0)
    here = grid_points()
    lesions: list[Lesion] = []
    for volume in volumes:
        radius = (volume * 0.75 / np.pi) ** (1 / 3)
        fits = (room > min(12 + 0.35 * radius, 26)) & (np.abs(here[0]) > 12) & (head.stem < -6) & (wall < -4)
        for other in lesions:
            gap = sum((p - np.float32(c)) ** 2 for p, c in zip(here, other.center, strict=True))
            fits &= gap > (1.6 * (radius + (other.volume * 0.75 / np.pi) ** (1 / 3))) ** 2
        spots = np.flatnonzero(fits)
        if spots.size == 0 and lesions:  # no room is left for another lesion
            break
        if spots.size == 0:
            spots = np.array([int(np.argmax(np.where(wall < -4, room, 0)))])
        spot = int(spots[rng.integers(spots.size)])
        center = (float(here[0].flat[spot]), float(here[1].flat[spot]), float(here[2].flat[spot]))
        core = float(rng.uniform(0.32, 0.5))
        necrosis = float(rng.uniform(0.3, 0.6)) if enhancing else 1.0
        lesions.append(Lesion(center, float(volume), core, necrosis))
    return lesions


def _window(center: tuple[float, float, float], reach: float) -> tuple[slice, slice, slice]:
    """The part of the 1 mm box within `reach` mm of a point."""
    middle = [c + n / 2 for c, n in zip((center[0], -center[1], center[2]), _BOX, strict=True)]
    first, second, third = (
        slice(max(0, int(m - reach)), min(n, int(m + reach) + 1)) for m, n in zip(middle, _BOX, strict=True)
    )
    return first, second, third


def _smallest(score: Float, allowed: Mask, count: float) -> Mask:
    """The `count` allowed voxels with the lowest scores."""
    values = score[allowed]
    keep = min(int(count), values.size)
    if keep == 0:
        return np.zeros_like(allowed)
    chosen: Mask = allowed & (score <= np.partition(values, keep - 1)[keep - 1])
    return chosen


def _largest(region: Mask) -> Mask:
    """The largest 26-connected part of a region."""
    parts, _ = ndimage.label(region, np.ones((3, 3, 3)))
    sizes = np.bincount(parts.ravel())
    sizes[0] = 0
    result: Mask = (parts == sizes.argmax()) & region
    return result


def grow_lesions(rng: np.random.Generator, tissue: Tissue, lesions: list[Lesion], rim: int) -> npt.NDArray[np.uint8]:
    """Label map (0, 1, 2, 4) on the 1 mm box.

    Edema spreads through white matter and stops at cortex, fluid and falx. The core displaces all tissue.
    """
    labels = np.zeros(_BOX, np.uint8)
    coarse, medium, fine = (upsample(smooth_noise(rng, w)) for w in (45.0, 20.0, 9.0))
    for lesion in lesions:
        radius = (lesion.volume * 0.75 / np.pi) ** (1 / 3)
        window = _window(lesion.center, 2.2 * radius + 8)
        axes = [np.arange(s.start, s.stop, dtype=np.float32) + 0.5 for s in window]
        offset = [
            a - np.float32(c + n / 2)
            for a, c, n in zip(axes, (lesion.center[0], -lesion.center[1], lesion.center[2]), _BOX, strict=True)
        ]
        far = np.sqrt(offset[0][:, None, None] ** 2 + offset[1][None, :, None] ** 2 + offset[2][None, None, :] ** 2)
        ripple = 0.20 * coarse[window] + 0.15 * medium[window]
        core_score = far * np.exp(0.8 * ripple + 0.05 * fine[window])
        spread = far * np.exp(1.2 * ripple) + radius * (0.07 * fine[window])
        other = np.maximum(-np.sign(lesion.center[0]) * tissue.across[window], 0)
        hard = np.maximum(tissue.csf[window], np.where(tissue.ventricle[window] > -0.5, 1, 0))
        solid: Mask = (tissue.brain[window] & (tissue.depth[window] > 1.5) & (tissue.ventricle[window] < 0)) & (
            tissue.cerebrum[window] > 0.5
        )
        core = _smallest(core_score + 14 * other, solid, lesion.volume * lesion.core)
        core = _largest(ndimage.binary_opening(core))
        barrier = radius * (0.28 * tissue.gray[window] + 1.2 * hard)
        free: Mask = solid & (tissue.csf[window] < 0.5) | core
        for strength in (1.0, 0.4, 0.0):  # edema that cortex confines breaks through at a lower strength
            score = np.where(core, -1, spread + np.float32(strength) * barrier + 25 * other).astype(np.float32)
            spill = ndimage.gaussian_filter(_smallest(score, free, lesion.volume).astype(np.float32), 1.2) > 0.5
            whole = _largest(spill & free | core)
            if whole.sum() > 0.8 * lesion.volume:
                break
        inner = core_score * np.exp(0.35 * medium[window] + 0.12 * fine[window])
        rind: Mask = ndimage.binary_erosion(core, iterations=rim) if lesion.necrosis < 1 else core
        dead = _smallest(inner, rind, core.sum() * lesion.necrosis)
        part = labels[window]
        part[whole & (part == 0)] = EDEMA_LABEL
        part[core] = BRATS_2020.et_label
        part[dead] = CORE_LABEL
    return labels


# -------------------------------------------------------------------------------------------------------- intensity

# Mean signal of each tissue. White matter in T1 is about 1.
SIGNAL: dict[str, dict[str, float]] = {
    "t1": {"csf": 0.28, "gray": 0.66, "white": 0.92, "edema": 0.57, "necrosis": 0.44, "enhancing": 0.60},
    "t1ce": {"csf": 0.28, "gray": 0.68, "white": 0.90, "edema": 0.58, "necrosis": 0.42, "enhancing": 1.50},
    "t2": {"csf": 1.35, "gray": 0.72, "white": 0.52, "edema": 1.06, "necrosis": 1.20, "enhancing": 0.86},
    "flair": {"csf": 0.20, "gray": 0.70, "white": 0.58, "edema": 0.98, "necrosis": 0.55, "enhancing": 0.88},
}


def draw_mimics(rng: np.random.Generator, tissue: Tissue, labels: npt.NDArray[np.uint8], level: Difficulty) -> Float:
    """Share of each voxel that is FLAIR-bright normal white matter: periventricular caps and scattered spots."""
    texture = upsample(smooth_noise(rng, 30.0)) + 0.5 * upsample(smooth_noise(rng, 10.0))
    near = np.exp(np.minimum(tissue.ventricle, 0) / np.float32(9))
    score = -(texture + 2.6 * near)
    allowed: Mask = (tissue.white > 0.6) & tissue.brain & (labels == 0) & (tissue.cerebrum > 0.5)
    # The volume is a share of the tumor plus a fixed volume. Without the fixed volume small tumors would stand out.
    volume = level.mimics * float((labels > 0).sum()) + float(rng.uniform(12e3, 20e3))
    chosen = _smallest(score.astype(np.float32), allowed, volume)
    share: Float = ndimage.gaussian_filter(chosen.astype(np.float32), 1.0)
    return share


def draw_vessels(rng: np.random.Generator, tissue: Tissue, level: Difficulty) -> Float:
    """Share of each voxel that is contrast-filled vessel, choroid plexus or dura."""
    first, second = (smooth_noise(rng, 42.0, 0.35) for _ in range(2))
    steep = [np.sqrt(sum(g**2 for g in np.gradient(f, _STEP)) + 0.05**2).astype(np.float32) for f in (first, second)]
    gap = np.sqrt((upsample(first) / upsample(steep[0])) ** 2 + (upsample(second) / upsample(steep[1])) ** 2)
    calibre = np.where(tissue.depth < 12, level.vessels, 0.55 * level.vessels).astype(np.float32)
    share = ramp(calibre - gap)
    patches = upsample(smooth_noise(rng, 40.0))
    dura = ramp(np.float32(1.1) - tissue.depth, 0.6) * ((patches > 1.3) & (tissue.cerebrum > 0.5)) * 0.6
    plexus = ramp(np.minimum(tissue.choroid, tissue.ventricle - 0.3)) * 0.9
    both: Float = np.maximum(np.maximum(share, dura), plexus).astype(np.float32)
    return both


def best_threshold_dice(values: npt.NDArray[np.generic], target: Mask) -> float:
    """The best Dice with `target` that any threshold on `values` reaches, in either direction.

    The result is exact. Every distinct value v is tried as a lower bound (x >= v) and as an upper bound (x <= v).

    Args:
        values: numbers of any shape, for instance the intensities of one modality in the brain.
        target: the truth, of the same shape.

    Returns:
        Dice in 0..1. It is 0 if the target is empty.

    Raises:
        ValueError: the shapes differ, or there is no voxel.

    Example:
        >>> best_threshold_dice(np.array([1, 2, 8, 9]), np.array([False, False, True, True]))
        1.0
        >>> best_threshold_dice(np.array([1, 2, 8, 9]), np.array([True, False, False, True]))
        0.6666666666666666
    """
    if values.shape != target.shape or values.size == 0:
        raise ValueError(f"values {values.shape} and target {target.shape} must have one shape and at least one voxel")
    flat, truth = values.ravel(), target.ravel().astype(bool)
    rank: npt.NDArray[np.intp]
    if np.issubdtype(flat.dtype, np.integer) and int(flat.max()) - int(flat.min()) < 2**20:
        rank = flat.astype(np.intp) - int(flat.min())
    else:
        rank = np.unique(flat, return_inverse=True)[1]
    chosen = np.bincount(rank)
    hits = np.bincount(rank[truth], minlength=chosen.size)
    positives = int(truth.sum())
    if positives == 0:
        return 0.0
    best = 0.0
    for number, hit in ((chosen, hits), (chosen[::-1], hits[::-1])):
        best = max(best, float((2 * np.cumsum(hit) / (np.cumsum(number) + positives)).max()))
    return best


def fade_until_hidden(base: Float, excess: Float, bias: Float, scale: float, whole: Mask, level: Difficulty) -> Int16:
    """Intensities at which no threshold finds the tumor.

    While a threshold still does better than `level.dice_ceiling`, the lesion fades toward its surroundings and the bias
    field becomes stronger, step by step. All arrays hold one value for each voxel of the brain.
    """
    fade, strength = np.float32(1), np.float32(level.bias)
    for _ in range(25):
        field = np.exp(strength * bias) * np.float32(scale)
        values: Int16 = np.rint((base + fade * excess) * field).astype(np.int16)
        if best_threshold_dice(values, whole) <= level.dice_ceiling:
            break
        fade *= np.float32(0.94)
        strength = min(strength * np.float32(1.06), np.float32(0.24))
    return values


def render(rng: np.random.Generator, tissue: Tissue, labels: npt.NDArray[np.uint8], level: Difficulty) -> Images:
    """The four modalities on the 1 mm box. The voxels are 0 outside the brain, and no voxel inside is 0."""
    mimics, vessels = draw_mimics(rng, tissue, labels, level), draw_vessels(rng, tissue, level)
    texture = upsample(smooth_noise(rng, 11.0))
    variation = 1 + np.float32(0.07) * upsample(smooth_noise(rng, 24.0)) + np.float32(0.03) * texture
    near = tuple(slice(max(s.start - 3, 0), s.stop + 3) for s in ndimage.find_objects((labels > 0).astype(np.uint8))[0])
    part = labels[near]
    opacity = np.float32(level.contrast) * (part > 0).astype(np.float32)
    coil = smooth_noise(rng, 150.0)  # the part of the bias field that all modalities share
    whole: Mask = (labels > 0)[tissue.brain]
    images: Images = {}
    for name in MODALITIES:
        mean = {key: np.float32(value * rng.normal(1, 0.03)) for key, value in SIGNAL[name].items()}
        normal = tissue.csf * mean["csf"] + tissue.gray * mean["gray"] + tissue.white * mean["white"]
        normal *= 1 + np.float32(0.02) * texture
        if name == "flair":
            normal += mimics * np.float32(0.9) * (mean["edema"] - normal)
        elif name == "t1ce":
            normal += vessels * (mean["enhancing"] - normal)
        elif name == "t2":
            normal -= vessels * np.float32(0.15)  # flowing blood gives no signal
        target = np.select(
            [part == EDEMA_LABEL, part == CORE_LABEL], [mean["edema"], mean["necrosis"]], mean["enhancing"]
        )
        excess = np.zeros(_BOX, np.float32)
        excess[near] = ndimage.gaussian_filter(opacity * (target * variation[near] - normal[near]), _BLUR, truncate=3)
        normal += rng.standard_normal(_BOX, dtype=np.float32) * np.float32(level.noise)
        bias = np.float32(0.6) * coil + np.float32(0.8) * smooth_noise(rng, 110.0)
        base = ndimage.gaussian_filter(normal, _BLUR, truncate=3)[tissue.brain]
        scale = float(np.exp(rng.normal(np.log(420), 0.45)))
        values = fade_until_hidden(base, excess[tissue.brain], upsample(bias)[tissue.brain], scale, whole, level)
        # In real data resampling leaves a few negative voxels in dark places.
        dark = np.flatnonzero(values <= np.partition(values, values.size // 20)[values.size // 20])
        values[rng.choice(dark, 50)] = -rng.integers(1, 100, 50)
        values[values == 0] = 1  # 0 is the background
        images[name] = np.zeros(_BOX, np.int16)
        images[name][tissue.brain] = values
    return images


def make_patient(seed: int, index: int, difficulty: str) -> tuple[Images, Int16]:
    """Make one synthetic patient. The same arguments give the same bytes.

    Args:
        seed: seed of the cohort, 0 or more.
        index: number of the case, from 1.
        difficulty: a key of `DIFFICULTIES`.

    Returns:
        The images by modality name and the segmentation (0, 1, 2, 4), each int16 of shape (240, 240, 155), 1 mm.

    Raises:
        ValueError: the seed or the index is out of range, or the difficulty is unknown.
    """
    if seed < 0 or index < 1:
        raise ValueError(f"seed must be 0 or more and index 1 or more, not {seed} and {index}")
    if difficulty not in DIFFICULTIES:
        raise ValueError(f"difficulty must be one of {', '.join(DIFFICULTIES)}, not {difficulty!r}")
    level = DIFFICULTIES[difficulty]
    rng = np.random.default_rng([seed, index])
    head = shape_head(rng)
    lesions = place_lesions(rng, head, level, not without_enhancement(seed, index))
    tissue = grow_tissue(rng, head, lesions)
    labels = grow_lesions(rng, tissue, lesions, level.rim)
    images = render(rng, tissue, labels, level)
    corner = [(g - b) // 2 for g, b in zip(GRID, _BOX, strict=True)]
    corner = [c + int(rng.integers(-4, 5)) for c in corner]
    where = tuple(slice(c, c + b) for c, b in zip(corner, _BOX, strict=True))

    def embed(part: npt.NDArray[np.generic]) -> Int16:
        full = np.zeros(GRID, np.int16)
        full[where] = part
        return full

    return {name: embed(image) for name, image in images.items()}, embed(labels)


# ----------------------------------------------------------------------------------------------------------- cohort


def phantom_name(index: int) -> str:
    """Name of a case's folder, as in BraTS 2020.

    Example:
        >>> phantom_name(7)
        'BraTS20_Training_007'
    """
    return f"BraTS20_Training_{index:03d}"


def _case_files(folder: Path) -> dict[str, Path]:
    return {part: folder / f"{folder.name}_{part}.nii.gz" for part in (*MODALITIES, "seg")}


def _is_complete(folder: Path) -> bool:
    return all(path.is_file() for path in _case_files(folder).values())


def write_volume(path: Path, volume: Int16) -> None:
    """Write one volume with the affine of BraTS 2020. Equal volumes give equal bytes.

    Raises:
        OSError: the file cannot be written.
    """
    nifti: Any = nib  # untyped
    image = nifti.Nifti1Image(volume, AFFINE)
    image.header.set_xyzt_units("mm")
    image.header["descrip"] = PHANTOM_DESCRIPTION.encode()
    image.set_sform(AFFINE, code=1)
    image.set_qform(AFFINE, code=1)
    # The gzip header must hold no name and no time, because equal volumes would differ by them.
    with path.open("wb") as raw, gzip.GzipFile("", "wb", compresslevel=1, fileobj=raw, mtime=0) as packed:
        packed.write(image.to_bytes())


def write_case(parent: Path, seed: int, index: int, difficulty: str) -> Path:
    """Make one patient and put its folder into `parent`. The folder appears only when it is complete.

    Raises:
        OSError: the folder cannot be written.
        ValueError: as in `make_patient`.
    """
    final = parent / phantom_name(index)
    images, labels = make_patient(seed, index, difficulty)
    partial = Path(tempfile.mkdtemp(prefix=f".{final.name}.", suffix=".partial", dir=parent))
    try:
        partial.chmod(0o755)  # mkdtemp makes a folder that only its owner can read
        for path, volume in zip(_case_files(final).values(), (*images.values(), labels), strict=True):
            write_volume(partial / path.name, volume)
        if final.exists():  # this is an incomplete case from before
            shutil.rmtree(final)
        os.replace(partial, final)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return final


def _write_manifest(out: Path, seed: int, difficulty: str) -> None:
    parent = out / COHORT_FOLDER
    cases = sorted(p.name for p in parent.glob("BraTS20_Training_*") if _is_complete(p))
    content = {"version": GENERATOR_VERSION, "seed": seed, "difficulty": difficulty, "cases": cases}
    partial = out / f".{MANIFEST}.{os.getpid()}.partial"
    partial.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    os.replace(partial, out / MANIFEST)


def check_cohort(out: Path, seed: int, difficulty: str) -> None:
    """Make sure that `out` is new, is empty, or holds a cohort of this seed and difficulty.

    Raises:
        InputError: `out` is a file, or it holds other content or a cohort of other arguments.
    """
    if out.exists() and not out.is_dir():
        raise InputError(f"{out} is a file; name a folder for the phantoms.")
    if not out.exists() or not any(out.iterdir()):
        return
    other = f"{out} is not empty and holds no phantom cohort; name a new or an empty folder."
    try:
        found = json.loads((out / MANIFEST).read_text(encoding="utf-8"))
        made = (found["version"], found["seed"], found["difficulty"])
    except (FileNotFoundError, NotADirectoryError, ValueError, KeyError, TypeError):
        raise InputError(other) from None
    if made != (GENERATOR_VERSION, seed, difficulty):
        raise InputError(
            f"{out} holds phantoms of seed {made[1]}, difficulty {made[2]}, generator version {made[0]}; "
            f"name another folder for seed {seed}, difficulty {difficulty}, version {GENERATOR_VERSION}, or remove it."
        )


def missing_cases(out: Path, cases: int) -> list[int]:
    """Numbers of the cases, from 1 to `cases`, whose folders are absent or lack a file."""
    parent = out / COHORT_FOLDER
    return [index for index in range(1, cases + 1) if not _is_complete(parent / phantom_name(index))]


def write_cohort(out: Path, cases: int, seed: int, difficulty: str, workers: int = 1) -> Iterator[Path]:
    """Write the missing cases of a cohort below `out`, and yield each folder when it is finished.

    Complete cases are kept. Nothing is written before the first step of the iterator.

    Raises:
        InputError: `out` cannot take this cohort (see `check_cohort`).
        OSError: a file cannot be written.
        ValueError: `cases` or `workers` is less than 1, or an argument is invalid as in `make_patient`.
    """
    if cases < 1 or workers < 1:
        raise ValueError(f"cases and workers must be 1 or more, not {cases} and {workers}")
    if difficulty not in DIFFICULTIES or seed < 0:
        raise ValueError(f"difficulty must be one of {', '.join(DIFFICULTIES)} and seed 0 or more")
    check_cohort(out, seed, difficulty)
    parent = out / COHORT_FOLDER
    out.mkdir(parents=True, exist_ok=True)
    _write_manifest(out, seed, difficulty)
    parent.mkdir(exist_ok=True)
    for leftover in parent.glob(".BraTS20_Training_*.partial"):  # a run that was killed left them
        shutil.rmtree(leftover)
    todo = missing_cases(out, cases)
    try:
        if workers == 1 or len(todo) < 2:
            for index in todo:
                yield write_case(parent, seed, index, difficulty)
        else:
            # Workers are spawned and not forked, because the caller may run threads, such as a progress display.
            with ProcessPoolExecutor(min(workers, len(todo)), get_context("spawn")) as pool:
                jobs = [pool.submit(write_case, parent, seed, index, difficulty) for index in todo]
                try:
                    for job in as_completed(jobs):
                        yield job.result()
                finally:
                    for job in jobs:
                        job.cancel()
    finally:
        _write_manifest(out, seed, difficulty)
