# Copyright (c) the brats_mri_panet_segmentation authors
# SPDX-License-Identifier: Apache-2.0
"""A case of DICOM series has the voxels, the place and the results of the same case in NIfTI files."""

import hashlib
import io
import json
import logging
import os
import re
import shutil
from collections.abc import Iterable
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import pytest
import torch
from dicom_series import DESCRIPTIONS, header, save, write_case, write_series
from monai.data import ITKReader, PydicomReader
from monai.transforms import Compose
from PIL import Image
from pydicom.encaps import encapsulate
from pydicom.uid import UID, HTJ2KLossless, JPEG2000Lossless, JPEGLSLossless, RLELossless, generate_uid
from scripts import check
from scripts.brats import SEQUENCES
from scripts.data.cases import find_cases, resolve_image
from scripts.data.datalist import complete_item, every_item, labeled_items, split_datalist, unlabeled_items
from scripts.data.dicom import Header, Series, series_files, series_of
from scripts.data.dicom_choice import choose, described, weighting_by_times
from scripts.data.images import (
    LoadImageByReaderd,
    SequenceReader,
    checksum_of,
    open_image,
    read_file,
    read_image,
    voxels_of,
)
from scripts.data.inspection import check_case, check_cases
from scripts.lab.benchmark.cohort import subset
from scripts.networks import PriorAttentionNet
from scripts.patients.items import find_items
from scripts.training.disk_cache import DiskCacheDataset
from scripts.utils.errors import InputError
from workflows import SIZE, TRAINING_SIZE, bundle_run

SHAPE = (12, 10, 7)
SIZES = np.diag([1.25, 0.75, 3.0])
AXES = {
    "axial": np.diag([-1.0, -1.0, 1.0]),
    # Columns of the matrix are where columns, rows and slices go, to the right, to the front and up.
    "sagittal": np.array([[0.0, 0.0, 1.0], [-1.0, 0.0, 0.0], [0.0, -1.0, 0.0]]),
    "coronal": np.array([[-1.0, 0.0, 0.0], [0.0, 0.0, -1.0], [0.0, -1.0, 0.0]]),
    "oblique": nib.eulerangles.euler2mat(0.3, 0.2, -0.4) @ np.diag([-1.0, -1.0, 1.0]),
}
PLACE = (31.25, -20.5, 7.125)


def affine(axes: str = "axial") -> np.ndarray:
    return nib.affines.from_matvec(AXES[axes] @ SIZES, PLACE)


def images(axes: str = "axial", shape: tuple[int, int, int] = SHAPE) -> dict[str, nib.Nifti1Image]:
    rng = np.random.default_rng(3)
    return {s: nib.Nifti1Image(rng.integers(0, 60000, shape).astype(np.uint16), affine(axes)) for s in SEQUENCES}


@pytest.mark.parametrize("axes", AXES)
@pytest.mark.parametrize("together", [False, True], ids=["four folders", "one folder"])
def test_voxels_and_place_are_those_of_nifti(tmp_path, axes, together):
    made = images(axes)
    write_case(tmp_path / "ann", made, together)
    (case,) = find_cases(tmp_path)
    assert (case.name, case.missing, list(case.images)) == ("ann", [], list(SEQUENCES))
    for sequence, path in case.images.items():
        for image in (read_image(path), open_image(path)):
            np.testing.assert_array_equal(voxels_of(image, path), np.asanyarray(made[sequence].dataobj))
            np.testing.assert_allclose(image.affine, affine(axes), rtol=0, atol=1e-9)
    (item,) = unlabeled_items(tmp_path)
    loaded = LoadImageByReaderd("image", SequenceReader(), image_only=True)(item)["image"]
    np.testing.assert_array_equal(loaded, np.stack([np.asanyarray(made[s].dataobj) for s in SEQUENCES]))
    np.testing.assert_allclose(loaded.affine, affine(axes), rtol=0, atol=1e-9)


@pytest.mark.parametrize("axes", AXES)
@pytest.mark.parametrize("reader", [PydicomReader, ITKReader])
def test_other_readers_see_the_same(tmp_path, axes, reader):
    """MONAI's two readers of folders of one series."""
    voxels = np.asanyarray(images(axes)["t1"].dataobj)
    (path, *_) = write_series(tmp_path, voxels, affine(axes), [*"gbfcead"])
    other = reader()
    theirs, meta = other.get_data(other.read(str(tmp_path)))
    image = read_image(path)
    np.testing.assert_array_equal(voxels_of(image, path), theirs)
    np.testing.assert_allclose(image.affine, meta["affine"], rtol=0, atol=1e-9)


def test_slices_that_run_against_the_normal_are_put_in_order(tmp_path):
    """The image is the same, with its last axis the other way round."""
    voxels = np.asanyarray(images()["t1"].dataobj)
    mirrored = affine() @ np.diag([1.0, 1.0, -1.0, 1.0])
    (path, *_) = write_series(tmp_path, voxels, mirrored)
    image = read_image(path)
    np.testing.assert_array_equal(voxels_of(image, path), voxels[:, :, ::-1])
    np.testing.assert_allclose(image.affine @ (0, 0, 0, 1), mirrored @ (0, 0, SHAPE[2] - 1, 1), atol=1e-9)


@pytest.mark.parametrize("rescaled", [(2.0, -1000.0), (0.37, 5.5)])
def test_voxels_are_rescaled_and_an_offset_of_all_slices_is_left_out(tmp_path, rescaled):
    """With it, the background would not be 0."""
    voxels = np.asanyarray(images()["t1"].dataobj)
    (path, *_) = write_series(tmp_path, voxels, affine(), rescaled=rescaled)
    # float32 holds 24 bits.
    np.testing.assert_allclose(voxels_of(read_image(path), path), voxels * rescaled[0], rtol=2.0**-23, atol=1e-4)


