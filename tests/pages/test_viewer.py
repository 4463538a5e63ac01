# Copyright (c) the brats_mri_panet_segmentation authors
# SPDX-License-Identifier: Apache-2.0
"""The viewer of a page in a real browser, chromium without a window. Without chromium these tests skip."""

import csv
import io
import json

import numpy as np
import pytest
from browser import CHROMIUM, Browser
from known_run import BRAIN, known_images, write_csv
from matplotlib.colors import to_rgb
from matplotlib.image import imread
from scripts import report
from scripts.brats import CORE, ENHANCING

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium here (apt-get install chromium)"),
]


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    opened = Browser(tmp_path_factory.mktemp("profile"))
    yield opened
    opened.close()


@pytest.fixture
def page(browser, evaluated):
    """The browser with the report of three cases, the viewer of the second one opened."""
    assert report.main([str(evaluated)]) == 0
    browser.resize(1200, 900)
    browser.open(evaluated / "report.html")
    click(browser, "#case-2 .open")
    browser.until("document.getElementById('told-axial').textContent !== ''")
    yield browser
    assert browser.errors == []
    assert browser.requests == [(evaluated / "report.html").as_uri()]


def click(browser, selector):
    browser.value(f"document.querySelector({selector!r}).click()")


def told(browser):
    return [browser.value(f"document.getElementById('told-{p}').textContent") for p in ("axial", "coronal", "sagittal")]


def canvas(browser):
    """The pixels of the canvas, from 0 to 255."""
    browser.value("document.getElementById('canvas').scrollIntoView({block: 'center'})")
    browser.value("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(() => done(true))))")
    left, top, width, height = browser.value(
        "(() => { const b = document.getElementById('canvas').getBoundingClientRect();"
        " return [b.x, b.y, b.width, b.height].map(Math.round); })()"
    )
    return imread(io.BytesIO(browser.screenshot()))[top : top + height, left : left + width, :3] * 255


def slide(browser, plane, to):
    browser.value(
        f"(() => {{ const s = document.getElementById('slice-{plane}'); s.value = {to};"
        " s.dispatchEvent(new Event('input')); })()"
    )


def choose(browser, sequence):
    click(browser, f"input[name=sequence][value={sequence}]")


def hide_overlays(browser):
    for name in ("reference", "prediction"):
        if browser.value(f"document.getElementById('show-{name}').checked"):
            click(browser, f"#show-{name}")


def axial_plane(pixels):
    """The part of the canvas that shows the axial plane, which is the first of three in a row."""
    bright = pixels.max(axis=2) > 0
    columns = np.flatnonzero(bright.any(axis=0))
    width = pixels.shape[1] * 20 // (20 + 20 + 16)
    return pixels[:, columns[0] : columns[0] + width]


def gray(sequence, index):
    """The gray value of a voxel of the brain's box in the page."""
    image = known_images()[sequence][BRAIN]
    return float(np.clip(image[index] / np.percentile(image, 99.5), 0, 1) * 255)


def colored(pixels):
    """How many pixels have a color."""
    return int((pixels.max(axis=2) - pixels.min(axis=2) > 40).sum())


def test_the_viewer_opens_at_the_tumor(page):
    assert told(page) == ["7 of 16, S 6.0 mm", "9 of 20, P 8.0 mm", "8 of 24, L 7.0 mm"]
    assert page.value("document.querySelector('#viewer').closest('article').id") == "case-2"
    assert page.value("document.querySelector('input[name=sequence]:checked').value") == "flair"
    assert page.value("document.getElementById('viewer-fault').hidden")


def test_the_sliders_move_the_slices(page):
    hide_overlays(page)
    for slice_ in (3, 12):
        slide(page, "axial", slice_)
        # Slices of the file count from 1, and the brain begins at the second one.
        assert told(page)[0] == f"{slice_ + 1} of 16, S {slice_}.0 mm"
        # FLAIR has one gray value in each axial slice.
        plane = axial_plane(canvas(page))
        expected = gray("flair", (5, 5, slice_ - 1))
        assert np.median(plane[plane > 10]) == pytest.approx(expected, abs=6)


