# Copyright (c) the brats_mri_panet_segmentation authors
# SPDX-License-Identifier: Apache-2.0
"""Each release from 2017 to 2025, and the Decathlon's Task01: the layout is found, and the voxels mean what they mean.

Images and label maps are small and constructed, in the layout of the release. Each image holds the number of its
sequence, so that an exchanged channel would show.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from monai.transforms import Compose
from scripts import brats
from scripts.brats import CHANNEL_ORDER, SEQUENCES
from scripts.data.cases import LOOKED_FOR
from scripts.data.datalist import labeled_items, unlabeled_items
from scripts.data.images import LoadImageByReaderd, SequenceReader
from scripts.data.inspection import check_cases
from scripts.data.splits import patient_of
from scripts.data.transforms import LabelsToRegionsd
from scripts.utils.errors import InputError

OLD = dict(zip(SEQUENCES, ("_t1", "_t2", "_t1ce", "_flair"), strict=True))
NEW = dict(zip(SEQUENCES, ("-t1n", "-t2w", "-t1c", "-t2f"), strict=True))
# Tissues of the constructed tumors: healthy, core, edema, ET and resection cavity. A release writes them by its values.
HEALTHY, CORE, EDEMA, ET, CAVITY = range(5)


@dataclass(frozen=True)
class Layout:
    """How a release stores its cases.

    Attributes:
        folder: the folder of its cases.
        cases: path of each case below this folder.
        names: what a file's name has after the case, by sequence; None if a case is one four-dimensional file.
        values: values of core, edema, ET and perhaps cavity in label maps.
        unlabeled: paths of cases without a label map, below the folder above ``folder``.
        uncompressed: cases whose files end in ``.nii``.
        beside: other files of the release, below ``folder``.
        shape, directions, dtype: grid and type of the images; the directions of LPS are -1, -1, 1.
    """

    folder: str
    cases: tuple[str, ...]
    names: dict[str, str] | None
    values: tuple[int, ...]
    unlabeled: tuple[str, ...] = ()
    uncompressed: tuple[str, ...] = ()
    beside: tuple[str, ...] = ()
    shape: tuple[int, int, int] = (8, 9, 7)
    directions: tuple[int, int, int] = (-1, -1, 1)
    dtype: type = np.int16

    @property
    def affine(self) -> np.ndarray:
        return np.diag([*self.directions, 1.0])

    @property
    def labeled(self) -> list[str]:
        return sorted(Path(case).name for case in self.cases)

    def files(self, root: Path, case: str) -> tuple[str | list[str], str]:
        """The images of a case in the network's order, and its label map."""
        end = ".nii" if case in self.uncompressed else ".nii.gz"
        if self.names is None:
            name = f"{Path(case).name}{end}"
            return str(root / self.folder / f"{case}{end}"), str(root / self.folder / "labelsTr" / name)
        stem = str(root / self.folder / case / Path(case).name)
        mark = next(iter(self.names.values()))[0]
        return [f"{stem}{self.names[sequence]}{end}" for sequence in SEQUENCES], f"{stem}{mark}seg{end}"


