# Copyright (c) the brats_mri_panet_segmentation authors
# SPDX-License-Identifier: Apache-2.0
"""The command for patients gives the label maps of inference.json, by the record of the weights, and their numbers."""

import json
import os
import shutil
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import jsonschema
import nibabel as nib
import numpy as np
import pytest
from dicom_series import write_case
from scripts import segment as command
from scripts.brats import SEQUENCES
from scripts.data.cases import NO_FILE
from scripts.data.datalist import unlabeled_items
from scripts.data.datalist_file import write_datalist
from scripts.data.inspection import PREPARATION_PAGE
from scripts.pages.page import make_report
from scripts.pages.runs import cases_of, read_run
from scripts.patients import results as patient_results
from scripts.patients import segmentation
from scripts.patients.items import find_items, given_case, refuse_other_images, with_absolute_paths
from scripts.patients.options import Options
from scripts.patients.results import closing_words
from scripts.patients.segmentation import configuration_of, segment, weights_to_use
from scripts.scores.volume_table import read_table
from scripts.utils.errors import InputError
from scripts.utils.files import BUNDLE_ROOT
from scripts.utils.literals import shown
from scripts.utils.machine import computes_in
from scripts.utils.run_json import read_run_json
from scripts.workflow.output import earlier_cases
from workflows import SIZE, bundle_run, voxels

SCHEMA = json.loads((BUNDLE_ROOT / "docs" / "segmentation_schema.json").read_text())


