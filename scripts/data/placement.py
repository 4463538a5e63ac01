# Copyright (c) the brats_mri_panet_segmentation authors
# SPDX-License-Identifier: Apache-2.0
"""Where an image lies, by its header; and the header of a map that lies there, too.

``placed`` alone decides. Everything else takes the affine of an image that has come through it.
"""

import contextlib
from collections.abc import Mapping, Sequence
from typing import Any

import nibabel as nib
import numpy as np
from monai.config import PathLike
from monai.utils import MetaKeys
from nibabel.spatialimages import HeaderDataError
from scripts.utils.errors import InputError

# Grids that differ by no more are one grid: by 0.01 mm in their origin and 1e-4 mm along an axis, with a margin for
# the rounding of float32.
ORIGIN_MM, AXES_MM = 0.0101, 1.01e-4
# Voxels of other sizes are no scan of a head, so the header is wrong.
SMALLEST_MM, LARGEST_MM = 0.2, 12.0
# Axes of length 1 that span a smaller volume lie in one plane.
LEAST_VOLUME = 0.05
# The unit of length is in the lowest three bits of xyzt_units: meters, microns, and else mm.
MM = {1: 1000.0, 3: 0.001}
# The fields of a NIfTI header that say where an image lies.
FIELDS = (
    "xyzt_units",
    *("sform_code", "srow_x", "srow_y", "srow_z"),
    *("qform_code", "quatern_b", "quatern_c", "quatern_d", "qoffset_x", "qoffset_y", "qoffset_z"),
)
# Keys in ``extra`` of an image: the header as it is in the file, if it is not in mm; and doubts about the file, each
# with its kind (``scripts.data.findings``).
FILE_HEADER, DOUBTS = "file_header", "doubts"


def nifti_class(start: bytes, path: PathLike) -> type[nib.Nifti1Image]:
    """The class for a NIfTI file that begins with these 540 bytes.

    Raises:
        InputError: the header says that the voxels begin inside it, or its quaternion is none.
    """
    kind = nib.Nifti2Image if nib.Nifti2Header.may_contain_header(start) else nib.Nifti1Image
    own = kind.header_class
    if own.may_contain_header(start):
        header = own(start[: own.sizeof_hdr], check=False)
        if header["vox_offset"] < own.single_vox_offset:
            raise _damaged(path, f"voxels from byte {header['vox_offset']:g} on, which is inside the header")
        with contextlib.suppress(HeaderDataError):  # nibabel mends those faults when it opens the file
            try:
                header.get_best_affine()
            except ValueError as error:
                raise _damaged(path, "a qform that is no rotation") from error
    return kind


def mm_of(header: nib.Nifti1Header) -> float:
    """The unit of length of a header, in mm."""
    return MM.get(int(header["xyzt_units"]) % 8, 1.0)


def _damaged(path: PathLike, what: str) -> InputError:
    return InputError(
        f"{path}: its header says {what}; correct the header, or export the image again.", "damaged header"
    )


def placed(image: nib.Nifti1Image, path: PathLike) -> nib.Nifti1Image:
    """An image that was just opened, without a fourth dimension of one volume, and with its affine in mm.

    The affine is nibabel's: the sform if its code is not 0, else the qform, else only the sizes of a voxel, with a
    doubt.

    Raises:
        InputError: the header cannot be right.
    """
    header = image.header
    unit = mm_of(header)
    affine = image.affine.copy()
    affine[:3] *= unit
    sizes = nib.affines.voxel_sizes(affine)
    if not np.isfinite(affine).all():
        raise _damaged(path, "a place of NaN or infinity")
    if sizes.min() < SMALLEST_MM or sizes.max() > LARGEST_MM:
        told = f"voxels of {shown(sizes)} mm, where {SMALLEST_MM:g} to {LARGEST_MM:g} can be"
        raise _damaged(path, told)
    if abs(np.linalg.det(affine[:3, :3] / sizes)) < LEAST_VOLUME:
        raise _damaged(path, "axes that lie in one plane")
    if len(image.shape) > 2 and min(image.shape[:3]) < 2:
        raise InputError(f"{path}: one slice ({shown(image.shape)}), which is no volume; give all.", "other dimensions")
    if unit != 1:
        own = header.copy()
        own.set_xyzt_units("mm")
        set_place(own, affine)
        image = type(image)(image.dataobj, affine, own, {**image.extra, FILE_HEADER: header}, image.file_map)
    if image.shape[3:] and set(image.shape[3:]) == {1}:
        files = image.file_map
        image = nib.squeeze_image(image)
        image.file_map = files
    if not header["sform_code"] and not header["qform_code"]:
        told = "its header does not say where it lies (both codes are 0); its axes may run in other directions"
        add_doubt(image, "no place in the header", f"{path}: {told}; look at the pictures.")
    return image