RELEASES = {
    "2017": Layout(
        "Brats17TrainingData",
        ("HGG/Brats17_TCIA_105_1", "LGG/Brats17_2013_0_1"),
        OLD,
        (1, 2, 4),
        beside=("survival_data.csv",),
    ),
    "2018": Layout(
        "MICCAI_BraTS_2018_Data_Training",
        ("HGG/Brats18_CBICA_AAM_1", "LGG/Brats18_TCIA01_378_1"),
        OLD,
        (1, 2, 4),
        unlabeled=("MICCAI_BraTS_2018_Data_Validation/Brats18_UAB_3446_1",),
        beside=("survival_data.csv",),
    ),
    "2019": Layout(
        "MICCAI_BraTS_2019_Data_Training",
        ("HGG/BraTS19_CBICA_AAB_1", "LGG/BraTS19_TMC_06290_1"),
        OLD,
        (1, 2, 4),
        beside=("name_mapping.csv", "survival_data.csv"),
    ),
    "2020": Layout(
        "MICCAI_BraTS2020_TrainingData",
        ("BraTS20_Training_001", "BraTS20_Training_002"),
        OLD,
        (1, 2, 4),
        unlabeled=("MICCAI_BraTS2020_ValidationData/BraTS20_Validation_001",),
        uncompressed=("BraTS20_Training_002",),
        beside=("name_mapping.csv", "survival_info.csv", "BraTS20_Training_001/.DS_Store"),
    ),
    "2021": Layout("RSNA_ASNR_MICCAI_BraTS2021_TrainingData", ("BraTS2021_00000", "BraTS2021_00002"), OLD, (1, 2, 4)),
    "2023": Layout(
        "ASNR-MICCAI-BraTS2023-GLI-Challenge-TrainingData",
        ("BraTS-GLI-00000-000", "BraTS-GLI-00002-001"),
        NEW,
        (1, 2, 3),
        unlabeled=("ASNR-MICCAI-BraTS2023-GLI-Challenge-ValidationData/BraTS-GLI-00001-000",),
    ),
    "2024": Layout("training_data1_v2", ("BraTS-GLI-02405-100", "BraTS-GLI-02405-101"), NEW, (1, 2, 3, 4)),
    "2025": Layout(
        "BraTS2025-GLI-PRE-Challenge-TrainingData",
        ("BraTS-GLI-00009-000",),
        NEW,
        (1, 2, 3),
        shape=(182, 218, 182),
        directions=(1, 1, 1),
        dtype=np.float32,
    ),
    "Task01": Layout(
        "Task01_BrainTumour",
        ("imagesTr/BRATS_001", "imagesTr/BRATS_002"),
        None,
        (2, 1, 3),
        unlabeled=("Task01_BrainTumour/imagesTs/BRATS_485",),
        beside=("imagesTr/._BRATS_001.nii.gz", "labelsTr/._BRATS_001.nii.gz"),
    ),
}
WITHOUT_CAVITY = {name: layout for name, layout in RELEASES.items() if name != "2024"}


def tumor(layout: Layout, case: str) -> np.ndarray:
    """The tissues of a case. All lie in one corner, so that a large grid is packed fast."""
    tissues = np.zeros(layout.shape, np.uint8)
    kinds = len(layout.values) + 1
    tissues[:8, :9, :7] = np.random.default_rng(list(case.encode())).integers(0, kinds, (8, 9, 7))
    return tissues


def save(path: str | Path, values: np.ndarray, affine: np.ndarray) -> None:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(values, affine), path)


def write_images(layout: Layout, image: str | list[str], case: str) -> None:
    voxels = {}
    for number, sequence in enumerate(SEQUENCES, 1):
        noise = np.random.default_rng([number, *case.encode()]).uniform(0, 999, (8, 9, 7))
        voxels[sequence] = np.zeros(layout.shape, layout.dtype)
        voxels[sequence][:8, :9, :7] = 1000 * number + noise
    if isinstance(image, str):
        save(image, np.stack([voxels[sequence] for sequence in CHANNEL_ORDER], axis=-1), layout.affine)
    else:
        for sequence, file in zip(SEQUENCES, image, strict=True):
            save(file, voxels[sequence], layout.affine)


def write(layout: Layout, root: Path) -> Path:
    for case in layout.cases:
        image, label = layout.files(root, case)
        write_images(layout, image, case)
        save(label, np.array([0, *layout.values], np.uint8)[tumor(layout, case)], layout.affine)
    for case in layout.unlabeled:
        image, _ = layout.files(root, f"../{case}")
        write_images(layout, image, case)
    for file in layout.beside:
        (root / layout.folder / file).touch()
    if layout.names is None:
        names = dict(enumerate(("FLAIR", "T1w", "t1gd", "T2w")))
        (root / layout.folder / "dataset.json").write_text(json.dumps({"modality": names}))
    return root


