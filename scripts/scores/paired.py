# Copyright (c) the brats_mri_panet_segmentation authors
# SPDX-License-Identifier: Apache-2.0
"""Comparison of evaluations of the same cases: paired differences, their intervals and tests."""

import csv
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from scipy.stats import bootstrap, wilcoxon
from scripts.scores.table import EXPECTED, columns_of, scores_in, split_column
from scripts.utils.errors import InputError

CONFIDENCE = 0.95
# Resamples of the bootstrap, and the seed of their random numbers. The same scores always give the same interval.
RESAMPLES, SEED = 9999, 0
# Decimals of a difference. Scores are written with four.
ROUNDED_TO = 9
# The same reference has the same volume, up to the rounding of the file.
VOLUME_TOLERANCE_MM3 = 0.01
# A message names no more than this many cases.
MOST_NAMED = 3
# By case, then by column.
Scores = dict[str, dict[str, float]]


class Paired(NamedTuple):
    """The mean of paired differences, its bootstrap interval (95 %), and the p-value of Wilcoxon's signed-rank test.

    The interval is NaN for fewer than two cases, and the p-value if no test is possible.
    """

    mean: float
    low: float
    high: float
    p: float


UNKNOWN = Paired(math.nan, math.nan, math.nan, math.nan)


def paired(differences: Sequence[float]) -> Paired:
    """Mean, interval and test of the differences of the same cases.

    The interval is a percentile bootstrap over the cases with a fixed seed. The test is Wilcoxon's signed-rank test,
    two-sided. No test is possible with fewer than two cases, or if no case differs. The p-value is not corrected for
    several comparisons, and with fewer than six cases it cannot be below 0.05.

    Raises:
        ValueError: there is no difference.

    Example:
        >>> mean, low, high, p = paired([0.1, 0.2, 0.3, 0.25, 0.15, 0.05])
        >>> round(mean, 3), 0.05 < low < mean < high < 0.3, p
        (0.175, True, 0.03125)
        >>> paired([0.0, 0.0])
        Paired(mean=0.0, low=0.0, high=0.0, p=nan)
        >>> paired([0.5])
        Paired(mean=0.5, low=nan, high=nan, p=nan)
    """
    # Differences of decimal numbers are equal up to rounding, and the test ranks equal ones together.
    values = np.round(np.asarray(differences, dtype=float), ROUNDED_TO)
    if not len(values):
        raise ValueError("Expected at least one difference.")
    mean = float(values.mean())
    if len(values) < 2:
        return UNKNOWN._replace(mean=mean)
    p = float(wilcoxon(values).pvalue) if values.any() else math.nan
    if np.ptp(values) == 0:
        # All resamples are alike.
        return Paired(mean, mean, mean, p)
    interval = bootstrap(
        (values,),
        np.mean,
        n_resamples=RESAMPLES,
        confidence_level=CONFIDENCE,
        method="percentile",
        rng=np.random.default_rng(SEED),
    ).confidence_interval
    return Paired(mean, float(interval.low), float(interval.high), p)


@dataclass(frozen=True)
class Evaluation:
    """The scores of a run."""

    name: str  # of the run
    path: Path  # of its scores.csv
    scores: Scores

    @property
    def columns(self) -> list[str]:
        """The columns, such as ``dice_ET``."""
        return list(next(iter(self.scores.values())))

    @property
    def names(self) -> list[str]:
        """The scores that have a column for each region, without volumes."""
        return scores_in(self.columns)

    def missing(self, name: str) -> list[str]:
        """The columns of a score that the run lacks."""
        return [column for column in columns_of([name]) if column not in self.columns]

    def values(self, column: str) -> np.ndarray:
        """The scores of a column, of shape (cases,), in the order of the cases' names."""
        return np.array([self.scores[case][column] for case in sorted(self.scores)])


