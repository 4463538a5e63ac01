# Copyright (c) the brats_mri_panet_segmentation authors
# SPDX-License-Identifier: Apache-2.0
"""Pictures of constructed patients: slices, colors, marks, scales, legends, and files in all formats that are read."""

from __future__ import annotations

from itertools import pairwise

import nibabel as nib
import numpy as np
import pytest
import torch
from dicom_series import write_case
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.image import imread
from scripts import render_case
from scripts.brats import CORE, EDEMA, ENHANCING, SEQUENCES
from scripts.data.cases import NO_FILE
from scripts.data.datalist import every_item
from scripts.pictures import surface
from scripts.pictures.figure import NO_TUMOR, PHANTOM
from scripts.pictures.patient import Patient, read_patient
from scripts.pictures.preview import overview, preview
from scripts.pictures.surface import surface_view
from scripts.utils.errors import InputError
from tiny import make_cases
from workflows import write_decathlon


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """Renderings of fewer pixels take less time."""
    monkeypatch.setattr(surface, "VIEW_PIXELS", 100)


LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
SIZE = (40, 50, 30)
BRAIN = (slice(4, 36), slice(5, 45), slice(3, 27))


def patient(spacing=(2.0, 1.0, 3.0), **changes) -> Patient:
    """A brain of 64 x 40 x 72 mm, with a lesion on the patient's right and a smaller one on the left."""
    ramp = np.zeros(SIZE, np.float32)
    ramp[BRAIN] = np.linspace(50, 150, 32)[:, None, None]
    images = {sequence: ramp + 10 * number * (ramp > 0) for number, sequence in enumerate(SEQUENCES)}
    labels = np.zeros(SIZE, np.uint8)
    labels[8:16, 20:30, 8:16] = 2
    labels[10:14, 22:28, 10:14] = 3
    labels[11:13, 24:26, 11:13] = 1
    labels[30:33, 30:33, 20:23] = 2
    # The largest area of the large lesion is in these slices alone.
    labels[10, 19, 9] = labels[10, 21, 7] = labels[16, 21, 9] = 2
    values = {"name": "p1", "images": images, "affine": LPS @ np.diag([*spacing, 1]), "prediction": labels}
    return Patient(**{**values, **changes})


def texts(figure: Figure) -> list[str]:
    own = [text.get_text() for text in figure.texts]
    return [*own, *(text.get_text() for legend in figure.legends for text in legend.get_texts())]


def planes(figure: Figure) -> list[list]:
    """The axes in rows and columns."""
    count = len(figure.axes) // 3
    return [figure.axes[row * count : (row + 1) * count] for row in range(3)]


def test_columns_and_marks_of_the_preview():
    rows = planes(preview(patient()))
    assert [ax.get_title() for ax in rows[0]] == ["T1 contrast-enhanced"] * 2 + ["FLAIR"] * 2
    assert [row[0].get_ylabel() for row in rows] == ["axial", "coronal", "sagittal"]
    # Radiological convention: the patient's right is on the left. In the sagittal plane the front is on the left.
    marks = [[text.get_text() for text in row[1].texts] for row in rows]
    assert marks == [["R", "L"], ["R", "L"], ["A", "P"]]


def test_the_preview_shows_the_slices_of_the_largest_lesion_with_its_colors():
    made = patient()
    # A second lesion may not move the slices: these are the planes of the first one's largest area.
    x, y, z = 10, 21, 9
    rows = planes(preview(made))
    for row, wanted in zip(
        rows,
        (
            made.prediction[BRAIN][:, :, z - 3].T,
            made.prediction[BRAIN][:, y - 5].T[::-1],
            made.prediction[BRAIN][x - 4].T[::-1],
        ),
        strict=True,
    ):
        gray, color = row[1].images
        assert len(row[0].images) == 1
        assert np.array_equal(color.get_array(), wanted)
        assert gray.get_array().shape == wanted.shape
        assert color.get_alpha() == 0.5
        colors = color.cmap(color.norm(np.array([1, 2, 3])))[:, :3]
        assert np.allclose(colors, [to_rgb(part.color) for part in (CORE, EDEMA, ENHANCING)])
        assert color.cmap(color.norm(0))[3] == 0


def test_millimeters_are_equal_in_all_directions_and_slices(tmp_path):
    figure = preview(patient(spacing=(2.0, 1.0, 3.0)))
    figure.savefig(tmp_path / "picture.png")
    scales = []
    for row, size in zip(planes(figure), ((64, 40), (64, 72), (40, 72)), strict=True):
        for ax in row:
            left, right, bottom, top = ax.images[0].get_extent()
            assert (right - left, bottom - top) == size
            (x0, y0), (x1, y1) = ax.transData.transform([(0, 0), (1, 1)])
            scales += [x1 - x0, y0 - y1]
    assert scales == pytest.approx([scales[0]] * len(scales), rel=0.02)


