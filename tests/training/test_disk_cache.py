# Copyright (c) the brats_mri_panet_segmentation authors
# SPDX-License-Identifier: Apache-2.0
"""The cache on disk gives the same values as no cache; it is keyed by content, shared and bounded."""

from __future__ import annotations

import errno
import json
import logging
import multiprocessing
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser
from monai.data import DataLoader, MetaTensor, NibabelReader
from monai.transforms import (
    CropForegroundd,
    Lambdad,
    LoadImaged,
    NormalizeIntensityd,
    RandFlipd,
    RandSpatialCropd,
    SpatialPadd,
    ToDeviced,
)
from scripts.data.datalist import labeled_items
from scripts.data.images import LoadImageByReaderd, SequenceReader
from scripts.lab.benchmark import pipeline
from scripts.training import disk_cache
from scripts.training.disk_cache import GB, ArrayCache, CacheEstimate, DiskCacheDataset, describe, loader_bytes
from scripts.training.reproducibility import SeededCompose
from workflows import ROOT, TRAINING_SIZE, bundle_run, files, listed

PATCH = [24, 24, 24]
FILES = ["train.json", "train_cached.yaml"]


def brain(x: torch.Tensor) -> torch.Tensor:
    return x != 0


def chain(**changes) -> SeededCompose:
    settings = {"nonzero": True, "pad": 48, **changes}
    steps = [
        LoadImaged(["image", "label"], image_only=True, ensure_channel_first=True),
        CropForegroundd(["image", "label"], "image", select_fn=settings.get("select", brain)),
        NormalizeIntensityd("image", nonzero=settings["nonzero"], channel_wise=True),
        SpatialPadd(["image", "label"], [settings["pad"]] * 3),
        RandSpatialCropd(["image", "label"], PATCH, random_size=False),
        ToDeviced(["image", "label"], "cpu"),
        RandFlipd(["image", "label"], 0.5),
    ]
    made = SeededCompose(steps, seed=7)
    made.epoch = 2
    return made


def dataset(items, folder: Path, dtype: str = "float32", limit_gb: float = 1.0, **changes) -> DiskCacheDataset:
    return DiskCacheDataset(items, chain(**changes), folder, limit_gb=limit_gb, dtype=dtype)


def entries(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir() if path.is_dir()}


def key(letter: str) -> str:
    return letter * 40


def letters(folder: Path) -> str:
    return "".join(sorted(name[0] for name in entries(folder) if name == key(name[0])))


@pytest.fixture
def items(small_cohort) -> list[dict]:
    return labeled_items(small_cohort)[:3]


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_samples_are_those_without_a_cache(items, tmp_path, dtype):
    """In float32, values are equal to the last bit; in float16, each value is equal to 1 part in 2048."""
    cached = dataset(items, tmp_path / "cache", dtype)
    plain = chain()
    for _ in range(2):
        for index, item in enumerate(items):
            got, wanted = cached[index], plain(item)
            assert got["image"].dtype == (torch.float32 if dtype == "float32" else torch.float16)
            assert got["label"].dtype == torch.uint8
            assert torch.equal(got["label"].float(), wanted["label"].float())
            if dtype == "float32":
                assert torch.equal(got["image"], wanted["image"])
            assert torch.allclose(got["image"].float(), wanted["image"], rtol=2**-11, atol=1e-7)
            assert np.allclose(got["image"].affine, wanted["image"].affine)
            assert got["label"].meta["filename_or_obj"] == str(item["label"])
            assert {key: got[key] for key in item if key not in ("image", "label")} == {
                key: value for key, value in item.items() if key not in ("image", "label")
            }
    assert len(entries(tmp_path / "cache")) == len(items)


def test_the_second_time_no_file_is_loaded(items, tmp_path, monkeypatch):
    cached = dataset(items, tmp_path / "cache")
    first = [cached[index]["image"] for index in range(len(items))]
    monkeypatch.setattr(nib, "load", lambda *_: pytest.fail("loaded again"))
    monkeypatch.setattr(disk_cache, "file_key", lambda *_: pytest.fail("read again"))
    again = dataset(items, tmp_path / "cache")
    assert all(torch.equal(again[index]["image"], image) for index, image in enumerate(first))