def test_coronal_and_sagittal_slices_are_those_of_the_label_map(page):
    """The prediction's core has the voxels 7 to 9 from the right and 8 to 10 from the front."""
    first = {"coronal": (20, 40, 8 - BRAIN[1].start + 1), "sagittal": (40, 56, 7 - BRAIN[0].start + 1)}
    for plane, (begin, end, slice_) in first.items():
        found = {}
        for number in (slice_ - 1, slice_, slice_ + 2, slice_ + 3):
            slide(page, plane, number)
            pixels = canvas(page)
            width = pixels.shape[1] / 56
            found[number] = colored(pixels[:, int(begin * width) + 10 : int(end * width) - 10]) > 0
        assert found == {slice_ - 1: False, slice_: True, slice_ + 2: True, slice_ + 3: False}, plane


def test_arrow_keys_move_a_slider_that_has_the_focus(page):
    page.value("document.getElementById('slice-coronal').focus()")
    page.press("ArrowRight", 39)
    page.until("document.getElementById('told-coronal').textContent.startsWith('10 of 20')")
    assert told(page) == ["7 of 16, S 6.0 mm", "10 of 20, P 9.0 mm", "8 of 24, L 7.0 mm"]


def test_the_wheel_scrolls_the_plane_under_it(page):
    canvas(page)
    box = page.value(
        "(() => { const b = document.getElementById('canvas').getBoundingClientRect();"
        " return [b.x, b.y, b.width, b.height]; })()"
    )
    page.wheel(box[0] + box[2] * 0.15, box[1] + box[3] * 0.5, 120)
    page.until("!document.getElementById('told-axial').textContent.startsWith('7 of')")
    axial, coronal, sagittal = told(page)
    assert axial in ("6 of 16, S 5.0 mm", "8 of 16, S 7.0 mm")
    assert (coronal, sagittal) == ("9 of 20, P 8.0 mm", "8 of 24, L 7.0 mm")
    assert page.value("document.getElementById('slice-axial').value") == str(int(axial.split()[0]) - 1)


