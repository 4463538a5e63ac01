# Copyright (c) the brats_mri_panet_segmentation authors
# SPDX-License-Identifier: Apache-2.0
"""A result belongs to the files, weights and settings that it was made of, and processes share a folder."""

import json
import os
import shutil
import subprocess
from pathlib import Path

import kills
import nibabel as nib
import pytest
from monai.transforms import Compose, NormalizeIntensityd
from scripts.data.postprocessing import THRESHOLDS
from scripts.inference import writers
from scripts.patients import segmentation
from scripts.patients.options import Options
from scripts.patients.segmentation import segment
from scripts.scores.volume_table import read_table
from scripts.utils.errors import InputError
from scripts.weights.record import save_weights, trained_on
from scripts.weights.settings import weights_settings
from scripts.workflow.output import earlier_cases
from tiny import ARGUMENTS, contents, make_cases, record, small_network

NAMES = [f"BraTS20_Training_{number:03}" for number in range(1, 7)]

# A process writes down which label maps it has written.
NOTED = """
from scripts.inference import writers
from scripts.patients import segmentation
segmentation.openvino_is_installed = lambda: False
save = writers.save_map
def noted(image, path, dtype):
    with open({log!r}, "a") as log:
        log.write(path.name + "\\n")
    save(image, path, dtype)
writers.save_map = noted
"""
# What a case has without pictures.
ENDINGS = (".json", ".nii.gz", "_itksnap.txt", "_slicer.ctbl")


@pytest.fixture
def data(tmp_path) -> Path:
    return make_cases(tmp_path / "data", len(NAMES), label=False)


@pytest.fixture
def model(tmp_path) -> Path:
    path, network = tmp_path / "weights" / "model.pt", small_network()
    preprocessing = Compose([NormalizeIntensityd("image", nonzero=True, channel_wise=True)])
    settings = weights_settings(network, ARGUMENTS, [1, 1, 1], False, preprocessing, THRESHOLDS)
    seen = {"trained_on": trained_on(0, 3), "training": {"window": [32] * 3}}
    save_weights(network.state_dict(), path, settings | seen)
    return path


@pytest.fixture
def options(model, monkeypatch) -> Options:
    # A process that has run OpenVINO may crash when it forks, and other tests of this process fork.
    monkeypatch.setattr(segmentation, "openvino_is_installed", lambda: False)
    return Options(model, device="cpu", pictures=False)


@pytest.fixture
def start(model, tmp_path):
    """Start a process that segments these cases into the folder ``out``."""

    def started(*cases: Path, options=(), kill: int = 0) -> subprocess.Popen:
        arguments = [*cases, "-o", tmp_path / "out", "--model", model, "--device", "cpu", "--no-pictures", *options]
        noted = NOTED.format(log=str(tmp_path / "log"))
        return kills.start("scripts.segment", arguments, tmp_path / "out", kill, noted)

    return started


def exchange(first: Path, second: Path) -> None:
    """Exchange the scans of two cases, which keep their names and times."""
    for path in sorted(first.iterdir()):
        other = second / path.name.replace(first.name, second.name)
        one, two, times = path.read_bytes(), other.read_bytes(), path.stat()
        for file, content in ((path, two), (other, one)):
            file.write_bytes(content)
            os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))


def test_exchanged_scans_are_segmented_again(data, options, tmp_path):
    out = tmp_path / "out"
    before = segment([data], out, options=options)
    exchange(data / NAMES[0], data / NAMES[1])
    after = segment([data], out, options=options)
    assert [one["sha256"] for one in after[0]["inputs"]] == [one["sha256"] for one in before[1]["inputs"]]
    for result, name in zip(after, NAMES, strict=True):
        assert json.loads((out / name / f"{name}.json").read_text()) == result
        dated = [path.name for path in (out / name).iterdir() if path.name.startswith(f"{name}_20")]
        assert len(dated) == 2 * (name in NAMES[:2])
    # A link that leads elsewhere.
    shutil.move(data / NAMES[2], tmp_path / "elsewhere")
    shutil.copytree(data / NAMES[3], tmp_path / "others")
    for path in list((tmp_path / "others").iterdir()):
        path.rename(path.with_name(path.name.replace(NAMES[3], NAMES[2])))
    (data / NAMES[3]).rename(tmp_path / "gone")
    (data / NAMES[2]).symlink_to(tmp_path / "others")
    again = segment([data / NAMES[2]], out, options=options)
    assert [one["sha256"] for one in again[0]["inputs"]] == [one["sha256"] for one in after[3]["inputs"]]


def test_other_weights_are_other_results_even_if_the_run_is_forgotten(data, options, model, tmp_path):
    out = tmp_path / "out"
    (first,) = segment([data / NAMES[0]], out, options=options)
    for name in ("run.json", "config.json"):
        (out / name).unlink()
    network, kept = small_network(), json.loads(model.with_suffix(".json").read_text())
    model.unlink()
    model.with_suffix(".json").unlink()
    weights = {name: value + 0.5 for name, value in network.state_dict().items()}
    free = ("checksum", "bundle_version")
    save_weights(weights, model, {key: value for key, value in kept.items() if key not in free})
    (second,) = segment([data / NAMES[0]], out, options=options)
    assert first["made_by"] != second["made_by"] and first["inputs"] == second["inputs"]
    assert len(list((out / NAMES[0]).glob("*_20*.nii.gz"))) == 1