def touched_kb(path: Path) -> int:
    """Return the kilobytes of the mapped file that this process has touched."""
    found, resident = False, 0
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if re.match(r"^[0-9a-f]+-[0-9a-f]+ ", line):
            found = line.endswith(str(path))
        elif found and line.startswith("Rss:"):
            resident += int(line.split()[1])
    return resident


@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="needs Linux's account of mapped files")
def test_a_crop_reads_its_own_part_of_the_file(tmp_path):
    cache = ArrayCache(tmp_path / "cache", GB)
    cache.write(key("a"), {"image": np.ones((2, 128, 256, 256), np.float16)})
    image = torch.from_numpy(cache.read(key("a"))["image"])
    file = tmp_path / "cache" / key("a") / "image.npy"
    assert touched_kb(file) < 200
    crop = RandSpatialCropd("image", [32, 256, 256], random_size=False)
    part = crop.set_random_state(0)({"image": image})["image"]
    assert float(part.clone().float().mean()) == 1
    whole = file.stat().st_size / 1024
    # The crop touches a quarter, and the kernel maps units of up to 2 MB around it.
    assert whole / 4 <= touched_kb(file) < 0.6 * whole


def test_writing_to_a_sample_leaves_the_cache_alone(tmp_path):
    cache = ArrayCache(tmp_path / "cache", GB)
    cache.write(key("a"), {"image": np.ones(10)})
    torch.from_numpy(cache.read(key("a"))["image"]).mul_(5)
    assert cache.read(key("a"))["image"].tolist() == [1] * 10


# Keys.


def test_changed_content_is_another_key_and_a_moved_cohort_is_not(items, tmp_path):
    cached = dataset(items, tmp_path / "cache")
    keys = [cached.key(item) for item in items]
    assert len(set(keys)) == 3
    moved = shutil.copytree(Path(items[0]["label"]).parent, tmp_path / "moved")
    item = labeled_items(moved)[0]
    assert {**item, "image": 0, "label": 0} == {**items[0], "image": 0, "label": 0}
    assert cached.key(item) == keys[0]
    # One byte changes, but the size and the time of change stay the same.
    path = Path(item["image"][2])
    before = path.stat()
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    changed = cached.key(item)
    assert changed not in keys
    content[-1] ^= 1
    path.write_bytes(content)
    assert cached.key(item) == keys[0]
    assert cached.key({**item, "et_label": 9}) != keys[0]
    # Images whose names tell their sequences are put in order; the others keep the given order.
    turned = dataset([{**item, "image": item["image"][::-1]}], tmp_path / "cache")
    assert turned.key(turned.data[0]) == keys[0]
    plain = [shutil.copy(file, tmp_path / f"{number}.nii.gz") for number, file in enumerate(item["image"])]
    assert cached.key({**item, "image": plain}) == keys[0]
    assert cached.key({**item, "image": plain[::-1]}) != keys[0]


def test_what_was_read_in_another_order_of_channels_is_another_key(items, tmp_path, monkeypatch):
    """The entries of both orders may lie in the same folder."""

    def key() -> str:
        loading = SeededCompose([LoadImaged("image", reader=SequenceReader())])
        return DiskCacheDataset(items, loading, tmp_path / "cache").key(items[0])

    now = key()
    monkeypatch.setattr("scripts.data.images.SEQUENCES", ("t1", "t1ce", "t2", "flair"))
    before = key()
    assert now != before


@pytest.mark.parametrize(
    "changes", [{"nonzero": False}, {"pad": 32}, {"select": torch.Tensor.bool}, {"select": lambda x: x > 0}]
)
def test_a_changed_transform_or_type_is_another_key(items, tmp_path, changes):
    plain = dataset(items, tmp_path / "cache").key(items[0])
    assert dataset(items, tmp_path / "cache").key(items[0]) == plain
    assert dataset(items, tmp_path / "cache", **changes).key(items[0]) != plain
    assert dataset(items, tmp_path / "cache", "float16").key(items[0]) != plain


def test_functions_are_told_apart_by_their_code_and_random_steps_do_not_matter(items, tmp_path):
    assert describe(lambda x: x > 0) == describe(lambda x: x > 0) != describe(lambda x: x > 1)
    assert describe(Lambdad("image", brain)) == describe(Lambdad("image", brain))
    one, other = dataset(items, tmp_path), dataset(items, tmp_path)
    one.transform.set_random_state(1), other.transform.set_random_state(2)
    assert one.key(items[0]) == other.key(items[0])


