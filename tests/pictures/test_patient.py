# Copyright (c) the brats_mri_panet_segmentation authors
# SPDX-License-Identifier: Apache-2.0
"""Pictures of constructed patients: slices, colors, marks, scales, legends, and files in all formats that are read."""

import shutil
from itertools import pairwise
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from dicom_series import write_case
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.image import imread
from pydicom import dcmread
from scripts import render_case
from scripts.brats import CORE, EDEMA, ENHANCING, SEQUENCES
from scripts.data.cases import NO_FILE
from scripts.data.datalist import every_item
from scripts.inference.writers import record_file
from scripts.pictures import surface
from scripts.pictures.captions import FOR_RESEARCH, Captions
from scripts.pictures.figure import NO_TUMOR, PHANTOM
from scripts.pictures.patient import Patient, read_patient
from scripts.pictures.preview import overview, preview
from scripts.pictures.surface import surface_view
from scripts.utils.errors import InputError
from scripts.utils.files import save_json
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
    """The axes in rows and columns: four sequences, outlines, and colors."""
    count = sum(bool(ax.get_title()) for ax in figure.axes)
    return [figure.axes[start : start + count] for start in range(0, len(figure.axes), count)]


def lines_of(ax) -> list:
    """The positions of the lines where other planes cut."""
    lines = [line for line in ax.lines if line.get_gid() is None]
    return [
        (line.get_xdata()[0], None) if line.get_xdata() != [0, 1] else (None, line.get_ydata()[0]) for line in lines
    ]


def test_columns_and_marks_of_the_preview():
    rows = planes(preview(patient()))
    titles = ["T1", "T1 contrast-enhanced", "T2", "FLAIR", "T1 contrast-enhanced, outlines", "FLAIR, colors"]
    assert [ax.get_title() for ax in rows[0]] == titles
    # Radiological convention: the patient's right is on the left. In the sagittal plane the front is on the left.
    marks = [[text.get_text() for text in row[1].texts] for row in rows]
    assert marks == [["R", "L"], ["R", "L"], ["A", "P"], ["R", "L"]]


def test_a_row_says_where_its_slice_is():
    """Of the voxel (11, 24, 11) and of the second lesion; indices run to the left, to the back and up."""
    rows = planes(preview(patient()))
    told = [next(t.get_text() for t in row[0].texts if "slice" in t.get_text()).split("\n") for row in rows]
    assert told == [
        ["axial", "slice 12 of 30", "S 33.0 mm"],
        ["coronal", "slice 25 of 50", "P 24.0 mm"],
        ["sagittal", "slice 12 of 40", "L 22.0 mm"],
        ["axial", "slice 21 of 30", "S 60.0 mm"],
    ]


def test_the_preview_shows_the_regions_of_the_largest_lesion_with_its_colors():
    made = patient()
    # All parts are in these planes, although edema has a larger area in others. The second lesion is in the last.
    assert made.slices == [11, 24, 11] and made.further_slices == [20]
    x, y, z = made.slices
    rows = planes(preview(made))
    for row, wanted in zip(
        rows,
        (
            made.prediction[BRAIN][:, :, z - 3].T,
            made.prediction[BRAIN][:, y - 5].T[::-1],
            made.prediction[BRAIN][x - 4].T[::-1],
            made.prediction[BRAIN][:, :, 20 - 3].T,
        ),
        strict=True,
    ):
        gray, color = row[5].images
        assert [len(ax.images) for ax in row[:5]] == [1] * 5
        assert np.array_equal(color.get_array(), wanted)
        assert gray.get_array().shape == wanted.shape
        assert color.get_alpha() == 0.5
        colors = color.cmap(color.norm(np.array([1, 2, 3])))[:, :3]
        assert np.allclose(colors, [to_rgb(part.color) for part in (CORE, EDEMA, ENHANCING)])
        assert color.cmap(color.norm(0))[3] == 0
        outlines = [to_rgb(found.get_edgecolor()[0][:3]) for found in row[4].collections]
        regions = 1 if row is rows[3] else 3
        assert np.allclose(outlines, [to_rgb(part.color) for part in (EDEMA, CORE, ENHANCING)][:regions])