def read_scores(path: Path) -> Scores:
    """The scores by case and column in a ``scores.csv``, or in the folder of one.

    Raises:
        InputError: there is no such file, or it is no table of scores.

    Example:
        >>> read_scores(Path("runs/none/scores.csv"))
        Traceback (most recent call last):
        scripts.utils.errors.InputError: runs/none/scores.csv: no such file; give the scores.csv of an evaluation.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such file; give the scores.csv of an evaluation.")
    try:
        with path.open(newline="", encoding="utf-8") as file:
            header, *rows = [row for row in csv.reader(file) if row] or [[]]
        texts = {row[0]: dict(zip(header[1:], row[1:], strict=True)) for row in rows}
        # An expected score is empty where it is unknown.
        scores = {
            case: {
                column: float(text) for column, text in row.items() if text or split_column(column)[0] not in EXPECTED
            }
            for case, row in texts.items()
        }
    except (ValueError, csv.Error) as error:
        raise InputError(f"{path}: not a table of scores ({error}); evaluate again.") from error
    if header[:1] != ["case"] or not rows or not header[1:]:
        raise InputError(f"{path}: holds no scores by case; give the scores.csv of an evaluation that has ended.")
    if doubled := next((name for name in header if header.count(name) > 1), None):
        raise InputError(f"{path}: two columns are named {doubled}; keep one of them, or evaluate again.")
    if len(scores) < len(rows):
        raise InputError(f"{path}: holds a case twice; evaluate again.")
    for case, values in scores.items():
        for column, value in values.items():
            if not math.isfinite(value):
                raise InputError(f"{path}: {column} of {case} is {value}; give its metric a rule for empty regions.")
    return scores


def read_evaluations(paths: Sequence[Path], names: Sequence[str] | None = None) -> list[Evaluation]:
    """The evaluations to compare, from two or more files ``scores.csv`` or their folders.

    ``names`` are those of the runs. By default, a run is named after its folder (``run_name``).

    Raises:
        InputError: a file cannot be read, or the runs have no names of their own.
    """
    if len(paths) < 2:
        raise InputError(f"{paths[0] if paths else 'no file'}: give two evaluations or more.")
    if names is not None and len(names) != len(paths):
        many = "s" * (len(names) != 1)
        raise InputError(f"--names: {len(names)} name{many} for {len(paths)} evaluations; give one for each.")
    files = [path / "scores.csv" if path.is_dir() else path for path in paths]
    names = [run_name(file) for file in files] if names is None else names
    for name in names:
        if names.count(name) > 1:
            raise InputError(f"{name}: the name of {names.count(name)} evaluations; give each one a name by --names.")
    return [Evaluation(name, file, read_scores(file)) for name, file in zip(names, files, strict=True)]


def run_name(file: Path) -> str:
    """Name of the run that a ``scores.csv`` belongs to. For an evaluation in a training's folder, this is the training.

    Example:
        >>> run_name(Path("runs/sgd/evaluation_validation/scores.csv")), run_name(Path("tables/a.csv"))
        ('sgd', 'a')
    """
    folder = file.resolve().parent
    if file.name != "scores.csv":
        return file.stem
    return folder.parent.name if folder.name.startswith("evaluation_") else folder.name


def scores_to_compare(evaluations: Sequence[Evaluation], names: Sequence[str] | None) -> list[str]:
    """The scores with these names, such as ``dice``, or by default all that the evaluations share, without volumes.

    Raises:
        InputError: the evaluations share no score, or not all of them have a score that is named.
    """
    shared = [name for name in evaluations[0].names if not any(other.missing(name) for other in evaluations)]
    if not shared:
        files = ", ".join(str(evaluation.path) for evaluation in evaluations)
        raise InputError(f"{files}: share no score; evaluate all runs with the same settings.")
    for name in names or []:
        lacking = [evaluation for evaluation in evaluations if evaluation.missing(name)]
        if len(lacking) == len(evaluations):
            raise InputError(f"--scores {name}: no such score; choose among {', '.join(shared)}.")
        if lacking:
            raise InputError(
                f"{lacking[0].path}: has no column {lacking[0].missing(name)[0]}; evaluate all runs with the same "
                f"settings, or leave {name} out of --scores."
            )
    return list(dict.fromkeys(names or shared))


def check_comparable(evaluations: Sequence[Evaluation]) -> None:
    """Refuse evaluations that cannot be compared case by case.

    Raises:
        InputError: the cases differ, or the references of a case do.
    """
    first = evaluations[0]
    for other in evaluations:
        for one, two in ((first, other), (other, first)):
            if lacking := sorted(one.scores.keys() - two.scores.keys()):
                more = f" and {len(lacking) - MOST_NAMED} more" if len(lacking) > MOST_NAMED else ""
                raise InputError(
                    f"{two.path}: lacks {', '.join(lacking[:MOST_NAMED])}{more} of {one.path}; "
                    "compare evaluations of the same cases."
                )
        for column in columns_of(["reference_volume"]):
            if column in first.columns and column in other.columns:
                differs = np.abs(first.values(column) - other.values(column)) > VOLUME_TOLERANCE_MM3
                if differs.any():
                    raise InputError(
                        f"{other.path}: {column} of {sorted(first.scores)[int(differs.argmax())]} differs from that in "
                        f"{first.path}; compare evaluations against the same label maps."
                    )


@dataclass(frozen=True)
class Row:
    """A score of a run in a region, compared with the first run."""

    score: str  # such as dice
    region: str
    run: str
    mean: float  # over the cases
    difference: Paired | None  # from the first run; None for that run itself


def compare(evaluations: Sequence[Evaluation], names: Sequence[str] | None = None) -> list[Row]:
    """Compare evaluations of the same cases with the first one, for each score (``scores_to_compare``) and region.

    Raises:
        InputError: the evaluations cannot be compared (``check_comparable``), or one of them lacks a score.

    Example:
        >>> scores = [{"P1": dict.fromkeys(["dice_ET", "dice_TC", "dice_WT"], dice)} for dice in (0.5, 0.75)]
        >>> rows = compare([Evaluation(name, Path(name), s) for name, s in zip("ab", scores, strict=True)])
        >>> [(row.region, row.run, row.mean, row.difference and row.difference.mean) for row in rows][:2]
        [('ET', 'a', 0.5, None), ('ET', 'b', 0.75, 0.25)]
    """
    first, *others = evaluations
    check_comparable(evaluations)
    rows = []
    for column in columns_of(scores_to_compare(evaluations, names)):
        score, region = split_column(column)
        values = first.values(column)
        rows.append(Row(score, region, first.name, float(values.mean()), None))
        for other in others:
            theirs = other.values(column)
            rows.append(Row(score, region, other.name, float(theirs.mean()), paired((theirs - values).tolist())))
    return rows


def csv_rows(rows: Sequence[Row], cases: int) -> list[dict[str, str]]:
    """The rows as texts by column, for a CSV file. What is not known is empty."""
    table = []
    for row in rows:
        difference, low, high, p = row.difference or UNKNOWN
        numbers = {"mean": row.mean, "difference": difference, "low": low, "high": high, "p": p}
        texts = {name: "" if math.isnan(value) else f"{value:.6g}" for name, value in numbers.items()}
        table.append({"score": row.score, "region": row.region, "run": row.run, "cases": str(cases), **texts})
    return table
