# Copyright (c) the brats_mri_panet_segmentation authors
# SPDX-License-Identifier: Apache-2.0
"""MONAI's commands run every mode that an overlay or a setting offers on small cases, with the expected results."""

import importlib.util
import json
import logging
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
import torch.nn as nn
from monai.bundle import ckpt_export
from monai.data.utils import dense_patch_slices
from scripts.networks import AttentionUNet, CascadedUNet, DynUNet, PriorAttentionNet, SegResNet, SwinUNETR
from scripts.networks.blocks import InstanceNorm3d
from scripts.utils.errors import input_error_behind
from workflows import CHANNELS, CONFIGS, ROOT, SIZE, TRAINING_SIZE, bundle_run, files, initialized, rows, voxels

TRAINING = {**TRAINING_SIZE, "max_epochs": 2, "val_interval": 1, "flat_epochs": 1}
EVALUATION = {key: value for key, value in TRAINING.items() if key not in ("max_epochs", "val_interval")}
FIRST = "BraTS20_Training_001"


def without(settings: dict, *keys: str) -> dict:
    return {key: value for key, value in settings.items() if key not in keys}


def train(cohort: Path, output: Path, *overlays: str, **settings) -> dict:
    """Train in a few seconds and return the trainer's state."""
    chosen = {**TRAINING, **settings}
    bundle_run("train.json", *overlays, dataset_dir=str(cohort), output_dir=str(output), **chosen)
    return torch.load(output / "trainer_state.pt", weights_only=True)


def infer(cohort: Path, output: Path, *overlays: str, **settings) -> Path:
    """Segment one case or all cases and return the folder of the label maps."""
    chosen = {**SIZE, **settings}
    bundle_run("inference.json", *overlays, dataset_dir=str(cohort), output_dir=str(output), **chosen)
    return output


def refused(*names: str, **settings) -> str:
    """Return the line with which a run refuses its settings."""
    with pytest.raises(RuntimeError) as caught:
        bundle_run(*names, **settings)
    error = input_error_behind(caught.value)
    assert error is not None, caught.value
    assert "\n" not in str(error)
    return str(error)


def weights(path: Path) -> dict[str, torch.Tensor]:
    return torch.load(path, weights_only=True)


def datalist(output: Path) -> dict[str, list[str]]:
    content = json.loads((output / "datalist.json").read_text())
    return {name: [item["case"] for item in content[name]] for name in ("training", "validation")}


@pytest.fixture(scope="module")
def trained(small_cohort, tmp_path_factory) -> Path:
    """The folder of a training of the plain network for two epochs."""
    output = tmp_path_factory.mktemp("modes") / "trained"
    train(small_cohort, output)
    return output


@pytest.fixture(scope="module")
def members(small_cohort, tmp_path_factory) -> list[str]:
    """Model files of two networks with different weights, whose maps are neither empty nor alike."""
    folder = tmp_path_factory.mktemp("members")
    paths = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        network = PriorAttentionNet(channels=CHANNELS)
        torch.save(network.state_dict(), folder / f"{seed}.pt")
        paths.append(str(folder / f"{seed}.pt"))
    return paths


# Training, evaluation and inference by name, as `run training` and so on.

WORKFLOWS = {
    "training": ("train.json",),
    "evaluation": ("train.json", "evaluate.json"),
    "inference": ("inference.json",),
}


def test_each_workflow_runs_by_its_name(trained, small_cohort, tmp_path):
    place = {"dataset_dir": str(small_cohort), "output_dir": str(tmp_path / "run")}
    bundle_run(*WORKFLOWS["training"], **place, **TRAINING, run_id="training")
    bundle_run(*WORKFLOWS["evaluation"], **place, **EVALUATION, run_id="evaluation")
    infer(small_cohort, tmp_path / "maps", model_file=str(tmp_path / "run" / "model.pt"), run_id="inference")
    # A plain `run` does the same.
    ours, theirs = (weights(folder / "model_last.pt") for folder in (tmp_path / "run", trained))
    assert all(torch.equal(value, theirs[name]) for name, value in ours.items())
    (case,) = datalist(tmp_path / "run")["validation"]
    scored = voxels(tmp_path / "run" / "evaluation_validation" / f"{case}.nii.gz")
    assert np.array_equal(voxels(tmp_path / "maps" / f"{case}.nii.gz"), scored)


