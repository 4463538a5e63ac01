# Copyright (c) the brats_mri_panet_segmentation authors
# SPDX-License-Identifier: Apache-2.0
"""Reading image files: in the network's order of channels for MONAI's pipelines, and for whatever else needs voxels."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from monai.config import KeysCollection, PathLike
from monai.data import ImageReader, NibabelReader
from monai.transforms import LoadImaged
from monai.utils import ensure_tuple
from nibabel.filebasedimages import ImageFileError
from nibabel.spatialimages import HeaderDataError
from nibabel.wrapstruct import WrapStructError
from scripts.brats import CHANNEL_ORDER, SEQUENCES, sequences_told
from scripts.data.cases import resolve_image
from scripts.errors import InputError

# What nibabel raises for a file that is no NIfTI image, or only part of one.
UNREADABLE_IMAGE = (ImageFileError, HeaderDataError, WrapStructError, OSError, EOFError, ValueError, zlib.error)

# What a file in gzip's format begins with.
GZIP_MAGIC = b"\x1f\x8b"


def one_line(error: BaseException) -> str:
    """The message of ``error``, on one line."""
    return " ".join(str(error).split())


def check_suffix(path: PathLike) -> None:
    """Refuse a file whose name is not that of a NIfTI image.

    Raises:
        InputError: it ends neither in ``.nii`` nor in ``.nii.gz``.
    """
    if not str(path).lower().endswith((".nii", ".nii.gz")):
        raise InputError(f"{path}: not a NIfTI image (.nii, .nii.gz), the only format read; convert it to NIfTI.")


def check_dimensions(path: PathLike, image: nib.Nifti1Image, channels: int = 0) -> None:
    """Refuse an image of other dimensions than are asked for.

    Args:
        path: its file, for the message.
        image: the image.
        channels: how many channels it must hold, in its fourth dimension; 0 where it must have three dimensions.

    Raises:
        InputError: it has others.
    """
    if channels and image.shape[3:] != (channels,):
        raise InputError(
            f"{path}: of shape {image.shape}, not one file with {channels} channels; "
            "give such a file, or a folder with one file per sequence."
        )
    if not channels and len(image.shape) != 3:
        raise InputError(f"{path}: {len(image.shape)} dimensions instead of 3; give one file per sequence.")


def _checked_path(path: PathLike) -> Path:
    if not Path(path).is_file():
        raise InputError(f"{path}: no such file; check the datalist or --dataset_dir.")
    check_suffix(path)
    return Path(path)


def read_header(path: PathLike) -> nib.Nifti1Image:
    """Open a NIfTI image without reading its voxels.

    Raises:
        InputError: the file is absent, or no NIfTI image.
    """
    file = _checked_path(path)
    try:
        return nib.nifti1.Nifti1Image.from_filename(file)
    except UNREADABLE_IMAGE as error:
        raise InputError(f"{path}: not a readable NIfTI image ({one_line(error)}); copy it again.") from error


def read_image(path: PathLike, channels: int = 0) -> nib.Nifti1Image:
    """A NIfTI image, its file read once and whole: nibabel stops at the last voxel, and gzip's checksum comes after it.

    Args:
        path: the file.
        channels: as in ``check_dimensions``.

    Raises:
        InputError: the file is absent, no NIfTI image, damaged, or of other dimensions.
    """
    file = _checked_path(path)
    step = "not a readable NIfTI image"
    try:
        content = file.read_bytes()
        if file.name.lower().endswith(".gz"):
            step = "damaged" if content.startswith(GZIP_MAGIC) else step
            content = gzip.decompress(content)
            step = "not a readable NIfTI image"
        image = nib.nifti1.Nifti1Image.from_bytes(content)
    except UNREADABLE_IMAGE as error:
        raise InputError(f"{path}: {step} ({one_line(error)}); copy it again.") from error
    check_dimensions(path, image, channels)
    return image


def voxels_of(image: nib.Nifti1Image, path: PathLike) -> np.ndarray:
    """All voxels of an image that was read from ``path``.

    Raises:
        InputError: the file is damaged, or its voxels are no plain numbers.
    """
    try:
        voxels = np.asanyarray(image.dataobj)
    except UNREADABLE_IMAGE as error:
        raise InputError(f"{path}: damaged ({one_line(error)}); copy it again.") from error
    if voxels.dtype.kind not in "iuf":
        kind = "complex numbers" if voxels.dtype.kind == "c" else "colors"
        raise InputError(f"{path}: its voxels are {kind}, not plain ones; export the sequence again, as gray values.")
    return voxels


def in_lps(image: nib.Nifti1Image) -> nib.Nifti1Image:
    """The same image with its axes to the left, to the back and up, as BraTS files have them."""
    target = nib.orientations.axcodes2ornt("LPS")
    return image.as_reoriented(nib.orientations.ornt_transform(nib.orientations.io_orientation(image.affine), target))


class SequenceReader(NibabelReader):
    """MONAI's NIfTI reader for the four sequences, as ``LoadImageByReaderd(reader=...)``.

    It takes the resolved ``image`` of an entry: four files in the network's order, which are stacked, or one
    four-dimensional file, whose channels are put into the network's order. Three-dimensional files, such as label maps,
    are read as they are.

    Args:
        channel_order: the sequences in the order in which four-dimensional files hold them.

    Raises:
        InputError: ``channel_order`` is not the four sequences in some order.
    """

    def __init__(self, channel_order: Sequence[str] = CHANNEL_ORDER) -> None:
        super().__init__()
        if sorted(channel_order) != sorted(SEQUENCES):
            raise InputError(
                f"--channel_order {list(channel_order)}: name each of {', '.join(SEQUENCES)} once, "
                "in the order in which the file holds them."
            )
        self.channel_order = list(channel_order)
        # A setting like the other, so that a cache of what was read in another order is never taken for this.
        self.sequences = list(SEQUENCES)

    @property
    def filenames(self) -> Sequence[PathLike]:
        """A name for each image, of no meaning: MONAI's reader pairs images with the names of its last call.

        That may have been another thread's, of a label map with one name; the image would then lose three channels.
        """
        return [""] * len(SEQUENCES)

    @filenames.setter
    def filenames(self, names: Sequence[PathLike]) -> None:
        pass

    def read(self, data: Sequence[PathLike] | PathLike, **kwargs: Any) -> Any:
        """Open the files ``data``: a nibabel image, or a list of four.

        Raises:
            InputError: one is absent or no NIfTI image, or the names of four tell another order than the network's.
        """
        files = [str(path) for path in ensure_tuple(data)]
        if len(files) == len(SEQUENCES) and (told := sequences_told(files)) not in (None, list(SEQUENCES)):
            raise InputError(
                f"{', '.join(files)}: by their names {', '.join(told or [])}; give {', '.join(SEQUENCES)}."
            )
        opened = [self._open(file, **kwargs) for file in files]
        return opened if len(opened) > 1 else opened[0]

    def _open(self, file: str, **kwargs: Any) -> Any:
        check_suffix(file)
        try:
            return super().read(file, **kwargs)
        except UNREADABLE_IMAGE as error:
            raise InputError(f"{file}: not a readable NIfTI image ({one_line(error)}); copy it again.") from error

    def _get_array_data(self, img: Any, filename: PathLike) -> np.ndarray:
        try:
            voxels: np.ndarray = super()._get_array_data(img, filename)
        except UNREADABLE_IMAGE as error:
            raise InputError(f"{img.get_filename()}: damaged ({one_line(error)}); copy it again.") from error
        return voxels

    def get_data(self, img: Any) -> tuple[np.ndarray, dict]:
        """Voxels, (channel, *size) of four files or (*size, channel) of one, in the network's order, and metadata.

        Raises:
            InputError: a file is damaged, or a single file has other than four channels.
        """
        voxels, meta = super().get_data(img)
        if not isinstance(img, list) and voxels.ndim > 3:
            if voxels.shape[3:] != (len(SEQUENCES),):
                raise InputError(f"{img.get_filename()}: of shape {voxels.shape}; give one file with four channels.")
            voxels = voxels[..., [self.channel_order.index(sequence) for sequence in self.sequences]]
        return voxels, meta


class LoadImageByReaderd(LoadImaged):
    """MONAI's ``LoadImaged`` with one reader, and no other should that one fail.

    MONAI's then tries all its own: the reader's error is lost, and of a file in another format, which any of them can
    read, the channels come in an order that no one has stated.

    What an entry's image means is settled here for entries that were in no datalist of the bundle's: MONAI Label hands
    over folders, and four files in any order.

    A ``LoadImaged``, and named like one: MONAI Label looks for that class, MONAI Deploy leaves out steps with
    ``LoadImage`` in their name, since it loads images itself.

    Args:
        keys: keys of files.
        reader: reads them.
        options: of ``LoadImaged``.

    Raises:
        InputError: (when called) by ``SequenceReader``, for a file that is absent, damaged, or no NIfTI image; or a
            folder does not hold one complete case.
    """

    def __init__(self, keys: KeysCollection, reader: ImageReader, **options: Any) -> None:
        super().__init__(keys, reader=reader, **options)  # type: ignore[arg-type]
        self.reader = reader

    def __call__(self, data: Mapping[Hashable, Any], reader: ImageReader | None = None) -> dict[Hashable, Any]:
        """Load the images of one case."""
        files = {key: resolve_image(data[key]) for key in self.key_iterator(dict(data))}
        item: dict[Hashable, Any] = super().__call__({**data, **files}, reader or self.reader)
        return item
