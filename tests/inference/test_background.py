# Copyright (c) the brats_mri_panet_segmentation authors
# SPDX-License-Identifier: Apache-2.0
"""Cases that overlap give the same maps, and take no more memory than allowed. A case that fails does not stop them."""

import shutil
import threading
import time
from contextlib import nullcontext
from hashlib import sha256
from types import SimpleNamespace

import pytest
import torch
from ignite.engine import Engine
from scripts.inference.background import BackgroundCompose
from scripts.inference.failures import CaseFailures
from scripts.inference.inferers import BrainWindowInferer
from scripts.utils.errors import InputError, WriteError, input_error_behind
from workflows import SIZE, bundle_run, initialized

WINDOWS = {**SIZE, "roi_size": [32, 32, 32], "num_workers": 1}
WINDOWS |= {"thresholds#min_et_mm3": 0, "thresholds#min_component_mm3": 0}


@pytest.mark.parametrize("overlays", [(), ("whole_brain.yaml",), ("tta.yaml",)])
def test_maps_are_those_of_one_case_after_another(overlays, small_cohort, model_file, tmp_path):
    for case in sorted(small_cohort.iterdir())[::2]:
        (tmp_path / "cases" / case.name).parent.mkdir(exist_ok=True)
        (tmp_path / "cases" / case.name).symlink_to(case)
    place = {"dataset_dir": str(tmp_path / "cases"), "model_file": model_file, **WINDOWS, "overlap": 0.0}
    for name, more in (("plain", ()), ("pipelined", ("inference_pipelined.yaml",))):
        bundle_run("inference.json", *overlays, *more, output_dir=str(tmp_path / name), **place)
    plain, pipelined = (
        {path.name: sha256(path.read_bytes()).hexdigest() for path in (tmp_path / name).glob("*.nii.gz")}
        for name in ("plain", "pipelined")
    )
    assert len(plain) == len(set(plain.values())) == 3
    assert pipelined == plain


