# Copyright (c) the brats_mri_panet_segmentation authors
# SPDX-License-Identifier: Apache-2.0
"""OpenVINO gives the same values as torch, and the network is converted once for each set of weights."""

import json
import logging
import os
import shutil
import subprocess
import sys
from hashlib import sha256

import numpy as np
import pytest
import torch
from forks import python
from monai.inferers import SimpleInferer
from scripts.inference import openvino
from scripts.inference.ensembles import EnsembleInferer
from scripts.inference.openvino import OpenVINONetwork
from scripts.networks import AttentionUNet, CascadedUNet, DynUNet, PriorAttentionNet, SegResNet, SwinUNETR
from scripts.utils.errors import InputError, input_error_behind
from scripts.utils.tensors import weights_checksum
from scripts.workflow.preparation import check_who_reads_weights
from workflows import CHANNELS, ROOT, SIZE, TRAINING_SIZE, bundle_run, initialized, rows, voxels


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A model file whose label maps are neither empty nor full."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("openvino") / "model.pt"
    torch.save(PriorAttentionNet(channels=CHANNELS).state_dict(), path)
    return path


def eager(model) -> PriorAttentionNet:
    network = PriorAttentionNet(channels=CHANNELS).eval()
    network.load_state_dict(torch.load(model, weights_only=True))
    return network


# Each run has a process of its own, because a process that has run OpenVINO may crash when its loader forks. It may
# crash when it starts a process, too, so this test comes before those that run OpenVINO in this one.
OVERLAPPED = """
import json, sys
from scripts.inference.background import BackgroundCompose
from workflows import bundle_run

cases, process = [], BackgroundCompose.process
BackgroundCompose.process = lambda *arguments: (cases.append(1), process(*arguments))[1]
names, settings = json.loads(sys.argv[1])
bundle_run(*names, **settings)
print("overlapped:", len(cases))
"""


def test_cases_overlap_whichever_overlay_comes_first(small_cohort, tmp_path):
    torch.manual_seed(0)
    torch.save(PriorAttentionNet(channels=CHANNELS).state_dict(), tmp_path / "model.pt")
    names = ("openvino.yaml", "inference_pipelined.yaml")
    maps = []
    for number, (overlays, overlapped) in enumerate(((names[:1], 0), (names, 6), (names[::-1], 6))):
        output = tmp_path / str(number)
        place = {"dataset_dir": str(small_cohort), "output_dir": str(output), "model_file": str(tmp_path / "model.pt")}
        place |= {"openvino_cache": str(tmp_path / "openvino"), "openvino_precision": "f32"}
        arguments = json.dumps([["inference.json", *overlays], {**SIZE, **place, "num_workers": 1}])
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")])}
        command = [python(), "-c", OVERLAPPED, arguments]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr[-3000:]
        assert done.stdout.splitlines()[-1] == f"overlapped: {overlapped}"
        maps.append({path.name: sha256(path.read_bytes()).hexdigest() for path in output.glob("*.nii.gz")})
    assert len(maps[0]) == 6 and maps[0] == maps[1] == maps[2]


@pytest.mark.parametrize(("precision", "tolerance"), [("f32", 2e-4), ("bf16", 3e-2)])
def test_values_are_those_of_torch_at_any_size(model, precision, tolerance):
    fast = OpenVINONetwork(PriorAttentionNet(channels=CHANNELS), str(model), str(model.parent / "cache"), precision)
    for size in ((32, 32, 32), (48, 32, 64), (16, 80, 32)):
        x = torch.randn(1, 4, *size)
        with torch.no_grad():
            wanted = eager(model)(x)
        result = fast(x)
        assert result.dtype == torch.float32 and result.shape == wanted.shape
        assert float((result - wanted).abs().max() / wanted.abs().max()) < tolerance


def test_a_model_is_converted_once_for_its_weights(model, tmp_path, caplog):
    cache, copy = tmp_path / "cache", tmp_path / "renamed.pt"
    shutil.copy(model, copy)
    other = tmp_path / "other.pt"
    torch.save(PriorAttentionNet(channels=CHANNELS).state_dict(), other)
    x = torch.randn(1, 4, 32, 32, 32)
    said = []
    with caplog.at_level(logging.INFO):
        for file in (model, copy, other):
            caplog.clear()
            OpenVINONetwork(PriorAttentionNet(channels=CHANNELS), str(file), str(cache))(x)
            said.append(any("Converting" in message for message in caplog.messages))
    assert said == [True, False, True]
    assert sorted(path.suffix for path in cache.iterdir()) == [".bin", ".bin", ".xml", ".xml"]


