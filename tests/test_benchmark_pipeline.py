# Copyright (c) the brats_mri_panet_segmentation authors
# SPDX-License-Identifier: Apache-2.0
"""The benchmark compares like with like: both ways draw the same, and but for the deformation make the same sample."""

from __future__ import annotations

import json

import pytest
import torch
from monai.transforms import Rand3DElasticd
from scripts.augmentation import RandFastElasticd
from scripts.benchmark import __main__, pipeline
from scripts.data.datalist import labeled_items

SMALL = {"spacing": [4.0] * 3, "patch_size": [32] * 3}


@pytest.fixture
def both(small_cohort, tmp_path) -> list:
    items = labeled_items(small_cohort)[:2]
    place = {"cache_dir": str(tmp_path / "cache"), **SMALL}
    return [
        pipeline.dataset(["train.json"], items, **SMALL),
        pipeline.dataset(["train.json", "train_cached.yaml"], items, **place),
    ]


def test_both_ways_make_the_same_samples_but_for_the_deformation(both):
    plain, cached = both
    deformations = []
    for epoch in range(12):
        plain.transform.epoch = cached.transform.epoch = epoch
        wanted, got = plain[epoch % 2], cached[epoch % 2]
        drawn = [
            step._do_transform
            for made in both
            for step in made.transform.transforms
            if isinstance(step, (Rand3DElasticd, RandFastElasticd))
        ]
        assert drawn[0] == drawn[1] == pipeline.deformed(cached, epoch)
        deformations.append(drawn[0])
        assert got["image"].dtype == torch.float32 and got["label"].dtype == wanted["label"].dtype
        if drawn[0]:
            continue
        assert torch.equal(got["label"], wanted["label"])
        # float16 in the cache; and MONAI resamples without a displacement, too.
        assert torch.allclose(got["image"], wanted["image"], rtol=2e-3, atol=2e-3)
    assert 0 < sum(deformations) < len(deformations)


def test_the_time_of_every_step_is_told(both):
    plain, cached = (pipeline.step_times(made, 2) for made in both)
    assert list(plain) == [type(step).__name__ for step in both[0].transform.transforms]
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
    assert set(rows) >= {"train.json", "train_cached.yaml"}
    for row in rows.values():
        assert row["samples_per_s_and_core"] == pytest.approx(1 / row["median_s"])
    assert content["facts"]["cases"] == 1
