# Copyright (c) the brats_mri_panet_segmentation authors
# SPDX-License-Identifier: Apache-2.0
"""Each kind of finding is found in data that have this fault and no other, and the docs explain it."""

import gzip
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import pytest
from conftest import shared_data
from dicom_series import write_case
from scripts import check
from scripts.data.findings import ERRORS, WARNINGS, Findings
from scripts.data.inspection import PREPARATION_PAGE
from workflows import ROOT

SHAPE = (40, 48, 40)
LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
NAME = "BraTS20_Training_001"


def head(seed: int = 0) -> dict[str, np.ndarray]:
    """A brain with a cerebellum at its back, in LPS, and a tumor. Fluid is bright in T2 alone."""
    rng = np.random.default_rng(seed)
    x, y, z = np.indices(SHAPE)
    brain = ((x - 20) / 16) ** 2 + ((y - 24) / 20) ** 2 + ((z - 24) / 14) ** 2 < 1
    brain |= (abs(x - 20) < 9) & (y > 27) & (y < 40) & (z > 4) & (z < 16)
    matter = rng.random(SHAPE)
    matter[16:24, 20:28, 22:26] = -0.6  # fluid

    def image(low: float, high: float) -> np.ndarray:
        return low + (high - low) * matter + rng.normal(0, 15, SHAPE)

    images = {"t1": image(200, 500), "t1ce": image(220, 520), "t2": image(700, 300), "flair": image(250, 400)}
    seg = np.zeros(SHAPE, np.uint8)
    seg[10:24, 18:30, 20:30], seg[12:22, 20:28, 22:28], seg[14:20, 22:26, 23:27] = 2, 4, 1
    images["t1ce"] += 300 * (seg == 4)
    voxels = {name: np.where(brain, np.rint(values), 0).astype(np.int16) for name, values in images.items()}
    return voxels | {"seg": seg * brain}


def write(root: Path, name: str = NAME, seed: int = 0, **changes: np.ndarray) -> Path:
    """Write a case; ``changes`` replace images."""
    separator = "-" if name.startswith("BraTS-") else "_"
    newer = {"t1": "t1n", "t1ce": "t1c", "t2": "t2w", "flair": "t2f"} if separator == "-" else {}
    (root / name).mkdir(parents=True, exist_ok=True)
    for sequence, voxels in (head(seed) | changes).items():
        if separator == "-" and sequence == "seg":
            voxels = np.where(voxels == 4, 3, voxels).astype(np.uint8)
        file = root / name / f"{name}{separator}{newer.get(sequence, sequence)}.nii.gz"
        nib.save(nib.Nifti1Image(voxels, LPS), file)
    return root


def file(root: Path, sequence: str = "t2", name: str = NAME) -> Path:
    return root / name / f"{name}_{sequence}.nii.gz"


def rewrite(path: Path, change: Callable[[np.ndarray], np.ndarray] = lambda v: v, affine: np.ndarray = LPS) -> None:
    voxels = np.asanyarray(nib.load(path).dataobj)
    nib.save(nib.Nifti1Image(change(voxels), affine), path)


def all_files(root: Path, affine: np.ndarray) -> None:
    for path in root.rglob("*.nii.gz"):
        rewrite(path, affine=affine)


def all_images(root: Path, change: Callable) -> None:
    for sequence in ("t1", "t1ce", "t2", "flair"):
        rewrite(file(root, sequence), change)


def exchange(root: Path, first: str, second: str) -> None:
    a, b = file(root, first), file(root, second)
    a.rename(root / "kept")
    b.rename(a)
    (root / "kept").rename(b)


def as_folder(root: Path) -> None:
    path = file(root)
    path.unlink()
    path.mkdir()


def listed(root: Path) -> None:
    """A datalist of the case, for files that a search of the folder does not take."""
    images = [f"{NAME}/{NAME}_{sequence}.nii.gz" for sequence in ("t1", "t2", "t1ce", "flair")]
    entry = {"image": images, "label": f"{NAME}/{NAME}_seg.nii.gz"}
    (root / "list.json").write_text(json.dumps({"sequences": ["t1", "t2", "t1ce", "flair"], "training": [entry]}))


def decathlon(root: Path) -> None:
    voxels = head()
    shutil.rmtree(root / NAME)
    for folder, image in (
        ("imagesTr", np.stack([voxels[s] for s in ("flair", "t1", "t1ce", "t2")], -1)),
        ("labelsTr", np.array([0, 2, 1, 0, 3], np.uint8)[voxels["seg"]]),
    ):
        (root / folder).mkdir()
        nib.save(nib.Nifti1Image(image, LPS), root / folder / "BRATS_001.nii.gz")
    names = {"0": "T1w", "1": "FLAIR", "2": "t1gd", "3": "T2w"}
    (root / "dataset.json").write_text(json.dumps({"modality": names}))


