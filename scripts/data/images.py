# Copyright (c) the brats_mri_panet_segmentation authors
# SPDX-License-Identifier: Apache-2.0
"""Readers of image files.

MONAI's pipelines get the channels in the network's order. Checks and pictures get the voxels of single files.
"""

from __future__ import annotations

import copy
import gzip
import hashlib
import logging
import tempfile
import warnings
import zlib
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from monai.config import KeysCollection, PathLike
from monai.data import ImageReader, ITKReader, NibabelReader
from monai.transforms import LoadImaged
from monai.utils import ensure_tuple
from nibabel.filebasedimages import ImageFileError
from nibabel.spatialimages import HeaderDataError
from nibabel.wrapstruct import WrapStructError
from scripts.brats import (
    CHANNEL_ORDER,
    IMAGE_SUFFIXES,
    ITK_SUFFIXES,
    MGH_SUFFIXES,
    NIFTI_SUFFIXES,
    SEQUENCES,
    sequences_told,
)
from scripts.data.cases import NO_FILE, image_files, resolve_image
from scripts.data.dicom import arranged, complete_file, is_dicom, packages_are_installed, series_files, series_of
from scripts.data.placement import FILE_HEADER, add_doubt, check_grid, image_at, nifti_class, placed
from scripts.utils.errors import InputError, one_line
from scripts.utils.files import refuse_pointer

# Errors that nibabel and ITK (RuntimeError) raise for a file that is no image, or only a part of one.
NIBABEL_ERRORS = (ImageFileError, HeaderDataError, WrapStructError)
UNREADABLE_IMAGE = (*NIBABEL_ERRORS, OSError, EOFError, ValueError, RuntimeError, zlib.error)

# It warns in each construction of a loader (``LoadImageByReaderd``).
logging.getLogger("monai.data.nvimgcodec_pydicom_plugin").setLevel(logging.ERROR)

# Headers of ITK's formats whose voxels are in other files.
DETACHED_SUFFIXES = (".nhdr", ".mhd")
NOT_READABLE = "not a readable image"
# How the header of a synthetic phantom describes it.
PHANTOM_DESCRIPTION = "synthetic brain tumor phantom, not a patient"
# The first bytes of a gzip file.
GZIP_MAGIC = b"\x1f\x8b"
ZIPPED_SUFFIXES = (".gz", ".mgz")
# Bytes of a NIfTI-2 header.
LONGEST_HEADER = 540
# The key, in an item to be loaded, of the function that gives its images (``read_file``, or one that remembers them).
READ = "read"


@contextmanager
def _refusing(path: PathLike, fault: str) -> Iterator[None]:
    # What cannot be read inside is refused as ``fault`` of the file.
    try:
        yield
    except InputError:
        raise
    except PermissionError as error:
        told = f"{path}: not readable ({error.strerror}); change its permissions."
        raise InputError(told, "unreadable file") from error
    except UNREADABLE_IMAGE as error:
        kind = "damaged file" if fault == "damaged" else "not an image"
        raise InputError(f"{path}: {fault} ({one_line(error)}); copy it again.", kind) from error


def is_phantom(image: nib.Nifti1Image) -> bool:
    """Whether the header of an image says that it shows a synthetic phantom."""
    return bytes(image.header["descrip"].item()).decode("latin-1").startswith(PHANTOM_DESCRIPTION)


def check_dimensions(path: PathLike, image: nib.Nifti1Image, channels: int = 0) -> None:
    """Refuse an image that has not three dimensions, or ``channels`` in its fourth one."""
    if channels and image.shape[3:] != (channels,):
        fault = (
            f"its shape is {image.shape}, but one file with {channels} channels is needed; give such a file, or a "
            "folder with one file per sequence."
        )
    elif not channels and len(image.shape) != 3:
        fault = f"{len(image.shape)} dimensions instead of 3; give one file per sequence."
    else:
        return
    raise InputError(f"{path}: {fault}", "other dimensions")