def test_keys_do_not_depend_on_the_readers_that_monai_finds(items, tmp_path, monkeypatch):
    """MONAI registers one more where the package pynrrd is installed, say."""

    def key() -> str:
        loading = SeededCompose([LoadImageByReaderd(["image", "label"], SequenceReader())])
        return DiskCacheDataset(items, loading, tmp_path / "cache").key(items[0])

    now = key()
    monkeypatch.setattr("monai.transforms.io.array.SUPPORTED_READERS", {"nibabelreader": NibabelReader})
    assert key() == now


def test_keys_are_the_same_in_every_process(small_cohort, tmp_path):
    code = (
        "import json; from scripts.lab.benchmark.pipeline import dataset; "
        "from scripts.data.datalist import labeled_items; "
        f"items = labeled_items({str(small_cohort)!r}); "
        f"made = dataset(['train.json', 'train_cached.yaml'], items, cache_dir={str(tmp_path)!r}); "
        "print(json.dumps([made.recipe, made.key(items[0])]))"
    )
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    recipe, key = json.loads(done.stdout.splitlines()[-1])
    items = labeled_items(small_cohort)
    here = pipeline.dataset(FILES, items, cache_dir=str(tmp_path))
    assert json.loads(json.dumps(here.recipe)) == recipe
    assert here.key(items[0]) == key and len(key) == 40


# Sharing.


def fill(items, folder: Path, start, results) -> None:
    torch.set_num_threads(1)
    cached = dataset(items, folder)
    start.wait()
    results.put([float(cached[index]["image"].double().sum()) for index in range(len(items))])


def test_two_processes_fill_one_cache(items, tmp_path):
    context = multiprocessing.get_context("fork")
    start, results = context.Barrier(2), context.Queue()
    processes = [context.Process(target=fill, args=(items, tmp_path / "cache", start, results)) for _ in range(2)]
    for process in processes:
        process.start()
    sums = [results.get(timeout=60) for _ in processes]
    for process in processes:
        process.join()
    plain = chain()
    wanted = [float(plain(item)["image"].double().sum()) for item in items]
    assert sums == [wanted, wanted]
    assert len(entries(tmp_path / "cache")) == len(items)
    assert not list((tmp_path / "cache").glob(".new*"))


@pytest.mark.parametrize("workers", [0, 2])
def test_workers_change_nothing(items, tmp_path, workers):
    cached = dataset(items, tmp_path / "cache", "float16")
    wanted = [dataset(items, tmp_path / "other", "float16")[index] for index in range(len(items))]
    for _ in range(2):
        for batch, item in zip(DataLoader(cached, batch_size=1, num_workers=workers), wanted, strict=True):
            assert torch.equal(batch["image"][0], item["image"]) and torch.equal(batch["label"][0], item["label"])


# Limits.


def test_a_full_disk_costs_only_time(items, tmp_path, monkeypatch, caplog):
    wanted = dataset(items, tmp_path / "other", "float16")[1]

    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(np, "save", full)
    cached = dataset(items, tmp_path / "cache", "float16")
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            got = [cached[index] for index in range(len(items))]
    assert torch.equal(got[1]["image"], wanted["image"])
    (said,) = caplog.messages
    assert said.endswith("No space left on device; free some space there, or choose another --cache_dir.")
    assert entries(tmp_path / "cache") == set()
    assert cached.cache.stopped


def test_a_folder_that_cannot_be_written_costs_only_time(items, tmp_path, caplog):
    (tmp_path / "cache").write_text("a file")
    cached = dataset(items, tmp_path / "cache")
    assert torch.equal(cached[0]["image"], chain()(items[0])["image"])
    assert len([said for said in caplog.messages if "nothing more is cached" in said]) == 1


def array(value: int, kilobytes: int = 100) -> dict[str, np.ndarray]:
    return {"image": np.full(kilobytes * 1000, value, np.uint8)}


def test_the_limit_holds_and_the_least_recently_used_go_first(tmp_path):
    earlier = ArrayCache(tmp_path, 350_000)
    for name in "abc":
        earlier.write(key(name), array(1))
    long_ago = time.time() - 1000
    for number, name in enumerate("bca"):
        os.utime(tmp_path / key(name), (long_ago + number, long_ago + number))
    cache = ArrayCache(tmp_path, 350_000)
    held = cache.read(key("b"))
    cache.write(key("d"), array(4))
    assert letters(tmp_path) == "abd", "b has just been used"
    assert int(held["image"].sum()) == 100_000
    cache.write(key("e"), array(5))
    assert letters(tmp_path) == "bde"
    assert cache.size() <= 350_000 and not cache.stopped


