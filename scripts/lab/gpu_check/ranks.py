# Copyright (c) the brats_mri_panet_segmentation authors
# SPDX-License-Identifier: Apache-2.0
"""Take two training steps in a group of one process, with the normalization and the wrapper of several."""

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from scripts import command
from scripts.lab.benchmark.measure import Report, device_name
from scripts.networks import PriorAttentionNet
from scripts.training.losses import PriorAttentionLoss
from scripts.utils.distributed import on_any_rank, stop, use_device, wrap
from scripts.utils.errors import InputError


def main(argv: Sequence[str] | None = None) -> int:
    """Take the steps, and compare their losses with those of the bare network."""
    parser = command.parser("lab.gpu_check.ranks", __doc__)
    parser.add_argument("--device", type=device_name, default="cuda:0")
    parser.add_argument("--output", type=Path, required=True, help="JSON file to write")
    args = parser.parse_args(argv)
    device = torch.device("cuda:0" if args.device == "cuda" else args.device)
    use_device(device)
    backend = "nccl" if device.type == "cuda" else "gloo"
    with tempfile.TemporaryDirectory() as folder:
        dist.init_process_group(backend, init_method=f"file://{folder}/meet", rank=0, world_size=1)
        alone, together = losses(device, wrapped=False), losses(device, wrapped=True)
        shared: list[Any] = [None]
        dist.all_gather_object(shared, together)
        finite = not on_any_rank(not torch.tensor(together).isfinite().all(), device)
        stop()
    rows = [
        {"name": f"step {number}", "bare": bare, backend: wrapped}
        for number, (bare, wrapped) in enumerate(zip(alone, shared[0], strict=True), 1)
    ]
    Report(f"Losses of two steps by {backend}", args.output).show(rows)
    if not finite or not torch.allclose(torch.tensor(alone), torch.tensor(together), rtol=2e-2):
        raise InputError(f"{backend}: other losses with it than without it; do not train on several GPUs here.")
    return 0


def losses(device: torch.device, wrapped: bool) -> list[float]:
    """The losses of two steps on one patch."""
    torch.manual_seed(0)
    network: torch.nn.Module = PriorAttentionNet(channels=[8, 8, 16, 16, 16]).to(device).train()
    image = torch.randn(2, 4, 32, 32, 32).to(device)
    regions = (image > 0.5).to(torch.uint8)
    if wrapped:
        network = wrap(network, device)
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-2)
    found = []
    for _ in range(2):
        loss = PriorAttentionLoss()(network(image), regions)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        found.append(float(loss))
    return found


if __name__ == "__main__":
    command.run(main)
