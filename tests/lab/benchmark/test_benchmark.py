# Copyright (c) the brats_mri_panet_segmentation authors
# SPDX-License-Identifier: Apache-2.0
"""The benchmarks run, calculate correctly and say what they compared; no test here checks how fast anything is."""

import json
import re
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from scripts.brats import SEQUENCES
from scripts.data.datalist import labeled_items, unlabeled_items
from scripts.lab.benchmark import __main__ as benchmark
from scripts.lab.benchmark import preparation
from scripts.lab.benchmark.cohort import AUTHORS, OURS, subset
from scripts.lab.benchmark.measure import Report, machine, summary, time_side_by_side
from scripts.lab.benchmark.pipeline import dataset
from scripts.lab.benchmark.plot import draw_cohorts
from scripts.lab.benchmark.training import deformed, step_flops
from scripts.networks import PriorAttentionNet
from scripts.training.augmentation import RandFastElasticd
from scripts.utils.files import save_json
from scripts.utils.machine import computes_in
from workflows import CHANNELS, command


def test_candidates_take_turns_and_the_first_do_not_count():
    called = []
    candidates = {name: lambda name=name: called.append(name) for name in "ab"}
    seconds = time_side_by_side(candidates, runs=3, warmup=2)
    assert called == ["a", "b"] * 5
    assert {name: len(values) for name, values in seconds.items()} == {"a": 3, "b": 3}


def test_rows_are_on_the_disk_before_the_end(tmp_path):
    output = tmp_path / "rows.json"
    report = Report("A title", output)
    seen = []

    def save(so_far):
        report.save(summary(so_far, "a"))
        seen.append([row["runs"] for row in json.loads(output.read_text())["rows"]])

    time_side_by_side({name: lambda: None for name in "ab"}, runs=2, warmup=1, save=save)
    assert seen == [[1, 1], [2, 2]]


@pytest.mark.parametrize("overlays", [(), ("train_cached.yaml",)])
def test_what_is_deformed_is_known_without_a_sample(overlays, tmp_path):
    lists = [{"case": f"p{number}", "image": "x", "label": "x"} for number in range(20)]
    settings = {"cache_dir": str(tmp_path)} if overlays else {}
    transform = dataset(["train.json", *overlays], lists, **settings).transform
    image = {"image": torch.rand(4, 8, 8, 8), "label": torch.zeros(1, 8, 8, 8)}
    (position,) = (n for n, step in enumerate(transform.transforms) if isinstance(step, RandFastElasticd))
    found, wanted = [], []
    for epoch in (1, 2):
        transform.epoch = epoch
        for item in lists:
            transform({**image, "case": item["case"]}, start=position, end=position + 1)
            wanted.append(transform.transforms[position]._do_transform)
            found.append(deformed(transform, item, epoch))
    assert found == wanted and 10 < sum(found) < 30


def test_summary_has_medians_ranges_and_ratios_to_the_baseline():
    slow, fast = summary({"slow": [4.0, 2.0, 9.0], "fast": [0.5, 1.0, 0.25]}, "slow")
    assert slow == {"name": "slow", "median_s": 4.0, "min_s": 2.0, "max_s": 9.0, "runs": 3, "times_faster": 1.0}
    assert (fast["median_s"], fast["times_faster"]) == (0.5, 8.0)


def test_the_machine_is_described():
    described = machine()
    assert described["cores"] >= 1 and described["memory_gib"] > 0 and described["processor"]
    assert described["torch_threads"] == torch.get_num_threads()