def test_a_network_built_otherwise_is_not_served_from_the_cache(model, tmp_path):
    """Except for the slopes of PReLU, the weights fit both networks, but the activations differ."""
    x = torch.randn(2, 4, 32, 32, 32)
    results = []
    for act in ("relu", "leakyrelu"):
        torch.manual_seed(0)
        network = PriorAttentionNet(channels=CHANNELS, act=act).eval()
        torch.save(network.state_dict(), tmp_path / "same.pt")
        fast = OpenVINONetwork(network, str(tmp_path / "same.pt"), str(tmp_path / "cache"), "f32")
        with torch.no_grad():
            wanted = network(x)
        results.append(fast(x))
        assert float((results[-1] - wanted).abs().max() / wanted.abs().max()) < 2e-4
    assert not torch.allclose(*results, atol=1e-2)


def test_nothing_is_reported_to_anyone(model, tmp_path):
    """OpenVINO's converter would send usage statistics if its package for them were not blocked."""
    OpenVINONetwork(PriorAttentionNet(channels=CHANNELS), str(model), str(tmp_path))(torch.zeros(1, 4, 32, 32, 32))
    assert sys.modules["openvino_telemetry"] is None


def test_the_checksum_is_of_names_shapes_types_and_values():
    state = {"a": torch.arange(6.0), "b": torch.tensor(3)}
    assert weights_checksum(state) == weights_checksum({"b": torch.tensor(3), "a": torch.arange(6.0)})
    others = [
        {"a": torch.arange(6.0) + 1e-6, "b": torch.tensor(3)},
        {"a": torch.arange(6.0).reshape(2, 3), "b": torch.tensor(3)},
        {"a": torch.arange(6.0).double(), "b": torch.tensor(3)},
        {"c": torch.arange(6.0), "b": torch.tensor(3)},
    ]
    assert len({weights_checksum(other) for other in [state, *others]}) == 5


@pytest.mark.parametrize("whole_brain", [False, True])
def test_label_maps_are_those_of_torch(model, whole_brain, small_cohort, tmp_path):
    """In float32, label maps of OpenVINO and torch differ in hardly any voxel."""
    common = {"dataset_dir": str(small_cohort), "model_file": str(model), **SIZE}
    extra = ["whole_brain.yaml"] if whole_brain else []
    bundle_run("inference.json", *extra, **common, output_dir=str(tmp_path / "torch"))
    place = {"output_dir": str(tmp_path / "openvino"), "openvino_cache": str(tmp_path / "cache")}
    bundle_run("inference.json", "openvino.yaml", *extra, **common, **place, openvino_precision="f32")
    for path in (tmp_path / "torch").glob("*.nii.gz"):
        a, b = voxels(path), voxels(tmp_path / "openvino" / path.name)
        for labels in ((4,), (1, 4), (1, 2, 4)):
            one, two = np.isin(a, labels), np.isin(b, labels)
            assert 2 * (one & two).sum() >= 0.999 * (one.sum() + two.sum())
        assert a.any()


def test_evaluation_with_the_overlay(model, small_cohort, tmp_path):
    settings = {key: value for key, value in TRAINING_SIZE.items() if key not in ("max_epochs", "val_interval")}
    place = {"dataset_dir": str(small_cohort), "model_file": str(model), "cases": "validation", **settings}
    scores = []
    for name, overlays in (("torch", ()), ("openvino", ("openvino.yaml",))):
        output = tmp_path / name
        more = {"openvino_cache": str(tmp_path / "cache"), "openvino_precision": "f32"} if overlays else {}
        bundle_run("train.json", "evaluate.json", *overlays, **place, **more, output_dir=str(output))
        scores.append(rows(output / "evaluation_validation" / "scores.csv"))
    one, two = scores
    assert list(one) == list(two)
    for case, row in one.items():
        for region in ("ET", "TC", "WT"):
            assert float(row[f"dice_{region}"]) == pytest.approx(float(two[case][f"dice_{region}"]), abs=1e-3)


