# Copyright (c) the brats_mri_panet_segmentation authors
# SPDX-License-Identifier: Apache-2.0
"""Compare a device with the CPU: label maps by the starter weights, and logits of the full-size network."""

import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from monai.metrics import compute_dice
from scripts import command
from scripts.data.datalist import unlabeled_items
from scripts.data.images import read_image, voxels_of
from scripts.data.regions import labels_to_regions
from scripts.lab.benchmark.cohort import subset
from scripts.lab.benchmark.measure import Report, peak_gb, reset_peak
from scripts.lab.gpu_check.options import parse
from scripts.lab.gpu_check.runs import timed
from scripts.networks import PriorAttentionNet
from scripts.utils.errors import InputError
from scripts.utils.files import BUNDLE_ROOT
from scripts.utils.literals import literal
from scripts.utils.machine import computes_in
from scripts.utils.tensors import save_torch

MIN_DICE = 0.99
# Relative errors of the logits. A GPU rounds the operands of float32 convolutions to 10 bits, and bfloat16 has 7.
MAX_ERROR = {None: 5e-3, "float16": 5e-3, "bfloat16": 3e-2}
ONE_FLIP = {"flips": "@mixed_precision"}
# By name: overlays, settings, and the way of the CPU with which the maps are compared.
WAYS: dict[str, tuple[tuple[str, ...], dict[str, Any], str]] = {
    "windows": ((), ONE_FLIP, "windows"),
    "pipelined": (("inference_pipelined.yaml",), {**ONE_FLIP, "num_workers": 2}, "windows"),
    "whole brain": (("whole_brain.yaml",), ONE_FLIP, "whole brain"),
    "flips": ((), {}, "flips"),
}
# The peaks of these ways of the full-size network were counted (docs/performance.md).
FULL_WIDTH: dict[str, tuple[tuple[str, ...], dict[str, Any]]] = {
    "full width, one window": ((), {"sw_batch_size": 1}),
    "full width, four windows": ((), {"sw_batch_size": 4}),
    "full width, pipelined": (("inference_pipelined.yaml",), {"num_workers": 2}),
    "full width, whole brain": (("whole_brain.yaml",), {}),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Compare everything, then raise an InputError if something differs too much."""
    args = parse(
        "maps", __doc__, argv, "folder of two cases or more", "one case, small windows, and a small network for full"
    )
    rows: list[dict[str, Any]] = []
    facts = {"a Dice is right above": MIN_DICE, "a relative error is right below": list(MAX_ERROR.items())}
    report = Report(f"Label maps and logits, {args.device} against the CPU", args.output)
    channels = [4, 4, 8, 8, 8] if args.small else [32, 64, 128, 256, 320]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        subset(args.dataset_dir, 1 if args.small else 2, folder / "cases")
        size = 32 if args.small else 128
        for row in chain(logits(channels, size, args.device), compared(folder, args.device, args.small)):
            rows.append(row)
            report.save(rows, facts)
        save_torch(PriorAttentionNet(channels=channels).state_dict(), folder / "model.pt")
        settings = {"model_file": literal(str(folder / "model.pt")), "network_def#channels": channels}
        settings |= {"spacing": [4.0] * 3, "roi_size": [32] * 3} if args.small else {}
        for way, (overlays, more) in FULL_WIDTH.items():
            _, facts_of_run = maps(("inference.json", *overlays), settings | more, folder, args.device)
            rows.append({"name": way, "compared": "", "value": None, "right": True, **facts_of_run})
            report.save(rows, facts)
    report.show(rows, facts)
    if wrong := [row["name"] for row in rows if not row["right"]]:
        raise InputError(f"{args.device}: other results than on the CPU: {', '.join(wrong)}; do not rely on it.")
    return 0


def compared(folder: Path, device: str, small: bool) -> Iterator[dict[str, Any]]:
    """Yield a row for each way: the smallest Dice of a region between the maps of the CPU and of ``device``."""
    references: dict[str, dict[str, torch.Tensor]] = {}
    for way, (overlays, settings, reference) in WAYS.items():
        if small and way == "flips":
            continue
        if reference not in references:
            plain, chosen, _ = WAYS[reference]
            names = ("inference.json", "starter.yaml", *plain)
            references[reference], _ = maps(names, {**chosen, "amp": False}, folder, "cpu")
        names = ("inference.json", "starter.yaml", *overlays)
        found, facts = maps(names, settings, folder, device)
        dice = min(
            float(value)
            for case, regions in references[reference].items()
            for value in compute_dice(found[case][None], regions[None], include_background=False, ignore_empty=False)[0]
        )
        yield {"name": way, "compared": "smallest Dice", "value": dice, "right": dice > MIN_DICE, **facts}


def maps(
    names: Sequence[str], settings: Mapping[str, Any], folder: Path, device: str
) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Segment the cases on ``device``.

    Returns:
        The regions of each case, (4, *size), and the seconds and the peak memory of the run.
    """
    place = {"dataset_dir": folder / "cases", "output_dir": folder / "maps", "bundle_root": BUNDLE_ROOT}
    facts = timed(names, {"device": device, "overwrite": True, **settings}, place)
    found = {}
    for item in unlabeled_items(folder / "cases"):
        path = folder / "maps" / f"{item['case']}.nii.gz"
        found[item["case"]] = labels_to_regions(torch.as_tensor(voxels_of(read_image(path), path).astype("uint8")), 4)
    return found, facts


def logits(channels: Sequence[int], size: int, device: str) -> Iterator[dict[str, Any]]:
    """Yield a row for each precision: the relative error of the logits of one window of random numbers."""
    torch.manual_seed(0)
    network = PriorAttentionNet(channels=channels).eval()
    x = torch.randn(1, 4, size, size, size)
    with torch.inference_mode():
        wanted = network(x)
        network.to(device)
        for dtype, limit in MAX_ERROR.items():
            if dtype is not None and not computes_in(device, dtype):
                continue
            reset_peak()
            start = time.perf_counter()
            kind, precision = torch.device(device).type, getattr(torch, dtype or "bfloat16")
            with torch.autocast(kind, precision, enabled=dtype is not None):
                found = network(x.to(device)).float().cpu()
            error = float((found - wanted).norm() / wanted.norm())
            row = {"name": f"logits, {dtype or 'float32'}", "compared": "relative error", "value": error}
            yield {**row, "right": error < limit, "seconds": time.perf_counter() - start, "peak_gb": peak_gb()}


if __name__ == "__main__":
    command.run(main)