def _checked_path(path: PathLike) -> Path:
    file = Path(path)
    refuse_pointer(file)
    if file.is_dir():
        kind = "folder in place of a file"
        fault = "a folder, where a file belongs; give the file, or a folder of one DICOM series."
    elif not file.is_file():
        kind, fault = "absent file", "no such file; correct the path, in the datalist if it comes from one."
    elif not _has(file, IMAGE_SUFFIXES) and not is_dicom(path):
        known = ", ".join(IMAGE_SUFFIXES)
        kind, fault = "other format", f"in no format that is read ({known}, DICOM); convert it to NIfTI."
    elif not file.stat().st_size:
        kind, fault = "empty file", "an empty file of 0 bytes; copy it again."
    else:
        return file
    raise InputError(f"{path}: {fault}", kind)


def open_image(path: PathLike) -> nib.Nifti1Image:
    """Open an image as a NIfTI image, in its place (``placed``). The voxels of a NIfTI or MGH file are not read yet.

    A DICOM file means its whole series, which must be one volume of gray values with evenly spaced slices.

    Raises:
        InputError: the file is absent or no such image, or its format cannot be read.
    """
    file = _checked_path(path)
    with _refusing(path, NOT_READABLE):
        if _has(file, (*NIFTI_SUFFIXES, *MGH_SUFFIXES)):
            with file.open("rb") as stream:
                zipped = stream.read(2) == GZIP_MAGIC
            if zipped != _has(file, ZIPPED_SUFFIXES):
                return read_file(file)  # nibabel goes by the name
            if _has(file, NIFTI_SUFFIXES):
                with nib.openers.ImageOpener(str(file)) as opened:
                    kind = nifti_class(opened.read(LONGEST_HEADER), path)
                return placed(kind.from_filename(file), path)
            image = _as_nifti(nib.MGHImage.from_filename, file)
        else:
            image = _opened_by_itk(file) if _has(file, ITK_SUFFIXES) else _opened_series(file)
    # Messages about its content must name it.
    image.file_map["image"].filename = str(file)
    return placed(image, path)


def _has(file: Path, suffixes: tuple[str, ...]) -> bool:
    return file.name.lower().endswith(suffixes)


def _as_nifti(opening: Callable[[Any], nib.MGHImage], source: Path | bytes) -> nib.Nifti1Image:
    try:
        image = opening(source)
    except TypeError as error:  # nibabel says so of a header that is too short
        raise EOFError(str(error)) from error
    return image_at(image.dataobj, image.affine)


def _refuse_for_itk(file: str | Path) -> None:
    try:
        str(file).encode()
    except UnicodeEncodeError as error:
        told = f"{file}: ITK reads no path that is not UTF-8; rename it, or give a link."
        raise InputError(told, "unreadable file") from error


def _opened_by_itk(file: Path) -> nib.Nifti1Image:
    if not packages_are_installed("itk"):
        raise InputError(f"{file}: this format needs the package itk; install it (pip install itk).")
    _refuse_for_itk(file)
    # It gives affines in nibabel's convention, in which axes run to the right, to the front and up.
    reader = ITKReader(affine_lps_to_ras=True)
    try:
        image = reader.read(str(file))
    except TypeError as error:
        told = f"{file}: ITK does not read its type of voxels; save it with at most 32 bits."
        raise InputError(told, "no plain numbers") from error
    if image.GetNumberOfComponentsPerPixel() > 1:
        raise InputError(f"{file}: several channels; give one file per sequence.", "other dimensions")
    voxels, meta = reader.get_data(image)
    # The copy outlives ITK's image.
    return image_at(np.array(voxels, order="F"), meta["affine"])


