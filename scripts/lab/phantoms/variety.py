# Copyright (c) the brats_mri_panet_segmentation authors
# SPDX-License-Identifier: Apache-2.0
"""Phantoms that vary more than patients do, for training.

A network that learns from images of every contrast and with every artifact must rely on what stays the same, which is
the shape of the anatomy and of the tumor. This is domain randomization, as in SynthSeg (Billot et al., Medical Image
Analysis 86, 2023). Ranges are wide on purpose: they surround what real scans show, and do not copy it.

The anatomy is that of the other phantoms, or a template's. Tumors and images are drawn here:

- Tumors enhance as a ring, in patches, in spots or not at all. The core is between a seventh and nearly all of the
  tumor. It holds cysts and blood. Edema fades out over some millimeters.
- The contrast between tissues is drawn for each sequence of each patient. Sometimes it is drawn without any regard to
  real contrasts.
- Sequences have thick slices, blur, noise, bias, ghosts, ringing and small misregistrations, each on its own.
- The skull-stripping leaves bright rests, or takes away a part of the brain.
"""

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
from scipy import fft, ndimage
from scripts.brats import BRATS_2020, CORE_LABEL, EDEMA_LABEL
from scripts.lab.phantoms.anatomy import (
    BOX,
    STEP,
    Float,
    Head,
    Mask,
    PhantomLesion,
    Tissue,
    apart_from,
    ball_radius,
    draw_mimics,
    draw_place,
    draw_vessels,
    grow_tissue,
    lay_ventricles,
    log_uniform,
    only_largest,
    ramp,
    shape_head,
    smallest,
    smooth_noise,
    upsample,
    window_around,
)
from scripts.lab.phantoms.template import Template, shape_template, template_tissue
from scripts.scores.volumetry import connected_lesions

Range = tuple[float, float]
Labels = npt.NDArray[np.uint8]

VOLUME_CM3 = (6.0, 250.0)
COUNTS = {1: 0.74, 2: 0.18, 3: 0.08}
# Share of the patients, range of the core's share in the tumor, and range of the enhancing share in the core. A ring
# takes its share from its thickness.
KINDS: dict[str, tuple[float, Range, Range]] = {
    "ring": (0.36, (0.15, 0.8), (0.0, 0.0)),
    "patches": (0.26, (0.2, 0.9), (0.15, 0.95)),
    "spots": (0.16, (0.3, 0.95), (0.01, 0.12)),
    "none": (0.22, (0.3, 0.97), (0.0, 0.0)),
}

# Ranges of the mean signal of each tissue, in units of white matter.
SIGNALS: dict[str, dict[str, Range]] = {
    "t1": {
        "gray": (0.60, 0.93),
        "csf": (0.12, 0.50),
        "edema": (0.50, 0.92),
        "core": (0.30, 0.85),
        "cyst": (0.18, 0.55),
        "blood": (0.85, 1.40),
        "enhancing": (0.45, 1.05),
        "rest": (0.70, 2.00),
    },
    "t2": {
        "gray": (1.05, 1.70),
        "csf": (1.80, 3.60),
        "edema": (1.40, 2.70),
        "core": (1.50, 3.20),
        "cyst": (2.00, 3.50),
        "blood": (0.45, 1.20),
        "enhancing": (1.05, 2.30),
        "rest": (0.40, 2.50),
    },
    "flair": {
        "gray": (0.95, 1.50),
        "csf": (0.15, 0.75),
        "edema": (1.40, 2.80),
        "core": (0.70, 2.60),
        "cyst": (0.25, 1.10),
        "blood": (0.50, 1.70),
        "enhancing": (1.05, 2.30),
        "rest": (0.50, 2.20),
    },
}
# In T1 after contrast agent, tissues look as in T1, except for these.
ENHANCED: dict[str, Range] = {"enhancing": (1.15, 2.60), "vessel": (1.15, 2.60), "rest": (0.90, 2.60)}
ODD_CONTRAST = 0.12  # probability that a sequence's contrast between normal tissues is any contrast


