# Copyright (c) the brats_mri_panet_segmentation authors
# SPDX-License-Identifier: Apache-2.0
"""The benchmarks' arithmetic, and that they run and say what they compared; never how fast anything is."""

from __future__ import annotations

import json
import re

import pytest
import torch
from scripts.benchmark import __main__ as benchmark
from scripts.benchmark.measure import machine, summary, time_side_by_side
from scripts.networks import PriorAttentionNet
from workflows import CHANNELS, command


def test_candidates_take_turns_and_the_first_do_not_count():
    called = []
    candidates = {name: lambda name=name: called.append(name) for name in "ab"}
    seconds = time_side_by_side(candidates, runs=3, warmup=2)
    assert called == ["a", "b"] * 5
    assert {name: len(values) for name, values in seconds.items()} == {"a": 3, "b": 3}


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
    done = command("scripts.benchmark", "case", *place, *size, "--agreement", cwd=tmp_path)
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
    with pytest.raises(ValueError, match="no case found; give the folder of one"):
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
