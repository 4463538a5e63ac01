# Copyright (c) the brats_mri_panet_segmentation authors
# SPDX-License-Identifier: Apache-2.0
"""Exports to ONNX, torch.export and TensorRT give the same values as the network, at several sizes."""

import copy
import importlib.util
import inspect
import json
import shutil
import tempfile
from pathlib import Path

import monai
import pytest
import torch
from monai.bundle import ConfigParser, ConfigWorkflow, ckpt_export
from monai.data import load_net_with_metadata
from scripts import export_program
from scripts.inference import tensorrt
from scripts.networks import PriorAttentionNet
from scripts.utils.errors import InputError, input_error_behind
from scripts.weights.record import save_weights, trained_on
from workflows import CHANNELS, CONFIGS, ROOT, files, initialized

SIZES = [(1, 32, 32, 32), (2, 64, 48, 32), (1, 48, 80, 64)]


@pytest.fixture(scope="module")
def network() -> PriorAttentionNet:
    """A network with unequal widths, whose weights and running statistics all have different values."""
    torch.manual_seed(5)
    made = PriorAttentionNet(channels=[4, 6, 8, 10, 12]).eval()
    with torch.no_grad():
        for name, value in made.state_dict().items():
            if value.is_floating_point():
                spread = torch.rand_like(value) + 0.5
                value.copy_(spread if "running_var" in name or value.numel() == 1 else value + 0.1 * spread)
    return made


@pytest.fixture(scope="module")
def root(network, tmp_path_factory) -> Path:
    """A bundle's root with the weights of ``network``, which inference.json defines."""
    folder = tmp_path_factory.mktemp("exports")
    (folder / "configs").mkdir()
    config = json.loads((CONFIGS / "inference.json").read_text())
    config["network_def"]["channels"] = [4, 6, 8, 10, 12]
    (folder / "configs" / "inference.json").write_text(json.dumps(config))
    (folder / "configs" / "metadata.json").write_text((CONFIGS / "metadata.json").read_text())
    (folder / "models").mkdir()
    place = {"bundle_root": str(folder), "dataset_dir": str(folder)}
    made = ConfigWorkflow(
        str(folder / "configs" / "inference.json"), workflow_type="infer", logging_file=False, **place
    )
    made.initialize()
    settings = made.parser.get_parsed_content("weights_settings")
    save_weights(network.state_dict(), folder / "models" / "model.pt", {**settings, "trained_on": trained_on(4, 0)})
    return folder


def samples():
    generator = torch.Generator().manual_seed(7)
    for batch, *size in SIZES:
        yield torch.randn(batch, 4, *size, generator=generator)


@pytest.mark.slow
def test_onnx_equals_eager_at_any_size(network, root, monkeypatch, tmp_path):
    """MONAI's own command exports with the arguments of docs/interoperability.md, and ONNX Runtime runs the file."""
    pytest.importorskip("onnx")
    pytest.importorskip("onnxscript")
    onnxruntime = pytest.importorskip("onnxruntime")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    path = root / "models" / "model.onnx"
    axes = [0, 2, 3, 4]
    converter = {"input_names": ["image"], "output_names": ["pred"], "dynamic_axes": {"image": axes, "pred": axes}}
    monai.bundle.onnx_export(
        net_id="network_def",
        filepath=str(path),
        ckpt_file=str(root / "models" / "model.pt"),
        config_file=str(root / "configs" / "inference.json"),
        use_trace=True,
        input_shape=[2, 4, 32, 48, 64],
        converter_kwargs={**converter, "external_data": False},
    )
    left = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert left == [], "without external_data False a file of the weights stays in the temporary folder"
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    (image,) = session.get_inputs()
    assert (image.name, image.shape[1], image.type) == ("image", 4, "tensor(float)")
    assert all(isinstance(n, str) for i, n in enumerate(image.shape) if i != 1), "all axes but the channels are open"
    for x in samples():
        with torch.no_grad():
            wanted = network(x)
        (got,) = session.run(["pred"], {"image": x.numpy()})
        assert wanted.std() > 0.1, "a constant output would prove nothing"
        assert torch.allclose(torch.from_numpy(got), wanted, rtol=1e-4, atol=1e-4)


COMPARED = {
    "network_cascaded_unet.yaml": {"network_def#channels": CHANNELS},
    "network_segresnet.yaml": {"network_def#init_filters": 8},
    "network_dynunet.yaml": {"network_def#filters": CHANNELS, "network_def#strides": [1, 2, 2, 2, 2]},
}


