# Copyright (c) the brats_mri_panet_segmentation authors
# SPDX-License-Identifier: Apache-2.0
"""The runs of a study: their records, their commands and the time that is left."""

import time
from pathlib import Path

import pytest
from scripts.lab.studies import __main__ as studies
from scripts.lab.studies.execution import Job, seconds_left
from scripts.lab.studies.plan import Part, Run, Variant
from scripts.utils.errors import InputError
from scripts.utils.literals import shown
from scripts.utils.locks import locked
from tiny import make_cases

PART = Part("", [{"case": "a"}, {"case": "b"}], [{"case": "c"}], [{"case": "d"}])


def job(folder: Path, name: str = "unet", seed: int = 0, **settings) -> Job:
    variant = Variant(name, name, ("train_sgd.yaml",), settings, (seed,))
    return Job(Run(variant, seed, PART, ("train_sgd.yaml",), {"max_epochs": 2, **settings}), folder, Path("/data"))


def finish(one: Job, training: float, evaluation: float) -> Job:
    for step, seconds in (("training", training), ("evaluation", evaluation)):
        one.begin(step)
        one.record[step][-1][0] -= seconds
        one.end(step, succeeded=True)
    return one


def options(arguments: list[str]) -> dict[str, str]:
    return {option: shown(text) for option, text in zip(arguments[2::2], arguments[3::2], strict=True)}


def test_the_commands_of_a_run(tmp_path):
    one = job(tmp_path, learning_rate=0.2)
    assert one.next_step() == "training"
    said = options(one.arguments("training"))
    assert "train.json" in said["--config_file"] and "train_sgd.yaml" in said["--config_file"]
    assert "--resume" not in said
    assert (said["--learning_rate"], said["--seed"], said["--publish"]) == ("0.2", "0", "False")
    assert said["--datalist_file"] == str(tmp_path / "lists" / "training.json")
    # What lies in the folder of the training is gone on with.
    one.folder.mkdir(parents=True)
    (one.folder / "trainer_state.pt").touch()
    assert "--resume" not in options(one.arguments("evaluation"))
    assert options(one.arguments("training"))["--resume"] == "True"
    said = options(one.arguments("evaluation"))
    assert "evaluate.json" in said["--config_file"]
    assert said["--model_file"] == str(tmp_path / "runs" / "unet_seed0" / "model_last.pt")
    assert said["--datalist_file"] == str(tmp_path / "lists" / "unseen.json")


def test_a_run_with_another_plan_than_before_is_refused(tmp_path):
    job(tmp_path, learning_rate=0.2).begin("training")
    job(tmp_path, learning_rate=0.2)
    with pytest.raises(InputError, match=r"unet_seed0: this run was made with other settings than the study's file"):
        job(tmp_path, learning_rate=0.3)


def test_a_run_starts_from_weights_that_exist(tmp_path):
    run = job(tmp_path).run
    with pytest.raises(InputError, match="no such file; run the study that unet_seed0 starts from to its end first"):
        Job(run, tmp_path, Path("/data"), tmp_path / "model_last.pt")
    (tmp_path / "model_last.pt").write_bytes(b"weights")
    started = Job(run, tmp_path, Path("/data"), tmp_path / "model_last.pt")
    assert options(started.arguments("training"))["--pretrained_file"] == str(tmp_path / "model_last.pt")
    started.begin("training")
    (tmp_path / "model_last.pt").write_bytes(b"others")
    with pytest.raises(InputError, match="made with other start"):
        Job(run, tmp_path, Path("/data"), tmp_path / "model_last.pt")


def test_seconds_of_a_killed_training_count_up_to_its_last_epoch(tmp_path):
    one = job(tmp_path)
    one.begin("training")
    one.record["training"][0][0] -= 100
    one.folder.mkdir()
    (one.folder / "trainer_state.pt").touch()
    one._save()
    # The process was killed here. Another one reads the record.
    again = job(tmp_path)
    again.begin("training")
    assert again.record["training"][1][1] is None
    again.record["training"][1][0] -= 50
    again.end("training", succeeded=True)
    assert again.seconds("training") == pytest.approx(150, abs=5)
    assert job(tmp_path).next_step() == "evaluation"


def test_the_time_left_follows_from_the_finished_runs(tmp_path):
    done = finish(job(tmp_path), training=80, evaluation=20)
    same, other, failed = job(tmp_path, seed=1), job(tmp_path, name="panet"), job(tmp_path, name="lost")
    assert seconds_left([done, same], [], [], at_once=1) == pytest.approx(100, abs=2)
    # Another variant has the mean of all. Two processes at a time take half as long.
    assert seconds_left([done, same, other], [], [], at_once=2) == pytest.approx(100, abs=2)
    assert seconds_left([done, same, failed], [], [failed], at_once=1) == pytest.approx(100, abs=2)
    same.begin("training")
    same.record["training"][0][0] = time.time() - 70
    assert seconds_left([done, same], [same], [], at_once=1) == pytest.approx(30, abs=2)


def test_a_second_study_in_the_same_folder_is_refused(tmp_path):
    plan, out = tmp_path / "plan.yaml", tmp_path / "out"
    plan.write_text(
        "cohort: {training: 1, validation: 1}\nsettings: {max_epochs: 1}\nvariants: [{name: a, title: A, seeds: [0]}]\n"
    )
    data = make_cases(tmp_path / "data", 3)
    with locked(out / ".lock"), pytest.raises(InputError, match=rf"^{out}: a study is running here; wait for its end"):
        studies.main([str(plan), "--dataset-dir", str(data), "--output-dir", str(out)])
    assert not (out / ".lock").exists()
