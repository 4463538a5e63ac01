# Copyright (c) the brats_mri_panet_segmentation authors
# SPDX-License-Identifier: Apache-2.0
"""The mean of weights, and what may not be averaged."""

import json

import pytest
import torch
from scripts import average_weights
from scripts.data.postprocessing import THRESHOLDS
from scripts.utils.errors import InputError
from scripts.weights.record import read_weights_record, save_weights, trained_on

START = {"checksum": "start", "trained_on": trained_on(0, 8)}
NETWORK = {"class": "Linear", "arguments": {"in_features": 2}, "defaults": {}}


def written(file, value: float, **changes):
    state = {"weight": torch.full((2, 3), value), "count": torch.tensor(7)}
    settings = {
        "trained_on": trained_on(4, 0, START),
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


def test_the_mean_and_its_record(tmp_path):
    first, second, third = (written(tmp_path / f"{value}.pt", value) for value in (1.0, 2.0, 6.0))
    assert average_weights.main([str(tmp_path / "mean.pt"), *map(str, (first, second, third))]) == 0
    state = torch.load(tmp_path / "mean.pt", weights_only=True)
    assert torch.equal(state["weight"], torch.full((2, 3), 3.0)) and state["count"] == 7
    record = read_weights_record(tmp_path / "mean.pt")
    assert record["average_of"] == [read_weights_record(file)["checksum"] for file in (first, second, third)]
    assert record["trained_on"] == trained_on(4, 0, START)
    assert "scores" not in record  # nobody has measured any


def test_the_mean_of_float16_does_not_overflow_or_change_its_type():
    state = {"weight": torch.full((2,), 6e4, dtype=torch.float16)}
    assert torch.equal(average_weights.mean_state([state, state])["weight"], state["weight"])


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"spacing": [1.0] * 3}, "b.json: spacing differs from that in"),
        ({"trained_on": trained_on(5, 0, START)}, "datalist.json: absent, and the trainings saw different numbers"),
        ({"trained_on": trained_on(4, 0, {**START, "checksum": "b"})}, "b.json: started from other weights than"),
        ({"network": {**NETWORK, "arguments": {"in_features": 3}}}, "network differs"),
    ],
)
def test_trainings_that_differ_are_refused(tmp_path, changes, said):
    files = [written(tmp_path / "a.pt", 1.0), written(tmp_path / "b.pt", 2.0, **changes)]
    with pytest.raises(InputError, match=said):
        average_weights.main([str(tmp_path / "mean.pt"), *map(str, files)])
    assert not (tmp_path / "mean.pt").exists() and not (tmp_path / "mean.json").exists()


def fold(folder, cases: str, **changes):
    folder.mkdir()
    listed = {"training": [{"image": case} for case in cases], "validation": [{"image": "z"}]}
    (folder / "datalist.json").write_text(json.dumps(listed))
    return written(folder / "model.pt", float(len(cases)), **changes)


def test_folds_have_seen_the_cases_of_all(tmp_path):
    """Two folds of three patients each may have seen four, which their own counts do not tell."""
    seen = {"trained_on": trained_on(3, 0, START)}
    files = [fold(tmp_path / name, name, **seen) for name in ("abc", "bcd")]
    average_weights.main([str(tmp_path / "mean.pt"), *map(str, files)])
    assert read_weights_record(tmp_path / "mean.pt")["trained_on"] == trained_on(4, 0, START)
    # Folds of different sizes are no fault either, and phantoms are counted as phantoms.
    files = [fold(tmp_path / name, name, trained_on=trained_on(0, len(name), START)) for name in ("abde", "ef")]
    average_weights.main([str(tmp_path / "phantoms.pt"), *map(str, files)])
    assert read_weights_record(tmp_path / "phantoms.pt")["trained_on"] == trained_on(0, 5, START)


