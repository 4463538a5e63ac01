# Copyright (c) the brats_mri_panet_segmentation authors
# SPDX-License-Identifier: Apache-2.0
"""Time training steps and epochs: the authors' way against this bundle, and their share of the device's rate."""

import argparse
import gc
import itertools
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from ignite.engine import Events
from monai.bundle import ConfigParser
from monai.transforms import RandomizableTransform
from rich.console import Console
from scripts.data.datalist import labeled_items
from scripts.lab.benchmark.measure import (
    OwnProcess,
    Report,
    add_channels,
    add_device,
    cases_of,
    positive,
    summary,
    time_side_by_side,
)
from scripts.lab.benchmark.pipeline import authors_transforms
from scripts.networks import PriorAttentionNet
from scripts.networks.blocks import InstanceNorm3d
from scripts.training.reproducibility import SeededCompose, choose_algorithms, derive_seed
from scripts.utils.errors import InputError
from scripts.utils.files import BUNDLE_ROOT, CONFIGS
from scripts.utils.literals import literal
from scripts.utils.machine import computes_in, keep_freed_memory
from torch.utils.flop_counter import FlopCounterMode

BASELINE = "the authors' way"
FAST = "train_fast.yaml"
CACHED = ("train.json", "train_cached.yaml")
# Whether a candidate normalizes a sample as a batch (``InstanceNorm3d``), beside its changes to train.json.
AS_BATCH = "norms as a batch"
# The authors' way computes in float32, and its optimizer starts one kernel for each tensor.
STEPS: dict[str, dict[str, Any]] = {
    BASELINE: {"amp": False, "optimizer#fused": False},
    "train.json": {},
    f"train.json, {AS_BATCH}": {AS_BATCH: True},
    "train.json, channels last": {"channels_last": True},
    f"train.json, channels last, {AS_BATCH}": {"channels_last": True, AS_BATCH: True},
    "train.json, cuDNN's fastest": {"deterministic": False},
    "train.json, channels last, cuDNN's fastest": {"deterministic": False, "channels_last": True},
    "train.json, compiled": {"deterministic": False, "compile": True},
    FAST: {"deterministic": False, "compile": True, "channels_last": True},
    f"{FAST}, two samples": {"deterministic": False, "compile": True, "channels_last": True, "batch_size": 2},
}

DEFORMATIONS = ("RandFastElasticd", "Rand3DElasticd")