@pytest.mark.parametrize(
    ("name", "workflow", "wanted"),
    [
        ("training", "evaluation", "train.json"),
        ("training", "inference", "train.json"),
        ("evaluation", "training", "train.json and evaluate.json"),
        ("inference", "training", "inference.json"),
        ("inference", "evaluation", "inference.json"),
    ],
)
def test_a_name_of_another_workflow_is_refused(name, workflow, wanted, small_cohort, tmp_path):
    place = {"dataset_dir": str(small_cohort), "output_dir": str(tmp_path / "run")}
    said = refused(*WORKFLOWS[workflow], **place, run_id=name)
    assert said == f"run {name}: these files are of another workflow; write run {workflow}, or give {wanted}."
    assert not (tmp_path / "run").exists()


# Training.


def test_all_cases_without_validation(small_cohort, tmp_path):
    settings = {"dataset_dir": str(small_cohort), "output_dir": str(tmp_path / "run")}
    bundle_run("train.json", **settings, **{**TRAINING, "validation_fraction": 0, "val_interval": 0})
    state = weights(tmp_path / "run" / "trainer_state.pt")
    split = datalist(tmp_path / "run")
    assert (len(split["training"]), split["validation"]) == (6, [])
    assert (state["epoch"], state["iteration"], state["best_metric"]) == (2, 12, None)
    best, last = weights(tmp_path / "run" / "model.pt"), weights(tmp_path / "run" / "model_last.pt")
    assert all(torch.equal(best[name], last[name]) for name in last)
    place = {"dataset_dir": str(small_cohort), "output_dir": str(tmp_path / "run")}
    said = refused("train.json", "evaluate.json", **place, **EVALUATION)
    assert said.endswith("no case for validation; choose --cases all.")


def test_folds_hold_out_every_case_once(small_cohort, tmp_path):
    held_out, trained_on = [], []
    for fold in range(3):
        settings = {"dataset_dir": str(small_cohort), "folds": 3, "fold": fold}
        made = initialized("train.json", kind="train", **settings)
        assert made.parser.get_parsed_content("output_dir") == str(ROOT / "runs" / f"fold_{fold}")
        held_out += [item["case"] for item in made.val_dataset_data]
        trained_on += [item["case"] for item in made.train_dataset_data]
        assert not {item["case"] for item in made.val_dataset_data} & {i["case"] for i in made.train_dataset_data}
    cases = sorted(path.name for path in small_cohort.iterdir())
    assert sorted(held_out) == cases
    assert sorted(trained_on) == sorted(2 * cases)


def test_one_fold_is_trained_and_evaluated_on_its_held_out_cases(small_cohort, tmp_path):
    train(small_cohort, tmp_path / "run", fold=1, folds=3)
    held_out = datalist(tmp_path / "run")["validation"]
    assert len(held_out) == 2
    place = {"dataset_dir": str(small_cohort), "output_dir": str(tmp_path / "run"), "fold": 1, "folds": 3}
    bundle_run("train.json", "evaluate.json", **place, **EVALUATION)
    assert sorted(rows(tmp_path / "run" / "evaluation_validation" / "scores.csv")) == held_out


def test_evaluating_another_fold_than_was_trained_is_refused(small_cohort, tmp_path):
    train(small_cohort, tmp_path / "run", fold=1, folds=3, max_epochs=1)
    place = {"dataset_dir": str(small_cohort), "output_dir": str(tmp_path / "run"), "fold": 2, "folds": 3}
    said = refused("train.json", "evaluate.json", **place, **EVALUATION)
    assert said.endswith(
        "datalist.json: not the split of fold 2 of 3; give that fold's --output_dir, or leave out --fold to take this "
        "split."
    )


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"fold": 5}, "--fold 5: there are the folds 0 to 4; choose one, or change --folds."),
        ({"fold": -1}, "--fold -1: there are the folds 0 to 4; choose one, or change --folds."),
        ({"fold": 0, "folds": 7}, "--folds 7: 6 labeled cases make 2 to 6 folds."),
    ],
)
def test_an_unknown_fold_is_refused(small_cohort, tmp_path, settings, said):
    place = {"dataset_dir": str(small_cohort), "output_dir": str(tmp_path / "run")}
    assert refused("train.json", **place, **TRAINING, **settings) == said
    assert not (tmp_path / "run").exists()


def test_a_fold_of_a_list_that_is_split_already_is_refused(small_cohort, tmp_path):
    mine = tmp_path / "mine.json"
    mine.write_text(json.dumps({"training": [], "validation": []}))
    place = {"dataset_dir": str(small_cohort), "output_dir": str(tmp_path / "run"), "datalist_file": str(mine)}
    said = f"--fold 1: {mine} holds a split; leave out --fold or --datalist_file."
    assert refused("train.json", **place, **TRAINING, fold=1) == said
    assert not (tmp_path / "run").exists()


