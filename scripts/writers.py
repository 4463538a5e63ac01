# Copyright (c) the brats_mri_panet_segmentation authors
# SPDX-License-Identifier: Apache-2.0
"""How label maps reach the disk: named after their case, and never half written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from monai.config import PathLike
from monai.data import FolderLayoutBase, NibabelWriter

from scripts.data.datalist import case_name
from scripts.files import replacing


class CaseLayout(FolderLayoutBase):
    """Name a result ``<case>.nii.gz``, as the BraTS portal takes it, whichever of the case's images it came from.

    Args:
        output_dir: folder of the results.
    """

    def __init__(self, output_dir: PathLike) -> None:
        self.output_dir = Path(output_dir)

    def filename(self, subject: PathLike = "subject", **kwargs: Any) -> Path:
        """Path of the result for the image file ``subject``."""
        return self.output_dir / f"{case_name(Path(subject))}.nii.gz"


class WholeFileWriter(NibabelWriter):
    """MONAI's NIfTI writer, into a temporary file that is then moved into place."""

    def write(self, filename: PathLike, verbose: bool = False, **obj_kwargs: Any) -> None:
        """Write ``filename``."""
        with replacing(Path(filename)) as temporary:
            super().write(temporary, verbose=verbose, **obj_kwargs)
