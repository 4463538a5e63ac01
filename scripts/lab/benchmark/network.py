# Copyright (c) the brats_mri_panet_segmentation authors
# SPDX-License-Identifier: Apache-2.0
"""Time one window through the network: torch in float32, as the authors ran it, against the faster ways."""

import argparse
import importlib.util
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from rich.console import Console
from scripts.inference.openvino import OpenVINONetwork
from scripts.lab.benchmark.measure import Report, add_device, positive, summary, time_side_by_side
from scripts.networks import PriorAttentionNet
from scripts.networks.blocks import InstanceNorm3d
from scripts.utils.tensors import save_torch

BASELINE = "torch float32"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of this benchmark."""
    parser.add_argument("--size", type=positive, default=128, help="edge of the window (default: %(default)s)")
    parser.add_argument("--runs", type=positive, default=3, help="timed runs after a warm-up (default: %(default)s)")
    add_device(parser)
    parser.add_argument(
        "--compile", action="store_true", help="also time torch.compile, which takes minutes to compile"
    )
    parser.add_argument("--output", type=Path, help="JSON file to write")


def run(args: argparse.Namespace) -> None:
    """Time all candidates and report the results."""
    device = torch.device(args.device)
    torch.manual_seed(0)
    network = PriorAttentionNet().eval().to(device)
    x = torch.randn(1, 4, *[args.size] * 3, device=device)
    channels_last = PriorAttentionNet().eval().to(device)
    for parameter in channels_last.parameters():
        if parameter.dim() == 5:
            parameter.data = parameter.data.contiguous(memory_format=torch.channels_last_3d)
    x_last = x.contiguous(memory_format=torch.channels_last_3d)

    def forward(
        network: Callable[..., object], x: torch.Tensor, dtype: torch.dtype | None = None, as_batch: bool = False
    ) -> Callable[[], object]:
        def call() -> object:
            InstanceNorm3d.as_batch = {"cpu", device.type} if as_batch else {"cpu"}
            with torch.inference_mode(), torch.autocast(device.type, dtype, enabled=dtype is not None):
                return network(x)

        return call

    candidates = {
        BASELINE: forward(network, x),
        "torch float32, channels last": forward(channels_last, x_last),
        "torch bfloat16": forward(network, x, torch.bfloat16),
        "torch bfloat16, channels last": forward(channels_last, x_last, torch.bfloat16),
    }
    if device.type == "cuda":
        for size, name in ((1, "norms as a batch"), (4, "four windows")):
            candidates[f"torch bfloat16, channels last, {name}"] = forward(
                channels_last,
                x_last.repeat(size, 1, 1, 1, 1).contiguous(memory_format=torch.channels_last_3d),
                torch.bfloat16,
                as_batch=size == 1,
            )
    if args.compile:
        candidates["torch.compile float32"] = forward(torch.compile(network), x)
    errors: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        if device.type == "cpu":
            save_torch(network.state_dict(), Path(folder) / "model.pt")
            with torch.inference_mode():
                wanted = network(x)
            for precision, name in (("f32", "OpenVINO float32"), ("bf16", "OpenVINO bfloat16")):
                fast = OpenVINONetwork(network, str(Path(folder) / "model.pt"), folder, precision)
                errors[name] = float((fast(x) - wanted).abs().max() / wanted.abs().max())
                candidates[name] = forward(fast, x)
            if importlib.util.find_spec("onnxruntime") and importlib.util.find_spec("onnxscript"):
                candidates["ONNX Runtime float32"] = onnx_session(network, x, Path(folder) / "model.onnx")
        report = Report(f"One window of {args.size}^3 on {device}", args.output)
        seconds = time_side_by_side(
            candidates,
            args.runs,
            console=Console(stderr=True),
            save=lambda so_far: report.save(summary(so_far, BASELINE)),
        )
    rows = summary(seconds, BASELINE)
    facts = {f"largest difference of {name}, relative": f"{error:.1e}" for name, error in errors.items()}
    report.show(rows, facts)


def onnx_session(network: torch.nn.Module, x: torch.Tensor, path: Path) -> Callable[[], object]:
    """Return a function that runs ``x`` through the network in ONNX Runtime."""
    import onnxruntime

    torch.onnx.export(network, (x,), str(path), input_names=["image"], output_names=["pred"], verbose=False)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    image = x.numpy()
    return lambda: session.run(["pred"], {"image": image})