def test_sgd_recipe(small_cohort, tmp_path):
    state = train(small_cohort, tmp_path / "run", "train_sgd.yaml")
    (group,) = state["optimizer"]["param_groups"]
    assert (group["momentum"], group["nesterov"], group["weight_decay"]) == (0.99, True, 5e-4)
    assert group["initial_lr"] == 1e-2
    assert all(set(kept) == {"momentum_buffer"} for kept in state["optimizer"]["state"].values())
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert config["thresholds"]["min_et_mm3"] == 500


def test_half_precision(small_cohort, tmp_path):
    """A CPU trains in float32 with this option; tests/test_devices.py checks the scaled loss of a GPU."""
    state = train(small_cohort, tmp_path / "run", amp_dtype="float16")
    assert state["epoch"] == 2
    place = {"dataset_dir": str(small_cohort), "output_dir": str(tmp_path / "mixed"), "device": "cpu", "amp": True}
    said = refused("train.json", **place, **TRAINING, amp_dtype="float16")
    assert said.startswith("--amp_dtype float16: a CPU mixes precision in bfloat16 only")


@pytest.mark.parametrize("how", ["deterministic", "benchmark", "fast"])
def test_deterministic_or_fast(how, tmp_path):
    benchmark, fast = how != "deterministic", how == "fast"
    overlays = ["train_fast.yaml"] if fast else []
    changes = {"deterministic": False} if how == "benchmark" else {}
    made = initialized("train.json", *overlays, kind="train", amp=False, dataset_dir=str(tmp_path / "none"), **changes)
    with pytest.raises(RuntimeError) as caught:
        made.run()
    assert "no such folder" in str(input_error_behind(caught.value)), "the cases are checked last"
    network, optimizer = made.parser.get_parsed_content("network"), made.parser.get_parsed_content("optimizer")
    assert (torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic) == (benchmark, not benchmark)
    assert made.trainer.inferer.inferer.enabled == fast
    # A weight with one voxel or one channel has both layouts at once, so it tells nothing.
    weights = [weight for weight in network.parameters() if weight.dim() == 5 and min(weight.shape) > 1]
    assert {weight.is_contiguous() for weight in weights} == {not fast} and len(weights) > 10
    # The optimizer holds the weights in their new layout.
    held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    assert {id(weight) for weight in weights} <= held


NETWORKS = {
    ("norm", "batch"): (nn.BatchNorm3d, {nn.PReLU}),
    # Only the first block has ReLU.
    ("norm", "group"): (nn.GroupNorm, {nn.PReLU, nn.ReLU}),
    ("act", "relu"): (InstanceNorm3d, {nn.ReLU}),
}


@pytest.mark.parametrize("argument", NETWORKS, ids="=".join)
@pytest.mark.lab
def test_networks_train_evaluate_and_infer_by_one_option(argument, small_cohort, tmp_path):
    option = {f"network_def#{argument[0]}": argument[1]}
    train(small_cohort, tmp_path / "run", max_epochs=1, **option)
    place = {"dataset_dir": str(small_cohort), "output_dir": str(tmp_path / "run")}
    bundle_run("train.json", "evaluate.json", **place, **EVALUATION, **option)
    model = str(tmp_path / "run" / "model.pt")
    infer(small_cohort, tmp_path / "maps", model_file=model, **option)
    (case,) = datalist(tmp_path / "run")["validation"]
    scored = voxels(tmp_path / "run" / "evaluation_validation" / f"{case}.nii.gz")
    assert np.array_equal(voxels(tmp_path / "maps" / f"{case}.nii.gz"), scored)
    # The layers outside the head are those of the option. The head has batch normalization and PReLU in every network.
    made = initialized("inference.json", kind="infer", **SIZE, **option)
    norm, acts = NETWORKS[argument]
    norms = {nn.BatchNorm3d, nn.GroupNorm, nn.InstanceNorm3d, InstanceNorm3d}
    for wanted, inside in (({norm}, acts), False), (({nn.BatchNorm3d}, {nn.PReLU}), True):
        kinds = {type(m) for name, m in made.network_def.named_modules() if name.startswith("head") == inside}
        assert (kinds & norms, kinds & {nn.PReLU, nn.ReLU}) == wanted
    said = refused("inference.json", dataset_dir=str(small_cohort), model_file=model, **SIZE)
    assert "it was trained with another network (" in said


