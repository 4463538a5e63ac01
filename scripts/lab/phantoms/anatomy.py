# Copyright (c) the brats_mri_panet_segmentation authors
# SPDX-License-Identifier: Apache-2.0
"""The drawn anatomy of phantoms: the head, its tissues, and normal tissue that looks like tumor.

Smooth fields (signed distances, fold phase, noise) on a 2 mm grid describe the anatomy. The grid covers the box of the
brain. The fields are interpolated to 1 mm and only then cut into tissues, which keeps edges fine and the work small.
Coordinates are millimeters from the center of the box: x to the left, y to the front, z up.
"""

import functools
import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import fft, ndimage

Float = npt.NDArray[np.float32]
Mask = npt.NDArray[np.bool_]

HALF = (78, 96, 72)  # the 2 mm grid
BOX = (156, 192, 144)  # the same extent at 1 mm
STEP = 2.0


# ---------------------------------------------------------------------------------------------------- smooth fields


@functools.lru_cache(maxsize=1)
def _frequency() -> Float:
    """Spatial frequency (cycles per mm) of every bin of a real FFT over the 2 mm grid."""
    fx, fy = (fft.fftfreq(n, STEP)[:, None] for n in HALF[:2])
    fz = fft.rfftfreq(HALF[2], STEP)
    radius: Float = np.sqrt(fx[:, None] ** 2 + fy[None] ** 2 + fz[None, None] ** 2).astype(np.float32)
    return radius


def smooth_noise(rng: np.random.Generator, wavelength: float, bandwidth: float | None = None) -> Float:
    """Gaussian noise of mean 0 and deviation 1 on the 2 mm grid.

    With a bandwidth (relative, about 0.3) all waves measure about `wavelength` mm. Without a bandwidth only waves that
    are much shorter are removed.
    """
    waves = _frequency() * np.float32(wavelength)
    gain = np.exp(-(waves**2)) if bandwidth is None else np.exp(-(((waves - 1) / np.float32(bandwidth)) ** 2))
    spectrum = fft.rfftn(rng.standard_normal(HALF, dtype=np.float32)) * gain
    field: Float = fft.irfftn(spectrum, s=HALF).astype(np.float32)
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


def log_uniform(rng: np.random.Generator, low: float, high: float) -> float:
    """A number between two positive numbers, with a uniform logarithm."""
    return float(np.exp(rng.uniform(np.log(low), np.log(high))))


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
    best = np.full(HALF, -np.inf, np.float32)
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


def ball_radius(volume: float) -> float:
    """Radius of a ball of this volume."""
    return float((volume * 0.75 / np.pi) ** (1 / 3))


@dataclass(frozen=True)
class PhantomLesion:
    """Plan of one tumor."""

    center: tuple[float, float, float]  # mm
    volume: float  # voxels of 1 mm
    core: float  # share of the core in the volume
    necrosis: float  # share of the necrosis in the core

    @property
    def radius(self) -> float:
        """Radius of a ball of the same volume, mm."""
        return ball_radius(self.volume)

    def distance(self, window: tuple[slice, slice, slice], stretch: Sequence[float] = (1, 1, 1)) -> Float:
        """Distance from the center, mm, in a part of the 1 mm box. Each axis may be stretched."""
        middle = zip((self.center[0], -self.center[1], self.center[2]), BOX, strict=True)
        first, second, third = (
            (np.arange(s.start, s.stop, dtype=np.float32) + 0.5 - np.float32(c + n / 2)) * np.float32(factor)
            for s, (c, n), factor in zip(window, middle, stretch, strict=True)
        )
        far: Float = np.sqrt(first[:, None, None] ** 2 + second[None, :, None] ** 2 + third[None, None, :] ** 2)
        return far


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
    axes = [((np.arange(n, dtype=np.float32) + 0.5) * STEP - n) for n in HALF]
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
    wide = ndimage.distance_transform_edt(~union, sampling=STEP) < 5
    for face in range(3):  # everything beyond the grid is outside
        np.moveaxis(wide, face, 0)[[0, -1]] = False
    closed = ndimage.distance_transform_edt(wide, sampling=STEP) > 5
    brain = ndimage.gaussian_filter(signed_distance(closed, STEP), 0.8)
    return Head(point, brain, cerebrum, lobe, cerebellum, stem)


def push_aside(point: list[Float], lesions: list[PhantomLesion]) -> list[Float]:
    """Mass effect: every lesion pushes the tissue away.

    Returns:
        For each place, the coordinates that its tissue had before.
    """
    here = grid_points()
    moved = [p.copy() for p in point]
    for lesion in lesions:
        radius = lesion.radius
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
    depth = ndimage.distance_transform_edt(solid, sampling=STEP).astype(np.float32)
    depth = ndimage.gaussian_filter(depth, 0.6)

    # Sulci are the zeros of a wave pattern on the surface. Each voxel takes the pattern of its nearest surface.
    inward = np.gradient(ndimage.gaussian_filter(depth, 1.5), STEP)
    places = [
        index - depth * step * np.float32(0.9 / STEP)
        for index, step in zip(np.indices(HALF, np.float32), inward, strict=True)
    ]
    pattern = smooth_noise(rng, float(rng.uniform(19, 22)), 0.42)
    fold = ndimage.map_coordinates(pattern, places, order=1, mode="nearest").astype(np.float32)
    fold = ndimage.gaussian_filter(fold, 0.7)
    slope = np.sqrt(sum(g**2 for g in np.gradient(fold, STEP)) + np.float32(0.08**2))
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


