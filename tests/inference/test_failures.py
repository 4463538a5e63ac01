# Copyright (c) the brats_mri_panet_segmentation authors
# SPDX-License-Identifier: Apache-2.0
"""A case that fails in the middle of a run is named, the others are done, and a second run does what is missing."""

import logging
import os
import shutil
import threading
import weakref
from hashlib import sha256
from pathlib import Path
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pytest
import torch
from scripts.inference.failures import CaseFailures
from scripts.inference.inferers import BrainWindowInferer
from scripts.inference.writers import SaveImageByCased
from scripts.networks import PriorAttentionNet
from scripts.utils.errors import InputError, WriteError, input_error_behind
from scripts.workflow.output import earlier_cases
from tiny import record
from workflows import CHANNELS, SIZE, TRAINING_SIZE, bundle_run, rows, voxels

WINDOWS = {**SIZE, "thresholds#min_et_mm3": 0, "thresholds#min_component_mm3": 0}
CASES = [f"BraTS20_Training_{number:03d}" for number in range(1, 7)]
FAILING = CASES[2]


@pytest.fixture
def cases(small_cohort, tmp_path):
    return shutil.copytree(small_cohort, tmp_path / "cases")


@pytest.fixture
def run(cases, model_file, tmp_path):
    """Segment the cases; a wrong case's line is the result, None if all went well."""

    def segment(*overlays, **changes):
        place = {"dataset_dir": str(cases), "model_file": model_file, "output_dir": str(tmp_path / "maps")}
        try:
            bundle_run("inference.json", *overlays, **{**WINDOWS, **place, **changes})
        except (RuntimeError, ValueError) as error:
            if (found := input_error_behind(error)) is None:
                raise
            return str(found)
        return None

    return segment


def checksums(folder):
    return {path.name: sha256(path.read_bytes()).hexdigest() for path in folder.glob("*.nii.gz")}


@pytest.fixture(scope="module")
def whole(small_cohort, model_file, tmp_path_factory):
    """The checksums of the maps of a run without failures."""
    folder = tmp_path_factory.mktemp("whole")
    place = {"dataset_dir": str(small_cohort), "model_file": model_file, "output_dir": str(folder)}
    bundle_run("inference.json", **WINDOWS, **place)
    return checksums(folder)


def mirrored(file: Path) -> None:
    """Exchange the front and the back of an image, and leave the times of its file."""
    times, image = file.stat(), nib.load(file)
    other = nib.Nifti1Image(np.asanyarray(image.dataobj)[:, ::-1], image.affine)
    other.header["descrip"] = image.header["descrip"]
    nib.save(other, file)
    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))


def fail_in_the_network(monkeypatch, error):
    """The third case is too much for the network."""
    forward, seen = BrainWindowInferer.__call__, []

    def call(self, inputs, *args, **kwargs):
        seen.append(1)
        if len(seen) == 3:
            raise error
        return forward(self, inputs, *args, **kwargs)

    monkeypatch.setattr(BrainWindowInferer, "__call__", call)


def fail_at_saving(monkeypatch, error):
    save = SaveImageByCased.__call__

    def call(self, data):
        if data["case"] == FAILING:
            raise error
        return save(self, data)

    monkeypatch.setattr(SaveImageByCased, "__call__", call)


def fail_at_loading(monkeypatch, cases):
    """A file that is damaged between the check of the data and the moment when it is read."""
    from scripts.workflow import preparation

    check = preparation.check_cases

    def checked(*args, **kwargs):
        found = check(*args, **kwargs)
        file = cases / FAILING / f"{FAILING}_t1.nii.gz"
        file.write_bytes(file.read_bytes()[:1000])
        return found

    monkeypatch.setattr(preparation, "check_cases", checked)


REASONS = {
    "network": "out of memory; set --sw_batch_size 1, or leave out whole_brain.yaml (panet: --fast) "
    "(OutOfMemoryError: CUDA out of memory. Tried to allocate 2 GiB)",
    "saving": "KeyError: 'affine'",
    "loading": f"{FAILING}_t1.nii.gz: damaged (",
}