@dataclass(frozen=True)
class Tumor:
    """All lesions of a patient. They are of one kind."""

    kind: str
    lesions: list[PhantomLesion]


def plan_tumor(rng: np.random.Generator, head: Head) -> Tumor:
    """Draw the kind of tumor and the places of its lesions. The first lesion is the largest."""
    kind = str(rng.choice(list(KINDS), p=[share for share, _, _ in KINDS.values()]))
    _, core, enhancing = KINDS[kind]
    total = 1000 * log_uniform(rng, *VOLUME_CM3)
    count = int(rng.choice(list(COUNTS), p=list(COUNTS.values())))
    volumes = np.maximum(total * np.sort(rng.dirichlet(np.full(count, 1.2)))[::-1], 800)
    room = ndimage.distance_transform_edt(head.cerebrum & (head.brain > 0), sampling=STEP)
    wall = lay_ventricles(head.point, swelling=0.0)
    lesions: list[PhantomLesion] = []
    for volume in volumes:
        radius = ball_radius(volume)
        # Real tumors reach the cortex, so a center need not be deeper than a part of the radius.
        fits = (room > min(4 + rng.uniform(0.1, 0.5) * radius, 24)) & (head.stem < -2) & (wall < -2)
        fits &= apart_from(lesions, radius, 1.3)
        if not fits.any():
            if lesions:  # no room is left for another lesion
                break
            fits = only_largest(room)
        center = draw_place(rng, fits)
        dead = 1 - float(rng.uniform(*enhancing))
        lesions.append(PhantomLesion(center, float(volume), float(rng.uniform(*core)), dead))
    return Tumor(kind, lesions)


def grow_tumor(rng: np.random.Generator, tissue: Tissue, tumor: Tumor) -> Labels:
    """Label map (0, 1, 2, 4) on the 1 mm box."""
    labels = np.zeros(BOX, np.uint8)
    coarse, medium = (upsample(smooth_noise(rng, wave)) for wave in (rng.uniform(35, 55), rng.uniform(16, 26)))
    fine = upsample(smooth_noise(rng, rng.uniform(7, 11)))
    rough, frayed = rng.uniform(0.3, 1.6), rng.uniform(0.5, 2.2)
    stopped = rng.uniform(0.05, 0.5)  # how much cortex and fluid hold up the edema
    for lesion in tumor.lesions:
        radius = lesion.radius
        window = window_around(lesion.center, 2.6 * radius + 8)
        far = lesion.distance(window, stretch=np.exp(rng.normal(0, 0.18, 3)).tolist())
        ripple = 0.20 * coarse[window] + 0.15 * medium[window]
        other = np.maximum(-np.sign(lesion.center[0]) * tissue.across[window], 0)
        solid: Mask = tissue.brain[window] & (tissue.ventricle[window] < 0) & (tissue.depth[window] > 0.5)
        core_score = far * np.exp(rough * ripple + 0.06 * rough * fine[window]) + 14 * other
        core = connected_lesions(ndimage.binary_opening(smallest(core_score, solid, lesion.volume * lesion.core))) == 1
        hard = np.maximum(tissue.csf[window], np.where(tissue.ventricle[window] > -0.5, 1, 0))
        barrier = radius * np.float32(stopped) * (0.7 * tissue.gray[window] + 2.5 * hard)
        spread = far * np.exp(frayed * ripple) + radius * (0.08 * fine[window]) + barrier + 25 * other
        score = np.where(core, -1, spread).astype(np.float32)
        free: Mask = (solid & (tissue.csf[window] < 0.6)) | core
        spill = ndimage.gaussian_filter(smallest(score, free, lesion.volume).astype(np.float32), 1.0) > 0.5
        whole = connected_lesions((spill & free) | core) == 1
        enhancing = _enhancing(rng, tumor.kind, lesion, core, medium[window], fine[window])
        part = labels[window]
        part[whole & (part == 0)] = EDEMA_LABEL
        part[core] = CORE_LABEL
        part[enhancing] = BRATS_2020.et_label
    return labels


