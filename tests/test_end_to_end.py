# Copyright (c) the brats_mri_panet_segmentation authors
# SPDX-License-Identifier: Apache-2.0
"""MONAI's commands run the workflows from case folders to label maps, with tiny widths and few iterations."""

import hashlib
import json
import re
import shutil
from pathlib import Path

import itk
import monai
import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import load_net_with_metadata
from scripts.networks import PriorAttentionNet
from scripts.utils.run_json import bundle_version
from scripts.weights.record import counts
from scripts.workflow.recipe import changed_recipe
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from workflows import (
    CHANNELS,
    CONFIGS,
    ROOT,
    SIZE,
    TRAINING_SIZE,
    bundle_run,
    command,
    files,
    initialized,
    models,
    rows,
    voxels,
)

REGIONS = {"ET": (4,), "TC": (1, 4), "WT": (1, 2, 4)}


def test_training_leaves_its_files(training, cohort):
    names = {path.name for path in training.iterdir()}
    wanted = {"model.pt", "model_last.pt", "trainer_state.pt", "config.json", "run.json", "datalist.json"}
    wanted |= {"model.json", "model_last.json"}
    assert names == wanted | {"tensorboard", "trainer_state_previous.pt"}
    state = torch.load(training / "trainer_state.pt", weights_only=True)
    assert (state["epoch"], state["iteration"], state["best_metric_epoch"]) == (3, 6, 2)
    PriorAttentionNet(channels=CHANNELS).load_state_dict(torch.load(training / "model.pt", weights_only=True))
    last = torch.load(training / "model_last.pt", weights_only=True)
    assert all(torch.equal(last[name], value) for name, value in state["network"].items())
    best = torch.load(training / "model.pt", weights_only=True)
    assert not torch.equal(best["outputs.3.weight"], last["outputs.3.weight"])  # Epoch 2 of 3 was validated.

    config = json.loads((training / "config.json").read_text())
    assert config["max_epochs"] == 3
    assert config["network_def"]["channels"] == CHANNELS
    record = json.loads((training / "run.json").read_text())
    assert record["phantoms"] is True
    assert record["cases"] == {"training": 2, "validation": 1}
    assert record["bundle_version"] == bundle_version() != "unknown"
    assert record["versions"]["torch"] == torch.__version__
    split = json.loads((training / "datalist.json").read_text())
    assert len(split["training"]) == 2
    assert all((cohort / file).is_file() for item in split["validation"] for file in item["image"])


def test_weights_have_their_record_beside_them(training):
    for name, epoch, scores in (("model", 2, {"val_mean_dice"}), ("model_last", 3, set())):
        record = json.loads((training / f"{name}.json").read_text())
        assert record["checksum"] == hashlib.sha256((training / f"{name}.pt").read_bytes()).hexdigest()
        assert record["bundle_version"] == bundle_version()
        assert record["network"]["class"] == "PriorAttentionNet"
        network = PriorAttentionNet(**record["network"]["arguments"])
        network.load_state_dict(torch.load(training / f"{name}.pt", weights_only=True))
        assert record["sequences"] == ["t1", "t2", "t1ce", "flair"]
        assert (record["spacing"], record["exclusive"], record["normalization"]) == ([4.0] * 3, False, "brain")
        thresholds = {"min_component_mm3": 10, "min_tumor_probability": 0, "min_et_mm3": 300, "et_per_component": False}
        assert record["thresholds"] == thresholds
        how = {"window": [32] * 3, "overlap": 0.5, "inferer": "BrainWindowInferer", "precision": "float32"}
        assert record["training"] == how
        assert counts(record["trained_on"]) == {"patients": 0, "phantoms": 2, "origin": None}
        assert record["scores"]["epoch"] == epoch
        assert {key for key in record["scores"] if key == "val_mean_dice"} == scores
        # The record names no module's path and no overlay, because both may move.
        assert not re.search(r"scripts\.|monai\.|\.yaml", json.dumps(record))


def test_what_was_changed_of_the_recipe_is_told_exactly(training):
    """Only overridden keys are named. A plain training changes nothing, so it is published."""
    config = json.loads((training / "config.json").read_text())
    changed = {"network_def", *TRAINING_SIZE} - {"network_def#channels", "num_workers", "val_interval"}
    assert changed_recipe(config, CONFIGS / "train.json") == sorted(changed)
    assert TRAINING_SIZE["val_interval"] == 2, "the plain recipe's"