def grow_tissue(rng: np.random.Generator, head: Head, lesions: list[PhantomLesion]) -> Tissue:
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


# --------------------------------------------------------------------------------------------- parts of the volume


def window_around(center: tuple[float, float, float], reach: float) -> tuple[slice, slice, slice]:
    """The part of the 1 mm box within `reach` mm of a point."""
    middle = [c + n / 2 for c, n in zip((center[0], -center[1], center[2]), BOX, strict=True)]
    first, second, third = (
        slice(max(0, int(m - reach)), min(n, int(m + reach) + 1)) for m, n in zip(middle, BOX, strict=True)
    )
    return first, second, third


def apart_from(lesions: Sequence[PhantomLesion], radius: float, factor: float) -> Mask:
    """Places of the 2 mm grid where another lesion of this radius keeps away from all lesions.

    Args:
        lesions: the lesions that are placed already.
        radius: radius of the other lesion, mm.
        factor: least distance of two centers, in sums of both radii.
    """
    here = grid_points()
    free = np.ones(HALF, bool)
    for lesion in lesions:
        gap = sum((p - np.float32(c)) ** 2 for p, c in zip(here, lesion.center, strict=True))
        free &= gap > (factor * (radius + lesion.radius)) ** 2
    return free


def draw_place(rng: np.random.Generator, fits: Mask) -> tuple[float, float, float]:
    """Draw one of the places of the 2 mm grid where something fits, mm."""
    spots = np.flatnonzero(fits)
    spot = int(spots[rng.integers(spots.size)])
    x, y, z = (float(axis.flat[spot]) for axis in grid_points())
    return x, y, z


def only_largest(values: Float) -> Mask:
    """The one place with the largest value."""
    place = np.zeros(values.shape, bool)
    place.flat[int(np.argmax(values))] = True
    return place


def smallest(score: Float, allowed: Mask, count: float) -> Mask:
    """The `count` allowed voxels with the lowest scores; none if `count` is less than 1."""
    values = score[allowed]
    keep = min(int(count), values.size)
    if keep < 1:
        return np.zeros_like(allowed)
    chosen: Mask = allowed & (score <= np.partition(values, keep - 1)[keep - 1])
    return chosen


def signed_distance(mask: Mask, step: float) -> Float:
    """Distance from the surface of a mask, mm, positive inside."""
    inside = ndimage.distance_transform_edt(mask, sampling=step)
    distance: Float = (inside - ndimage.distance_transform_edt(~mask, sampling=step)).astype(np.float32)
    return distance


# ------------------------------------------------------------------------------- normal tissue that looks like tumor


def draw_mimics(rng: np.random.Generator, tissue: Tissue, labels: npt.NDArray[np.uint8], relative: float) -> Float:
    """Share of each voxel that is FLAIR-bright normal white matter: periventricular caps and scattered spots.

    Args:
        rng: source of the random numbers.
        tissue: the tissues.
        labels: the label map, in which no tumor is replaced.
        relative: volume in volumes of the whole tumor. A fixed volume is added.
    """
    texture = upsample(smooth_noise(rng, 30.0)) + 0.5 * upsample(smooth_noise(rng, 10.0))
    near = np.exp(np.minimum(tissue.ventricle, 0) / np.float32(9))
    score = -(texture + 2.6 * near)
    allowed: Mask = (tissue.white > 0.6) & tissue.brain & (labels == 0) & (tissue.cerebrum > 0.5)
    # The volume is a share of the tumor plus a fixed volume. Without the fixed volume small tumors would stand out.
    volume = relative * float((labels > 0).sum()) + float(rng.uniform(12e3, 20e3))
    chosen = smallest(score.astype(np.float32), allowed, volume)
    share: Float = ndimage.gaussian_filter(chosen.astype(np.float32), 1.0)
    return share


def draw_vessels(rng: np.random.Generator, tissue: Tissue, radius: float) -> Float:
    """Share of each voxel that is contrast-filled vessel (with this radius, mm), choroid plexus or dura."""
    first, second = (smooth_noise(rng, 42.0, 0.35) for _ in range(2))
    steep = [np.sqrt(sum(g**2 for g in np.gradient(f, STEP)) + 0.05**2).astype(np.float32) for f in (first, second)]
    gap = np.sqrt((upsample(first) / upsample(steep[0])) ** 2 + (upsample(second) / upsample(steep[1])) ** 2)
    calibre = np.where(tissue.depth < 12, radius, 0.55 * radius).astype(np.float32)
    share = ramp(calibre - gap)
    patches = upsample(smooth_noise(rng, 40.0))
    dura = ramp(np.float32(1.1) - tissue.depth, 0.6) * ((patches > 1.3) & (tissue.cerebrum > 0.5)) * 0.6
    plexus = ramp(np.minimum(tissue.choroid, tissue.ventricle - 0.3)) * 0.9
    both: Float = np.maximum(np.maximum(share, dura), plexus).astype(np.float32)
    return both