@pytest.fixture(scope="module", autouse=True)
def without_openvino():
    """A process that has run OpenVINO may crash when it forks, and other tests of this process fork."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(segmentation, "openvino_is_installed", lambda: False)
        yield


@pytest.fixture(scope="module")
def patients(phantoms, tmp_path_factory) -> Path:
    """Two phantoms in a folder, without most of the background, which is two thirds of the files."""
    folder = tmp_path_factory.mktemp("patients")
    for case in sorted(path for path in phantoms.rglob("BraTS20_*") if path.is_dir())[:2]:
        (folder / case.name).mkdir()
        brain = np.nonzero(voxels(case / f"{case.name}_t1.nii.gz"))
        box = tuple(slice(axis.min() - 2, axis.max() + 3) for axis in brain)
        for file in case.iterdir():
            nib.save(nib.load(file).slicer[box], folder / case.name / file.name)
    return folder


@pytest.fixture(scope="module")
def options(training) -> Options:
    return Options(model=training / "model.pt", device="cpu", pictures=False)


@pytest.fixture(scope="module")
def segmented(patients, options, tmp_path_factory) -> tuple[Path, list[dict]]:
    out = tmp_path_factory.mktemp("segmented") / "out"
    return out, segment([patients], out, options=options)


def images(folder: Path) -> dict[str, Path]:
    return {name: folder / f"{folder.name}_{name}.nii.gz" for name in ("t1", "t1ce", "t2", "flair")}


def test_label_maps_are_those_of_the_configuration_with_the_same_settings(segmented, patients, training, tmp_path):
    out, results = segmented
    place = {"dataset_dir": str(patients), "model_file": str(training / "model.pt"), "output_dir": str(tmp_path / "o")}
    amp = computes_in("cpu", "bfloat16")
    bundle_run("inference.json", **{**SIZE, **place, "device": "cpu", "amp": amp, "roi_size": [32, 32, 32]})
    cases = sorted(path.name for path in patients.iterdir())
    assert [result["case"] for result in results] == cases
    for case in cases:
        ours, theirs = out / case / f"{case}.nii.gz", tmp_path / "o" / f"{case}.nii.gz"
        assert np.array_equal(voxels(ours), voxels(theirs))
        assert np.array_equal(nib.load(ours).affine, nib.load(patients / case / f"{case}_t1.nii.gz").affine)


def test_numbers_are_those_of_the_label_map_and_of_the_files(segmented, patients, training):
    out, results = segmented
    for result in results:
        jsonschema.validate(result, SCHEMA)
        case = result["case"]
        assert json.loads((out / case / f"{case}.json").read_text()) == result
        labels = voxels(out / case / f"{case}.nii.gz")
        counts = {"ET": labels == 4, "TC": np.isin(labels, (1, 4)), "WT": labels > 0}
        volumes = {name: int(mask.sum()) / 1000 for name, mask in counts.items()}
        assert result["volumes_ml"] == {name: round(ml, 1 if ml >= 1 else 3) for name, ml in volumes.items()}
        lesions = [lesion["volume_ml"]["WT"] for lesion in result["lesions"]]
        assert sum(lesions) == pytest.approx(volumes["WT"], abs=0.05 * len(lesions))
        for entry in result["inputs"]:
            file = patients / case / f"{case}_{entry['sequence']}.nii.gz"
            assert Path(entry["file"]) == file
            assert entry["sha256"] == sha256(file.read_bytes()).hexdigest()
        assert result["weights"]["checksum"] == sha256((training / "model.pt").read_bytes()).hexdigest()
        assert result["weights"]["trained_on"]["phantoms"] == 2
    # A value that the schema does not allow is refused, so the check above can fail.
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({**results[0], "et_label": 2}, SCHEMA)


def test_a_second_call_does_nothing_anew_and_gives_the_same_numbers(segmented, patients, options):
    out, results = segmented
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    assert segment([patients], out, options=options) == results
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == before


def test_files_of_any_name_give_the_same_label_map(segmented, patients, options, tmp_path):
    out, results = segmented
    case = results[0]["case"]
    files = {}
    for number, (name, file) in enumerate(images(patients / case).items()):
        files[name] = shutil.copy(file, tmp_path / f"scan {number}.nii.gz")
    arguments = [text for name, file in files.items() for text in (f"--{name}", str(file))]
    arguments += ["--name", "ann", "--model", str(options.model), "--device", "cpu", "--no-pictures"]
    assert command.main([*arguments, "-o", str(tmp_path / "out")]) == 0
    assert np.array_equal(voxels(tmp_path / "out" / "ann" / "ann.nii.gz"), voxels(out / case / f"{case}.nii.gz"))


def test_the_words_of_names_tell_the_sequences(segmented, patients, options, tmp_path, capsys):
    out, results = segmented
    case, folder = results[0]["case"], tmp_path / "bob"
    folder.mkdir()
    names = {"t1": "AX T1 pre", "t1ce": "T1_MPRAGE_post_GAD", "t2": "AX T2 TSE", "flair": "pat7_FLAIR"}
    files = [shutil.copy(file, folder / f"{names[name]}.nii.gz") for name, file in images(patients / case).items()]
    chosen = ["--model", str(options.model), "--device", "cpu", "--no-pictures"]
    assert command.main([*map(str, files), "--quiet", *chosen, "-o", str(tmp_path / "a")]) == 0
    assert capsys.readouterr().out == ""
    assert command.main(["-i", str(folder), "--name", "eve", "--report", *chosen, "-o", str(tmp_path / "b")]) == 0
    for name, place in (("bob", tmp_path / "a"), ("eve", tmp_path / "b")):
        label_map = place / name / f"{name}.nii.gz"
        assert np.array_equal(voxels(label_map), voxels(out / case / f"{case}.nii.gz"))
        inputs = json.loads(label_map.with_name(f"{name}.json").read_text())["inputs"]
        assert {one["sequence"]: one["file"] for one in inputs} == {s: f"{folder}/{n}.nii.gz" for s, n in names.items()}
        assert [row["case"] for row in read_table(place)] == [name]
    told = capsys.readouterr()
    first, report = told.out.splitlines()
    assert first.startswith(f"{label_map}: ET ") and report == f"{tmp_path}/b/report.html"
    assert "T1 contrast-enhanced: T1_MPRAGE_post_GAD.nii.gz; FLAIR: pat7_FLAIR.nii.gz; left out: none" in told.err
    assert f"Look first at {label_map}, then at {tmp_path}/b/volumes.csv." in told.err


def test_each_case_is_told_and_in_the_table_when_it_is_done(patients, options, segmented, tmp_path):
    """Not at the end of the run."""
    told = []

    def done(result):
        told.append(([row["case"] for row in read_table(tmp_path)], result))

    assert segment([patients], tmp_path, options=options, done=done) == [result for _, result in told]
    cases = sorted(path.name for path in patients.iterdir())
    assert [rows for rows, _ in told] == [cases[:1], cases]
    assert {row["volume_WT_ml"] for row in read_table(tmp_path)} == {
        str(result["volumes_ml"]["WT"]) for result in segmented[1]
    }


def test_the_last_words_name_the_case_that_needs_a_look(tmp_path):
    def result(case, dice=None, warnings=()):
        expected = None if dice is None else {"WT": {"dice": dice}}
        label_map = str(tmp_path / case / f"{case}.nii.gz")
        return {"case": case, "label_map": label_map, "warnings": warnings, "expected_dice": expected}

    sure, poor, odd = result("a", 0.9), result("b", 0.4), result("c", 0.8, [{"kind": "odd name", "text": ""}])
    assert closing_words([sure, poor]).startswith(f"Look first at {tmp_path}/b/b.nii.gz (expected Dice of WT 0.40), ")
    assert closing_words([sure, poor, odd]).startswith(f"Look first at {tmp_path}/c/c.nii.gz (WARNING: odd name), ")
    assert closing_words([result("d")]).startswith(f"Look first at {tmp_path}/d/d.nii.gz, then at {tmp_path}/volumes")


def test_the_options_reach_the_configuration(training, monkeypatch):
    model, record = weights_to_use(training / "model.pt")
    names, settings = configuration_of(record, model, Options(device="cuda:0"))
    assert names == ["inference.json"]
    assert shown(settings["network_def"]["channels"]) == SIZE["network_def#channels"]
    assert (settings["spacing"], settings["roi_size"], settings["exclusive"]) == ([4.0] * 3, [32, 32, 32], False)
    assert configuration_of(record, model, Options(device="cuda:0", fast=True))[0] == [
        "inference.json",
        "whole_brain.yaml",
    ]
    names, settings = configuration_of(record, model, Options(device="cuda:0", tta=True, et_label=3, uncertainty=True))
    assert names == ["inference.json", "tta.yaml"] and settings["flips#axes"] == [0, 1, 2]
    assert (settings["saved_et_label"], settings["save_uncertainty"], settings["save_probabilities"]) == (
        3,
        True,
        False,
    )
    monkeypatch.setattr(segmentation, "openvino_is_installed", lambda: True)
    assert configuration_of(record, model, Options(device="cpu"))[0] == ["inference.json", "openvino.yaml"]
    monkeypatch.setattr(segmentation, "openvino_is_installed", lambda: False)
    names, settings = configuration_of(record, model, Options(device="cpu"))
    assert names == ["inference.json"] and settings["amp"] in (True, False)
    imported = {**record, "normalization": "volume"}
    assert "authors.yaml" in configuration_of(imported, model, Options(device="cuda:0"))[0]


def test_weights_are_those_chosen_or_published_or_the_starters(tmp_path, monkeypatch, caplog):
    assert weights_to_use(None)[0] in (segmentation.OWN_WEIGHTS, segmentation.STARTER_WEIGHTS)
    monkeypatch.setattr(segmentation, "OWN_WEIGHTS", tmp_path / "model.pt")
    with caplog.at_level("INFO"):
        assert weights_to_use(None)[0] == segmentation.STARTER_WEIGHTS
    assert "trained on at least 74 patients and 166 phantoms; " in caplog.text
    assert "README.md says what they are worth" in caplog.text
    for name in ("model.pt", "model.json"):
        shutil.copy(segmentation.STARTER_WEIGHTS.with_name(name), tmp_path / name)
    assert weights_to_use(None)[0] == tmp_path / "model.pt"
    names = configuration_of(weights_to_use(None)[1], segmentation.STARTER_WEIGHTS, Options())[0]
    assert names == ["inference.json", "starter.yaml"]


def without_skull(folder: Path) -> None:
    """Put a head round the brain."""
    for file in folder.glob("*.nii.gz"):
        image = nib.load(file)
        data = np.asanyarray(image.dataobj).copy()
        outside = data == 0
        data[outside] = (np.random.default_rng(len(file.name)).random(data.shape) * 100 + 5)[outside]
        nib.save(nib.Nifti1Image(data, image.affine), file)


def damaged(folder: Path) -> None:
    file = next(folder.glob("*_t1.nii.gz"))
    file.write_bytes(file.read_bytes()[:5000])


def moved(folder: Path) -> None:
    file = next(folder.glob("*_flair.nii.gz"))
    image = nib.load(file)
    nib.save(nib.Nifti1Image(np.asanyarray(image.dataobj)[:-8], image.affine), file)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "words"),
    [
        (without_skull, "--prepare prepares scans (docs/get_started.md)"),
        (damaged, "damaged"),
        (moved, "co-register and resample all sequences to one grid"),
        (lambda folder: next(folder.glob("*_t2.nii.gz")).unlink(), "there is no"),
        (lambda folder: shutil.rmtree(folder), "no such folder"),
    ],
)
def test_wrong_input_is_one_line_and_nothing_is_written(change, words, patients, options, tmp_path):
    case = shutil.copytree(next(patients.iterdir()), tmp_path / "p1", symlinks=False)
    change(case)
    with pytest.raises(InputError) as caught:
        segment([case], tmp_path / "out", options=options)
    assert words in str(caught.value) and "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()
    assert (BUNDLE_ROOT / PREPARATION_PAGE).is_file()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "no CASE"),
        (["--t1", "a.nii", "case"], "--t1: names a series of one DICOM study, and CASE holds 0"),
        (["case", "--name", "a/b"], "case: no such folder"),
        (["case", "--fast", "--tta"], "--fast and --tta contradict"),
        (["case", "--model", "absent.pt"], "absent.pt: no such file; correct --model, or leave it out"),
        (["case", "--model", ".."], "--model ..: a folder; name the file of the weights"),
        (["case", "--device", "banana"], "--device banana: no such device"),
        (["--t1", "a.nii", "--name", "../ann"], "--name ../ann: results are named after it"),
        (["--t1", "p_t2.nii"], "--t1 p_t2.nii: its name says t2; correct the option, or rename the file"),
        (["--t1", "a.nii"], ": 2 faults, to be mended in this order: (1) "),  # it is absent, and the others are missing
        (["absent"], "absent: no such folder"),
    ],
)
def test_a_wrong_command_is_one_line(arguments, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError) as caught:
        command.main([*arguments, "-o", "out"])
    assert words in str(caught.value) and "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("arguments", [["case", "--model", ""], [""], ["--t1", ""], ["case", "-o", ""]])
def test_an_empty_path_is_refused(arguments, tmp_path, monkeypatch, capsys):
    """It would mean the folder in which the command was started."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as caught:
        command.main(["-o", "out", *arguments])
    assert caught.value.code == 2 and "the path is empty; name a file or a folder" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_weights_without_a_record_are_refused(training, tmp_path):
    shutil.copy(training / "model.pt", tmp_path / "model.pt")
    with pytest.raises(InputError, match=r"model\.pt: there is no record of these weights \(model\.json\)"):
        weights_to_use(tmp_path / "model.pt")