SMALL_DYNUNET = {
    "network_def#filters": [4, 4, 8, 8],
    "network_def#strides": [1, 2, 2, 2],
    "network_def#deep_supr_num": 2,
}
SMALL_UNET = {"network_def#channels": CHANNELS}
WITHOUT_PRIOR = {**SMALL_UNET, "network_def#prior_attention": False}
# For each network that PANet is compared with, by its overlay or its name: its class, the settings that make it, small,
# and its maps in training.
COMPARED = {
    "U-Net": (PriorAttentionNet, {**WITHOUT_PRIOR, "network_def#deep_supervision": False}, {"out"}),
    "enhanced U-Net": (PriorAttentionNet, WITHOUT_PRIOR, {"out", "level1", "level2", "level3"}),
    "network_attention_unet.yaml": (AttentionUNet, SMALL_UNET, {"out"}),
    "network_cascaded_unet.yaml": (CascadedUNet, SMALL_UNET, {"out", "prior"}),
    "network_segresnet.yaml": (SegResNet, {"network_def#init_filters": 8}, {"out"}),
    "network_dynunet.yaml": (DynUNet, SMALL_DYNUNET, {"out", "level1", "level2"}),
    "residual DynUNet": (DynUNet, {**SMALL_DYNUNET, "network_def#res_block": True}, {"out", "level1", "level2"}),
    "network_swin_unetr.yaml": (
        SwinUNETR,
        {"network_def#feature_size": 12, "roi_size": [64, 64, 64], "patch_size": [64, 32, 32]},
        {"out"},
    ),
}


def overlays_of(name: str) -> list[str]:
    return ["network_dynunet.yaml"] if "DynUNet" in name else [name] if name.endswith(".yaml") else []


def sized(settings: dict, name: str) -> dict:
    """The settings with those of the network, instead of PANet's size."""
    changed = {**without(settings, "network_def#channels"), **COMPARED[name][1]}
    return changed if "patch_size" in settings else without(changed, "patch_size")


@pytest.mark.parametrize("name", COMPARED)
@pytest.mark.lab
def test_networks_to_compare_with_are_trained_evaluated_inferred_and_exported(name, small_cohort, tmp_path):
    kind, _, maps = COMPARED[name]
    overlays = overlays_of(name)
    run, model = tmp_path / "run", str(tmp_path / "run" / "model.pt")
    place = {"dataset_dir": str(small_cohort), "output_dir": str(run)}
    bundle_run("train.json", *overlays, **place, **sized({**TRAINING, "max_epochs": 1}, name))
    bundle_run("train.json", *overlays, "evaluate.json", **place, **sized(EVALUATION, name))
    settings = {**sized(SIZE, name), "dataset_dir": str(small_cohort), "model_file": model}
    bundle_run("inference.json", *overlays, output_dir=str(tmp_path / "maps"), **settings)
    (case,) = datalist(run)["validation"]
    scored = voxels(run / "evaluation_validation" / f"{case}.nii.gz")
    assert np.array_equal(voxels(tmp_path / "maps" / f"{case}.nii.gz"), scored)
    # The record names the network, and the loss has seen each of its maps.
    record = json.loads((run / "model.json").read_text())["network"]
    assert record["class"] == kind.__name__
    made = initialized("inference.json", *overlays, kind="infer", **settings)
    network = made.network_def
    assert type(network) is kind and set(network.train()(torch.randn(1, 4, 64, 32, 32))) == maps
    network.load_state_dict(weights(Path(model)))
    x = torch.randn(1, 4, 64, 32, 32)
    with torch.no_grad():
        wanted = network.eval()(x)
    exported = tmp_path / "model.ts"
    traced = {"use_trace": True, "input_shape": [1, 4, 64, 32, 32]} if kind is SwinUNETR else {}
    ckpt_export(
        bundle_root=str(ROOT),
        config_file=files("inference.json", *overlays),
        ckpt_file=model,
        filepath=str(exported),
        **traced,
        **without(sized(SIZE, name), "num_workers"),
    )
    torch.testing.assert_close(torch.jit.load(str(exported))(x), wanted, rtol=1e-4, atol=1e-4)
    # Weights of one network are refused by another, and the line names what to add.
    said = refused("inference.json", **{**SIZE, **place, "output_dir": str(tmp_path / "other"), "model_file": model})
    if kind is PriorAttentionNet:
        assert "another network (" in said and "--network_def#prior_attention False" in said
    else:
        assert f"the network {kind.__name__}, not PriorAttentionNet; add configs/{overlays[0]}" in said


