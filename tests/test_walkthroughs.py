# Copyright (c) the brats_mri_panet_segmentation authors
# SPDX-License-Identifier: Apache-2.0
"""The commands of the pages that walk through a task run as they stand there."""

import json
import os
import re
import shutil
import subprocess

import nibabel as nib
import pytest
from forks import python
from pages import in_blocks, run
from workflows import ROOT, TRAINING_SIZE, rows

DOCS = ROOT / "docs"
# A training of full size takes days on a CPU, so these commands run at test size.
SMALL = {key: value for key, value in TRAINING_SIZE.items() if key != "network_def#channels"}


@pytest.fixture
def place(tmp_path):
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    return tmp_path


def test_from_four_scans_to_a_segmentation(phantoms, place):
    case = next(path for path in sorted(phantoms.rglob("BraTS20_*")) if path.is_dir())
    (place / "ann").mkdir()
    for letter, name in zip("abcd", ("t1", "t1ce", "t2", "flair"), strict=True):
        shutil.copy(case / f"{case.name}_{name}.nii.gz", place / "ann" / f"ann_{name}.nii.gz")
        shutil.copy(case / f"{case.name}_{name}.nii.gz", place / f"{letter}.nii.gz")
    *_, check, segment, _by_words, named = in_blocks(DOCS / "get_started.md")
    assert "0 errors" in run(check, place).stdout
    done = run(segment, place)
    assert re.search(r"out/ann/ann\.nii\.gz: ET [\d.]+ ml, TC [\d.]+ ml, WT [\d.]+ ml", done.stdout)
    made = {str(path.relative_to(place)) for path in (place / "out").rglob("*") if path.is_file()}
    # The files are those of the page's table.
    text = (DOCS / "get_started.md").read_text(encoding="utf-8")
    on_request = {"out/ann/ann.dcm", "out/ann/ann_3d.png", "out/ann/prepared/", "out/report.html"}
    assert made == set(re.findall(r"`(out/[^`]+)`", text)) - on_request
    first = (place / "out" / "ann" / "ann.nii.gz").read_bytes()
    shutil.move(place / "out", place / "first")
    run(named, place)
    assert (place / "out" / "ann" / "ann.nii.gz").read_bytes() == first
    # The code for Python is right, too.
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    shutil.rmtree(place / "out")
    code = code.replace("Options(tta=True)", "Options(pictures=False)")
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "ignore"}
    done = subprocess.run(
        [python(), "-c", code], cwd=place, env=environment, capture_output=True, text=True, check=False
    )
    numbers = json.loads((place / "out" / "ann" / "ann.json").read_text())["volumes_ml"]
    assert str(numbers) in done.stdout, done.stderr[-2000:]


def test_from_a_brats_download_to_scores(cohort, place):
    (place / "brats").symlink_to(cohort)
    (place / "brats_validation").mkdir()
    for case in (path for path in cohort.rglob("BraTS20_*") if path.is_dir()):
        (place / "brats_validation" / case.name).mkdir()
        for file in case.glob("*.nii.gz"):
            if "_seg" not in file.name:
                (place / "brats_validation" / case.name / file.name).symlink_to(file)
    check, score, train, evaluate, hand_in = in_blocks(DOCS / "train_and_evaluate.md")[:5]
    assert "0 errors" in run(check, place).stdout
    root = {"bundle_root": place}
    (place / "models").mkdir()
    (place / "models" / "starter").symlink_to(ROOT / "models" / "starter")
    run(score, place, **root)
    scores = rows(place / "runs" / "scores" / "evaluation_all" / "scores.csv")
    assert len(scores) == 3 and all(0 <= float(row["dice_WT"]) <= 1 for row in scores.values())
    assert {"mean", "std", "median"} <= set(rows(place / "runs" / "scores" / "evaluation_all" / "summary.csv"))
    small = {**SMALL, "network_def#channels": [4, 4, 8, 8, 8], **root}
    run(train, place, **small)
    run(evaluate, place, **{key: value for key, value in small.items() if key != "max_epochs"})
    (scores_file,) = (place / "runs" / "train").glob("evaluation_*/scores.csv")
    assert len(rows(scores_file)) == 1
    options = {key: small[key] for key in ("network_def#channels", "spacing", "num_workers", "bundle_root")}
    model = place / "runs" / "train" / "model.pt"
    run(hand_in, place, **options, roi_size=[48, 48, 48], model_file=model, saved_et_label=3)
    maps = sorted((place / "runs" / "submission").glob("*.nii.gz"))
    assert [path.name for path in maps] == sorted(f"{name}.nii.gz" for name in scores)
    assert all(nib.load(path).shape == (120, 120, 78) for path in maps)


def test_other_commands_of_the_docs_name_modules_that_exist():
    for page in (ROOT / "README.md", *DOCS.glob("*.md")):
        for module in re.findall(r"python -m scripts\.([\w.]*\w)", page.read_text(encoding="utf-8")):
            place = ROOT / "scripts" / module.replace(".", "/")
            places = (place.with_suffix(".py"), place / "__main__.py")
            assert any(place.is_file() for place in places), (page, module)