def test_a_file_of_the_user_is_kept(data, options, tmp_path):
    (tmp_path / "out" / NAMES[0]).mkdir(parents=True)
    (tmp_path / "out" / NAMES[0] / f"{NAMES[0]}.json").write_text('{"mine": 1}')
    segment([data / NAMES[0]], tmp_path / "out", options=options)
    (kept,) = (tmp_path / "out" / NAMES[0]).glob("*_20*.json")
    assert json.loads(kept.read_text()) == {"mine": 1}


@pytest.mark.slow
def test_ten_processes_do_each_case_once(data, start, options, tmp_path):
    cases = [data / name for name in NAMES]
    # Each has three cases, so each case is that of five processes.
    jobs = [start(*(cases[(number + step) % len(cases)] for step in range(3))) for number in range(10)]
    assert [kills.ended(job) for job in jobs] == [(0, "")] * 10
    out = tmp_path / "out"
    assert sorted((tmp_path / "log").read_text().split()) == [f"{name}.nii.gz" for name in NAMES]
    files = ["config.json", "datalist.json", "run.json", "volumes.csv"]
    assert sorted(path.name for path in out.iterdir()) == [*NAMES, *files]
    assert [row["case"] for row in read_table(out)] == NAMES
    assert record(out)["cases"] == len(NAMES) and len(record(out)["resumed"]) == 9
    listed = earlier_cases(str(out), "nowhere")
    assert {case: Path(item["image"][0]).parent for case, item in listed.items()} == dict(
        zip(NAMES, cases, strict=True)
    )
    whole = segment([data], tmp_path / "whole", options=options)
    assert [path.name for path in sorted(out.glob("*/*"))] == [f"{name}{end}" for name in NAMES for end in ENDINGS]
    for result in whole:
        file = f"{result['case']}/{result['case']}.nii.gz"
        assert (out / file).read_bytes() == (tmp_path / "whole" / file).read_bytes()


@pytest.mark.slow
def test_while_one_process_works_others_may_add_cases_but_not_other_settings(
    data, start, options, tmp_path, monkeypatch
):
    save, said = writers.save_map, {}
    other = shutil.copytree(data / NAMES[1], tmp_path / "other" / NAMES[0])
    for path in list(other.iterdir()):
        path.rename(path.with_name(path.name.replace(NAMES[1], NAMES[0])))

    def save_while_others_come(*args):
        if not said:
            said["other settings"] = kills.ended(start(data / NAMES[1], options=["--et-label", "3"]))
            said["other images"] = kills.ended(start(other))
            said["overwrite"] = kills.ended(start(data / NAMES[1], options=["--overwrite"]))
            said["another case"] = kills.ended(start(data / NAMES[1]))
            said["the same case"] = start(data / NAMES[0], data / NAMES[2])
        save(*args)

    monkeypatch.setattr(writers, "save_map", save_while_others_come)
    out = tmp_path / "out"
    segment([data / NAMES[0]], out, options=options)
    status, line = said["other settings"]
    assert status == 1 and "holds an earlier run with other settings (saved_et_label); choose" in line
    status, line = said["other images"]
    assert status == 1 and f"holds a case {NAMES[0]} of other images" in line
    status, line = said["overwrite"]
    assert status == 1 and f"{out}: another process works here; wait for its end" in line
    assert said["another case"] == (0, "")
    # It has waited.
    assert kills.ended(said["the same case"]) == (0, "")
    assert sorted((tmp_path / "log").read_text().split()) == [f"{name}.nii.gz" for name in NAMES[1:3]]
    assert sorted(path.name for path in out.glob("*/*.json")) == [f"{name}.json" for name in NAMES[:3]]
    assert record(out)["cases"] == 3 and not (out / ".locks").exists()
    assert not list(tmp_path.glob("out_*"))


def test_results_that_another_process_has_written_meanwhile_are_not_replaced(data, options, tmp_path, monkeypatch):
    out, case = tmp_path / "out", NAMES[0]
    made = tmp_path / "made" / case
    segment([data / NAMES[1]], tmp_path / "made", options=options)
    shutil.move(tmp_path / "made" / NAMES[1], made)
    for path in list(made.iterdir()):
        path.rename(path.with_name(path.name.replace(NAMES[1], case)))
    load = nib.nifti1.Nifti1Image.from_bytes

    def slow(content):
        if not (out / case).exists():
            shutil.copytree(made, out / case)
        return load(content)

    segment([data / NAMES[2]], out, options=options)
    monkeypatch.setattr(nib.nifti1.Nifti1Image, "from_bytes", slow)
    with pytest.raises(
        InputError, match=rf"{case}\.nii\.gz: another process has written it meanwhile, of other images"
    ):
        segment([data / case], out, options=options)
    assert contents(out / case).keys() == {out / case / f"{case}{end}" for end in ENDINGS}


@pytest.mark.slow
@pytest.mark.parametrize("moments", [3, pytest.param(20, marks=pytest.mark.lab)])
def test_a_process_may_be_killed_at_any_moment(data, start, tmp_path, moments):
    out = tmp_path / "out"

    def found() -> dict[str, object]:
        free = ("seconds_of_the_run", "started", "command", "resumed", "date")
        table = [{**row, "date": ""} for row in read_table(out)]
        return (
            {"volumes": table}
            | {
                str(path): {key: value for key, value in json.loads(content).items() if key not in free}
                if path.suffix == ".json"
                else content
                for path, content in contents(out).items()
                if path.suffix != ".csv"
            }
            | {str(path): "folder" for path in out.rglob(".*")}
        )

    kills.check_kills(
        lambda kill: start(data / NAMES[0], data / NAMES[1], kill=kill), found, lambda: shutil.rmtree(out), moments
    )