def test_lines_show_where_the_other_planes_cut():
    made = patient(spacing=(2.0, 2.0, 2.0))
    axial, coronal, sagittal, _ = (row[5] for row in planes(preview(made)))
    x, y, z = (2 * (index + 0.5 - side.start) for index, side in zip(made.slices, BRAIN, strict=True))
    up = [(None, 48 - z), (None, 48 - 2 * (20.5 - 3))]
    assert lines_of(axial) == [(x, None), (None, y)]
    assert lines_of(coronal) == [(x, None), *up]
    assert lines_of(sagittal) == [(y, None), *up]


def test_a_region_elsewhere_gets_a_slice_of_its_own():
    """Enhancing tumor in a second lesion, too small for a slice of its own as a lesion."""
    made = patient()
    labels = np.where(made.prediction == 3, 1, made.prediction)
    labels[30:33, 30:33, 20:23] = 0
    labels[30, 31, 22] = 3
    assert patient(prediction=labels).further_slices == [22]


def test_millimeters_are_equal_in_all_directions_and_slices(tmp_path):
    figure = preview(patient(spacing=(2.0, 1.0, 3.0)))
    figure.savefig(tmp_path / "picture.png")
    scales = []
    for row, size in zip(planes(figure), ((64, 40), (64, 72), (40, 72), (64, 40)), strict=True):
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
    ax = planes(figure)[0][5]
    # Voxel (9, 22, 11) is edema, voxel (30, 10, 11) brain without tumor.
    for voxel, color in (((9, 22), 0.5 + 0.5 * np.array(to_rgb(EDEMA.color))), ((30, 10), np.ones(3))):
        x, y = ax.transData.transform([(2 * (voxel[0] - 4 + 0.5), voxel[1] - 5 + 0.5)])[0]
        assert np.allclose(pixels[int(len(pixels) - y), int(x)], color, atol=0.02)


def test_the_legend_tells_volumes():
    made = patient(spacing=(10.0, 10.0, 10.0))
    found = texts(preview(made))
    edema, core = 640 - 96 + 27 + 3, 8
    for text in (f"edema {edema}.0 ml", "enhancing tumor 88.0 ml", f"necrotic and non-enhancing core {core}.0 ml"):
        assert text in found
    assert f"prediction: ET 88.0 ml, TC 96.0 ml, WT {edema + 96}.0 ml, 2 lesions" in found
    assert "outline of the reference" not in found


def test_the_reference_is_outlined_beside_a_prediction():
    reference = np.zeros(SIZE, np.uint8)
    reference[8:18, 20:30, 8:16] = 2
    reference[10:12, 20:22, 8:12] = 3
    figure = preview(patient(reference=reference, spacing=(1.0, 1.0, 1.0)))
    axial = planes(figure)[0]
    # The prediction's regions are outlined in colors beside it, in this plane.
    assert [len(ax.collections) for ax in axial] == [0, 0, 0, 0, 3, 3]
    assert {tuple(found.get_edgecolor()[0]) for found in axial[5].collections} == {(1.0, 1.0, 1.0, 1.0)}
    # The outline of WT, in mm from the corner of the brain's box, runs along the faces of its voxels.
    points = np.concatenate([path.vertices for path in axial[5].collections[0].get_paths()])
    assert points.min(axis=0) == pytest.approx([8 - 4, 20 - 5])
    assert points.max(axis=0) == pytest.approx([18 - 4, 30 - 5])
    lines = " ".join(texts(figure))
    assert "outline of the reference" in lines and "reference: ET 0.0 ml, TC 0.0 ml, WT 0.8 ml" in lines


def test_a_reference_alone_is_colored():
    made = patient()
    figure = preview(patient(reference=made.prediction, prediction=None))
    assert np.array_equal(planes(figure)[0][5].images[1].get_array(), made.prediction[BRAIN][:, :, 11 - 3].T)
    assert any(text.startswith("reference: ET") for text in texts(figure))
    assert not planes(figure)[0][5].collections


