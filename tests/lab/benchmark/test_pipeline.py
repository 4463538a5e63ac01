# Copyright (c) the brats_mri_panet_segmentation authors
# SPDX-License-Identifier: Apache-2.0
"""The benchmark compares like with like: all ways draw the same samples and differ in the deformation alone."""

import json

import pytest
import torch
from monai.bundle import ConfigParser
from monai.transforms import Rand3DElasticd
from scripts.data.datalist import labeled_items
from scripts.lab.benchmark import __main__, pipeline
from scripts.training.augmentation import RandFastElasticd

SMALL = {"spacing": [4.0] * 3, "patch_size": [32] * 3}


@pytest.fixture
def ways(small_cohort, tmp_path) -> list:
    items = labeled_items(small_cohort)[:2]
    place = {"cache_dir": str(tmp_path / "cache"), **SMALL}
    authors = {"train#random_transforms": pipeline.authors_transforms()}
    return [
        pipeline.dataset(["train.json"], items, **authors, **SMALL),
        pipeline.dataset(["train.json"], items, **SMALL),
        pipeline.dataset(["train.json", "train_cached.yaml"], items, **place),
    ]


def test_the_authors_way_is_train_json_with_monais_deformation():
    plain = ConfigParser.load_config_file(str(pipeline.CONFIGS / "train.json"))["train"]["random_transforms"]
    authors = pipeline.authors_transforms()
    (position,) = [number for number, step in enumerate(plain) if step != authors[number]]
    assert len(authors) == len(plain)
    assert authors[position]["_target_"] == "Rand3DElasticd"
    assert plain[position]["_target_"] == "scripts.training.augmentation.RandFastElasticd"
    assert {**authors[position], "_target_": ""} == {**plain[position], "_target_": ""}


def test_all_ways_make_the_same_samples_but_for_the_authors_deformation(ways):
    cached = ways[-1]
    deformations = []
    for epoch in range(12):
        for made in ways:
            made.transform.epoch = epoch
        by_monai, wanted, got = (made[epoch % 2] for made in ways)
        drawn = [
            step._do_transform
            for made in ways
            for step in made.transform.transforms
            if isinstance(step, (Rand3DElasticd, RandFastElasticd))
        ]
        assert drawn == [pipeline.deformed(cached, epoch)] * 3
        deformations.append(drawn[0])
        assert got["image"].dtype == torch.float32 and got["label"].dtype == wanted["label"].dtype
        # The cache holds float16.
        assert torch.allclose(got["image"], wanted["image"], rtol=2e-3, atol=2e-3)
        assert torch.equal(got["label"], wanted["label"])
        if not drawn[0]:
            assert torch.equal(by_monai["label"], wanted["label"])
            # MONAI resamples even if there is no displacement.
            assert torch.allclose(by_monai["image"], wanted["image"], rtol=2e-3, atol=2e-3)
    assert 0 < sum(deformations) < len(deformations)


def test_the_time_of_every_step_is_told(ways):
    plain, cached = (pipeline.step_times(made, 2) for made in ways[1:])
    assert list(plain) == [type(step).__name__ for step in ways[1].transform.transforms]
    assert list(cached)[:3] == ["cache", "RandSpatialCropd", "ToDeviced"]
    assert all(value >= 0 for times in (plain, cached) for value in times.values())


def test_the_command_writes_its_rows(small_cohort, tmp_path, monkeypatch):
    made = pipeline.dataset
    monkeypatch.setattr(pipeline, "dataset", lambda *args, **settings: made(*args, **settings, **SMALL))
    threads = torch.get_num_threads()
    settings = ["--cases", "1", "--samples", "1", "--runs", "1", "--output", str(tmp_path / "out.json")]
    assert __main__.main(["pipeline", "--dataset_dir", str(small_cohort), *settings]) == 0
    assert torch.get_num_threads() == threads
    content = json.loads((tmp_path / "out.json").read_text())
    rows = {row["name"]: row for row in content["rows"]}
    assert set(rows) >= {"the authors' way", "train.json", "train_cached.yaml"}
    assert rows["the authors' way"]["times_faster"] == 1
    for row in rows.values():
        assert row["samples_per_s_and_core"] == pytest.approx(1 / row["median_s"])
    assert content["facts"]["cases"] == 1