def renamed(root: Path, name: str) -> None:
    (root / NAME).rename(root / name)
    for path in (root / name).iterdir():
        path.rename(path.with_name(path.name.replace(NAME, name)))


def with_nan(voxels: np.ndarray) -> np.ndarray:
    voxels = voxels.astype(np.float32)
    voxels[20, 24, 24] = np.nan
    return voxels


def mixed(root: Path) -> None:
    """Three cases of one release. The user says that ET is 3, and its 4 would be taken as a cavity."""
    write(root, "BraTS20_Training_002", seed=1)
    write(root, "BraTS20_Training_003", seed=2)
    rewrite(file(root, "seg"), lambda v: np.where(v == 4, 3, v).astype(np.uint8))


def without_place(root: Path) -> None:
    """The axes of the files are those that nibabel takes without a form: to the left, to the front and up."""
    for path in root.rglob("*.nii.gz"):
        voxels = np.asanyarray(nib.load(path).dataobj)
        nib.save(nib.Nifti1Image(voxels[:, ::-1], None), path)


FAULTS: dict[str, Callable[[Path], object]] = {
    "missing sequence": lambda root: file(root).unlink(),
    "doubled file": lambda root: rewrite_as(file(root), file(root).with_suffix("")),
    "doubled case name": lambda root: write(root / "again", seed=1),
    "absent file": lambda root: (listed(root), file(root).unlink()),
    "folder in place of a file": lambda root: (listed(root), as_folder(root)),
    "empty file": lambda root: file(root).write_bytes(b""),
    "unreadable file": lambda root: None,  # by ``unreadable``
    "other format": lambda root: (listed(root), as_png(root)),
    "not an image": lambda root: file(root).write_bytes(b"<html>404</html>"),
    "damaged file": lambda root: file(root).write_bytes(file(root).read_bytes()[:-3000]),
    "damaged header": lambda root: rewrite(file(root), affine=np.diag([-13.0, -1.0, 1.0, 1.0])),
    "other dimensions": lambda root: rewrite(file(root), lambda v: np.stack([v, v], -1)),
    "no plain numbers": lambda root: rewrite(file(root), lambda v: v.astype(np.complex64)),
    "no finite numbers": lambda root: rewrite(file(root), with_nan),
    "empty image": lambda root: rewrite(file(root), lambda v: v * 0),
    "constant image": lambda root: rewrite(file(root), lambda v: (v != 0).astype(np.uint8)),
    "different grids": lambda root: rewrite(file(root), lambda v: v[:-1]),
    "label map on another grid": lambda root: rewrite(file(root, "seg"), lambda v: v[:-1]),
    "unexpected label": lambda root: rewrite(file(root, "seg"), lambda v: np.where(v == 1, 7, v).astype(np.uint8)),
    "ET 3 and 4 mixed": mixed,
    "same image twice": lambda root: shutil.copyfile(file(root), file(root, "t1")),
    "contradicting order of channels": decathlon,
    "missing slice": lambda root: dicom(root)["t2"][20].unlink(),
    "several volumes in a series": lambda root: again(dicom(root)["t2"][20]),
    "mixed series": lambda root: set_in(dicom(root)["t2"][20], PixelSpacing=[1.5, 1.5]),
    "slice without a place": lambda root: (
        dicom_listed(root),
        set_in(root / NAME / "series 1" / "IM00021", PixelSpacing=None),
    ),
    "multi-frame DICOM": lambda root: several_frames(dicom(root)["t2"]),
    "series in several folders": lambda root: shutil.copytree(dicom(root)["t2"][0].parent, root / NAME / "copy"),
    "several patients": lambda root: (
        dicom_listed(root),
        [set_in(path, PatientID="another") for path in (root / NAME / "series 1").iterdir()],
    ),
    "tolerated missing sequence": lambda root: file(root).unlink(),
    "other origin of a label map": lambda root: rewrite(file(root, "seg"), affine=shifted()),
    "other voxel size": lambda root: all_files(root, np.diag([-1.0, -1.0, 1.5, 1.0])),
    "skull not stripped": lambda root: full(root),
    "background is not 0": lambda root: all_images(root, lambda v: np.where(v == 0, -1000, v)),
    "pointer in place of a file": lambda root: file(root).write_text(
        "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"
    ),
    "different brains": lambda root: rewrite(file(root), holed),
    "likely swapped sequences": lambda root: exchange(root, "t2", "flair"),
    "label outside the brain": lambda root: rewrite(file(root, "seg"), lambda v: np.roll(v, 12, 0)),
    "contradicting header": lambda root: all_files(root, np.eye(4)),
    "no place in the header": without_place,
    "misnamed file": lambda root: file(root).write_bytes(gzip.decompress(file(root).read_bytes())),
    "one patient in several cases": lambda root: visits(root),
    "odd name": lambda root: renamed(root, "Ann's brain"),
    "other tumor": lambda root: other(root),
    "several series of a sequence": lambda root: twice(root),
    "contradicting contrast agent": lambda root: [
        set_in(path, SeriesDescription="T1 post", ContrastBolusAgent="none") for path in dicom(root)["t1"]
    ],
}


