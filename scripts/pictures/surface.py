# Copyright (c) the brats_mri_panet_segmentation authors
# SPDX-License-Identifier: Apache-2.0
"""A patient's brain and lesions from outside."""

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from scipy import ndimage
from scripts.pictures.captions import NO_CAPTIONS, Captions
from scripts.pictures.figure import DPI, draw_legend, draw_title, scale
from scripts.pictures.parts import CORE_PART, EDEMA_PART, ENHANCING_PART, SUB_REGIONS
from scripts.pictures.patient import Patient
from scripts.pictures.planes import Volume, affine_of_box, box_of
from scripts.pictures.rays import Surface, camera_axes, render
from scripts.utils.machine import processors

# Fluid is dark in these sequences, so the furrows of the brain's surface are.
DARK_FLUID = ("t1", "t1ce", "flair")
VIEW_PIXELS = 380  # width of each view of a rendering


def _views(patient: Patient, middle: Volume) -> dict[str, Volume]:
    """The axes of three cameras by name."""
    # The viewer is on the side of the largest lesion, so that it is not behind the other half of the brain.
    lesion = np.argwhere(patient.lesion).mean(axis=0) @ patient.affine[:3, :3].T + patient.affine[:3, 3]
    side, name = (1.0, "right") if lesion[0] >= middle[0] else (-1.0, "left")
    return {
        f"front {name}": camera_axes((0.65 * side, 0.7, 0.3)),
        name: camera_axes((side, 0.0, 0.0)),
        "above": camera_axes((0.0, 0.0, 1.0), up=(0.0, 1.0, 0.0)),  # and mirrored, so that it is like axial slices
    }


def direction_letters(direction: Volume) -> str:
    """Letters of a unit vector to the right, to the front and up, (3,). The main one comes first.

    They are those of right, left, anterior, posterior, superior and inferior.

    Example:
        >>> direction_letters(np.array([-1.0, 0.0, 0.0])), direction_letters(np.array([0.6, -0.8, 0.0]))
        ('L', 'PR')
    """
    order = sorted(range(3), key=lambda axis: -abs(direction[axis]))
    return "".join(("RL", "AP", "SI")[axis][int(direction[axis] < 0)] for axis in order if abs(direction[axis]) > 0.4)


def _texture(images: Mapping[str, Volume], brain: Volume, spacing: Volume) -> Volume | None:
    """The brightness of the brain's surface, on which the furrows are dark."""
    found = [image / max(float(np.median(image[brain])), 1e-6) for name, image in images.items() if name in DARK_FLUID]
    if not found:
        return None
    sigma = 1.2 / spacing
    mean = ndimage.gaussian_filter(np.where(brain, np.clip(np.mean(found, axis=0), 0, 2), 0), sigma)
    share = ndimage.gaussian_filter(brain.astype(np.float32), sigma)
    texture: Volume = np.clip(mean / np.maximum(share, 0.1), 0.4, 1.2)
    return texture


def _surfaces(patient: Patient) -> list[Surface]:
    brain = patient.brain
    cut = box_of(brain)
    affine = affine_of_box(patient.affine, cut)
    texture = _texture({name: image[cut] for name, image in patient.images.items()}, brain[cut], patient.spacing)
    surfaces = [Surface(brain[cut], affine, (1.0, 0.96, 0.94), 0.2, 0.7, blur_mm=2.0, texture=texture)]
    if patient.shown is not None:
        # Edema surrounds the other parts, so it is translucent.
        for part, opacity, rim in ((EDEMA_PART, 0.12, 0.5), (CORE_PART, 1.0, 1.0), (ENHANCING_PART, 1.0, 1.0)):
            if (mask := patient.shown == part).any():
                color = to_rgb(SUB_REGIONS[part - 1].color)
                surfaces.append(Surface(mask, patient.affine, color, opacity, rim))
    return surfaces


def surface_view(patient: Patient, captions: Captions = NO_CAPTIONS) -> Figure:
    """The brain and the sub-regions of a patient from three sides, which are one image.

    The brain and edema are translucent. Letters say where the patient's right and left, front and back, top and bottom
    are. The colors are those of the prediction, or without one those of the reference. Surfaces are smoothed, so a
    layer of less than one millimeter may not be seen.
    """
    places = np.argwhere(patient.drawn[::4, ::4, ::4]) * 4 @ patient.affine[:3, :3].T + patient.affine[:3, 3]
    middle = (places.min(axis=0) + places.max(axis=0)) / 2
    views = _views(patient, middle)
    reaches = [np.abs((places - middle) @ camera[:2].T).max(axis=0) for camera in views.values()]
    # The margins hold the marks, and a gap to the marks of the next view.
    wide, high = 2 * np.max(reaches, axis=0) + (36, 16)
    pixels = VIEW_PIXELS / wide
    surfaces = _surfaces(patient)
    # A step of the rays is short. Where other programs use the processors, torch's own threads would wait for each
    # other at each step, and a picture took a minute instead of seconds.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with ThreadPoolExecutor(processors()) as pool:
            drawn = pool.map(lambda camera: render(surfaces, camera, middle, (high, wide), pixels), views.values())
            pictures = list(drawn)
    finally:
        torch.set_num_threads(threads)
    pictures[2] = pictures[2][:, ::-1]
    rows, columns, _ = pictures[0].shape
    top, bottom = 90, 80  # room for the title and the legend
    width, height = columns * len(views), rows + top + bottom
    figure = Figure(figsize=(width / DPI, height / DPI), dpi=DPI, facecolor="black")
    figure.figimage(np.concatenate(pictures, axis=1), 0, bottom, origin="upper")

    def write(x: float, y: float, text: str, **options: Any) -> None:
        figure.text(x / width, (height - top - y) / height, text, **{"color": "white", "fontsize": 9, **options})

    for number, (name, camera) in enumerate(views.items()):
        left, (right, up, _) = number * columns, camera
        middle_x, beside = left + columns / 2, reaches[number][0] * pixels + 4
        if name == "above":
            right = -right
        title = "from above, mirrored: left and right as in slices" if name == "above" else f"from the {name}"
        write(middle_x, -12, title, fontsize=10, ha="center")
        write(middle_x - beside, rows / 2, direction_letters(-right), fontsize=12, ha="right", va="center")
        write(middle_x + beside, rows / 2, direction_letters(right), fontsize=12, ha="left", va="center")
        write(middle_x, 2, direction_letters(up), fontsize=12, ha="center", va="top")
        write(middle_x, rows - 2, direction_letters(-up), fontsize=12, ha="center", va="bottom")
    length, text = scale(wide)
    bar, level = length * pixels, (bottom + 8) / height
    figure.add_artist(Line2D([8 / width, (8 + bar) / width], [level] * 2, color="white", linewidth=2, gid="scale bar"))
    write(8 + bar / 2, rows - 11, text, fontsize=8, ha="center")
    draw_legend(figure, patient, False, captions.source)
    draw_title(figure, patient, captions)
    return figure