def break_it(place, monkeypatch, cases):
    if place == "network":
        fail_in_the_network(monkeypatch, torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate 2 GiB"))
    elif place == "saving":
        fail_at_saving(monkeypatch, KeyError("affine"))
    else:
        fail_at_loading(monkeypatch, cases)


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("overlays", [(), ("inference_pipelined.yaml",)])
@pytest.mark.parametrize("place", REASONS)
def test_the_others_are_done_and_the_end_names_the_case(
    place, overlays, workers, whole, cases, run, tmp_path, monkeypatch, caplog
):
    assert sorted(whole) == [f"{case}.nii.gz" for case in CASES]

    damaged = cases / FAILING / f"{FAILING}_t1.nii.gz"
    content = damaged.read_bytes()
    with monkeypatch.context() as patch:
        break_it(place, patch, cases)
        line = run(*overlays, num_workers=workers)
    assert line.startswith(f"1 of 6 cases failed, and the others are done: {FAILING} (")
    assert REASONS[place] in line and "\n" not in line
    assert f"{FAILING} failed: " in caplog.text
    expected = {name: value for name, value in whole.items() if FAILING not in name}
    assert checksums(tmp_path / "maps") == expected
    assert list(record(tmp_path / "maps")["failed"]) == [FAILING]
    assert REASONS[place] in record(tmp_path / "maps")["failed"][FAILING]
    assert not [path for path in (tmp_path / "maps").iterdir() if path.name.startswith(".")]

    # A second run does what is missing, and says so.
    damaged.write_bytes(content)
    before = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "maps").glob("*.nii.gz")}
    caplog.clear()
    with caplog.at_level(logging.INFO):
        assert run(*overlays, num_workers=workers) is None
    assert f"{tmp_path / 'maps'}: 5 of 6 cases were done before; 1 to do." in caplog.text
    assert checksums(tmp_path / "maps") == whole
    assert {name: (tmp_path / "maps" / name).stat().st_mtime_ns for name in before} == before
    again = record(tmp_path / "maps")
    assert "failed" not in again and again["cases"] == 6 and len(again["resumed"]) == 1


def test_memory_of_a_case_that_was_too_large_is_free_for_the_next(tmp_path, monkeypatch):
    held, free = [], []

    def too_large(engine, batch):
        maps = torch.zeros(3)
        held.append(weakref.ref(maps))
        engine.state.output = {"pred": maps}
        raise torch.OutOfMemoryError("CUDA out of memory.")

    engine = SimpleNamespace(_iteration=too_large, state=SimpleNamespace(iteration=1, epoch_length=2, output=None))
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: free.append(held[0]() is None))
    assert CaseFailures(tmp_path)(engine, {"case": ["p1"]}) == []
    assert free == [True]


def test_a_run_in_which_every_case_fails_says_why(run, tmp_path, monkeypatch):
    def nothing(self, *args, **kwargs):
        raise InputError("the network is gone.")

    monkeypatch.setattr(BrainWindowInferer, "__call__", nothing)
    assert run().startswith(f"6 of 6 cases failed: {', '.join(CASES)}")
    assert not list((tmp_path / "maps").glob("*.nii.gz"))


def test_a_mistake_in_the_program_is_not_taken_for_a_faulty_case(run, monkeypatch):
    def wrong(self, *args, **kwargs):
        raise AttributeError("no such attribute")

    monkeypatch.setattr(BrainWindowInferer, "__call__", wrong)
    with pytest.raises(RuntimeError) as caught:
        run()
    assert isinstance(caught.value.__cause__, AttributeError)


def test_an_evaluation_scores_the_others(cases, model_file, tmp_path, monkeypatch):
    names = ("train.json", "evaluate.json")
    size = {key: value for key, value in TRAINING_SIZE.items() if key != "max_epochs"}
    place = {"dataset_dir": str(cases), "model_file": model_file, "cases": "all", **size}
    bundle_run(*names, **place, output_dir=str(tmp_path / "whole"))
    break_it("loading", monkeypatch, cases)
    with pytest.raises((RuntimeError, ValueError)) as caught:
        bundle_run(*names, **place, output_dir=str(tmp_path / "part"))
    line = str(input_error_behind(caught.value))
    assert line.startswith(f"1 of 6 cases failed, and the others are done: {FAILING} (") and "damaged" in line
    whole, part = (rows(tmp_path / name / "evaluation_all" / "scores.csv") for name in ("whole", "part"))
    assert part == {case: row for case, row in whole.items() if case != FAILING}
    assert list(record(tmp_path / "part" / "evaluation_all")["failed"]) == [FAILING]
    # The summary is that of the others.
    mean = rows(tmp_path / "part" / "evaluation_all" / "summary.csv")["mean"]
    assert float(mean["dice_WT"]) == pytest.approx(np.mean([float(row["dice_WT"]) for row in part.values()]), abs=1e-4)


# A second run into the folder of the first.


def test_a_second_run_with_nothing_left_says_so_and_changes_nothing(run, tmp_path, caplog):
    assert run() is None
    before = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in (tmp_path / "maps").iterdir()}
    with caplog.at_level(logging.INFO):
        assert run() is None
    assert "6 of 6 cases were done before; 0 to do." in caplog.text
    assert {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in (tmp_path / "maps").iterdir()} == before


