# Copyright (c) the brats_mri_panet_segmentation authors
# SPDX-License-Identifier: Apache-2.0
"""The cache on disk gives the same values as no cache; it is keyed by files and settings, shared and bounded."""

import errno
import json
import logging
import multiprocessing
import os
import re
import shutil
import subprocess
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from forks import python
from monai.bundle import ConfigParser
from monai.data import DataLoader, NibabelReader
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
from scripts.training.disk_cache import DiskCacheDataset, describe
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


def entries(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.pt"))


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
    file = tmp_path / "entry.pt"
    torch.save({"image": (torch.ones(2, 128, 256, 256, dtype=torch.float16), torch.eye(4))}, file)
    image, _ = dataset([], tmp_path)._read(file)["image"]
    assert touched_kb(file) < 200
    crop = RandSpatialCropd("image", [32, 256, 256], random_size=False)
    part = crop.set_random_state(0)({"image": image})["image"]
    assert float(part.clone().float().mean()) == 1
    whole = file.stat().st_size / 1024
    # The crop touches a quarter, and the kernel maps units of up to 2 MB around it.
    assert whole / 4 <= touched_kb(file) < 0.6 * whole


def test_writing_to_a_sample_leaves_the_cache_alone(items, tmp_path):
    cached = dataset(items, tmp_path / "cache")
    wanted = cached._cachecheck(items[0])["image"].clone()
    cached._cachecheck(items[0])["image"].mul_(5)
    assert torch.equal(cached._cachecheck(items[0])["image"], wanted)


# Keys.


def test_changed_files_have_another_entry(items, tmp_path):
    cached = dataset(items, tmp_path / "cache")
    keys = [cached.path(item) for item in items]
    assert len(set(keys)) == 3
    moved = shutil.copytree(Path(items[0]["label"]).parent, tmp_path / "moved")
    item = labeled_items(moved)[0]
    assert {**item, "image": 0, "label": 0} == {**items[0], "image": 0, "label": 0}
    before = cached.path(item)
    assert before == cached.path(item) and before not in keys
    # One byte changes, but the size and the time of change stay the same.
    path = Path(item["image"][2])
    stat = path.stat()
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    changed = cached.path(item)
    assert changed != before
    assert cached.path({**item, "et_label": 9}) != changed
    # Images whose names tell their sequences are put in order; the others keep the given order.
    turned = dataset([{**item, "image": item["image"][::-1]}], tmp_path / "cache")
    assert turned.path(turned.data[0]) == changed
    plain = [shutil.copy(file, tmp_path / f"{number}.nii.gz") for number, file in enumerate(item["image"])]
    assert cached.path({**item, "image": plain}) != cached.path({**item, "image": plain[::-1]})


def test_another_order_of_channels_has_another_entry(items, tmp_path, monkeypatch):
    def path() -> Path:
        loading = SeededCompose([LoadImaged("image", reader=SequenceReader())])
        return DiskCacheDataset(items, loading, tmp_path / "cache").path(items[0])

    now = path()
    monkeypatch.setattr("scripts.data.images.SEQUENCES", ("t1", "t1ce", "t2", "flair"))
    assert path() != now


@pytest.mark.parametrize(
    "changes", [{"nonzero": False}, {"pad": 32}, {"select": torch.Tensor.bool}, {"select": lambda x: x > 0}]
)
def test_a_changed_transform_or_type_has_another_entry(items, tmp_path, changes):
    plain = dataset(items, tmp_path / "cache").path(items[0])
    assert dataset(items, tmp_path / "cache").path(items[0]) == plain
    assert dataset(items, tmp_path / "cache", **changes).path(items[0]) != plain
    assert dataset(items, tmp_path / "cache", "float16").path(items[0]) != plain


def test_functions_are_told_apart_by_their_code_and_random_steps_do_not_matter(items, tmp_path):
    assert describe(lambda x: x > 0) == describe(lambda x: x > 0) != describe(lambda x: x > 1)
    assert describe(Lambdad("image", brain)) == describe(Lambdad("image", brain))
    one, other = dataset(items, tmp_path), dataset(items, tmp_path)
    one.transform.set_random_state(1), other.transform.set_random_state(2)
    assert one.path(items[0]) == other.path(items[0])


def test_entries_do_not_depend_on_the_readers_that_monai_finds(items, tmp_path, monkeypatch):
    """MONAI registers one more where the package pynrrd is installed, say."""

    def path() -> Path:
        loading = SeededCompose([LoadImageByReaderd(["image", "label"], SequenceReader())])
        return DiskCacheDataset(items, loading, tmp_path / "cache").path(items[0])

    now = path()
    monkeypatch.setattr("monai.transforms.io.array.SUPPORTED_READERS", {"nibabelreader": NibabelReader})
    assert path() == now


def test_entries_are_the_same_in_every_process(small_cohort, tmp_path):
    code = (
        "import json; from scripts.lab.benchmark.pipeline import dataset; "
        "from scripts.data.datalist import labeled_items; "
        f"items = labeled_items({str(small_cohort)!r}); "
        f"made = dataset(['train.json', 'train_cached.yaml'], items, cache_dir={str(tmp_path)!r}); "
        "print(json.dumps([made.recipe, str(made.path(items[0]))]))"
    )
    done = subprocess.run([python(), "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    recipe, path = json.loads(done.stdout.splitlines()[-1])
    items = labeled_items(small_cohort)
    here = pipeline.dataset(FILES, items, cache_dir=str(tmp_path))
    assert here.recipe == recipe
    assert str(here.path(items[0])) == path


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
    sums = [results.get(timeout=600) for _ in processes]
    for process in processes:
        process.join()
    plain = chain()
    wanted = [float(plain(item)["image"].double().sum()) for item in items]
    assert sums == [wanted, wanted]
    assert len(entries(tmp_path / "cache")) == len(items)
    assert entries(tmp_path / "cache") == sorted((tmp_path / "cache").iterdir())


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

    monkeypatch.setattr(torch, "save", full)
    cached = dataset(items, tmp_path / "cache", "float16")
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            got = [cached[index] for index in range(len(items))]
    assert torch.equal(got[1]["image"], wanted["image"])
    (said,) = caplog.messages
    assert said.endswith("(No space left on device); make room there, or choose another folder.")
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_folder_that_cannot_be_written_costs_only_time(items, tmp_path, caplog):
    (tmp_path / "cache").write_text("a file")
    cached = dataset(items, tmp_path / "cache")
    assert torch.equal(cached[0]["image"], chain()(items[0])["image"])
    assert len([said for said in caplog.messages if "nothing more is cached" in said]) == 1


def test_the_limit_holds(items, tmp_path, caplog):
    first = dataset(items, tmp_path / "cache")
    wanted = [first[index]["image"].clone() for index in range(3)]
    each = entries(tmp_path / "cache")[0].stat().st_size
    shutil.rmtree(tmp_path / "cache")
    # Somebody may name a folder that holds other files.
    (tmp_path / "cache" / "thesis").mkdir(parents=True)
    (tmp_path / "cache" / "notes.txt").write_bytes(b"0" * 10 * each)
    small = dataset(items, tmp_path / "cache", limit_gb=2.5 * each / 1e9)
    for _ in range(2):
        assert all(torch.equal(small[index]["image"], wanted[index]) for index in range(3))
    assert len(entries(tmp_path / "cache")) == 2
    assert {"thesis", "notes.txt"} < {path.name for path in (tmp_path / "cache").iterdir()}
    (said,) = caplog.messages
    assert "GB are full; remove old entries, or raise --cache_limit_gb." in said


def test_what_is_removed_while_mapped_can_still_be_read(items, tmp_path):
    cached = dataset(items, tmp_path / "cache")
    wanted = cached._cachecheck(items[0])["image"].clone()
    held = cached._cachecheck(items[0])["image"]
    cached.path(items[0]).unlink()
    assert torch.equal(held, wanted)


def test_damaged_entries_are_made_again(items, tmp_path, caplog):
    cached = dataset(items, tmp_path / "cache")
    wanted = cached[0]["image"].clone()
    (file,) = entries(tmp_path / "cache")
    os.truncate(file, file.stat().st_size // 2)
    for _ in range(2):
        assert torch.equal(cached[0]["image"], wanted)
    (said,) = caplog.messages
    assert "a damaged entry is made again" in said


def test_nothing_is_unpickled(tmp_path):
    torch.save(Path("an object"), tmp_path / "entry.pt")
    assert dataset([], tmp_path)._read(tmp_path / "entry.pt") is None


def test_what_float16_cannot_hold_is_kept_in_float32(tmp_path):
    made = dataset([], tmp_path, "float16")
    kinds = [([0.5, 7e4], torch.float32), ([0.5, 6e4], torch.float16), ([0, 255], torch.uint8)]
    for values, dtype in [*kinds, ([0, 256], torch.float16), ([-1, 25], torch.float16)]:
        assert made._stored(torch.tensor(values, dtype=torch.float32)).dtype == dtype


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
    assert len(entries(tmp_path / "cache")) == 3
    in_process = train(small_cohort, tmp_path / "in_process", augment_in_loader=False)
    # The first part has the schedule of the whole training, as a resumed training needs.
    train(small_cohort, tmp_path / "parts", **{"train#trainer#max_epochs": 1, "lr_scheduler#max_epochs": 2})
    resumed = train(small_cohort, tmp_path / "parts", resume=True)
    for name, value in wanted.items():
        assert torch.equal(value, in_process[name]), name
        assert torch.equal(value, resumed[name]), name
    assert not (ROOT / "cache").exists()
