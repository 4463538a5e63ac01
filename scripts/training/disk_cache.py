# Copyright (c) the brats_mri_panet_segmentation authors
# SPDX-License-Identifier: Apache-2.0
"""A cache on disk for the part of the preprocessing that is the same in every epoch.

A patch is read from the cache without the rest of its case. MONAI's ``PersistentDataset`` reads whole cases, and it
does not notice that a file has changed.
"""

import hashlib
import json
import logging
import os
from collections.abc import Mapping, Sequence
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import Any

import monai
import numpy as np
import torch
from monai.data import MetaTensor, PersistentDataset
from monai.transforms import Compose, Transform
from monai.transforms.traits import RandomizableTrait
from scripts.data.cases import image_files, resolve_image
from scripts.data.dicom import series_files
from scripts.training.augmentation import device_step
from scripts.utils.errors import WriteError
from scripts.utils.tensors import UNREADABLE_TENSORS, save_torch

logger = logging.getLogger(__name__)

KEYS = ("image", "label")
GB = 10**9


class DiskCacheDataset(PersistentDataset):
    """A dataset that runs the transforms before the first random one once for each case and keeps the result on disk.

    The name of an entry is a hash of everything that the entry is made from: path, size and times of the case's files,
    the item's other values, and the class and settings of each transform. So a changed file or setting cannot lead to a
    wrong entry. The code of a transform enters only if the transform is a bare function.

    Entries are files of tensors. They are mapped into memory, so no case is kept there. Several trainings may share the
    folder. When the limit is reached, or the disk is full, one warning says so, and the remaining cases are loaded each
    time.

    Whole numbers from 0 to 255, such as labels, are kept as uint8, all others as ``dtype``. The random transforms get
    these types whether the entry comes from the disk or not. They also get each tensor's affine and file name, but no
    values that earlier transforms wrote elsewhere in the item.

    Args:
        data: items with file names (or lists of them) as ``image`` and ``label``.
        transform: all transforms. The first random one and all that follow run each time.
        cache_dir: folder for the cache alone.
        limit_gb: limit for all entries in the folder (10^9 bytes).
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
        dtype: str = "float16",
        until_device: bool = False,
    ) -> None:
        super().__init__(data=data, transform=transform, cache_dir=None)
        self.folder = Path(cache_dir)
        self.limit_bytes = limit_gb * GB
        self.dtype = getattr(torch, dtype)
        self.first_random = self.transform.get_index_of_first(
            lambda step: isinstance(step, RandomizableTrait) or not isinstance(step, Transform)
        )
        self.end = device_step(self.transform) if until_device else None
        self.recipe = [monai.__version__, dtype, describe(self.transform.transforms[: self.first_random])]
        # The loader's workers share this flag, so that only one of them warns.
        self._stopped = torch.zeros(1, dtype=torch.uint8).share_memory_()

    def path(self, item: Mapping[str, Any]) -> Path:
        """File of the item's entry."""
        made_from: dict[str, Any] = dict(item)
        for key in KEYS:
            files = [file for path in _files(item[key]) for file in series_files(path)]
            stats = [(os.path.realpath(file), os.stat(file)) for file in files]
            made_from[key] = [(path, s.st_size, s.st_mtime_ns, s.st_ctime_ns) for path, s in stats]
        text = json.dumps([self.recipe, made_from], sort_keys=True, default=str)
        return self.folder / f"{hashlib.blake2b(text.encode(), digest_size=20).hexdigest()}.pt"

    def _cachecheck(self, item_transformed: Mapping[str, Any]) -> dict[str, Any]:
        """The item after the transforms before the first random one. It is read from the cache or stored there."""
        path = self.path(item_transformed)
        entry = self._read(path)
        if entry is None:
            made = self._pre_transform(deepcopy(dict(item_transformed)))
            entry = {key: (self._stored(made[key].as_tensor()), made[key].affine) for key in KEYS}
            self._write(entry, path)
        result = dict(item_transformed)
        for key, (tensor, affine) in entry.items():
            result[key] = MetaTensor(tensor, affine, {"filename_or_obj": _files(item_transformed[key])[0]})
        return result

    def _read(self, path: Path) -> Any:
        try:
            # What is written into a mapped tensor does not reach the file.
            return torch.load(path, mmap=True, weights_only=True)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except UNREADABLE_TENSORS as error:
            logger.warning("%s: a damaged entry is made again (%s).", path, str(error).partition("\n")[0])
            return None

    def _write(self, entry: Mapping[str, tuple[torch.Tensor, torch.Tensor]], path: Path) -> None:
        if self._stopped:
            return
        size = sum(file.stat().st_size for file in self.folder.glob("*.pt"))
        size += sum(tensor.nbytes for tensor, _ in entry.values())
        if size > self.limit_bytes:
            reason = f"{self.limit_bytes / GB:g} GB are full; remove old entries, or raise --cache_limit_gb."
        else:
            try:
                return save_torch(entry, path)
            except WriteError as error:
                reason = str(error)
        self._stopped.fill_(1)
        logger.warning("%s: nothing more is cached, so training goes on more slowly: %s", self.folder, reason)

    def _stored(self, tensor: torch.Tensor) -> torch.Tensor:
        low, high = tensor.min(), tensor.max()
        if low >= 0 and high <= 255 and torch.equal(tensor, tensor.to(torch.uint8).to(tensor.dtype)):
            return tensor.to(torch.uint8).contiguous()
        # A value beyond the range of float16 would become infinite.
        fits = max(-low, high) <= torch.finfo(self.dtype).max
        return tensor.to(self.dtype if fits else torch.float32).contiguous()

    def _post_transform(self, item_transformed: Any) -> Any:
        """Run the random transforms that the loader runs."""
        if self.first_random is None:
            return item_transformed
        return self.transform(item_transformed, start=self.first_random, end=self.end)


def _files(value: Any) -> list[str]:
    # The entries of a caller such as MONAI Label have not passed through a datalist of the bundle.
    return image_files(resolve_image(value))


def describe(value: Any) -> str:
    """Class and settings of transforms and of everything inside them.

    Equal transforms have equal descriptions in every process.

    Example:
        >>> from monai.transforms import Flip
        >>> describe(Flip(0)) == describe(Flip(0)), describe(Flip(0)) == describe(Flip(1))
        (True, False)
    """
    return json.dumps(value, default=_parts, sort_keys=True)


def _parts(value: Any) -> Any:
    if isinstance(value, (np.ndarray, torch.Tensor)):
        return [str(value.dtype), value.tolist()]
    if isinstance(value, (set, frozenset)):
        return sorted(map(str, value))
    if isinstance(value, partial):
        return [value.func, value.args, value.keywords]
    if hasattr(value, "__qualname__"):  # a class or a function
        name = f"{getattr(value, '__module__', '')}.{value.__qualname__}"
        code = getattr(value, "__code__", None)
        return [name, code.co_code.hex(), repr(code.co_consts), code.co_names] if code else name
    if hasattr(value, "__dict__"):
        # A random state (R) is set again for each case.
        return [type(value), {name: entry for name, entry in vars(value).items() if name != "R"}]
    return str(value)
