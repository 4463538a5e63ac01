# Copyright (c) the brats_mri_panet_segmentation authors
# SPDX-License-Identifier: Apache-2.0
"""Names, paths and records may hold anything: nothing in them runs, and results are where the name says."""

import ast
import csv
import json
import logging
import os
import shutil
import sys
from pathlib import Path

import fire.parser
import nibabel as nib
import numpy as np
import pytest
import torch
from dicom_series import write_case
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st
from monai.bundle import ConfigParser
from monai.transforms import Compose, NormalizeIntensityd
from scripts.brats import SEQUENCES
from scripts.data.datalist_file import LONGEST_NAME, read_datalist
from scripts.data.postprocessing import THRESHOLDS
from scripts.lab.bundle_run import workflow_arguments
from scripts.networks import PriorAttentionNet
from scripts.patients import segmentation
from scripts.patients.options import Options
from scripts.patients.segmentation import segment
from scripts.report import main as report
from scripts.segment import main as segment_command
from scripts.utils.errors import InputError, input_error_behind, printable
from scripts.utils.literals import literal, shown
from scripts.utils.run_json import read_run_json
from scripts.weights.record import UNKNOWN, read_weights_record, save_weights
from scripts.weights.settings import weights_settings
from scripts.workflow.configuration import Configuration
from scripts.workflow.output import Output
from scripts.workflow.settings import check_path
from workflows import bundle_run

CHANNELS = [4, 4, 4, 4, 8]
# It makes a folder in the current one, if anything evaluates it.
PROGRAM = '__import__("os").mkdir("ran")'
# As ``python -m monai.bundle`` has it.
MONAI = "/packages/monai/bundle/__main__.py"
PARTS = ["$", "@", "%", "#", "::", "'", '"', "{", "}", "[b]", "[/]", " ", "\n", "\r", "\t", "\\", "\udcff", "é", "שלום"]
PARTS += ["-", "--", "~", "*", "?", "=", ",", ";", "&", "|", "a", "1", "None", "True", "device", "network", PROGRAM]


def is_file_name(name: str) -> bool:
    return not name.startswith(".") and "/" not in name and 0 < len(os.fsencode(name)) <= LONGEST_NAME


