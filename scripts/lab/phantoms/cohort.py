# Copyright (c) the brats_mri_panet_segmentation authors
# SPDX-License-Identifier: Apache-2.0
"""Synthetic glioma patients in the layout and geometry of BraTS 2020.

The phantoms stand in for the real cohort when no data are at hand. Every patient is drawn from
`numpy.random.default_rng([seed, index])` alone. So a case depends neither on the size of the cohort nor on the number
of workers.
"""

import gzip
import json
import shutil
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import numpy.typing as npt
from scipy import ndimage
from scripts.brats import BRATS_2020, CORE_LABEL, EDEMA_LABEL
from scripts.data.images import PHANTOM_DESCRIPTION
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
    grid_points,
    grow_tissue,
    lay_ventricles,
    log_uniform,
    only_largest,
    shape_head,
    smallest,
    smooth_noise,
    upsample,
    window_around,
)
from scripts.lab.phantoms.template import load_template
from scripts.lab.phantoms.variety import make_varied_patient
from scripts.preparation.pose import AFFINE
from scripts.preparation.pose import SHAPE as GRID
from scripts.scores.volumetry import connected_lesions
from scripts.utils.errors import InputError
from scripts.utils.files import replacing, save_json

Int16 = npt.NDArray[np.int16]
Images = dict[str, Int16]  # the keys are modalities

# The random numbers of the modalities are drawn in this order, which is part of the generator's version.
MODALITIES = ("t1", "t1ce", "t2", "flair")
COHORT_FOLDER = "MICCAI_BraTS2020_TrainingData"
MANIFEST = "phantoms.json"

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


LEVELS = {
    "demo": Difficulty("demo", (15.0, 150.0), 1.0, 0.035, 0.09, 0.7, 0.9, 3, 0.45),
    "hard": Difficulty("hard", (10.0, 90.0), 0.8, 0.07, 0.14, 1.1, 1.3, 2, 0.45),
}
# The images of varied phantoms are drawn in another way, see variety.py.
VARIED = "varied"
VARIED_TEMPLATE = "varied_template"
DIFFICULTIES = (*LEVELS, VARIED, VARIED_TEMPLATE)
# A version rises when the same seed gives other phantoms, so that no cohort is completed with phantoms of another kind.
GENERATOR_VERSIONS = {"demo": 1, "hard": 1, VARIED: 2, VARIED_TEMPLATE: 2}


# ---------------------------------------------------------------------------------------------------------- lesions


def without_enhancement(seed: int, index: int) -> bool:
    """Whether this case has no enhancing tumor.

    One case in five has none, but never the first. The size of the cohort does not matter.
    """
    return index % 5 == (0, 2, 3, 4)[seed % 4]


def place_lesions(rng: np.random.Generator, head: Head, level: Difficulty, enhancing: bool) -> list[PhantomLesion]:
    """Draw one to four lesions inside the cerebrum. The first is the largest."""
    total = 1000 * log_uniform(rng, *level.volume_cm3)
    count = int(rng.choice([1, 2, 3, 4], p=[0.55, 0.25, 0.13, 0.07]))
    shares = np.sort(rng.dirichlet(np.full(count, 1.5)))[::-1]
    volumes = np.maximum(total * shares, 1500)
    volumes[0] = max(total - volumes[1:].sum(), total / 2)
    room = ndimage.distance_transform_edt(head.cerebrum & (head.brain > 0), sampling=STEP)
    wall = lay_ventricles(head.point, swelling=1.0)
    across = grid_points()[0]
    lesions: list[PhantomLesion] = []
    for volume in volumes:
        radius = ball_radius(volume)
        fits = (room > min(12 + 0.35 * radius, 26)) & (np.abs(across) > 12) & (head.stem < -6) & (wall < -4)
        fits &= apart_from(lesions, radius, 1.6)
        if not fits.any():
            if lesions:  # no room is left for another lesion
                break
            fits = only_largest(np.where(wall < -4, room, 0))
        center = draw_place(rng, fits)
        core = float(rng.uniform(0.32, 0.5))
        necrosis = float(rng.uniform(0.3, 0.6)) if enhancing else 1.0
        lesions.append(PhantomLesion(center, float(volume), core, necrosis))
    return lesions


