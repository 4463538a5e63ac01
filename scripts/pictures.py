# Copyright (c) the brats_mri_panet_segmentation authors
# SPDX-License-Identifier: Apache-2.0
"""Pictures of a patient, and of several patients.

The preview of a patient shows axial, coronal and sagittal slices through the largest lesion. The rendering shows the
brain and the lesions from outside. In the picture of several patients, each row is the axial slice of one of them.
Slices follow the radiological convention, in which the patient's left is on the right-hand side.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import nibabel as nib
import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap, to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from scipy import ndimage
from scripts.brats import (
    CHANNEL_ORDER,
    CORE,
    CORE_LABEL,
    EDEMA,
    EDEMA_LABEL,
    ENHANCING,
    ET_LABELS,
    SEQUENCE_TITLES,
    SEQUENCES,
)
from scripts.data.cases import NO_FILE
from scripts.data.checks import check_channel_order, check_grid, is_phantom
from scripts.data.images import in_lps, read_image, voxels_of
from scripts.errors import InputError, printable
from scripts.files import replacing
from scripts.machine import processors
from scripts.measures import connected_lesions, voxel_volume
from scripts.rendering import Camera, Surface, render

matplotlib.use("Agg")

# A picture numbers the parts from 1, in this order.
SUB_REGIONS = (CORE, EDEMA, ENHANCING)
CORE_PART, EDEMA_PART, ENHANCING_PART = 1, 2, 3
REGION_PARTS = {
    "ET": (ENHANCING_PART,),
    "TC": (CORE_PART, ENHANCING_PART),
    "WT": (CORE_PART, EDEMA_PART, ENHANCING_PART),
}
# The letters stand at the left and at the right of a slice.
PLANES = (("axial", 2, ("R", "L")), ("coronal", 1, ("R", "L")), ("sagittal", 0, ("A", "P")))
# Contrast agent brightens the enhancing tumor, and the core stands out dark inside it. FLAIR shows edema best: it is
# bright, and fluid is dark. A sequence that is missing gives its place to the next best one. The regions are those that
# the sequence shows, and whose borders in the reference are drawn over it.
SHOWN: tuple[tuple[Sequence[str], Sequence[str]], ...] = ((("t1ce", "t1"), ("ET", "TC")), (("flair", "t2"), ("WT",)))
# Fluid is dark in these sequences, so the furrows of the brain's surface are.
DARK_FLUID = ("t1", "t1ce", "flair")
DPI = 110
VIEW_PIXELS = 380  # width of each view of a rendering
TITLE_SHARE = 0.97  # of a picture's width that a title may take
NO_TUMOR = "no tumor found"
PHANTOM = "synthetic phantom, not a patient"

Volume = npt.NDArray[Any]
Extent = tuple[float, float, float, float]  # left, right, bottom and top of a slice in mm


@dataclass(frozen=True)
class Patient:
    """The images and label maps of a patient in LPS order: axes run to the left, to the back and up.

    Attributes:
        name: name of the case.
        images: voxels of the sequences that the case has, in the order of ``SEQUENCES``, each (x, y, z).
        affine: matrix from indices to mm, (4, 4), in nibabel's convention: to the right, to the front and up.
        reference: numbers of the parts in ``SUB_REGIONS``, from 1, (x, y, z), or None.
        prediction: the same for the prediction.
        phantom: whether the case is a synthetic phantom.
    """

    name: str
    images: dict[str, Volume]
    affine: Volume
    reference: Volume | None = None
    prediction: Volume | None = None
    phantom: bool = False

    @property
    def shown(self) -> Volume | None:
        """The label map to be shown in color: the prediction, or else the reference."""
        return self.reference if self.prediction is None else self.prediction

    @property
    def brain(self) -> Volume:
        """Mask of the brain, bool of shape (x, y, z)."""
        found: Volume = np.any([image != 0 for image in self.images.values()], axis=0)
        # Images may be 0 everywhere.
        return found if found.any() else np.ones_like(found)

    @property
    def drawn(self) -> Volume:
        """Mask of the brain and the tumor, bool of shape (x, y, z). Predictions may lie outside the brain."""
        found = self.brain
        for labels in (self.reference, self.prediction):
            if labels is not None:
                found = found | (labels > 0)
        return found

    @property
    def spacing(self) -> Volume:
        """Size of a voxel along each axis in mm, (3,)."""
        sizes: Volume = np.linalg.norm(self.affine[:3, :3], axis=0)
        return sizes


def parts_of(labels: Volume, et_labels: Sequence[int] = ET_LABELS, edema_label: int = EDEMA_LABEL) -> Volume:
    """Numbers of the parts in ``SUB_REGIONS``, from 1, in place of the values of a label map, uint8.

    Args:
        labels: the label map, of any shape.
        et_labels: values of the enhancing tumor. Any other value than these, 1 and 2 is no part.
        edema_label: value of edema, 2 or 1. The core has the other value of the two.

    Example:
        >>> parts_of(np.array([0, 1, 2, 4])).tolist()
        [0, 1, 2, 3]
        >>> parts_of(np.array([0, 1, 2, 3, 4]), [3], edema_label=1).tolist()
        [0, 2, 1, 3, 0]
    """
    found = np.zeros(labels.shape, np.uint8)
    core_label = CORE_LABEL + EDEMA_LABEL - edema_label
    for part, values in ((CORE_PART, [core_label]), (EDEMA_PART, [edema_label]), (ENHANCING_PART, et_labels)):
        found[np.isin(labels, values)] = part
    return found


def read_labels(
    path: str | Path, shape: tuple[int, ...], et_labels: Sequence[int], edema_label: int = EDEMA_LABEL
) -> Volume:
    """Read a label map in LPS order.

    Args:
        path: file of the label map.
        shape: shape that the label map must have.
        et_labels, edema_label: as in ``parts_of``, which gives the result.

    Raises:
        InputError: the file is absent or unreadable, or it has another shape.
    """
    labels = voxels_of(in_lps(read_image(path)), path)
    if labels.shape != shape:
        raise InputError(f"{path}: shape {labels.shape}, not the case's {shape}; give a label map in its grid.")
    return parts_of(labels, et_labels, edema_label)


def read_patient(
    item: Mapping[str, Any], prediction: str | Path | None = None, channel_order: Sequence[str] = CHANNEL_ORDER
) -> Patient:
    """Read a patient for its pictures.

    Args:
        item: datalist entry of the case (``scripts.data.datalist``), with or without ``label``.
        prediction: file of a label map in the case's grid, which this bundle has written.
        channel_order: the sequences in the order of a four-dimensional file's channels.

    Raises:
        InputError: a file is unreadable or has another grid, or the dataset states another order of channels.
    """
    image = item["image"]
    opened: dict[str, nib.Nifti1Image] = {}
    if isinstance(image, str | Path):
        check_channel_order(item, channel_order)
        whole = read_image(image, channels=len(SEQUENCES))
        first_path, first = str(image), in_lps(whole)
        voxels = voxels_of(first, image)
        images = {sequence: voxels[..., channel_order.index(sequence)] for sequence in SEQUENCES}
    else:
        paths = {name: str(path) for name, path in zip(SEQUENCES, image, strict=True) if str(path) != NO_FILE}
        opened = {name: read_image(path) for name, path in paths.items()}
        first_path, whole = next(iter(paths.values())), next(iter(opened.values()))
        for name, path in paths.items():
            check_grid(path, opened[name], first_path, whole)
        first = in_lps(whole)
        images = {name: voxels_of(in_lps(opened[name]), path) for name, path in paths.items()}
    shape = first.shape[:3]
    reference = None
    if "label" in item:
        # Only the release's own value is ET. In BraTS 2024 ET is 3, and 4 is the resection cavity.
        reference = read_labels(item["label"], shape, [item["et_label"]], item["edema_label"])
    predicted = None if prediction is None else read_labels(prediction, shape, ET_LABELS)
    images = {name: voxels.astype(np.float32) for name, voxels in images.items()}
    return Patient(str(item["case"]), images, first.affine, reference, predicted, is_phantom(whole))


def _lesion(patient: Patient) -> Volume:
    # What the slices go through: the largest lesion, first of the label map that is shown, or else the whole brain.
    for labels in (patient.shown, patient.reference):
        if labels is not None and labels.any():
            lesion: Volume = connected_lesions(labels > 0) == 1
            return lesion
    return patient.brain


def affine_of_part(affine: npt.NDArray[np.float64], part: Sequence[slice]) -> npt.NDArray[np.float64]:
    """The affine, (4, 4), of the part of a volume that three slices cut out.

    Example:
        >>> affine_of_part(np.diag([2.0, 2.0, 2.0, 1.0]), (slice(3, 5), slice(0, 5), slice(1, 5)))[:3, 3].tolist()
        [6.0, 0.0, 2.0]
    """
    moved = affine.copy()
    moved[:3, 3] += affine[:3, :3] @ [s.start for s in part]
    return moved


def slices_through(mask: Volume) -> list[int]:
    """For each axis, the index of the slice with the largest area of a mask.

    Example:
        >>> mask = np.zeros((4, 5, 6), bool)
        >>> mask[1:3, 2, 3] = mask[1, 2, 4] = True
        >>> slices_through(mask)
        [1, 2, 3]
    """
    return [int(np.argmax(mask.sum(axis=tuple(a for a in range(3) if a != axis)))) for axis in range(3)]


def plane_of(volume: Volume, axis: int, position: int) -> Volume:
    """A slice of a volume in LPS order, in the radiological convention."""
    # In LPS order indices run to the left, to the back and up. The rows of an axial slice run to the back, as they
    # should. The rows of the other slices run up, so they are reversed.
    plane = np.take(volume, position, axis=axis).T
    return plane if axis == 2 else plane[::-1]


def box_of(mask: Volume) -> tuple[slice, ...]:
    """The smallest box that holds a mask, bool, which is not empty."""
    (found,) = ndimage.find_objects(mask.view(np.uint8))
    box: tuple[slice, ...] = found
    return box


def gray_window(image: Volume, brain: Volume) -> tuple[float, float]:
    """The values that are black and white, from the values in the whole brain."""
    low, high = np.percentile(image[brain], [1, 99.5])
    return min(float(low), 0.0), float(high)


def _gray(ax: Axes, plane: Volume, window: tuple[float, float], extent: Extent) -> None:
    """Show a plane of a sequence."""
    ax.imshow(plane, cmap="gray", vmin=window[0], vmax=window[1], extent=extent, interpolation="bilinear")
    ax.set_xticks([])
    ax.set_yticks([])
    ax.set_facecolor("black")
    ax.set_frame_on(False)


def _color(ax: Axes, plane: Volume, extent: Extent) -> None:
    """Lay the sub-regions of a plane of a label map over it, half transparent."""
    overlay = ListedColormap(["none", *(region.color for region in SUB_REGIONS)])
    ax.imshow(plane, cmap=overlay, vmin=0, vmax=3, alpha=0.5, extent=extent, interpolation="nearest")


def _save(figure: Figure, picture: str | Path) -> None:
    with replacing(picture) as temporary:
        figure.savefig(temporary, dpi=DPI, format="png")


def legend_texts(labels: Volume, affine: Volume) -> tuple[list[str], str]:
    """What a legend says of a label map.

    Args:
        labels: numbers of the parts in ``SUB_REGIONS``, from 1, (x, y, z).
        affine: matrix from indices to mm, (4, 4).

    Returns:
        A text for each part in ``SUB_REGIONS``, and one for the regions.

    Example:
        >>> parts, regions = legend_texts(np.array([[[1, 2, 2, 3]]]), np.diag([10.0, 10.0, 10.0, 1.0]))
        >>> parts
        ['necrotic and non-enhancing core 1.0 ml', 'edema 2.0 ml', 'enhancing tumor 1.0 ml']
        >>> regions
        'ET 1.0 ml, TC 2.0 ml, WT 4.0 ml'
    """
    volumes = np.bincount(labels.ravel(), minlength=len(SUB_REGIONS) + 1) * voxel_volume(affine)
    parts = [f"{region.name} {volume:.1f} ml" for region, volume in zip(SUB_REGIONS, volumes[1:], strict=True)]
    regions = {name: sum(float(volumes[part]) for part in own) for name, own in REGION_PARTS.items()}
    return parts, ", ".join(f"{name} {volume:.1f} ml" for name, volume in regions.items())


def _legend(figure: Figure, patient: Patient, outlined: bool) -> None:
    if patient.shown is None:
        return
    parts, regions = legend_texts(patient.shown, patient.affine)
    handles: list[Patch | Line2D] = [
        Patch(color=region.color, label=text) for region, text in zip(SUB_REGIONS, parts, strict=True)
    ]
    lines = [f"{'reference' if patient.prediction is None else 'prediction'}: {regions}"]
    if outlined and patient.reference is not None:
        handles.append(Line2D([], [], color="white", linewidth=1, label="outline of the reference"))
        lines.append(f"reference: {legend_texts(patient.reference, patient.affine)[1]}")
    inch = 1 / figure.get_figheight()
    below = {"loc": "lower center", "frameon": False, "labelcolor": "white", "fontsize": 9}
    figure.legend(handles=handles, ncols=len(handles), bbox_to_anchor=(0.5, 0.24 * inch), **below)
    figure.text(0.5, 0.1 * inch, "     ".join(lines), color="white", fontsize=9, ha="center")


def _title(figure: Figure, patient: Patient, note: str) -> None:
    none_found = patient.prediction is not None and not patient.prediction.any()
    notes = [text for text in (PHANTOM if patient.phantom else "", note, NO_TUMOR if none_found else "") if text]
    title = printable(patient.name) + (" - " + "; ".join(notes) if notes else "")
    look = {"color": "white", "fontsize": 11, "va": "top", "parse_math": False}
    text = figure.suptitle(title, y=1 - 0.12 / figure.get_figheight(), **look)
    # A long name with many notes becomes smaller rather than cut.
    share = text.get_window_extent().width / figure.bbox.width
    if share > TITLE_SHARE:
        text.set_fontsize(11 * TITLE_SHARE / share)


def _scale_length(width: float) -> int:
    # Of the bar in mm: 5 cm, or less in a picture that is narrower.
    return next((mm for mm in (50, 10) if mm <= width), 1)


def _length_text(length: int) -> str:
    return f"{length // 10} cm" if length >= 10 else f"{length} mm"


def _scale_bar(ax: Axes, width: float, height: float) -> None:
    length = _scale_length(width)
    ax.plot([0, length], [height, height], color="white", linewidth=2, solid_capstyle="butt", gid="scale bar")
    ax.text(length / 2, height, _length_text(length), color="white", fontsize=8, ha="center", va="bottom")


def _outline(ax: Axes, plane: Volume, regions: Sequence[str], extent: Extent) -> None:
    """Draw the borders of regions in a plane of the reference."""
    _, across, down, _ = extent
    # Borders of a region that reaches the edge of the slice are closed.
    rows, columns = (np.arange(-0.5, size + 1) for size in plane.shape)
    for region in regions:
        mask = np.pad(np.isin(plane, REGION_PARTS[region]), 1)
        if mask.any():
            x, y = columns * across / plane.shape[1], rows * down / plane.shape[0]
            ax.contour(x, y, mask, levels=[0.5], colors="white", linewidths=0.7)


def preview(patient: Patient, note: str = "") -> Figure:
    """The figure that ``draw_preview`` saves. The coordinates of its slices are mm."""
    lesion, brain = _lesion(patient), patient.brain
    cut = box_of(patient.drawn)
    center = [c - s.start for c, s in zip(slices_through(lesion), cut, strict=True)]
    size = np.array([s.stop - s.start for s in cut]) * patient.spacing  # of what is drawn, in mm
    columns: list[tuple[str, Sequence[str], bool]] = []
    for sequences, regions in SHOWN:
        # At least one sequence is there.
        sequence = next(s for s in (*sequences, *SEQUENCES) if s in patient.images)
        columns += [(sequence, regions, False)] + [(sequence, regions, True)] * (patient.shown is not None)
    windows = {sequence: gray_window(patient.images[sequence], brain) for sequence, _, _ in columns}
    outline = patient.reference if patient.prediction is not None else None

    # All slices have one scale. Each column is wide enough for the widest slice, its letters, and a gap to the next
    # column's letters.
    widest = max(size[0], size[1])
    wide, inches = 1.2 * widest, 2.45 / widest
    heights = [size[1], size[2], size[2]]
    top, bottom, left = 0.62, 0.5, 0.28
    width, height = left + 2.95 * len(columns), top + bottom + inches * sum(heights) + 0.16
    figure = Figure(figsize=(max(width, 8.0), height), facecolor="black")
    axes = figure.subplots(
        len(PLANES),
        len(columns),
        squeeze=False,
        gridspec_kw={
            "height_ratios": heights,
            "left": left / width,
            "right": 1,
            "top": 1 - top / height,
            "bottom": bottom / height,
            "wspace": 0.02,
            "hspace": 0.02,
        },
    )
    for row, (plane, axis, (first, last)) in enumerate(PLANES):
        across, down = (size[a] for a in range(3) if a != axis)
        extent = (0.0, float(across), float(down), 0.0)
        for column, (sequence, regions, colored) in enumerate(columns):
            ax = axes[row][column]
            image = patient.images[sequence]
            _gray(ax, plane_of(image[cut], axis, center[axis]), windows[sequence], extent)
            if colored and patient.shown is not None:
                _color(ax, plane_of(patient.shown[cut], axis, center[axis]), extent)
            if colored and outline is not None:
                _outline(ax, plane_of(outline[cut], axis, center[axis]), regions, extent)
            # Outlines may have moved the limits.
            ax.set_xlim((across - wide) / 2, (across + wide) / 2)
            ax.set_ylim(down, 0)
            for x, letter, side in ((-0.01 * wide, first, "right"), (across + 0.01 * wide, last, "left")):
                ax.text(x, down / 2, letter, color="white", fontsize=9, ha=side, va="center")
            if row == 0:
                ax.set_title(SEQUENCE_TITLES[sequence], color="white", fontsize=10, pad=3)
        axes[row][0].set_ylabel(plane, color="white", fontsize=10)
    _scale_bar(axes[-1][0], float(size[1]), float(size[2]))
    _legend(figure, patient, outline is not None)
    _title(figure, patient, note)
    return figure


def draw_preview(patient: Patient, picture: str | Path, note: str = "") -> None:
    """Draw slices through the largest lesion of a patient into the PNG file ``picture``.

    The columns are the sequence that shows the enhancing tumor and the core best, and the one that shows edema best,
    each without and with colors. The colors are those of the prediction. If there is a reference as well, its ET and
    TC are outlined on the first sequence, and its WT on the second. Without a prediction the colors are those of the
    reference.

    Args:
        patient: the patient.
        picture: file to write.
        note: text for the title, such as the origin of the weights.

    Raises:
        WriteError: the file cannot be written.
    """
    _save(preview(patient, note), picture)


def _views(patient: Patient, middle: Volume) -> dict[str, Camera]:
    # The viewer stands on the side of the largest lesion, so that it is not behind the other half of the brain.
    lesion = np.argwhere(_lesion(patient)).mean(axis=0) @ patient.affine[:3, :3].T + patient.affine[:3, 3]
    side, name = (1.0, "right") if lesion[0] >= middle[0] else (-1.0, "left")
    return {
        f"front {name}": Camera((0.65 * side, 0.7, 0.3)),
        name: Camera((side, 0.0, 0.0)),
        "above": Camera((0.0, 0.0, 1.0), up=(0.0, 1.0, 0.0)),
    }


def direction_letters(direction: Volume) -> str:
    """Letters of a direction: right, left, anterior, posterior, superior, inferior. The main one comes first.

    Args:
        direction: unit vector to the right, to the front and up, (3,).

    Example:
        >>> direction_letters(np.array([-1.0, 0.0, 0.0])), direction_letters(np.array([0.6, -0.8, 0.0]))
        ('L', 'PR')
    """
    order = sorted(range(3), key=lambda axis: -abs(direction[axis]))
    return "".join(("RL", "AP", "SI")[axis][int(direction[axis] < 0)] for axis in order if abs(direction[axis]) > 0.4)


def _texture(images: Mapping[str, Volume], brain: Volume, spacing: Volume) -> Volume | None:
    # The brightness of the brain's surface, on which the furrows are dark.
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
    affine = affine_of_part(patient.affine, cut)
    images = {name: image[cut] for name, image in patient.images.items()}
    texture = _texture(images, brain[cut], patient.spacing)
    surfaces = [Surface(brain[cut], affine, (1.0, 0.96, 0.94), 0.28, 0.8, blur_mm=2.0, texture=texture)]
    if patient.shown is not None:
        # Edema surrounds the other parts, so it is translucent.
        for part, opacity, rim in ((EDEMA_PART, 0.25, 0.65), (CORE_PART, 1.0, 1.0), (ENHANCING_PART, 1.0, 1.0)):
            if (mask := patient.shown == part).any():
                color = to_rgb(SUB_REGIONS[part - 1].color)
                surfaces.append(Surface(mask, patient.affine, color, opacity, rim))
    return surfaces


def surface_view(patient: Patient, note: str = "") -> Figure:
    """The figure that ``draw_surface`` saves. Its views are one image."""
    places = np.argwhere(patient.drawn[::4, ::4, ::4]) * 4 @ patient.affine[:3, :3].T + patient.affine[:3, 3]
    middle = (places.min(axis=0) + places.max(axis=0)) / 2
    views = _views(patient, middle)
    reaches = [np.abs((places - middle) @ camera.axes()[:2].T).max(axis=0) for camera in views.values()]
    # The margins hold the marks, and a gap to the marks of the next view.
    wide, high = 2 * np.max(reaches, axis=0) + (36, 16)
    pixels = VIEW_PIXELS / wide
    surfaces = _surfaces(patient)
    with ThreadPoolExecutor(processors()) as pool:
        pictures = list(pool.map(lambda camera: render(surfaces, camera, middle, (high, wide), pixels), views.values()))
    rows, columns, _ = pictures[0].shape
    top, bottom = 66, 56  # room for the title and the legend
    width, height = columns * len(views), rows + top + bottom
    figure = Figure(figsize=(width / DPI, height / DPI), dpi=DPI, facecolor="black")
    figure.figimage(np.concatenate(pictures, axis=1), 0, bottom, origin="upper")

    def write(x: float, y: float, text: str, **options: Any) -> None:
        figure.text(x / width, (height - top - y) / height, text, **{"color": "white", "fontsize": 9, **options})

    for number, (name, camera) in enumerate(views.items()):
        left, (right, up, _) = number * columns, camera.axes()
        middle_x, beside = left + columns / 2, reaches[number][0] * pixels + 4
        write(middle_x, -12, f"from {'' if name == 'above' else 'the '}{name}", fontsize=10, ha="center")
        write(middle_x - beside, rows / 2, direction_letters(-right), ha="right", va="center")
        write(middle_x + beside, rows / 2, direction_letters(right), ha="left", va="center")
        write(middle_x, 2, direction_letters(up), ha="center", va="top")
        write(middle_x, rows - 2, direction_letters(-up), ha="center", va="bottom")
    length = _scale_length(wide)
    bar, level = length * pixels, (bottom + 8) / height
    figure.add_artist(Line2D([8 / width, (8 + bar) / width], [level] * 2, color="white", linewidth=2, gid="scale bar"))
    write(8 + bar / 2, rows - 11, _length_text(length), fontsize=8, ha="center")
    _legend(figure, patient, outlined=False)
    _title(figure, patient, note)
    return figure


def draw_surface(patient: Patient, picture: str | Path, note: str = "") -> None:
    """Draw the brain and the sub-regions of a patient from three sides into the PNG file ``picture``.

    The brain and edema are translucent. Letters say where the patient's right and left, front and back, top and bottom
    are. The colors are those of the prediction, or without one those of the reference. Surfaces are smoothed, so a
    layer of less than one millimeter may not be seen.

    Args:
        patient: the patient.
        picture: file to write.
        note: text for the title, such as the origin of the weights.

    Raises:
        WriteError: the file cannot be written.
    """
    _save(surface_view(patient, note), picture)


def overview(items: Sequence[Mapping[str, Any]], channel_order: Sequence[str] = CHANNEL_ORDER) -> Figure:
    """The figure that ``draw_cases`` saves."""
    figure = Figure(figsize=(1.6 * 5, 1.9 * len(items) + 0.7), facecolor="black")
    axes = figure.subplots(len(items), 5, squeeze=False)
    labeled = False
    for row, item in enumerate(items):
        # Only one patient at a time is in memory.
        patient = read_patient(item, channel_order=channel_order)
        brain, labels = patient.brain, patient.reference
        cut = box_of(patient.drawn)
        middle = slices_through(labels > 0 if labels is not None and labels.any() else brain)[2] - cut[2].start
        across, down, _ = (float((s.stop - s.start) * mm) for s, mm in zip(cut, patient.spacing, strict=True))
        extent = (0.0, across, down, 0.0)
        last = next(s for s in ("flair", *SEQUENCES) if s in patient.images)
        for column, name in enumerate((*SEQUENCES, last)):
            ax = axes[row][column]
            if name in patient.images:
                image = patient.images[name]
                _gray(ax, plane_of(image[cut], 2, middle), gray_window(image, brain), extent)
            else:
                ax.set_axis_off()
            if column == len(SEQUENCES) and labels is not None:
                _color(ax, plane_of(labels[cut], 2, middle), extent)
                labeled = True
            if row == 0:
                title = SEQUENCE_TITLES[name] if column < len(SEQUENCES) else "reference"
                ax.set_title(title, color="white", fontsize=10)
        # The end of a name tells cases apart.
        label = printable(patient.name[-16:]) + ("\nsynthetic phantom" if patient.phantom else "")
        axes[row][0].set_ylabel(label, color="white", fontsize=7, parse_math=False)
    height = figure.get_figheight()
    figure.subplots_adjust(
        left=0.035, right=0.995, top=1 - 0.3 / height, bottom=0.35 / height, wspace=0.02, hspace=0.02
    )
    if labeled:
        handles = [Patch(color=region.color, label=region.name) for region in SUB_REGIONS]
        figure.legend(handles=handles, loc="lower center", ncols=3, frameon=False, labelcolor="white", fontsize=10)
    return figure


def draw_cases(
    items: Sequence[Mapping[str, Any]], picture: str | Path, channel_order: Sequence[str] = CHANNEL_ORDER
) -> None:
    """Draw the axial slice with most tumor of each case into the PNG file ``picture``, one row for each case.

    Args:
        items: datalist entries of the cases.
        picture: file to write.
        channel_order: as in ``read_patient``.

    Raises:
        InputError: as in ``read_patient``.
        WriteError: the file cannot be written.
    """
    _save(overview(items, channel_order), picture)
