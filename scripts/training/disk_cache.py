# Copyright (c) the brats_mri_panet_segmentation authors
# SPDX-License-Identifier: Apache-2.0
"""A cache on disk for the part of the preprocessing that is the same in every epoch.

A patch is read from the cache without the rest of its case.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import logging
import os
import re
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from copy import deepcopy
from enum import Enum
from functools import partial
from pathlib import Path
from types import CodeType
from typing import Any

import monai
import numpy as np
import torch
from ignite.engine import Events
from monai.data import MetaTensor, PersistentDataset
from monai.engines.workflow import Workflow
from monai.transforms import Compose, Transform
from monai.transforms.traits import RandomizableTrait
from scripts.data.cases import image_files, resolve_image
from scripts.data.dicom import series_files
from scripts.data.images import open_image
from scripts.training.augmentation import device_step
from scripts.utils.files import file_checksum

logger = logging.getLogger(__name__)

# A part of every key. Raise it when the content or the form of the entries changes.
FORMAT = 1
GB = 10**9
# Names of the cache's own entries in its folder. Nothing else there is counted or dropped.
OWN = re.compile(r"(\.new\.|\.old\.)?[0-9a-f]{40}(\.txt)?")


class ArrayCache:
    """Entries of named arrays in a folder. Each entry is whole or absent, and together they stay within a limit.

    Several processes may share the folder: an entry is made under a lock and moved into place, and arrays that are
    being read stay readable when their entry is dropped. Arrays are ``.npy`` files. They are mapped into memory and
    never unpickled.

    When the limit is reached, entries that were not used since this object was made are dropped, the least recently
    used first. When there is no such entry, or the disk is full or cannot be written, nothing more is stored, and one
    warning says so.

    Args:
        folder: folder of the cache, which is made with the first entry.
        limit_bytes: limit for all entries in the folder. Their keys are hashes (``value_key``). Other files are left
            alone.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     cache, key = ArrayCache(folder, limit_bytes=GB), value_key("case 1")
        ...     cache.write(key, {"label": np.array([0, 4], np.uint8)})
        ...     cache.read(key)["label"].tolist(), cache.read(value_key("case 2"))
        ([0, 4], None)
    """

    def __init__(self, folder: str | Path, limit_bytes: float) -> None:
        self.folder = Path(folder)
        self.limit_bytes = limit_bytes
        self.started = time.time()
        # The loader's workers share this flag, so that only one of them warns.
        self._stopped = torch.zeros(1, dtype=torch.uint8).share_memory_()

    @property
    def stopped(self) -> bool:
        """Whether the cache has stopped storing entries."""
        return bool(self._stopped)

    def read(self, key: str, names: Iterable[str] = ()) -> dict[str, np.ndarray] | None:
        """The entry's arrays, mapped into memory; None if there is no entry.

        Writing to the arrays does not change the files. An entry that is damaged or lacks one of ``names`` is dropped,
        so that it can be written again.
        """
        folder = self.folder / key
        try:
            arrays = {
                path.name.removesuffix(".npy"): np.load(path, mmap_mode="c", allow_pickle=False)
                for path in sorted(folder.iterdir())
            }
            if lacking := set(names) - set(arrays):
                raise ValueError(f"no {', '.join(sorted(lacking))}")
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            self._stop_for(error)
            return None
        except (ValueError, EOFError) as error:
            logger.warning("%s: a damaged entry (%s) is made again.", folder, error)
            with contextlib.suppress(OSError):
                self._drop(folder)
            return None
        self._mark(folder)
        return arrays

    def write(self, key: str, arrays: Mapping[str, np.ndarray]) -> None:
        """Store an entry if there is room. An existing entry of the same key stays."""
        with self._locked() as storing:
            if not storing or (self.folder / key).exists():
                return
            if not self._make_room(sum(array.nbytes + 128 for array in arrays.values())):
                self._stop(f"full ({self.limit_bytes / GB:g} GB, all of it in use); raise --cache_limit_gb")
                return
            temporary = self.folder / f".new.{key}"
            temporary.mkdir()
            try:
                for name, array in arrays.items():
                    with (temporary / f"{name}.npy").open("wb") as file:
                        np.save(file, array, allow_pickle=False)
                        file.flush()
                        os.fsync(file.fileno())
                temporary.rename(self.folder / key)
            except BaseException:
                shutil.rmtree(temporary, ignore_errors=True)
                raise

    def read_note(self, key: str) -> str | None:
        """The short text under ``key``; None if there is none."""
        path = self.folder / f"{key}.txt"
        try:
            text = path.read_text(encoding="ascii")
        except (OSError, ValueError):
            return None
        self._mark(path)
        return text

    def write_note(self, key: str, text: str) -> None:
        """Store a short text under ``key``."""
        with self._locked() as storing:
            if storing and self._make_room(4096):
                temporary = self.folder / f".new.{key}.txt"
                temporary.write_text(text, encoding="ascii")
                temporary.replace(self.folder / f"{key}.txt")

    def size(self) -> int:
        """Size of all files of the cache, in bytes."""
        return sum(size for _, size, _ in self._entries())

    @contextlib.contextmanager
    def _locked(self) -> Iterator[bool]:
        """Hold the folder's lock and yield True, or yield False if the cache has stopped. A disk error stops it."""
        entered = False
        try:
            if not self.stopped:
                self.folder.mkdir(parents=True, exist_ok=True)
                with (self.folder / ".lock").open("w") as lock:
                    fcntl.flock(lock, fcntl.LOCK_EX)
                    entered = True
                    yield True
        except OSError as error:
            self._stop_for(error)
        if not entered:
            yield False

    def _stop_for(self, error: OSError) -> None:
        self._stop(f"{error.strerror or error}; free some space there, or choose another --cache_dir")

    def _stop(self, reason: str) -> None:
        if not self.stopped:
            self._stopped.fill_(1)
            logger.warning("%s: nothing more is cached, so training goes on more slowly: %s.", self.folder, reason)

    def _entries(self) -> list[tuple[float, int, Path]]:
        """Time of last use, size in bytes and path of each of the cache's own entries."""
        found = []
        with contextlib.suppress(FileNotFoundError):
            for entry in filter(lambda entry: OWN.fullmatch(entry.name), os.scandir(self.folder)):
                with contextlib.suppress(FileNotFoundError, NotADirectoryError):
                    files = os.scandir(entry.path) if entry.is_dir() else [entry]
                    size = sum(file.stat().st_size for file in files)
                    found.append((entry.stat().st_mtime, size, Path(entry.path)))
        return found

    def _make_room(self, size: int) -> bool:
        """Drop entries until ``size`` bytes fit, and return whether they fit. The caller holds the lock."""
        kept = []
        for used, taken, path in sorted(self._entries()):
            # This process holds the lock, so the process that made this was killed.
            if path.name.startswith((".new.", ".old.")):
                self._drop(path)
            else:
                kept.append((used, taken, path))
        excess = sum(taken for _, taken, _ in kept) + size - self.limit_bytes
        for used, taken, path in kept:
            if excess <= 0 or used >= self.started:
                break
            self._drop(path)
            excess -= taken
        return excess <= 0

    def _drop(self, path: Path) -> None:
        # Renaming first keeps readers from finding half an entry. Mapped files stay until they are unmapped.
        with contextlib.suppress(FileNotFoundError):
            if path.is_dir():
                away = path if path.name.startswith(".") else path.rename(self.folder / f".old.{path.name}")
                shutil.rmtree(away, ignore_errors=True)
            else:
                path.unlink()

    def _mark(self, path: Path) -> None:
        # The folder of another user may be read only.
        with contextlib.suppress(OSError):
            os.utime(path)