@pytest.mark.parametrize("highest", [200, 65535])
def test_inverted_gray_values_are_turned(tmp_path, highest):
    voxels = np.random.default_rng(0).integers(0, 200, SHAPE)
    voxels[:3] = 0
    (path, *_) = write_series(tmp_path, highest - voxels, affine(), PhotometricInterpretation="MONOCHROME1")
    np.testing.assert_array_equal(voxels_of(read_image(path), path), voxels)


@pytest.mark.parametrize("cut", [128, 132])
def test_files_without_their_first_bytes_are_found_and_read(tmp_path, cut):
    """Without the preamble, and without the mark after it."""
    made = images()
    write_case(tmp_path / "ann", made)
    for path in tmp_path.rglob("IM*"):
        path.write_bytes(path.read_bytes()[cut:])
    (case,) = find_cases(tmp_path)
    assert (case.name, case.missing) == ("ann", [])
    for sequence, path in case.images.items():
        np.testing.assert_array_equal(voxels_of(read_image(path), path), np.asanyarray(made[sequence].dataobj))


def test_each_slice_has_its_own_rescaling(tmp_path):
    voxels = np.asanyarray(images()["t1"].dataobj)
    for number in range(SHAPE[2]):
        moved = affine() @ nib.affines.from_matvec(np.eye(3), (0, 0, number))
        write_series(tmp_path, voxels[:, :, [number]], moved, [f"{number}"], (1 + number / 2, number))
    found = voxels_of(read_image(tmp_path / "0"), "0")
    slopes = 1 + np.arange(SHAPE[2]) / 2
    np.testing.assert_allclose(found, voxels * slopes + np.arange(SHAPE[2]), rtol=2.0**-23)


def compress(file: Path, syntax: UID) -> None:
    data = pydicom.dcmread(file)
    if syntax in (RLELossless, JPEGLSLossless):
        data.compress(syntax, generate_instance_uid=False)
    else:
        stream = io.BytesIO()
        Image.fromarray(data.pixel_array).save(stream, "JPEG2000", no_jp2=True)
        data.PixelData = encapsulate([stream.getvalue()])
        data["PixelData"].is_undefined_length = True
        data.file_meta.TransferSyntaxUID = syntax
    data.save_as(file)


@pytest.mark.parametrize("syntax", [RLELossless, JPEGLSLossless, JPEG2000Lossless], ids=lambda syntax: syntax.keyword)
def test_compressed_files_are_read(tmp_path, syntax):
    voxels = np.asanyarray(images()["t1"].dataobj)
    files = write_series(tmp_path, voxels, affine())
    for file in files:
        compress(file, syntax)
    np.testing.assert_array_equal(voxels_of(read_image(files[0]), "a"), voxels)


def test_a_compression_that_is_not_read_is_named(tmp_path):
    files = write_series(tmp_path, np.asanyarray(images()["t1"].dataobj), affine())
    for file in files:
        compress(file, HTJ2KLossless)
    with pytest.raises(InputError, match=r"not read \(High-Throughput JPEG 2000 .*\); export it without") as caught:
        read_image(files[0])
    assert caught.value.kind == "other format"


def test_any_file_of_a_series_stands_for_it_whatever_its_name(tmp_path):
    voxels = np.asanyarray(images()["t1"].dataobj)
    names = ["1-001.dcm", "IM2", "3.png", "4.IMA", "5", "6.dcm.old", "t2"]
    files = write_series(tmp_path, voxels, affine(), names)
    (tmp_path / "notes.txt").write_text("a patient")
    (tmp_path / "._IM2").write_bytes(files[1].read_bytes())
    (tmp_path / "empty").touch()
    for file in files:
        np.testing.assert_array_equal(voxels_of(read_image(file), file), voxels)
        assert sorted(series_files(file)) == sorted(map(str, files))


def test_cases_of_both_kinds_lie_in_one_folder(tmp_path):
    write_case(tmp_path / "site" / "bea" / "study", images(), together=True)
    write_case(tmp_path / "site" / "cyd", images("coronal"))
    for sequence, image in images().items():
        (tmp_path / "ann").mkdir(exist_ok=True)
        nib.save(image, tmp_path / "ann" / f"ann_{sequence}.nii.gz")
    assert [(case.name, case.missing) for case in find_cases(tmp_path)] == [("ann", []), ("cyd", []), ("study", [])]
    (case,) = find_cases(tmp_path / "site" / "cyd")
    assert (case.name, case.folder) == ("cyd", tmp_path / "site" / "cyd")


@pytest.mark.parametrize("together", [False, True])
def test_studies_in_one_folder_are_refused(tmp_path, together):
    for _ in range(2):
        folder = write_case(tmp_path / "new", images(), together)
        for path in sorted(folder.rglob("*"), reverse=True):
            if path.is_file():
                target = tmp_path / "data" / path.parent.relative_to(folder) / f"{generate_uid()}"
                target.parent.mkdir(parents=True, exist_ok=True)
                path.rename(target)
    with pytest.raises(
        InputError, match=r"data: holds the DICOM series of several studies or patients \(.*data.* and "
    ):
        find_cases(tmp_path / "data")


def of_patient(name: str, files: Iterable[Path]) -> None:
    for path in files:
        data = pydicom.dcmread(path)
        data.PatientID = name
        data.save_as(path)


