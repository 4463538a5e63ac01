# Copyright (c) the brats_mri_panet_segmentation authors
# SPDX-License-Identifier: Apache-2.0
"""Names and colors of the values of a label map, as ITK-SNAP and 3D Slicer read them."""

from pathlib import Path

from scripts.brats import CORE, CORE_LABEL, EDEMA, EDEMA_LABEL, ENHANCING
from scripts.utils.files import save_text

# Of a label map's name: ITK-SNAP's table and 3D Slicer's.
TABLE_ENDINGS = ("_itksnap.txt", "_slicer.ctbl")


def save_label_tables(label_map: Path, et_label: int) -> None:
    """Write ``<case>_itksnap.txt`` and ``<case>_slicer.ctbl`` beside a label map, if they are not there.

    ET has the value ``et_label``.
    """
    case = label_map.name.removesuffix(".nii.gz")
    itksnap, slicer = (label_map.with_name(case + ending) for ending in TABLE_ENDINGS)
    if itksnap.is_file() and slicer.is_file():
        return
    # ITK-SNAP: index, red, green, blue, opacity from 0 to 1, visible in slices and in 3D, name.
    descriptions = ['0 0 0 0 0 0 0 "Clear Label"']
    # 3D Slicer: index, name without spaces, red, green, blue, opacity to 255.
    colors = ["0 background 0 0 0 0"]
    for value, part in sorted({CORE_LABEL: CORE, EDEMA_LABEL: EDEMA, et_label: ENHANCING}.items()):
        rgb = " ".join(map(str, bytes.fromhex(part.color[1:])))
        descriptions.append(f'{value} {rgb} 1 1 1 "{part.name}"')
        colors.append(f"{value} {part.name.replace(' ', '_')} {rgb} 255")
    save_text("\n".join(["# ITK-SnAP Label Description File", *descriptions]) + "\n", itksnap)
    save_text("\n".join(["# Color table file", f"# {len(colors)} values", *colors]) + "\n", slicer)
