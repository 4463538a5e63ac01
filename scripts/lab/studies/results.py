# Copyright (c) the brats_mri_panet_segmentation authors
# SPDX-License-Identifier: Apache-2.0
"""The tables of a study: one row for each run, and one for each variant."""

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from monai.bundle import ConfigParser
from scripts.brats import REGIONS
from scripts.lab.complexity import flops, parameters
from scripts.lab.studies.execution import Job
from scripts.lab.studies.plan import Study
from scripts.lab.studies.plots import DPI, Line, Point, curves_figure, flops_figure
from scripts.pages.runs import SCORES_FILE, Curve, read_curves, read_run
from scripts.pictures.figure import save_figure
from scripts.scores.paired import UNKNOWN, Scores, paired, read_scores
from scripts.utils.errors import InputError
from scripts.utils.files import BUNDLE_ROOT, CONFIGS, save_csv, save_text
from scripts.utils.literals import literal

MEASURES = ("dice", "hd95")
COLUMNS = tuple(f"{measure}_{region}" for measure in MEASURES for region in REGIONS)


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
    scores = {case: {column: found[column] for column in COLUMNS} for case, found in read_scores(path).items()}
    if set(scores) != {str(item["case"]) for item in job.run.part.unseen}:
        raise InputError(f"{path}: holds other cases than the study; remove the run's folder and its .json.")
    epochs, values = read_curves(read_run(job.folder)).get("val_mean_dice", ([], []))
    return Result(job, scores, ([epoch * len(job.run.part.training) for epoch in epochs], values))


def complexity(overlays: Sequence[str], settings: Mapping[str, Any]) -> tuple[int, int]:
    """Number of parameters of a variant's network, and of floating-point operations (FLOPs) for one window."""
    parser = ConfigParser()
    parser.read_config([str(CONFIGS / name) for name in ("train.json", *overlays)])
    parser.update({"bundle_root": literal(str(BUNDLE_ROOT)), **settings})
    network = parser.get_parsed_content("network_def")
    return parameters(network), flops(network, parser.get_parsed_content("roi_size"))


def by_seed(results: Iterable[Result]) -> dict[int, Scores]:
    """Scores of a variant's runs by seed, each over the unseen cases of all folds, with the mean Dice as ``dice``."""
    found: dict[int, Scores] = {}
    for result in results:
        for case, scores in result.scores.items():
            mean = _mean(scores[f"dice_{region}"] for region in REGIONS)
            found.setdefault(result.job.run.seed, {})[case] = {"dice": mean, **scores}
    return found


def differences(seeds: Mapping[int, Scores], others: Mapping[int, Scores]) -> dict[str, list[float]]:
    """Differences between a variant and another one by column, one for each unseen case.

    Only seeds and cases that both have are compared. The difference of a case is the mean over the seeds.

    Args:
        seeds: scores of the variant, of ``by_seed``.
        others: scores of the variant that it is compared with.

    Example:
        >>> differences({0: {"a": {"dice": 0.5}}, 1: {"a": {"dice": 0.75}}}, {0: {"a": {"dice": 0.75}}})
        {'dice': [-0.25]}
    """
    found: dict[str, dict[str, list[float]]] = {}
    for seed in sorted(seeds.keys() & others.keys()):
        for case in sorted(seeds[seed].keys() & others[seed].keys()):
            for column, value in seeds[seed][case].items():
                values = found.setdefault(column, {}).setdefault(case, [])
                values.append(value - others[seed][case][column])
    return {column: [_mean(values) for values in cases.values()] for column, cases in found.items()}


def write_results(study: Study, jobs: Sequence[Job], folder: Path) -> list[Path]:
    """Write the tables and the plots of the finished runs.

    Returns:
        The written files; none if no run is finished.

    Raises:
        InputError: a file of a run is missing or damaged, or a file cannot be written.
    """
    results = [read_result(job) for job in jobs]
    grouped = {v.name: [r for r in results if r.job.run.variant.name == v.name] for v in study.variants}
    grouped = {name: found for name, found in grouped.items() if found}
    if not grouped:
        return []
    rows = {name: variant_row(found, grouped[next(iter(grouped))]) for name, found in grouped.items()}
    paths = [folder / name for name in ("study.csv", "summary.csv", "study.md", "dice_flops.png")]
    runs = [run_row(result, rows[result.job.run.variant.name]) for result in results]
    for path, table in zip(paths, (runs, list(rows.values())), strict=False):
        save_csv(list(table[0]), [row.values() for row in table], path)
    titles = {variant.name: variant.title for variant in study.variants}
    save_text(markdown(rows, titles, results), paths[2])
    points = [
        Point(titles[name], rows[name]["flops"] / 1e9, [_mean_of(seed, "dice") for seed in by_seed(found).values()])
        for name, found in grouped.items()
    ]
    save_figure(flops_figure(points), paths[3], DPI)
    # Without validation there is no curve.
    lines = [Line(titles[name], [r.curve for r in found if r.curve[0]]) for name, found in grouped.items()]
    if lines := [line for line in lines if line.curves]:
        paths.append(folder / "curves.png")
        save_figure(curves_figure(lines), paths[-1], DPI)
    return paths


