# Copyright (c) the brats_mri_panet_segmentation authors
# SPDX-License-Identifier: Apache-2.0
"""The synthetic cohort: geometry, anatomy, labels, determinism, and the commands' refusals."""

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import ndimage
from scripts.data.images import PHANTOM_DESCRIPTION
from scripts.lab import threshold_baseline
from scripts.lab.phantoms import __main__ as make_phantoms
from scripts.lab.phantoms import cohort as phantom
from scripts.lab.phantoms.cohort import COHORT_FOLDER, MODALITIES, best_threshold_dice
from scripts.utils.errors import InputError

SEED = 2  # The fixture `phantoms` has this seed.
WITHOUT_ENHANCEMENT = 3  # With seed 2, this case has no enhancing tumor.
AROUND = np.ones((3, 3, 3), bool)


@pytest.fixture(scope="session")
def patients(phantoms):
    """The images by modality and the segmentation of each patient, as read back from disk."""
    found = []
    for index in (1, 2, 3):
        folder = phantoms / COHORT_FOLDER / phantom.phantom_name(index)
        volumes = {
            part: np.asanyarray(nib.load(folder / f"{folder.name}_{part}.nii.gz").dataobj)
            for part in (*MODALITIES, "seg")
        }
        found.append((volumes, volumes.pop("seg")))
    return found


def largest_part(mask):
    parts, _ = ndimage.label(mask)
    sizes = np.bincount(parts.ravel())[1:]
    return sizes.max()


def test_layout_and_geometry_are_those_of_brats_2020(phantoms):
    files = sorted(str(path.relative_to(phantoms)) for path in phantoms.rglob("*") if path.is_file())
    case = "MICCAI_BraTS2020_TrainingData/BraTS20_Training_00{0}/BraTS20_Training_00{0}_{1}.nii.gz"
    expected = [case.format(i, part) for i in (1, 2, 3) for part in ("flair", "seg", "t1", "t1ce", "t2")]
    assert files == [*expected, "phantoms.json"]
    for name in expected[:5]:
        image = nib.load(phantoms / name)
        assert image.shape == (240, 240, 155)
        assert image.get_data_dtype() == np.int16
        wanted = [[-1, 0, 0, 0], [0, -1, 0, 239], [0, 0, 1, 0], [0, 0, 0, 1]]
        for affine, code in (image.header.get_sform(coded=True), image.header.get_qform(coded=True)):
            assert code == 1
            np.testing.assert_array_equal(affine, wanted)
        assert nib.aff2axcodes(image.affine) == ("L", "P", "S")
        assert image.header.get_zooms() == (1, 1, 1)
        assert image.header.get_xyzt_units()[0] == "mm"
        assert image.header["descrip"].item().decode() == PHANTOM_DESCRIPTION
    assert len(PHANTOM_DESCRIPTION) <= 79


def test_a_phantom_of_another_size_has_the_same_place(patients, tmp_path):
    images, labels = patients[0]
    for path, volume in (("t2", images["t2"]), ("seg", labels)):
        small = phantom.resized(volume, (80, 60, 31), order=int(path == "t2"))
        phantom.write_volume(tmp_path / f"{path}.nii.gz", small)
        image = nib.load(tmp_path / f"{path}.nii.gz")
        assert image.shape == (80, 60, 31)
        assert image.header.get_zooms() == (3, 4, 5)
        mass = ndimage.center_of_mass(np.asarray(image.dataobj) > 0)
        whole = ndimage.center_of_mass(volume > 0)
        there, here = (nib.affines.apply_affine(a, m) for a, m in ((image.affine, mass), (phantom.AFFINE, whole)))
        np.testing.assert_allclose(there, here, atol=0.8)
        assert (np.asarray(image.dataobj) > 0).sum() * 60 == pytest.approx((volume > 0).sum(), rel=0.03)
    assert set(np.unique(small)) <= set(np.unique(labels))


def test_brain_is_stripped_and_of_plausible_size(patients):
    shapes = set()
    for images, _ in patients:
        brain = images["t1"] != 0
        for image in images.values():
            np.testing.assert_array_equal(image != 0, brain)
            assert 0 < (image < 0).sum() < 100
            assert image.min() >= -100
        assert 0.13 < brain.mean() < 0.19
        assert largest_part(brain) > 0.999 * brain.sum()
        box = ndimage.find_objects(brain.astype(np.uint8))[0]
        sides = [s.stop - s.start for s in box]
        assert all(low <= side <= high for side, low, high in zip(sides, (122, 155, 118), (156, 188, 142), strict=True))
        middle = [(s.start + s.stop) / 2 for s in box]
        np.testing.assert_allclose(middle, [120, 120, 77], atol=12)
        shapes.add(tuple(sides))
    assert len(shapes) == 3


