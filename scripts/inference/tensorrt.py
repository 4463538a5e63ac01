# Copyright (c) the brats_mri_panet_segmentation authors
# SPDX-License-Identifier: Apache-2.0
"""The network run by TensorRT through MONAI's ``trt_compile``, with one line that says what is not installed."""

import importlib.util
import logging
from pathlib import Path

import torch
from monai.networks import trt_compile
from scripts.utils.errors import InputError
from scripts.utils.tensors import weights_checksum

logger = logging.getLogger(__name__)

# Modules that trt_compile imports (monai/networks/trt_compiler.py) and their packages. Without them it does nothing.
PACKAGES = {
    "tensorrt": "tensorrt",
    "polygraphy": "polygraphy",
    "cuda": "cuda-python",
    "onnx": "onnx",
    "onnxscript": "onnxscript",
}


def compile_network(
    network: torch.nn.Module, model_file: str, max_batch: int, precision: str = "fp16"
) -> torch.nn.Module:
    """Make TensorRT run ``network``, from its first window on.

    The engine is built with the first window, which takes minutes, and with the weights that the network then holds. It
    serves the size of this window and any batch up to ``max_batch``. It is kept in the folder ``tensorrt`` beside
    ``model_file``, under a checksum of all that it depends on, so it is never used for another network.

    Args:
        network: the network, on its device. It is changed in place and returned.
        model_file: file of its weights.
        max_batch: largest number of windows at a time.
        precision: "fp32", "tf32", "fp16" or "bf16".

    Raises:
        InputError: several model files are named, a package is not installed, or there is no CUDA device.
    """
    if not isinstance(model_file, str):
        raise InputError("--model_file: TensorRT runs one network; leave out ensemble.yaml, or inference_trt.json.")
    missing = [package for module, package in PACKAGES.items() if importlib.util.find_spec(module) is None]
    if not torch.cuda.is_available():
        missing.append("a CUDA device")
    if missing:
        raise InputError(
            f"configs/inference_trt.json: TensorRT cannot be used without {', '.join(missing)}; "
            "install what is missing, or leave this file out of --config_file."
        )
    plain = network.forward

    def first(x: torch.Tensor) -> torch.Tensor:
        # trt_compile needs the network's own method, which it then replaces.
        network.forward = plain
        build = f"{network} {getattr(network, 'size_multiple', 1)} {tuple(x.shape[1:])} {max_batch} {precision}"
        engine = Path(model_file).parent / "tensorrt" / weights_checksum(network.state_dict(), build)
        engine.parent.mkdir(parents=True, exist_ok=True)
        logger.info("TensorRT's engine: %s.plan", engine)
        arguments = {"precision": precision, "dynamic_batchsize": [1, max_batch, max_batch]}
        trt_compile(network, str(engine), args=arguments)
        return network.forward(x)

    network.forward = first
    return network
