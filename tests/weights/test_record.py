# Copyright (c) the brats_mri_panet_segmentation authors
# SPDX-License-Identifier: Apache-2.0
"""The record beside weights: its content, the refusals that it causes, and the settings that it passes on."""

import json
import logging
import re
import shutil
from pathlib import Path

import pytest
import torch
from monai.networks.nets import SegResNet
from monai.transforms import Compose, CropForegroundd, NormalizeIntensity, NormalizeIntensityd, Spacingd, SpatialPadd
from scripts.data.postprocessing import THRESHOLDS
from scripts.data.transforms import BrainSpacingd
from scripts.networks import PriorAttentionNet
from scripts.utils.errors import InputError, input_error_behind
from scripts.weights.loading import check_weights
from scripts.weights.record import (
    UNKNOWN,
    only_phantoms,
    origin,
    record_file,
    save_weights,
    thresholds_in_use,
    trained_after,
    trained_on,
)
from scripts.weights.settings import check_start, differences, network_definition, normalization, weights_settings
from workflows import CONFIGS, ROOT, SIZE, bundle_run, command, files, initialized

CHANNELS = [4, 4, 4, 4, 8]
BRAIN = NormalizeIntensityd("image", nonzero=True, channel_wise=True)


def network(seed: int = 0, **changes) -> PriorAttentionNet:
    torch.manual_seed(seed)
    return PriorAttentionNet(**{"channels": CHANNELS, **changes})


def settings(**changes) -> dict:
    """Return settings of a configuration with the small network, with changes in the format of the record."""
    made = weights_settings(network(), {"channels": CHANNELS}, [1, 1, 1], False, Compose([BRAIN]), THRESHOLDS)
    return {**made, **changes}


def saved(path: Path, seed: int = 0, content: dict | None = None, **changes) -> Path:
    record = {**settings(**changes), "trained_on": content or trained_on(4, 0), "scores": None}
    save_weights(network(seed).state_dict(), path, record)
    return path


@pytest.fixture
def model(tmp_path) -> Path:
    return saved(tmp_path / "model.pt")


# Content.


@pytest.mark.parametrize(
    ("steps", "found"),
    [
        ([BRAIN], "brain"),
        ([CropForegroundd("image", "image"), BRAIN], "brain"),
        ([SpatialPadd("image", [240, 240, 160]), NormalizeIntensityd("image", channel_wise=True)], "volume"),
        ([Compose([NormalizeIntensity(channel_wise=True)])], "volume"),
        ([CropForegroundd("image", "image"), NormalizeIntensityd("image", channel_wise=True)], "box"),
        ([NormalizeIntensityd("image", nonzero=True)], "brain, all sequences together"),
        ([NormalizeIntensityd("image", subtrahend=1.0, channel_wise=True)], "by subtrahend"),
        ([NormalizeIntensityd("image", divisor=2.0, channel_wise=True)], "by divisor"),
        ([BRAIN, BRAIN], "2 times"),
        ([BRAIN, BrainSpacingd("image", [2.0] * 3)], "brain"),
        ([Spacingd("image", [2.0] * 3), BRAIN], "brain after resampling"),
        ([], "none"),
    ],
)
def test_the_normalization_is_read_off_the_preprocessing(steps, found):
    assert normalization(Compose(steps)) == found


@pytest.mark.parametrize(
    ("names", "kind", "found"),
    [
        (("train.json",), "train", "brain"),
        (("train.json", "train_cached.yaml"), "train", "brain"),
        (("train.json", "evaluate.json", "authors.yaml"), "train", "volume"),
        (("inference.json",), "infer", "brain"),
        (("inference.json", "authors.yaml"), "infer", "volume"),
    ],
)
def test_settings_are_those_of_the_configuration(names, kind, found, tmp_path):
    place = {"dataset_dir": str(tmp_path), "output_dir": str(tmp_path / "out")}
    changes = {"network_def#head": "parallel", "spacing": [1, 1, 2], "exclusive": True}
    changes["thresholds#min_et_mm3"] = 7
    made = initialized(*names, kind=kind, **place, **changes).parser.get_parsed_content("weights_settings")
    assert made["normalization"] == found
    assert made["network"]["class"] == "PriorAttentionNet"
    arguments = made["network"]["arguments"]
    assert arguments["head"] == "parallel" and arguments["act"] == ["prelu", {"init": 0.25}]
    # The record also holds defaults that no configuration states.
    assert arguments["bottleneck"] is None and arguments["channels"] == [32, 64, 128, 256, 320]
    assert (made["spacing"], made["exclusive"]) == ([1.0, 1.0, 2.0], True)
    assert made["thresholds"] == {**THRESHOLDS, "min_et_mm3": 7}


