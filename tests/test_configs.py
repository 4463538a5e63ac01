# Copyright (c) the brats_mri_panet_segmentation authors
# SPDX-License-Identifier: Apache-2.0
"""The configurations as they lie: nothing dead, nothing defined twice unequally, loadable with and without data."""

import inspect
import json
import os
import re
from pathlib import Path
from pydoc import locate

import pytest
import yaml
from monai.bundle import ComponentLocator, ConfigParser, ConfigWorkflow
from scripts.scores.table import EXPECTED, SCORES, VOLUMES, columns_of
from scripts.workflow.settings import READ_BY_MONAI
from tiny import make_cases
from workflows import listed

ROOT = Path(__file__).parent.parent
CONFIGS = ROOT / "configs"


def read(name: str) -> dict:
    text = (CONFIGS / name).read_text(encoding="utf-8")
    return json.loads(text) if name.endswith(".json") else yaml.safe_load(text)


def workflow(names: list[str], kind: str, **override) -> ConfigWorkflow:
    made = ConfigWorkflow([str(CONFIGS / name) for name in names], workflow_type=kind, logging_file=False, **override)
    made.initialize()
    return made


@pytest.mark.parametrize("name", ["train.json", "inference.json"])
def test_every_top_level_key_is_read(name):
    """By another key, by MONAI, or by what prepares and publishes a run."""
    config = read(name)
    text = json.dumps([config, read("evaluate.json") if name == "train.json" else {}])
    code = "".join(file.read_text() for file in (ROOT / "scripts" / "workflow").glob("*.py"))
    by_code = set(re.findall(r'\bget\("(\w+)"', code)) | {"datalist_file", "channel_order"}
    unread = [key for key in config if key not in READ_BY_MONAI | by_code and not re.search(rf"@{key}\b", text)]
    assert unread == []


# What an overlay lies over, by the beginning of its name.
BASES = {
    "train": [["train.json"]],
    "evaluate": [["train.json", "evaluate.json"]],
    "inference": [["inference.json"]],
    "network": [["train.json"], ["train.json", "evaluate.json"], ["inference.json"]],
    "multi_gpu_train": [["train.json"]],
    "train_starter_patients": [["train.json", "train_starter.yaml"]],
    **{
        name: [["train.json", "evaluate.json"], ["inference.json"]]
        for name in (
            "multi_gpu_evaluate",
            "whole_brain",
            "tta",
            "openvino",
            "authors",
            "ensemble",
            "starter",
            "missing_sequence",
        )
    },
}
# The file of a study lists variants and overlays, and is none itself; tests/lab/studies/test_plan.py reads it.
OVERLAYS = sorted(
    path.name
    for path in CONFIGS.iterdir()
    if (path.suffix == ".yaml" or path.name.startswith("multi_gpu")) and not path.name.startswith("study")
)


def bases(overlay: str) -> list[list[str]]:
    stem = overlay.rsplit(".", 1)[0]
    return BASES[stem if stem in BASES else stem.split("_")[0]]


def takes(target: str | None, argument: str) -> bool:
    """Whether a component has an argument of this name."""
    if target is None:
        return False
    module = "" if "." in target else f"{ComponentLocator().get_component_module_name(target)}."
    return argument in inspect.signature(locate(module + target)).parameters


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_overlays_change_what_exists_and_only_that(overlay):
    content = read(overlay)
    text = json.dumps(content)
    for names in bases(overlay):
        base = ConfigParser.load_config_files([str(CONFIGS / name) for name in names])
        for flat, value in content.items():
            added = flat.startswith("+")
            *parents, last = flat.removeprefix("+").split("#")
            node = base
            for part in parents:
                assert part in node, f"{overlay}: {flat} is not in the configuration below it"
                node = node[part]
                node = dict(zip(map(str, range(len(node))), node, strict=True)) if isinstance(node, list) else node
            # New are only arguments that the target takes, and what this overlay itself reads or MONAI does.
            other_target = "#".join([*parents, "_target_"]) in content
            new = (
                other_target
                or (parents and takes(node.get("_target_"), last))
                or re.search(rf"@{re.escape(flat)}\b", text)
                or flat in READ_BY_MONAI
            )
            assert last in node or new, f"{overlay}: {flat} is not in the configuration below it"
            assert not added or isinstance(node.get(last), list), f"{overlay}: {flat} adds to what is no list"
            assert value != node.get(last), f"{overlay}: {flat} states what is so anyway"
            # YAML takes 1e-2 for text.
            assert not (isinstance(value, str) and re.fullmatch(r"[\d.]+e[-+]?\d+", value)), flat


