# Copyright (c) the brats_mri_panet_segmentation authors
# SPDX-License-Identifier: Apache-2.0
"""An inference reads the files of each case once, and a faulty case is refused when its turn comes."""

import json
from collections import Counter
from hashlib import sha256
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from monai.transforms import Compose, NormalizeIntensityd
from nibabel.arrayproxy import ArrayProxy
from scripts.data.postprocessing import THRESHOLDS
from scripts.patients import segmentation
from scripts.patients.options import Options
from scripts.patients.segmentation import segment
from scripts.utils.errors import InputError, input_error_behind
from scripts.utils.files import file_checksum
from scripts.weights import record as weights_record
from scripts.weights.record import save_weights, trained_on
from scripts.weights.settings import weights_settings
from tiny import ARGUMENTS, make_cases, record, small_network
from workflows import bundle_run

NAMES = [f"BraTS20_Training_{number:03}" for number in (1, 2, 3)]


@pytest.fixture(autouse=True)
def without_openvino(monkeypatch):
    """A process that has run OpenVINO may crash when it forks, and other tests of this process fork."""
    monkeypatch.setattr(segmentation, "openvino_is_installed", lambda: False)


@pytest.fixture
def data(tmp_path) -> Path:
    return make_cases(tmp_path / "data", 3, label=False)


@pytest.fixture
def model(tmp_path) -> Path:
    path, network = tmp_path / "weights" / "model.pt", small_network()
    preprocessing = Compose([NormalizeIntensityd("image", nonzero=True, channel_wise=True)])
    of_run = weights_settings(network, ARGUMENTS, [1, 1, 1], False, preprocessing, THRESHOLDS)
    save_weights(
        network.state_dict(), path, of_run | {"trained_on": trained_on(0, 3), "training": {"window": [32] * 3}}
    )
    return path


@pytest.fixture
def run(data, model, tmp_path):
    """Segment the cases by inference.json or by the command; the result is the line of the error, or None."""

    def by_configuration(**changes):
        window = {"network_def#channels": [4, 4, 4, 4, 8], "roi_size": [32, 32, 32], "device": "cpu"}
        place = {"dataset_dir": str(data), "model_file": str(model), "output_dir": str(tmp_path / "out")}
        bundle_run("inference.json", **{**window, **place, **changes})

    def by_command(**options):
        segment([data], tmp_path / "out", options=Options(model, device="cpu", **{"pictures": False, **options}))

    def called(way, **changes):
        try:
            {"configuration": by_configuration, "command": by_command}[way](**changes)
        except (RuntimeError, ValueError) as error:
            if (found := input_error_behind(error)) is None:
                raise
            return str(found)
        return None

    return called


@pytest.fixture
def readings(monkeypatch) -> Counter:
    """How often each file was read as a whole, or voxels were taken from it, and weights were hashed."""
    counts: Counter = Counter()
    read, array, checksum = Path.read_bytes, ArrayProxy.__array__, file_checksum

    def counted_read(self):
        counts[self.name] += 1
        return read(self)

    def counted_array(self, dtype=None):
        if isinstance(self.file_like, (str, Path)):
            counts[Path(self.file_like).name] += 1
        return array(self, dtype)

    def counted_checksum(path, *args, **kwargs):
        counts[Path(path).name] += 1
        return checksum(path, *args, **kwargs)

    monkeypatch.setattr(Path, "read_bytes", counted_read)
    monkeypatch.setattr(ArrayProxy, "__array__", counted_array)
    monkeypatch.setattr(weights_record, "file_checksum", counted_checksum)
    return counts


def fill(data: Path, case: str, value: float, sequence: str = "t1") -> None:
    """Make an image constant, which its header does not tell."""
    file = data / case / f"{case}_{sequence}.nii.gz"
    image = nib.load(file)
    nib.save(nib.Nifti1Image(np.full(image.shape, value, np.int16), image.affine), file)


WAYS = pytest.mark.parametrize("way", ["configuration", "command"])