def dicom(root: Path) -> dict[str, list[Path]]:
    """The images of the case as series of 40 slices, in place of its files; the files of each series."""
    shutil.rmtree(root / NAME)
    voxels = head()
    images = {name: nib.Nifti1Image(np.clip(voxels[name], 0, None), LPS) for name in ("t1", "t2", "t1ce", "flair")}
    write_case(root / NAME, images)
    return {name: series_in_order(root / NAME / f"series {number}") for number, name in enumerate(images)}


def series_in_order(folder: Path) -> list[Path]:
    return sorted(folder.iterdir(), key=lambda path: float(pydicom.dcmread(path).ImagePositionPatient[2]))


def set_in(path: Path, **values: object) -> None:
    data = pydicom.dcmread(path)
    for name, value in values.items():
        setattr(data, name, value)
    data.save_as(path)


def again(path: Path) -> None:
    shutil.copyfile(path, path.with_name("again"))


def several_frames(files: list[Path]) -> None:
    for path in files[1:]:
        path.unlink()
    set_in(files[0], NumberOfFrames=40)


def twice(root: Path) -> None:
    first, *_ = dicom(root)["t2"]
    for number, path in enumerate(sorted(first.parent.iterdir())):
        data = pydicom.dcmread(path)
        data.SeriesInstanceUID, data.SeriesNumber = "1.2.3.4", 9
        (root / NAME / "again").mkdir(exist_ok=True)
        data.save_as(root / NAME / "again" / f"{number}")


def dicom_listed(root: Path) -> None:
    """A datalist of the series, which takes one that is no volume, too."""
    dicom(root)
    images = [f"{NAME}/series {number}" for number in range(4)]
    content = {"sequences": ["t1", "t2", "t1ce", "flair"], "testing": [{"image": images}]}
    (root / "list.json").write_text(json.dumps(content))


def rewrite_as(path: Path, other: Path) -> None:
    other.write_bytes(gzip.decompress(path.read_bytes()))


def as_png(root: Path) -> None:
    path = file(root)
    path.rename(path.with_name(f"{NAME}_t2.png"))
    text = (root / "list.json").read_text()
    (root / "list.json").write_text(text.replace("_t2.nii.gz", "_t2.png"))


def shifted() -> np.ndarray:
    affine = LPS.copy()
    affine[:3, 3] = (0, 239, 0)
    return affine


def full(root: Path) -> None:
    """A head of 3 liters in voxels of 1 mm."""
    for number, path in enumerate(sorted((root / NAME).iterdir())):
        rng = np.random.default_rng(number)
        voxels = np.zeros((150, 160, 140), np.uint8) if "seg" in path.name else rng.integers(1, 99, (150, 160, 140))
        nib.save(nib.Nifti1Image(voxels.astype(np.int16), LPS), path)


def holed(voxels: np.ndarray) -> np.ndarray:
    voxels = voxels.copy()
    voxels[:, 24:, :24] = 0
    return voxels


def visits(root: Path) -> None:
    shutil.rmtree(root / NAME)
    for number in (100, 101):
        write(root, f"BraTS-GLI-00005-{number}", seed=number)


def other(root: Path) -> None:
    shutil.rmtree(root / NAME)
    write(root, "BraTS-MEN-00005-000")


def findings(root: Path, *arguments: str) -> list[dict]:
    report = root.parent / "findings.json"
    status = check.main([str(root), "--json", str(report), *arguments])
    content = json.loads(report.read_text())
    assert status == (content["errors"] > 0)
    return content["findings"]


def test_every_kind_has_its_fault():
    assert set(FAULTS) == {*ERRORS, *WARNINGS}


def test_a_sound_case_has_no_findings(tmp_path, capsys):
    assert findings(write(tmp_path / "data")) == []
    assert capsys.readouterr().out == "1 case: 0 errors, 0 warnings.\n"


def test_the_end_says_that_the_segmentation_of_patients_refuses_scans_that_are_not_prepared(tmp_path, capsys):
    root = write(tmp_path / "data")
    full(root)
    assert [one["kind"] for one in findings(root)] == ["skull not stripped"]
    out = " ".join(capsys.readouterr().out.split())
    assert f"panet segment refuses without --accept: skull not stripped; see {PREPARATION_PAGE}." in out
    assert "1 case: 0 errors, 1 warning; " in out