@pytest.mark.parametrize("overlay", [name for name in OVERLAYS if name.endswith(".yaml")])
def test_overlays_begin_with_their_reason(overlay):
    assert (CONFIGS / overlay).read_text(encoding="utf-8").startswith("# ")


def test_the_table_of_configurations_is_complete():
    text = (ROOT / "docs" / "reference.md").read_text(encoding="utf-8")
    table = re.findall(r"^\| `([\w.]+)`(?:, `([\w.]+)`)* \|", text, re.MULTILINE)
    named = set(
        re.findall(r"`([a-z_0-9]+\.(?:json|yaml|conf))`", "".join(re.findall(r"^\|[^|]*\|", text, re.MULTILINE)))
    )
    assert table and named == {path.name for path in CONFIGS.iterdir()}


def test_the_table_of_keys_is_complete():
    """Every key at the top of the configurations that holds a plain value is explained, and no other."""
    text = (ROOT / "docs" / "reference.md").read_text(encoding="utf-8")
    section = text.split("## Keys for the command line")[1].split("\n## ")[0]
    named = set(re.findall(r"`([a-z_]+)`", "".join(re.findall(r"^\|[^|]*\|", section, re.MULTILINE))))
    found = [entry for name in ("train.json", "evaluate.json", "inference.json") for entry in read(name).items()]
    plain = [(k, v) for k, v in found if "#" not in k and not isinstance(v, dict) and k != "image_transforms"]
    # Neither an expression nor a list of components.
    keys = {k for k, v in plain if not (isinstance(v, str) and v[0] in "$@") and "_target_" not in str(v)}
    keys |= {"dataset_dir", "output_dir", "device", "amp", "amp_dtype", "channels_last", "roi_size", "model_file"}
    internal = READ_BY_MONAI | {"bundle_root", "rank", "world_size", "label_map_dir", "save_label_maps"}
    assert named == keys - internal


# In what the two differ that have a name in common: where results go, where windows and thresholds come from, and what
# one of them has besides.
OWN = {"output_dir", "num_workers", "roi_size", "thresholds", "run"}


def without_reasons(node):
    if isinstance(node, dict):
        return {key: without_reasons(value) for key, value in node.items() if key != "_desc_"}
    return [without_reasons(value) for value in node] if isinstance(node, list) else node


def test_what_training_and_inference_both_name_is_the_same():
    """The network, the preprocessing, the windows, the post-processing: an overlay may then lie over either."""
    train, inference = read("train.json"), read("inference.json")
    shared = set(train) & set(inference)
    assert shared >= {"network_def", "reader", "image_transforms", "windows", "flips", "inferer", "activation"}
    assert shared >= {"label_map", "spacing", "overlap", "window_weighting", "exclusive", "edema_last", *OWN}
    assert [k for k in sorted(shared - OWN) if without_reasons(train[k]) != without_reasons(inference[k])] == []
    assert train["roi_size"] == "@patch_size"
    assert train["patch_size"] == inference["roi_size"]
    assert train["run"][0] == inference["run"][0] == read("evaluate.json")["run"][0]
    assert train["run"][0]["_target_"] == "scripts.workflow.preparation.prepare"


def test_evaluation_and_inference_load_their_weights():
    assert read("evaluate.json")["load_pretrain"] is read("inference.json")["load_pretrain"] is True