@pytest.mark.parametrize("options", [{}, {"pictures": True}])
def test_the_command_reads_each_file_once_and_hashes_the_weights_once(run, readings, data, options, tmp_path):
    assert run("command", **options) is None
    files = {file.name for file in data.rglob("*.nii.gz")}
    assert len(files) == 12 and {name: readings[name] for name in files} == dict.fromkeys(files, 1)
    assert readings["model.pt"] == 1
    # The label map is read back once, for numbers and pictures.
    assert {name: readings[f"{name}.nii.gz"] for name in NAMES} == dict.fromkeys(NAMES, 1)
    for name in NAMES:
        written = json.loads((tmp_path / "out" / name / f"{name}.json").read_text())
        assert [entry["sha256"] for entry in written["inputs"]] == [
            sha256((data / name / f"{name}_{sequence}.nii.gz").read_bytes()).hexdigest()
            for sequence in ("t1", "t2", "t1ce", "flair")
        ]


def test_the_configuration_reads_each_file_once_and_hashes_the_weights_once(run, readings, data):
    assert run("configuration") is None
    files = {file.name for file in data.rglob("*.nii.gz")}
    assert readings == {**dict.fromkeys(files, 1), "model.pt": 1}


@WAYS
@pytest.mark.parametrize("faulty", [0, 1, 2])
def test_a_faulty_case_fails_and_the_others_are_done(run, data, way, faulty, tmp_path):
    case = NAMES[faulty]
    fill(data, case, 7)
    said = run(way)
    assert said == (
        f"1 of 3 cases failed, and the others are done: {case} ({data / case / f'{case}_t1.nii.gz'}: constant, every "
        "voxel that is not 0 is 7; export the sequence again.)"
    )
    made = {path.name for path in (tmp_path / "out").rglob("*.nii.gz")}
    assert made == {f"{name}.nii.gz" for name in NAMES if name != case}
    assert list(record(tmp_path / "out")["failed"]) == [case]
    assert not (tmp_path / "out" / case).exists()


@WAYS
def test_a_single_faulty_case_leaves_nothing(run, data, way, tmp_path):
    for name in NAMES[1:]:
        (data / name).rename(tmp_path / name)
    fill(data, NAMES[0], 0, "flair")
    said = run(way)
    assert said == f"{data / NAMES[0] / NAMES[0]}_flair.nii.gz: empty, every voxel is 0; export the sequence again."
    assert not (tmp_path / "out").exists()


@WAYS
def test_where_all_cases_are_faulty_nothing_is_left(run, data, way, tmp_path, caplog):
    for name in NAMES:
        fill(data, name, 0)
    assert run(way) == f"3 of 3 cases failed: {', '.join(NAMES)}"
    assert all(f"{name}_t1.nii.gz: empty" in caplog.text for name in NAMES)
    assert not (tmp_path / "out").exists()


@WAYS
def test_a_faulty_header_of_the_last_case_is_refused_before_any_voxel_is_read(run, readings, data, way, tmp_path):
    file = data / NAMES[2] / f"{NAMES[2]}_t2.nii.gz"
    nib.save(nib.Nifti1Image(np.ones((4, 4, 5), np.int16), np.eye(4)), file)
    assert f"{file}: its grid differs from that of" in run(way)
    # Of the faulty case alone, to tell all that is wrong with it.
    assert {name.split("_t")[0].split("_f")[0] for name in readings if name.endswith(".nii.gz")} <= {NAMES[2]}
    assert not (tmp_path / "out").exists()


@WAYS
def test_the_same_image_in_two_cases_fails_in_the_second(run, data, way, tmp_path):
    first, second = (data / name / f"{name}_t1.nii.gz" for name in NAMES[1:])
    second.write_bytes(first.read_bytes())
    said = run(way)
    assert said.startswith("1 of 3 cases failed")
    assert f"{second}: the same image as {first} of another case; keep one of the two cases." in said
    assert not list((tmp_path / "out").rglob(f"{NAMES[2]}*"))