def assert_loaded(layout: Layout, item: dict, case: str) -> None:
    """Each channel is its sequence, and each region holds its tissues, voxel by voxel."""
    load = Compose(
        [
            LoadImageByReaderd(("image", "label"), SequenceReader(), image_only=True, ensure_channel_first=True),
            LabelsToRegionsd("label"),
        ]
    )
    loaded = load(item)
    assert [int(channel.max()) // 1000 for channel in loaded["image"]] == [1, 2, 3, 4]
    np.testing.assert_array_equal(loaded["image"].affine, layout.affine)
    tissues = tumor(layout, case)
    for region, inside in zip(loaded["label"][1:], ((ET,), (CORE, ET), (CORE, EDEMA, ET)), strict=True):
        np.testing.assert_array_equal(region, np.isin(tissues, inside))


def assert_read(layout: Layout, root: Path, items: list[dict], et_label: int, cavity: int = 0) -> None:
    by_name = {item["case"]: item for item in items}
    for case in layout.cases:
        item = by_name[Path(case).name]
        image, label = layout.files(root, case)
        assert item == {
            "case": Path(case).name,
            "image": image,
            "label": label,
            "et_label": et_label,
            "edema_label": layout.values[1],
            "label_release": cavity,
        }
        assert_loaded(layout, item, case)


def test_the_networks_channels_are_those_of_the_authors_program():
    assert SEQUENCES == ("t1", "t2", "t1ce", "flair")


@pytest.mark.parametrize("name", WITHOUT_CAVITY)
def test_a_release_is_read_as_it_is_distributed(tmp_path, name):
    layout = RELEASES[name]
    root = write(layout, tmp_path)
    items = labeled_items(root)
    assert [item["case"] for item in items] == layout.labeled
    assert_read(layout, root, items, et_label=layout.values[2])
    # Its label values are those that its names promise.
    check_cases(items, root)
    everyone = sorted([*layout.labeled, *(Path(case).name for case in layout.unlabeled)])
    cases = unlabeled_items(root)
    assert [item["case"] for item in cases] == everyone
    check_cases(cases, root)


def test_after_treatment_a_cavity_stops_the_run_until_the_user_says_what_4_is(tmp_path):
    layout = RELEASES["2024"]
    root = write(layout, tmp_path)
    with pytest.raises(InputError, match=r"unexpected label 4 .*resection cavity.* set --label_release 2024"):
        check_cases(labeled_items(root)[:1], root)
    items = labeled_items(root, label_release=2024)
    check_cases(items, root)
    # The cavity is in no region.
    assert_read(layout, root, items, et_label=3, cavity=2024)


def test_several_releases_in_one_folder_keep_their_own_files_and_values(tmp_path):
    for layout in WITHOUT_CAVITY.values():
        write(layout, tmp_path)
    items = labeled_items(tmp_path)
    check_cases(items, tmp_path)
    assert [item["case"] for item in items] == sorted(
        case for layout in WITHOUT_CAVITY.values() for case in layout.labeled
    )
    for layout in WITHOUT_CAVITY.values():
        assert_read(layout, tmp_path, items, et_label=layout.values[2])


def test_one_entry_makes_a_release_known(tmp_path, monkeypatch):
    entry = brats.Release(
        "BraTS 2030", "+", ("a1", "b2", "c3", "d4"), et_label=3, case_pattern=r"(?P<patient>N\d+)v\d+"
    )
    monkeypatch.setattr(brats, "RELEASES", (*brats.RELEASES, entry))
    for suffix in (*entry.suffixes, "seg"):
        (tmp_path / f"N7v2+{suffix}.nii.gz").touch()
    (item,) = labeled_items(tmp_path)
    assert (item["case"], item["et_label"]) == ("N7v2", 3) and patient_of(item) == "N7"
    assert [Path(file).name for file in item["image"]] == [f"N7v2+{suffix}.nii.gz" for suffix in entry.suffixes]
    assert [brats.sequence_named(suffix) for suffix in entry.suffixes] == list(SEQUENCES)
    with pytest.raises(InputError, match="or 3 \\(BraTS 2030\\)"):
        brats.check_et_label(5)


def test_what_is_looked_for_names_every_release():
    assert all(f"{release.file_names} ({release.name})" in LOOKED_FOR for release in brats.RELEASES)