@pytest.mark.parametrize(("size", "length", "text"), [(2.0, 50, "5 cm"), (0.5, 10, "1 cm"), (0.1, 1, "1 mm")])
def test_the_scale_bar(size, length, text):
    (bar,) = [line for ax in preview(patient(spacing=(size,) * 3)).axes for line in ax.lines if line.get_gid()]
    assert np.ptp(bar.get_xdata()) == length
    assert text in [t.get_text() for t in bar.axes.texts]


def test_colors_of_pixels(tmp_path):
    """In the saved picture a pixel of edema is half its color and half gray."""
    made = patient()
    for image in made.images.values():
        image[image > 0] = 100
    figure = preview(made)
    figure.savefig(tmp_path / "picture.png", dpi=figure.dpi)
    pixels = imread(tmp_path / "picture.png")[..., :3]
    ax = planes(figure)[0][1]
    # Voxel (9, 21, 9) is edema, voxel (30, 10, 9) brain without tumor.
    for voxel, color in (((9, 21), 0.5 + 0.5 * np.array(to_rgb(EDEMA.color))), ((30, 10), np.ones(3))):
        x, y = ax.transData.transform([(2 * (voxel[0] - 4 + 0.5), voxel[1] - 5 + 0.5)])[0]
        assert np.allclose(pixels[int(len(pixels) - y), int(x)], color, atol=0.02)


def test_the_legend_tells_volumes():
    made = patient(spacing=(10.0, 10.0, 10.0))
    found = texts(preview(made))
    edema, core = 640 - 96 + 27 + 3, 8
    for text in (f"edema {edema}.0 ml", "enhancing tumor 88.0 ml", f"necrotic and non-enhancing core {core}.0 ml"):
        assert text in found
    assert f"prediction: ET 88.0 ml, TC 96.0 ml, WT {edema + 96}.0 ml" in found
    assert "outline of the reference" not in found


def test_the_reference_is_outlined_beside_a_prediction():
    reference = np.zeros(SIZE, np.uint8)
    reference[8:18, 20:30, 8:16] = 2
    reference[10:12, 20:22, 8:12] = 3
    figure = preview(patient(reference=reference, spacing=(1.0, 1.0, 1.0)))
    axial = planes(figure)[0]
    assert [len(ax.collections) for ax in axial] == [0, 2, 0, 1]
    # The outline of WT, in mm from the corner of the brain's box, runs along the faces of its voxels.
    points = np.concatenate([path.vertices for path in axial[3].collections[0].get_paths()])
    assert points.min(axis=0) == pytest.approx([8 - 4, 20 - 5])
    assert points.max(axis=0) == pytest.approx([18 - 4, 30 - 5])
    lines = " ".join(texts(figure))
    assert "outline of the reference" in lines and "reference: ET 0.0 ml, TC 0.0 ml, WT 0.8 ml" in lines


def test_a_reference_alone_is_colored():
    made = patient()
    figure = preview(patient(reference=made.prediction, prediction=None))
    assert np.array_equal(planes(figure)[0][1].images[1].get_array(), made.prediction[BRAIN][:, :, 6].T)
    assert any(text.startswith("reference: ET") for text in texts(figure))
    assert not planes(figure)[0][1].collections


@pytest.mark.parametrize("draw", [preview, surface_view])
def test_titles(draw):
    empty = np.zeros(SIZE, np.uint8)
    found = draw(patient(prediction=empty, phantom=True), "for research only").get_suptitle()
    assert found == f"p1 - {PHANTOM}; for research only; {NO_TUMOR}"
    assert draw(patient()).get_suptitle() == "p1"
    without = draw(patient(prediction=None))
    assert without.get_suptitle() == "p1" and not without.legends


@pytest.mark.parametrize("draw", [preview, surface_view])
def test_a_long_title_becomes_smaller_and_is_not_cut(draw):
    sizes = []
    for name in ("p1", "a name of many words " * 8):
        figure = draw(patient(name=name))
        (title,) = [text for text in figure.texts if text.get_text() == name]
        box = title.get_window_extent()
        assert box.x0 > 0 and box.x1 < figure.bbox.x1
        sizes.append(title.get_fontsize())
    assert sizes[0] == 11 > sizes[1]


def test_the_letters_stand_closer_to_their_own_slice_than_to_the_next():
    figure = preview(patient())
    figure.canvas.draw()
    for row in planes(figure):
        # The ends of each slice and of its letters, from left to right.
        places = []
        for ax in row:
            first, last = (text.get_window_extent() for text in ax.texts[:2])
            slice_ = ax.images[0].get_window_extent()
            places.append((first.x0, first.x1, slice_.x0, slice_.x1, last.x0, last.x1))
        for place, following in pairwise(places):
            own, other = place[4] - place[3], following[0] - place[5]
            assert 0 < own < 5 and other > 3 * own
            assert 0 < following[2] - following[1] < 5