def test_patients_of_one_study_are_cases_of_their_own(tmp_path):
    """Anonymization may give all studies one StudyInstanceUID."""
    for name in ("ann", "bob"):
        write_case(tmp_path / name, images(), study="1.2.3")
        of_patient(f"ID of {name}", (path for path in (tmp_path / name).rglob("IM*")))
    cases = find_cases(tmp_path)
    assert [(case.name, case.missing) for case in cases] == [("ann", []), ("bob", [])]
    assert all(Path(path).is_relative_to(case.folder) for case in cases for path in case.image)


@pytest.mark.parametrize("apart", [False, True])
def test_a_case_is_not_made_of_two_patients(tmp_path, apart):
    write_case(tmp_path / "ann", images(), study="1.2.3")
    folders = sorted((tmp_path / "ann").iterdir())
    for folder in folders[2:]:
        of_patient("ID of bob", folder.iterdir())
        if apart:
            (tmp_path / "bob").mkdir(exist_ok=True)
            folder.rename(tmp_path / "bob" / folder.name)
    words = "two patients, by PatientID" if apart else "holds the DICOM series of several studies or patients"
    with pytest.raises(InputError, match=words) as caught:
        find_cases(tmp_path)
    first, second = re.findall(r"(series \d)/IM\d+", str(caught.value))
    assert {first, second} == {"series 0", "series 2"}
    assert "ID of" not in str(caught.value)


def test_a_slice_of_another_patient_is_refused(tmp_path):
    write_case(tmp_path / "ann", images())
    (case,) = find_cases(tmp_path)
    files = series_files(case.images["t2"])
    of_patient("ID of bob", [Path(files[3])])
    with pytest.raises(InputError) as caught:
        read_image(files[0])
    assert str(caught.value).startswith(f"{files[0]} and {files[3]}: two patients, by PatientID; keep the files of one")


def test_the_checksum_of_a_series_is_that_of_all_its_files(tmp_path):
    files = write_series(tmp_path, np.asanyarray(images()["t1"].dataobj), affine())
    whole = hashlib.sha256(b"".join(path.read_bytes() for path in sorted(files))).hexdigest()
    assert read_file(files[2]).extra["sha256"] == checksum_of(files[0]) == whole
    # The header of a file that was replaced is read again, even if size and time are the same.
    old = pydicom.dcmread(files[4])
    old.PatientID = "AB"
    old.save_as(files[4])
    assert series_of(files[0]).headers[4].patient == "AB"
    times = files[4].stat()
    old.PatientID = "CD"
    old.save_as(files[4])
    os.utime(files[4], ns=(times.st_atime_ns, times.st_mtime_ns))
    assert series_of(files[0]).headers[4].patient == "CD" and checksum_of(files[0]) != whole


def test_a_report_or_an_image_of_another_machine_is_no_case_and_hides_none(tmp_path):
    write_case(tmp_path / "ann", images())
    study = find_cases(tmp_path)[0].choice.chosen["t1"].series.first.study
    report = header(study, "1.9", Modality="SR", SOPClassUID="1.2.840.10008.5.1.4.1.1.88.33")
    save(report, tmp_path / "ann" / "series 0" / "report")
    save(header("7.7", "7.8", Modality="CT", Rows=2, Columns=2), tmp_path / "ct" / "1")
    (case,) = find_cases(tmp_path)
    assert case.name == "ann" and case.choice.left_out == []
    assert np.asanyarray(read_image(case.images["t1"]).dataobj).shape == SHAPE
    with pytest.raises(InputError, match=r"report: a DICOM file without an image; give a file of a series"):
        read_image(tmp_path / "ann" / "series 0" / "report")


WORDS = [
    ("t1", False, "T1 pre", "AX T1 W/O", "t1_mprage_sag_native", "T1 non-contrast", "SAG T1 without contrast"),
    ("t1", None, "AX T1", "t1_mprage_sag_p2_iso", "Sag 3D BRAVO", "AXT1", "T1 FLAIR", "FSPGR", "T1 post-op", "T1W_SE"),
    (
        "t1",
        True,
        "AX T1 POST",
        "T1+C",
        "t1_se_tra_KM",
        "T1 Gd",
        "AX T1 C+",
        "T1 with contrast",
        "T1CE",
        "T1GD",
        "T1_CE",
    ),
    ("t1", True, "SAG T1 FLAIR +C", "MPRAGE gad", "T1 postcontrast", "Ax T1 enhanced", "T1c", "T1-weighted contrast"),
    ("t1", None, "t1_fl2d_tra", "T1W_FFE"),
    ("t2", None, "AX T2", "t2_tse_tra", "t2_tse_tra_restore", "T2W", "Sag T2 CUBE", "T2 SPACE"),
    ("flair", None, "AX T2 FLAIR", "FLAIR", "3D_FLAIR_SPACE", "t2_tirm_tra_dark-fluid"),
    ("", None, "T2*", "AX T2* GRE", "T2 star", "SWI", "t2_fl2d_tra_hemo", "ep2d_diff_b1000", "ADC", "DTI", "localizer"),
    (
        "",
        None,
        "3-plane loc",
        "FAST PILOT",
        "T2 FFE",
        "GRE",
        "Perfusion",
        "T1 map",
        "T1 subtraction",
        "TOF",
        "STIR",
        "b0 field map",
        "AAHScout",
    ),
    (
        "t1",
        False,
        "T1 sans gado",
        "T1 vor KM",
        "T1 ohne i.v. KM",
        "T1 senza mdc",
        "T1 sin contraste",
        "T1 s/c",
        "T1 sem meio de contraste",
        "T1 zonder contrast",
        "T1 blanco",
        "T1 utan kontrast",
        "T1 før kontrast",
        "T1 bez kontrastu",
        "T1 przed kontrastem",
        "T1 平扫",
        "T1 增强前",
        "T1 造影なし",
        "T1 単純",
        "T1 -C",
        "T1 C-",
        "AVANT GADO T1",
        "PRE GAD POST-OP T1",
    ),
    (
        "t1",
        True,
        "STEALTH T1 POST GAD PRE-OP",
        "T1 +C without FS",
        "T1 GD no fat sat",
        "T1 nach KM",
        "T1 GADO SANS FATSAT",
        "T1 dopo mdc",
        "T1 c/c",
        "T1 após contraste",
        "T1 met contrast",
        "T1 efter kontrast",
        "T1 po kontraście",
        "T1 增强",
        "T1 造影後",
        "T1-GD",
    ),
    ("t1", None, "T1 without FS", "T1 w/wo contrast", "T1 vor OP", "T1 nach OP", "T1 Kontrolle", "T1 POST RT"),
]
UNTOLD = ("Brain", "part1", "post2", "report", "", "Serie 7")


