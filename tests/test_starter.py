# Copyright (c) the brats_mri_panet_segmentation authors
# SPDX-License-Identifier: Apache-2.0
"""The starter weights: their files, what they are worth on patients, and the package of their own."""

import csv
import json
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from forks import python
from monai.bundle import verify_metadata, verify_net_in_out
from packaged import check_hooks, check_pages, check_workshop_is_absent
from scipy.stats import spearmanr
from scripts.brats import REGIONS
from scripts.lab import package
from scripts.utils.errors import InputError, input_error_behind
from scripts.utils.files import file_checksum
from scripts.weights.record import read_weights_record
from scripts.weights.settings import differences
from workflows import CONFIGS, ROOT, TRAINING_SIZE, bundle_run, initialized, rows, voxels

STARTER = ROOT / "models" / "starter"
MODEL = STARTER / "model.pt"
CARD = STARTER / "README.md"
NAME = "brats_mri_panet_segmentation_starter"


def overlay(name: str) -> dict:
    return yaml.safe_load((CONFIGS / name).read_text(encoding="utf-8"))


def test_the_folder_is_small_and_whole():
    assert sorted(path.name for path in STARTER.iterdir()) == ["README.md", "model.json", "model.pt"]
    assert sum(path.stat().st_size for path in STARTER.iterdir()) < 16e6
    record = read_weights_record(MODEL)
    assert record["checksum"] == file_checksum(MODEL)
    state = torch.load(MODEL, weights_only=True)
    assert all(bool(torch.isfinite(value).all()) for value in state.values() if value.is_floating_point())


def test_the_record_says_what_they_saw():
    record = read_weights_record(MODEL)
    assert (record["trained_on"]["patients"], record["trained_on"]["phantoms"]) == (74, 166)
    assert record["missing_sequences"] == 1
    card = " ".join(CARD.read_text(encoding="utf-8").split())
    for credit in ("CC BY 4.0", "CC BY 3.0", "Baid", "Adewole", "Scarpace", "10.7937/K9/TCIA.2016.RNYFUYE9"):
        assert credit in record["license"] and credit in card


def test_the_card_says_what_the_patients_of_the_folds_say():
    with (ROOT / "docs" / "benchmarks" / "starter_folds.csv").open(newline="", encoding="utf-8") as file:
        patients = list(csv.DictReader(file))
    assert len(patients) == 74
    card, readme = CARD.read_text(encoding="utf-8"), (ROOT / "README.md").read_text(encoding="utf-8")
    for count, of_africa in ((53, False), (21, True)):
        group = [row for row in patients if (row["group"] == "BraTS-Africa") is of_africa]
        assert len(group) == count
        scores = [float(np.mean([float(row[name]) for row in group])) for name in ("dice_ET", "dice_TC", "dice_WT")]
        assert re.search(" \\| ".join(rf"\**{score:.3f}\**" for score in scores), card)
        assert " | ".join(f"{score:.2f}" for score in scores) in readme
    for region in REGIONS:
        real, expected, low, high = (
            np.array([float(row[f"{name}_{region}"]) for row in patients])
            for name in ("dice", "expected_dice", "expected_dice_low", "expected_dice_high")
        )
        inside = np.mean((real >= low - 1e-9) & (real <= high + 1e-9))
        assert f"| {region} | {spearmanr(expected, real).statistic:.2f} | {inside:.0%} |".replace("%", " %") in card


def test_settings_of_use_and_of_training_are_the_same():
    used, trained = overlay("starter.yaml"), overlay("train_starter.yaml")
    record = read_weights_record(MODEL)
    assert used["network_def#channels"] == trained["network_def#channels"] == record["network"]["arguments"]["channels"]
    assert used["spacing"] == trained["spacing"] == record["spacing"]
    window = overlay("train_starter_patients.yaml")["patch_size"]
    assert used["roi_size"] == window == record["training"]["window"]
    assert used["flips"] == overlay("tta.yaml")["flips"]