def test_a_missing_sequence_is_borne_if_the_record_says_so(patients, training, tmp_path, caplog):
    case = shutil.copytree(next(patients.iterdir()), tmp_path / "p1")
    next(case.glob("*_t2.nii.gz")).unlink()
    for name in ("model.pt", "model.json"):
        shutil.copy(training / name, tmp_path / name)
    record = json.loads((tmp_path / "model.json").read_text())
    (tmp_path / "model.json").write_text(json.dumps({**record, "missing_sequences": 1}))
    (result,) = segment([case], tmp_path / "out", options=Options(tmp_path / "model.pt", device="cpu", pictures=False))
    assert result["missing_sequences"] == ["t2"]
    assert [entry["sequence"] for entry in result["inputs"]] == ["t1", "t1ce", "flair"]
    assert "lacks t2" in caplog.text


def test_a_dicom_case_gives_a_segmentation_object_of_the_same_voxels(patients, training, segmented, tmp_path):
    highdicom, pydicom = pytest.importorskip("highdicom"), pytest.importorskip("pydicom")
    case = sorted(patients.iterdir())[0]
    nifti = {}
    for name, file in images(case).items():
        image = nib.load(file)
        data = np.asanyarray(image.dataobj)
        # DICOM's rows run to the left and to the back, as the axes of BraTS files do.
        nifti[name] = nib.Nifti1Image(np.round(data - data.min()).astype(np.uint16) * (data != 0), image.affine)
    folder = write_case(tmp_path / "dicom" / "p1", nifti)
    chosen = Options(training / "model.pt", device="cpu", pictures=False, dicom_seg=True)
    with pytest.raises(InputError, match="no FrameOfReferenceUID"):
        segment([folder], tmp_path / "no frame", options=chosen)
    assert not (tmp_path / "no frame").exists()
    for file in (path for path in folder.rglob("*") if path.is_file()):
        data = pydicom.dcmread(file)
        data.FrameOfReferenceUID = "1.2.3.4.5"
        data.save_as(file)
    (result,) = segment([folder], tmp_path / "out", options=chosen)
    labels = voxels(tmp_path / "out" / result["case"] / f"{result['case']}.nii.gz")
    assert labels.any()
    found = highdicom.seg.segread(tmp_path / "out" / result["case"] / f"{result['case']}.dcm")
    series = unlabeled_items(folder)[0]["image"][0]
    source = pydicom.dcmread(series)
    assert found.FrameOfReferenceUID == source.FrameOfReferenceUID
    assert found.StudyInstanceUID == source.StudyInstanceUID
    values = {"necrotic and non-enhancing core": 1, "edema": 2, "enhancing tumor": 4}
    numbers = {1: 1, 2: 2, 3: 4}
    for number in [number for number in found.segment_numbers if (labels == numbers[number]).any()]:
        name = found.get_segment_description(number).segment_label
        volume = found.get_volume(segment_numbers=[number], combine_segments=False)
        mask = np.asarray(volume.array)[..., 0].astype(bool)
        assert mask.sum() == (labels == values[name]).sum()
        # The same voxels lie at the same millimeters.
        own = nib.affines.apply_affine(
            nib.load(tmp_path / "out" / result["case"] / f"{result['case']}.nii.gz").affine,
            np.argwhere(labels == values[name]),
        )
        theirs = nib.affines.apply_affine(np.diag([-1, -1, 1, 1]) @ volume.affine, np.argwhere(mask))
        assert np.allclose(np.sort(own, axis=0), np.sort(theirs, axis=0), atol=1e-3)
    with pytest.raises(InputError, match=r"no DICOM file; leave out --dicom-seg"):
        segment([case], tmp_path / "other", options=chosen)


