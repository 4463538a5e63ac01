# Copyright (c) the brats_mri_panet_segmentation authors
# SPDX-License-Identifier: Apache-2.0
"""The page of a run: one file that loads nothing, with texts as texts and cases in order."""

import base64
import gzip
import hashlib
import io
import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from known_run import BRAIN, known_labels, write_case, write_evaluation
from matplotlib.colors import to_rgb
from PIL import Image
from scripts import report
from scripts.brats import CORE
from scripts.pages.page import NIIVUE, make_report
from scripts.pages.runs import read_run
from scripts.utils.errors import InputError
from scripts.utils.files import file_checksum

EVIL = "<script>alert(1)<script>&\"'"


class Page(HTMLParser):
    """The elements of a page, with their attributes and texts."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: dict[str, list[str]] = {}
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data):
        if self.elements:
            self.texts.setdefault(self.elements[-1][0], []).append(data)

    def having(self, attribute: str) -> list[str]:
        return [str(attrs[attribute]) for _, attrs in self.elements if attribute in attrs]


def page_of(folder: Path) -> str:
    return make_report(read_run(folder))


def volumes_of(page: str) -> dict[str, dict]:
    """The data of the viewers by the id of their case."""
    found = re.findall(r'<script type="application/json" id="(case-\d+)-volumes">(.*?)</script>', page, re.DOTALL)
    return {case: json.loads(text) for case, text in found}


def cards_of(page: str) -> list[str]:
    return re.findall(r'<article class="case".*?</article>', page, re.DOTALL)


def test_niivue_is_the_file_of_version_0_69_0():
    file = NIIVUE / "niivue.umd.js"
    assert file.stat().st_size == 2_284_381
    assert file_checksum(file) == "47b896b77ec4a5be3ef1949c33ad393b6f45629921f326c279000bcf51bdb4af"
    assert "BSD 2-Clause License" in (NIIVUE / "LICENSE").read_text()


def test_the_command_writes_one_file_and_keeps_an_earlier_one(evaluated, capsys):
    assert report.main([str(evaluated)]) == 0
    file = evaluated / "report.html"
    assert capsys.readouterr().out.splitlines() == [str(file)]
    first = file.read_bytes()
    assert report.main([str(evaluated), "--output", str(file)]) == 0
    assert file.read_bytes() == first, "the same run gives the same page"
    (kept,) = evaluated.glob("report_*.html")
    assert kept.read_bytes() == first
    assert sorted(path.suffix for path in evaluated.iterdir() if path.name.startswith(".")) == []


@pytest.mark.parametrize("options", [["no_such_folder"], ["-o", "."]])
def test_the_command_refuses_in_one_line(evaluated, options, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=r"; give ") as caught:
        report.main(options if len(options) == 1 else [str(evaluated), *options])
    assert "\n" not in str(caught.value)


def test_the_page_loads_nothing(evaluated):
    page = Page(page_of(evaluated))
    for attribute in ("src", "href", "srcset", "action", "data", "poster", "xlink:href"):
        assert [v for v in page.having(attribute) if not v.startswith(("#", "data:"))] == [], attribute
    (policy,) = [attrs["content"] for _, attrs in page.elements if attrs.get("http-equiv")]
    assert policy.startswith("default-src 'none'; script-src 'sha256-")
    styles = " ".join([*page.texts["style"], *page.having("style")])
    assert "@import" not in styles and not re.search(r"url\((?!#)", styles)


def test_the_policy_allows_the_scripts_of_the_page_and_no_other(evaluated):
    text = page_of(evaluated)
    scripts = re.findall(r"<script>(.*?)</script>", text, re.DOTALL)
    digests = [base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts]
    assert re.findall(r"'sha256-([^']+)'", text) == digests and len(digests) == 2


def test_cases_stand_from_worst_to_best_with_their_scores(evaluated):
    page = page_of(evaluated)
    cards = cards_of(page)
    assert [re.findall(r"\d\. (\w+)", card)[0] for card in cards] == ["worst", "middle", "best"]
    assert [re.findall(r"mean Dice ([\d.]+)", card)[0] for card in cards] == ["0.200", "0.600", "0.950"]
    cells = re.findall(r"<td>([^<]*)</td>", cards[0])
    # Rows are Dice, HD95, volume and reference volume in ml. Columns are regions.
    assert cells == ["0.100", "0.200", "0.300", "1.00", "2.00", "3.00", "0.0", "0.0", "0.0", "0.0", "0.0", "0.1"]
    assert page.count("<svg") == 3


def test_volumes_in_the_page_are_those_of_the_case(evaluated):
    volumes = volumes_of(page_of(evaluated))
    assert list(volumes) == ["case-1", "case-2", "case-3"]
    data = volumes["case-2"]
    assert (data["size"], data["center"], data["first"]) == ([20, 16, 14], [5, 6, 5], "flair")
    assert list(data["images"]) == ["t1", "t2", "t1ce", "flair"]
    image = nib.Nifti1Image.from_bytes(gzip.decompress(base64.b64decode(data["maps"]["reference"])))
    parts = np.array([0, 1, 2, 0, 3])[known_labels()][BRAIN]
    assert np.array_equal(image.dataobj, parts)


def test_the_record_and_the_settings_are_shown(evaluated):
    page = page_of(evaluated)
    for text in ("python -m monai.bundle run --dataset_dir &#x27;the data&#x27;", "model.pt", "python 3.11.7"):
        assert f"{text}</dd>" in page
    assert "&quot;learning_rate&quot;: 0.125" in page
    assert "Synthetic phantoms are among the cases" in page and "not for diagnosis" in page


def test_secrets_are_not_shown(evaluated):
    for name in ("run.json", "config.json"):
        content = json.loads((evaluated / name).read_text())
        address = {"tracking_uri": "https://me:word@example.org", "command": "run --x https://me:word@example.org"}
        (evaluated / name).write_text(json.dumps({**content, **address}))
    page = page_of(evaluated)
    assert page.count("https://***@example.org") == 3 and "me:word" not in page


def test_texts_of_files_stay_texts(tmp_path):
    """Names of cases, reasons and settings come from files of others."""
    name = EVIL.replace("/", "")
    write_case(tmp_path / "data", name)
    folder = write_evaluation(tmp_path / EVIL / "evaluation_all", tmp_path / "data", {name: (0.1, 0.2, 0.3)})
    record = json.loads((folder / "run.json").read_text())
    record |= {"failed": {EVIL: EVIL}, "command": EVIL, "model_file": f"</dd>{EVIL}", "thresholds": {EVIL: EVIL}}
    (folder / "run.json").write_text(json.dumps(record))
    (folder / "config.json").write_text(json.dumps({"evaluation_dir": f"</pre>{EVIL}"}))
    for file in ("scores.csv", "summary.csv"):
        (folder / file).write_text((folder / file).read_text().replace("hd95_", "h<i>_"))
    page = Page(page_of(folder))
    assert len(volumes_of(page_of(folder))) == 1
    scripts = [attrs for tag, attrs in page.elements if tag == "script"]
    # The settings and the volumes of the viewer, niivue, and the viewer.
    assert [attrs.get("type") for attrs in scripts] == ["application/json"] * 2 + [None] * 2
    assert not any(tag == "i" for tag, _ in page.elements)
    assert not any("alert(1)" in text for text in page.texts["script"])


def test_failed_cases_and_missing_images_are_told(evaluated):
    record = json.loads((evaluated / "run.json").read_text())
    (evaluated / "run.json").write_text(json.dumps({**record, "failed": {"broken": "RuntimeError: too odd"}}))
    data = evaluated.parents[1] / "data"
    (data / "worst" / "worst_t1.nii.gz").write_bytes(b"damaged")
    shutil.rmtree(data / "middle")
    (evaluated / "best.nii.gz").unlink()
    page = page_of(evaluated)
    assert "1 case failed." in page
    assert "<dt>broken</dt><dd>RuntimeError: too odd</dd>" in page
    worst, middle, best = cards_of(page)
    assert "worst_t1.nii.gz: not a readable image" in worst
    assert "its images cannot be read" in middle and "<figure>" not in middle
    assert "has saved no label map" in best and 'class="open"' in best
    assert list(volumes_of(page)["case-3"]["maps"]) == ["reference"]


def pictures_of(page: str) -> list[Image.Image]:
    found = re.findall(r'<img src="data:image/webp;base64,([^"]+)"', page)
    return [Image.open(io.BytesIO(base64.b64decode(text))) for text in found]


def test_warnings_are_in_tables_cards_and_notices(evaluated):
    run = evaluated / "run.json"
    warnings = {"worst": [{"kind": "other voxel size", "text": "worst_t1.nii.gz: voxels of <2> mm."}]}
    run.write_text(json.dumps({**json.loads(run.read_text()), "warnings": warnings, "accepted": ["other voxel size"]}))
    page = page_of(evaluated)
    assert '<p class="notice">There are warnings about 1 case.</p>' in page
    assert ["worst_t1.nii.gz: voxels of &lt;2&gt; mm." in card for card in cards_of(page)] == [True, False, False]
    (row,) = re.findall(r'<tr><th scope="row"><a href="#case-1">worst</a></th>.*?</tr>', page)
    assert row.endswith("<td>other voxel size</td></tr>")
    assert "<dt>accepted doubts</dt><dd>other voxel size</dd>" in page


def test_the_first_cases_have_a_viewer_and_more_have_a_picture(evaluated, monkeypatch):
    monkeypatch.setattr("scripts.pages.page.MOST_VIEWERS", 1)
    monkeypatch.setattr("scripts.pages.page.MOST_PICTURES", 2)
    page = page_of(evaluated)
    assert list(volumes_of(page)) == ["case-1"]
    assert ['class="open"' in card for card in cards_of(page)] == [True, False, False]
    assert ["<figure>" in card for card in cards_of(page)] == [True, True, False]
    assert "The first 2 have a picture. Viewers (1): cases that need a look, and then the first." in page


def region(dice: float, low: float, reliable: bool) -> dict:
    return {"dice": dice, "low": low, "high": 0.95, "reliable": reliable}


@pytest.fixture
def segmented(evaluated) -> Path:
    """What panet segment leaves of the cases, with made-up expectations."""
    for name in ("scores.csv", "summary.csv"):
        (evaluated / name).unlink()
    (evaluated / "config.json").write_text(json.dumps({"case_folders": True}))
    listed = evaluated / "datalist.json"
    listed.write_text(listed.read_text().replace("validation", "testing"))
    good, poor = region(0.91, 0.85, True), region(0.4, 0.1, False)
    diameters = {"largest_mm": 12.4, "axial_mm": 10.0, "perpendicular_mm": 7.6}
    for name, core in (("best", good), ("middle", poor), ("worst", None)):
        expected = core and {"WT": good, "TC": core, "ET": good, "probability_of_any_ET": 0.9}
        volumes = {"ET": 1.0, "TC": 2.5, "WT": 31.016000000000002}
        lesion = {"volume_ml": volumes, "diameters": {"ET": None, "WT": diameters}}
        record = {"date": "2026-11-30T01:02:03+00:00", "expected_dice": expected, "volumes_ml": volumes}
        record |= {"lesions": [lesion] * (12 if name == "worst" else 1)}
        record["missing_sequences"] = ["t1ce"] if name == "best" else []
        (evaluated / name).mkdir()
        (evaluated / f"{name}.nii.gz").rename(evaluated / name / f"{name}.nii.gz")
        (evaluated / name / f"{name}.json").write_text(json.dumps(record))
    return evaluated


def test_a_segmentation_begins_with_the_patients_the_worst_expected_first(segmented):
    page = page_of(segmented)
    sections = re.findall(r"<h2>(.*?)</h2>", page)
    assert sections == ["Patients", "Cases", "Run", "Settings", "Licenses"]
    rows = re.findall(r'<tr><th scope="row"><a href="(#case-\d)">(\w+)</a></th>(.*?)</tr>', page)
    assert [row[:2] for row in rows] == [("#case-1", "middle"), ("#case-2", "best"), ("#case-3", "worst")]
    cells = [re.findall(r"<td>(.*?)</td>", row[2]) for row in rows]
    # Expected Dice, volumes in ml, lesions, largest diameters of ET and WT, missing sequences, warnings.
    assert cells[0] == ["0.91", "0.40", "0.91", "1.0", "2.5", "31.0", "1", "", "12", "", ""]
    assert cells[1][1] == "0.91" and cells[1][-2:] == ["t1ce", ""]
    assert cells[2] == ["", "", "", "1.0", "2.5", "31.0", "12", "", "12", "", ""]
    middle, best, worst = cards_of(page)
    assert '<p class="notice">expected Dice WT 0.91 (0.85 to 0.95), TC 0.40 (0.10 to 0.95)' in middle
    assert "do not rely on the core</p>" in middle
    assert "<p>expected Dice WT 0.91 (0.85 to 0.95), TC 0.91" in best
    assert '<p class="notice">Without T1 contrast-enhanced.</p>' in best
    assert "expected Dice unknown" in worst and "2 smaller lesions" in worst
    assert re.findall(r"<td>(.*?)</td>", best) == ["1.0", "2.5", "31.0", "", "", "12", "10 x 8"]


def test_cases_that_need_a_look_get_the_viewers(segmented, monkeypatch):
    monkeypatch.setattr("scripts.pages.page.MOST_VIEWERS", 1)
    assert list(volumes_of(page_of(segmented))) == ["case-1"]
    run = segmented / "run.json"
    warnings = {"worst": [{"kind": "odd name", "text": "rename it."}]}
    run.write_text(json.dumps({**json.loads(run.read_text()), "warnings": warnings}))
    monkeypatch.setattr("scripts.pages.page.MOST_VIEWERS", 2)
    assert list(volumes_of(page_of(segmented))) == ["case-1", "case-3"]


def test_the_table_of_all_patients_is_linked(segmented):
    assert "volumes.csv" not in page_of(segmented)
    (segmented / "volumes.csv").write_text("case")
    assert '<a href="volumes.csv">' in page_of(segmented)


def test_without_the_viewers_file_the_page_has_slices_and_no_script(evaluated, monkeypatch):
    """Packages of the bundle leave the file out."""
    whole = page_of(evaluated)
    monkeypatch.setattr("scripts.pages.page.VIEWER_FILE", evaluated / "absent.js")
    text = page_of(evaluated)
    page = Page(text)
    assert "script" not in {tag for tag, _ in page.elements} and 'class="open"' not in text and "<canvas" not in text
    assert "script-src 'none'" in text and "NiiVue" not in text
    assert "has no viewer" in text and "has no viewer" not in whole
    pictures = pictures_of(text)
    assert [picture.tobytes() for picture in pictures] == [picture.tobytes() for picture in pictures_of(whole)]
    # The prediction has the colors of the core.
    core = np.array(to_rgb(CORE.color)) * 255
    for picture in pictures:
        colors = np.asarray(picture.convert("RGB"), float)
        assert (np.abs(colors - core).max(axis=2) < 25).sum() > 50


def test_a_training_has_curves_and_no_viewer(training):
    page = page_of(training)
    assert page.count("<svg") == 3 and "<canvas" not in page
    assert "The best validation has a mean Dice of" in page
    assert len(page.encode()) < 500_000
    assert "script-src 'none'" in page


def test_real_runs_are_reported(evaluation, segmentation, tmp_path):
    for folder in (evaluation, segmentation):
        assert report.main([str(folder), "-o", str(tmp_path / "page.html")]) == 0
        page = (tmp_path / "page.html").read_text()
        assert len(volumes_of(page)) == 3
        (tmp_path / "page.html").unlink()