class DiskCacheDataset(PersistentDataset):
    """A dataset that runs the transforms before the first random one once for each case and keeps the result on disk.

    The key of an entry depends on everything that the entry is made from: the content of the case's files, the item's
    other values, and the class and settings of each transform. The content enters as a hash of the files' bytes, which
    is computed again when path, size or a time stamp changes. So a moved cohort or a changed setting cannot lead to a
    wrong entry. The code of a transform is part of the key only if the transform is a bare function. No case is kept in
    memory.

    Arrays of whole numbers from 0 to 255, such as labels, are kept as uint8, all others as ``dtype``. The random
    transforms get these types whether the entry comes from the disk or not. They also get each tensor's affine and file
    name, but no values that earlier transforms wrote into the item outside of ``keys``.

    Args:
        data: items with file names (or lists of them) under ``keys``.
        transform: all transforms. The first random one and all that follow run each time.
        cache_dir: folder for the cache alone. Several trainings may share it.
        limit_gb: limit for the folder (10^9 bytes).
        keys: keys of the files, and of the tensors that are made from them.
        dtype: ``float16`` or ``float32``. ``float16`` is exact to 1 in 2048; it is half as large and so twice as fast
            to read.
        until_device: stop before the first ``ToDeviced`` and leave the other steps to ``AugmentBatch``.
    """

    def __init__(
        self,
        data: Sequence[Any],
        transform: Compose,
        cache_dir: str | Path,
        limit_gb: float = 100.0,
        keys: Sequence[str] = ("image", "label"),
        dtype: str = "float16",
        until_device: bool = False,
    ) -> None:
        super().__init__(data=data, transform=transform, cache_dir=None)
        self.cache = ArrayCache(cache_dir, limit_gb * GB)
        self.keys = tuple(keys)
        self.dtype = np.dtype(dtype)
        self.first_random = self.transform.get_index_of_first(
            lambda step: isinstance(step, RandomizableTrait) or not isinstance(step, Transform)
        )
        self.end = device_step(self.transform) if until_device else None
        steps = self.transform.transforms[: self.first_random]
        self.recipe = [FORMAT, monai.__version__, self.dtype.name, self.keys, *(describe(step) for step in steps)]

    def set_data(self, data: Sequence[Any]) -> None:
        """Replace the items. The cache stays, since each item has a key of its own."""
        self.data = data

    def key(self, item: Mapping[str, Any]) -> str:
        """Key of the item's entry."""
        files = {key: [file for path in _files(item[key]) for file in series_files(path)] for key in self.keys}
        stats = [(path, os.stat(path)) for paths in files.values() for path in paths]
        seen = value_key([(str(Path(path).resolve()), s.st_size, s.st_mtime_ns, s.st_ctime_ns) for path, s in stats])
        content = self.cache.read_note(seen)
        if content is None:
            content = value_key([[key, [file_key(path) for path in paths]] for key, paths in files.items()])
            self.cache.write_note(seen, content)
        others = {key: value for key, value in item.items() if key not in self.keys}
        return value_key([self.recipe, content, others])

    def _cachecheck(self, item_transformed: Mapping[str, Any]) -> dict[str, Any]:
        """The item after the transforms before the first random one. It is read from the cache or stored there."""
        key = self.key(item_transformed)
        arrays = self.cache.read(key, [name for array in self.keys for name in (array, f"{array}.affine")])
        if arrays is None:
            arrays = self._compute(item_transformed)
            self.cache.write(key, arrays)
        result = dict(item_transformed)
        for name in self.keys:
            meta = {"filename_or_obj": _files(item_transformed[name])[0]}
            affine = torch.tensor(np.array(arrays[f"{name}.affine"]))
            result[name] = MetaTensor(torch.from_numpy(arrays[name]), affine=affine, meta=meta)
        return result

    def _compute(self, item: Mapping[str, Any]) -> dict[str, np.ndarray]:
        made = self._pre_transform(deepcopy(dict(item)))
        arrays = {}
        for name in self.keys:
            arrays[name] = self._stored(made[name].numpy())
            arrays[f"{name}.affine"] = made[name].affine.numpy().astype(np.float64)
        return arrays

    def _stored(self, array: np.ndarray) -> np.ndarray:
        low, high = array.min(), array.max()
        if low >= 0 and high <= 255 and np.array_equal(array, array.astype(np.uint8)):
            return np.ascontiguousarray(array, np.uint8)
        # A value beyond the range of float16 would become infinite.
        fits = max(-low, high) <= np.finfo(self.dtype).max
        return np.ascontiguousarray(array, self.dtype if fits else np.float32)

    def _post_transform(self, item_transformed: Any) -> Any:
        """Run the random transforms that the loader runs."""
        if self.first_random is None:
            return item_transformed
        return self.transform(item_transformed, start=self.first_random, end=self.end)

    def estimate(self, cases: int = 3) -> dict[str, float]:
        """Estimate the size of the whole cache on disk from a few cases, which are stored in the cache.

        Args:
            cases: number of cases to look at.

        Returns:
            The number of all cases (``cases``), the size of one (``mb_each``, MB) and of all (``gb``, GB).
        """
        chosen = sorted(
            {round(i * (len(self.data) - 1) / max(1, cases - 1)) for i in range(min(cases, len(self.data)))}
        )
        sizes = []
        for index in chosen:
            item = self._cachecheck(self.data[index])
            sizes.append(sum(item[name].numel() * item[name].element_size() for name in self.keys))
        each = float(np.mean(sizes)) if sizes else 0.0
        return {"cases": len(self.data), "mb_each": each / 10**6, "gb": each * len(self.data) / GB}