@pytest.mark.slow
def test_cases_of_several_folders_have_the_folder_above_them_in_the_record(patients, options, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    cases = []
    for number, case in enumerate(sorted(patients.iterdir())):
        cases.append(Path("hospital", f"ward {number}", case.name))
        shutil.copytree(case, cases[-1])
    segment(cases, tmp_path / "out", options=options)
    above = tmp_path / "hospital"
    run = read_run(tmp_path / "out")
    assert run.record["dataset_dir"] == str(above)
    found = cases_of(run)
    assert [case.entry["image"][0] for case in found] == [str(images(tmp_path / case)["t1"]) for case in cases]
    assert f"<dt>folder of the cases</dt><dd>{above}</dd>" in make_report(run)
    # No results go into the folder of a case, whichever comes first.
    for order in (cases, cases[::-1]):
        for out in (cases[0], cases[1].parent):
            with pytest.raises(InputError, match=f"{out}: holds the data"):
                segment(order, out, options=options)
            assert not (out / "run.json").exists()


@pytest.mark.slow
def test_one_file_for_two_sequences_is_refused(patients, options, tmp_path):
    case = next(patients.iterdir())
    # The names of the files say no sequence, so the images alone tell it.
    files = {}
    for number, name in enumerate(("t1", "t2", "flair")):
        files[name] = shutil.copy(next(case.glob(f"*_{name}.nii.gz")), tmp_path / f"scan{number}.nii.gz")
    with pytest.raises(InputError, match="is the same image as T1 "):
        segment([], tmp_path / "out", files={**files, "t1ce": files["t1"]}, options=options)
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_a_second_call_draws_the_pictures_that_are_missing(patients, options, tmp_path):
    case = next(patients.iterdir())
    (without,) = segment([case], tmp_path / "out", options=options)
    pictures = [tmp_path / "out" / case.name / f"{case.name}{end}.png" for end in ("", "_3d")]
    assert not any(path.exists() for path in pictures)
    before = (tmp_path / "out" / case.name / f"{case.name}.nii.gz").stat().st_mtime_ns
    (result,) = segment([case], tmp_path / "out", options=replace(options, pictures=True, surface=True))
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in pictures)
    assert (tmp_path / "out" / case.name / f"{case.name}.nii.gz").stat().st_mtime_ns == before
    # The numbers tell of the run that made the label map.
    assert result == without == json.loads((tmp_path / "out" / case.name / f"{case.name}.json").read_text())