def _mean_of(scores: Scores, column: str) -> float:
    return _mean(case[column] for case in scores.values())


def run_row(result: Result, variant: Mapping[str, Any]) -> dict[str, Any]:
    """The row of a run in ``study.csv``; ``variant`` is the row of its variant."""
    run = result.job.run
    facts = {"run": run.name, "variant": run.variant.name, "seed": run.seed, "samples": run.samples}
    facts |= {key: variant[key] for key in ("parameters", "flops")}
    facts["training_seconds"] = round(result.job.seconds("training"))
    return {
        **facts,
        **{key: f"{value:.4f}" for key, value in result.means.items()},
        "curve": f"{result.curve_mean:.4f}",
    }


def variant_row(results: Sequence[Result], first: Sequence[Result]) -> dict[str, Any]:
    """The row of a variant in ``summary.csv``.

    For each score it holds the mean over the seeds, their standard deviation (``_sd``), the mean difference from the
    first variant and the ends of its interval (``_difference``, ``_low``, ``_high``).

    Args:
        results: the variant's finished runs.
        first: the finished runs of the first variant.
    """
    run = results[0].job.run
    parameters, flops = complexity(run.overlays, run.settings)
    seeds = by_seed(results)
    row: dict[str, Any] = {"variant": run.variant.name, "seeds": len(seeds), "parameters": parameters, "flops": flops}
    row["training_seconds"] = round(_mean(result.job.seconds("training") for result in results))
    row["curve"] = _mean(result.curve_mean for result in results)
    itself = results[0].job.run.variant == first[0].job.run.variant
    compared = {} if itself else differences(seeds, by_seed(first))
    for column in ("dice", *COLUMNS):
        means = [_mean_of(scores, column) for scores in seeds.values()]
        row[column] = _mean(means)
        row[f"{column}_sd"] = statistics.stdev(means) if len(means) > 1 else math.nan
        found = paired(compared[column]) if column in compared else UNKNOWN
        row[f"{column}_difference"], row[f"{column}_low"], row[f"{column}_high"] = found[:3]
    return {key: round(value, 4) if isinstance(value, float) else value for key, value in row.items()}


def markdown(rows: Mapping[str, Mapping[str, Any]], titles: Mapping[str, str], results: Sequence[Result]) -> str:
    """The table for readers, with a few sentences that explain it."""
    first = titles[next(iter(rows))]
    header = ["variant", "seeds", *(f"Dice {r}" for r in REGIONS), "mean Dice", f"difference from {first}"]
    # Without validation there is no curve.
    curves = not all(math.isnan(row["curve"]) for row in rows.values())
    header += [*(f"HD95 {r} (mm)" for r in REGIONS), *(["mean of the curve"] if curves else [])]
    header += ["million parameters", "GFLOP a window"]
    table = [[*header, "s of training"], ["---"] * (len(header) + 1)]
    for name, row in rows.items():
        cells = [titles[name], str(row["seeds"]), *(f"{row[f'dice_{region}']:.3f}" for region in REGIONS)]
        cells.append(f"{row['dice']:.3f}" + (f" ± {row['dice_sd']:.3f}" if row["seeds"] > 1 else ""))
        compared = [row[f"dice_{end}"] for end in ("difference", "low", "high")]
        cells.append("" if math.isnan(compared[0]) else "{:+.3f} ({:+.3f} to {:+.3f})".format(*compared))
        cells += [f"{row[f'hd95_{region}']:.1f}" for region in REGIONS]
        if curves:
            cells.append("" if math.isnan(row["curve"]) else f"{row['curve']:.3f}")
        cells += [f"{row['parameters'] / 1e6:.3f}", f"{row['flops'] / 1e9:.2f}", str(row["training_seconds"])]
        table.append(cells)
    samples = " or ".join(map(str, sorted({result.job.run.samples for result in results})))
    unseen = len({case for result in results for case in result.scores})
    text = (
        f"Each run saw {samples} samples. Scores are means over {unseen} unseen cases and over the seeds, and ± is the "
        "standard deviation between the seeds. A difference is one of the mean Dice, between runs of the same seeds. "
        "It is the mean over the cases, with its 95 % bootstrap interval over the cases."
    )
    if curves:
        text += (
            " The mean of the curve is the mean validation Dice over the whole training, which is higher if the Dice "
            "rises earlier."
        )
    return f"{text}\n\n" + "".join(f"| {' | '.join(cells)} |\n" for cells in table)