def test_the_overlay_says_what_the_record_says():
    parser = initialized("inference.json", "starter.yaml", kind="infer").parser
    assert differences(read_weights_record(MODEL), parser.get_parsed_content("weights_settings")) == []


def test_where_there_are_no_weights_the_overlay_is_named(cohort, tmp_path):
    place = {"dataset_dir": str(cohort), "output_dir": str(tmp_path / "out"), "model_file": str(tmp_path / "model.pt")}
    with pytest.raises(RuntimeError) as caught:
        bundle_run("inference.json", **place)
    said = str(input_error_behind(caught.value))
    assert "no such file; add configs/starter.yaml to use the starter weights" in said


def test_a_patient_is_segmented_and_a_cohort_scored(real_cases, tmp_path):
    """The two patients with silver labels had no part in the training."""
    arguments = {"dataset_dir": str(real_cases), "output_dir": str(tmp_path / "run")}
    bundle_run("train.json", "evaluate.json", "starter.yaml", **arguments, cases="all")
    scores = rows(tmp_path / "run" / "evaluation_all" / "scores.csv")
    assert set(scores) == {"TCGA-FG-6692", "TCGA-DU-7294"}
    mean = {region: np.mean([float(row[f"dice_{region}"]) for row in scores.values()]) for region in ("TC", "WT")}
    assert mean["WT"] > 0.88 and mean["TC"] > 0.6
    bundle_run("inference.json", "starter.yaml", **{**arguments, "output_dir": str(tmp_path / "maps")})
    for case in scores:
        found = voxels(tmp_path / "maps" / f"{case}.nii.gz")
        np.testing.assert_array_equal(found, voxels(tmp_path / "run" / "evaluation_all" / f"{case}.nii.gz"))


@pytest.fixture(scope="module")
def packed(tmp_path_factory) -> Path:
    """The folder of the starter's package, as from the zip file."""
    folder = tmp_path_factory.mktemp("starter")
    assert package.main([str(folder / "dist"), "--starter", "--bundle_root", str(ROOT)]) == 0
    version = json.loads((CONFIGS / "metadata.json").read_text())["version"]
    shutil.unpack_archive(folder / "dist" / f"{NAME}_v{version}.zip", folder / "models")
    return folder / "models" / NAME


def test_the_package_has_the_starters_settings_as_its_own(packed):
    for name in ("model.pt", "model.json"):
        assert (packed / "models" / name).read_bytes() == (STARTER / name).read_bytes()
    assert sorted(path.name for path in (packed / "models").iterdir()) == ["model.json", "model.pt"]
    assert not (packed / "configs" / "starter.yaml").exists()
    for name in ("train.json", "inference.json"):
        config = json.loads((packed / "configs" / name).read_text())
        plain = json.loads((CONFIGS / name).read_text())
        for key, value in overlay("starter.yaml").items():
            *parents, last = key.split("#")
            place, before = config, plain
            for parent in parents:
                place, before = (
                    dict(zip(map(str, range(len(node))), node, strict=True)) if isinstance(node, list) else node
                    for node in (place[parent], before[parent])
                )
            assert place.get(last) == (before.get(last) if key in package.NOT_IN_STARTER_PACKAGE else value)
    metadata = json.loads((packed / "configs" / "metadata.json").read_text())
    assert package.bundle_name_and_version(packed)[0] == NAME
    assert metadata["network_data_format"] == json.loads((CONFIGS / "metadata.json").read_text())["network_data_format"]


def test_pages_of_the_package_are_its_own(packed):
    check_pages(packed)
    check_workshop_is_absent(packed)
    pages = {path.name: path.read_text(encoding="utf-8") for path in (packed / "docs").glob("*.md")}
    assert pages["README.md"].startswith("# BraTS MRI PANet segmentation starter\n")
    assert "Starter weights come with the bundle" in pages["README.md"]
    assert {"starter.md", "get_started.md", "train_and_evaluate.md"} < set(pages)
    for name, text in pages.items():
        assert "starter.yaml" not in text.replace("`starter.yaml`", ""), name