def test_a_case_is_measured_and_its_maps_compared(small_cohort, tmp_path):
    torch.manual_seed(0)
    torch.save(PriorAttentionNet(channels=CHANNELS).state_dict(), tmp_path / "model.pt")
    output = tmp_path / "case.json"
    size = ["--channels", *map(str, CHANNELS), "--spacing", "4", "--window", "32", "--runs", "1"]
    place = ["--dataset_dir", str(small_cohort), "--model_file", str(tmp_path / "model.pt"), "--output", str(output)]
    done = command("scripts.lab.benchmark", "case", *place, *size, "--agreement", cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    content = json.loads(output.read_text())
    names = [row["name"] for row in content["rows"]]
    assert names[0] == "the authors' path" and len(names) == 6
    assert content["facts"]["the authors' path"].startswith("50 windows of one")
    dice = [float(v) for key, v in content["facts"].items() if "f32" in key for v in re.findall(r"[01]\.\d+", v)]
    assert len([key for key in content["facts"] if key.startswith("Dice")]) == 4
    assert len(dice) == 6 and min(dice) > 0.999
    assert content["versions"]["torch"] == torch.__version__
    assert "whole brain, OpenVINO" in done.stdout


def test_without_a_case_one_line_says_so(tmp_path):
    with pytest.raises(ValueError, match="no case found; give the folder of one case"):
        benchmark.main(["case", "--dataset_dir", str(tmp_path), "--channels", *map(str, CHANNELS)])


def test_post_processing_in_the_box_gives_the_scores_of_the_whole_grid(small_cohort, tmp_path):
    output = tmp_path / "postprocessing.json"
    assert (
        benchmark.main(["postprocessing", "--dataset_dir", str(small_cohort), "--runs", "1", "--output", str(output)])
        == 0
    )
    content = json.loads(output.read_text())
    whole, box = content["facts"].values()
    assert whole == box and len(whole.split(", ")) == 6
    assert [row["name"] for row in content["rows"]] == ["whole grid", "lesion's box"]


def test_every_metric_of_an_evaluation_is_timed_on_every_case(small_cohort, tmp_path):
    output = tmp_path / "scores.json"
    assert benchmark.main(["scores", "--dataset_dir", str(small_cohort), "--specks", "3", "--output", str(output)]) == 0
    rows = json.loads(output.read_text())["rows"]
    assert [row["name"] for row in rows][-1] == "lesion-wise Dice and HD95" and len(rows) == 6
    assert {row["cases"] for row in rows} == {len(labeled_items(small_cohort))}
    with pytest.raises(ValueError, match="no labeled case found; give a folder of labeled cases"):
        benchmark.main(["scores", "--dataset_dir", str(tmp_path)])


@pytest.mark.parametrize("seconds", [{"brain": 6.0, "pose": 1.5}, {}])
def test_the_steps_of_a_preparation_are_those_of_its_record(tmp_path, monkeypatch, seconds):
    case, asked = tmp_path / "ann", []
    case.mkdir()
    for name in SEQUENCES:
        nib.save(nib.Nifti1Image(np.ones((4, 4, 4), np.uint8), np.eye(4)), case / f"ann_{name}.nii.gz")

    def run_process(what, words, folder):
        asked.append(words[3])
        save_json({"seconds": seconds}, Path(words[words.index("-o") + 1], "ann", "prepared", "prepared.json"))
        return {"bf16": 20.0, "f32": 30.0}[words[3]] + len(asked), 1.5

    monkeypatch.setattr(preparation, "run_process", run_process)
    output = tmp_path / "preparation.json"
    arguments = ["preparation", "--dataset_dir", str(case), "--precision", "bf16", "f32", "--runs", "1"]
    if not seconds:
        with pytest.raises(ValueError, match="prepared already, so there is nothing to time"):
            benchmark.main(arguments)
        return
    assert benchmark.main([*arguments, "--output", str(output)]) == 0
    content = json.loads(output.read_text())
    assert asked == ["bf16", "bf16", "f32", "f32"]
    assert [(row["name"], row["precision"], row["median_s"]) for row in content["rows"]] == [
        ("brain", "bfloat16", 6.0),
        ("pose", "bfloat16", 1.5),
        (preparation.REST, "bfloat16", 14.5),
        (preparation.WHOLE, "bfloat16", 22.0),
        ("brain", "float32", 6.0),
        ("pose", "float32", 1.5),
        (preparation.REST, "float32", 26.5),
        (preparation.WHOLE, "float32", 34.0),
    ]
    assert content["facts"]["case"] == "ann" and content["facts"]["memory of the largest process, float32"] == "1.50 GB"


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["network", "--runs", "0"], "0: must be a whole number above 0"),
        (["training", "--size", "-3"], "-3: must be a whole number above 0"),
        (["training", "--device", "gpu"], "gpu: torch has no such device here"),
        (["cohort", "--cases", "1", "none"], "none: must be a whole number above 0"),
    ],
)
def test_impossible_arguments_are_refused_in_one_line(arguments, told, capsys):
    with pytest.raises(SystemExit) as caught:
        benchmark.main(arguments)
    assert caught.value.code == 2
    assert told in capsys.readouterr().err.splitlines()[-1]


