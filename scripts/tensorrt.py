# Copyright (c) the brats_mri_panet_segmentation authors
# SPDX-License-Identifier: Apache-2.0
"""The network run by TensorRT, by MONAI's ``trt_compile``, or one line that says what is missing for it."""

from __future__ import annotations

import importlib.util

import torch
from monai.networks import trt_compile
from scripts.errors import InputError

# What trt_compile imports (monai/networks/trt_compiler.py), without which it changes nothing, and what to install.
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
    """Have TensorRT run ``network``, from its first window on.

    The engine is built on that occasion (minutes) for the window's size and any batch up to ``max_batch``, and kept as
    ``<model_file>.plan``; it is built anew when the weights are newer.

    Args:
        network: the network, on its device; it is changed in place.
        model_file: its weights, whose age decides whether a kept engine serves.
        max_batch: windows at a time.
        precision: "fp32", "tf32", "fp16" or "bf16".

    Returns:
        ``network``.

    Raises:
        InputError: a package is not installed, or there is no CUDA device.
    """
    missing = [package for module, package in PACKAGES.items() if importlib.util.find_spec(module) is None]
    if not torch.cuda.is_available():
        missing.append("a CUDA device")
    if missing:
        raise InputError(
            f"configs/inference_trt.json: TensorRT cannot be used, for want of {', '.join(missing)}; "
            "install what is missing, or leave this file out of --config_file."
        )
    arguments = {"precision": precision, "dynamic_batchsize": [1, max_batch, max_batch]}
    return trt_compile(network, model_file, args=arguments)