def test_an_empty_prediction_shows_the_slices_of_the_reference():
    made = patient()
    figure = preview(patient(prediction=np.zeros(SIZE, np.uint8), reference=made.prediction))
    gray = planes(figure)[2][0].images[0].get_array()
    assert np.array_equal(gray, made.images["t1ce"][BRAIN][10 - 4].T[::-1])


def test_a_prediction_outside_the_brain_is_shown():
    labels = np.zeros(SIZE, np.uint8)
    labels[37:40, 46:50, 27:30] = 2
    made = patient(prediction=labels)
    row = planes(preview(made))[0]
    assert np.array_equal(row[1].images[1].get_array(), labels[4:, 5:, 27].T)
    assert surface_view(made).images


@pytest.mark.parametrize(
    ("lacking", "titles"),
    [
        (["t1ce"], ["T1", "FLAIR"]),
        (["flair"], ["T1 contrast-enhanced", "T2"]),
        (["t1ce", "t1", "flair"], ["T2", "T2"]),
        (["flair", "t2"], ["T1 contrast-enhanced", "T1"]),
    ],
)
def test_another_sequence_takes_the_place_of_a_missing_one(lacking, titles):
    made = patient()
    figure = preview(patient(images={s: image for s, image in made.images.items() if s not in lacking}))
    assert [ax.get_title() for ax in planes(figure)[0]][::2] == titles


def test_the_rendering_looks_from_the_side_of_the_lesion():
    made = patient()
    right = surface_view(made)
    assert [t for t in texts(right) if t.startswith("from")] == ["from the front right", "from the right", "from above"]
    left = surface_view(patient(prediction=made.prediction[::-1]))
    assert [t for t in texts(left) if t.startswith("from")] == ["from the front left", "from the left", "from above"]
    # Seen from the right the front is at the right; seen from above the right is at the right.
    assert [t for t in texts(right) if set(t) <= set("RLAPSI")][4:] == ["P", "A", "S", "I", "L", "R", "A", "P"]


def test_the_rendering_runs_on_one_thread_a_view_and_leaves_the_threads_as_before(monkeypatch):
    before, seen = torch.get_num_threads(), []
    render = surface.render
    monkeypatch.setattr(surface, "render", lambda *args: seen.append(torch.get_num_threads()) or render(*args))
    surface_view(patient(spacing=(4.0, 4.0, 5.0)))
    assert seen == [1, 1, 1] and torch.get_num_threads() == before


def test_the_rendering_shows_the_tumor_at_its_place_in_the_brain():
    (image,) = surface_view(patient(spacing=(4.0, 4.0, 5.0))).images
    pixels = np.asarray(image.get_array())
    width = pixels.shape[1] // 3
    right = pixels[:, width : 2 * width]
    assert not right[0].any() and not right[:, 0].any()
    # The brain is 40 voxels of 4 mm long, and 24 voxels of 5 mm high. It is gray, and the enhancing tumor orange.
    rows, columns = (np.flatnonzero(right.any(axis=(axis, 2))) for axis in (1, 0))
    scale = np.ptp(columns) / 160
    assert np.ptp(rows) / scale == pytest.approx(120, abs=4)
    red, green, blue = np.moveaxis(right, -1, 0)
    orange = (red - blue > 0.4 * red) & (red > green) & (red > 0.3)
    down, across = (place.mean() for place in np.nonzero(orange))
    # Its middle is at the voxels 24.5 and 11.5, from 5 and 3, of brains that end at 44.5 and 26.5.
    assert (columns.max() - across) / scale == pytest.approx((24.5 - 4.5) * 4, abs=4)
    assert (rows.max() - down) / scale == pytest.approx((11.5 - 2.5) * 5, abs=4)
    gray = right[rows.min() + int(10 * scale), int(columns.mean())]
    assert 0 < np.ptp(gray) < 0.05


def case(folder, affine=LPS, dtype=np.int16):
    """A case of BraTS files in any grid, with a label map, and the four images."""
    rng = np.random.default_rng(1)
    folder.mkdir(parents=True)
    images = {s: nib.Nifti1Image(rng.integers(1, 500, (6, 7, 8)).astype(dtype), affine) for s in SEQUENCES}
    for sequence, image in images.items():
        nib.save(image, folder / f"{folder.name}_{sequence}.nii.gz")
    labels = rng.choice([0, 1, 2, 4], (6, 7, 8)).astype(np.uint8)
    nib.save(nib.Nifti1Image(labels, affine), folder / f"{folder.name}_seg.nii.gz")
    return images, labels