def _opened_series(file: Path) -> nib.Nifti1Image:
    series = series_of(file)
    files, affine = arranged(series)
    _refuse_for_itk(files[0])
    columns, rows = series.first.size
    # The first import takes seconds, and most cases need none.
    import itk

    slices = []
    for path in files:
        # Each slice has a rescaling of its own, so none but floating-point numbers hold all of them.
        with _refusing(path, "damaged"), _complete_path(path) as complete:
            reader = itk.ImageFileReader[itk.Image[itk.F, 3]].New(FileName=complete, ImageIO=itk.GDCMImageIO.New())
            reader.Update()
            slices.append(itk.array_from_image(reader.GetOutput()).reshape(rows, columns).T)
    voxels = np.stack(slices, axis=-1)
    if series.inverted:
        # ITK inverts such slices within all values of their type. Black, the lowest value, is the background.
        voxels -= voxels.min()
    elif len(offsets := {header.intercept or 0.0 for header in series.headers}) == 1:
        # MR has no unit. An offset would only make the background another value than 0.
        voxels -= offsets.pop()
    return image_at(voxels, affine)


@contextmanager
def _complete_path(path: str) -> Iterator[str]:
    # ITK reads no file without the first 128 bytes.
    content = complete_file(path)
    if content is None:
        yield path
        return
    with tempfile.NamedTemporaryFile(suffix=".dcm") as file:
        file.write(content)
        file.flush()
        yield file.name


def read_header(path: PathLike) -> nib.Nifti1Image:
    """Open an image as ``open_image`` does, for its grid and header alone. The voxels of a DICOM series are all 0."""
    file = _checked_path(path)
    if _has(file, IMAGE_SUFFIXES):
        return open_image(file)
    series = series_of(file)
    files, affine = arranged(series)
    return placed(image_at(np.broadcast_to(np.uint8(0), (*series.first.size, len(files))), affine), path)


def read_file(path: PathLike) -> nib.Nifti1Image:
    """Read a file once and completely. Its checksum (``checksum_of``) is ``extra["sha256"]`` of the image.

    Nibabel stops at the last voxel, but gzip's checksum comes after it. Only a complete read finds all damage. An
    InputError says that the file is absent, no image or damaged.
    """
    file = _checked_path(path)
    if _has(file, ITK_SUFFIXES) or not _has(file, IMAGE_SUFFIXES):
        image = open_image(path)
        image.extra["sha256"] = checksum_of(path, image)
        return image
    with _refusing(path, NOT_READABLE):
        content = file.read_bytes()
    checksum = hashlib.sha256(content).hexdigest()
    if zipped := content.startswith(GZIP_MAGIC):
        with _refusing(path, "damaged"):
            content = gzip.decompress(content)
    with _refusing(path, NOT_READABLE):
        if _has(file, NIFTI_SUFFIXES):
            image = nifti_class(content[:LONGEST_HEADER], path).from_bytes(content)
        else:
            image = _as_nifti(nib.MGHImage.from_bytes, content)
        image = placed(image, path)
    if zipped != _has(file, ZIPPED_SUFFIXES):
        told = "compressed by gzip, which its name does not say" if zipped else "not compressed, against its name"
        add_doubt(image, "misnamed file", f"{path}: {told}; rename it, since other programs go by the name.")
    image.extra["sha256"] = checksum
    return image


def checksum_of(path: PathLike, image: nib.Nifti1Image | None = None) -> str:
    """The SHA-256 of all that is read of an image.

    Of a DICOM series these are its files, in the order of their names; of a header beside its voxels (.mhd, .nhdr) the
    file, then the voxels. ``image`` is what was read, if it was.
    """
    found = hashlib.sha256()
    for file in series_files(str(path)):
        with open(file, "rb") as opened:
            while block := opened.read(1 << 20):
                found.update(block)
    if _has(Path(path), DETACHED_SUFFIXES):
        found.update(np.asanyarray((image or open_image(path)).dataobj).tobytes())
    return found.hexdigest()