@pytest.mark.parametrize(("weighting", "agent", "text"), [(w, a, t) for w, a, *texts in WORDS for t in texts])
def test_descriptions_tell_the_weighting_and_the_agent(text, weighting, agent):
    found = described(text)
    assert found is not None and found[0] == weighting
    assert found[1] is agent or weighting != "t1"


@pytest.mark.parametrize("text", [text for text in UNTOLD if text != "report"])
def test_other_words_tell_nothing(text):
    assert described(text) is None


def series(number: int, text: str = "", slices: int = 20, thickness: float = 5.0, agent: str = "", **values) -> Series:
    one = Header(
        file=f"IM{number}",
        kind="",
        modality="MR",
        study="1.2",
        series=f"1.2.{number}",
        number=number,
        instance=None,
        description=text,
        protocol="",
        agent=agent,
        technique="SE",
        echo=None,
        repetition=None,
        inversion=None,
        size=(8, 8),
        spacing=(1.0, 1.0),
        orientation=(1.0, 0.0, 0.0, 0.0, 1.0, 0.0),
        position=(0.0, 0.0, 0.0),
        thickness=thickness,
        date="",
        time="",
        photometric="MONOCHROME2",
        intercept=None,
        several_frames=False,
        color=False,
    )._replace(**values)
    return Series([one._replace(file=f"IM{number}-{index}") for index in range(slices)])


@pytest.mark.parametrize(
    ("times", "technique", "weighting"),
    [
        ((12, 600, None), "SE", "t1"),
        ((3, 8, None), "GR", "t1"),
        ((2.3, 2300, 900), "GR\\IR", "t1"),
        ((10, 2500, 850), "SE\\IR", "t1"),
        ((95, 5000, None), "SE", "t2"),
        ((120, 9000, 2500), "SE\\IR", "flair"),
        ((390, 5000, 1650), "SE\\IR", "flair"),
        ((20, 650, None), "GR", None),
        ((15, 3000, None), "SE", None),
        ((80, 4000, None), "EP", None),
        ((None, 600, None), "SE", None),
    ],
)
def test_times_tell_the_weighting_where_words_do_not(times, technique, weighting):
    echo, repetition, inversion = times
    one = series(1, echo=echo, repetition=repetition, inversion=inversion, technique=technique)
    assert weighting_by_times(one.first) == weighting
    chosen = choose([one]).chosen
    assert list(chosen) == ([weighting] if weighting else [])
    # A description decides before the times.
    assert list(choose([series(1, "T2", echo=echo, repetition=repetition)]).chosen) == ["t2"]


def chosen(*study: Series, **given: str) -> dict[str, int]:
    choice = choose(study, given)
    assert not choice.doubt, choice.doubt
    return {name: fit.series.first.number for name, fit in choice.chosen.items()}


def test_most_slices_then_the_thinnest_then_the_lowest_number():
    assert chosen(series(1, "T2", 20), series(2, "T2", 30), series(3, "T2", 25, 1.0)) == {"t2": 2}
    assert chosen(series(1, "T2", 20), series(2, "T2", 20, 3.0), series(3, "T2", 20, 4.0)) == {"t2": 2}
    assert chosen(series(5, "T2"), series(4, "T2"), series(6, "T2")) == {"t2": 4}
    # A screenshot of a hundred pictures is no volume.
    assert chosen(series(1, "T2", 20), series(2, "T2", 100, position=()), series(3, "T2", 99, color=True)) == {"t2": 1}
    text = str(choose([series(1, "T2", 20), series(2, "T2", 30), series(9, "localizer")]))
    assert "T2: series 2 'T2' (by its description, most slices of 2)" in text
    assert text.endswith("left out: series 1 'T2', series 9 'localizer'") and "FLAIR: none" in text


def test_the_agent_tells_plain_t1_series_apart():
    assert chosen(series(1, "T1"), series(2, "T1", agent="Gadovist")) == {"t1": 1, "t1ce": 2}
    assert chosen(series(1, "T1", agent="no"), series(2, "T1", agent="Gadovist")) == {"t1": 1, "t1ce": 2}
    assert chosen(series(1, "T1"), series(2, "T1 post")) == {"t1": 1, "t1ce": 2}
    # The scanner records the agent in all series.
    assert chosen(series(1, "T1", agent="Gd"), series(2, "T1 post", agent="Gd")) == {"t1": 1, "t1ce": 2}