def test_validation_prepares_images_as_inference_does():
    train, inference = read("train.json"), read("inference.json")
    assert inference["preprocessing"] == {"_target_": "Compose", "transforms": "@image_transforms"}
    assert train["validate"]["preprocessing"]["transforms"] == "$@image_transforms + @validate#label_transforms"
    assert all(step["keys"] == "label" for step in train["validate"]["label_transforms"])
    assert train["validate"]["inferer"] == "@inferer"
    # Up to the label map, and after what only one of them has.
    steps = [[without_reasons(s) for s in c["postprocessing"]["transforms"]] for c in (train["validate"], inference)]
    own = ("ToNativeGridd", "SaveRegionMapsd", "SaveImageByCased", "CropToLesiond", "LabelsToRegionsd")
    for transforms in steps:
        transforms[:] = [s for s in transforms if isinstance(s, str) or s["_target_"].split(".")[-1] not in own]
    assert (
        steps[0][2].pop("transform") == "@validate#preprocessing" and steps[1][2].pop("transform") == "@preprocessing"
    )
    # An evaluation measures how certain its label maps are, by the same step as an inference; a validation does not.
    assert steps[0].pop() == "@validate#label_map" and train["validate"]["label_map"] == "@label_map"
    assert [steps[1].pop(-2), steps[1].pop()] == read("evaluate.json")["validate#label_map"]["transforms"]
    assert read("evaluate.json")["certainty"] == inference["certainty"]
    assert steps[0] == steps[1]


def steps(node, target: str):
    children = node.values() if isinstance(node, dict) else node if isinstance(node, list) else []
    if isinstance(node, dict) and node.get("_target_") == target:
        yield node
    for child in children:
        yield from steps(child, target)


def test_every_image_is_read_in_the_networks_order_and_every_label_by_one_convention():
    """Without the reader a four-dimensional file would be taken in its own order, and nothing would tell."""
    names = {path.name for path in CONFIGS.iterdir() if path.suffix in (".json", ".yaml")} - {"metadata.json"}
    loaders = [
        (name, step) for name in sorted(names) for step in steps(read(name), "scripts.data.images.LoadImageByReaderd")
    ]
    assert {name for name, _ in loaders} == {"train.json", "inference.json"}
    assert all(step["reader"] == "@reader" for _, step in loaders)
    assert not [name for name in names if list(steps(read(name), "LoadImaged"))], "MONAI's falls back to other readers"
    for name in names:
        for step in steps(read(name), "scripts.data.transforms.LabelsToRegionsd"):
            assert step["keys"] == "pred" or step["default_et_label"] == "@saved_et_label", name
            # Values are checked at this step, or at another before it by the same convention.
            checks = steps(read(name), "scripts.data.transforms.CheckLabelsd")
            assert step.get("check", True) or [check["default_et_label"] for check in checks] == ["@saved_et_label"]


def test_recipe_is_the_authors():
    config = read("train.json")
    assert (config["max_epochs"], config["warmup_epochs"], config["flat_epochs"]) == (100, 5, 35)
    assert (config["learning_rate"], config["optimizer"]["weight_decay"], config["seed"]) == (1e-3, 1e-5, 512)
    assert (config["batch_size"], config["patch_size"], config["val_interval"]) == (1, [128] * 3, 2)
    by_name = {step["_target_"]: step for step in listed(config, "train#preprocessing#transforms")}
    assert by_name["RandAxisFlipd"]["prob"] == by_name["RandScaleIntensityd"]["prob"] == 0.5
    assert by_name["RandScaleIntensityd"]["factors"] == by_name["RandShiftIntensityd"]["offsets"] == 0.1
    # Of the same statistics as Rand3DElasticd's (test_augmentation.py).
    elastic = by_name["scripts.training.augmentation.RandFastElasticd"]
    assert (elastic["sigma_range"], elastic["magnitude_range"], elastic["prob"]) == ([1, 20], [0.3, 2.3], 0.5)
    assert elastic["mode"] == ["bilinear", "nearest"]
    assert elastic["rotate_range"] == pytest.approx([0.5236] * 3)