def test_trainings_in_several_steps_go_back_to_the_nearest_common_weights(tmp_path, caplog):
    """One went on twice from the start, and the other one once; the starting weights have a start of their own."""
    between = {"checksum": "between", "trained_on": trained_on(3, 0, START)}
    files = [fold(tmp_path / "abc", "abc", trained_on=trained_on(3, 0, between))]
    files += [fold(tmp_path / "bcd", "bcd", trained_on=trained_on(3, 0, START))]
    average_weights.main([str(tmp_path / "mean.pt"), *map(str, files)])
    assert read_weights_record(tmp_path / "mean.pt")["trained_on"] == trained_on(4, 0, START)
    assert f"{files[0]} went on from weights that are taken to have seen the same cases" in caplog.text
    # Two that went on from the same later weights share these, and not only the first ones.
    files = [fold(tmp_path / name, name, trained_on=trained_on(3, 0, between)) for name in ("cde", "def")]
    average_weights.main([str(tmp_path / "later.pt"), *map(str, files)])
    assert read_weights_record(tmp_path / "later.pt")["trained_on"] == trained_on(4, 0, between)


def test_weights_and_trainings_that_went_on_from_them(tmp_path):
    """The trainings saw phantoms, too, so their numbers differ from those of the weights before."""
    before = written(tmp_path / "before.pt", 1.0)
    start = {key: read_weights_record(before)[key] for key in ("checksum", "trained_on")}
    files = [written(tmp_path / f"{value}.pt", value, trained_on=trained_on(4, 3, start)) for value in (3.0, 5.0)]
    for number, averaged in enumerate(([before, *files], [files[0], before], [*files, before])):
        mean = tmp_path / f"mean{number}.pt"
        average_weights.main([str(mean), *map(str, averaged)])
        assert read_weights_record(mean)["trained_on"] == trained_on(4, 3, start)
    assert torch.load(tmp_path / "mean1.pt", weights_only=True)["weight"].unique().tolist() == [2.0]
    # A mean is averaged as any other weights are.
    averaged = [before, tmp_path / "mean1.pt"]
    average_weights.main([str(tmp_path / "quarter.pt"), *map(str, averaged)])
    record = read_weights_record(tmp_path / "quarter.pt")
    assert record["average_of"] == [read_weights_record(file)["checksum"] for file in averaged]
    assert record["trained_on"] == trained_on(4, 3, start)
    assert torch.load(tmp_path / "mean2.pt", weights_only=True)["weight"].unique().tolist() == [3.0]


def test_weights_before_only_some_of_the_others_are_refused(tmp_path):
    before = written(tmp_path / "before.pt", 1.0)
    start = {key: read_weights_record(before)[key] for key in ("checksum", "trained_on")}
    files = [before, written(tmp_path / "after.pt", 2.0, trained_on=trained_on(4, 3, start))]
    files.append(written(tmp_path / "other.pt", 3.0))
    with pytest.raises(InputError, match=r"after\.json: went on from weights that saw other numbers of cases"):
        average_weights.main([str(tmp_path / "mean.pt"), *map(str, files)])


@pytest.mark.parametrize("before", [trained_on(2, 0, START), trained_on(3, 1, START)])
def test_weights_between_that_saw_other_cases_are_refused(tmp_path, before):
    files = [fold(tmp_path / "abc", "abc", trained_on=trained_on(3, 0, START))]
    between = {"checksum": "between", "trained_on": before}
    files += [fold(tmp_path / "bcd", "bcd", trained_on=trained_on(3, 0, between))]
    with pytest.raises(InputError, match=r"bcd.model\.json: went on from weights that saw other numbers of cases"):
        average_weights.main([str(tmp_path / "mean.pt"), *map(str, files)])


def test_different_cases_of_patients_and_phantoms_are_refused(tmp_path):
    files = [fold(tmp_path / name, name, trained_on=trained_on(1, 1, START)) for name in ("ab", "bc")]
    with pytest.raises(InputError, match="saw different cases, patients and phantoms"):
        average_weights.main([str(tmp_path / "mean.pt"), *map(str, files)])


def test_trainings_that_started_anew_are_refused(tmp_path):
    files = [written(tmp_path / f"{value}.pt", value, trained_on=trained_on(4, 0)) for value in (1.0, 2.0)]
    with pytest.raises(InputError, match=r"started anew.*ensemble\.yaml"):
        average_weights.main([str(tmp_path / "mean.pt"), *map(str, files)])


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
    (tmp_path / "c.pt").write_bytes((tmp_path / "b.pt").read_bytes())
    (tmp_path / "c.json").write_text(json.dumps({}))
    with pytest.raises(InputError, match=r"c\.pt: no such weights, or no record"):
        average_weights.main([str(tmp_path / "mean.pt"), str(first), str(tmp_path / "c.pt")])