def test_doubts_about_voxels_are_told_by_an_inference_and_refused_by_the_command(run, data, caplog, tmp_path):
    file = data / NAMES[1] / f"{NAMES[1]}_t1ce.nii.gz"
    image = nib.load(file)
    voxels = np.asanyarray(image.dataobj).copy()
    voxels[:2] = 0
    nib.save(nib.Nifti1Image(voxels, image.affine), file)
    assert run("configuration") is None
    assert caplog.text.count(f"{file}: 50% of its brain (the voxels that are not 0) differs") == 1
    said = run("command", overwrite=True)
    assert said.startswith(f"1 of 3 cases failed, and the others are done: {NAMES[1]} ({file}: 50% of its brain")
    assert '--prepare prepares scans (docs/get_started.md); --accept "different brains" segments' in said
    assert not list((tmp_path / "out").rglob(f"{NAMES[1]}*"))


def test_a_case_whose_picture_fails_is_named_and_the_others_are_done(run, monkeypatch, tmp_path):
    from scripts.patients import results

    def draw(patient, note):
        if patient.name == NAMES[0]:
            raise InputError("no picture can be drawn.")
        return "picture"

    monkeypatch.setattr(results, "preview", draw)
    monkeypatch.setattr(results, "surface_view", draw)
    monkeypatch.setattr(results, "save_figure", lambda figure, path: path.write_text(figure))
    said = run("command", pictures=True, surface=True)
    assert said == f"1 of 3 cases failed, and the others are done: {NAMES[0]} (no picture can be drawn.)"
    assert {path.name for path in (tmp_path / "out").rglob("*.png")} == {
        f"{name}{end}.png" for name in NAMES[1:] for end in ("", "_3d")
    }


def test_doubts_are_kept_with_the_results(run, data, tmp_path):
    file = data / NAMES[1] / f"{NAMES[1]}_t1ce.nii.gz"
    image = nib.load(file)
    voxels = np.asanyarray(image.dataobj).copy()
    voxels[:2] = 0
    nib.save(nib.Nifti1Image(voxels, image.affine), file)
    told = [{"kind": "different brains", "text": f"{file}: 50% of its brain (the voxels that are not 0) differs from "}]
    told[0]["text"] += "the other sequences'; use one brain mask for all."
    assert run("configuration") is None
    assert record(tmp_path / "out")["warnings"] == {NAMES[1]: told}
    assert run("command", overwrite=True, accept=("different brains",)) is None
    of_run = record(tmp_path / "out")
    assert (of_run["warnings"], of_run["accepted"]) == ({NAMES[1]: told}, ["different brains"])
    found = {name: json.loads((tmp_path / "out" / name / f"{name}.json").read_text()) for name in NAMES}
    assert {name: (one["warnings"], one["accepted"]) for name, one in found.items()} == {
        name: (told, ["different brains"]) if name == NAMES[1] else ([], []) for name in NAMES
    }
    # A case without its JSON file is not done, so it is accepted once more. Other cases' warnings are kept.
    (tmp_path / "out" / NAMES[1] / f"{NAMES[1]}.json").unlink()
    assert run("command", accept=("different brains",)) is None
    again = json.loads((tmp_path / "out" / NAMES[1] / f"{NAMES[1]}.json").read_text())
    assert again["warnings"] == told and record(tmp_path / "out")["warnings"] == {NAMES[1]: told}


def test_an_unknown_doubt_cannot_be_accepted(run):
    assert run("command", accept=("empty file",)).startswith("--accept empty file: no such doubt; choose one of contra")


def test_a_folder_in_place_of_a_sequence_is_no_missing_one(run, data):
    file = data / NAMES[1] / f"{NAMES[1]}_t2.nii.gz"
    content = file.read_bytes()
    file.unlink()
    file.mkdir()
    (file / f"{NAMES[1]}_t2.nii.gz").write_bytes(content)
    for way in ("command", "configuration"):
        assert run(way).startswith(f"{file}: a folder, where a file belongs")