@pytest.mark.lab
def test_a_second_stage_is_finetuned_behind_a_trained_first_one(small_cohort, tmp_path):
    overlay = "network_cascaded_unet.yaml"
    settings = sized({**TRAINING, "max_epochs": 1, "dataset_dir": str(small_cohort)}, overlay)
    bundle_run("train.json", overlay, output_dir=str(tmp_path / "first"), **settings)
    before = weights(tmp_path / "first" / "model.pt")
    bundle_run(
        "train.json",
        overlay,
        "train_finetune.yaml",
        output_dir=str(tmp_path / "second"),
        pretrained_file=str(tmp_path / "first" / "model.pt"),
        reinitialize=["second_stage"],
        **{**settings, "learning_rate": 0.0, "seed": 1},
    )
    after = weights(tmp_path / "second" / "model_last.pt")
    # Slopes begin at one value in every training.
    values = [name for name in before if before[name].numel() > 1]
    assert {name.split(".")[0] for name in values} == {"first_stage", "second_stage"}
    for name in values:
        assert torch.equal(before[name], after[name]) == name.startswith("first_stage."), name


def test_exclusive_classes(small_cohort, tmp_path):
    """Training, evaluation and inference use a softmax, and the label map holds the likeliest class of each voxel."""
    train(small_cohort, tmp_path / "run", exclusive=True)
    place = {"dataset_dir": str(small_cohort), "output_dir": str(tmp_path / "run"), "exclusive": True}
    bundle_run("train.json", "evaluate.json", **place, **EVALUATION)
    model = str(tmp_path / "run" / "model.pt")
    plain = {"exclusive": True, "thresholds#min_et_mm3": 0, "thresholds#min_component_mm3": 0}
    maps = infer(small_cohort, tmp_path / "maps", model_file=model, overlap=0.0, save_probabilities=True, **plain)
    (case,) = datalist(tmp_path / "run")["validation"]
    assert (tmp_path / "run" / "evaluation_validation" / f"{case}.nii.gz").is_file()
    et, tc, wt = (voxels(maps / f"{FIRST}_prob_{name}.nii.gz") for name in ("enhance", "core", "whole"))
    assert (et <= tc + 1e-6).all() and (tc <= wt + 1e-6).all()
    classes = np.stack([1 - wt, et, tc - et, wt - tc])
    likeliest = classes.argmax(axis=0)
    sure = np.sort(classes, axis=0)[-1] - np.sort(classes, axis=0)[-2] > 1e-5
    labels = np.array([0, 4, 1, 2])[likeliest]
    assert (labels[sure] == voxels(maps / f"{FIRST}.nii.gz")[sure]).all()
    assert len(np.unique(labels)) > 1


def test_finetuning_starts_from_the_file_but_for_what_is_named(small_cohort, trained, tmp_path, caplog):
    model = trained / "model.pt"
    with caplog.at_level(logging.INFO):
        train(
            small_cohort,
            tmp_path / "run",
            "train_finetune.yaml",
            pretrained_file=str(model),
            reinitialize=["outputs"],
            learning_rate=0.0,
            max_epochs=1,
        )
    before, after = weights(model), weights(tmp_path / "run" / "model_last.pt")
    for name, value in before.items():
        if name.startswith("outputs."):
            assert not torch.equal(after[name], value), name
            assert f"Left at its initial value: {name} (on request)" in caplog.messages
        elif "running" not in name and "num_batches" not in name:
            assert torch.equal(after[name], value), name
    assert json.loads((tmp_path / "run" / "run.json").read_text())["phantoms"] is True
    # The record names the weights with which the training started, and counts their cases.
    before, after = (json.loads((run / "model.json").read_text()) for run in (trained, tmp_path / "run"))
    assert before["trained_on"]["origin"] is None
    assert after["trained_on"] == {**before["trained_on"], "origin": before["checksum"]}


def test_finetuning_from_weights_of_another_order_of_channels_is_refused(small_cohort, trained, tmp_path):
    for name in ("model.pt", "model.json"):
        shutil.copy(trained / name, tmp_path)
    record = json.loads((tmp_path / "model.json").read_text())
    record["sequences"] = ["t1", "t1ce", "t2", "flair"]
    (tmp_path / "model.json").write_text(json.dumps(record))
    with pytest.raises(RuntimeError) as caught:
        train(small_cohort, tmp_path / "run", "train_finetune.yaml", pretrained_file=str(tmp_path / "model.pt"))
    assert "it has channels in the order t1, t1ce, t2, flair" in str(caught.value.__cause__)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"pretrained_file": "/nowhere/model.pt"}, "/nowhere/model.pt: no such file"),
        ({"reinitialize": "neck"}, "--reinitialize neck: the network has no such module; it has encoder, head,"),
    ],
)
def test_finetuning_from_what_is_not_there_is_refused(small_cohort, trained, tmp_path, settings, said):
    chosen = {"pretrained_file": str(trained / "model.pt"), **TRAINING, **settings}
    place = {"dataset_dir": str(small_cohort), "output_dir": str(tmp_path / "run")}
    assert said in refused("train.json", "train_finetune.yaml", **place, **chosen)
    assert not (tmp_path / "run").exists()