def exchange(case: Path) -> None:
    """Exchange right and left of a case's scans, which keep their times."""
    for file in images(case).values():
        times, image = file.stat(), nib.load(file)
        data = np.asanyarray(image.dataobj)[::-1]
        nib.save(nib.Nifti1Image(data, image.affine, image.header), file)
        os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))


@pytest.mark.slow
def test_results_of_earlier_scans_do_not_stand_beside_new_ones(patients, options, tmp_path):
    case, out = next(patients.iterdir()), tmp_path / "out"
    own = shutil.copytree(case, tmp_path / case.name)
    segment([own], out, options=options)
    folder, name = out / case.name, case.name
    (folder / f"{name}.png").write_text("a picture")
    # The label tables are the same for every map.
    before = {path.name: path.read_bytes() for path in folder.iterdir() if path.suffix not in (".txt", ".ctbl")}
    exchange(own)
    (result,) = segment([own], out, options=options)
    assert json.loads((folder / f"{name}.json").read_text()) == result
    assert {one["sequence"]: one["sha256"] for one in result["inputs"]} == {
        sequence: sha256(file.read_bytes()).hexdigest() for sequence, file in images(own).items()
    }
    assert not (folder / f"{name}.png").exists()
    kept = [path.read_bytes() for path in folder.iterdir() if path.name.startswith(f"{name}_20")]
    assert sorted(kept) == sorted(before.values())
    # The future is no reason to do anything again.
    for file in images(own).values():
        os.utime(file, (2**32, 2**32))
    files = sorted(folder.iterdir())
    assert segment([own], out, options=options) == [result] and sorted(folder.iterdir()) == files
    # A label map without its numbers is not done.
    (folder / f"{name}.json").unlink()
    (again,) = segment([own], out, options=options)
    assert {**again, "seconds_of_the_run": 0, "date": 0} == {**result, "seconds_of_the_run": 0, "date": 0}