@pytest.mark.parametrize("draw", [preview, surface_view])
def test_titles(draw):
    empty = np.zeros(SIZE, np.uint8)
    captions = Captions(("WARNING: odd name",), "expected Dice unknown", "weights w.pt (abc); 2026-11-30")
    figure = draw(patient(prediction=empty, phantom=True), captions)
    assert figure.get_suptitle() == f"p1 - {PHANTOM}; WARNING: odd name; {NO_TUMOR}"
    assert {"expected Dice unknown", f"weights w.pt (abc); 2026-11-30; {FOR_RESEARCH}"} <= set(texts(figure))
    assert draw(patient()).get_suptitle() == "p1"
    assert FOR_RESEARCH in texts(draw(patient()))
    lacking = {name: image for name, image in patient().images.items() if name not in ("t1", "t1ce")}
    without = draw(patient(prediction=None, images=lacking))
    assert without.get_suptitle() == "p1 - without T1 and T1ce" and not without.legends


@pytest.mark.parametrize("draw", [preview, surface_view])
def test_a_long_title_becomes_smaller_and_is_not_cut(draw):
    sizes = []
    for name in ("p1", "a name of many words " * 14):
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
    gray = planes(figure)[2][1].images[0].get_array()
    assert np.array_equal(gray, made.images["t1ce"][BRAIN][11 - 4].T[::-1])
    assert "prediction: ET 0.0 ml, TC 0.0 ml, WT 0.0 ml, 0 lesions     reference: " in " ".join(texts(figure))


def test_a_prediction_outside_the_brain_is_shown():
    labels = np.zeros(SIZE, np.uint8)
    labels[37:40, 46:50, 27:30] = 2
    made = patient(prediction=labels)
    row = planes(preview(made))[0]
    assert np.array_equal(row[5].images[1].get_array(), labels[4:, 5:, 27].T)
    assert surface_view(made).images


@pytest.mark.parametrize(
    ("lacking", "titles"),
    [
        (["t1ce"], ["T1", "T2", "FLAIR", "T1, outlines", "FLAIR, colors"]),
        (["t1ce", "t1", "flair"], ["T2", "T2, outlines", "T2, colors"]),
        (
            ["flair", "t2"],
            ["T1", "T1 contrast-enhanced", "T1 contrast-enhanced, outlines", "T1 contrast-enhanced, colors"],
        ),
    ],
)
def test_another_sequence_takes_the_place_of_a_missing_one(lacking, titles):
    made = patient()
    figure = preview(patient(images={s: image for s, image in made.images.items() if s not in lacking}))
    assert [ax.get_title() for ax in planes(figure)[0]] == titles


def test_the_rendering_looks_from_the_side_of_the_lesion():
    made = patient()
    right = surface_view(made)
    above = "from above, mirrored: left and right as in slices"
    assert [t for t in texts(right) if t.startswith("from")] == ["from the front right", "from the right", above]
    left = surface_view(patient(prediction=made.prediction[::-1]))
    assert [t for t in texts(left) if t.startswith("from")] == ["from the front left", "from the left", above]
    # Seen from the right the front is at the right.
    assert [t for t in texts(right) if t and set(t) <= set("RLAPSI")][4:] == ["P", "A", "S", "I", "R", "L", "A", "P"]


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
    # Seen from above it is on the left, as in axial slices.
    above = pixels[:, 2 * width :]
    red, green, blue = np.moveaxis(above, -1, 0)
    orange = (red - blue > 0.4 * red) & (red > green) & (red > 0.3)
    assert np.nonzero(orange)[1].mean() < 0.4 * width
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


def test_slices_are_numbered_as_in_the_file(tmp_path):
    """The first axis of the file runs up, the second to the right, and the third to the front."""
    case(tmp_path / "p1", np.array([[0, 2.0, 0, 5], [0, 0, 3.0, 0], [1.0, 0, 0, -4], [0, 0, 0, 1]]))
    (item,) = every_item(tmp_path)
    found = read_patient(item)
    assert found.brain.shape == (7, 8, 6)
    # Index 0 is farthest to the right, to the front, and down.
    assert [found.place(axis, 0) for axis in range(3)] == [
        ("7 of 7", "R 17.0 mm"),
        ("8 of 8", "A 21.0 mm"),
        ("1 of 6", "I 4.0 mm"),
    ]