# On a CPU other settings matter. glibc's thresholds are those of the process, so each candidate has its own process.
CPU_BASELINE = "float32, glibc's own thresholds"
CPU_STEPS: dict[str, dict[str, Any]] = {
    CPU_BASELINE: {"amp": False, "channels_last": False},
    "float32": {"amp": False, "channels_last": False},
    "bfloat16, torch's layout": {"amp": True, "channels_last": False},
    "bfloat16, channels last": {"amp": True, "channels_last": True},
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of this benchmark."""
    add_device(parser)
    parser.add_argument("--size", type=positive, default=128, help="edge of the patch (default: %(default)s)")
    add_channels(parser)
    parser.add_argument("--steps", type=positive, default=10, help="steps in each run (default: %(default)s)")
    parser.add_argument("--runs", type=positive, default=3, help="timed runs after a warm-up (default: %(default)s)")
    parser.add_argument("--no-compile", action="store_true", help="leave out torch.compile, which takes minutes")
    parser.add_argument("--only", nargs="+", help="time only these ways, by their names in the table")
    parser.add_argument("--dataset-dir", type=Path, help="cases for whole epochs (default: new phantoms)")
    parser.add_argument("--cases", type=positive, default=10, help="number of cases (default: %(default)s)")
    parser.add_argument(
        "--samples", type=int, default=200, help="samples in an epoch; 0: no epochs (default: %(default)s)"
    )
    parser.add_argument("--epochs", type=positive, default=3, help="timed epochs (default: %(default)s)")
    # A worker of the authors' way takes up to 12.5 GB.
    parser.add_argument(
        "--authors-samples",
        type=positive,
        default=4,
        help="samples of the authors' way, in four loader processes at most (default: %(default)s)",
    )
    parser.add_argument("--num-workers", type=int, default=4, help="loader processes (default: %(default)s)")
    parser.add_argument("--output", type=Path, help="JSON file to write")


def run(args: argparse.Namespace) -> None:
    """Time all candidates and report the results."""
    console = Console(stderr=True)
    device = torch.device(args.device)
    on_gpu = device.type == "cuda"
    all_steps = STEPS if on_gpu else CPU_STEPS
    if unknown := set(args.only or ()) - set(all_steps):
        raise InputError(f"--only {', '.join(sorted(unknown))}: name some of {'; '.join(all_steps)}.")
    chosen = {name: more for name, more in all_steps.items() if not (args.no_compile and more.get("compile"))}
    if args.only:
        chosen = {name: chosen[name] for name in args.only if name in chosen}
    if not on_gpu and not computes_in(device, "bfloat16"):
        console.print("bfloat16: left out, since this processor emulates it, which takes minutes", highlight=False)
        chosen = {name: more for name, more in chosen.items() if not more["amp"]}
    if not chosen:
        raise InputError(f"--only {', '.join(args.only)}: all of these are left out here; name others.")
    if args.samples and all("batch_size" in more for more in chosen.values()):
        raise InputError("--only: epochs are timed with single samples; name another way too, or give --samples 0.")
    baseline = next(iter(chosen))
    rate = matrix_product_rate(device)
    flops = step_flops(args.channels, args.size)
    report = Report(f"Seconds of a training step per sample, {device}, patch of {args.size}^3", args.output)
    memory: dict[str, float | None] = {}
    candidates: dict[str, Callable[[], None]] = {}
    for name, more in chosen.items():
        settings = common(args) | more
        if on_gpu:
            candidates[name], memory[name] = first_run(settings, args.steps)
        else:
            candidates[name] = OwnProcess(cpu_steps, settings, args.steps, name != CPU_BASELINE)
            candidates[name]()
        console.print(f"{name}: ready", highlight=False)

    def rows_of(taken: Mapping[str, list[float]]) -> list[dict[str, Any]]:
        each = {
            name: [value / args.steps / chosen[name].get("batch_size", 1) for value in values]
            for name, values in taken.items()
        }
        return [
            {**row, "share_of_matrix_rate": flops / row["median_s"] / rate, "peak_gb": memory.get(row["name"])}
            for row in summary(each, baseline)
        ]

    rows = rows_of(
        time_side_by_side(
            candidates, args.runs, warmup=0, console=console, save=lambda so_far: report.save(rows_of(so_far))
        )
    )
    for candidate in candidates.values():
        if isinstance(candidate, OwnProcess):
            candidate.close()
    del candidates
    gc.collect()
    facts: dict[str, Any] = {
        "TFLOP of a sample's step (counted)": round(flops / 1e12, 3),
        "TFLOP/s of a bfloat16 matrix product": round(rate / 1e12, 1),
        "batch size (2 where the name says two samples)": 1,
        "TF32 in float32 convolutions": torch.backends.cudnn.allow_tf32 if device.type == "cuda" else "no CUDA",
    }
    if args.samples:
        fast = min((row["median_s"], row["name"]) for row in rows if "batch_size" not in chosen[row["name"]])[1]
        keep_freed_memory(device)
        step = next(row["median_s"] for row in rows if row["name"] == fast)
        with tempfile.TemporaryDirectory() as folder:
            for more in epochs(args, Path(folder), fast, chosen[fast], step, console):
                facts |= more
                report.save(rows, facts)
    report.show(rows, facts)


def common(args: argparse.Namespace) -> dict[str, Any]:
    """Return the settings that all candidates share."""
    return {
        "device": args.device,
        "patch_size": [args.size] * 3,
        "network_def#channels": args.channels,
        "num_workers": args.num_workers,
        "val_interval": 0,
    }


def trainer_of(names: tuple[str, ...], settings: Mapping[str, Any], training: Any, loader: Any = None) -> Any:
    """Return the trainer that configurations and settings define, without the handlers that write to the disk."""
    parser = ConfigParser()
    parser.read_config([str(CONFIGS / name) for name in names])
    parser.update(dict(settings) | {"bundle_root": literal(str(BUNDLE_ROOT))})
    parser["datalist"] = {"training": tuple(training), "validation": ()}
    kept = ("AsynchronousSteps", "EpochSeeds", "LrScheduleHandler")
    parser["train#handlers"] = [h for h in parser["train#handlers"] if h["_target_"].split(".")[-1] in kept]
    if loader is not None:
        parser["train#dataloader"] = loader
    made = (parser.get_parsed_content(key) for key in ("deterministic", "network_def", "channels_last"))
    choose_algorithms(*made)
    trainer = parser.get_parsed_content("train#trainer")
    trainer.logger.setLevel("WARNING")
    return trainer


def resident_steps(settings: dict[str, Any], steps: int) -> Callable[[], None]:
    """Return a function that runs ``steps`` training steps on one batch that is already on the device."""
    size, batch_size = settings["patch_size"], settings.get("batch_size", 1)
    layout = torch.channels_last_3d if settings.get("channels_last") else torch.contiguous_format
    generator = torch.Generator().manual_seed(0)
    image = torch.randn(batch_size, 4, *size, generator=generator)
    depth = torch.randint(0, 4, (batch_size, 1, *size), generator=generator)
    label = torch.cat([depth == 0, depth == 3, depth >= 2, depth >= 1], dim=1).to(torch.uint8)
    batch = {"image": image.to(settings["device"], memory_format=layout), "label": label.to(settings["device"])}
    trainer = trainer_of(("train.json",), settings | {"max_epochs": 1}, [], [batch] * steps)

    def call() -> None:
        use_algorithms(settings)
        trainer.run()

    return call


def use_algorithms(settings: Mapping[str, Any]) -> None:
    """Choose what is a choice of the process: cuDNN's algorithms, and how a single sample is normalized."""
    choose_algorithms(settings.get("deterministic", True))
    InstanceNorm3d.as_batch = {"cpu", "cuda"} if settings.get(AS_BATCH) else {"cpu"}


def cpu_steps(settings: dict[str, Any], steps: int, keep: bool) -> Callable[[], None]:
    """Return a candidate on a CPU; ``keep`` is whether its process keeps freed memory."""
    if keep:
        keep_freed_memory("cpu")
    return resident_steps(settings, steps)


def first_run(settings: dict[str, Any], steps: int) -> tuple[Callable[[], None], float]:
    """Run a candidate on a GPU once; return it and the most memory that it used, in GB.

    The memory includes everything that the candidate keeps on the GPU.
    """
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    call = resident_steps(settings, steps)
    call()
    torch.cuda.synchronize()
    return call, round((torch.cuda.max_memory_allocated() - before) / 1e9, 2)


def matrix_product_rate(device: torch.device) -> float:
    """Return the FLOP/s of a large bfloat16 matrix product of random numbers, the best of ten runs."""
    n = 8192 if device.type == "cuda" else 1024
    a, b = (torch.randn(n, n, device=device, dtype=torch.bfloat16) for _ in range(2))
    taken = time_side_by_side({"product": lambda: a @ b}, 10, warmup=3)["product"]
    return 2 * n**3 / min(taken)


def step_flops(channels: list[int], size: int) -> float:
    """Return the FLOPs of a forward and a backward pass for one patch, counted on tensors without memory."""
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        maps = PriorAttentionNet(channels=channels).train()(torch.empty(1, 4, size, size, size))
        torch.stack([value.sum() for value in maps.values()]).sum().backward()
    return float(counter.get_total_flops())


def epochs(
    args: argparse.Namespace, folder: Path, name: str, fast: dict[str, Any], step: float, console: Console
) -> Iterator[dict[str, Any]]:
    """Time whole epochs with loading, and yield what each way gives: the authors' way, ``name`` with a filled cache."""
    data = args.dataset_dir or cases_of(folder / "phantoms", args.cases, console)
    items = labeled_items(data)[: args.cases]
    settings = common(args) | fast | {"cache_dir": literal(str(folder / "cache")), "max_epochs": 1 + args.epochs}
    cached = trainer_of(CACHED, settings, (items * args.samples)[: args.samples])
    use_algorithms(fast)
    # The first epoch fills the cache, compiles the network and lets cuDNN choose its algorithms.
    _, *taken = epoch_seconds(cached)
    ours = statistics.median(taken) / args.samples
    transform = cached.data_loader.dataset.transform
    drawn = [deformed(transform, item, epoch) for epoch in range(2, 2 + args.epochs) for item in items]
    console.print(f"this bundle: {ours:.3f} s a sample", highlight=False)
    yield {
        "this bundle": f"train_cached.yaml and {name}",
        f"s of each epoch of {args.samples} steps with loading": [round(seconds, 2) for seconds in taken],
        "s a sample, epoch with loading, this bundle": round(ours, 4),
        "share of its samples that are deformed": round(sum(drawn) / len(drawn), 3),
        "share of the epoch that its steps alone would take": round(step / ours, 3),
        "loader workers": args.num_workers,
    }
    # Few samples are drawn, so half of them are to be deformed.
    drawn = [deformed(transform, item, 1) for item in items]
    both = [[item for item, flag in zip(items, drawn, strict=True) if flag == wanted] for wanted in (True, False)]
    chosen = [half[i // 2 % len(half)] for i in range(args.authors_samples) if (half := both[i % 2] or both[1 - i % 2])]
    workers = min(args.num_workers, 4)
    more = {"train#random_transforms": authors_transforms(), "max_epochs": 1, "num_workers": workers}
    authors = trainer_of(("train.json",), common(args) | STEPS[BASELINE] | more, chosen)
    use_algorithms({})
    theirs = epoch_seconds(authors)[0] / args.authors_samples
    console.print(f"{BASELINE}: {theirs:.3f} s a sample", highlight=False)
    yield {
        "s a sample, epoch with loading, the authors' way": round(theirs, 4),
        "its samples, of them deformed, and workers": [len(chosen), sum(i in both[0] for i in chosen), workers],
        "times faster": round(theirs / ours, 2),
    }


def deformed(transform: SeededCompose, item: Mapping[str, Any], epoch: int) -> bool:
    """Return whether ``transform`` deforms a case in an epoch, which needs no image."""
    transform.set_random_state(derive_seed(transform.seed, epoch, transform.rank, str(item["case"])))
    (step,) = (step for step in transform.transforms if type(step).__name__ in DEFORMATIONS)
    RandomizableTransform.randomize(step, None)
    return bool(step._do_transform)


def epoch_seconds(trainer: Any) -> list[float]:
    """Return the seconds of each epoch of ``trainer``; the first includes the start of the loader's workers."""
    times = [time.perf_counter()]

    def note() -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        times.append(time.perf_counter())

    trainer.add_event_handler(Events.EPOCH_COMPLETED, note)
    trainer.run()
    return [end - start for start, end in itertools.pairwise(times)]