def add_doubt(image: nib.Nifti1Image, kind: str, message: str) -> None:
    """Add a doubt about the file of an image, which its check tells."""
    image.extra.setdefault(DOUBTS, []).append((kind, message))


def shown(numbers: Sequence[float] | np.ndarray) -> str:
    """Sizes as a text.

    Example:
        >>> shown([240, 0.9, 1])
        '240 x 0.9 x 1'
    """
    return " x ".join(f"{number:g}" for number in numbers)


def one_place(affine: np.ndarray, other: np.ndarray, origin: bool = True) -> bool:
    """Whether two affines are one but for rounding. The origins may differ without ``origin``."""
    axes = np.allclose(affine[:3, :3], other[:3, :3], rtol=0, atol=AXES_MM)
    return axes and (not origin or np.allclose(affine[:3, 3], other[:3, 3], rtol=0, atol=ORIGIN_MM))


def check_grid(path: str, image: nib.Nifti1Image, first_path: str, first: nib.Nifti1Image, label: bool = False) -> bool:
    """Check that a file of a case has the same grid as the first file of the case; the paths are for the message.

    Returns:
        Whether the origin is the same, too. It may differ for a label map.

    Raises:
        InputError: the grids differ in shape or affine.
    """
    same_shape = image.shape[:3] == first.shape[:3]
    if same_shape and one_place(image.affine, first.affine):
        return True
    if label and same_shape and one_place(image.affine, first.affine, origin=False):
        # BraTS 2017 holds such label maps. No transform uses the origins to align image and label map.
        return False
    apart = np.abs(image.affine - first.affine)
    told = f"axes by {apart[:3, :3].max():.2g} mm a voxel, origin by {apart[:3, 3].max():.2g} mm"
    if not same_shape:
        told = f"{shown(image.shape[:3])} voxels, not {shown(first.shape[:3])}"
    raise InputError(
        f"{path}: its grid differs from that of {first_path} ({told}); co-register and resample all sequences to one "
        "grid, or let panet prepare do it.",
        "label map on another grid" if label else "different grids",
    )


def set_place(header: nib.Nifti1Header, affine: np.ndarray, code: int = 1) -> None:
    """Write an affine in mm into both forms of a header; a sheared one has no qform."""
    header.set_xyzt_units("mm")
    header.set_sform(affine, code)
    header.set_qform(affine, code)
    if not one_place(header.get_qform(), affine):
        header["qform_code"] = 0


def image_at(voxels: Any, affine: np.ndarray) -> nib.Nifti1Image:
    """An image of these voxels in a place."""
    image = nib.Nifti1Image(voxels, affine)
    set_place(image.header, affine)
    return image


def header_as_in(fields: Mapping[str, Any], shape: tuple[int, ...], affine: np.ndarray) -> nib.Nifti1Header:
    """The header of a map with this affine in mm, made from an image whose metadata have a header's ``fields``.

    The fields are copied if all that they say is this affine, so that each program finds map and image in one place.
    If they contradict each other, both forms are set.
    """
    header = nib.Nifti1Header()
    header.set_data_shape(shape)
    if "sform_code" in fields:
        for name in FIELDS:
            header[name] = np.asarray(fields[name])
        header["pixdim"][:4] = np.asarray(fields[MetaKeys.ORIGINAL_PIXDIM])[:4]
    if "sform_code" not in fields or not _agrees(header, affine):
        set_place(header, affine, int(header["sform_code"] or header["qform_code"] or 1))
    return header


def _agrees(header: nib.Nifti1Header, affine: np.ndarray) -> bool:
    try:
        forms = [form for form, code in (header.get_sform(coded=True), header.get_qform(coded=True)) if code]
    except ValueError:  # the quaternion is none
        return False
    unit = np.array([[mm_of(header)]] * 3 + [[1.0]])
    sizes = np.array(header.get_zooms()) * mm_of(header)
    return np.allclose(sizes, nib.affines.voxel_sizes(affine), rtol=0, atol=AXES_MM) and all(
        one_place(unit * form, affine) for form in forms or [header.get_base_affine()]
    )