def test_mlflow_gets_loss_and_dice(small_cohort, tmp_path):
    mlflow = pytest.importorskip("mlflow", reason="mlflow is not installed")
    output = tmp_path / "run"
    settings = {**TRAINING, "dataset_dir": str(small_cohort), "output_dir": str(output)}
    bundle_run("train.json", tracking="mlflow", **settings)
    (database,) = output.rglob("mlruns.db")
    client = mlflow.MlflowClient(f"sqlite:///{database}")
    metrics: set[str] = set()
    for experiment in client.search_experiments():
        for run in client.search_runs([experiment.experiment_id]):
            metrics |= set(run.data.metrics)
    assert {"train_loss", "val_mean_dice", "val_dice_ET", "val_dice_TC", "val_dice_WT"} <= metrics


def test_an_absent_package_is_named(small_cohort, tmp_path, monkeypatch):
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "mlflow" else found(name, *rest)
    )
    place = {"dataset_dir": str(small_cohort), "output_dir": str(tmp_path / "run")}
    said = refused("train.json", tracking="mlflow", **place, **TRAINING)
    assert said.endswith("MLFlowHandler: needs the package mlflow, which is absent; pip install mlflow.")
    assert not (tmp_path / "run" / "run.json").exists()


# Testing.


def probabilities(folder: Path, case: str = FIRST) -> np.ndarray:
    return np.stack([voxels(folder / f"{case}_prob_{name}.nii.gz") for name in ("enhance", "core", "whole")])


def test_overlap_and_weighting_change_the_blend_only(small_cohort, members, tmp_path):
    case = small_cohort / FIRST
    common = {"model_file": members[0], "save_probabilities": True, "roi_size": [32, 32, 32]}
    results = {
        name: probabilities(infer(case, tmp_path / name, **{**common, **settings}))
        for name, settings in {
            "default": {},
            "gaussian": {"overlap": 0.5, "window_weighting": "gaussian"},
            "constant": {"overlap": 0.5, "window_weighting": "constant"},
            "more": {"overlap": 0.75},
        }.items()
    }
    assert np.array_equal(results["default"], results["gaussian"])
    for other in ("constant", "more"):
        assert not np.array_equal(results["default"], results[other])
        assert np.abs(results["default"] - results[other]).mean() < 0.01