def test_a_new_case_is_added(run, cases, tmp_path, caplog):
    away = tmp_path / "away"
    (cases / CASES[5]).rename(away)
    assert run() is None
    assert len(checksums(tmp_path / "maps")) == 5
    away.rename(cases / CASES[5])
    with caplog.at_level(logging.INFO):
        assert run() is None
    assert "5 of 6 cases were done before; 1 to do." in caplog.text
    assert len(checksums(tmp_path / "maps")) == 6


def test_a_case_whose_images_have_changed_is_done_again_and_its_map_is_kept(run, cases, tmp_path, caplog):
    assert run() is None
    label_map = tmp_path / "maps" / f"{CASES[0]}.nii.gz"
    first, made = label_map.read_bytes(), label_map.stat().st_mtime_ns
    for file in (cases / CASES[0]).glob("*.nii.gz"):
        mirrored(file)
    with caplog.at_level(logging.INFO):
        assert run() is None
    assert "5 of 6 cases were done before; 1 to do." in caplog.text
    assert label_map.stat().st_mtime_ns > made
    (kept,) = (tmp_path / "maps").glob(f"{CASES[0]}_2*.nii.gz")
    assert kept.read_bytes() == first
    assert f"as {kept.name}" in caplog.text


def test_the_same_names_in_another_folder_are_the_same_cases_if_their_files_are(run, cases, tmp_path):
    assert run() is None
    other = shutil.copytree(cases, tmp_path / "other")
    changed = CASES[2]
    for file in (other / changed).glob("*.nii.gz"):
        mirrored(file)
    before = checksums(tmp_path / "maps")
    assert run(dataset_dir=str(other)) is None
    # The other's map takes the place of the first one, which is kept under a dated name.
    after = checksums(tmp_path / "maps")
    (kept,) = after.keys() - before.keys()
    assert after[kept] == before[f"{changed}.nii.gz"] != after[f"{changed}.nii.gz"]
    assert {name: value for name, value in after.items() if changed not in name} == {
        name: value for name, value in before.items() if changed not in name
    }
    listed = earlier_cases(str(tmp_path / "maps"), ".")
    assert {case: Path(item["image"][0]).parent for case, item in listed.items()} == {c: other / c for c in CASES}


@pytest.mark.parametrize("kind", ["prob", "unc"])
def test_a_case_that_lacks_a_map_of_a_region_is_done_again(kind, run, tmp_path, caplog):
    options = {"save_probabilities": kind == "prob", "save_uncertainty": kind == "unc"}
    assert run(**options) is None
    whole = checksums(tmp_path / "maps")
    assert len(whole) == 6 * 4
    lost = tmp_path / "maps" / f"{CASES[1]}_{kind}_core.nii.gz"
    lost.unlink()
    caplog.clear()
    with caplog.at_level(logging.INFO):
        assert run(**options) is None
    assert "5 of 6 cases were done before; 1 to do." in caplog.text
    found = checksums(tmp_path / "maps")
    assert {name: found[name] for name in whole} == whole
    # What was left of the case is kept.
    assert len(found) == len(whole) + 3


def test_other_cases_are_added_to_the_folders_list_and_record(run, cases, tmp_path, monkeypatch):
    """The earlier ones need not be there any more, and one that failed stays named."""
    with monkeypatch.context() as patch:
        break_it("saving", patch, cases)
        assert "1 of 6 cases failed" in run()
    first = record(tmp_path / "maps")
    more = tmp_path / "more"
    more.mkdir()
    name = "BraTS20_Training_099"
    (more / name).mkdir()
    for file in (cases / CASES[0]).glob("*.nii.gz"):
        shutil.copy(file, more / name / file.name.replace(CASES[0], name))
    cases.rename(tmp_path / "away")
    maps = checksums(tmp_path / "maps")
    assert run(dataset_dir=str(more)) is None
    assert sorted(earlier_cases(str(tmp_path / "maps"), ".")) == [*CASES, name]
    found = checksums(tmp_path / "maps")
    assert set(found) - set(maps) == {f"{name}.nii.gz"}
    assert {key: found[key] for key in maps} == maps
    both = record(tmp_path / "maps")
    assert both["cases"] == 7 and both["failed"] == first["failed"]
    assert both["dataset_dir"] == os.path.commonpath([cases, more])
    assert both["resumed"] == [{key: first[key] for key in ("started", "command")}]
    # Back in their place, the first ones are known, and the one that failed is done.
    (tmp_path / "away").rename(cases)
    assert run() is None
    assert "failed" not in record(tmp_path / "maps") and record(tmp_path / "maps")["cases"] == 7
    assert len(checksums(tmp_path / "maps")) == 7


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"overlap": 0.25}, "overlap"),
        ({"saved_et_label": 3}, "saved_et_label"),
        ({"thresholds#min_et_mm3": 7, "save_probabilities": True}, "thresholds, save_probabilities"),
    ],
)
def test_another_run_may_not_go_on_in_the_folder(run, tmp_path, changes, named):
    assert run() is None
    before = checksums(tmp_path / "maps")
    assert run(**changes) == (
        f"{tmp_path / 'maps'}: holds an earlier run with other settings ({named}); choose another --output_dir, or add "
        "--overwrite (the earlier folder is then kept under a dated name)."
    )
    assert checksums(tmp_path / "maps") == before
    assert run(**changes, overwrite=True) is None
    assert len(list(tmp_path.glob("maps_2*"))) == 1


