# Copyright (c) the brats_mri_panet_segmentation authors
# SPDX-License-Identifier: Apache-2.0
"""The mean of weights, and what may not be averaged."""

import json

import pytest
import torch
from scripts import average_weights
from scripts.data.postprocessing import THRESHOLDS
from scripts.utils.errors import InputError
from scripts.weights.averaging import mean_state
from scripts.weights.record import UNKNOWN, read_weights_record, save_weights, trained_on

SEEN = {"patients": 4, "phantoms": 8, "origin": "start"}
NETWORK = {"class": "Linear", "arguments": {"in_features": 2}}


def written(file, value: float, **changes):
    state = {"weight": torch.full((2, 3), value), "count": torch.tensor(7)}
    settings = {
        "trained_on": SEEN,
        "network": NETWORK,
        "sequences": ["t1"],
        "spacing": [2.0] * 3,
        "exclusive": False,
        "normalization": "brain",
        "thresholds": THRESHOLDS,
        "training": {"seed": value},
        "scores": {"epoch": value},
    }
    save_weights(state, file, settings | changes)
    return file


def averaged(file, *files):
    """Average, and return the record of the mean."""
    assert average_weights.main([str(file), *map(str, files)]) == 0
    return read_weights_record(file)


def test_the_mean_and_its_record(tmp_path):
    files = [written(tmp_path / f"{value}.pt", value) for value in (1.0, 2.0, 6.0)]
    record = averaged(tmp_path / "mean.pt", *files)
    state = torch.load(tmp_path / "mean.pt", weights_only=True)
    assert torch.equal(state["weight"], torch.full((2, 3), 3.0)) and state["count"] == 7
    assert (record["trained_on"], record["spacing"]) == (SEEN, [2.0] * 3)
    assert "scores" not in record  # nobody has measured any


def test_the_mean_of_float16_does_not_overflow_or_change_its_type():
    state = {"weight": torch.full((2,), 6e4, dtype=torch.float16)}
    assert torch.equal(mean_state([state, state])["weight"], state["weight"])


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"spacing": [1.0] * 3}, "b.json: spacing differs from that in"),
        ({"network": {**NETWORK, "arguments": {"in_features": 3}}}, "network differs"),
        ({"missing_sequences": 1}, "missing_sequences differs"),
        ({"trained_on": {**SEEN, "origin": "other"}}, r"b\.json: goes back to other weights than .*ensemble\.yaml"),
        ({"trained_on": trained_on(4, 8)}, "b.json: goes back to other weights than"),
    ],
)
def test_trainings_that_differ_are_refused(tmp_path, changes, said):
    files = [written(tmp_path / "a.pt", 1.0), written(tmp_path / "b.pt", 2.0, **changes)]
    with pytest.raises(InputError, match=said):
        average_weights.main([str(tmp_path / "mean.pt"), *map(str, files)])
    assert not (tmp_path / "mean.pt").exists() and not (tmp_path / "mean.json").exists()


def test_trainings_that_started_from_random_weights_are_refused(tmp_path):
    files = [written(tmp_path / f"{value}.pt", value, trained_on=trained_on(4, 0)) for value in (1.0, 2.0)]
    with pytest.raises(InputError, match=r"2\.0\.json: goes back to other weights.*ensemble\.yaml"):
        average_weights.main([str(tmp_path / "mean.pt"), *map(str, files)])


@pytest.mark.parametrize(
    ("first", "second", "patients", "phantoms"),
    [
        ((12, 0), (16, 5), 16, 5),  # folds may share cases, so their sum would be wrong
        ((0, 8), (3, 0), 3, 8),
        ((None, 0), (3, None), 3, None),
        ((None, None), (0, 0), None, None),
    ],
)
def test_the_mean_has_seen_at_least_what_each_training_saw(tmp_path, first, second, patients, phantoms):
    seen = [dict(zip(SEEN, (*numbers, "start"), strict=True)) for numbers in (first, second)]
    files = [written(tmp_path / f"{place}.pt", 1.0 + place, trained_on=seen[place]) for place in (0, 1)]
    wanted = {"patients": patients, "phantoms": phantoms, "origin": "start"}
    assert averaged(tmp_path / "mean.pt", *files)["trained_on"] == wanted


def test_each_case_of_the_trainings_counts_once(tmp_path):
    """Two cohorts may have the same names, and two folds the same cases."""
    cohorts = ("abcd", "efgh", "cdef")
    cases = [{"patients": [*cohort], "phantoms": ["x"]} for cohort in cohorts]
    files = [
        written(tmp_path / f"{place}.pt", 1.0 + place, trained_on={**trained_on(4, 1, one), "origin": "start"})
        for place, one in enumerate(cases)
    ]
    for number, (chosen, patients) in enumerate(((files[:2], 8), (files[::2], 6), (files, 8))):
        seen = averaged(tmp_path / f"mean{number}.pt", *chosen)["trained_on"]
        assert (seen["patients"], seen["phantoms"], len(seen["cases"]["patients"])) == (patients, 1, patients)


@pytest.mark.parametrize("seen", [trained_on(0, 152), UNKNOWN])
def test_weights_and_trainings_that_went_on_from_them(tmp_path, seen):
    before = written(tmp_path / "before.pt", 1.0, trained_on=seen)
    after = {"patients": 4, "phantoms": 152, "origin": read_weights_record(before)["checksum"]}
    files = [written(tmp_path / f"{value}.pt", value, trained_on=after) for value in (3.0, 5.0)]
    for number, chosen in enumerate(([before, *files], [files[0], before], [*files, before])):
        assert averaged(tmp_path / f"mean{number}.pt", *chosen)["trained_on"] == after
    assert torch.load(tmp_path / "mean1.pt", weights_only=True)["weight"].unique().tolist() == [2.0]
    assert torch.load(tmp_path / "mean2.pt", weights_only=True)["weight"].unique().tolist() == [3.0]
    # A mean is averaged as any other weights are.
    assert averaged(tmp_path / "quarter.pt", before, tmp_path / "mean1.pt")["trained_on"] == after
    assert torch.load(tmp_path / "quarter.pt", weights_only=True)["weight"].unique().tolist() == [1.5]


def test_files_that_cannot_be_averaged_are_named(tmp_path):
    first = written(tmp_path / "a.pt", 1.0)
    for arguments, said in (
        ((first, first), "at least two model files, and each once"),
        ((first,), "at least two model files"),
        ((first, tmp_path / "absent.pt"), "absent.pt: no such weights"),
    ):
        with pytest.raises(InputError, match=said):
            average_weights.main([str(tmp_path / "mean.pt"), *map(str, arguments)])
    with pytest.raises(InputError, match=r"a\.pt: exists already"):
        average_weights.main([str(first), str(first), str(written(tmp_path / "b.pt", 2.0))])
    with pytest.raises(InputError, match=r"run\.pt: its record would be taken for another file"):
        average_weights.main([str(tmp_path / "run.pt"), str(first), str(tmp_path / "b.pt")])
    (tmp_path / "c.pt").write_bytes((tmp_path / "b.pt").read_bytes())
    (tmp_path / "c.json").write_text(json.dumps({}))
    with pytest.raises(InputError, match=r"c\.pt: no such weights, or no record"):
        average_weights.main([str(tmp_path / "mean.pt"), str(first), str(tmp_path / "c.pt")])