NAMES = st.lists(st.sampled_from(PARTS) | st.characters(codec="utf-8"), min_size=1, max_size=6).map("".join)
NAMES = NAMES.filter(lambda name: "\0" not in name and is_file_name(name))
FEW = settings(
    max_examples=12, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
MANY = settings(FEW, max_examples=300)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder to work in, with a small brain of four sequences and tiny weights with their record."""
    folder = tmp_path_factory.mktemp("names")
    grid = np.indices((20, 22, 20)) - np.array([10, 11, 10]).reshape(3, 1, 1, 1)
    brain = (grid**2).sum(0) < 80
    for number, sequence in enumerate(SEQUENCES):
        values = np.random.default_rng(number).normal(500, 50, brain.shape) * brain
        image = nib.Nifti1Image(values.astype(np.int16), np.diag([-1.0, -1.0, 1.0, 1.0]))
        nib.save(image, folder / f"{sequence}.nii.gz")
    torch.manual_seed(0)
    network = PriorAttentionNet(channels=CHANNELS)
    preprocessing = Compose([NormalizeIntensityd("image", nonzero=True, channel_wise=True)])
    made = {"channels": CHANNELS, "head": "fcn"}
    record = weights_settings(network, made, [1] * 3, False, preprocessing, THRESHOLDS, {"window": [32, 32, 32]})
    save_weights(network.state_dict(), folder / "model.pt", {**record, "trained_on": UNKNOWN})
    with pytest.MonkeyPatch.context() as patch:
        # A process that has run OpenVINO may crash when it forks, and other tests of this process fork.
        patch.setattr(segmentation, "openvino_is_installed", lambda: False)
        patch.chdir(folder)
        # The workers of these tests cannot hand on a log with bytes that are no UTF-8.
        logging.disable(logging.CRITICAL)
        yield folder
        logging.disable(logging.NOTSET)


def options(place: Path, **changes) -> Options:
    return Options(**{"model": place / "model.pt", "device": "cpu", "pictures": False, **changes})


def put(place: Path, folder: Path, name: str) -> dict[str, str]:
    """Lay the four images as files of a case of this name."""
    folder.mkdir(parents=True, exist_ok=True)
    return {s: shutil.copy(place / f"{s}.nii.gz", folder / f"{name}_{s}.nii.gz") for s in SEQUENCES}


def fresh(place: Path) -> Path:
    shutil.rmtree(place / "work", ignore_errors=True)
    return place / "work"


def nothing_else(place: Path, known: set[Path]) -> None:
    """Nothing ran, and nothing lies where it was not asked for."""
    assert {path for path in place.iterdir() if path.name != "work"} == known
    assert not list(place.rglob("ran"))


@pytest.mark.slow
@FEW
@given(NAMES, NAMES)
@example("@device", "out #1")
@example("%x", "a::b")
@example("-o", "2024")
@example("n" * LONGEST_NAME, "$x$")
def test_a_case_and_the_folders_of_any_name(place, name, folder):
    known, work = {*place.iterdir()} - {place / "work"}, fresh(place)
    put(place, work / "in" / folder, name)
    out = work / "out" / folder
    (result,) = segment([work / "in"], out, options=options(place))
    assert result["case"] == name and (out / name / f"{name}.nii.gz").is_file()
    assert {path.name for path in out.iterdir()} == {name, "run.json", "config.json", "datalist.json", "volumes.csv"}
    assert json.loads((out / name / f"{name}.json").read_text()) == result
    config = json.loads((out / "config.json").read_text())
    assert (config["output_dir"], config["all_cases"][0]["case"]) == (str(out), name)
    assert read_run_json(out)["dataset_dir"] == str(work / "in" / folder)
    assert segment([work / "in"], out, options=options(place)) == [result]
    nothing_else(place, known)


@pytest.mark.slow
@pytest.mark.parametrize("name", [f"${PROGRAM}", "b\udcff\nx"])
def test_the_command_pictures_and_the_report_take_any_name(place, name, capsys):
    known, work = {*place.iterdir()} - {place / "work"}, fresh(place)
    files = put(place, work / "in" / name, name)
    arguments = [f"--{s}={file}" for s, file in files.items()]
    arguments += [
        f"--name={name}",
        f"--model={place / 'model.pt'}",
        "--device=cpu",
        f"--output_dir={work / 'o' / name}",
    ]
    assert segment_command(arguments) == 0
    out = work / "o" / name
    assert {path.name for path in (out / name).iterdir()} == {
        f"{name}{e}" for e in (".nii.gz", ".json", ".png", "_itksnap.txt", "_slicer.ctbl")
    }
    assert capsys.readouterr().out.startswith(printable(str(out / name / f"{name}.nii.gz")) + ": ET ")
    assert report([str(out)]) == 0 and (out / "report.html").is_file()
    nothing_else(place, known)


@pytest.mark.slow
@FEW
@given(NAMES)
def test_a_datalist_of_any_name(place, name):
    known, work = {*place.iterdir()} - {place / "work"}, fresh(place)
    assume(name not in ("run", "config", "datalist"))
    files = put(place, work / "in", "x" + name)
    entry = {"case": name, "image": [Path(files[s]).name for s in SEQUENCES]}
    (work / "list.json").write_text(json.dumps({"sequences": list(SEQUENCES), "testing": [entry]}))
    size = {"network_def#channels": CHANNELS, "roi_size": [32, 32, 32], "num_workers": 0}
    where = {"dataset_dir": str(work / "in"), "datalist_file": str(work / "list.json"), "output_dir": str(work / "out")}
    bundle_run("inference.json", **where, model_file=str(place / "model.pt"), **size)
    assert (work / "out" / f"{name}.nii.gz").is_file()
    nothing_else(place, known)


@MANY
@given(NAMES)
def test_a_table_of_any_name(place, name):
    """A name that CSV cannot hold ends in one line."""
    work = fresh(place)
    work.mkdir()
    with (work / "list.csv").open("w", newline="", encoding="utf-8", errors="replace") as file:
        csv.writer(file).writerows([["case", *SEQUENCES], [name, *(f"{name}_{s}.nii" for s in SEQUENCES)]])
    try:
        lists = read_datalist(work / "list.csv", work, with_labels=False)
    except InputError as error:
        assert "\n" not in str(error)
    else:
        assert len(lists["testing"]) == 1
    assert not list(place.rglob("ran"))


@pytest.mark.parametrize("key", ["spacing", "thresholds", "network"])
def test_a_record_holds_finite_numbers(place, key):
    work = fresh(place)
    work.mkdir()
    shutil.copy(place / "model.pt", work)
    text = (place / "model.json").read_text()
    content = {"spacing": [float("nan")] * 3, "thresholds": {**THRESHOLDS, "min_et_mm3": float("inf")}}
    content["network"] = {"class": "PriorAttentionNet", "arguments": {"head": float("inf")}}
    (work / "model.json").write_text(json.dumps({**json.loads(text), key: content[key]}))
    with pytest.raises(InputError, match="a number is not finite"):
        read_weights_record(work / "model.pt")


RECORDED = [("network", "class"), ("network", "arguments", "head"), ("network", "arguments", "channels", 0)]
RECORDED += [("network", "arguments", "act", 1, "init"), ("spacing", 0), ("training", "window", 0), ("thresholds",)]
RECORDED += [("thresholds", "min_et_mm3"), ("missing_sequences",), ("trained_on",), ("exclusive",)]


@MANY
@given(NAMES, st.sampled_from(RECORDED))
@example(f"${PROGRAM} or 'fcn'", ("network", "arguments", "head"))
@example("@device", ("network", "arguments", "head"))
@example("other", ("network", "arguments", "head"))
@example("Softmax", ("network", "class"))
def test_a_record_is_data(place, text, where):
    """A text in a record is refused before it reaches a configuration, or it is a name that the network knows."""
    known, work = {*place.iterdir()} - {place / "work"}, fresh(place)
    work.mkdir()
    shutil.copy(place / "model.pt", work)
    record = json.loads((place / "model.json").read_text())
    node = record
    for key in where[:-1]:
        node = node[key]
    node[where[-1]] = text
    (work / "model.json").write_text(json.dumps(record))
    with pytest.raises(InputError) as caught:
        segment([place], work / "out", options=options(work))
    assert "\n" not in str(caught.value) and "model." in str(caught.value)
    assert not (work / "out").exists()
    nothing_else(place, known)


def test_a_sound_record_is_read(place):
    assert read_weights_record(place / "model.pt")["network"]["class"] == "PriorAttentionNet"


@MANY
@given(NAMES | st.text())
@example("$'x'")
def test_a_literal_is_the_text_for_monais_parser(text):
    parser = ConfigParser({"device": "cpu", "text": literal(text), "other": "$@text", "list": literal([{"a": text}])})
    parser.parse()
    assert parser.get_parsed_content("text") == text == parser.get_parsed_content("other")
    assert parser.get_parsed_content("list") == [{"a": text}]
    assert Configuration(parser).content == {"device": "cpu", "text": text, "other": "$@text", "list": [{"a": text}]}
    assert shown(parser["text"]) == text


@MANY
@given(NAMES)
def test_a_path_in_a_commands_arguments_is_what_it_was(name):
    """MONAI's command line (Fire) and its parser give the path back."""
    path = Path("/data", name)
    option, value = workflow_arguments(["inference.json"], {"output_dir": path})[-2:]
    parser = ConfigParser({"output_dir": fire.parser.DefaultParseValue(value)})
    parser.parse()
    assert (option, parser.get_parsed_content("output_dir")) == ("--output_dir", str(path))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [MONAI, option, value])
        check_path("output_dir", parser["output_dir"], Configuration(parser))