def inputs_of(image: str | Sequence[str], checksum: Callable[[str], str] = checksum_of) -> list[dict[str, str]]:
    """The files of an entry's ``image`` with their sequences ("all" for a four-dimensional file) and checksums."""
    files = {"all": image} if isinstance(image, str) else dict(zip(SEQUENCES, image, strict=True))
    return [
        {"sequence": sequence, "file": file, "sha256": checksum(file)}
        for sequence, file in files.items()
        if file != NO_FILE
    ]


def read_image(path: PathLike, channels: int = 0) -> nib.Nifti1Image:
    """``read_file``, and refuse an image of other dimensions (``check_dimensions``)."""
    image = read_file(path)
    check_dimensions(path, image, channels)
    return image


def voxels_of(image: nib.Nifti1Image, path: PathLike) -> np.ndarray:
    """All voxels of an image that was read from ``path``. Damage, complex numbers and colors raise an InputError."""
    with _refusing(path, "damaged"):
        voxels = np.asanyarray(image.dataobj)
    if voxels.dtype.kind not in "iuf":
        kind = "complex numbers" if voxels.dtype.kind == "c" else "colors"
        raise InputError(
            f"{path}: its voxels are {kind}, not plain numbers; export the sequence again, as gray values.",
            "no plain numbers",
        )
    return voxels


def in_lps(image: nib.Nifti1Image) -> nib.Nifti1Image:
    """The image with axes that run to the left, to the back and up, as in BraTS files."""
    target = nib.orientations.axcodes2ornt("LPS")
    return image.as_reoriented(nib.orientations.ornt_transform(nib.orientations.io_orientation(image.affine), target))


class SequenceReader(NibabelReader):
    """MONAI's reader by nibabel for the four sequences, for use in ``LoadImageByReaderd(reader=...)``.

    It reads the resolved ``image`` of an entry. Four files in the network's order are stacked; a sequence that is
    missing (``NO_FILE``) is 0 everywhere. The channels of one four-dimensional file, which come in ``channel_order``,
    are put into the network's order. A three-dimensional file, such as a label map, is read as it is.

    Example:
        The network's order is t1, t2, t1ce, flair:

        >>> image = nib.Nifti1Image(np.arange(4.0).reshape(1, 1, 1, 4), np.eye(4))
        >>> voxels, _ = SequenceReader(channel_order=["flair", "t1", "t1ce", "t2"]).get_data(image)
        >>> voxels.flatten().tolist()
        [1.0, 3.0, 2.0, 0.0]
    """

    def __init__(self, channel_order: Sequence[str] = CHANNEL_ORDER) -> None:
        super().__init__()
        if sorted(channel_order) != sorted(SEQUENCES):
            raise InputError(
                f"--channel_order {list(channel_order)}: name each of {', '.join(SEQUENCES)} once, "
                "in the order in which the file holds them."
            )
        self.channel_order = list(channel_order)
        # A cache tells readers apart by their attributes, and must not return voxels in another order.
        self.sequences = list(SEQUENCES)

    # What opens a file. It is no attribute of the object, because a cache would compare it.
    open_file: Callable[[str], nib.Nifti1Image] = staticmethod(open_image)

    def reading_by(self, read: Callable[[str], nib.Nifti1Image]) -> SequenceReader:
        """This reader for files that ``read`` gives."""
        reader = copy.copy(self)
        reader.open_file = read
        return reader

    @property
    def filenames(self) -> Sequence[PathLike]:
        """Empty names, one for each image.

        MONAI's reader pairs the images with the names of its last call, which may come from another thread and have
        only the name of a label map. The image would then lose three channels.
        """
        return [""] * len(SEQUENCES)

    @filenames.setter
    def filenames(self, names: Sequence[PathLike]) -> None:
        pass

    def read(self, data: Sequence[PathLike] | PathLike, **kwargs: Any) -> Any:
        """Open the files: one nibabel image, or a list of four.

        Raises:
            InputError: a file is absent, is no image or has another grid, or the names of four files tell another
                order than the network's.
        """
        files = [str(path) for path in ensure_tuple(data)]
        present = image_files(files)
        if not present:
            raise InputError(f"{', '.join(files)}: no image; give a file of one sequence at least.")
        if len(files) == len(SEQUENCES) and (told := sequences_told(files)) not in (None, list(SEQUENCES)):
            raise InputError(f"{', '.join(files)}: the names say {', '.join(told or [])}; give {', '.join(SEQUENCES)}.")
        opened = {file: self.open_file(file) for file in present}
        first = opened[present[0]]

        def in_grid(file: str) -> nib.Nifti1Image:
            # MONAI bears no rounding, so all images get one affine.
            if file == NO_FILE:
                # The network knows a sequence of zeros as one that is missing (RandDropSequenced).
                return nib.Nifti1Image(np.zeros(first.shape, np.uint8), first.affine, first.header, first.extra)
            image = opened[file]
            check_grid(file, image, present[0], first)
            return nib.Nifti1Image(image.dataobj, first.affine, first.header, first.extra, image.file_map)

        return [in_grid(file) for file in files] if len(files) > 1 else first

    def _get_meta_dict(self, img: nib.Nifti1Image) -> dict:
        # Maps are written with the header as it is in the file (``header_as_in``).
        return dict(img.extra.get(FILE_HEADER, img.header).as_byteswapped("<"))

    def _get_array_data(self, img: Any, filename: PathLike) -> np.ndarray:
        with _refusing(img.get_filename(), "damaged"):
            voxels: np.ndarray = super()._get_array_data(img, filename)
        return voxels

    def get_data(self, img: Any) -> tuple[np.ndarray, dict]:
        """Voxels and metadata of what ``read`` has opened, with the channels in the network's order.

        The shape of the voxels is (channel, *size) for four files and (*size, channel) for one.

        Raises:
            InputError: a file is damaged, or a single four-dimensional file does not have four channels.
        """
        voxels, meta = super().get_data(img)
        if not isinstance(img, list) and voxels.ndim > 3:
            if voxels.shape[3:] != (len(SEQUENCES),):
                raise InputError(
                    f"{img.get_filename()}: its shape is {voxels.shape}; give one file with four channels."
                )
            voxels = voxels[..., [self.channel_order.index(sequence) for sequence in self.sequences]]
        return voxels, meta