def test_times_tell_silent_series_apart():
    pre, post = series(1, "T1 pre", time="100000"), series(2, "T1 post", time="101500")
    late = series(3, "T1", 176, time="102000.5")
    assert chosen(pre, post, late) == {"t1": 1, "t1ce": 3}
    assert chosen(series(1, "T1", time="100000"), post, late) == {"t1": 1, "t1ce": 3}
    # Without a time, a silent series may be either, and is left out.
    assert chosen(pre, post, series(3, "T1", 176)) == {"t1": 1, "t1ce": 2}


@pytest.mark.parametrize(
    ("study", "said"),
    [
        ([series(1, "T1"), series(2, "T1")], "nothing says which of these T1 series has contrast agent"),
        ([series(1, "T1 pre"), series(2, "T1")], "nothing says which"),
        ([series(1, "T1", agent="Gd"), series(2, "T1", agent="Gd")], "nothing says which"),
        ([series(1, "T1 pre", agent="Gd")], "series 1 'T1 pre' is described as without contrast agent, but Contrast"),
        ([series(1, "T1", agent="Gd"), series(2, "T1 post")], "series 2 'T1 post' is described as with contrast agent"),
        (
            [series(1, "T1 post", time="10"), series(2, "T1 pre", time="11")],
            "series 2 'T1 pre', without contrast agent",
        ),
        ([series(1, "T1 post", time="10"), series(2, "T1", time="11")], "series 2 'T1' was taken after a series with"),
    ],
)
def test_contradictions_about_the_agent_are_doubts_and_the_user_decides(study, said):
    assert said in choose(study).doubt
    if len(study) == 2:
        assert chosen(*study, t1="1", t1ce="2") == {"t1": 1, "t1ce": 2}


def test_a_named_series_leaves_the_silent_one_to_the_other_sequence(tmp_path):
    study = [series(1, "T1"), series(2, "T1"), series(3, "T2"), series(4, "T2", 30)]
    assert chosen(*study, t1ce="2") == {"t1": 1, "t1ce": 2, "t2": 4}
    assert chosen(*study, t1="2", t2="3") == {"t1": 2, "t2": 3}
    with pytest.raises(InputError, match=r"--t1ce 7: no series of this number or folder; name one of: series 1 'T1', "):
        choose(study, {"t1ce": "7"})


def test_an_unsure_study_is_refused_with_a_table(tmp_path, caplog):
    write_case(tmp_path / "ann", images())
    for path in sorted((tmp_path / "ann").rglob("IM*")):
        data = pydicom.dcmread(path)
        data.AcquisitionTime = f"10{data.SeriesNumber}000"
        if "T1" in data.SeriesDescription:
            data.SeriesDescription, data.ContrastBolusAgent = "T1", ""
        data.save_as(path)
    with (
        caplog.at_level(logging.WARNING),
        pytest.raises(InputError, match=r"ann: nothing says which .* 'T1' by --t1ce <number or folder> of panet seg"),
    ):
        find_items([tmp_path / "ann"], 1)
    table = [record.getMessage() for record in caplog.records][:3]
    assert table[0].split() == ["number", "time", "slices", "spacing", "in", "mm", "description"]
    assert [row.split()[:3] for row in table[1:]] == [["1", "10:10:00", "7"], ["3", "10:30:00", "7"]]
    (item,), _ = find_items([tmp_path / "ann"], 0, given={"t1ce": str(tmp_path / "ann" / "series 2")})
    assert [Path(file).parent.name for file in item["image"]] == ["series 0", "series 1", "series 2", "series 3"]


def test_the_protocol_speaks_where_the_description_is_silent():
    assert chosen(series(1, "", protocol="AX T2"), series(2, "Brain", protocol="FLAIR")) == {"t2": 1, "flair": 2}
    # The name of a whole examination hides no series.
    assert chosen(series(1, "", protocol="PERFUSION", echo=95.0, repetition=5000.0)) == {"t2": 1}


def test_the_choice_is_logged_in_one_line(tmp_path, caplog):
    write_case(tmp_path / "ann", images())
    with caplog.at_level(logging.INFO):
        check_cases(unlabeled_items(tmp_path), tmp_path)
    (line,) = [record.getMessage() for record in caplog.records if "left out" in record.getMessage()]
    assert line.startswith(f"{tmp_path / 'ann'}: T1: series 1 'AX T1 SE' (by its description, no agent is recorded); ")
    for number, sequence in enumerate(SEQUENCES, 1):
        assert f"series {number} '{DESCRIPTIONS[sequence]}'" in line
    assert line.endswith("left out: none") and "\n" not in line


def test_a_missing_sequence_is_named_with_what_was_found(tmp_path):
    made = images()
    del made["flair"]
    write_case(tmp_path / "ann", made)
    with pytest.raises(InputError) as caught:
        check_cases(unlabeled_items(tmp_path), tmp_path)
    message = str(caught.value)
    assert caught.value.kind == "missing sequence"
    assert message.startswith(
        f"{tmp_path / 'ann'}: incomplete, there is no series of FLAIR; found T1: series 1 'AX T1 SE'"
    )
    assert "FLAIR: none" in message and "--datalist_file" in message
    # The weights may bear it.
    assert check_cases(unlabeled_items(tmp_path), tmp_path, may_lack=1) == [False]


def test_a_series_in_two_halves_is_refused(tmp_path):
    write_case(tmp_path / "ann", images())
    files = sorted((tmp_path / "ann" / "series 1").iterdir())
    (tmp_path / "ann" / "rest").mkdir()
    for path in files[:3]:
        path.rename(tmp_path / "ann" / "rest" / path.name)
    (case,) = find_cases(tmp_path)
    assert [(a.first.file, b.first.file) for a, b in case.choice.scattered] == [
        (str(files[3]), str(tmp_path / "ann" / "rest" / files[0].name))
    ]
    with pytest.raises(InputError, match=r"ann: \d faults, to be mended in this order"):
        check_cases(unlabeled_items(tmp_path), tmp_path)