def test_other_weights_may_not_go_on_in_the_folder(run, model_file, tmp_path):
    assert run() is None
    torch.manual_seed(4)
    torch.save(PriorAttentionNet(channels=CHANNELS).state_dict(), tmp_path / "other.pt")
    assert "other settings (weights)" in run(model_file=str(tmp_path / "other.pt"))
    # The same weights elsewhere are the same weights.
    assert run(model_file=str(shutil.copy(model_file, tmp_path / "same.pt"))) is None


def test_a_map_that_the_user_has_laid_there_is_kept(run, tmp_path):
    (tmp_path / "maps").mkdir()
    mine = tmp_path / "maps" / f"{CASES[1]}.nii.gz"
    mine.write_bytes(b"mine")
    assert run() is None
    (kept,) = (tmp_path / "maps").glob(f"{CASES[1]}_2*.nii.gz")
    assert kept.read_bytes() == b"mine"
    assert len(voxels(mine).shape) == 3


def test_a_case_is_finished_while_the_next_is_segmented_and_no_more_than_one_waits(tmp_path):
    failures, going, done = CaseFailures(tmp_path), threading.Event(), []

    def finish(case, read):
        assert going.wait(300)
        done.append((case, read, threading.current_thread() is threading.main_thread()))

    failures.finish = finish
    failures.end("p1", "files", {})
    assert (done, failures.unfinished()) == ([], 1)
    going.set()
    failures.end("p2", None, {})  # p1 is finished before p2 is handed over
    assert done[0] == ("p1", "files", False)
    failures.wait()
    assert ([case for case, *_ in done], failures.unfinished()) == (["p1", "p2"], 0)


@pytest.mark.parametrize(
    ("overlays", "edge", "told"), [([], 3, True), (["inference_pipelined.yaml"], 3, True), ([], 2, False)]
)
def test_removed_tumors_are_told_from_one_milliliter_on(overlays, edge, told, run, tmp_path, monkeypatch, caplog):
    """The second tumor is a cube of 3 voxels of 4 mm: 1.728 ml; or of 2: 0.512 ml. Its probability is 0.73."""

    def two_tumors(self, inputs, network, *args, **kwargs):
        logits = torch.full((1, 4, *inputs.shape[2:]), -9.0)
        logits[..., 2:8, 2:8, 2:8] = 3
        logits[..., 12 : 12 + edge, 12 : 12 + edge, 12 : 12 + edge] = 1
        return logits

    monkeypatch.setattr(BrainWindowInferer, "__call__", two_tumors)
    assert run(*overlays, num_workers=len(overlays), **{"thresholds#min_tumor_probability": 0.74}) is None
    for case in CASES:
        assert np.count_nonzero(voxels(tmp_path / "maps" / f"{case}.nii.gz")) == 6**3
        warnings = [warning["text"] for warning in record(tmp_path / "maps")["warnings"][case]]
        found = [text for text in warnings if text.startswith(f"{case}: 1.7 ml of tumor beside the largest one were ")]
        assert len(found) == told and all(text in caplog.text for text in found)


def test_an_error_in_finishing_fails_the_case_and_a_full_disk_ends_the_run(tmp_path):
    failures = CaseFailures(tmp_path)

    def finish(case, read):
        raise WriteError("x: full.") if case == "p2" else InputError("no picture.")

    failures.finish = finish
    failures.end("p1", None, {})
    failures.wait()
    assert failures.reasons == {"p1": "no picture."}
    failures.end("p2", None, {})
    with pytest.raises(WriteError):
        failures.end("p3", None, {})
    with pytest.raises(WriteError):
        failures.wait()