def test_metadata_has_what_the_specification_asks_for_and_the_pinned_versions():
    metadata = read("metadata.json")
    for key in ("version", "changelog", "monai_version", "pytorch_version", "numpy_version", "task", "description"):
        assert metadata[key], key
    for key in ("required_packages_version", "authors", "copyright", "network_data_format", "name", "schema"):
        assert metadata[key], key
    assert "optional_packages_version" not in metadata
    assert metadata["version"] in metadata["changelog"]
    for side, name in (("inputs", "image"), ("outputs", "pred")):
        block = metadata["network_data_format"][side][name]
        keys = {"type", "format", "num_channels", "spatial_shape", "dtype", "value_range", "is_patch_data"}
        assert keys | {"channel_def"} <= set(block)
        assert len(block["channel_def"]) == block["num_channels"] == 4
    pins = dict(re.findall(r"^([\w-]+)==([\w.]+)", (ROOT / "requirements.txt").read_text(), re.MULTILINE))
    assert metadata["monai_version"] == pins["monai"]
    assert metadata["pytorch_version"] == pins["torch"]
    assert metadata["numpy_version"] == pins["numpy"]
    for package, version in metadata["required_packages_version"].items():
        assert pins[package] == version
    assert json.loads((ROOT / "metadata.json").read_text()) == metadata


@pytest.mark.parametrize(
    ("names", "kind"),
    [(["train.json"], "train"), (["train.json", "evaluate.json"], "train"), (["inference.json"], "infer")],
)
@pytest.mark.parametrize("with_data", [True, False])
def test_properties_are_complete_with_and_without_data(names, kind, with_data, cohort, tmp_path):
    data = cohort if with_data else tmp_path / "absent"
    made = workflow(names, kind, bundle_root=str(ROOT), dataset_dir=str(data), output_dir=str(tmp_path / "out"))
    assert made.check_properties() == []
    if kind == "train":
        expected = {"train.json": (2, 1), "evaluate.json": (2, 1)}[names[-1]] if with_data else (0, 0)
        assert (len(made.train_dataset_data), len(made.val_dataset_data)) == expected
    else:
        assert len(made.dataset) == (3 if with_data else 0)
    # Constructing leaves nothing behind: no folder, no event file.
    assert not (tmp_path / "out").exists()


def test_properties_can_be_set():
    made = workflow(["train.json"], "train", bundle_root=str(ROOT), num_workers=0)
    made.max_epochs = 7
    made.initialize()
    assert made.trainer.state.max_epochs == 7
    assert made.parser.get_parsed_content("lr_scheduler").max_epochs == 7


@pytest.mark.parametrize(
    "names", [["train.json"], ["train.json", "evaluate.json"], ["inference.json", "inference_pipelined.yaml"]]
)
@pytest.mark.parametrize(("free", "workers"), [(1, 1), (2, 2), (16, 4)])
def test_no_more_workers_load_cases_than_there_are_processors(names, free, workers, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(free)))
    parser = ConfigParser()
    parser.read_config([str(CONFIGS / name) for name in names])
    assert parser.get_parsed_content("num_workers") == workers
    # A number on the command line counts as it is.
    parser["num_workers"] = 7
    assert parser.get_parsed_content("num_workers") == 7


@pytest.mark.parametrize("cases", ["all", "validation"])
def test_an_evaluation_of_all_cases_makes_no_split(cases, tmp_path, caplog):
    data = make_cases(tmp_path / "data", 5)
    place = {"bundle_root": str(ROOT), "dataset_dir": str(data), "output_dir": str(tmp_path / "out")}
    made = workflow(["train.json", "evaluate.json"], "train", **place, num_workers=0, cases=cases)
    assert len(made.val_dataset_data) == {"all": 5, "validation": 1}[cases]
    assert ("there is no split, so a new one is made" in caplog.text) == (cases == "validation")


@pytest.mark.parametrize("lesion_wise", [False, True])
def test_every_metric_of_an_evaluation_is_in_the_table_of_scores(lesion_wise):
    parser = ConfigParser()
    parser.read_config([str(CONFIGS / name) for name in ("train.json", "evaluate.json")])
    parser["lesion_wise"] = lesion_wise
    metrics = [handler.metric_fn for handler in parser.get_parsed_content("validate#additional_metrics").values()]
    dice, *others = metrics
    assert dice.return_with_label == [f"val_{column}" for column in columns_of(["dice"])]
    found = ["dice", *(name for metric in others for name in metric.scores), *VOLUMES, *EXPECTED]
    lesion_scores = ["lesion_dice", "lesion_hd95"]
    assert found == [name for name in SCORES if lesion_wise or name not in lesion_scores]