def test_a_study_in_which_nothing_fits_is_named_too(tmp_path):
    write_series(tmp_path / "ann", np.asanyarray(images()["t1"].dataobj), affine(), SeriesDescription="Serie 1")
    assert every_item(tmp_path) == unlabeled_items(tmp_path) == labeled_items(tmp_path) == []
    with pytest.raises(
        InputError, match=r"no series of T1 and .*left out: series without a number 'Serie 1'"
    ) as caught:
        check_cases([], tmp_path)
    assert caught.value.kind == "missing sequence"


@pytest.mark.parametrize("form", ["files", "folders", "case folder", "table"])
def test_a_datalist_changes_the_choice(tmp_path, form):
    """It names a file of a series, or a folder of one series, or the folder of a case."""
    data = tmp_path / "data"
    write_case(data / "ann", images())
    write_series(
        data / "ann" / "other", np.asanyarray(images("coronal")["t2"].dataobj)[..., :3], affine(), series="8.8"
    )
    folders = [data / "ann" / f"series {number}" for number in range(4)]
    folders[1] = data / "ann" / "other"
    paths = [str(folder.relative_to(data)) for folder in folders]
    if form in ("files", "table"):
        paths = [f"{path}/{sorted((data / path).iterdir())[-1].name}" for path in paths]
    if form == "table":
        (tmp_path / "list.csv").write_text(f"{','.join(SEQUENCES)}\n{','.join(paths)}\n")
    else:
        image = "ann" if form == "case folder" else paths
        (tmp_path / "list.json").write_text(json.dumps({"sequences": list(SEQUENCES), "testing": [{"image": image}]}))
    (listed,) = tmp_path.glob("list.*")
    (item,) = unlabeled_items(data, listed)
    assert item["case"] == "ann"
    assert all(Path(path).is_file() for path in item["image"])
    first = Path(item["image"][1]).parent
    assert first == (data / "ann" / "series 1" if form == "case folder" else data / "ann" / "other")
    assert resolve_image(item["image"]) == item["image"]
    if form == "folders":
        assert (
            complete_item({"image": [str(data / path) for path in paths], "case": "ann"}, 4)["image"] == item["image"]
        )


def test_a_folder_of_several_series_is_no_image(tmp_path):
    write_case(tmp_path / "ann", images(), together=True)
    listed = tmp_path / "list.json"
    listed.write_text(json.dumps({"sequences": list(SEQUENCES), "testing": [{"case": "ann", "image": ["ann"] * 4}]}))
    (item,) = unlabeled_items(tmp_path, listed)
    found = check_case(item).findings
    assert {one.kind for one in found} == {"folder in place of a file"}
    assert found[0].message.endswith("give the file, or a folder of one DICOM series.")


def test_a_training_takes_labels_from_a_datalist_and_writes_its_split_down(tmp_path):
    data = tmp_path / "data"
    lists: dict = {"sequences": list(SEQUENCES), "training": []}
    for name in ("ann", "bea", "cyd"):
        write_case(data / name, images())
        label = (np.random.default_rng(1).integers(0, 3, SHAPE)).astype(np.uint8)
        nib.save(nib.Nifti1Image(label, affine()), data / name / "tumor.nii.gz")
        folders = [f"{name}/series {number}" for number in range(4)]
        entry = {"image": folders, "label": f"{name}/tumor.nii.gz", "et_label": 4, "edema_label": 2}
        lists["training"].append(entry)
    (tmp_path / "list.json").write_text(json.dumps(lists))
    split = split_datalist(data, tmp_path / "list.json")
    assert sorted(item["case"] for item in split["all"]) == ["ann", "bea", "cyd"]
    assert len(split["validation"]) == 1
    for item in split["all"]:
        assert [one.kind for one in check_case(item).findings if one.is_error] == []


def test_the_cache_of_a_training_sees_a_change_of_any_slice(tmp_path):
    write_case(tmp_path / "ann", images())
    (item,) = unlabeled_items(tmp_path)
    item = {**item, "label": item["image"][0]}
    data = DiskCacheDataset([item], Compose([]), tmp_path / "cache")
    first = data.path(item)
    assert data.path(item) == first
    files = series_files(item["image"][2])
    content = bytearray(Path(files[-1]).read_bytes())
    content[-1] ^= 1
    Path(files[-1]).write_bytes(content)
    assert data.path(item) != first


def test_a_benchmark_links_whole_series(tmp_path):
    write_case(tmp_path / "data" / "ann", images())
    subset(tmp_path / "data", 1, tmp_path / "links")
    (case,) = find_cases(tmp_path / "links")
    for sequence, path in case.images.items():
        np.testing.assert_array_equal(voxels_of(read_image(path), path), np.asanyarray(images()[sequence].dataobj))


def test_damaged_files_are_named(tmp_path):
    files = write_series(tmp_path / "ann", np.asanyarray(images()["t1"].dataobj), affine())
    whole = files[3].read_bytes()
    for kept in (len(whole) - 1, len(whole) - 100, 700, 400, 200, 132):
        files[3].write_bytes(whole[:kept])
        for read in (read_image, open_image):
            with pytest.raises(InputError, match=rf"{files[3]}: damaged \(.*\); copy it again\.$") as caught:
                read(files[0])
            assert caught.value.kind == "damaged file"
    # Without its first bytes the file is no DICOM file, and its slice is missing.
    files[3].write_bytes(whole[:100])
    with pytest.raises(InputError, match="so a slice is missing"):
        read_image(files[0])