def grow_lesions(
    rng: np.random.Generator, tissue: Tissue, lesions: list[PhantomLesion], rim: int
) -> npt.NDArray[np.uint8]:
    """Label map (0, 1, 2, 4) on the 1 mm box.

    Edema spreads through white matter and stops at cortex, fluid and falx. The core displaces all tissue.
    """
    labels = np.zeros(BOX, np.uint8)
    coarse, medium, fine = (upsample(smooth_noise(rng, w)) for w in (45.0, 20.0, 9.0))
    for lesion in lesions:
        radius = lesion.radius
        window = window_around(lesion.center, 2.2 * radius + 8)
        far = lesion.distance(window)
        ripple = 0.20 * coarse[window] + 0.15 * medium[window]
        core_score = far * np.exp(0.8 * ripple + 0.05 * fine[window])
        spread = far * np.exp(1.2 * ripple) + radius * (0.07 * fine[window])
        other = np.maximum(-np.sign(lesion.center[0]) * tissue.across[window], 0)
        hard = np.maximum(tissue.csf[window], np.where(tissue.ventricle[window] > -0.5, 1, 0))
        solid: Mask = (tissue.brain[window] & (tissue.depth[window] > 1.5) & (tissue.ventricle[window] < 0)) & (
            tissue.cerebrum[window] > 0.5
        )
        core = smallest(core_score + 14 * other, solid, lesion.volume * lesion.core)
        core = connected_lesions(ndimage.binary_opening(core)) == 1
        barrier = radius * (0.28 * tissue.gray[window] + 1.2 * hard)
        free: Mask = solid & (tissue.csf[window] < 0.5) | core
        for strength in (1.0, 0.4, 0.0):  # edema that cortex confines breaks through at a lower strength
            score = np.where(core, -1, spread + np.float32(strength) * barrier + 25 * other).astype(np.float32)
            spill = ndimage.gaussian_filter(smallest(score, free, lesion.volume).astype(np.float32), 1.2) > 0.5
            whole = connected_lesions(spill & free | core) == 1
            if whole.sum() > 0.8 * lesion.volume:
                break
        inner = core_score * np.exp(0.35 * medium[window] + 0.12 * fine[window])
        rind: Mask = ndimage.binary_erosion(core, iterations=rim) if lesion.necrosis < 1 else core
        dead = smallest(inner, rind, core.sum() * lesion.necrosis)
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
    mimics, vessels = draw_mimics(rng, tissue, labels, level.mimics), draw_vessels(rng, tissue, level.vessels)
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
        excess = np.zeros(BOX, np.float32)
        excess[near] = ndimage.gaussian_filter(opacity * (target * variation[near] - normal[near]), _BLUR, truncate=3)
        normal += rng.standard_normal(BOX, dtype=np.float32) * np.float32(level.noise)
        bias = np.float32(0.6) * coil + np.float32(0.8) * smooth_noise(rng, 110.0)
        base = ndimage.gaussian_filter(normal, _BLUR, truncate=3)[tissue.brain]
        scale = float(np.exp(rng.normal(np.log(420), 0.45)))
        values = fade_until_hidden(base, excess[tissue.brain], upsample(bias)[tissue.brain], scale, whole, level)
        # In real data resampling leaves a few negative voxels in dark places.
        dark = np.flatnonzero(values <= np.partition(values, values.size // 20)[values.size // 20])
        values[rng.choice(dark, 50)] = -rng.integers(1, 100, 50)
        values[values == 0] = 1  # 0 is the background
        images[name] = np.zeros(BOX, np.int16)
        images[name][tissue.brain] = values
    return images


def make_patient(seed: int, index: int, difficulty: str) -> tuple[Images, Int16]:
    """Make one synthetic patient. The same arguments give the same bytes.

    Args:
        seed: seed of the cohort, 0 or more.
        index: number of the case, from 1.
        difficulty: one of `DIFFICULTIES`.

    Returns:
        The images by modality name and the segmentation (0, 1, 2, 4), each int16 of shape (240, 240, 155), 1 mm.

    Raises:
        ValueError: the seed or the index is out of range, or the difficulty is unknown.
    """
    if seed < 0 or index < 1:
        raise ValueError(f"seed must be 0 or more and index 1 or more, not {seed} and {index}")
    if difficulty not in DIFFICULTIES:
        raise ValueError(f"difficulty must be one of {', '.join(DIFFICULTIES)}, not {difficulty!r}")
    rng = np.random.default_rng([seed, index])
    if difficulty in (VARIED, VARIED_TEMPLATE):
        images, labels = make_varied_patient(rng, load_template() if difficulty == VARIED_TEMPLATE else None)
    else:
        level = LEVELS[difficulty]
        head = shape_head(rng)
        lesions = place_lesions(rng, head, level, not without_enhancement(seed, index))
        tissue = grow_tissue(rng, head, lesions)
        labels = grow_lesions(rng, tissue, lesions, level.rim)
        images = render(rng, tissue, labels, level)
    corner = [(g - b) // 2 for g, b in zip(GRID, BOX, strict=True)]
    corner = [c + int(rng.integers(-4, 5)) for c in corner]
    where = tuple(slice(c, c + b) for c, b in zip(corner, BOX, strict=True))

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


def resized(volume: Int16, size: Sequence[int], order: int) -> Int16:
    """A volume in a grid of another size over the same field of view. ``order`` is that of the interpolation."""
    factors = [new / old for new, old in zip(size, volume.shape, strict=True)]
    result: Int16 = ndimage.zoom(volume, factors, order=order, mode="nearest", grid_mode=True)
    return result


def affine_of(size: Sequence[int]) -> npt.NDArray[np.float64]:
    """The affine of a grid of this size over the field of view of BraTS 2020.

    Example:
        >>> affine_of((120, 120, 155))[:, 3]  # voxels of 2 x 2 x 1 mm, whose centers moved by half a millimeter
        array([ -0.5, 238.5,   0. ,   1. ])
    """
    steps = [old / new for old, new in zip(GRID, size, strict=True)]
    scale = np.diag([*steps, 1.0])
    scale[:3, 3] = [(step - 1) / 2 for step in steps]
    return AFFINE @ scale


def write_volume(path: Path, volume: Int16) -> None:
    """Write one volume over the field of view of BraTS 2020. Equal volumes give equal bytes.

    Raises:
        OSError: the file cannot be written.
    """
    nifti: Any = nib  # untyped
    affine = affine_of(volume.shape)
    image = nifti.Nifti1Image(volume, affine)
    image.header.set_xyzt_units("mm")
    image.header["descrip"] = PHANTOM_DESCRIPTION.encode()
    image.set_sform(affine, code=1)
    image.set_qform(affine, code=1)
    # The gzip header must hold no name and no time, because equal volumes would differ by them.
    with path.open("wb") as raw, gzip.GzipFile("", "wb", compresslevel=1, fileobj=raw, mtime=0) as packed:
        packed.write(image.to_bytes())


def write_case(parent: Path, seed: int, index: int, difficulty: str, size: Sequence[int] = GRID) -> Path:
    """Make one patient and put its folder into `parent`. The folder appears only when it is complete.

    Raises:
        OSError: a file cannot be written; a WriteError where the folder cannot be made or its disk is full.
        ValueError: as in `make_patient`.
    """
    final = parent / phantom_name(index)
    images, labels = make_patient(seed, index, difficulty)
    if tuple(size) != GRID:
        images = {name: resized(image, size, order=1) for name, image in images.items()}
        labels = resized(labels, size, order=0)
    with replacing(final) as folder:
        folder.mkdir()
        for path, volume in zip(_case_files(final).values(), (*images.values(), labels), strict=True):
            write_volume(folder / path.name, volume)
        if final.exists():  # this is an incomplete case from before
            shutil.rmtree(final)
    return final


def _write_manifest(out: Path, seed: int, difficulty: str, size: Sequence[int]) -> None:
    parent = out / COHORT_FOLDER
    cases = sorted(p.name for p in parent.glob("BraTS20_Training_*") if _is_complete(p))
    kind = {"version": GENERATOR_VERSIONS[difficulty], "seed": seed, "difficulty": difficulty, "size": list(size)}
    save_json({**kind, "cases": cases}, out / MANIFEST)


def check_cohort(out: Path, seed: int, difficulty: str, size: Sequence[int] = GRID) -> None:
    """Make sure that `out` is new, is empty, or holds a cohort of this seed, difficulty and size.

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
        made = (found["version"], found["seed"], found["difficulty"], found["size"])
    except (FileNotFoundError, NotADirectoryError, ValueError, KeyError, TypeError):
        raise InputError(other) from None
    version = GENERATOR_VERSIONS[difficulty]
    if made != (version, seed, difficulty, list(size)):
        raise InputError(
            f"{out} holds phantoms of seed {made[1]}, difficulty {made[2]}, size {made[3]}, version {made[0]}; "
            f"name another folder for seed {seed}, difficulty {difficulty}, size {list(size)}, version {version}, or "
            "remove it."
        )


def missing_cases(out: Path, cases: int) -> list[int]:
    """Numbers of the cases, from 1 to `cases`, whose folders are absent or lack a file."""
    parent = out / COHORT_FOLDER
    return [index for index in range(1, cases + 1) if not _is_complete(parent / phantom_name(index))]


def write_cohort(
    out: Path, cases: int, seed: int, difficulty: str, workers: int = 1, size: Sequence[int] = GRID
) -> Iterator[Path]:
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
    check_cohort(out, seed, difficulty, size)
    if difficulty == VARIED_TEMPLATE:
        load_template()  # if it is not there, nothing must be written
    parent = out / COHORT_FOLDER
    out.mkdir(parents=True, exist_ok=True)
    _write_manifest(out, seed, difficulty, size)
    parent.mkdir(exist_ok=True)
    for leftover in parent.glob(".BraTS20_Training_*"):  # a run that was killed left them
        shutil.rmtree(leftover)
    todo = missing_cases(out, cases)
    try:
        if workers == 1 or len(todo) < 2:
            for index in todo:
                yield write_case(parent, seed, index, difficulty, size)
        else:
            # Workers are spawned and not forked, because the caller may run threads, such as a progress display.
            with ProcessPoolExecutor(min(workers, len(todo)), get_context("spawn")) as pool:
                jobs = [pool.submit(write_case, parent, seed, index, difficulty, size) for index in todo]
                try:
                    for job in as_completed(jobs):
                        yield job.result()
                finally:
                    for job in jobs:
                        job.cancel()
    finally:
        _write_manifest(out, seed, difficulty, size)
