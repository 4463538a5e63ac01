# Copyright (c) the brats_mri_panet_segmentation authors
# SPDX-License-Identifier: Apache-2.0
"""Files and checksums of tensors. They are apart from ``files``, which loads without torch."""

import hashlib
import pickle
import struct
from pathlib import Path
from typing import Any

import torch
from scripts.utils.errors import InputError
from scripts.utils.files import refuse_pointer, replacing

# torch may raise any of these errors for a file that is not its own, since its unpickler reads arbitrary bytes.
UNREADABLE_TENSORS = (
    OSError,
    EOFError,
    RuntimeError,
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    AssertionError,
    struct.error,
    pickle.UnpicklingError,
)


def save_torch(value: Any, path: str | Path) -> None:
    """Save ``value`` by ``torch.save`` and move the file into place."""
    with replacing(path) as temporary:
        torch.save(value, temporary)


def load_torch(path: str | Path) -> Any:
    """Load a file to the CPU by ``torch.load`` with ``weights_only=True``.

    Raises:
        InputError: the file is absent or truncated, or it holds more than tensors and plain values.
    """
    path = Path(path)
    refuse_pointer(path)
    if not path.is_file():
        raise InputError(f"{path}: no such file; give the path of a model file (.pt).")
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except UNREADABLE_TENSORS as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(
            f"{path}: not a readable file of tensors ({reason}); copy or train it again. "
            "Files that hold other objects are not loaded, since they could run code."
        ) from error


def weights_checksum(state: dict[str, torch.Tensor], build: str = "") -> str:
    """SHA-256 of the names, shapes, types and values of weights, and of ``build``, which describes the network.

    A checksum of the file would differ for equal weights, since the file holds times and paths too.
    """
    found = hashlib.sha256(build.encode())
    for name in sorted(state):
        value = state[name].detach().cpu().contiguous()
        found.update(f"{name} {value.dtype} {tuple(value.shape)} ".encode())
        found.update(value.view(-1).view(torch.uint8).numpy().tobytes())
    return found.hexdigest()