def test_all_formats_give_the_same_patient(tmp_path):
    images, labels = case(tmp_path / "brats" / "p1", LPS @ np.diag([1, 1, 2, 1]))
    (item,) = every_item(tmp_path / "brats")
    found = read_patient(item)
    parts = np.array([0, 1, 2, 0, 3], np.uint8)[labels]
    assert np.array_equal(found.reference, parts)
    for sequence, image in images.items():
        assert np.array_equal(found.images[sequence], image.get_fdata())
    assert np.array_equal(found.spacing, [1, 1, 2])

    write_decathlon(tmp_path / "brats", tmp_path / "decathlon")
    (item,) = every_item(tmp_path / "decathlon")
    four = read_patient(item)
    assert np.array_equal(four.reference, parts)
    assert all(np.array_equal(four.images[s], found.images[s]) for s in SEQUENCES)
    other = read_patient(item, channel_order=["t1", "flair", "t1ce", "t2"])
    assert np.array_equal(other.images["t1"], found.images["flair"])

    write_case(tmp_path / "dicom" / "p1", images)
    (item,) = every_item(tmp_path / "dicom")
    series = read_patient(item)
    assert series.name == "p1" and series.reference is None
    assert all(np.array_equal(series.images[s], found.images[s]) for s in SEQUENCES)


def test_axes_in_any_order_are_turned(tmp_path):
    """A grid that runs up, to the right and to the front is shown as one that runs to the left, to the back and up."""
    affine = np.array([[0, 2.0, 0, 0], [0, 0, 3.0, 0], [1.0, 0, 0, 0], [0, 0, 0, 1]])
    images, labels = case(tmp_path / "p1", affine)
    (item,) = every_item(tmp_path)
    found = read_patient(item)
    turned = images["t1"].get_fdata().transpose(1, 2, 0)[::-1, ::-1]
    assert np.array_equal(found.images["t1"], turned)
    assert np.array_equal(found.spacing, [2, 3, 1])
    assert np.array_equal(found.reference > 0, labels.transpose(1, 2, 0)[::-1, ::-1] > 0)


def test_a_case_that_lacks_a_sequence(tmp_path):
    case(tmp_path / "p1")
    (tmp_path / "p1" / "p1_flair.nii.gz").unlink()
    (item,) = every_item(tmp_path)
    assert item["image"][3] == NO_FILE
    assert list(read_patient(item).images) == ["t1", "t2", "t1ce"]


def test_a_label_map_of_another_grid_is_refused(tmp_path):
    case(tmp_path / "p1")
    (item,) = every_item(tmp_path)
    other = tmp_path / "other.nii.gz"
    nib.save(nib.Nifti1Image(np.zeros((6, 7, 9), np.uint8), LPS), other)
    with pytest.raises(InputError, match=r"other.nii.gz: its grid .*\(6 x 7 x 9 voxels, not 6 x 7 x 8\)"):
        read_patient(item, other)
    with pytest.raises(InputError, match="no such file"):
        read_patient(item, tmp_path / "absent.nii.gz")


@pytest.mark.parametrize("count", [1, 3])
def test_the_command_draws_tiny_cases(tmp_path, capsys, count):
    cases = make_cases(tmp_path / "data", count, description="synthetic phantom")
    picture = tmp_path / "made" / "picture.png"
    surface = ["--surface", str(tmp_path / "made" / "picture_3d.png")] if count == 1 else []
    assert render_case.main([str(cases), str(picture), *surface]) == 0
    assert capsys.readouterr().out.split() == [str(picture), *surface[1:]]
    assert all(imread(path).ndim == 3 for path in (picture, *surface[1:]))
    # Nothing else is left.
    assert len(list(picture.parent.iterdir())) == 1 + len(surface) // 2


def test_the_overview_has_a_row_for_each_case(tmp_path):
    cases = make_cases(tmp_path, 2)
    next((cases / "BraTS20_Training_002").glob("*_t2.nii.gz")).unlink()
    figure = overview(every_item(cases))
    assert [ax.get_title() for ax in figure.axes[:5]] == ["T1", "T2", "T1 contrast-enhanced", "FLAIR", "reference"]
    assert [len(ax.images) for ax in figure.axes] == [1, 1, 1, 1, 2, 1, 0, 1, 1, 2]


@pytest.mark.parametrize(
    ("count", "options", "said"),
    [
        (0, [], "holds 0 cases; give a folder of 1 to 12 cases"),
        (13, [], "holds 13 cases"),
        (2, ["--surface", "a.png"], "--surface: .* holds 2 cases; give the folder of one case"),
        (2, ["--prediction", "a.nii.gz"], "--prediction: .* holds 2 cases"),
    ],
)
def test_the_command_refuses(tmp_path, count, options, said):
    with pytest.raises(InputError, match=said):
        render_case.main([str(make_cases(tmp_path, count)), str(tmp_path / "picture.png"), *options])
    assert not (tmp_path / "picture.png").exists()
