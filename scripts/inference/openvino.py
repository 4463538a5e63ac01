# Copyright (c) the brats_mri_panet_segmentation authors
# SPDX-License-Identifier: Apache-2.0
"""A network, or the members of an ensemble, run by OpenVINO on a CPU; openvino.yaml uses it."""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn as nn
from monai.utils import ensure_tuple
from scripts.networks.protocol import SegmentationNetwork, refuse_one_size
from scripts.utils.errors import InputError
from scripts.utils.files import replacing
from scripts.utils.tensors import load_torch, weights_checksum

if TYPE_CHECKING:
    import openvino

logger = logging.getLogger(__name__)

PRECISIONS = ("auto", "f32", "bf16")


class OpenVINONetwork(nn.Module):
    """``network`` with the weights of ``model_file``, run by OpenVINO on the CPU.

    The first use converts the model, which takes about twenty seconds at full width. The result is kept in
    ``cache_dir`` under the checksum of the weights, so it is never used for other weights.

    With several files, ``EnsembleInferer`` sets ``model_file`` to the one whose weights run next.

    Args:
        network: the network that the weights belong to. The conversion loads them into it.
        model_file: file of bare weights, or the files of an ensemble.
        cache_dir: folder of converted models.
        precision: "f32", "bf16" or "auto". "auto" is bf16 if the processor computes in it, and f32 otherwise.

    Raises:
        InputError: OpenVINO is absent, the precision does not exist, or the network cannot take images of every size.
    """

    # The engine must not load weights into it as well.
    reads_model_file = True

    def __init__(
        self, network: SegmentationNetwork, model_file: str | Sequence[str], cache_dir: str, precision: str = "auto"
    ) -> None:
        super().__init__()
        if precision not in PRECISIONS:
            raise InputError(f"--openvino_precision {precision}: choose one of {', '.join(PRECISIONS)}.")
        refuse_one_size(network, "OpenVINO")
        self.ov = import_openvino()
        # In a list, so that torch does not count its parameters as this module's.
        self.source = [network]
        self.model_file = str(ensure_tuple(model_file)[0])
        self.cache_dir = Path(cache_dir)
        self.precision = precision
        self.compiled: dict[str, Any] = {}

    @property
    def module(self) -> SegmentationNetwork:
        """The network that OpenVINO runs."""
        return self.source[0]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return logits, float32 (batch, out_channels, *size), for ``x``, (batch, in_channels, *size)."""
        if self.model_file not in self.compiled:
            self.compiled[self.model_file] = self.compile()
        if len(x) > 1:
            return torch.cat([self.forward(one) for one in x.split(1)])
        result = self.compiled[self.model_file](x.detach().cpu().contiguous().float().numpy())[0]
        return torch.from_numpy(result).to(x.device)

    def compile(self) -> openvino.CompiledModel:
        """Return the model, ready to run. It is taken from the cache, or converted first."""
        core = self.ov.Core()
        precision = self.precision
        if precision == "auto":
            precision = "bf16" if "BF16" in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES") else "f32"
        model = core.read_model(self.converted())
        settings = {"INFERENCE_PRECISION_HINT": precision, "PERFORMANCE_HINT": "LATENCY"}
        settings["INFERENCE_NUM_THREADS"] = str(torch.get_num_threads())
        logger.info("OpenVINO computes in %s", precision)
        return core.compile_model(model, "CPU", settings)

    def converted(self) -> Path:
        """Return the path of the converted model, which is made if it does not exist."""
        state = load_torch(self.model_file)
        # Weights have equal names and shapes in networks that differ, for example, only in an activation.
        build = f"{self.module} {self.module.size_multiple} {self.ov.__version__}"
        path = self.cache_dir / f"{weights_checksum(state, build)}.xml"
        if path.is_file() and path.with_suffix(".bin").is_file():
            return path
        logger.info("Converting %s for OpenVINO; kept as %s", self.model_file, path)
        network = self.module
        network.load_state_dict(state)
        network.eval()
        example = torch.zeros(1, network.in_channels, *[2 * network.size_multiple] * network.spatial_dims)
        shape = (1, network.in_channels, *[-1] * network.spatial_dims)
        # The call may be within mixed precision, whose casts would become a part of the model.
        with torch.autocast("cpu", enabled=False):
            model = self.ov.convert_model(network, example_input=example, input=[shape])
        # The weights (.bin) are moved first, so the .xml exists only if both files are whole.
        with replacing(path) as temporary:
            self.ov.save_model(model, temporary, compress_to_fp16=False)
            temporary.with_suffix(".bin").replace(path.with_suffix(".bin"))
        return path


def import_openvino() -> Any:
    """Import the package openvino, without its usage statistics."""
    # The converter would send usage statistics by this package. Without the package it uses a stand-in that does not.
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    try:
        import openvino
    except ImportError as error:
        raise InputError("OpenVINO is not installed; pip install openvino, or leave out the overlay.") from error
    return openvino