@pytest.mark.slow
def test_no_results_of_an_earlier_label_map_stand_alone_if_the_case_fails(patients, options, tmp_path, monkeypatch):
    case, out = next(patients.iterdir()), tmp_path / "out"
    own = shutil.copytree(case, tmp_path / case.name)
    segment([own], out, options=options)
    exchange(own)

    def fail(*args, **kwargs):
        raise OSError("the disk is gone")

    with monkeypatch.context() as patch:
        patch.setattr("scripts.inference.writers.save_map", fail)
        with pytest.raises(InputError, match="1 of 1 case failed"):
            segment([own], out, options=options)
    assert (
        not (out / case.name / f"{case.name}.nii.gz").exists() and not (out / case.name / f"{case.name}.json").exists()
    )
    assert (
        len(list((out / case.name).glob(f"{case.name}_20*.nii.gz")))
        == len(list((out / case.name).glob(f"{case.name}_20*.json")))
        == 1
    )
    assert list(read_run_json(out)["failed"]) == [case.name]
    # Another patient does not make the failure forgotten; the next success does.
    second = next(path for path in sorted(patients.iterdir()) if path.name != case.name)
    segment([second], out, options=options)
    assert list(read_run_json(out)["failed"]) == [case.name]
    segment([own], out, options=options)
    assert "failed" not in read_run_json(out) and (out / case.name / f"{case.name}.json").is_file()