def curves(folder: Path) -> dict[str, list[float]]:
    events = EventAccumulator(str(folder))
    events.Reload()
    return {tag: [event.value for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def test_training_logs_loss_rate_and_dice_by_region(training):
    found = curves(training / "tensorboard" / "training")
    levels = {f"train/loss_{name}" for name in ("out", "level1", "level2", "level3", "prior")}
    assert levels | {"train/loss", "train/learning_rate"} == set(found)
    # An epoch has two iterations. The rate warms up from 1/1000 for one epoch and then stays flat.
    wanted = [1e-3 / 1000, 1e-3 * (1 + 999 * 0.5) / 1000, *[1e-3] * 4]
    assert found["train/learning_rate"] == pytest.approx(wanted, rel=1e-5)
    for step, total in enumerate(found["train/loss"]):
        assert total == pytest.approx(sum(found[level][step] for level in levels), rel=1e-5)
    validation = curves(training / "tensorboard" / "validation")
    assert {"val_mean_dice", "val_dice_ET", "val_dice_TC", "val_dice_WT"} == set(validation)
    (mean,) = validation["val_mean_dice"]
    regions = [validation[f"val_dice_{region}"][0] for region in ("ET", "TC", "WT")]
    assert mean == pytest.approx(sum(regions) / 3, abs=1e-4)  # MONAI rounds each region's Dice to 4 digits.


def test_phantom_weights_are_not_published(models_before, training, evaluation, segmentation):
    assert models() == models_before
    assert json.loads((segmentation / "run.json").read_text())["phantom_weights"] is True


def test_evaluation_scores_are_those_of_the_saved_label_maps(evaluation, cohort):
    scores = rows(evaluation / "scores.csv")
    assert len(scores) == 3
    for case, row in scores.items():
        predicted = voxels(evaluation / f"{case}.nii.gz")
        reference = voxels(next(cohort.rglob(f"{case}_seg.nii.gz")))
        for region, labels in REGIONS.items():
            a, b = np.isin(predicted, labels), np.isin(reference, labels)
            dice = 2 * (a & b).sum() / (a.sum() + b.sum()) if (a | b).any() else 1.0
            assert float(row[f"dice_{region}"]) == pytest.approx(dice, abs=1e-4)
            assert float(row[f"volume_{region}"]) == 8 * a.sum()  # voxels of 2 mm
            assert float(row[f"reference_volume_{region}"]) == 8 * b.sum()
            sensitivity = (a & b).sum() / b.sum() if b.any() else float(not a.any())
            assert float(row[f"sensitivity_{region}"]) == pytest.approx(sensitivity, abs=1e-4)
            # The share is that of the whole grid, although scores are computed in the box of the lesion.
            assert float(row[f"specificity_{region}"]) == pytest.approx((~a & ~b).sum() / (~b).sum(), abs=1e-4)
            assert 0 <= float(row[f"surface_dice_0.5mm_{region}"]) <= float(row[f"surface_dice_1mm_{region}"]) <= 1
            assert f"lesion_dice_{region}" not in row
            if not b.any() and not a.any():
                assert float(row[f"hd95_{region}"]) == 0
            elif a.any() != b.any():
                assert float(row[f"hd95_{region}"]) == pytest.approx(373.12866, abs=1e-3)


def test_summary_is_of_the_rows(evaluation):
    scores, summary = rows(evaluation / "scores.csv"), rows(evaluation / "summary.csv")
    for column in next(iter(scores.values())):
        if column == "case" or column.startswith("expected_dice"):
            continue
        values = [float(row[column]) for row in scores.values()]
        assert float(summary["mean"][column]) == pytest.approx(np.mean(values), abs=2e-4)
        assert float(summary["std"][column]) == pytest.approx(np.std(values, ddof=1), abs=2e-4)
        assert float(summary["median"][column]) == pytest.approx(np.median(values), abs=2e-4)
        assert float(summary["quartile3"][column]) == pytest.approx(np.percentile(values, 75), abs=2e-4)


def test_label_maps_have_the_input_grid(segmentation, cohort):
    maps = sorted(segmentation.glob("*.nii.gz"))
    assert [path.name.removesuffix(".nii.gz") for path in maps] == [f"BraTS20_Training_{i:03d}" for i in (1, 2, 3)]
    for path in maps:
        image, source = nib.load(path), nib.load(next(cohort.rglob(path.name.replace(".nii.gz", "_t1.nii.gz"))))
        assert image.shape == source.shape == (120, 120, 78)
        assert np.array_equal(image.affine, source.affine)
        assert image.get_data_dtype() == np.uint8
        assert set(np.unique(voxels(path))) <= {0, 1, 2, 4}
        # A second reader, ITK, sees the same grid.
        ours, theirs = itk.imread(str(path)), itk.imread(str(next(cohort.rglob(f"{path.name[:-7]}_t1.nii.gz"))))
        assert np.allclose(ours.GetOrigin(), theirs.GetOrigin())
        assert np.allclose(itk.array_from_matrix(ours.GetDirection()), itk.array_from_matrix(theirs.GetDirection()))


def test_inference_gives_what_evaluation_scored(segmentation, evaluation):
    """Preprocessing, network, windows and post-processing of train.json and inference.json give equal outputs."""
    for path in segmentation.glob("*.nii.gz"):
        assert np.array_equal(voxels(path), voxels(evaluation / path.name))
        assert voxels(path).any(), "an empty map would prove nothing"


@pytest.mark.slow
def test_an_offset_or_a_factor_of_the_intensities_leaves_the_label_map(small_cohort, training, tmp_path):
    """A voxel of 4 mm becomes one of 3, so the brain's border is interpolated."""
    case = sorted(path for path in small_cohort.rglob("BraTS20_*") if path.is_dir())[0]
    changes = {"plain": (1, 0), "offset": (1, 1000), "far": (1, 10000), "scaled": (1e6, 0)}
    maps = {}
    for name, (factor, offset) in changes.items():
        for file in case.glob("*.nii.gz"):
            image = nib.load(file)
            data = np.asanyarray(image.dataobj).astype(np.float32)
            (tmp_path / name / case.name).mkdir(parents=True, exist_ok=True)
            changed = nib.Nifti1Image(np.where(data != 0, data * np.float32(factor) + offset, 0), image.affine)
            nib.save(changed, tmp_path / name / case.name / file.name)
        place = {"dataset_dir": str(tmp_path / name), "output_dir": str(tmp_path / f"{name}_maps")}
        # Weights of 4 mm; their record is left behind, so that another spacing is no contradiction.
        shutil.copy(training / "model.pt", tmp_path / "model.pt")
        size = {**SIZE, "spacing": [3.0] * 3, "thresholds#min_et_mm3": 0}
        bundle_run("inference.json", **place, model_file=str(tmp_path / "model.pt"), **size)
        maps[name] = voxels(tmp_path / f"{name}_maps" / f"{case.name}.nii.gz")
    assert (maps["plain"] > 0).sum() > 100
    for name, other in maps.items():
        same = 2 * ((other == maps["plain"]) & (other > 0)).sum() / ((other > 0).sum() + (maps["plain"] > 0).sum())
        assert same > 0.99, name


def test_training_and_validation_preprocess_alike(cohort):
    made = initialized("train.json", kind="train", dataset_dir=str(cohort), spacing=[2.0] * 3)
    item = made.train_dataset_data[0]
    inference = initialized("inference.json", kind="infer", spacing=[2.0] * 3)
    deterministic = made.train_preprocessing.transforms[:5]
    trained = item
    for step in deterministic:
        trained = step(trained)
    wanted = inference.preprocessing({"image": item["image"]})["image"]
    assert torch.equal(trained["image"], wanted)
    assert torch.equal(made.val_preprocessing(item)["image"], wanted)
    # The label is cropped to the same box and loses no voxel.
    assert trained["label"].shape[1:] == wanted.shape[1:]
    assert int((trained["label"] > 0).sum()) == int((voxels(Path(item["label"])) > 0).sum())


def test_device_and_precision_by_name(training, cohort, tmp_path):
    case = next(cohort.rglob("BraTS20_Training_002"))
    model = str(training / "model.pt")
    place = {"dataset_dir": str(case), "output_dir": str(tmp_path / "maps"), "model_file": model}
    bundle_run("inference.json", **place, **SIZE, device="cpu", amp_dtype="float16")
    assert json.loads((tmp_path / "maps" / "config.json").read_text())["device"] == "cpu"


def test_cases_of_a_datalist_keep_their_names(training, cohort, tmp_path):
    """Two entries whose files have the same name give two label maps, which are named after the entries."""
    items = json.loads((training / "datalist.json").read_text())["training"]
    for name, item in zip(("site_a", "site_b"), items, strict=True):
        for sequence, file in zip(("t1", "t2", "t1ce", "flair"), item["image"], strict=True):
            target = tmp_path / "data" / name / f"p1_{sequence}.nii.gz"
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(cohort / file, target)
        item["image"] = [f"{name}/p1_{sequence}.nii.gz" for sequence in ("t1", "t2", "t1ce", "flair")]
        shutil.copy(cohort / item["label"], tmp_path / "data" / name / "p1_seg.nii.gz")
        item.update(case=name, label=f"{name}/p1_seg.nii.gz")
    lists = tmp_path / "list.json"
    lists.write_text(json.dumps({"training": [], "validation": items}))
    size = {key: value for key, value in TRAINING_SIZE.items() if key != "max_epochs"}
    place = {"dataset_dir": str(tmp_path / "data"), "output_dir": str(tmp_path / "out"), "datalist_file": str(lists)}
    bundle_run("train.json", "evaluate.json", **place, **size, model_file=str(training / "model.pt"))
    written = sorted(path.name for path in (tmp_path / "out" / "evaluation_validation").glob("*.nii.gz"))
    assert written == ["site_a.nii.gz", "site_b.nii.gz"]


def test_enhancing_tumor_as_3(training, cohort, segmentation, tmp_path):
    case = next(cohort.rglob("BraTS20_Training_001"))
    model = str(training / "model.pt")
    output = tmp_path / "maps"
    all_et = {**SIZE, "thresholds#min_et_mm3": 0}
    bundle_run(
        "inference.json", dataset_dir=str(case), output_dir=str(output), model_file=model, saved_et_label=3, **all_et
    )
    fours = tmp_path / "fours"
    bundle_run("inference.json", dataset_dir=str(case), output_dir=str(fours), model_file=model, **all_et)
    three, four = voxels(output / f"{case.name}.nii.gz"), voxels(fours / f"{case.name}.nii.gz")
    assert (three == 3).any()
    assert np.array_equal(np.where(three == 3, 4, three), four)


@pytest.mark.slow
def test_verify_and_export_with_default_arguments(tmp_path):
    """Both run in the bundle's root and elsewhere, with --bundle_root; at full width, the export is exact to 1e-5."""
    root = tmp_path / "bundle"
    shutil.copytree(CONFIGS, root / "configs")
    (root / "models").mkdir()
    torch.manual_seed(0)
    network = PriorAttentionNet().eval()
    torch.save(network.state_dict(), root / "models" / "model.pt")
    config, meta = "configs/inference.json", "configs/metadata.json"

    verify = ("verify_net_in_out", "network_def", "--config_file")
    done = command("monai.bundle", *verify, config, "--meta_file", meta, cwd=root)
    assert "data shape of network is verified with no error" in done.stdout + done.stderr
    away = ("--bundle_root", str(root), "--meta_file", str(root / meta))
    assert command("monai.bundle", *verify, str(root / config), *away, cwd=tmp_path).returncode == 0

    assert command("monai.bundle", "ckpt_export", "--config_file", config, cwd=root).returncode == 0
    exported = root / "models" / "model.ts"
    scripted, metadata, extra = load_net_with_metadata(str(exported), more_extra_files=("inference.json",))
    assert metadata["network_data_format"]["outputs"]["pred"]["num_channels"] == 4
    assert json.loads(extra["inference.json"])["network_def"]["channels"] == [32, 64, 128, 256, 320]
    x = torch.randn(1, 4, 32, 48, 32)
    with torch.no_grad():
        assert torch.allclose(scripted(x), network(x), rtol=1e-5, atol=1e-5)

    exported.unlink()
    arguments = ("ckpt_export", "--bundle_root", str(root), "--config_file", str(root / config))
    assert command("monai.bundle", *arguments, cwd=tmp_path).returncode == 0
    assert exported.is_file()


def test_load_returns_the_network_with_its_weights(tmp_path):
    root = tmp_path / "bundle"
    shutil.copytree(CONFIGS, root / "configs")
    (root / "models").mkdir()
    torch.manual_seed(1)
    network = PriorAttentionNet()
    torch.save(network.state_dict(), root / "models" / "model.pt")
    loaded = monai.bundle.load("bundle", bundle_dir=str(tmp_path), source="github", repo="no/such/repo", device="cpu")
    assert type(loaded) is PriorAttentionNet
    assert all(torch.equal(value, network.state_dict()[name]) for name, value in loaded.state_dict().items())


def incomplete(folder: Path) -> Path:
    case = folder / "cohort" / "Case_1"
    case.mkdir(parents=True)
    for sequence in ("t1", "t2", "flair"):
        (case / f"Case_1_{sequence}.nii.gz").touch()
    return folder / "cohort"


def empty(folder: Path) -> Path:
    (folder / "notes.txt").touch()
    return folder


BAD_INPUT = {
    "absent folder": (("train.json",), {"dataset_dir": lambda tmp: tmp / "nowhere"}, "no such folder"),
    "folder without cases": (("train.json",), {"dataset_dir": empty}, "looked for case folders"),
    "no case for inference": (("inference.json",), {"dataset_dir": empty, "model_file": "MODEL"}, "looked for"),
    "missing sequence": (("train.json",), {"dataset_dir": incomplete}, "there is no Case_1_t1ce.nii.gz"),
    "absent datalist": (("train.json",), {"datalist_file": lambda tmp: tmp / "list.json"}, "--datalist_file"),
    "absent weights": (
        ("inference.json",),
        {"model_file": lambda tmp: tmp / "model.pt"},
        "no such file; add configs/starter.yaml",
    ),
    "another network": (
        ("inference.json",),
        {"model_file": "MODEL", "network_def#channels": [4, 4, 4, 4, 4]},
        "it was trained with another network (channels [4, 4, 8, 8, 8]); add --network_def#channels",
    ),
    "unknown selection": (("train.json", "evaluate.json"), {"cases": "test"}, "choose one of training, validation"),
    "switch in lower case": (
        ("inference.json",),
        {"model_file": "MODEL", "network_def#prior_attention": "false"},
        "--network_def#prior_attention false: write False",
    ),
    "window of no multiple": (("train.json",), {"patch_size": [40, 40, 40]}, "must be a multiple of 16"),
    "ET as 5": (("inference.json",), {"model_file": "MODEL", "saved_et_label": 5}, "the enhancing tumor is 4"),
    "results among the data": (("inference.json",), {"model_file": "MODEL", "output_dir": "DATA"}, "holds the data"),
}


@pytest.mark.parametrize("kind", BAD_INPUT)
def test_bad_input_gets_one_line_and_leaves_nothing(kind, cohort, training, tmp_path):
    names, changes, said = BAD_INPUT[kind]
    folder = tmp_path / "input"
    folder.mkdir()
    arguments = {"bundle_root": ROOT, "dataset_dir": cohort, "output_dir": tmp_path / "output", **SIZE}
    known = {"MODEL": training / "model.pt", "DATA": cohort}
    for key, value in changes.items():
        arguments[key] = value(folder) if callable(value) else known.get(str(value), value)
    flat = [text for key, value in arguments.items() for text in (f"--{key}", str(value))]
    done = command("monai.bundle", "run", "--config_file", str(files(*names)), *flat, cwd=tmp_path)
    assert done.returncode != 0
    lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, done.stderr[-2000:]
    assert said in lines[0]
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "output").exists()


def test_results_are_not_overwritten_in_silence(cohort, training, segmentation, tmp_path):
    before = {path: path.stat().st_mtime_ns for path in segmentation.iterdir()}
    arguments = {"dataset_dir": str(cohort), "model_file": str(training / "model.pt"), **SIZE}
    # The same inference has nothing left to do, and another one is refused.
    bundle_run("inference.json", output_dir=str(segmentation), **arguments)
    with pytest.raises(RuntimeError) as caught:
        bundle_run("inference.json", output_dir=str(segmentation), overlap=0.25, **arguments)
    assert "holds an earlier run with other settings (overlap)" in str(caught.value.__cause__)
    with pytest.raises(RuntimeError) as caught:
        bundle_run("train.json", dataset_dir=str(cohort), output_dir=str(training), **TRAINING_SIZE)
    assert "holds an earlier run" in str(caught.value.__cause__)
    assert {path: path.stat().st_mtime_ns for path in segmentation.iterdir()} == before


@pytest.mark.lab
def test_demo_command_end_to_end(models_before, phantoms, tmp_path):
    """The demo runs with two phantoms and one epoch, and a second call finds everything done."""
    arguments = ("--run_dir", str(tmp_path / "demo"), "--cases", "2", "--epochs", "1", "--seed", "2")
    # The demo would make the same phantoms as the fixture, so they are copied.
    shutil.copytree(phantoms, tmp_path / "demo" / "phantoms")
    done = command("scripts.lab.demo", *arguments, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    for name in ("picture_starter.png", "picture_demo.png"):
        assert (tmp_path / "demo" / name).read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "demo" / "train" / "model.ts").is_file()
    assert models() == models_before
    assert "mean" in done.stdout
    model = (tmp_path / "demo" / "train" / "model.pt").stat().st_mtime_ns
    again = command("scripts.lab.demo", *arguments, cwd=tmp_path)
    assert again.returncode == 0
    assert again.stdout.count("done already") == 5
    assert (tmp_path / "demo" / "train" / "model.pt").stat().st_mtime_ns == model