def test_a_cohort_smaller_than_asked_for_is_refused(small_cohort, tmp_path):
    with pytest.raises(ValueError, match="holds 6 cases, but 7 are asked for"):
        subset(small_cohort, 7, tmp_path / "part")
    subset(small_cohort, 2, tmp_path / "two")
    assert [item["case"] for item in unlabeled_items(tmp_path / "two")] == [
        item["case"] for item in unlabeled_items(small_cohort)[:2]
    ]


def test_a_step_of_the_full_network_is_three_forwards():
    # A forward at 128^3 takes 1.22 TFLOP (the layers sum up to 610 GMAC). The backward takes as much as two forwards,
    # except for the gradient of the image.
    assert step_flops([32, 64, 128, 256, 320], 128) == pytest.approx(3 * 1.22e12, rel=0.02)


@pytest.mark.slow
def test_training_steps_are_measured(tmp_path):
    output = tmp_path / "training.json"
    size = ["--size", "32", "--channels", *map(str, CHANNELS), "--steps", "1", "--runs", "1", "--samples", "0"]
    for _ in range(2):
        assert benchmark.main(["training", "--device", "cpu", *size, "--no-compile", "--output", str(output)]) == 0
    content = json.loads(output.read_text())
    names = [row["name"] for row in content["rows"]]
    # On a CPU, memory, precision and layout are compared; a GPU has other candidates.
    bfloat16 = ["bfloat16, torch's layout", "bfloat16, channels last"]
    expected = ["float32, glibc's own thresholds", "float32"]
    assert names == expected + (bfloat16 if computes_in("cpu", "bfloat16") else [])
    # The product is the FLOPs over the rate of the matrix product, which is the same for all rows.
    ideal = [row["share_of_matrix_rate"] * row["median_s"] for row in content["rows"]]
    assert ideal == pytest.approx([ideal[0]] * len(ideal)) and ideal[0] > 0
    # The earlier file is kept.
    assert len(list(tmp_path.glob("training*.json"))) == 2


def test_the_picture_is_drawn_and_without_results_one_line_says_so(tmp_path):
    picture = tmp_path / "performance.png"
    assert benchmark.main(["plot", "--output", str(picture)]) == 0
    assert picture.read_bytes().startswith(b"\x89PNG")
    with pytest.raises(ValueError, match="are missing"):
        benchmark.main(["plot", "--results", str(tmp_path), "--output", str(tmp_path / "other.png")])
    assert not (tmp_path / "other.png").exists()


def test_the_picture_of_cohorts_holds_this_bundle_alone():
    rows = [
        {"name": name, "cases": cases, "seconds": cases * each, "peak_gb": 4.0}
        for name, each in ((AUTHORS, 50.0), (OURS, 3.0))
        for cases in (1, 10)
    ]
    axes = Figure().subplots()
    draw_cohorts(axes, rows)
    assert [list(line.get_ydata()) for line in axes.lines] == [[3.0, 3.0], [4.0, 4.0]]