@pytest.mark.parametrize("kind", FAULTS)
def test_the_fault_is_found_by_its_kind_and_nothing_else_is(tmp_path, kind, monkeypatch, capsys):
    root = write(tmp_path / "data")
    FAULTS[kind](root)
    arguments = ["--datalist_file", str(root / "list.json")] if (root / "list.json").exists() else []
    if kind == "tolerated missing sequence":
        arguments += ["--may_lack", "1"]
    if kind == "ET 3 and 4 mixed":
        arguments += ["--label_release", "2024"]
    if kind == "unreadable file":
        read = Path.read_bytes

        def refused(path: Path) -> bytes:
            if path == file(root):
                raise PermissionError(13, "Permission denied")
            return read(path)

        monkeypatch.setattr(Path, "read_bytes", refused)
    found = findings(root, *arguments)
    assert [one["kind"] for one in found] == [kind] * len(found) and found, found
    for one in found:
        assert one["severity"] == ("error" if kind in ERRORS else "warning")
        assert "\n" not in one["message"]
    shown = capsys.readouterr().out
    assert kind in " ".join(shown.split()) and "docs/reference.md explains each kind" in shown


@pytest.mark.parametrize("swapped", [("t1", "t2"), ("t1ce", "t2"), ("flair", "t2"), ("t1", "t1ce")])
def test_swapped_sequences_are_named(tmp_path, swapped):
    root = write(tmp_path / "data")
    exchange(root, *swapped)
    found = findings(root)
    assert {one["kind"] for one in found} == {"likely swapped sequences"}
    assert all(str(file(root, sequence)) in found[0]["message"] for sequence in swapped)


def test_an_upside_down_head_is_found(tmp_path):
    root = write(tmp_path / "data")
    all_files(root, np.diag([1.0, -1.0, -1.0, 1.0]))
    assert [one["kind"] for one in findings(root)] == ["contradicting header"]


def test_all_faults_of_all_cases_are_listed(tmp_path):
    root = write(tmp_path / "data")
    write(root, "BraTS20_Training_002", seed=1)
    write(root, "BraTS20_Training_003", seed=2)
    file(root, "t1").write_bytes(b"")
    file(root, "seg").write_bytes(b"")
    file(root, "flair", "BraTS20_Training_003").unlink()
    found = findings(root)
    assert [(one["case"], one["kind"]) for one in found] == [
        ("BraTS20_Training_003", "missing sequence"),
        (NAME, "empty file"),
        (NAME, "empty file"),
    ]


def test_a_first_image_that_is_damaged_hides_no_other_fault(tmp_path):
    root = write(tmp_path / "data")
    rewrite(file(root, "t1"), lambda v: v.astype(np.complex64))
    rewrite(file(root, "flair"), lambda v: v * 0)
    assert [one["kind"] for one in findings(root)] == ["no plain numbers", "empty image"]


def test_a_report_is_not_overwritten_and_an_empty_folder_is_refused(tmp_path):
    (tmp_path / "findings.json").write_text("mine")
    for arguments, said in (
        ([tmp_path, "--json", tmp_path / "findings.json"], "exists already"),
        ([tmp_path], "no cases found"),
        ([tmp_path / "absent"], "no such folder"),
    ):
        with pytest.raises(ValueError, match=said):
            check.main([str(argument) for argument in arguments])
    assert (tmp_path / "findings.json").read_text() == "mine"


def test_the_docs_explain_every_kind_under_its_severity():
    text = (ROOT / "docs" / "reference.md").read_text(encoding="utf-8").split("## Findings\n")[1]
    errors, warnings = text.split("| warning |")
    for section, kinds in ((errors, ERRORS), (warnings, WARNINGS)):
        rows = re.findall(r"^\| ([^|]+) \| ([^|]+) \|$", section, re.MULTILINE)
        explained = {kind: words for kind, words in rows if kind not in ("error", "---")}
        assert list(explained) == list(kinds)
        assert all(len(words.split()) > 3 for words in explained.values())


def test_an_unknown_kind_is_a_mistake_of_the_program():
    with pytest.raises(KeyError, match="odd"):
        Findings("p1").add("odd", "p1: odd")


def test_the_real_cases_raise_no_error_and_one_meant_warning(tmp_path):
    """The origin of the label map of Brats17_TCIA_105_1 is as BraTS 2017 shipped it."""
    report = tmp_path / "findings.json"
    assert check.main([str(shared_data()), "--json", str(report)]) == 0
    content = json.loads(report.read_text())
    assert content["cases"] == 18
    assert [(one["case"], one["kind"]) for one in content["findings"]] == [
        ("Brats17_TCIA_105_1", "other origin of a label map")
    ]