def _enhancing(
    rng: np.random.Generator, kind: str, lesion: PhantomLesion, core: Mask, medium: Float, fine: Float
) -> npt.NDArray[np.bool_]:
    """The part of a core that takes up contrast agent."""
    if kind == "none":
        return np.zeros_like(core)
    texture = (rng.uniform(0, 0.6) * medium + fine).astype(np.float32)
    if kind != "ring":
        return core & smallest(texture, core, core.sum() * (1 - lesion.necrosis))
    depth = ndimage.distance_transform_edt(core).astype(np.float32)
    thickness = np.float32(rng.uniform(1.2, 5.5)) * np.exp(np.float32(rng.uniform(0.1, 0.6)) * medium)
    ring: Mask = core & (depth <= thickness) & (medium > -rng.uniform(1.2, 3.5))  # a ring may have gaps
    # A negative share stands for no nodules.
    nodules = smallest(texture, core, core.sum() * rng.uniform(-0.2, 0.35)) if rng.random() < 0.5 else False
    return (ring | nodules) & core


# -------------------------------------------------------------------------------------------------------- artifacts


def thick_slices(image: Float, axis: int, thickness: float) -> Float:
    """Resample an image to thick slices along an axis and linearly back.

    Args:
        image: the image at 1 mm.
        axis: direction across the slices.
        thickness: thickness of the slices, mm.

    Example:
        >>> thick_slices(np.arange(8, dtype=np.float32)[:, None, None], axis=0, thickness=4.0).ravel().tolist()
        [1.5, 1.5, 2.0, 3.0, 4.0, 5.0, 5.5, 5.5]
    """
    size = image.shape[axis]
    edges = np.arange(0, size + thickness, thickness)
    summed = np.concatenate([np.zeros_like(image.take([0], axis)), np.cumsum(image, axis, dtype=np.float32)], axis)
    bounds = np.unique(np.minimum(np.rint(edges).astype(int), size))
    shape = [1, 1, 1]
    shape[axis] = -1
    means = np.diff(summed.take(bounds, axis), axis=axis) / np.diff(bounds).reshape(shape).astype(np.float32)
    centers = (bounds[:-1] + bounds[1:] - 1) / 2
    at = np.interp(np.arange(size), centers, np.arange(len(centers)))
    low = np.floor(at).astype(int)
    share = (at - low).astype(np.float32).reshape(shape)
    high = np.minimum(low + 1, len(centers) - 1)
    result: Float = means.take(low, axis) * (1 - share) + means.take(high, axis) * share
    return result


def ringing(image: Float, axis: int, kept: float) -> Float:
    """Leave out the highest spatial frequencies along an axis, as a small acquisition matrix does.

    Args:
        image: the image.
        axis: the axis.
        kept: share of the frequencies that are kept.
    """
    spectrum = fft.rfft(image, axis=axis)
    cut = [slice(None)] * 3
    cut[axis] = slice(max(int(spectrum.shape[axis] * kept), 1), None)
    spectrum[tuple(cut)] = 0
    result: Float = fft.irfft(spectrum, image.shape[axis], axis=axis).astype(np.float32)
    return result


def disturb(rng: np.random.Generator, image: Float) -> Float:
    """Draw the artifacts of one sequence, except for noise and bias."""
    axis = int(rng.integers(3))
    if rng.random() < 0.35:
        image = thick_slices(image, axis, float(rng.uniform(2, 6)))
    if rng.random() < 0.12:
        image = ringing(image, int(rng.integers(3)), float(rng.uniform(0.35, 0.7)))
    if rng.random() < 0.12:  # motion repeats the head along the phase-encoding direction
        ghost_axis = int(rng.integers(2))
        ghost = np.roll(image, int(rng.integers(8, 60)), ghost_axis)
        image = image + np.float32(rng.uniform(0.03, 0.15)) * (ghost - image)
    if rng.random() < 0.3:  # registration is off by a voxel or two
        shift = rng.normal(0, 0.7, 3)
        image = ndimage.shift(image, shift, order=1, mode="nearest")
    return image


# ----------------------------------------------------------------------------------------------------------- images


