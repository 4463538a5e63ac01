# Copyright (c) the brats_mri_panet_segmentation authors
# SPDX-License-Identifier: Apache-2.0
"""Files are whole or absent, earlier ones are kept, and unreadable ones are named."""

import json
import os
import re
import time
from pathlib import Path

import pytest
import torch
from scripts.utils.errors import InputError
from scripts.utils.files import keep_earlier, refuse_pointer, replacing, save_json, save_text
from scripts.utils.tensors import load_torch, save_torch


def names(folder):
    return sorted(path.name for path in folder.iterdir())


# Replacing.


def test_a_file_appears_under_its_name_only_when_it_is_whole(tmp_path):
    target = tmp_path / "new" / "deep" / "a.nii.gz"
    with replacing(target) as temporary:
        temporary.write_text("half")
        assert not target.exists()
        # Writers choose the format by the extension.
        assert temporary.name == "a.nii.gz"
        temporary.write_text("whole")
    assert target.read_text() == "whole"
    assert names(target.parent) == ["a.nii.gz"]


@pytest.mark.parametrize("earlier", [None, "earlier"])
@pytest.mark.parametrize("begun", [True, False])
@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_a_failed_write_leaves_what_was_there(earlier, begun, error, tmp_path):
    target = tmp_path / "a.txt"
    if earlier:
        target.write_text(earlier)
    with pytest.raises(error, match="stopped"), replacing(target) as temporary:
        if begun:
            temporary.write_text("half")
        raise error("stopped")
    assert names(tmp_path) == (["a.txt"] if earlier else [])
    assert not earlier or target.read_text() == earlier


def test_what_cannot_be_saved_leaves_the_earlier_file(tmp_path):
    save_torch({"a": torch.ones(2)}, tmp_path / "a.pt")
    save_json({"a": 1}, tmp_path / "a.json")
    before = {name: (tmp_path / name).read_bytes() for name in names(tmp_path)}
    with pytest.raises(Exception, match="lambda"):
        save_torch({"a": lambda: 0}, tmp_path / "a.pt")
    with pytest.raises(TypeError, match="keys must be"):
        save_json({(1, 2): "a"}, tmp_path / "a.json")
    assert {name: (tmp_path / name).read_bytes() for name in names(tmp_path)} == before


def test_saved_values_come_back(tmp_path):
    state = {"weight": torch.arange(6.0).reshape(2, 3), "epoch": 3, "names": ["a", None]}
    save_torch(state, tmp_path / "a.pt")
    back = load_torch(tmp_path / "a.pt")
    assert torch.equal(back["weight"], state["weight"])
    assert (back["epoch"], back["names"]) == (3, ["a", None])
    save_text("Oedème\n", tmp_path / "a.txt")
    assert (tmp_path / "a.txt").read_bytes() == "Oedème\n".encode()
    save_json({"b": [1, 2], "a": None}, tmp_path / "a.json")
    assert (tmp_path / "a.json").read_text() == '{\n    "b": [\n        1,\n        2\n    ],\n    "a": null\n}\n'
    assert json.loads((tmp_path / "a.json").read_text()) == {"b": [1, 2], "a": None}
    assert names(tmp_path) == ["a.json", "a.pt", "a.txt"]


# Keeping earlier files.


def dated(path, text, when="2024-03-05 06:07:08"):
    path.write_text(text)
    seconds = time.mktime(time.strptime(when, "%Y-%m-%d %H:%M:%S"))
    os.utime(path, (seconds, seconds))
    return path


def test_an_earlier_file_is_renamed_after_its_date(tmp_path):
    path = dated(tmp_path / "model.pt", "first")
    assert keep_earlier(path) == tmp_path / "model_20240305_060708.pt"
    assert names(tmp_path) == ["model_20240305_060708.pt"]
    assert (tmp_path / "model_20240305_060708.pt").read_text() == "first"


def test_files_of_one_second_are_all_kept(tmp_path):
    for text in ("first", "second", "third"):
        keep_earlier(dated(tmp_path / "model.pt", text))
    kept = {path.name: path.read_text() for path in tmp_path.iterdir()}
    assert kept == {
        "model_20240305_060708.pt": "first",
        "model_20240305_060708_2.pt": "second",
        "model_20240305_060708_3.pt": "third",
    }


def test_where_nothing_was_nothing_is_kept(tmp_path):
    assert keep_earlier(tmp_path / "model.pt") is None
    assert names(tmp_path) == []


# Loading.


def test_an_absent_file_and_a_folder_are_named(tmp_path):
    for path in (tmp_path / "absent.pt", tmp_path):
        with pytest.raises(InputError, match=re.escape(f"{path}: no such file")):
            load_torch(path)


@pytest.mark.parametrize(
    "content",
    [b"", b"weights\n", b"\x00" * 100, b"\x80\x02}q\x00.", b"PK\x03\x04garbage", b"<html>", b"a", b"(text", b"J"],
)
def test_a_file_of_something_else_is_refused_in_one_line(content, tmp_path):
    path = tmp_path / "a.pt"
    path.write_bytes(content)
    with pytest.raises(InputError, match=re.escape(f"{path}: not a readable file of tensors (")) as caught:
        load_torch(path)
    assert "\n" not in str(caught.value)
    assert "copy or train it again" in str(caught.value)


@pytest.mark.parametrize("share", [0.01, 0.5, 0.99])
def test_a_cut_off_file_is_refused(share, tmp_path):
    path = tmp_path / "a.pt"
    torch.save({"weight": torch.arange(5000.0)}, path)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(InputError, match=re.escape(f"{path}: not a readable file")):
        load_torch(path)


def test_objects_are_not_loaded(tmp_path):
    torch.save({"weight": torch.zeros(1), "path": Path("x")}, tmp_path / "a.pt")
    with pytest.raises(InputError, match="not loaded, since they could run code"):
        load_torch(tmp_path / "a.pt")


def test_what_json_does_not_know_is_written_as_text(tmp_path):
    save_json({"device": torch.device("cpu"), "path": tmp_path}, tmp_path / "a.json")
    assert json.loads((tmp_path / "a.json").read_text()) == {"device": "cpu", "path": str(tmp_path)}


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (
            "version https://git-lfs.github.com/spec/v1\noid sha256:0\n",
            r"a pointer of Git LFS .*; get it \(git lfs pull\)",
        ),
        ("/annex/objects/SHA256E-s9--0.nii.gz\n", r"a pointer of git-annex .*; get it \(git annex get a\.pt\)"),
    ],
)
def test_a_pointer_is_named_as_what_it_is(content, said, tmp_path):
    file = tmp_path / "a.pt"
    file.write_text(content)
    for reading in (refuse_pointer, load_torch):
        with pytest.raises(InputError, match=said) as caught:
            reading(file)
        assert caught.value.kind == "pointer in place of a file"


def test_a_link_to_content_that_git_annex_has_not_got_is_a_pointer(tmp_path):
    file = tmp_path / "a.nii.gz"
    file.symlink_to("../.git/annex/objects/aa/bb/SHA256E-s9--0.nii.gz")
    with pytest.raises(InputError, match="a pointer of git-annex"):
        refuse_pointer(file)
    for other in (tmp_path / "absent", tmp_path):
        refuse_pointer(other)