def test_sequences_switch_and_the_patients_left_is_on_the_right(page):
    hide_overlays(page)
    choose(page, "t2")
    plane = axial_plane(canvas(page))
    middle = plane[plane.shape[0] // 3]
    lit = np.flatnonzero(middle.max(axis=1) > 10)
    left, right = middle[lit[5]], middle[lit[-15]]
    assert left.mean() == pytest.approx(gray("t2", (0, 0, 0)), abs=6)
    assert right.mean() == pytest.approx(255, abs=6)


def test_reference_and_prediction_go_on_and_off(page):
    assert page.value("[...document.querySelectorAll('#overlays input')].map(i => i.checked).slice(0, 2)") == [
        False,
        True,
    ]
    prediction = colored(canvas(page))
    click(page, "#show-prediction")
    assert colored(canvas(page)) == 0
    click(page, "#show-reference")
    reference = colored(canvas(page))
    # The prediction lacks the edema.
    assert 0 < prediction < reference


def test_parts_have_the_bundles_colors(page):
    page.value(
        "(() => { const o = document.getElementById('opacity'); o.value = 100;"
        " o.dispatchEvent(new Event('input')); })()"
    )
    # The enhancing rim is one voxel wide, and the viewer blurs the edges of voxels. The crosshair is moved off it.
    slide(page, "sagittal", 15)
    slide(page, "coronal", 14)
    for part, slice_, least in ((CORE, 7, 200), (ENHANCING, 6, 10)):
        slide(page, "axial", slice_)
        pixels = canvas(page).reshape(-1, 3)
        assert (np.abs(pixels - np.array(to_rgb(part.color)) * 255).max(axis=1) < 6).sum() > least, part.name


def test_one_viewer_is_open_at_a_time(page):
    page.value("document.getElementById('told-axial').textContent = ''")
    click(page, "#case-1 .open")
    page.until("document.getElementById('told-axial').textContent !== ''")
    assert page.value("document.querySelector('#viewer').closest('article').id") == "case-1"
    assert page.value("document.querySelectorAll('canvas').length") == 1
    assert not page.value("document.querySelector('#case-2 .open').hidden")
    click(page, "#close")
    assert page.value("getComputedStyle(document.getElementById('viewer')).visibility") == "hidden"
    assert page.value("document.activeElement.closest('article').id") == "case-1"


def test_a_viewer_may_be_closed_or_changed_before_it_is_open(page, evaluated):
    page.open(evaluated / "report.html")
    for selector in ("#case-1 .open", "#case-3 .open", "#close", "#case-3 .open"):
        click(page, selector)
    page.until("document.querySelector('#case-3 #viewer:not(.closed)') !== null")
    canvas(page)
    click(page, "#close")
    page.value("new Promise(done => setTimeout(() => done(true), 500))")
    assert page.value("document.getElementById('viewer-fault').hidden")


def test_a_narrow_window_needs_no_scrolling_to_the_side(page):
    page.resize(420, 900)
    page.until("innerWidth === 420")
    assert page.value("document.documentElement.scrollWidth") <= 420


@pytest.fixture
def wide(browser, evaluated):
    """The browser with the report of an evaluation of many scores. The command line has a text of two lines."""
    with (evaluated / "scores.csv").open(newline="") as file:
        header, *rows = csv.reader(file)
    added = ("sensitivity", "specificity", "surface_dice_0.5mm", "surface_dice_1mm", "lesion_dice", "lesion_hd95")
    columns = [f"{measure}_{region}" for measure in added for region in ("ET", "TC", "WT")]
    write_csv(evaluated / "scores.csv", [[*header, *columns], *([*row, *[0.5] * len(columns)] for row in rows)])
    record = json.loads((evaluated / "run.json").read_text())
    (evaluated / "run.json").write_text(json.dumps({**record, "command": "python run.py 'two  spaces\n  and a line'"}))
    assert report.main([str(evaluated)]) == 0
    browser.resize(1300, 900)
    browser.open(evaluated / "report.html")
    yield browser
    assert browser.errors == []


def test_no_table_is_clipped_in_a_usual_window(wide):
    tables = "[...document.querySelectorAll('.scroll')]"
    assert wide.value(f"{tables}.length") == 5
    assert wide.value(f"{tables}.every(box => box.scrollWidth <= box.clientWidth)")
    assert wide.value("document.documentElement.scrollWidth <= innerWidth")


def test_in_a_narrow_window_a_table_scrolls_and_its_names_stay(wide):
    wide.resize(420, 900)
    left = "document.querySelector('details .scroll tbody th').getBoundingClientRect().left"
    score = "document.querySelector('details .scroll tbody td').getBoundingClientRect().left"
    before = wide.value(left), wide.value(score)
    assert (
        wide.value(
            "(() => { const b = document.querySelector('details .scroll'); b.scrollLeft = 150;"
            " return b.scrollLeft; })()"
        )
        == 150
    )
    assert wide.value(left) == before[0]
    assert wide.value(score) == pytest.approx(before[1] - 150)
    assert wide.value("document.documentElement.scrollWidth <= innerWidth")


def test_the_command_line_keeps_its_spaces(wide):
    shown = wide.value(
        "[...document.querySelectorAll('dd')].map(dd => dd.innerText).find(t => t.startsWith('python run'))"
    )
    assert shown == "python run.py 'two  spaces\n  and a line'"


def test_without_webgl_the_page_says_so(page, evaluated):
    page.open(evaluated / "report.html")
    page.value("HTMLCanvasElement.prototype.getContext = () => null")
    click(page, "#case-1 .open")
    page.until("!document.getElementById('viewer-fault').hidden")
    assert "no WebGL 2" in page.value("document.getElementById('viewer-fault').textContent")
    assert page.value("document.querySelector('#case-1 .open').hidden") is False