def test_a_network_of_monais_is_defined_by_its_name_and_arguments():
    made = network_definition(SegResNet(init_filters=8), {"_target_": "SegResNet", "_desc_": "x", "init_filters": 8})
    assert made["class"] == "SegResNet"
    assert made["arguments"]["init_filters"] == 8
    assert made["arguments"]["blocks_down"] == [1, 2, 2, 4]


@pytest.mark.parametrize(
    ("content", "only"),
    [
        (trained_on(4, 0), False),
        (trained_on(0, 4), True),
        (trained_on(4, 4), False),
        (trained_after([trained_on(4, 0), trained_on(0, 4)], "a"), False),
        (trained_after([trained_on(0, 4), trained_on(0, 5)], "a"), True),
        (trained_after([trained_on(0, 4), trained_on(4, 0)], "a"), False),
        (trained_after([trained_on(0, 4), UNKNOWN], "a"), False),
        (UNKNOWN, False),
    ],
)
def test_whether_weights_know_phantoms_alone(content, only):
    assert only_phantoms({"trained_on": content}) == only


def test_weights_go_back_to_the_first_of_a_chain():
    first = {"checksum": "a", "trained_on": trained_on(4, 0)}
    second = {"checksum": "b", "trained_on": trained_after([trained_on(3, 0), first["trained_on"]], origin(first))}
    assert (origin(first), origin(second)) == ("a", "a")
    assert second["trained_on"]["patients"] == 4  # the second training may have seen three of the same


def test_weights_copied_with_their_record_keep_what_it_says(tmp_path):
    source = saved(tmp_path / "run" / "model.pt", content=trained_on(0, 12))
    for file in (source, record_file(source)):
        (tmp_path / "elsewhere").mkdir(exist_ok=True)
        shutil.copy(file, tmp_path / "elsewhere" / f"mine{file.suffix}")
    record = check_weights(network(), str(tmp_path / "elsewhere" / "mine.pt"), settings())
    assert only_phantoms(record)
    assert record == json.loads((tmp_path / "run" / "model.json").read_text())


# Refusals and warnings.

SOFTMAX = "classes that exclude each other (softmax), not regions that overlap; add --exclusive True"
OTHER = [
    ({"sequences": ["t1", "t1ce", "t2", "flair"]}, "channels in the order t1, t1ce, t2, flair, which is t1, t2, t1ce"),
    ({"spacing": [2.0, 2.0, 2.0]}, 'voxels of 2 x 2 x 2 mm, not 1 x 1 x 1; add --spacing "[2.0, 2.0, 2.0]"'),
    ({"exclusive": True}, SOFTMAX),
    ({"normalization": "volume"}, "normalized over: volume, not: brain; add configs/authors.yaml"),
    (
        {"normalization": "brain after resampling"},
        "normalized over: brain after resampling, not: brain; add the overlay of their preprocessing",
    ),
    ({"normalization": "none"}, "normalized over: none, not: brain; add the overlay of their preprocessing"),
    ({"network": {"class": "SegResNet", "arguments": {}}}, "the network SegResNet, not PriorAttentionNet; add"),
    (
        {"network": network_definition(network(), {"channels": [4, 4, 4, 4, 16], "head": "parallel"})},
        'another network (channels [4, 4, 4, 4, 16], head "parallel"); add '
        '--network_def#channels "[4, 4, 4, 4, 16]" --network_def#head parallel',
    ),
    (
        {"network": network_definition(network(), {"channels": CHANNELS, "gate": 1})},
        "another version of PriorAttentionNet (by its argument gate); use the version that trained them",
    ),
]


@pytest.mark.parametrize(("theirs", "said"), OTHER, ids=[next(iter(theirs)) for theirs, _ in OTHER])
def test_weights_trained_with_other_settings_are_refused_with_the_remedy(tmp_path, theirs, said):
    path = saved(tmp_path / "model.pt", **theirs)
    with pytest.raises(InputError) as caught:
        check_weights(network(), str(path), settings())
    message = str(caught.value)
    assert message.startswith(f"{path}: by its record ({tmp_path / 'model.json'}) it was trained with ")
    assert said in message and "\n" not in message
    # With their own settings, the weights are accepted.
    if "sequences" not in theirs and "network" not in theirs:
        assert check_weights(network(), str(path), settings(**theirs))["checksum"]


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [("exclusive", True, "leave out --exclusive"), ("normalization", "volume", "leave out the overlay")],
)
def test_settings_that_the_weights_do_not_know_are_to_be_left_out(model, key, value, said):
    with pytest.raises(InputError, match=said):
        check_weights(network(), str(model), settings(**{key: value}))


