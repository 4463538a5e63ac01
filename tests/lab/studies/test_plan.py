# Copyright (c) the brats_mri_panet_segmentation authors
# SPDX-License-Identifier: Apache-2.0
"""The file of a study: what it gives, and what is refused in one line before anything runs."""

import pytest
import yaml
from scripts.lab.studies.plan import parts_of, read_study, runs_of
from scripts.utils.errors import InputError
from tiny import make_cases
from workflows import ROOT

CONTENT = """\
cohort: {training: 2, validation: 1}
overlays: [train_demo.yaml]
settings: {max_epochs: 3, learning_rate: 0.1}
variants:
  - {name: first, title: First, seeds: [4, 2]}
  - {name: second, title: Second, seeds: [4], overlays: [train_sgd.yaml], settings: {learning_rate: 0.2}}
"""


def written(tmp_path, text: str):
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    return path


def items(count: int) -> list[dict]:
    return [{"case": f"case{number}", "image": f"case{number}", "label": "none"} for number in reversed(range(count))]


def test_the_runs_of_a_study(tmp_path):
    study = read_study(written(tmp_path, CONTENT))
    runs = runs_of(study, parts_of(study, items(5), "data"))
    # The first seed of every variant comes before the second of any.
    assert [run.name for run in runs] == ["first_seed4", "second_seed4", "first_seed2"]
    assert {run.samples for run in runs} == {6}
    assert runs[1].plan == {
        "overlays": ["train_demo.yaml", "train_sgd.yaml"],
        "settings": {"max_epochs": 3, "learning_rate": 0.2},
        "seed": 4,
        "training": ["case0", "case1"],
        "validation": ["case2"],
        "unseen": ["case3", "case4"],
    }


def test_folds_leave_each_patient_unseen_once(tmp_path):
    cohort = make_cases(tmp_path / "data")
    study = read_study(written(tmp_path, CONTENT.replace("{training: 2, validation: 1}", "{folds: 5}")))
    names = sorted(path.name for path in cohort.iterdir())
    found = [
        {"case": name, "image": name, "label": str(cohort / name / f"{name}_seg.nii.gz"), "et_label": 4}
        for name in names
    ]
    runs = [run for run in runs_of(study, parts_of(study, found, cohort)) if run.name.startswith("first_seed2")]
    assert [run.name for run in runs] == [f"first_seed2_fold{number}" for number in range(5)]
    assert sorted(case for run in runs for case in run.plan["unseen"]) == names
    for run in runs:
        assert sorted(run.plan["training"] + run.plan["unseen"]) == names
        assert run.settings["val_interval"] == 0


def test_too_few_cases_are_refused(tmp_path):
    study = read_study(written(tmp_path, CONTENT))
    with pytest.raises(
        InputError, match="3 cases for training and validation leave none of the 3 cases in data unseen"
    ):
        parts_of(study, items(3), "data")


def test_a_patient_on_both_sides_is_refused(tmp_path):
    study = read_study(written(tmp_path, CONTENT))
    names = [f"BraTS-GLI-0000{number}-100" for number in (1, 2, 3)] + ["BraTS-GLI-00003-101", "BraTS-GLI-00004-100"]
    cases = [{"case": name, "image": f"{name}-t1n.nii.gz"} for name in names]
    with pytest.raises(InputError, match="cases of BraTS-GLI-00003 are among the first 3 and among the others"):
        parts_of(study, cases, "data")
    del cases[3]
    assert [item["case"] for item in parts_of(study, cases, "data")[0].unseen] == ["BraTS-GLI-00004-100"]


REFUSED = {
    "max_epochs: 3": ("max_epochs: many", "settings.max_epochs is many; give an integer of 1 or more."),
    "seeds: [4, 2]": ("seeds: [4, two]", "the seeds of first are [4, 'two']; list integers of 0 or more"),
    "seeds: [4, 2": ("seeds: [4, 4", "a seed of first is given twice; list each once."),
    "title: First, seeds": ("titel: First, seeds", "unknown key 'titel' in variant 1; did you mean 'title'?"),
    "title: First, ": ("", "variant 1 lacks the key 'title'; add it."),
    "name: second": ("name: first", "two variants have the name 'first'; rename one."),
    "name: sec": ("name: ../sec", "the name of variant 2 is '../second'; use small letters"),
    "train_sgd": ("train_sgt", "the overlays of second: there is no configs/train_sgt.yaml; correct the name."),
    "{learning_rate: 0.2}": ("{seed: 1}", "the settings of second: the study sets 'seed' itself; leave it out."),
    "learning_rate: 0.2": (
        "max_epochs: 9",
        "second has 'max_epochs' of its own, but all variants see the same samples",
    ),
    "training: 2": ("folds: 2", "cohort has either 'training' and 'validation', or 'folds'; keep one of the two."),
    "validation: 1": (
        "validation: 1, phantoms: {difficulty: easy, cases: 9, seed: 0}",
        "cohort.phantoms.difficulty is one of demo, hard, ",
    ),
    "settings: {max": ("settings: {max: [", "not YAML (while parsing"),
    "cohort: ": ("cohorts: ", "unknown key 'cohorts' in the file; did you mean 'cohort'?"),
}


@pytest.mark.parametrize("old", REFUSED)
def test_a_faulty_file_is_refused(old, tmp_path):
    new, said = REFUSED[old]
    assert old in CONTENT
    path = written(tmp_path, CONTENT.replace(old, new, 1))
    with pytest.raises(InputError) as caught:
        read_study(path)
    assert str(caught.value).startswith(f"{path}: ") and said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_that_is_absent_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"mine\.yaml: cannot be read"):
        read_study(tmp_path / "mine.yaml")


PLANS = ROOT / "scripts" / "lab" / "plans"


@pytest.mark.parametrize("name", ["study.yaml", "study_patients.yaml", "study_brats.yaml"])
def test_the_studies_of_the_bundle(name):
    study = read_study(PLANS / name)
    assert study.variants[0].name == "panet"
    assert {key for variant in study.variants for key in variant.settings} <= {
        "loss#prior_weight",
        "loss#cross_entropy",
        "network_def#prior_attention",
        "network_def#deep_supervision",
        "network_def#head",
        "network_def#head_norm",
    }
    if study.phantoms is not None:
        seen = study.training + study.validation
        runs = runs_of(study, parts_of(study, items(study.phantoms["cases"]), "data"))
        # The file's first lines say how many runs there are, and how many samples each of them sees.
        first = " ".join(line.strip("# ") for line in (PLANS / name).read_text().splitlines()[:4])
        assert f"{len(runs)} runs of {runs[0].samples} samples each" in first
        assert study.phantoms["cases"] - seen == 12
    assert yaml.safe_load((PLANS / name).read_text())["settings"]["max_epochs"] > 0