@pytest.mark.slow
def test_another_patient_is_added_to_the_same_folder(patients, segmented, options, tmp_path):
    first, second = sorted(patients.iterdir())[:2]
    out = tmp_path / "out"
    (one,) = segment([first], out, options=options)
    before = {path.name: path.read_bytes() for path in (out / first.name).iterdir()}
    started = read_run_json(out)["started"]
    (two,) = segment([second], out, options=options)
    assert (one["case"], two["case"]) == (first.name, second.name)
    assert {name: (out / first.name / name).read_bytes() for name in before} == before
    for case in (first.name, second.name):
        assert np.array_equal(voxels(out / case / f"{case}.nii.gz"), voxels(segmented[0] / case / f"{case}.nii.gz"))
    record = read_run_json(out)
    assert record["cases"] == 2 and [entry["started"] for entry in record["resumed"]] == [started]
    listed = earlier_cases(str(out), "nowhere")
    assert {case: item["image"][0] for case, item in listed.items()} == {
        path.name: str(images(path)["t1"]) for path in (first, second)
    }
    # The report shows both, and both are known to a third call.
    run = read_run(out)
    assert [(case.name, case.prediction, case.entry is None) for case in cases_of(run)] == [
        (path.name, out / path.name / f"{path.name}.nii.gz", False) for path in (first, second)
    ]
    assert segment([patients], out, options=options) == [one, two]
    # Other settings are another matter.
    with pytest.raises(InputError, match=r"other settings \(saved_et_label\); choose another --output_dir, or add"):
        segment([second], out, options=replace(options, et_label=3))


@pytest.mark.slow
def test_other_images_of_the_same_name_are_refused_with_a_remedy_that_works(patients, options, tmp_path):
    case = next(patients.iterdir())
    other = shutil.copytree(case, tmp_path / "other" / case.name)
    out = tmp_path / "out"
    segment([case], out, options=options)
    before = (out / case.name / f"{case.name}.nii.gz").stat().st_mtime_ns
    with pytest.raises(InputError) as caught:
        segment([other], out, options=options)
    assert str(caught.value) == (
        f"{out}: holds a case {case.name} of other images ({images(case)['t1']}); choose another --output_dir, or add "
        "--overwrite (the earlier folder is then kept under a dated name)."
    )
    assert (out / case.name / f"{case.name}.nii.gz").stat().st_mtime_ns == before
    arguments = [str(other), "--output-dir", str(out), "--model", str(options.model), "--device", "cpu"]
    assert command.main([*arguments, "--no-pictures", "--overwrite"]) == 0
    (kept,) = [path for path in tmp_path.iterdir() if path.name.startswith("out_")]
    assert (kept / case.name / f"{case.name}.nii.gz").stat().st_mtime_ns == before


def test_the_same_files_as_other_sequences_are_other_images(segmented, patients, tmp_path):
    first = segmented[1][0]["case"]
    t1, t2, flair = (str(images(patients / first)[name]) for name in ("t1", "t2", "flair"))
    earlier, corrected = (
        {"case": first, "image": image} for image in ([t1, t2, NO_FILE, flair], [t1, NO_FILE, t2, flair])
    )
    write_datalist({"testing": [earlier]}, patients, tmp_path / "datalist.json")
    (tmp_path / "run.json").write_text(json.dumps({"dataset_dir": str(patients)}))
    refuse_other_images([earlier], tmp_path)
    with pytest.raises(InputError, match=f"holds a case {first} of other images"):
        refuse_other_images([corrected], tmp_path)


def test_a_case_is_the_same_from_any_folder_and_by_any_path(segmented, patients, options, monkeypatch, tmp_path):
    out, results = segmented
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    (tmp_path / "link").symlink_to(patients)
    for folder, path in ((patients, "."), (tmp_path, Path(os.path.relpath(patients, tmp_path))), (tmp_path, "link")):
        monkeypatch.chdir(folder)
        assert segment([path], os.path.relpath(out), options=options) == results
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == before


@pytest.mark.slow
def test_relative_paths_are_recorded_as_absolute_ones(patients, options, tmp_path, monkeypatch):
    case = next(patients.iterdir())
    shutil.copytree(case, tmp_path / case.name)
    for name in ("model.pt", "model.json"):
        shutil.copy(options.model.with_name(name), tmp_path / name)
    monkeypatch.chdir(tmp_path)
    (result,) = segment([case.name], "out", options=replace(options, model=Path("model.pt")))
    assert result["label_map"] == str(tmp_path / "out" / case.name / f"{case.name}.nii.gz")
    own = images(tmp_path / case.name)
    assert {entry["sequence"]: entry["file"] for entry in result["inputs"]} == {s: str(own[s]) for s in own}
    assert result["weights"]["file"] == str(tmp_path / "model.pt")
    assert result["parameters"]["output_dir"] == str(tmp_path / "out")