def test_window_precision_and_thresholds_are_never_refused(tmp_path):
    other = {"window": [64] * 3, "overlap": 0.75, "inferer": "FlipInferer", "precision": "bfloat16"}
    path = saved(tmp_path / "model.pt", training=other, thresholds={**THRESHOLDS, "min_et_mm3": 500})
    assert check_weights(network(), str(path), settings())["training"] == other


def test_arguments_that_one_version_of_the_network_lacks_are_named():
    definition = network_definition(network(), {"channels": CHANNELS})
    del definition["arguments"]["head_norm"]
    (said,) = differences(settings(network=definition), settings())
    assert said == "another version of PriorAttentionNet (by its argument head_norm); use the version that trained them"


def test_weights_without_a_record_are_used_with_a_warning(model, caplog):
    record_file(model).unlink()
    assert check_weights(network(), str(model), settings(spacing=[2.0] * 3)) is None
    (message,) = caplog.messages
    assert message.startswith(f"{model}: there is no record of these weights (model.json)")


def test_weights_with_the_record_of_others_are_used_with_a_warning(model, tmp_path, caplog):
    saved(tmp_path / "other.pt", seed=1)
    shutil.copy(tmp_path / "other.json", tmp_path / "model.json")
    assert check_weights(network(), str(model), settings(spacing=[2.0] * 3)) is None
    (message,) = caplog.messages
    assert message.startswith(
        f"{tmp_path / 'model.json'}: this record belongs to other weights (by their checksum) than {model}"
    )


@pytest.mark.parametrize("content", ["{", "[]"])
def test_what_is_no_json_object_beside_weights_is_named(model, content):
    record_file(model).write_text(content)
    with pytest.raises(InputError, match=r"model\.json: .*restore or remove it") as caught:
        check_weights(network(), str(model))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("network", {}),
        ("network", None),
        ("sequences", "t1"),
        ("spacing", None),
        ("exclusive", "yes"),
        ("normalization", 1),
        ("thresholds", None),
        ("thresholds", {"min_et_mm3": 3}),
        ("thresholds", {**THRESHOLDS, "min_et_mm3": "300"}),
        ("thresholds", {**THRESHOLDS, "min_tumor_probability": 82}),
        ("thresholds", {**THRESHOLDS, "min_et_voxels": 300}),
        ("trained_on", 4),
        ("trained_on", None),
        ("trained_on", {"patients": 4, "phantoms": 0}),
        ("trained_on", {**UNKNOWN, "patients": -1}),
        ("network", {"class": "a-b", "arguments": {}}),
        ("network", {"class": "PriorAttentionNet", "arguments": {"head": "$1"}}),
        ("training", {"window": ["$1"] * 3}),
        ("spacing", [1, 1, 0]),
        ("missing_sequences", 2),
    ],
)
def test_a_damaged_record_is_named_with_what_is_damaged(model, key, value):
    record = json.loads(record_file(model).read_text())
    record_file(model).write_text(json.dumps({**record, key: value}))
    for check in (lambda: check_weights(network(), str(model), settings()), lambda: thresholds_in_use(str(model))):
        with pytest.raises(
            InputError, match=rf"model\.json: a damaged record of weights \({key}[.\w]*\); restore or remove it"
        ):
            check()


def test_another_programs_file_of_that_name_is_no_record(model, caplog):
    record_file(model).write_text('{"dice": 0.9}')
    assert check_weights(network(), str(model), settings()) is None
    assert "there is no record of these weights" in caplog.text


def test_a_link_to_weights_leads_to_their_record(model, tmp_path):
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "linked.pt").symlink_to("../model.pt")
    link = str(tmp_path / "models" / "linked.pt")
    assert check_weights(network(), link, settings())["trained_on"] == trained_on(4, 0)
    record_file(model).unlink()
    assert check_weights(network(), link) is None