def test_the_package_passes_the_zoos_checks(packed, tmp_path):
    """The same commands as in test_model_zoo.py, which also checks what both packages share."""
    check_hooks(packed)
    pytest.importorskip("jsonschema")
    schema = tmp_path / "schema.json"
    shutil.copyfile(Path(__file__).parent / "metadata_schema.json", schema)
    verify_metadata(meta_file=str(packed / "configs" / "metadata.json"), filepath=str(schema))
    verify_net_in_out(
        net_id="network_def",
        meta_file=str(packed / "configs" / "metadata.json"),
        config_file=str(packed / "configs" / "inference.json"),
        bundle_root=str(packed),
        n=1,
        any=1,
    )
    assert re.fullmatch(r"[a-z0-9_]+", packed.name)


def test_the_package_segments_as_soon_as_it_is_unpacked(packed, cohort, tmp_path):
    arguments = ["--config_file", "configs/inference.json", "--output_dir", str(tmp_path / "maps")]
    case = sorted(path for path in cohort.rglob("BraTS20_*") if path.is_dir())[0]
    command = [python(), "-m", "monai.bundle", "run", *arguments, "--dataset_dir", str(case)]
    subprocess.run(command, cwd=packed, check=True, capture_output=True)
    bundle_run("inference.json", "starter.yaml", dataset_dir=str(case), output_dir=str(tmp_path / "here"))
    name = f"{case.name}.nii.gz"
    np.testing.assert_array_equal(voxels(tmp_path / "maps" / name), voxels(tmp_path / "here" / name))
    assert (voxels(tmp_path / "maps" / name) > 0).any()


def test_an_overlay_that_fits_no_main_configuration_is_refused(tmp_path):
    root = tmp_path / "root"
    for name in ("configs", "scripts", "docs", "models"):
        shutil.copytree(ROOT / name, root / name, ignore=shutil.ignore_patterns("__pycache__", "openvino"))
    shutil.copy(ROOT / "LICENSE", root)
    (root / "configs" / "starter.yaml").write_text("windows#lost: 1\n")
    with pytest.raises(InputError, match="windows#lost is not in train\\.json"):
        package.main([str(tmp_path / "dist"), "--starter", "--bundle_root", str(root)])
    (root / "configs" / "starter.yaml").unlink()
    with pytest.raises(InputError, match="there is no starter to package"):
        package.main([str(tmp_path / "dist"), "--starter", "--bundle_root", str(root)])
    assert not list((tmp_path / "dist").glob("*")) if (tmp_path / "dist").exists() else True


def test_both_stages_train_one_after_the_other_and_the_second_resumes(small_cohort, tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    place = {"dataset_dir": str(small_cohort), **TRAINING_SIZE}
    bundle_run("train.json", "train_starter.yaml", **place, output_dir=str(first))
    place |= {"pretrained_file": str(first / "model.pt"), "output_dir": str(second)}
    names = ("train.json", "train_starter.yaml", "train_starter_patients.yaml")
    bundle_run(*names, **place)
    bundle_run(*names, **{**place, "max_epochs": TRAINING_SIZE["max_epochs"] + 1, "resume": True})
    assert json.loads((second / "run.json").read_text())["resumed"]
    record = read_weights_record(second / "model.pt")
    assert record["missing_sequences"] == 1
    assert record["trained_on"]["origin"] == file_checksum(first / "model.pt")


def test_an_evaluation_without_a_sequence_gives_other_maps(small_cohort, tmp_path):
    case = sorted(path for path in small_cohort.rglob("BraTS20_*") if path.is_dir())[0]
    maps = []
    for names in ([], ["missing_sequence.yaml"]):
        output = tmp_path / f"maps{len(names)}"
        bundle_run("inference.json", "starter.yaml", *names, dataset_dir=str(case), output_dir=str(output))
        maps.append(voxels(output / f"{case.name}.nii.gz"))
    assert not np.array_equal(*maps)
