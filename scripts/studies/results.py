# Copyright (c) the brats_mri_panet_segmentation authors
# SPDX-License-Identifier: Apache-2.0
"""The tables of a study: one row for each run, and one for each variant."""

from __future__ import annotations

import csv
import io
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.bundle import ConfigParser
from scipy.stats import bootstrap
from scripts.brats import REGIONS
from scripts.errors import InputError
from scripts.files import BUNDLE_ROOT, CONFIGS, save_text
from scripts.reports.runs import SCORES_FILE, Curve, read_curves, read_run
from scripts.studies.execution import Job
from scripts.studies.plan import Study
from scripts.studies.plots import Line, Point, curves_figure, flops_figure, save_figure
from torch.utils.flop_counter import FlopCounterMode

MEASURES = ("dice", "hd95")
COLUMNS = tuple(f"{measure}_{region}" for measure in MEASURES for region in REGIONS)
# Scores of the cases of a run: by case, then by column.
Scores = dict[str, dict[str, float]]


@dataclass(frozen=True)
class Result:
    """What a finished run has given.

    Attributes:
        job: the run.
        scores: scores of each unseen case by the names of ``COLUMNS``; HD95 is in mm.
        curve: number of samples seen, and mean Dice of the cases for the curves.
    """

    job: Job
    scores: Scores
    curve: Curve

    @property
    def means(self) -> dict[str, float]:
        """Mean of each column over the cases, and of Dice over the regions (``dice``)."""
        means = {column: _mean(case[column] for case in self.scores.values()) for column in COLUMNS}
        return {"dice": _mean(means[f"dice_{region}"] for region in REGIONS), **means}

    @property
    def curve_mean(self) -> float:
        """Mean of the curve, which is higher the earlier the Dice rises; NaN without a curve."""
        return _mean(self.curve[1])


def _mean(values: Iterable[float]) -> float:
    found = list(values)
    return sum(found) / len(found) if found else math.nan


def read_result(job: Job) -> Result:
    """The result of a finished run.

    Raises:
        InputError: a file of the run is missing or damaged.
    """
    path = job.evaluation / SCORES_FILE
    try:
        with path.open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
        scores = {row["case"]: {column: float(row[column]) for column in COLUMNS} for row in rows}
    except (OSError, KeyError, ValueError) as error:
        raise InputError(f"{path}: cannot be read ({error}); remove the run's folder and its .json.") from error
    if set(scores) != {str(item["case"]) for item in job.run.part.unseen}:
        raise InputError(f"{path}: holds other cases than the study; remove the run's folder and its .json.")
    epochs, values = read_curves(read_run(job.folder)).get("val_mean_dice", ([], []))
    return Result(job, scores, ([epoch * len(job.run.part.training) for epoch in epochs], values))


def complexity(overlays: Sequence[str], settings: Mapping[str, Any]) -> tuple[int, int]:
    """Number of parameters of a variant's network, and of floating-point operations for one window.

    A multiplication and an addition count as two operations. Only convolutions and matrix products are counted.

    Args:
        overlays: names of overlays over ``train.json``.
        settings: settings by their keys.
    """
    parser = ConfigParser()
    parser.read_config([str(CONFIGS / name) for name in ("train.json", *overlays)])
    parser.update({"bundle_root": str(BUNDLE_ROOT), **settings})
    network = parser.get_parsed_content("network_def").eval()
    size = parser.get_parsed_content("roi_size")
    channels = parser.get_parsed_content("network_def#in_channels", default=4)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        network(torch.zeros(1, channels, *size))
    return sum(parameter.numel() for parameter in network.parameters()), int(counter.get_total_flops())


def differences(results: Sequence[Result], others: Sequence[Result]) -> dict[str, list[float]]:
    """Differences between a variant and another one by column, one for each unseen case.

    Only seeds that both have are compared. The difference of a case is the mean over these seeds, and over the folds in
    which the case is unseen.

    Args:
        results: results of the variant.
        others: results of the variant that it is compared with.
    """
    partners = {(other.job.run.seed, other.job.run.part.name): other for other in others}
    found: dict[str, dict[str, list[float]]] = {}
    for result in results:
        other = partners.get((result.job.run.seed, result.job.run.part.name))
        if other is None:
            continue
        for case, scores in result.scores.items():
            for column, value in _with_mean_dice(scores).items():
                difference = value - _with_mean_dice(other.scores[case])[column]
                found.setdefault(column, {}).setdefault(case, []).append(difference)
    return {column: [_mean(values) for values in cases.values()] for column, cases in found.items()}