def test_labels_follow_the_brats_convention(patients):
    for number, (images, labels) in enumerate(patients, 1):
        expected = {0, 1, 2} if number == WITHOUT_ENHANCEMENT else {0, 1, 2, 4}
        assert set(np.unique(labels).tolist()) == expected
        whole = labels > 0
        assert not (whole & (images["t1"] == 0)).any()
        assert 1 <= ndimage.label(whole, AROUND)[1] <= 4
        assert 5e3 < whole.sum() < 160e3
        if 4 in expected:
            assert (labels == 4).sum() >= 1000
            # Necrosis lies within the enhancing rim, so it meets almost no other label.
            shell = ndimage.binary_dilation(labels == 1) & (labels != 1)
            assert (labels[shell] == 4).mean() > 0.9
            assert (labels[ndimage.binary_dilation(labels == 4) & (labels != 4)] == 2).any()


def test_lesions_are_irregular(patients):
    for _, labels in patients:
        parts, _ = ndimage.label(labels > 0, AROUND)
        largest = parts == np.argmax(np.bincount(parts.ravel())[1:]) + 1
        surface = (largest & ~ndimage.binary_erosion(largest)).sum()
        ball = (36 * np.pi) ** (1 / 3) * largest.sum() ** (2 / 3)
        assert surface > 1.1 * ball


@pytest.mark.parametrize("seed", range(8))
def test_one_case_in_five_lacks_enhancement(seed):
    absent = [phantom.without_enhancement(seed, index) for index in range(1, 51)]
    assert sum(absent[:5]) == 1 and sum(absent) == 10
    assert not absent[0]


def tissue_means(seed, index):
    level = phantom.LEVELS["demo"]
    rng = np.random.default_rng([seed, index])
    head = phantom.shape_head(rng)
    lesions = phantom.place_lesions(rng, head, level, True)
    tissue = phantom.grow_tissue(rng, head, lesions)
    labels = phantom.grow_lesions(rng, tissue, lesions, level.rim)
    images = phantom.render(rng, tissue, labels, level)
    healthy = tissue.brain & (labels == 0)
    regions = {name: healthy & (getattr(tissue, name) > 0.95) for name in ("csf", "gray", "white")}
    regions |= {"edema": labels == 2, "enhancing": labels == 4, "necrosis": labels == 1}
    share = {name: regions[name].sum() / healthy.sum() for name in ("csf", "gray", "white")}
    means = {m: {name: np.median(images[m][region]) for name, region in regions.items()} for m in MODALITIES}
    return means, share


def test_each_modality_has_its_contrast():
    means, share = tissue_means(SEED, 1)
    t1, t1ce, t2, flair = (means[m] for m in MODALITIES)
    assert t1["csf"] < t1["gray"] < t1["white"]
    assert t1["edema"] < t1["white"]
    assert t1ce["csf"] < t1ce["gray"] < t1ce["white"] < t1ce["enhancing"]
    assert t1ce["necrosis"] < t1ce["gray"]
    assert t2["white"] < t2["gray"] < t2["edema"] < t2["csf"]
    assert flair["csf"] < flair["white"] < flair["gray"] < flair["edema"]
    assert flair["necrosis"] < flair["edema"]
    assert 0.02 < share["csf"] < 0.25 and 0.15 < share["gray"] < 0.5 and 0.2 < share["white"] < 0.6


def test_no_threshold_finds_the_tumor(patients):
    for images, labels in patients:
        brain = images["t1"] != 0
        for image in images.values():
            assert best_threshold_dice(image[brain], labels[brain] > 0) < 0.46


def test_a_case_depends_on_seed_and_number_alone(phantoms, patients, tmp_path):
    images, labels = phantom.make_patient(SEED, 3, "demo")
    assert list(images) == list(MODALITIES)
    for name, image in images.items():
        assert image.dtype == np.int16
        np.testing.assert_array_equal(image, patients[2][0][name])
    np.testing.assert_array_equal(labels, patients[2][1])
    assert not np.array_equal(labels, patients[1][1])
    again = tmp_path / "again.nii.gz"
    phantom.write_volume(again, labels)
    assert again.read_bytes() == next(phantoms.rglob("*003_seg.nii.gz")).read_bytes()


@given(st.lists(st.tuples(st.integers(-4, 6), st.booleans()), min_size=1, max_size=30), st.sampled_from([1, 0.25]))
def test_best_threshold_agrees_with_brute_force(pairs, unit):
    values = np.array([value for value, _ in pairs]) * unit
    target = np.array([flag for _, flag in pairs])
    best = 0.0
    for bound in [*(np.unique(values) - 0.1), values.max() + 0.1]:
        for chosen in (values > bound, values < bound):
            if target.any():
                best = max(best, 2 * (chosen & target).sum() / (chosen.sum() + target.sum()))
    assert best_threshold_dice(values, target) == pytest.approx(best)


def test_best_threshold_refuses_unequal_shapes():
    with pytest.raises(ValueError, match=r"\(3,\).*\(2,\)"):
        best_threshold_dice(np.zeros(3), np.zeros(2, bool))
    with pytest.raises(ValueError, match="at least one"):
        best_threshold_dice(np.zeros(0), np.zeros(0, bool))