@pytest.mark.parametrize("added", [-2 * SHAPE[0], -2, 0, 2])
def test_slices_with_fewer_voxels_than_they_say_are_refused(tmp_path, added):
    voxels = np.asanyarray(images()["t1"].dataobj)
    files = write_series(tmp_path, voxels, affine())
    for file in files:
        data = pydicom.dcmread(file)
        data.PixelData = data.PixelData[:added] if added < 0 else data.PixelData + bytes(added)
        data.save_as(file)
    if added < 0:
        with pytest.raises(InputError, match=rf"{files[0]}: damaged \(it has fewer voxels than .*\); copy it again\.$"):
            read_image(files[0])
    else:
        np.testing.assert_array_equal(voxels_of(read_image(files[0]), "a"), voxels)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_bytes_at_random_are_refused_or_read_and_never_crash(tmp_path):
    rng = np.random.default_rng(5)
    files = write_series(tmp_path / "ann", np.asanyarray(images()["t1"].dataobj), affine())
    whole = files[3].read_bytes()
    end = len(whole) - 2 * SHAPE[0] * SHAPE[1]
    refused = 0
    for _ in range(60):
        content = bytearray(whole)
        for at in rng.integers(132, end, 3):
            content[at] = rng.integers(256)
        files[3].write_bytes(content)
        try:
            assert read_image(files[0]).shape[:2] == SHAPE[:2]
        except InputError as error:
            assert "\n" not in str(error)
            refused += 1
    assert 10 < refused < 60


def test_without_the_packages_series_are_refused_and_the_packages_named(tmp_path, monkeypatch):
    write_case(tmp_path / "ann", images())
    monkeypatch.setattr("scripts.data.dicom.packages_are_installed", lambda *names: False)
    for call in (lambda: find_cases(tmp_path), lambda: read_image(tmp_path / "ann" / "series 0" / "IM00001")):
        with pytest.raises(InputError, match=r"DICOM files need pydicom and itk; install both \(pip install"):
            call()


def test_colors_are_refused(tmp_path):
    files = write_series(tmp_path, np.asanyarray(images()["t1"].dataobj), affine(), SeriesDescription="T1")
    made = write_series(tmp_path / "colors", np.asanyarray(images()["t1"].dataobj), affine(), SamplesPerPixel=3)
    assert read_image(files[0]).shape == SHAPE
    with pytest.raises(InputError, match="colors, not plain numbers") as caught:
        read_image(made[0])
    assert caught.value.kind == "no plain numbers"


def test_a_step_aside_is_refused(tmp_path):
    """Slices whose distances are even, but which lie beside each other."""
    voxels = np.asanyarray(images()["t1"].dataobj)
    write_series(tmp_path, voxels[..., :4], affine())
    aside = affine() @ nib.affines.from_matvec(np.eye(3), (2, 0, 4))
    write_series(tmp_path, voxels[..., 4:], aside, ["a", "b", "c"])
    with pytest.raises(InputError, match=r"IM0004 to .*a is .* mm and not 3 mm straight on") as caught:
        read_image(tmp_path / "a")
    assert caught.value.kind == "missing slice"


def test_slices_of_a_tilted_gantry_are_refused(tmp_path):
    voxels, tilt = np.asanyarray(images()["t1"].dataobj), 3 * np.tan(np.radians(12))
    for number in range(SHAPE[2]):
        place = affine() @ nib.affines.from_matvec(np.eye(3), (0, number * tilt / SIZES[1, 1], number))
        write_series(tmp_path, voxels[..., number : number + 1], place, [f"IM{number}"])
    with pytest.raises(InputError, match=r"each slice lies 0\.638 mm beside the one before.* tilted gantry") as caught:
        read_image(tmp_path / "IM0")
    assert caught.value.kind == "missing slice"


@pytest.mark.parametrize(("step", "even"), [(3.02, True), (3.2, False), (2.4, False)])
def test_a_step_that_is_not_even_is_refused(tmp_path, step, even):
    """A step may differ from the usual 3 mm by 1 %, since headers hold rounded numbers."""
    voxels = np.asanyarray(images()["t1"].dataobj)
    write_series(tmp_path, voxels[..., :4], affine())
    on = affine() @ nib.affines.from_matvec(np.eye(3), (0, 0, 3 + step / 3))
    write_series(tmp_path, voxels[..., 4:], on, ["a", "b", "c"])
    if even:
        assert read_image(tmp_path / "a").shape == SHAPE
    else:
        with pytest.raises(InputError, match=r"IM0004 to .*a is .* mm and not 3 mm straight on") as caught:
            read_image(tmp_path / "a")
        assert caught.value.kind == "missing slice"


def test_unreadable_files_of_a_series_are_not_left_out(tmp_path, monkeypatch):
    files = write_series(tmp_path, np.asanyarray(images()["t1"].dataobj), affine())
    opened = Path.open

    def refused(path, *arguments):
        if path == files[-1]:
            raise PermissionError(13, "Permission denied")
        return opened(path, *arguments)

    monkeypatch.setattr(Path, "open", refused)
    with pytest.raises(InputError, match=r"IM0007: not readable \(Permission denied\)") as caught:
        read_image(files[0])
    assert caught.value.kind == "unreadable file"


BRAIN = (30, 26, 20)