@pytest.mark.parametrize("reference", ["@mine", "$@mine"])
def test_a_network_defined_elsewhere_is_recorded_or_refused(reference, tmp_path):
    """If the arguments of the network cannot be read, a record would be wrong."""
    mine = {"_target_": "scripts.networks.PriorAttentionNet", "channels": CHANNELS, "head": "parallel"}
    place = {"dataset_dir": str(tmp_path), "mine": mine}
    parser = initialized("inference.json", kind="infer", **place, network_def=reference).parser
    if reference == "@mine":
        arguments = parser.get_parsed_content("weights_settings")["network"]["arguments"]
        assert (arguments["channels"], arguments["head"]) == (CHANNELS, "parallel")
        return
    with pytest.raises(RuntimeError) as caught:
        parser.get_parsed_content("weights_settings")
    assert "write it as a component with _target_" in str(caught.value.__cause__)


def test_all_differences_are_named_at_once(tmp_path):
    path = saved(tmp_path / "model.pt", spacing=[2.0] * 3, exclusive=True)
    with pytest.raises(InputError, match=r"voxels of 2 .* It was also trained with classes that exclude each other"):
        check_weights(network(), str(path), settings())


def test_a_training_starts_from_other_weights_with_a_word_but_not_from_another_order(tmp_path, caplog):
    path = saved(tmp_path / "model.pt", spacing=[2.0] * 3, exclusive=True)
    check_start(path, settings())
    assert caplog.messages == [
        f"{path} was trained with voxels of 2 x 2 x 2 mm, not 1 x 1 x 1.",
        f"{path} was trained with classes that exclude each other (softmax), not regions that overlap.",
    ]
    path = saved(tmp_path / "other.pt", sequences=["t1", "t1ce", "t2", "flair"])
    with pytest.raises(InputError, match=r"other\.json\) it has channels in the order t1, t1ce, t2, flair"):
        check_start(path, settings())


# Settings that go with the weights.


SGD = {**THRESHOLDS, "min_et_mm3": 500, "et_per_component": True}
WORKFLOWS = {
    ("inference.json",): "infer",
    ("train.json", "evaluate.json"): "train",
    ("train.json", "train_starter.yaml", "evaluate.json"): "train",
}


@pytest.mark.parametrize("names", WORKFLOWS)
@pytest.mark.parametrize(
    ("changes", "wanted"),
    [
        ({}, SGD),
        ({"thresholds#min_et_mm3": 300}, {**SGD, "min_et_mm3": 300}),
        ({"thresholds#min_et_mm3": 0, "thresholds#et_per_component": False}, {**THRESHOLDS, "min_et_mm3": 0}),
        ({"thresholds": THRESHOLDS}, THRESHOLDS),
        ({"model_file": "absent.pt"}, THRESHOLDS),
        (
            {"model_file": "absent.pt", "thresholds#min_tumor_probability": 0.5},
            {**THRESHOLDS, "min_tumor_probability": 0.5},
        ),
    ],
)
def test_what_is_set_beats_the_record_which_beats_the_authors_values(names, changes, wanted, tmp_path):
    sgd = saved(tmp_path / "sgd.pt", thresholds=SGD)
    place = {"model_file": str(sgd), "dataset_dir": str(tmp_path), "output_dir": str(tmp_path / "out"), **changes}
    parser = initialized(*names, kind=WORKFLOWS[names], **place).parser
    assert parser.get_parsed_content("thresholds") == wanted
    assert parser.get_parsed_content("label_map").thresholds == wanted
    assert parser.get_parsed_content("weights_settings")["thresholds"] == wanted


def test_an_overlay_over_an_evaluation_beats_the_record(model, tmp_path):
    place = {"model_file": str(model), "dataset_dir": str(tmp_path), "output_dir": str(tmp_path / "out")}
    parser = initialized("train.json", "evaluate.json", "train_sgd.yaml", kind="train", **place).parser
    assert parser.get_parsed_content("thresholds") == {**THRESHOLDS, "min_et_mm3": 500}


def test_a_record_of_other_weights_gives_no_thresholds(model, tmp_path):
    saved(tmp_path / "sgd.pt", 1, thresholds=SGD)
    shutil.copy(tmp_path / "sgd.json", tmp_path / "model.json")
    assert thresholds_in_use(str(model)) == THRESHOLDS