class CacheEstimate:
    """A handler that logs, before a training's first epoch, how much space its cache and its loader will take.

    Args:
        dataset: the cached dataset.
        dataloader: the loader that reads it.
    """

    def __init__(self, dataset: DiskCacheDataset, dataloader: Any) -> None:
        self.dataset = dataset
        self.dataloader = dataloader

    def attach(self, engine: Workflow) -> None:
        """Log the estimate when ``engine`` starts."""
        engine.add_event_handler(Events.STARTED, self.started)

    def started(self, engine: Workflow) -> None:
        """Log the estimate."""
        cache = self.dataset.cache
        disk = self.dataset.estimate()
        free = shutil.disk_usage(cache.folder if cache.folder.exists() else ".").free
        logger.info(
            "Cache %s: about %.3g GB on disk for %d cases (%.3g MB each); limit %g GB, %.3g GB free there.",
            cache.folder,
            disk["gb"],
            disk["cases"],
            disk["mb_each"],
            cache.limit_bytes / GB,
            free / GB,
        )
        room = min(cache.limit_bytes, free + cache.size()) / GB
        if disk["gb"] > room:
            logger.warning(
                "The cache has room for about %d of %d cases, and the others are loaded anew each time: raise "
                "--cache_limit_gb, or choose another --cache_dir.",
                disk["cases"] * room / disk["gb"],
                disk["cases"],
            )
        memory = loader_bytes(self.dataloader, self.dataset)
        logger.info(
            "The loader takes at most about %.2g GB of memory, for any number of cases; the system keeps files of the "
            "cache in the rest.",
            memory / GB,
        )