def test_what_is_not_the_caches_own_is_left_alone(tmp_path):
    """Somebody may name a folder that holds other files."""
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.txt").write_bytes(b"0" * 500_000)
    (tmp_path / "notes.txt").write_bytes(b"0" * 500_000)
    for path in (tmp_path / "thesis", tmp_path / "notes.txt"):
        os.utime(path, (0, 0))
    cache = ArrayCache(tmp_path, 150_000)
    for name in "ab":
        cache.write(key(name), array(1))
    assert cache.stopped and letters(tmp_path) == "a"
    assert (tmp_path / "thesis" / "chapter.txt").exists() and (tmp_path / "notes.txt").exists()


def test_in_a_full_cache_what_is_in_use_stays(tmp_path, caplog):
    cache = ArrayCache(tmp_path, 250_000)
    for number, name in enumerate("abcd"):
        cache.write(key(name), array(number))
    assert letters(tmp_path) == "ab"
    assert int(cache.read(key("b"))["image"][0]) == 1 and cache.read(key("c")) is None
    (said,) = caplog.messages
    assert "full (0.00025 GB, all of it in use); raise --cache_limit_gb" in said


def test_what_is_dropped_while_mapped_can_still_be_read(tmp_path):
    cache = ArrayCache(tmp_path, GB)
    cache.write(key("a"), array(3))
    held = cache.read(key("a"))["image"]
    cache._drop(tmp_path / key("a"))
    assert cache.read(key("a")) is None
    assert int(held.max()) == int(held.min()) == 3