def test_thresholds_of_an_ensemble_must_agree(tmp_path):
    members = [str(saved(tmp_path / f"{seed}.pt", seed)) for seed in (0, 1)]
    assert thresholds_in_use([*members, "absent.pt"]) == THRESHOLDS
    saved(Path(members[1]), 1, thresholds={**THRESHOLDS, "min_et_mm3": 500})
    said = r"1\.json: min_et_mm3 is 500, but 300 in .*0\.json; set --thresholds#min_et_mm3\.$"
    # Setting it, as the message says, is enough, because the members agree in the other thresholds.
    place = {"model_file": members, "dataset_dir": str(tmp_path), "network_def#channels": CHANNELS}
    names = ("inference.json", "ensemble.yaml")
    parser = initialized(*names, kind="infer", **place, **{"thresholds#min_et_mm3": 400}).parser
    assert parser.get_parsed_content("label_map").thresholds == {**THRESHOLDS, "min_et_mm3": 400}
    with pytest.raises(RuntimeError) as caught:
        initialized(*names, kind="infer", **place).parser.get_parsed_content("postprocessing")
    assert re.search(said, str(input_error_behind(caught.value)))


@pytest.mark.parametrize("names", WORKFLOWS)
def test_a_threshold_that_is_none_is_refused_before_a_case_is_read(names, tmp_path):
    place = {"dataset_dir": str(tmp_path / "absent"), "output_dir": str(tmp_path / "out"), "thresholds#min_et_mm": 5}
    with pytest.raises(RuntimeError) as caught:
        bundle_run(*names, **place, **{"network_def#channels": CHANNELS})
    said = "--thresholds#min_et_mm 5: no such threshold; choose one of min_component_mm3, "
    assert str(input_error_behind(caught.value)) == f"{said}min_tumor_probability, min_et_mm3, et_per_component."
    assert not (tmp_path / "out").exists()


def test_the_configurations_state_one_set_of_thresholds():
    """Three files state the thresholds, because MONAI's consumers read each of them alone."""
    train, evaluate, inference = (
        json.loads((CONFIGS / f"{name}.json").read_text()) for name in ("train", "evaluate", "inference")
    )
    assert train["thresholds"] == THRESHOLDS
    assert evaluate["thresholds"] == inference["thresholds"]
    assert all(evaluate["thresholds"][name] is None for name in THRESHOLDS)


# The commands.


@pytest.mark.parametrize(
    ("changes", "overlays", "said"),
    [
        ({"spacing": [2.0, 2.0, 2.0]}, (), 'voxels of 4 x 4 x 4 mm, not 2 x 2 x 2; add --spacing "[4.0, 4.0, 4.0]".'),
        ({"exclusive": True}, (), "regions that overlap, not classes that exclude each other; leave out"),
        ({}, ("authors.yaml",), "sequences normalized over: brain, not: volume; leave out the overlay"),
        ({"network_def#act": "relu"}, (), 'another network (act ["prelu", {"init": 0.25}]); add --network_def#act'),
    ],
)
def test_inference_refuses_another_use_of_weights_in_one_line(training, cohort, tmp_path, changes, overlays, said):
    arguments = {"dataset_dir": cohort, "output_dir": tmp_path / "out", "model_file": training / "model.pt"}
    arguments |= {"bundle_root": ROOT, **SIZE, **changes}
    flat = [text for key, value in arguments.items() for text in (f"--{key}", str(value))]
    names = str(files("inference.json", *overlays))
    done = command("monai.bundle", "run", "--config_file", names, *flat, cwd=tmp_path)
    assert done.returncode != 0
    lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1 and said in lines[0], done.stderr[-2000:]
    assert not (tmp_path / "out").exists()


def test_evaluation_refuses_another_use_of_weights(training, cohort, tmp_path):
    place = {"dataset_dir": str(cohort), "output_dir": str(tmp_path), "model_file": str(training / "model.pt")}
    with pytest.raises(RuntimeError) as caught:
        bundle_run("train.json", "evaluate.json", "authors.yaml", **place, **SIZE)
    assert "normalized over: brain, not: volume" in str(caught.value.__cause__)


def test_a_run_says_what_it_used_and_that_it_departs_from_the_record(training, cohort, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    case = next(cohort.rglob("BraTS20_Training_001"))
    place = {"dataset_dir": str(case), "output_dir": str(tmp_path / "out"), "model_file": str(training / "model.pt")}
    bundle_run("inference.json", **place, **SIZE, **{"thresholds#min_et_mm3": 50})
    assert "--thresholds#min_et_mm3 50, where the weights' record says 300" in caplog.messages
    used = json.loads((tmp_path / "out" / "run.json").read_text())["thresholds"]
    assert used == {**THRESHOLDS, "min_et_mm3": 50}
    assert not [message for message in caplog.messages if re.search("no record|record of other", message)]