def test_slices_of_a_series_have_its_numbers(tmp_path):
    images, _ = case(tmp_path / "brats" / "p1", LPS @ np.diag([1, 1, 2, 1]))
    folder = write_case(tmp_path / "dicom" / "p1", images)
    for file in folder.rglob("IM*"):
        data = dcmread(file)
        data.InstanceNumber = 101 - data.InstanceNumber
        data.save_as(file)
    (item,) = every_item(tmp_path / "dicom")
    found = read_patient(item)
    assert [found.place(2, index) for index in (0, 7)] == [("100 of 8", "S 0.0 mm"), ("93 of 8", "S 14.0 mm")]
    assert found.place(0, 2)[0] == "3 of 6"


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


def test_the_command_replaces_nothing_of_the_users(tmp_path, capsys):
    cases = make_cases(tmp_path / "data", 1)
    scan = next(cases.glob("*/*_t1.nii.gz"))
    before = scan.read_bytes()
    for arguments in ([str(scan)], ["a.png", "--surface", str(scan)]):
        with pytest.raises(InputError, match=r"give a name that ends in \.png"):
            render_case.main([str(cases), *arguments])
    with pytest.raises(InputError, match="a folder; give PICTURE the name of a file"):
        render_case.main([str(cases), str(tmp_path)])
    assert scan.read_bytes() == before
    earlier = tmp_path / "picture.png"
    earlier.write_bytes(b"a picture")
    assert render_case.main([str(cases), str(earlier)]) == 0
    kept, drawn = capsys.readouterr().out.splitlines()
    assert drawn == str(earlier)
    assert (tmp_path / kept.removeprefix("kept the earlier file as ")).read_bytes() == b"a picture"


def test_the_command_draws_what_the_records_say(tmp_path, monkeypatch):
    """The records of a run of panet segment are in the folder of the case and in the one above."""
    cases, drawn = make_cases(tmp_path / "data", 1), []
    (case_dir,) = cases.iterdir()
    label_map = tmp_path / "out" / case_dir.name / f"{case_dir.name}.nii.gz"
    label_map.parent.mkdir(parents=True)
    shutil.copy(next(case_dir.glob("*_seg.nii.gz")), label_map)
    told = {"dice": 0.91, "low": 0.85, "high": 0.95, "reliable": True}
    expected = {**dict.fromkeys(("ET", "TC", "WT"), told), "probability_of_any_ET": 0.9}
    record = {"date": "2026-01-02T03:04:05+00:00", "expected_dice": expected}
    record["parameters"] = {"configurations": ["inference.json", "whole_brain.yaml"]}
    save_json(record, record_file(label_map))
    run = {"model_file": "a/w.pt", "weights": ["abcdef0123"], "started": "2026-02-02", "phantom_weights": True}
    run["warnings"] = {case_dir.name: [{"kind": "odd name", "text": "rename it."}]}
    save_json(run, tmp_path / "out" / "run.json")
    monkeypatch.setattr("scripts.pictures.figure.save_figure", lambda figure, path: drawn.append(figure))
    arguments = [str(case_dir), "a.png", "--surface", "b.png"]
    for prediction in (label_map, Path(shutil.copy(label_map, tmp_path / "alone.nii.gz"))):
        render_case.main([*arguments, "--prediction", str(prediction)])
    assert len(drawn) == 4
    for figure in drawn[:2]:
        assert figure.get_suptitle() == f"{case_dir.name} - weights trained on phantoms; fast; WARNING: odd name"
        region = "0.91 (0.85 to 0.95)"
        assert f"expected Dice WT {region}, TC {region}, ET {region}, any ET 90 %" in texts(figure)
        assert f"weights a/w.pt (abcdef01); 2026-01-02; {FOR_RESEARCH}" in texts(figure)
    for figure in drawn[2:]:
        assert {"expected Dice unknown", f"weights unknown; date unknown; {FOR_RESEARCH}"} <= set(texts(figure))


def test_the_overview_has_a_row_for_each_case(tmp_path):
    cases = make_cases(tmp_path, 2)
    next((cases / "BraTS20_Training_002").glob("*_t2.nii.gz")).unlink()
    figure = overview(every_item(cases))
    assert [ax.get_title() for ax in figure.axes[:5]] == ["T1", "T2", "T1 contrast-enhanced", "FLAIR", "reference"]
    assert [len(ax.images) for ax in figure.axes] == [1, 1, 1, 1, 2, 1, 0, 1, 1, 2]
    assert FOR_RESEARCH in texts(figure)


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