def _with_mean_dice(scores: Mapping[str, float]) -> dict[str, float]:
    return {"dice": _mean(scores[f"dice_{region}"] for region in REGIONS), **scores}


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Bootstrap interval (95 %) of the mean of paired differences.

    Args:
        values: differences, one for each case.

    Returns:
        The lower and the upper end; NaN if there are fewer than two cases.

    Example:
        >>> low, high = interval([0.1, 0.2, 0.3, 0.2])
        >>> 0.1 < low < 0.2 < high < 0.3
        True
        >>> interval([0.5, 0.5])
        (0.5, 0.5)
    """
    if len(values) < 2:
        return math.nan, math.nan
    if len(set(values)) == 1:
        # The bootstrap of equal values is degenerate.
        return values[0], values[0]
    found = bootstrap((np.asarray(values),), np.mean, rng=np.random.default_rng(0), method="percentile")
    return float(found.confidence_interval.low), float(found.confidence_interval.high)


def write_results(study: Study, jobs: Sequence[Job], folder: Path) -> list[Path]:
    """Write the tables and the plots of the finished runs.

    Args:
        study: the study.
        jobs: its finished runs.
        folder: where the files go.

    Returns:
        The written files; none if no run is finished.

    Raises:
        InputError: a file of a run is missing or damaged, or a file cannot be written.
    """
    if not jobs:
        return []
    results = [read_result(job) for job in jobs]
    by_variant = {v: [r for r in results if r.job.run.variant == v] for v in study.variants}
    by_variant = {variant: found for variant, found in by_variant.items() if found}
    sizes = {v: complexity(found[0].job.run.overlays, found[0].job.run.settings) for v, found in by_variant.items()}

    runs: list[list[Any]] = [
        "run variant seed samples parameters flops training_seconds dice".split() + [*COLUMNS, "curve_mean_dice"]
    ]
    for result in results:
        job = result.job
        run, scores = job.run, [f"{value:.4f}" for value in (*result.means.values(), result.curve_mean)]
        facts = [run.name, run.variant.name, run.seed, run.samples, *sizes[run.variant], round(job.seconds("training"))]
        runs.append([*facts, *scores])
    paths = [folder / name for name in ("study.csv", "summary.csv", "study.md", "curves.png", "dice_flops.png")]
    save_text(_csv(runs), paths[0])

    first = next(iter(by_variant))
    header = ["variant", "seeds", "parameters", "flops", "training_seconds"]
    header += [f"{column}{end}" for column in ("dice", *COLUMNS) for end in ("", "_sd")]
    header += [f"{column}_{end}" for column in ("dice", *COLUMNS) for end in ("difference", "low", "high")]
    summary: list[list[Any]] = [[*header, "curve_mean_dice"]]
    rows = []
    for variant, found in by_variant.items():
        means = {column: [result.means[column] for result in found] for column in ("dice", *COLUMNS)}
        paired = {} if variant == first else differences(found, by_variant[first])
        spread = {column: statistics.stdev(v) if len(v) > 1 else math.nan for column, v in means.items()}
        compared = {column: (_mean(paired.get(column, [])), *interval(paired.get(column, []))) for column in means}
        seconds = _mean(result.job.seconds("training") for result in found)
        curve = _mean(result.curve_mean for result in found)
        seeds = len({result.job.run.seed for result in found})
        summary.append(
            [variant.name, seeds, *sizes[variant], round(seconds)]
            + [f"{value:.4f}" for column in means for value in (_mean(means[column]), spread[column])]
            + [f"{value:.4f}" for column in means for value in compared[column]]
            + [f"{curve:.4f}"]
        )
        dice = [f"{_mean(means[f'dice_{region}']):.3f}" for region in REGIONS]
        hd95 = [f"{_mean(means[f'hd95_{region}']):.1f}" for region in REGIONS]
        mean_dice = f"{_mean(means['dice']):.3f}" + (f" ± {spread['dice']:.3f}" if seeds > 1 else "")
        difference, low, high = compared["dice"]
        against = "" if variant == first else f"{difference:+.3f} ({low:+.3f} to {high:+.3f})"
        parameters, flops = sizes[variant]
        costs = [f"{parameters / 1e6:.3f}", f"{flops / 1e9:.2f}", f"{seconds:.0f}"]
        costs.append("" if math.isnan(curve) else f"{curve:.3f}")
        rows.append([variant.title, str(seeds), *dice, mean_dice, against, *hd95, *costs])
    save_text(_csv(summary), paths[1])
    save_text(_markdown(rows, study, results, first.title), paths[2])

    lines = [Line(v.title, [r.curve for r in found]) for v, found in by_variant.items()]
    points = [Point(v.title, sizes[v][1] / 1e9, [r.means["dice"] for r in found]) for v, found in by_variant.items()]
    # Without validation there is no curve.
    lines = [line for line in lines if any(curve[0] for curve in line.curves)]
    if lines:
        save_figure(curves_figure(lines), paths[3])
    save_figure(flops_figure(points), paths[4])
    return [path for path in paths if path != paths[3] or lines]


def _csv(lines: Sequence[Sequence[Any]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(lines)
    return text.getvalue()


def _markdown(rows: Sequence[Sequence[str]], study: Study, results: Sequence[Result], first: str) -> str:
    header = ["variant", "seeds", *(f"Dice {r}" for r in REGIONS), "mean Dice", f"difference from {first}"]
    header += [*(f"HD95 {r} (mm)" for r in REGIONS), "million parameters", "GFLOP a window", "s of training"]
    header += ["mean of the curve"]
    samples = sorted({result.job.run.samples for result in results})
    unseen = {case for result in results for case in result.scores}
    text = (
        f"Each run saw {' or '.join(map(str, samples))} samples. Scores are means over {len(unseen)} unseen cases and "
        "over the seeds, and ± is the standard deviation between the seeds. A difference is the mean over the cases of "
        "the difference of the mean Dice between runs of the same seed, with its 95 % bootstrap interval over cases. "
        "The mean of the curve is the mean validation Dice over the whole training: it is higher if the Dice rises "
        "earlier.\n"
    )
    table = [header, ["---"] * len(header), *rows]
    return text + "\n" + "".join(f"| {' | '.join(row)} |\n" for row in table)
