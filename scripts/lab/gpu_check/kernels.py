# Copyright (c) the brats_mri_panet_segmentation authors
# SPDX-License-Identifier: Apache-2.0
"""Say in which kernels the time of a full-size training step goes (torch.profiler)."""

from collections.abc import Sequence
from typing import Any

import torch
from scripts import command
from scripts.lab.benchmark.measure import Report
from scripts.lab.benchmark.training import STEPS, resident_steps
from scripts.lab.gpu_check.options import parse
from torch.profiler import ProfilerActivity, profile

COUNT = 3
WAYS = ("train.json", "train.json, channels last, norms as a batch")


def main(argv: Sequence[str] | None = None) -> int:
    """Profile each way and write its longest kernels."""
    args = parse("kernels", __doc__, argv)
    settings: dict[str, Any] = {"device": args.device, "val_interval": 0, "num_workers": 0, "patch_size": [128] * 3}
    if args.small:
        settings |= {"patch_size": [32] * 3, "network_def#channels": [4, 4, 8, 8, 8]}
    on_gpu = torch.device(args.device).type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
    rows: list[dict[str, Any]] = []
    report = Report(f"Milliseconds of each kernel in a training step of {settings['patch_size'][0]}^3", args.output)
    for way in WAYS:
        steps = resident_steps(settings | STEPS[way], COUNT)
        steps()
        with profile(activities=activities) as found:
            steps()
            if on_gpu:
                torch.cuda.synchronize()
        events = found.key_averages()
        taken = {event.key: event.self_device_time_total if on_gpu else event.self_cpu_time_total for event in events}
        calls = {event.key: event.count for event in events}
        total = sum(taken.values())
        for key in sorted(taken, key=lambda key: -taken[key])[:20]:
            row = {"name": key[:100], "way": way, "ms": taken[key] / 1000 / COUNT, "calls": calls[key] / COUNT}
            rows.append(row | {"share": taken[key] / total if total else 0.0})
        report.save(rows)
    report.show(rows)
    return 0


if __name__ == "__main__":
    command.run(main)