def strip_skull(rng: np.random.Generator, tissue: Tissue) -> tuple[Mask, Float]:
    """The mask that a skull-stripping leaves.

    Returns:
        The mask, and the share of each voxel that is a rest of dura, fat or muscle.
    """
    mask = tissue.brain.copy()
    rest = np.zeros(BOX, np.float32)
    texture = upsample(smooth_noise(rng, rng.uniform(18, 40)))
    if rng.random() < 0.5:
        outside = ndimage.distance_transform_edt(~tissue.brain)
        reach = np.clip(3 * (texture - np.float32(rng.uniform(0.0, 1.4))), 0, 8)
        left: Mask = (outside > 0) & (outside <= reach)
        mask |= left
        rest = ndimage.gaussian_filter(left.astype(np.float32), 0.7)
        # Dura that is left on the brain.
        rest = np.maximum(rest, ramp(np.float32(1.0) - tissue.depth, 0.8) * (texture > 0.8) * np.float32(0.8))
    if rng.random() < 0.2:
        hole: Mask = (tissue.depth < rng.uniform(2, 7)) & (texture < -rng.uniform(1.3, 2.0))
        mask &= ~hole
    return mask, rest


def fill_sulci(tissue: Tissue, kept: np.float32) -> Tissue:
    """Replace a part of the fluid outside the ventricles by gray matter; sulci are narrow in young patients."""
    fluid = tissue.csf * np.where(tissue.ventricle > -2, np.float32(1), kept)
    return replace(tissue, csf=fluid, gray=tissue.gray + (tissue.csf - fluid))


def tissue_means(rng: np.random.Generator, sequence: str) -> dict[str, float]:
    """Draw the mean signal of each tissue in one sequence. White matter is 1."""
    means = {name: float(rng.uniform(*limits)) for name, limits in SIGNALS[sequence].items()}
    if rng.random() < ODD_CONTRAST:
        means.update(gray=float(rng.uniform(0.5, 1.8)), csf=float(rng.uniform(0.1, 3.0)))
    return {"white": 1.0, "vessel": means["gray"], **means}


def enhanced(rng: np.random.Generator, before: dict[str, float]) -> dict[str, float]:
    """Draw the mean signals after contrast agent from the means before."""
    means = {name: value * float(np.exp(rng.normal(0, 0.06))) for name, value in before.items()}
    return {**means, **{name: float(rng.uniform(*limits)) for name, limits in ENHANCED.items()}}