def test_an_unknown_precision_is_refused(model, tmp_path):
    with pytest.raises(InputError, match=r"--openvino_precision fp8: choose one of auto, f32, bf16"):
        OpenVINONetwork(PriorAttentionNet(channels=CHANNELS), str(model), str(tmp_path), "fp8")


def test_several_files_without_the_overlay_of_ensembles_are_refused(model, small_cohort, tmp_path):
    place = {"dataset_dir": str(small_cohort), "output_dir": str(tmp_path / "maps"), **SIZE}
    with pytest.raises(RuntimeError) as caught:
        bundle_run("inference.json", "openvino.yaml", **place, model_file=[str(model), str(model.with_name("b.pt"))])
    assert "one network takes one file; for several add ensemble.yaml" in str(input_error_behind(caught.value))
    assert not (tmp_path / "maps").exists()


def test_the_members_of_an_ensemble_are_averaged(model, tmp_path):
    """torch averages the same members in the same way, in float32."""
    torch.manual_seed(1)
    torch.save(PriorAttentionNet(channels=CHANNELS).state_dict(), tmp_path / "other.pt")
    members = [str(model), str(tmp_path / "other.pt")]
    x = torch.rand(1, 4, 32, 32, 32, generator=torch.Generator().manual_seed(2))
    network = PriorAttentionNet(channels=CHANNELS).eval()
    ensemble = EnsembleInferer(SimpleInferer(), members)
    run_by_openvino = OpenVINONetwork(PriorAttentionNet(channels=CHANNELS), members, str(tmp_path / "cache"), "f32")
    with torch.no_grad():
        found, wanted = ensemble(x, run_by_openvino), ensemble(x, network)
        one = EnsembleInferer(SimpleInferer(), [members[1], members[1]])(x, run_by_openvino)
    torch.testing.assert_close(found, wanted, atol=1e-3, rtol=1e-3)
    assert (one - found).abs().max() > 0.01  # the members differ
    assert len(list((tmp_path / "cache").glob("*.xml"))) == 2


def test_the_overlays_of_openvino_and_of_ensembles_fit_each_other(tmp_path):
    members = ["a.pt", "b.pt"]
    names = ("inference.json", "openvino.yaml", "ensemble.yaml")
    place = {"dataset_dir": str(tmp_path / "data"), "output_dir": str(tmp_path / "out")}
    parser = initialized(*names, kind="infer", **place, model_file=members).parser
    network, inferer = parser.get_parsed_content("network"), parser.get_parsed_content("inferer")
    check_who_reads_weights(network, inferer, members, load_pretrain=False)
    with pytest.raises(InputError, match="one network takes one file"):
        check_who_reads_weights(network, inferer.inferer, members, load_pretrain=False)


def test_an_absent_package_is_said_in_one_line(model, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(InputError, match=r"OpenVINO is not installed; pip install openvino, or leave out the overlay"):
        openvino.OpenVINONetwork(PriorAttentionNet(channels=CHANNELS), str(model), str(tmp_path))


COMPARED = {
    "attention U-Net": lambda: AttentionUNet(channels=CHANNELS),
    "cascaded U-Net": lambda: CascadedUNet(channels=CHANNELS),
    "SegResNet": lambda: SegResNet(init_filters=8),
    "DynUNet": lambda: DynUNet(filters=CHANNELS, strides=(1, 2, 2, 2, 2), res_block=True),
}


@pytest.mark.parametrize("name", COMPARED)
def test_networks_to_compare_with_give_the_values_of_torch_at_any_size(name, tmp_path):
    torch.manual_seed(0)
    network = COMPARED[name]().eval()
    torch.save(network.state_dict(), tmp_path / "model.pt")
    fast = OpenVINONetwork(network, str(tmp_path / "model.pt"), str(tmp_path / "cache"), "f32")
    for size in ((32, 48, 32), (64, 32, 48)):
        x = torch.randn(1, 4, *size)
        with torch.no_grad():
            wanted = network(x)
        assert wanted.std() > 0.1
        assert (fast(x) - wanted).abs().max() < 1e-3 * wanted.abs().max()


def test_a_network_for_one_size_alone_is_refused_in_one_line(tmp_path):
    with pytest.raises(InputError, match="SwinUNETR: OpenVINO would fix one size of images") as caught:
        OpenVINONetwork(SwinUNETR(feature_size=12), "model.pt", str(tmp_path))
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())