def loader_bytes(dataloader: Any, dataset: DiskCacheDataset) -> float:
    """Upper estimate of a loader's memory, bytes.

    Each worker holds the case that it prepares and the batches that it has made in advance.
    """
    if not len(dataset):
        return 0.0
    item = dataset.data[0]
    voxels = sum(int(np.prod(open_image(path).shape)) for key in dataset.keys for path in _files(item[key]))
    # The factor is measured (docs/performance.md): float32 copies as loaded, cropped and normalized, and all else.
    case = 4 * 4 * voxels
    sample = dataset[0]
    batch = dataloader.batch_size * sum(sample[key].numel() * sample[key].element_size() for key in dataset.keys)
    return max(1, dataloader.num_workers) * (case + batch * (1 + (dataloader.prefetch_factor or 1)))


def _files(value: Any) -> list[str]:
    # The entries of a caller such as MONAI Label have not passed through a datalist of the bundle.
    return image_files(resolve_image(value))


def value_key(value: Any) -> str:
    """Hash of a value that JSON can hold, as 40 hexadecimal digits. The order of keys does not matter.

    Example:
        >>> value_key({"spacing": 1.0, "case": "a"}) == value_key({"case": "a", "spacing": 1.0})
        True
    """
    return hashlib.blake2b(json.dumps(value, sort_keys=True, default=str).encode(), digest_size=20).hexdigest()


def file_key(path: str | Path) -> str:
    """Hash of a file's bytes, as 40 hexadecimal digits."""
    return file_checksum(path, "blake2b", digest_size=20)


def describe(value: Any, within: Iterable[int] = ()) -> Any:
    """Class and settings of a transform and of everything inside it, as plain values.

    Equal transforms have equal descriptions in every process.

    Example:
        >>> from monai.transforms import Flip
        >>> describe(Flip(0)) == describe(Flip(0)), describe(Flip(0)) == describe(Flip(1))
        (True, False)
    """
    if value is None or (isinstance(value, (bool, int, float, str)) and not isinstance(value, Enum)):
        return value
    if id(value) in within:
        return "..."
    inside = partial(describe, within=(*within, id(value)))
    if isinstance(value, np.generic):
        return inside(value.item())
    if isinstance(value, (np.ndarray, torch.Tensor)):
        array = np.asarray(value)
        return [str(array.dtype), array.shape, hashlib.blake2b(array.tobytes(), digest_size=20).hexdigest()]
    if isinstance(value, Mapping):
        return {str(key): inside(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [inside(entry) for entry in value]
    if isinstance(value, (set, frozenset)):
        return sorted(json.dumps(inside(entry)) for entry in value)
    if isinstance(value, (Enum, Path, torch.dtype, torch.device, np.dtype)):
        return str(value)
    if isinstance(value, partial):
        return [inside(value.func), inside(value.args), inside(value.keywords)]
    if hasattr(value, "__qualname__"):  # a class or a function
        code = getattr(value, "__code__", None)
        return [f"{getattr(value, '__module__', '')}.{value.__qualname__}", *([] if code is None else _code(code))]
    # A random state (R) is set again for each case.
    settings = {name: inside(entry) for name, entry in vars(value).items() if name != "R"} if _has_vars(value) else {}
    return [f"{type(value).__module__}.{type(value).__qualname__}", settings]


def _has_vars(value: Any) -> bool:
    return hasattr(value, "__dict__")


def _code(code: CodeType) -> list[Any]:
    constants = [_code(entry) if isinstance(entry, CodeType) else repr(entry) for entry in code.co_consts]
    return [code.co_code.hex(), constants, list(code.co_names)]