def render(rng: np.random.Generator, tissue: Tissue, labels: Labels) -> tuple[dict[str, npt.NDArray[np.int16]], Mask]:
    """Draw the four sequences.

    Returns:
        The images on the 1 mm box, which are 0 outside the mask and never inside, and the mask.
    """
    mask, rest = strip_skull(rng, tissue)
    amount = float(rng.choice([0.0, 0.1, 0.4, 1.0], p=[0.3, 0.3, 0.25, 0.15]))
    mimics = draw_mimics(rng, tissue, labels, amount) * np.float32(amount > 0)
    vessels = draw_vessels(rng, tissue, float(rng.uniform(0.3, 1.5)))
    texture, coarse = upsample(smooth_noise(rng, rng.uniform(8, 14))), upsample(smooth_noise(rng, 26.0))
    spans = ndimage.find_objects((labels > 0).astype(np.uint8))
    near = tuple(slice(max(s.start - 9, 0), s.stop + 9) for s in spans[0]) if spans else (slice(0, 1),) * 3
    part = labels[near]
    # Edema fades: how much of a voxel is edema depends on its distance from the drawn border.
    depth = ndimage.distance_transform_edt(part > 0) - ndimage.distance_transform_edt(part == 0)
    fading = log_uniform(rng, 1.0, 7.0)
    swollen = ramp(depth.astype(np.float32) + np.float32(rng.uniform(0, 0.3) * fading), fading)
    swollen = np.clip(swollen * (1 + np.float32(rng.uniform(0, 0.3)) * coarse[near]), 0, 1)
    swollen *= tissue.brain[near] & (tissue.csf[near] < 0.7)
    sharp = float(rng.uniform(0.4, 1.3))
    core = ndimage.gaussian_filter(((part == CORE_LABEL) | (part == BRATS_2020.et_label)).astype(np.float32), sharp)
    bright = ndimage.gaussian_filter((part == BRATS_2020.et_label).astype(np.float32), float(rng.uniform(0.4, 1.0)))
    inner = upsample(smooth_noise(rng, rng.uniform(12, 30)))[near]
    hollow = ramp((inner - np.float32(rng.uniform(0.3, 2.5))) * 4)  # cysts
    bled = ramp((-inner - np.float32(rng.uniform(0.8, 3.0))) * 4)
    grain = np.float32(rng.uniform(0.03, 0.22)) * upsample(smooth_noise(rng, rng.uniform(5, 22)))[near]
    coil = smooth_noise(rng, 140.0)

    before = tissue_means(rng, "t1")
    means = {"t1": before, "t1ce": enhanced(rng, before)}
    means |= {name: tissue_means(rng, name) for name in ("t2", "flair")}
    images: dict[str, npt.NDArray[np.int16]] = {}
    for name, mean in means.items():
        value = {key: np.float32(number) for key, number in mean.items()}
        image: Float = tissue.csf * value["csf"] + tissue.gray * value["gray"] + tissue.white
        image *= 1 + np.float32(rng.uniform(0.005, 0.04)) * texture
        if name == "flair":
            image += mimics * np.float32(rng.uniform(0.4, 1.0)) * (value["edema"] - image)
        elif name == "t2":
            image += mimics * np.float32(rng.uniform(0.1, 0.8)) * (value["edema"] - image)
            image -= vessels * np.float32(rng.uniform(0.0, 0.5))
        elif name == "t1ce":
            image += vessels * (value["vessel"] - image)
        varied = 1 + grain * np.float32(rng.uniform(0.5, 1.5))
        place = image[near]
        place += swollen * (value["edema"] * varied - place)
        inside = value["core"] * varied
        inside += hollow * (value["cyst"] - inside)
        inside += bled * (value["blood"] - inside)
        place += core * (inside - place)
        place += bright * (value["enhancing"] * varied - place)
        image += rest * (value["rest"] - image)
        image += rng.standard_normal(BOX, dtype=np.float32) * np.float32(log_uniform(rng, 0.01, 0.16))
        image = ndimage.gaussian_filter(image, float(rng.uniform(0.35, 0.9)), truncate=3)
        image = disturb(rng, image)
        bias = np.float32(0.6) * coil + np.float32(0.8) * smooth_noise(rng, float(rng.uniform(70, 130)))
        field = np.exp(np.float32(log_uniform(rng, 0.02, 0.25)) * upsample(bias))
        inside_mask = (image * field)[mask] * np.float32(np.exp(rng.normal(np.log(420), 0.5)))
        values = np.rint(np.clip(inside_mask, -200, 32000)).astype(np.int16)
        values[values == 0] = 1  # 0 is the background
        images[name] = np.zeros(BOX, np.int16)
        images[name][mask] = values
    return images, mask


def make_varied_patient(
    rng: np.random.Generator, template: Template | None = None
) -> tuple[dict[str, npt.NDArray[np.int16]], Labels]:
    """Draw one patient.

    Args:
        rng: source of all random numbers of the patient.
        template: the anatomy to deform. Without it, the anatomy is drawn.

    Returns:
        The images by sequence and the label map (0, 1, 2, 4), on the 1 mm box of the brain.
    """
    head = shape_head(rng) if template is None else shape_template(rng, template)
    tumor = plan_tumor(rng, head)
    if template is None:
        tissue = fill_sulci(grow_tissue(rng, head, tumor.lesions), np.float32(rng.uniform(0.2, 1.0)))
    else:
        tissue = template_tissue(rng, template, head, tumor.lesions)
    labels = grow_tumor(rng, tissue, tumor)
    images, mask = render(rng, tissue, labels)
    return images, np.where(mask, labels, 0).astype(np.uint8)