@pytest.mark.slow
@pytest.mark.parametrize("overlay", COMPARED)
def test_networks_to_compare_with_are_exported_to_onnx_by_their_overlay(overlay, tmp_path):
    pytest.importorskip("onnxscript")
    onnxruntime = pytest.importorskip("onnxruntime")
    torch.manual_seed(0)
    compared = initialized("inference.json", overlay, kind="infer", **COMPARED[overlay]).network_def.eval()
    torch.save(compared.state_dict(), tmp_path / "model.pt")
    axes = [0, 2, 3, 4]
    monai.bundle.onnx_export(
        net_id="network_def",
        filepath=str(tmp_path / "model.onnx"),
        ckpt_file=str(tmp_path / "model.pt"),
        config_file=files("inference.json", overlay),
        use_trace=True,
        input_shape=[2, 4, 32, 48, 64],
        converter_kwargs={"dynamic_axes": {"x": axes}, "input_names": ["x"], "external_data": False},
        **COMPARED[overlay],
    )
    session = onnxruntime.InferenceSession(str(tmp_path / "model.onnx"), providers=["CPUExecutionProvider"])
    for x in samples():
        with torch.no_grad():
            wanted = compared(x)
        (got,) = session.run(None, {"x": x.numpy()})
        assert wanted.std() > 0.1, "a constant output would prove nothing"
        assert torch.allclose(torch.from_numpy(got), wanted, rtol=1e-4, atol=1e-4)


def test_a_network_for_one_size_alone_is_not_exported_by_torch_export(root, tmp_path):
    """The refusal comes before the weights are read, since it does not depend on them."""
    configs = files("inference.json", "network_swin_unetr.yaml")
    with pytest.raises(InputError, match=r"SwinUNETR: torch\.export would fix one size of images"):
        export_program.main([str(tmp_path / "model.pt2"), "--bundle_root", str(root), "--config_file", *configs])
    assert not any(tmp_path.iterdir())


@pytest.mark.slow
def test_exported_program_equals_eager_at_any_size(network, root):
    path = root / "models" / "model.pt2"
    assert export_program.main([str(path), "--bundle_root", str(root)]) == 0
    extra = {"metadata.json": "", "inference.json": "", "model.json": ""}
    program = torch.export.load(path, extra_files=extra).module()
    for x in samples():
        with torch.no_grad():
            assert torch.equal(program(x), network(x))
    assert json.loads(extra["metadata.json"]) == json.loads((CONFIGS / "metadata.json").read_text())
    assert json.loads(extra["inference.json"])["network_def"]["channels"] == [4, 6, 8, 10, 12]
    assert json.loads(extra["model.json"]) == json.loads((root / "models" / "model.json").read_text())
    # The program refuses a size that the network refuses.
    with pytest.raises((RuntimeError, AssertionError), match="16"):
        program(torch.zeros(1, 4, 40, 32, 32))

    before = path.stat().st_mtime_ns
    with pytest.raises(InputError, match="exists already"):
        export_program.main([str(path), "--bundle_root", str(root)])
    assert path.stat().st_mtime_ns == before


def test_torchscript_carries_the_record_where_the_command_says_so(root, tmp_path):
    """The command is the one in docs/interoperability.md."""
    exported = tmp_path / "model.ts"
    record = {"_meta_#weights": f"%{root / 'models' / 'model.json'}"}
    config = str(root / "configs" / "inference.json")
    ckpt_export(bundle_root=str(root), config_file=config, filepath=str(exported), **record)
    _, metadata, _ = load_net_with_metadata(str(exported))
    assert metadata["weights"] == json.loads((root / "models" / "model.json").read_text())
    assert metadata["version"] == json.loads((CONFIGS / "metadata.json").read_text())["version"]


def test_an_export_by_another_use_of_the_weights_is_refused(root, tmp_path):
    model = tmp_path / "model.pt"
    shutil.copy(root / "models" / "model.pt", model)
    record = json.loads((root / "models" / "model.json").read_text())
    (tmp_path / "model.json").write_text(json.dumps({**record, "spacing": [2.0, 2.0, 2.0]}))
    with pytest.raises(InputError, match=r"voxels of 2 x 2 x 2 mm, not 1 x 1 x 1; add --spacing"):
        arguments = ["--config_file", str(root / "configs" / "inference.json"), "--model_file", str(model)]
        export_program.main([str(tmp_path / "model.pt2"), "--bundle_root", str(root), *arguments])
    assert not (tmp_path / "model.pt2").exists()


@pytest.mark.slow
def test_weights_of_other_widths_are_exported_by_their_record(root, tmp_path):
    """The full-size network of the configuration does not fit them, and the file says which network does."""
    arguments = ["--bundle_root", str(ROOT), "--model_file", str(root / "models" / "model.pt")]
    assert export_program.main([str(tmp_path / "model.pt2"), *arguments]) == 0
    extra = {"inference.json": ""}
    torch.export.load(tmp_path / "model.pt2", extra_files=extra)
    network = json.loads(extra["inference.json"])["network_def"]
    assert (network["_target_"], network["channels"]) == ("scripts.networks.PriorAttentionNet", [4, 6, 8, 10, 12])