def test_a_folder_that_cannot_be_written_stops_the_run_in_one_line(small_cohort, model_file, tmp_path, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("scripts.inference.writers.nib.save", full)
    with pytest.raises(Exception) as caught:
        bundle_run(
            "inference.json",
            "inference_pipelined.yaml",
            dataset_dir=str(small_cohort),
            model_file=model_file,
            output_dir=str(tmp_path / "maps"),
            **WINDOWS,
        )
    chain, error = [], caught.value
    while error is not None:
        chain.append(str(error))
        error = error.__cause__ or error.__context__
    assert any("No space left" in text for text in chain)
    assert not list((tmp_path / "maps").glob("*.nii.gz*"))


@pytest.mark.parametrize(
    ("names", "workers", "overlaps"),
    [(("inference_pipelined.yaml",), 0, False), (("ensemble.yaml", "inference_pipelined.yaml"), 1, True)],
)
def test_with_other_handlers_it_overlaps_and_without_loader_processes_it_does_not(
    names, workers, overlaps, small_cohort, model_file, tmp_path, monkeypatch, caplog
):
    threads = []
    process = BackgroundCompose.process
    monkeypatch.setattr(BackgroundCompose, "process", lambda *a: (threads.append(1), process(*a))[1])
    model: str | list[str] = model_file
    if "ensemble.yaml" in names:
        model = [model_file, shutil.copy(model_file, tmp_path / "another.pt")]
        model = list(map(str, model))
    place = {"dataset_dir": str(small_cohort), "output_dir": str(tmp_path / "maps"), "model_file": model}
    bundle_run("inference.json", *names, **{**WINDOWS, "num_workers": workers}, **place)
    assert len(list((tmp_path / "maps").glob("*.nii.gz"))) == 6
    assert len(threads) == 6 * overlaps
    assert ("--num_workers 0" in caplog.text) == (not overlaps)


def pipeline(step, waiting, cases):
    """Make an engine that passes numbered cases on; ``forwards`` receives the number of each computed case."""
    background = BackgroundCompose([step], CaseFailures("out"), waiting=waiting)
    forwards = []

    def forward(engine, case):
        forwards.append(case["case"])
        background(case)

    engine = Engine(forward)
    engine.data_loader = SimpleNamespace(num_workers=1)
    background.attach(engine)
    engine.background = background
    return engine, [{"case": number} for number in range(cases)], forwards


def test_the_next_case_begins_before_the_one_before_is_saved():
    second = threading.Event()
    saved = []

    def save(case):
        # Saving case 0 waits until case 1 has begun. Without overlap, it would wait forever.
        if case["case"] == 0:
            assert second.wait(timeout=300)
        saved.append(case["case"])

    background = BackgroundCompose([save], CaseFailures("out"), waiting=2)

    def forward(engine, case):
        if case["case"] == 1:
            second.set()
        background(case)

    engine = Engine(forward)
    engine.data_loader = SimpleNamespace(num_workers=1)
    background.attach(engine)
    engine.run([{"case": number} for number in range(3)])
    # All cases are saved in order before the run ends.
    assert saved == [0, 1, 2]


@pytest.mark.parametrize("waiting", [1, 2, 3])
def test_no_more_cases_wait_than_allowed(waiting):
    go_on = threading.Event()
    engine, cases, forwards = pipeline(lambda case: go_on.wait(timeout=300), waiting, 20)
    run = threading.Thread(target=engine.run, args=(cases,))
    run.start()
    while len(forwards) <= waiting and run.is_alive():
        time.sleep(0.01)
    # One case more than allowed has been computed and is held back. No further case begins.
    time.sleep(0.2)
    assert forwards == list(range(waiting + 1))
    go_on.set()
    run.join(timeout=300)
    assert not run.is_alive() and len(forwards) == 20


def test_a_full_disk_stops_the_run_and_what_follows_is_not_begun():
    saved = []

    def save(case):
        if case["case"] == 2:
            raise WriteError("case 2: no")
        saved.append(case["case"])

    engine, cases, forwards = pipeline(save, 1, 50)
    with pytest.raises(Exception) as caught:
        engine.run(cases)
    assert str(input_error_behind(caught.value)) == "case 2: no"
    assert saved == [0, 1] and len(forwards) < 10
    # A later run starts afresh.
    saved.clear()
    again = Engine(lambda engine, case: engine_background(case))
    engine_background, again.data_loader = engine.background, engine.data_loader
    engine_background.attach(again)
    again.run(cases[3:])
    assert saved == list(range(3, 50))


@pytest.mark.parametrize("wrong", [{2}, {4}, {0, 3}])
def test_cases_that_fail_are_noted_and_the_others_are_done(wrong):
    saved = []

    def save(case):
        if case["case"] in wrong:
            raise InputError(f"case {case['case']}: no")
        saved.append(case["case"])

    engine, cases, _ = pipeline(save, 3, 5)
    engine.run(cases)
    assert saved == [number for number in range(5) if number not in wrong]
    assert engine.background.failures.reasons == {str(number): f"case {number}: no" for number in wrong}


def test_an_error_of_the_network_ends_the_thread():
    background = BackgroundCompose([lambda case: case], CaseFailures("out"))

    def forward(engine, case):
        background(case)
        raise RuntimeError("out of memory")

    engine = Engine(forward)
    engine.data_loader = SimpleNamespace(num_workers=1)
    background.attach(engine)
    with pytest.raises(RuntimeError, match="out of memory"):
        engine.run([{"case": 0}])
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("postprocessing")]


def test_a_volume_stitched_in_the_hosts_memory_is_the_same():
    volume = torch.randn(1, 4, 24, 20, 16)
    settings = {"roi_size": (16, 16, 16), "sw_batch_size": 2, "overlap": 0.5, "mode": "gaussian"}
    here, there = (BrainWindowInferer(**settings, **more)(volume, torch.tanh) for more in ({}, {"cpu_thresh": 10}))
    assert torch.equal(here, there) and there.device.type == "cpu"
    made = initialized("inference.json", kind="infer")
    # Four maps in float32 and their weights take 1.3 GB.
    assert made.inferer.inferer.cpu_thresh == 400**3


class OnGPU(torch.Tensor):
    is_cuda = True


@pytest.mark.parametrize("fails", [False, True])
def test_on_a_gpu_the_thread_has_its_own_stream_which_waits_for_the_network(fails, monkeypatch):
    told = []
    own = SimpleNamespace(wait_event=lambda event: told.append(event), synchronize=lambda: told.append("synchronized"))
    network = SimpleNamespace(record_event=lambda: f"event after case {len(forwards)}")
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: network)
    monkeypatch.setattr(torch.cuda, "Stream", lambda: own)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: nullcontext(told.append(stream is own)))
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)

    def save(case):
        told.append(case["case"])
        if fails:
            raise RuntimeError("damaged")

    engine, cases, forwards = pipeline(save, waiting=1, cases=2)
    engine.run([case | {"pred": torch.zeros(1).as_subclass(OnGPU)} for case in cases])
    one, two = ([True, f"event after case {number + 1}", number, "synchronized"] for number in (0, 1))
    assert told == one + two
    assert len(engine.background.failures.reasons) == 2 * fails