def brain_images(seed: int) -> dict[str, nib.Nifti1Image]:
    """Brains of noise in voxels of 5 mm, whose axes are not the network's."""
    rng = np.random.default_rng(seed)
    x, y, z = np.indices(BRAIN)
    brain = ((x - 15) / 13) ** 2 + ((y - 13) / 11) ** 2 + ((z - 10) / 9) ** 2 < 1
    place = nib.affines.from_matvec(AXES["coronal"] * 5.0, PLACE)
    voxels = {s: np.where(brain, rng.integers(200, 900, BRAIN), 0).astype(np.uint16) for s in SEQUENCES}
    return {sequence: nib.Nifti1Image(values, place) for sequence, values in voxels.items()}


@pytest.mark.parametrize("together", [False, True])
def test_the_segmentation_is_that_of_the_same_case_in_nifti(tmp_path, together):
    """By the whole of inference.json, in the grid of the images, which is not the network's."""
    made = brain_images(7)
    write_case(tmp_path / "dicom" / "ann", made, together)
    (tmp_path / "nifti" / "ann").mkdir(parents=True)
    for sequence, image in made.items():
        nib.save(image, tmp_path / "nifti" / "ann" / f"ann_{sequence}.nii.gz")
    torch.manual_seed(0)
    network = PriorAttentionNet(spatial_dims=3, channels=SIZE["network_def#channels"])
    torch.save(network.state_dict(), tmp_path / "model.pt")
    thresholds = {"thresholds#min_component_mm3": 1, "thresholds#min_et_mm3": 1}
    results = []
    for kind in ("dicom", "nifti"):
        bundle_run(
            "inference.json",
            dataset_dir=str(tmp_path / kind),
            output_dir=str(tmp_path / f"{kind} maps"),
            model_file=str(tmp_path / "model.pt"),
            **SIZE,
            **thresholds,
        )
        assert [path.name for path in (tmp_path / f"{kind} maps").glob("*.nii.gz")] == ["ann.nii.gz"]
        results.append(nib.load(tmp_path / f"{kind} maps" / "ann.nii.gz"))
    ours, theirs = (np.asanyarray(image.dataobj) for image in results)
    assert ours.shape == BRAIN and len(np.unique(ours)) > 1
    np.testing.assert_array_equal(ours, theirs)
    np.testing.assert_allclose(results[0].affine, results[1].affine, atol=1e-5)
    np.testing.assert_allclose(results[0].affine, made["t1"].affine, atol=1e-5)


@pytest.mark.slow
def test_a_training_and_an_evaluation_give_what_they_give_on_nifti(tmp_path):
    rng = np.random.default_rng(11)
    lists: dict[str, dict] = {kind: {"sequences": list(SEQUENCES)} for kind in ("dicom", "nifti")}
    for name, part in (("ann", "training"), ("bea", "training"), ("cyd", "validation")):
        made = brain_images(int(rng.integers(1000)))
        label = np.zeros(BRAIN, np.uint8)
        label[8:20, 8:18, 6:14], label[10:16, 10:15, 8:12], label[11:14, 11:14, 9:11] = 2, 4, 1
        (tmp_path / "nifti" / name).mkdir(parents=True)
        nib.save(nib.Nifti1Image(label, made["t1"].affine), tmp_path / f"{name}.nii.gz")
        write_case(tmp_path / "dicom" / name, made)
        for sequence, image in made.items():
            nib.save(image, tmp_path / "nifti" / name / f"{name}_{sequence}.nii.gz")
        reading = {"case": name, "label": str(tmp_path / f"{name}.nii.gz"), "et_label": 4, "edema_label": 2}
        folders = [f"{name}/series {number}" for number in range(4)]
        lists["dicom"].setdefault(part, []).append({"image": folders, **reading})
        files = [f"{name}/{name}_{sequence}.nii.gz" for sequence in SEQUENCES]
        lists["nifti"].setdefault(part, []).append({"image": files, **reading})
    scores = []
    for kind, content in lists.items():
        (tmp_path / f"{kind}.json").write_text(json.dumps(content))
        place = {"dataset_dir": str(tmp_path / kind), "datalist_file": str(tmp_path / f"{kind}.json")}
        run = tmp_path / f"{kind} run"
        bundle_run("train.json", output_dir=str(run), **place, **TRAINING_SIZE)
        bundle_run("train.json", "evaluate.json", output_dir=str(run), **place, **TRAINING_SIZE)
        scores.append(next(run.rglob("scores.csv")).read_text())
    assert scores[0] == scores[1] and scores[0].count("\n") == 2


def test_the_command_shows_what_was_chosen(tmp_path):
    data = tmp_path / "data"
    write_case(data / "ann", images())
    study = find_cases(data)[0].choice.chosen["t1"].series.first.study
    more = {"study": study, "series": "8.8", "SeriesNumber": 11, "SeriesDescription": "COR T2"}
    write_series(data / "ann" / "more", np.asanyarray(images()["t1"].dataobj)[..., :4], affine(), **more)
    check.main([str(data), "--json", str(tmp_path / "findings.json")])
    found = json.loads((tmp_path / "findings.json").read_text())["findings"]
    (message,) = [one["message"] for one in found if one["kind"] == "several series of a sequence"]
    assert "T2: series 2 'AX T2 TSE' (by its description, most slices of 2)" in message
    assert "left out: series 11 'COR T2'; to take another series, name its file in a --datalist_file" in message
    shutil.rmtree(data / "ann" / "more")
    (tmp_path / "findings.json").unlink()
    check.main([str(data), "--json", str(tmp_path / "findings.json")])
    found = json.loads((tmp_path / "findings.json").read_text())["findings"]
    assert "several series of a sequence" not in [one["kind"] for one in found]