def test_paths_are_absolute_without_steps_up_and_links_keep_their_meaning(tmp_path, monkeypatch):
    (tmp_path / "far" / "below").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "far" / "below")
    monkeypatch.chdir(tmp_path / "far")
    given = ["../a_t1.nii", NO_FILE, "../link/../a_t1ce.nii", "../link/a_flair.nii"]
    real = ["a_t1.nii", NO_FILE, "far/a_t1ce.nii", "far/below/a_flair.nii"]
    expected = [file if file == NO_FILE else str(tmp_path / file) for file in real]
    assert with_absolute_paths({"case": "a", "image": given}) == {"case": "a", "image": expected}
    monkeypatch.chdir(tmp_path)
    # A link stays where nothing steps up.
    assert with_absolute_paths({"image": "link/a.nii"}) == {"image": str(tmp_path / "link" / "a.nii")}


def test_a_case_that_is_named_twice_is_taken_once(patients, caplog):
    case = sorted(patients.iterdir())[0]
    items, doubts = find_items([case, patients, case.resolve()], 0)
    assert doubts == []
    assert [item["case"] for item in items] == sorted(path.name for path in patients.iterdir())
    assert caplog.messages == [
        f"{path}: {case.name} was named before; it is segmented once." for path in (patients, case.resolve())
    ]


def test_two_cases_of_one_name_are_refused(patients, options, tmp_path):
    case = sorted(patients.iterdir())[0]
    other = shutil.copytree(case, tmp_path / case.name)
    with pytest.raises(InputError, match=rf"the case {case.name} is also in {case}; results are named after cases"):
        segment([case, other], tmp_path / "out", options=options)
    assert not (tmp_path / "out").exists()


def test_a_folder_of_one_dicom_series_is_taken_as_the_series(patients, tmp_path):
    """The numbers name files, and a later call compares them."""
    case = next(patients.iterdir())
    scans = {name: nib.load(file) for name, file in images(case).items()}
    whole = {
        name: nib.Nifti1Image(np.asarray(image.dataobj).clip(0).astype(np.int16), image.affine)
        for name, image in scans.items()
    }
    (found,) = unlabeled_items(write_case(tmp_path / "ann", whole))
    folders = {name: Path(file).parent for name, file in zip(SEQUENCES, found["image"], strict=True)}
    assert len(set(folders.values())) == 4
    assert given_case(folders, "ann") == found


@pytest.mark.slow
def test_a_second_call_writes_the_dicom_object_that_is_missing(patients, options, tmp_path, monkeypatch):
    case, made = next(patients.iterdir()), []

    def save(label_map, image, et_label, path, weights):
        made.append(path.name)
        path.write_text("object")

    monkeypatch.setattr(segmentation, "check_source", lambda file: None)
    monkeypatch.setattr(patient_results, "save_dicom_seg", save)
    chosen = replace(options, dicom_seg=True)
    segment([case], tmp_path / "out", options=options)
    for _ in range(2):
        segment([case], tmp_path / "out", options=chosen)
    assert made == [f"{case.name}.dcm"]
    (tmp_path / "out" / case.name / f"{case.name}.dcm").unlink()
    segment([case], tmp_path / "out", options=chosen)
    assert made == [f"{case.name}.dcm"] * 2


@pytest.mark.slow
def test_a_dicom_object_that_fails_stops_no_other_case(patients, options, tmp_path, monkeypatch):
    """Of cases of this call, or of an earlier one."""
    first, second = sorted(path.name for path in patients.iterdir())
    out, tries = tmp_path / "out", []

    def save(label_map, image, et_label, path, weights):
        tries.append(path.name)
        if path.name == f"{first}.dcm":
            raise InputError("no object can be made.")
        path.write_text("object")

    monkeypatch.setattr(segmentation, "check_source", lambda file: None)
    monkeypatch.setattr(patient_results, "save_dicom_seg", save)
    for _ in range(2):
        with pytest.raises(InputError) as caught:
            segment([patients], out, options=replace(options, dicom_seg=True))
        told = f"1 of 2 cases failed, and the others are done: {first} (no object can be made.)"
        assert str(caught.value) == told
        assert (out / first / f"{first}.json").is_file() and (out / second / f"{second}.dcm").is_file()
        assert list(read_run_json(out)["failed"]) == [first]
    assert tries == [f"{first}.dcm", f"{second}.dcm", f"{first}.dcm"]