def test_leftovers_of_a_killed_process_are_swept_and_damaged_entries_made_again(items, tmp_path, caplog):
    cached = dataset(items, tmp_path / "cache")
    wanted = cached[0]["image"].clone()
    (name,) = entries(tmp_path / "cache")
    (tmp_path / "cache" / f".new.{name}").mkdir()
    file = tmp_path / "cache" / name / "image.npy"
    os.truncate(file, file.stat().st_size // 2)
    assert torch.equal(cached[0]["image"], wanted)
    assert any("a damaged entry" in said for said in caplog.messages)
    assert {path.name for path in (tmp_path / "cache").iterdir() if path.is_dir()} == {name}


@pytest.mark.parametrize("lost", ["image.npy", "label.affine.npy"])
def test_an_entry_that_lacks_an_array_is_made_whole_again(items, tmp_path, lost, caplog):
    cached = dataset(items, tmp_path / "cache")
    wanted = cached[0]["image"].clone()
    (name,) = entries(tmp_path / "cache")
    (tmp_path / "cache" / name / lost).unlink()
    for _ in range(2):
        assert torch.equal(cached[0]["image"], wanted)
    assert (tmp_path / "cache" / name / lost).is_file()
    (said,) = [said for said in caplog.messages if "a damaged entry" in said]
    assert f"(no {lost.removesuffix('.npy')}) is made again" in said


def test_nothing_is_unpickled(tmp_path):
    cache = ArrayCache(tmp_path, GB)
    cache.write(key("a"), array(3))
    np.save(tmp_path / key("a") / "image.npy", np.array([{"an": "object"}]), allow_pickle=True)
    assert cache.read(key("a")) is None


def test_what_float16_cannot_hold_is_kept_in_float32(tmp_path):
    made = DiskCacheDataset([], chain(), tmp_path)
    assert made._stored(np.array([0.5, 7e4], np.float32)).dtype == np.float32
    assert made._stored(np.array([0.5, 6e4], np.float32)).dtype == np.float16
    assert made._stored(np.array([0, 255], np.float32)).dtype == np.uint8
    assert made._stored(np.array([0, 256], np.float32)).dtype == np.float16
    assert made._stored(np.array([-1, 25], np.float32)).dtype == np.float16


def test_constructing_leaves_nothing_behind_and_other_items_keep_the_cache(items, tmp_path):
    cached = dataset(items[:1], tmp_path / "cache")
    assert not (tmp_path / "cache").exists()
    cached[0]
    cached.set_data(items[1:])
    assert len(cached) == 2 and len(entries(tmp_path / "cache")) == 1
    cached[0]
    assert len(entries(tmp_path / "cache")) == 2


# The overlay.


def test_the_overlay_caches_what_train_json_does_before_its_patches():
    plain, cached = (ConfigParser.load_config_files(files(*names)) for names in (["train.json"], FILES))
    before, after = (
        [{k: v for k, v in step.items() if k != "_desc_"} for step in listed(config, "train#preprocessing#transforms")]
        for config in (plain, cached)
    )
    # The cached part checks the labels once, so the step that makes regions of them need not check.
    check = next(step for step in after if step["_target_"] == "scripts.data.transforms.CheckLabelsd")
    after.remove(check)
    regions = next(step for step in after if step["_target_"] == "scripts.data.transforms.LabelsToRegionsd")
    assert regions.pop("check") is False and check == {**regions, "_target_": check["_target_"]}
    crop = [step["_target_"] for step in before].index("RandSpatialCropd")
    assert after[: crop + 1] == before[: crop + 1]
    assert [step["_target_"] for step in after[crop + 1 : crop + 3]] == ["ToDeviced", "CastToTyped"]
    assert after[crop + 3 :] == before[crop + 1 :]


# These settings train on three of the six cases.
TRAINING = {**TRAINING_SIZE, "max_epochs": 2, "val_interval": 0, "flat_epochs": 1, "folds": 2, "fold": 0}


def train(cohort: Path, output: Path, *overlays: str, **settings) -> dict:
    chosen = {**TRAINING, "cache_dir": str(output.parent / "cache"), **settings}
    bundle_run(*FILES, *overlays, dataset_dir=str(cohort), output_dir=str(output), **chosen)
    return torch.load(output / "model_last.pt", weights_only=True)


def test_training_with_the_cache(small_cohort, tmp_path, caplog):
    """Transforms in the loader or in the training process, in one run or resumed, give the same weights."""
    with caplog.at_level(logging.INFO):
        wanted = train(small_cohort, tmp_path / "run")
    assert not [said for said in caplog.messages if "Nothing reads" in said]
    (disk,) = [said for said in caplog.messages if said.startswith("Cache ")]
    assert re.search(r"GB on disk for 3 cases \([\d.e-]+ MB each\); limit 100 GB", disk)
    (memory,) = [said for said in caplog.messages if said.startswith("The loader takes")]
    assert "for any number of cases" in memory
    assert len(entries(tmp_path / "cache")) == 3
    in_process = train(small_cohort, tmp_path / "in_process", augment_in_loader=False)
    # The first part has the schedule of the whole training, as a resumed training needs.
    train(small_cohort, tmp_path / "parts", **{"train#trainer#max_epochs": 1, "lr_scheduler#max_epochs": 2})
    resumed = train(small_cohort, tmp_path / "parts", "train_resume.yaml")
    for name, value in wanted.items():
        assert torch.equal(value, in_process[name]), name
        assert torch.equal(value, resumed[name]), name
    assert not (ROOT / "cache").exists()


def test_the_loaders_memory_does_not_depend_on_the_number_of_cases(small_cohort, tmp_path):
    items = labeled_items(small_cohort)
    few, many = dataset(items[:1], tmp_path / "cache"), dataset(items * 50, tmp_path / "cache")
    wanted = {len(made): loader_bytes(DataLoader(made, batch_size=2, num_workers=2), made) for made in (few, many)}
    assert wanted[1] == wanted[300] > 2 * 5 * 60 * 60 * 39 * 4
    assert loader_bytes(DataLoader(few, batch_size=2), dataset([], tmp_path / "cache")) == 0
    assert dataset([], tmp_path / "cache").estimate() == {"cases": 0, "mb_each": 0, "gb": 0}
    assert isinstance(few[0]["image"], MetaTensor)


def test_a_cohort_that_does_not_fit_is_told_of_before_the_start(small_cohort, tmp_path, caplog):
    items = labeled_items(small_cohort)
    each = dataset(items, tmp_path / "other").estimate(6)["mb_each"]
    small = dataset(items, tmp_path / "cache", limit_gb=each * 4.5 / 1000)
    CacheEstimate(small, DataLoader(small)).started(None)
    (said,) = [said for said in caplog.messages if "room for" in said]
    assert re.match(r"The cache has room for about [345] of 6 cases, and the others are loaded anew each time: ", said)
