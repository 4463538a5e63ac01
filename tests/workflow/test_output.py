# Copyright (c) the brats_mri_panet_segmentation authors
# SPDX-License-Identifier: Apache-2.0
"""The folder of a run: which run it belongs to, and which of its files are never replaced."""

import nibabel as nib
import numpy as np
import pytest
from scripts.data.datalist import labeled_items, split_datalist, unlabeled_items
from scripts.utils.errors import InputError
from scripts.utils.locks import leave_run
from scripts.workflow.output import Output
from tiny import contents, evaluate, prepare


def test_a_new_folder_and_one_with_other_things_may_be_used(tmp_path):
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "notes.txt").write_text("mine")
    for name in ("new", "used"):
        Output(str(tmp_path / name), overwrite=False).refuse_used(str(tmp_path / "data"))
        with Output(str(tmp_path / name)).claimed():
            pass
    assert (tmp_path / "used" / "notes.txt").read_text() == "mine"


def test_the_folder_of_an_earlier_run_is_refused_or_kept_under_its_date(tmp_path):
    folder = tmp_path / "out"
    folder.mkdir()
    (folder / "run.json").write_text("{}")
    (folder / "model.pt").write_text("earlier")
    with pytest.raises(InputError, match=r"holds an earlier run; choose another --output_dir, or add --overwrite \("):
        Output(str(folder), overwrite=False).refuse_used(str(tmp_path / "data"))
    assert (folder / "model.pt").read_text() == "earlier"
    Output(str(folder), overwrite=True).refuse_used(str(tmp_path / "data"))
    with pytest.raises(InputError, match="holds an earlier run"), Output(str(folder)).claimed():
        pass
    with Output(str(folder), overwrite=True).claimed():
        assert not (folder / "model.pt").exists()
    (kept,) = tmp_path.glob("out_*")
    assert (kept / "model.pt").read_text() == "earlier" and not (kept / ".locks").exists()
    leave_run(folder)
    assert not list(folder.iterdir())


@pytest.mark.parametrize("below", [".", "cohort", "a/b"])
@pytest.mark.parametrize("overwrite", [True, False])
def test_results_never_go_where_the_data_are(tmp_path, below, overwrite):
    data = tmp_path / "out" / below
    data.mkdir(parents=True)
    with pytest.raises(InputError, match="holds the data"):
        Output(str(tmp_path / "out"), overwrite=overwrite).refuse_used(str(data))
    assert data.is_dir()


# Results never replace what a run reads.


def decathlon(tmp_path):
    """The folder of Task01 with one case, and its items."""
    root = tmp_path / "Task01"
    for folder, shape in (("imagesTs", (4, 4, 4, 4)), ("imagesTr", (4, 4, 4, 4)), ("labelsTr", (4, 4, 4))):
        (root / folder).mkdir(parents=True)
        nib.save(nib.Nifti1Image(np.ones(shape, np.int16), np.eye(4)), root / folder / f"case_{folder[-1]}.nii.gz")
    return root


@pytest.mark.parametrize("folder", ["imagesTs", "imagesTr", "labelsTr"])
def test_a_label_map_never_replaces_an_image_or_a_label(tmp_path, model, folder):
    root = decathlon(tmp_path)
    before = contents(root)
    labeled = folder != "imagesTs"
    items = labeled_items(root) if labeled else unlabeled_items(root / folder)
    assert len(items) == 1
    out, case = root / folder, items[0]["case"]
    with pytest.raises(InputError) as caught:
        kind = {"save_label_maps": True, "label_map_dir": str(out)} if labeled else {"all_cases": items}
        evaluate(items, root, model, out, **kind)
    assert str(caught.value) == (
        f"{out / case}.nii.gz: would be written over {out / case}.nii.gz, an input; choose another --output_dir."
    )
    assert contents(root) == before
    # If a run saves no label maps there, it may use the folder.
    Output(str(out), None).refuse_replacing(items)


@pytest.mark.parametrize("name", ["p_prob_core", "p_prob_enhance", "p_unc_whole"])
def test_a_map_of_a_region_never_replaces_an_image(tmp_path, name):
    path = tmp_path / f"{name}.nii.gz"
    path.touch()
    items = [{"case": "p", "image": [str(path), "b", "c", "d"]}]
    with pytest.raises(InputError, match=f"{name}.nii.gz: would be written over"):
        Output(str(tmp_path), str(tmp_path)).refuse_replacing(items)
    # A resumed training also reads and writes.
    with pytest.raises(InputError, match=f"{name}.nii.gz: would be written over"):
        Output(str(tmp_path / "out"), str(tmp_path)).refuse_replacing(items, resume=True)
    Output(str(tmp_path), str(tmp_path)).refuse_replacing([{**items[0], "case": "q"}])


@pytest.mark.parametrize("link", ["folder", "image", "result"])
def test_links_do_not_hide_what_would_be_replaced(tmp_path, link):
    data, out = tmp_path / "data", tmp_path / "out"
    data.mkdir()
    (data / "p.nii.gz").touch()
    image = data / "p.nii.gz"
    if link == "folder":
        out.symlink_to(data)
    elif link == "image":
        out.mkdir()
        image.rename(out / "p.nii.gz")
        image.symlink_to(out / "p.nii.gz")
    else:
        out.mkdir()
        (out / "p.nii.gz").symlink_to(image)
    with pytest.raises(InputError, match="would be written over"):
        Output(str(out), str(out)).refuse_replacing([{"case": "p", "image": str(image)}])


def test_an_earlier_runs_folder_with_inputs_in_it_is_not_moved_away(tmp_path):
    """With --overwrite True, the folder would be moved away together with the inputs."""
    (tmp_path / "run.json").write_text("{}")
    (tmp_path / "scan.nii.gz").touch()
    (tmp_path / "elsewhere").mkdir()
    link = tmp_path / "elsewhere" / "scan.nii.gz"
    link.symlink_to(tmp_path / "scan.nii.gz")
    for file in (tmp_path / "scan.nii.gz", link):
        with pytest.raises(InputError) as caught:
            Output(str(tmp_path), None).refuse_replacing([{"case": "p", "image": str(file)}])
        assert str(caught.value) == f"{tmp_path}: holds {file}, which the run reads; choose another --output_dir."
        # A resumed training moves nothing.
        Output(str(tmp_path), None).refuse_replacing([{"case": "p", "image": str(file)}], resume=True)


def test_a_trainings_split_never_replaces_the_datalist_given(tmp_path, data):
    split, out = split_datalist(data), tmp_path / "out"
    out.mkdir()
    (out / "datalist.json").write_text("mine")
    with pytest.raises(InputError, match=r"datalist\.json: would be written over .*an input"):
        prepare(split, data, out, datalist_file=str(out / "datalist.json"))
    assert (out / "datalist.json").read_text() == "mine"
    prepare(split, data, tmp_path / "other", datalist_file=str(out / "datalist.json"))
