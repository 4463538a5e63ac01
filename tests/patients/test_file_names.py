# Copyright (c) the brats_mri_panet_segmentation authors
# SPDX-License-Identifier: Apache-2.0
"""The words of file names tell the sequences, and what they leave open is refused."""

import re
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from scripts.brats import RELEASES, SEQUENCES, SPELLINGS
from scripts.patients.file_names import file_told, named_images
from scripts.patients.items import cases_in, find_items
from scripts.patients.raw import raw_items
from scripts.utils.errors import InputError


def sequences(*names: str) -> dict[str, str]:
    found, left_out = named_images([Path("ann", name) for name in names])
    assert {*found.values(), *left_out} == {Path("ann", name) for name in names}
    return {sequence: file.name for sequence, file in found.items()}


@pytest.mark.parametrize(
    "names",  # t1, t1ce, t2, flair, and others
    [
        ("T1.nii", "T1_post.nii.gz", "T2.nii", "FLAIR.nii"),
        (
            "AX T1.nii",
            "T1_MPRAGE_post_GAD.nii",
            "AX T2 TSE.nii",
            "pat7_FLAIR.nii",
            "ADC.nii",
            "T1 mask.nii",
            "T2_seg.nii",
        ),
        ("T1 ohne KM.nrrd", "T1 +C.nrrd", "T2 tse.nrrd", "t2_tirm_dark-fluid.nrrd"),
        ("x-t1n.nii", "x-t1c.nii", "x-t2w.nii", "x-t2f.nii"),
        # Words of a visit are in all names.
        (
            "sub-1_ses-post_T1w.nii",
            "sub-1_ses-post_ce-gd_T1w.nii",
            "sub-1_ses-post_T2w.nii",
            "sub-1_ses-post_FLAIR.nii",
        ),
        ("T1 FLAIR.nii", "T1 KM.nii", "T2.nii", "T2_FLAIR.nii"),
    ],
)
def test_names_tell_sequences(names):
    assert sequences(*names) == dict(zip(("t1", "t1ce", "t2", "flair"), names[:4], strict=True))


@pytest.mark.parametrize(
    ("names", "told"),
    [
        (("T1_a.nii", "T1_b.nii", "T2.nii"), "T1_a.nii and T1_b.nii may be with or without contrast agent"),
        (("T1.nii", "T1 post.nii", "T2.nii", "T2_b.nii"), "T2.nii and T2_b.nii may be the same sequence"),
        (("T1_post_a.nii", "T1_post_b.nii", "T1 pre.nii"), "T1_post_a.nii and T1_post_b.nii may be the same sequence"),
        # After an operation, or after contrast agent?
        (("p_post_T1.nii", "p_post_T2.nii", "p_post_FLAIR.nii"), "p_post_T1.nii may be with or without contrast agent"),
        (("T1_post.nii", "T2_post.nii", "FLAIR_post.nii"), "T1_post.nii may be with or without contrast agent"),
        (("T1 pre-op.nii", "T1 post-op.nii"), "may be with or without contrast agent"),
    ],
)
def test_what_names_leave_open_is_refused_with_the_options_that_decide(names, told):
    with pytest.raises(InputError, match=re.escape(told)) as caught:
        sequences(*names)
    for option in ("--t1 ", "--t1ce ", "--t2 ", "--flair "):
        assert option in str(caught.value)


def test_the_options_are_filled_in_where_the_names_decide():
    with pytest.raises(InputError, match=re.escape("--t1 FILE --t2 'ann/AX T2.nii' --t1ce FILE --flair ann/FLAIR.nii")):
        sequences("T1_a.nii", "T1_b.nii", "AX T2.nii", "FLAIR.nii")


def test_names_of_the_releases_mean_the_same():
    for sequence, *released in zip(SEQUENCES, *(release.suffixes for release in RELEASES), strict=True):
        for name in (*released, *SPELLINGS[sequence]):
            weighting, agent = file_told(f"p_{name}")
            assert ("t1ce" if (weighting, agent) == ("t1", True) else weighting) == sequence


def write(folder: Path, *names: str) -> list[Path]:
    folder.mkdir(parents=True, exist_ok=True)
    for number, name in enumerate(names):
        nib.save(nib.Nifti1Image(np.full((2, 2, 2), number, np.uint8), np.eye(4)), folder / name)
    return [folder / name for name in names]


def test_cases_are_found_by_words_where_no_release_names_them(tmp_path):
    names = ("T1.nii", "T1 +C.nii", "T2.nii", "FLAIR.nii")
    files = write(tmp_path / "a" / "ann", *names)
    write(tmp_path / "a" / "bob", *names)
    items, _ = find_items([tmp_path / "a"], 0)
    assert [item["case"] for item in items] == ["ann", "bob"]
    assert items[0]["image"] == [
        str(tmp_path / "a" / "ann" / name) for name in ("T1.nii", "T2.nii", "T1 +C.nii", "FLAIR.nii")
    ]
    # The files themselves are one case of their folder, or of the name that a user gives.
    assert find_items(files, 0)[0] == items[:1]
    assert find_items(files, 0, name="eve")[0] == raw_items(files, name="eve") == [{**items[0], "case": "eve"}]
    with pytest.raises(InputError, match="--name eve: there are 2 cases"):
        find_items([tmp_path / "a"], 0, name="eve")
    with pytest.raises(InputError, match="--name a/b: results are named after it"):
        find_items(files, 0, name="a/b")


def test_a_name_of_a_release_beside_others_is_no_incomplete_case(tmp_path):
    write(tmp_path, "pat7_flair.nii", "T1.nii", "T1 +C.nii", "T2.nii")
    (item,), _ = find_items([tmp_path], 0)
    assert (item["case"], Path(item["image"][3]).name) == (tmp_path.name, "pat7_flair.nii")
    (tmp_path / "T2.nii").unlink()
    with pytest.raises(InputError, match="there is no file whose name says T2"):
        find_items([tmp_path], 0)
    # Complete cases of a release stay as they are, whatever lies beside them.
    write(tmp_path / "b", *(f"ann_{name}.nii" for name in SEQUENCES), "T1 +C.nii", "T2.nii")
    assert [case.name for _, cases in cases_in([tmp_path / "b"]) for case in cases] == ["ann"]


def test_names_that_say_nothing_are_refused_with_a_remedy(tmp_path):
    files = write(tmp_path, "a.nii", "b.nii")
    with pytest.raises(InputError, match=r"no cases found.* --t1, --t1ce, --t2 and --flair name any file"):
        find_items([tmp_path], 0)
    with pytest.raises(InputError, match="no name of a file tells its sequence; give --t1"):
        find_items(files, 0)