def test_whole_brain_in_one_forward_is_the_network_itself(small_cohort, members, tmp_path):
    folder = infer(
        small_cohort / FIRST, tmp_path / "maps", "whole_brain.yaml", model_file=members[0],
        save_probabilities=True,
    )  # fmt: skip
    raw = np.stack(
        [nib.load(small_cohort / FIRST / f"{FIRST}_{s}.nii.gz").get_fdata() for s in ("t1", "t2", "t1ce", "flair")]
    )
    box = tuple(slice(axis.min(), axis.max() + 1) for axis in np.nonzero((raw != 0).any(axis=0)))
    image = raw[(slice(None), *box)]
    for channel in image:
        brain = channel != 0
        channel[brain] = (channel[brain] - channel[brain].mean()) / channel[brain].std()
    size = np.array(image.shape[1:])
    padded = np.maximum(-(-size // 16) * 16, 32)
    before = (padded - size) // 2
    pad = [(0, 0), *((b, p - n - b) for b, p, n in zip(before, padded, size, strict=True))]
    network = PriorAttentionNet(channels=CHANNELS).eval()
    network.load_state_dict(weights(Path(members[0])))
    with torch.no_grad():
        wanted = network(torch.as_tensor(np.pad(image, pad), dtype=torch.float32)[None]).sigmoid()[0, 1:].numpy()
    wanted = wanted[(slice(None), *(slice(b, b + n) for b, n in zip(before, size, strict=True)))]
    got = probabilities(folder)
    assert np.allclose(got[(slice(None), *box)], wanted, atol=1e-4)
    outside = np.ones(got.shape, bool)
    outside[(slice(None), *box)] = False
    assert not got[outside].any()


def test_whole_brain_is_evaluated_as_it_is_inferred(small_cohort, members, tmp_path):
    place = {"dataset_dir": str(small_cohort), "output_dir": str(tmp_path / "run"), "model_file": members[0]}
    bundle_run("train.json", "evaluate.json", "whole_brain.yaml", **place, **EVALUATION)
    (scored,) = (tmp_path / "run" / "evaluation_validation").glob("*.nii.gz")
    case = scored.name.removesuffix(".nii.gz")
    maps = infer(small_cohort / case, tmp_path / "maps", "whole_brain.yaml", model_file=members[0])
    assert np.array_equal(voxels(maps / scored.name), voxels(scored))


def test_flips_are_averaged_and_uncertainty_is_the_entropy(small_cohort, members, tmp_path):
    """With all flips, a patient and its mirror image give mirrored maps; without flips, they do not."""
    settings = {"model_file": members[0], "save_probabilities": True, "save_uncertainty": True, "overlap": 0.0}
    first, mirrored = (small_cohort / f"BraTS20_Training_{number:03d}" for number in (1, 2))
    tta = ("tta.yaml",)
    maps = [infer(case, tmp_path / case.name, *tta, **settings) for case in (first, mirrored)]
    a, b = probabilities(maps[0], first.name), probabilities(maps[1], mirrored.name)
    # The padding of a window may be asymmetric, so voxels near the border may differ a little.
    assert np.abs(a - b[:, ::-1]).mean() < 1e-3
    plain = [infer(case, tmp_path / f"plain_{case.name}", **settings) for case in (first, mirrored)]
    c, d = probabilities(plain[0], first.name), probabilities(plain[1], mirrored.name)
    assert np.abs(c - d[:, ::-1]).mean() > 10 * np.abs(a - b[:, ::-1]).mean()
    for name, p in zip(("enhance", "core", "whole"), a.astype(np.float64), strict=True):
        image = nib.load(maps[0] / f"{first.name}_unc_{name}.nii.gz")
        assert image.get_data_dtype() == np.uint8
        inside = (p > 0) & (p < 1)
        entropy = np.zeros(p.shape)
        entropy[inside] = -(p * np.log2(p, where=inside) + (1 - p) * np.log2(1 - p, where=inside))[inside]
        assert np.abs(np.asanyarray(image.dataobj) - 100 * entropy).max() <= 0.51
        assert np.asanyarray(image.dataobj).max() > 50


def test_an_ensemble_is_the_mean_of_its_members(small_cohort, members, tmp_path):
    case = small_cohort / FIRST
    singles = [
        probabilities(infer(case, tmp_path / str(number), model_file=file, save_probabilities=True))
        for number, file in enumerate(members)
    ]
    both = probabilities(infer(case, tmp_path / "both", "ensemble.yaml", model_file=members, save_probabilities=True))
    assert np.allclose(both, (singles[0] + singles[1]) / 2, atol=1e-5)
    assert not np.allclose(singles[0], singles[1], atol=1e-2)
    assert json.loads((tmp_path / "both" / "run.json").read_text())["model_file"] == members


def test_an_ensemble_with_flips_is_evaluated(small_cohort, members, tmp_path):
    """The overlays work together, and evaluation scores the same maps that inference writes."""
    place = {"dataset_dir": str(small_cohort), "model_file": members, "overlap": 0.0}
    names = ("train.json", "evaluate.json", "ensemble.yaml", "tta.yaml")
    bundle_run(*names, **place, output_dir=str(tmp_path / "run"), **EVALUATION)
    (path,) = (tmp_path / "run" / "evaluation_validation").glob("*.nii.gz")
    case, overlays = path.name.removesuffix(".nii.gz"), ("ensemble.yaml", "tta.yaml")
    folder = infer(small_cohort / case, tmp_path / "maps", *overlays, model_file=members, overlap=0.0)
    assert len(rows(path.parent / "scores.csv")) == 1
    assert np.array_equal(voxels(folder / path.name), voxels(path))
    assert voxels(path).any()


@pytest.mark.parametrize("as_list", [True, False])
def test_an_ensemble_of_one_is_refused(as_list, small_cohort, members, tmp_path):
    place = {"dataset_dir": str(small_cohort), "output_dir": str(tmp_path / "maps")}
    said = refused(
        "inference.json", "ensemble.yaml", **place, **SIZE, model_file=members[:1] if as_list else members[0]
    )
    assert said == "--model_file: an ensemble needs two model files or more; for one, leave out the overlay."
    assert not (tmp_path / "maps").exists()


@pytest.mark.parametrize("kind", ["absent", "another network", "twice"])
def test_a_member_that_cannot_be_is_refused(kind, small_cohort, members, tmp_path):
    if kind == "another network":
        torch.save(PriorAttentionNet(channels=[4, 4, 4, 4, 4]).state_dict(), tmp_path / "other.pt")
    model_file = {
        "absent": [members[0], str(tmp_path / "absent.pt")],
        "another network": [members[0], str(tmp_path / "other.pt")],
        "twice": [members[0], members[0]],
    }[kind]
    said = {
        "absent": "absent.pt: no such file",
        "another network": "other.pt: weights of another network",
        "twice": "name at least one model file, and each once",
    }[kind]
    place = {"dataset_dir": str(small_cohort), "output_dir": str(tmp_path / "maps"), "model_file": model_file}
    assert said in refused("inference.json", "ensemble.yaml", **place, **SIZE)
    assert not (tmp_path / "maps").exists()


def test_enhancing_tumor_by_component(small_cohort, members, tmp_path):
    """With a threshold above the size of every component, no component is left; by total volume, all of ET is kept."""
    case = small_cohort / FIRST
    free = {"model_file": members[0], "thresholds#min_component_mm3": 0}
    kept = voxels(infer(case, tmp_path / "all", **{"thresholds#min_et_mm3": 0}, **free) / f"{FIRST}.nii.gz")
    volume = int((kept == 4).sum()) * 64  # voxels of 4 mm
    assert volume > 64
    free["thresholds#min_et_mm3"] = volume
    by_volume = infer(case, tmp_path / "volume", **free)
    assert np.array_equal(voxels(by_volume / f"{FIRST}.nii.gz"), kept)
    by_component = infer(case, tmp_path / "component", **{"thresholds#et_per_component": True}, **free)
    labels = voxels(by_component / f"{FIRST}.nii.gz")
    assert not (labels == 4).any()
    assert (labels[kept == 4] == 1).all()


def test_the_authors_path_step_by_step(small_cohort, members, tmp_path):
    """The path equals the same steps by hand, on a small case in one window; a whole case takes fifty windows."""
    case = small_cohort / FIRST
    whole = {"spacing": [4.0] * 3, "roi_size": [64, 64, 48], "pad#spatial_size": [64, 64, 48]}
    whole |= {"thresholds#min_component_mm3": 0, "thresholds#min_et_mm3": 0}
    folder = infer(case, tmp_path / "maps", "authors.yaml", model_file=members[0], **whole)
    raw = np.stack([nib.load(case / f"{FIRST}_{s}.nii.gz").get_fdata() for s in ("t1", "t2", "t1ce", "flair")])
    padded = np.pad(raw, [(0, 0), (2, 2), (2, 2), (4, 5)])
    flat = padded.reshape(4, -1)
    normal = (padded - flat.mean(1).reshape(4, 1, 1, 1)) / flat.std(1).reshape(4, 1, 1, 1)
    network = PriorAttentionNet(channels=CHANNELS).eval()
    network.load_state_dict(weights(Path(members[0])))
    with torch.no_grad():
        logits = network(torch.as_tensor(normal, dtype=torch.float32)[None])[0, :, 2:-2, 2:-2, 4:-5].numpy()
    _, et, tc, wt = logits >= 0
    wanted = np.zeros(et.shape, np.uint8)
    wanted[tc] = 1
    wanted[et] = 4
    wanted[wt & ~tc] = 2
    sure = np.abs(logits[1:]).min(axis=0) > 1e-3
    got = voxels(folder / f"{FIRST}.nii.gz")
    assert (got[sure] == wanted[sure]).all()
    assert sure.mean() > 0.9 and len(np.unique(wanted)) > 2

    made = initialized("inference.json", "authors.yaml", kind="infer")
    windows = made.inferer.inferer
    assert made.parser["pad"]["spatial_size"] == [240, 240, 160]
    assert (windows.overlap, windows.mode, windows.roi_size) == (0.75, "constant", [128] * 3)
    assert len(dense_patch_slices((240, 240, 160), (128, 128, 128), (32, 32, 32))) == 50


def test_the_authors_path_is_evaluated_as_it_is_inferred(small_cohort, members, tmp_path):
    settings = {"model_file": members[0], "roi_size": [128] * 3, "overlap": 0.0}
    place = {"dataset_dir": str(small_cohort), "output_dir": str(tmp_path / "run"), **EVALUATION, **settings}
    padding = {"pad#spatial_size": [64, 64, 48]}
    bundle_run("train.json", "evaluate.json", "authors.yaml", **place, **padding)
    (scored,) = (tmp_path / "run" / "evaluation_validation").glob("*.nii.gz")
    case = scored.name.removesuffix(".nii.gz")
    folder = infer(small_cohort / case, tmp_path / "maps", "authors.yaml", **settings, **padding)
    assert np.array_equal(voxels(folder / scored.name), voxels(scored))
    assert voxels(scored).any()


def test_every_overlay_is_run_by_a_test():
    """The files of studies, which are no overlays, are read by a test."""
    text = "".join(path.read_text(encoding="utf-8") for path in Path(__file__).parent.rglob("test_*.py"))
    overlays = [path.name for path in CONFIGS.iterdir() if path.suffix == ".yaml" or path.name.startswith("multi_gpu")]
    assert [name for name in overlays if f'"{name}"' not in text] == []