@MANY
@given(NAMES)
@example("2024")
@example("p,q")
@example("a #1")
@example("a#1")
@example("a::b")
@example("None")
@example("'q'")
@example('"2024"')
@example("@device")
def test_a_path_that_was_typed_is_kept_or_refused(name):
    """As ``bundle run --output_dir <name>`` reads it."""
    # A program by MONAI's rules, and a part of another configuration.
    assume(not name.lstrip("'\"").startswith(("$", "%")))
    try:
        value = fire.parser.DefaultParseValue(name)
    except (MemoryError, RecursionError):
        assume(False)
    parser = ConfigParser({"output_dir": "out" if value is None else value, "device": torch.device("cpu")})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [MONAI, "run", f"--output_dir={name}"])
        try:
            parser.parse()
            check_path("output_dir", parser["output_dir"], Configuration(parser))
        except InputError as error:
            assert "panet segment" in str(error) and "\n" not in str(error)
        except (KeyError, ValueError):
            assert "@" in name  # MONAI's own refusal of a reference
        else:
            kept = parser.get_parsed_content("output_dir")
            assert kept == name or (name[0] in "'\"" and kept == ast.literal_eval(name))


@pytest.mark.parametrize(
    ("argv", "refused"),
    [
        (["script.py"], False),
        (["script.py", "--output_dir", "other"], False),  # another program's option
        ([MONAI], False),
        ([MONAI, "run", "--output_dir"], False),
        ([MONAI, "run", "--output_dir", "out"], False),
        ([MONAI, "run", "--output-dir='out'"], False),
        ([MONAI, "run", "--output_dir", "%settings.json#output_dir"], False),
        ([MONAI, "run", "--output_dir", "out #1"], True),
        ([MONAI, "run", "--output_dir", "None"], True),
    ],
)
def test_only_what_monais_command_line_has_changed_is_refused(argv, refused, monkeypatch):
    monkeypatch.setattr(sys, "argv", argv)
    parser = ConfigParser({"output_dir": "out"})
    parser.parse()
    if refused:
        with pytest.raises(InputError, match="MONAI reads 'out' here"):
            check_path("output_dir", "out", Configuration(parser))
    else:
        check_path("output_dir", "out", Configuration(parser))