BAD_EXPORTS = {
    "no weights": (["model.pt2", "--bundle_root", str(ROOT), "--model_file", "none.pt"], "none.pt: no such file"),
    "no configuration": (["model.pt2", "--bundle_root", "nowhere"], "inference.json: no such file"),
    "another network": (
        [
            "model.pt2",
            "--config_file",
            str(CONFIGS / "inference.json"),
            "--model_file",
            "WEIGHTS",
            "--bundle_root",
            str(ROOT),
        ],
        "another network",
    ),
    "another ending": (["model.onnx", "--bundle_root", "BUNDLE"], r"end in \.pt2"),
}


@pytest.mark.parametrize("kind", BAD_EXPORTS)
def test_exported_program_refuses_in_one_line(kind, root, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    arguments, said = BAD_EXPORTS[kind]
    known = {"WEIGHTS": str(root / "models" / "model.pt"), "BUNDLE": str(root)}
    with pytest.raises(InputError, match=said) as caught:
        export_program.main([known.get(argument, argument) for argument in arguments])
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def trt_workflow(cohort: Path, tmp_path: Path, **override) -> ConfigWorkflow:
    place = {"dataset_dir": str(cohort), "output_dir": str(tmp_path / "maps")}
    return initialized("inference.json", "inference_trt.json", kind="infer", **place, **override)


@pytest.mark.skipif(
    importlib.util.find_spec("tensorrt") is not None and torch.cuda.is_available(), reason="TensorRT is here"
)
def test_absent_tensorrt_is_said_in_one_line(cohort, tmp_path):
    with pytest.raises(RuntimeError) as caught:
        trt_workflow(cohort, tmp_path).run()
    error = input_error_behind(caught.value)
    assert "inference_trt.json: TensorRT cannot be used without tensorrt" in str(error)
    assert "\n" not in str(error)
    assert not (tmp_path / "maps").exists()


def present_tensorrt(monkeypatch) -> list:
    """The calls of ``trt_compile``, as if TensorRT were installed; here, the function leaves the network as it is."""
    calls = []

    def compiled(model, base_path, args):
        # MONAI's function names the engine's inputs after the arguments of the method.
        assert inspect.getfullargspec(model.forward).args[1:] == ["x"]
        calls.append((model, base_path, args))
        return model

    monkeypatch.setattr(tensorrt, "trt_compile", compiled)
    monkeypatch.setattr(tensorrt.torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(tensorrt.importlib.util, "find_spec", lambda name: name)
    return calls


def test_an_engine_is_kept_for_its_weights_window_and_precision_alone(network, tmp_path, monkeypatch):
    calls = present_tensorrt(monkeypatch)
    file = str(tmp_path / "model.pt")

    def engine(size=32, change=0.0, batch=2, **arguments) -> str:
        made = copy.deepcopy(network)
        with torch.no_grad():
            next(made.parameters()).add_(change)
        tensorrt.compile_network(made, file, batch, **arguments)(torch.zeros(1, 4, size, 32, 32))
        return calls[-1][1]

    assert engine() == engine() == engine(precision="fp16")
    assert len({engine(), engine(size=48), engine(change=1e-3), engine(batch=4), engine(precision="bf16")}) == 5


def test_tensorrt_gets_the_network_the_weights_and_the_batch(cohort, tmp_path, monkeypatch):
    """If TensorRT is installed, MONAI's ``trt_compile`` is called in the way of the zoo's bundles.

    Source: Project-MONAI/model-zoo, pull request 620 (``trt_compile`` in inference_trt.json).
    """
    calls = present_tensorrt(monkeypatch)
    override = {"network_def#channels": CHANNELS, "device": "cpu", "sw_batch_size": 2}
    made = trt_workflow(cohort, tmp_path, **override, model_file=str(tmp_path / "models" / "model.pt"))
    network = made.parser.get_parsed_content("network").eval()
    assert type(network) is PriorAttentionNet
    assert calls == [] and not (tmp_path / "models").exists(), "nothing before the first window"
    window = torch.rand(1, 4, 32, 32, 32)
    wanted = PriorAttentionNet.forward(network, window)
    assert torch.equal(network(window), wanted) and torch.equal(network(window), wanted)
    ((model, base_path, arguments),) = calls
    assert model is network
    assert Path(base_path).parent == tmp_path / "models" / "tensorrt" and Path(base_path).parent.is_dir()
    assert arguments == {"precision": "fp16", "dynamic_batchsize": [1, 2, 2]}
    assert made.evaluator.amp is False
    assert made.evaluator.network is network


def test_tensorrt_overlay_changes_what_exists_and_only_that():
    base, overlay = (json.loads((CONFIGS / f"inference{name}.json").read_text()) for name in ("", "_trt"))
    assert set(overlay) <= set(base)
    assert all(overlay[key] != base[key] for key in overlay)
    merged = ConfigParser()
    merged.read_config(files("inference.json", "inference_trt.json"))
    assert merged["network"]["network"] == base["network"]