class LoadImageByReaderd(LoadImaged):
    """MONAI's ``LoadImaged`` with one reader and without a fallback to other readers.

    If the given reader fails, MONAI's ``LoadImaged`` tries all its own readers. The reader's error is then lost, and
    another reader might read the file with its channels in an order that nobody has stated.

    This class resolves the ``image`` of entries that were never in a datalist of the bundle: MONAI Label passes
    folders, and four files in any order. The base class and the name matter: MONAI Label looks for a ``LoadImaged``,
    and MONAI Deploy loads images itself and leaves out steps with ``LoadImage`` in their name.
    """

    def __init__(self, keys: KeysCollection, reader: ImageReader, **options: Any) -> None:
        with warnings.catch_warnings():
            # MONAI makes its own readers, too. Where pydicom is, one of them complains that a codec is not.
            warnings.filterwarnings("ignore", message="NvImgCodecPydicomReader")
            super().__init__(keys, reader=reader, **options)  # type: ignore[arg-type]
        self.reader = reader
        # MONAI registers its own readers by the packages that are installed, and a cache's keys would depend on those.
        self._loader.readers = [reader]

    def __call__(self, data: Mapping[Hashable, Any], reader: ImageReader | None = None) -> dict[Hashable, Any]:
        """Load the images of one case. The function under ``READ``, if there is one, reads their files."""
        item = dict(data)
        files = {key: resolve_image(data[key]) for key in self.key_iterator(item)}
        read = item.pop(READ, None)
        if read is not None and isinstance(self.reader, SequenceReader):
            reader = self.reader.reading_by(read)
        loaded: dict[Hashable, Any] = super().__call__({**item, **files}, reader or self.reader)
        return loaded