@pytest.mark.parametrize(
    ("value", "typed", "refused"),
    [
        (["a.pt", "b.pt"], "['a.pt','b.pt']", False),
        (("a.pt", "b.pt"), None, False),
        (("p", "q"), "p,q", True),
        ("$2024", None, True),
        (["a.pt", "b::c.pt"], None, True),
        (None, None, False),
    ],
)
def test_weights_of_an_ensemble_are_several_paths(value, typed, refused, monkeypatch):
    monkeypatch.setattr(sys, "argv", [MONAI, "run", *([f"--model_file={typed}"] if typed else [])])
    parser = ConfigParser({"model_file": value})
    parser.parse()
    if refused:
        with pytest.raises(InputError):
            check_path("model_file", value, Configuration(parser))
    else:
        check_path("model_file", value, Configuration(parser))


@pytest.mark.slow
@pytest.mark.parametrize("name", [f"${PROGRAM}", "@device", "a #1\udcff"])
def test_a_dicom_folder_of_any_name(place, name):
    known, work = {*place.iterdir()} - {place / "work"}, fresh(place)
    write_case(work / name, {s: nib.load(place / f"{s}.nii.gz") for s in SEQUENCES})
    try:
        (result,) = segment([work / name], work / "out", options=options(place))
    except InputError as error:
        assert "\udcff" in name and "\n" not in str(error)  # ITK takes no such path
    else:
        assert result["case"] == name and (work / "out" / name / f"{name}.nii.gz").is_file()
    nothing_else(place, known)


# Names that would meet.


def items(*names: str) -> list[dict]:
    return [{"case": name, "image": ["a.nii"] * 4} for name in names]


@pytest.mark.parametrize(
    ("names", "case_folders", "words"),
    [
        (["run"], False, "run: the run has a file of this name"),
        (["config"], False, "config: the run has a file of this name"),
        (["datalist"], False, "datalist: the run has a file of this name"),
        (["run.json"], True, "run.json: the run has a file of this name"),
        (["a", "a_prob_whole"], False, "a_prob_whole.nii.gz: a and a_prob_whole would both have a map of this name"),
        (["run.json"], False, "run.json: the run has a file of this name"),
        (["n" * 201], True, "longer than 200 bytes"),
        (["é" * 101], False, "longer than 200 bytes"),
    ],
)
def test_cases_whose_files_would_meet_are_refused(names, case_folders, words):
    with pytest.raises(InputError) as caught:
        Output("out", "out", case_folders=case_folders).refuse_meeting(items(*names))
    assert words in str(caught.value)


def test_cases_whose_files_do_not_meet_pass():
    Output("out", "out").refuse_meeting(items("a", "a_prob", "b_prob_whole", "runs", "n" * 200))
    Output("out", "out", case_folders=True).refuse_meeting(items("run", "a", "a_prob_whole"))
    Output("out", None).refuse_meeting(items("run"))


def test_a_run_names_a_case_whose_map_was_lost(place, monkeypatch):
    work = fresh(place)
    put(place, work / "in", "ann")
    monkeypatch.setattr("scripts.inference.writers.save_map", lambda *args: None)
    with pytest.raises(
        InputError, match=r"^1 of 1 case failed: ann \(ann: no label map was written \(.*/ann\.nii\.gz\)"
    ):
        segment([work / "in"], work / "out", options=options(place))


def test_no_error_hides_behind_a_wrapped_one():
    error = RuntimeError("wrapped")
    error.__cause__ = InputError("a\nb: absent")
    assert str(input_error_behind(error)) == r"a\nb: absent"