@pytest.mark.parametrize("arguments", [(-1, 1, "demo"), (0, 0, "demo"), (0, 1, "easy")])
def test_make_patient_refuses_bad_arguments(arguments):
    with pytest.raises(ValueError, match="must be"):
        phantom.make_patient(*arguments)


def snapshot(folder: Path):
    return {path: (path.stat().st_mtime_ns, path.stat().st_size) for path in folder.rglob("*")}


def test_second_call_reuses_complete_cases(phantoms, capsys):
    before = snapshot(phantoms / COHORT_FOLDER)
    assert make_phantoms.main([str(phantoms), "--cases", "3", "--seed", str(SEED)]) == 0
    out = capsys.readouterr().out
    assert "Reusing 3 complete case(s) of 3" in out
    assert str(phantoms / COHORT_FOLDER) in out and " MB" in out
    assert snapshot(phantoms / COHORT_FOLDER) == before
    manifest = json.loads((phantoms / "phantoms.json").read_text())
    assert manifest == {
        "version": phantom.GENERATOR_VERSIONS["demo"],
        "seed": SEED,
        "difficulty": "demo",
        "size": [240, 240, 155],
        "cases": ["BraTS20_Training_001", "BraTS20_Training_002", "BraTS20_Training_003"],
    }


@pytest.mark.parametrize(
    "change",
    [("--seed", "9"), ("--seed", str(SEED), "--difficulty", "hard"), ("--seed", str(SEED), "--size", "64", "64", "48")],
)
def test_other_arguments_into_the_same_folder_are_refused(phantoms, change):
    before = snapshot(phantoms)
    with pytest.raises(InputError, match=f"{phantoms} holds phantoms .* name another folder"):
        make_phantoms.main([str(phantoms), "--cases", "4", *change])
    assert snapshot(phantoms) == before


@pytest.mark.parametrize("option", ["--cases", "--workers"])
def test_numbers_below_one_are_refused(tmp_path, option):
    with pytest.raises(InputError, match=f"^{option} must be 1 or more, not 0.$"):
        make_phantoms.main([str(tmp_path / "new"), option, "0"])
    assert list(tmp_path.iterdir()) == []


def test_foreign_folder_and_file_are_refused(tmp_path):
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.txt").write_text("precious")
    for target, remedy in ((mine, "name a new or an empty folder"), (mine / "thesis.txt", "name a folder")):
        with pytest.raises(InputError, match=f"{target} .*{remedy}"):
            make_phantoms.main([str(target), "--cases", "1"])
    (mine / "phantoms.json").write_text("[]")
    with pytest.raises(InputError, match="holds no phantom cohort"):
        make_phantoms.main([str(mine), "--cases", "1"])
    assert sorted(path.name for path in mine.iterdir()) == ["phantoms.json", "thesis.txt"]


def test_failed_write_leaves_no_case(tmp_path, monkeypatch):
    blank = np.zeros((2, 2, 2), np.int16)
    monkeypatch.setattr(phantom, "make_patient", lambda *_: (dict.fromkeys(MODALITIES, blank), blank))
    real = phantom.write_volume

    def fail_late(path, volume):
        if "_seg" in path.name:
            raise OSError(28, "No space left on device")
        real(path, volume)

    monkeypatch.setattr(phantom, "write_volume", fail_late)
    out = tmp_path / "out"
    with pytest.raises(InputError, match="No space left"):
        make_phantoms.main([str(out), "--cases", "2", "--workers", "1"])
    assert list((out / COHORT_FOLDER).iterdir()) == []
    assert json.loads((out / "phantoms.json").read_text())["cases"] == []
    # The next call continues where this one failed, and replaces a case that has lost a file.
    monkeypatch.setattr(phantom, "write_volume", real)
    broken = out / COHORT_FOLDER / phantom.phantom_name(1)
    broken.mkdir()
    (out / COHORT_FOLDER / f".{broken.name}.killed").mkdir()
    assert make_phantoms.main([str(out), "--cases", "2", "--workers", "1"]) == 0
    assert sorted(path.name for path in broken.parent.iterdir()) == [broken.name, phantom.phantom_name(2)]
    assert len(list(broken.iterdir())) == 5


def test_threshold_baseline_reports_and_limits(phantoms, capsys):
    assert threshold_baseline.main([str(phantoms), "--limit", "0.5"]) == 0
    out = capsys.readouterr().out
    assert all(phantom.phantom_name(index) in out for index in (1, 2, 3))
    assert "Maximum over 3 case(s): 0." in out
    one = str(phantoms / COHORT_FOLDER / phantom.phantom_name(1))
    assert threshold_baseline.main([one, "--limit", "0.01"]) == 1
    error = capsys.readouterr().err
    assert "above the limit of 0.01" in error and error.count("\n") == 1


def test_threshold_baseline_names_what_is_absent(tmp_path):
    for target in (tmp_path / "nowhere", tmp_path):
        with pytest.raises(InputError, match=str(target)):
            threshold_baseline.main([str(target)])
