# Copyright (c) the brats_mri_panet_segmentation authors
# SPDX-License-Identifier: Apache-2.0
"""The Dice that a result can be expected to have, with an interval, and the probability that there is any ET.

For each region a score is a sum of signs (``scripts.scores.certainty``) with weights that are not negative, so that
more certain signs never lower it. Isotonic regression turns the score into the expected Dice. The interval of 80 %
comes from the errors for calibrating cases with a similar score, each left out in turn. All numbers are kept in the
record of the weights.

A calibration holds for runs like those that it was made from: with as many flips, the same kind of windows, and voxels
of the same size. For others nothing is expected.
"""

import csv
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.optimize import isotonic_regression, nnls
from scipy.stats import spearmanr
from scripts.brats import REGIONS
from scripts.scores.certainty import CERTAINTY_FILE, INTENSITIES
from scripts.scores.paired import read_scores
from scripts.scores.table import EXPECTED, columns_of
from scripts.utils.errors import InputError

# Fewer patients do not show how far a result can be off.
LEAST_CASES = 20
# A tenth of the cases lies below the interval, and a tenth above it.
INTERVAL = (10, 90)
# The interval at a score comes from this share of the cases, those with the nearest scores.
NEIGHBORS = 1 / 3
# How strongly weights are drawn to 0, in cases.
RIDGE = 5.0
# A region is relied on where four of five results with a similar expected Dice, or any higher one, had this Dice.
RELIABLE_DICE, RELIABLE_SHARE = 0.5, 0.8
REGION_NAMES = {"WT": "whole tumor", "TC": "core", "ET": "enhancing tumor"}
# Voxels may differ by this share from those of the calibration.
VOXEL_TOLERANCE = 0.1
# Signs of a region and whether more of it is better. Volumes count by their logarithms.
DIRECTIONS = {
    "soft_dice": 1,
    "volume": 1,
    "surface_per_volume": -1,
    "border_entropy": -1,
    "flip_disagreement": -1,
    "intensity_distance": -1,
}

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Expected:
    """Expected Dice of a region and the interval that holds 80 % of such results."""

    dice: float
    low: float
    high: float


@dataclass(frozen=True)
class Case:
    """A segmented case with a reference.

    Attributes:
        signs: its signs and the conditions of the run, as in ``certainty.csv``.
        dice: real Dice by region.
        any_et: whether the reference has ET.
    """

    name: str
    signs: Mapping[str, Any]
    dice: Mapping[str, float]
    any_et: bool


def conditions(signs: Mapping[str, Any]) -> dict[str, Any]:
    """What must be equal in two runs for a calibration of one to hold for the other."""
    return {"flips": int(signs["flips"]), "windows": str(signs["windows"]), "absent": int(signs["absent"])}


def calibrate(cases: Sequence[Case]) -> dict[str, Any]:
    """The numbers by which ``expect`` works, as plain data for the record of the weights.

    Raises:
        InputError: there are too few cases, or they come from different kinds of runs.
    """
    if len(cases) < LEAST_CASES:
        raise InputError(f"{len(cases)} cases: a calibration needs {LEAST_CASES} at least.")
    kinds = [conditions(case.signs) for case in cases]
    other = next((case.name for case, kind in zip(cases, kinds, strict=True) if kind != kinds[0]), None)
    if other is not None:
        raise InputError(f"{cases[0].name} and {other} were segmented in different ways; evaluate all in the same way.")
    quantiles = np.array([[float(case.signs[name]) for name in INTENSITIES] for case in cases])
    voxels = [float(case.signs[name]) for case in cases for name in ("voxel_mm_smallest", "voxel_mm_largest")]
    numbers: dict[str, Any] = {
        "cases": len(cases),
        **kinds[0],
        "voxel_mm": [min(voxels), max(voxels)],
        "intensities": {"mean": _plain(quantiles.mean(0)), "deviation": _plain(np.maximum(quantiles.std(0), 1e-3))},
        "regions": {},
    }
    for region in REGIONS:
        # An empty ET is either right or wrong: the probability of any ET says which.
        found = [case for case in cases if float(case.signs[f"volume_{region}"]) > 0]
        if len(found) < LEAST_CASES:
            raise InputError(f"{region} was found in {len(found)} cases; a calibration needs {LEAST_CASES} at least.")
        signs = np.array([_signs(case.signs, region, numbers) for case in found])
        dice = np.array([case.dice[region] for case in found])
        numbers["regions"][region] = _fit(signs, dice)
    chances = np.array([_probable_et(case.signs) for case in cases])
    present = np.array([case.any_et for case in cases], dtype=float)
    numbers["any_et"] = _rising(chances, present, smoothing=1.0)
    return numbers


def _plain(values: Array) -> list[float]:
    return [round(float(value), 4) for value in values]


def _probable_et(signs: Mapping[str, Any]) -> float:
    return math.log10(float(signs["probable_ET"]) + 0.01)


def _signs(signs: Mapping[str, Any], region: str, numbers: Mapping[str, Any]) -> list[float]:
    """The signs of a region in the order of ``DIRECTIONS``, each turned so that more is better."""
    intensities = np.array([float(signs[name]) for name in INTENSITIES])
    known = numbers["intensities"]
    distance = (intensities - np.array(known["mean"])) / np.array(known["deviation"])
    values = {name: float(signs.get(f"{name}_{region}") or 0) for name in DIRECTIONS}
    values["intensity_distance"] = float(np.sqrt(np.mean(distance**2)))
    values["volume"] = math.log10(values["volume"] + 0.1)
    return [values[name] * direction for name, direction in DIRECTIONS.items()]


def _fit(signs: Array, dice: Array) -> dict[str, Any]:
    center, scale = signs.mean(0), np.maximum(signs.std(0), 1e-6)
    scaled = (signs - center) / scale
    weights, curve = _curve(scaled, dice)
    score = scaled @ weights
    # What each case could be expected to have without knowing it. The curve itself fits its own cases too well.
    unseen = np.empty(len(dice))
    for number in range(len(dice)):
        others = np.arange(len(dice)) != number
        their_weights, their_curve = _curve(scaled[others], dice[others])
        unseen[number] = np.interp(scaled[number] @ their_weights, their_curve["score"], their_curve["value"])
    count = max(round(len(dice) * NEIGHBORS), 8)
    low, high = [], []
    for at, value in zip(curve["score"], curve["value"], strict=True):
        near = _nearest(score, at, count)
        # The kind of percentiles that holds its share of the next cases, and not only of these few.
        errors = np.percentile((dice - unseen)[near], INTERVAL, method="weibull")
        low.append(min(max(value + errors[0], 0), value))
        high.append(max(min(value + errors[1], 1), value))
    return {
        "weights": dict(zip(DIRECTIONS, _plain(weights), strict=True)),
        "center": _plain(center),
        "scale": [float(f"{value:.4g}") for value in scale],
        **curve,
        "low": _plain(isotonic_regression(low).x),
        "high": _plain(isotonic_regression(high).x),
        "reliable_from": _reliable_from(unseen, dice, count),
    }


def _curve(scaled: Array, dice: Array) -> tuple[Array, dict[str, list[float]]]:
    """Weights of the signs, and the curve from their sum to the Dice."""
    pull = math.sqrt(RIDGE) * np.eye(scaled.shape[1])
    weights, _ = nnls(np.vstack([scaled, pull]), np.concatenate([dice - dice.mean(), np.zeros(len(pull))]))
    return weights, _rising(scaled @ weights, dice)


def _rising(score: Array, value: Array, smoothing: float = 0.0) -> dict[str, list[float]]:
    """The rising curve nearest to ``value``: a point for each level of the isotonic regression.

    ``smoothing`` draws each level to the mean of all values, by so many cases.
    """
    order = np.argsort(score, kind="stable")
    fitted = isotonic_regression(value[order]).x
    levels = np.split(np.arange(len(fitted)), np.flatnonzero(np.diff(fitted)) + 1)
    at = [float(score[order][level].mean()) for level in levels]
    mean = float(value.mean())
    height = [(float(value[order][level].sum()) + smoothing * mean) / (len(level) + smoothing) for level in levels]
    return {"score": _plain(np.array(at)), "value": _plain(isotonic_regression(height).x)}


def _nearest(values: Array, value: float, count: int) -> Array:
    return np.argsort(np.abs(values - value), kind="stable")[:count]


def _reliable_from(expected: Array, dice: Array, count: int) -> float:
    """The least expected Dice from which on enough of the ``count`` nearest results were good; 1 if there is none."""
    bound = 1.0
    for value in sorted(set(expected), reverse=True):
        if (dice[_nearest(expected, value, count)] >= RELIABLE_DICE).mean() < RELIABLE_SHARE:
            break
        bound = value
    return round(float(bound), 4)


def fitting(calibrations: Sequence[Mapping[str, Any]], signs: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The calibration that holds for a run with these signs, or None."""
    for numbers in calibrations:
        smallest, largest = numbers["voxel_mm"]
        sizes = (float(signs["voxel_mm_smallest"]), float(signs["voxel_mm_largest"]))
        same = all(numbers[name] == value for name, value in conditions(signs).items())
        if same and smallest * (1 - VOXEL_TOLERANCE) <= min(sizes) and max(sizes) <= largest * (1 + VOXEL_TOLERANCE):
            return numbers
    return None


def probability_of_any_et(numbers: Mapping[str, Any], signs: Mapping[str, Any]) -> float:
    """The probability that the case has ET."""
    return round(float(np.interp(_probable_et(signs), numbers["any_et"]["score"], numbers["any_et"]["value"])), 3)


def expect(numbers: Mapping[str, Any], signs: Mapping[str, Any]) -> dict[str, Expected]:
    """The expected Dice of each region of a result with these signs, by a calibration that holds for it.

    A region that was not found has the Dice 1 if there is none, and else 0.
    """
    expected = {}
    for region in REGIONS:
        if float(signs[f"volume_{region}"]) == 0:
            none = 1 - probability_of_any_et(numbers, signs) if region == "ET" else 0.0
            share = INTERVAL[0] / 100
            expected[region] = Expected(none, float(none > 1 - share), float(none >= share))
            continue
        fit = numbers["regions"][region]
        weights = np.array([fit["weights"][name] for name in DIRECTIONS])
        score = (np.array(_signs(signs, region, numbers)) - fit["center"]) / fit["scale"] @ weights
        values = [float(np.interp(score, fit["score"], fit[name])) for name in ("value", "low", "high")]
        expected[region] = Expected(*(round(value, 3) for value in values))
    return expected


def expected(calibrations: Sequence[Mapping[str, Any]], signs: Mapping[str, Any]) -> dict[str, Any] | None:
    """What to expect of a result, for JSON: Dice, interval and whether to rely on it, by region; None if unknown.

    Example:
        >>> expected([], {}) is None
        True
    """
    numbers = fitting(calibrations, signs) if signs else None
    if numbers is None:
        return None
    found = {region: asdict(told) for region, told in expect(numbers, signs).items()}
    for region, told in found.items():
        told["reliable"] = told["dice"] >= numbers["regions"][region]["reliable_from"]
    return {**found, "probability_of_any_ET": probability_of_any_et(numbers, signs)}


def needs_a_look(told: Mapping[str, Any] | None) -> bool:
    """Whether a region of ``expected`` is not reliable, or may well be wrong."""
    return told is not None and any(
        not told[region]["reliable"] or told[region]["low"] < RELIABLE_DICE for region in REGIONS
    )


def mean_expected(told: Mapping[str, Any] | None) -> float:
    """The mean of the expected Dice of the regions; NaN if it is unknown."""
    return math.nan if told is None else sum(told[region]["dice"] for region in REGIONS) / len(REGIONS)


def in_words(told: Mapping[str, Any] | None) -> str:
    """What ``expected`` means for a reader, in one line.

    Example:
        >>> good = {"dice": 0.91, "low": 0.85, "high": 0.95, "reliable": True}
        >>> in_words({"WT": good, "TC": {**good, "low": 0.3}, "ET": good, "probability_of_any_ET": 0.93})[62:]
        'ET 0.91 (0.85 to 0.95), any ET 93 %: look closely'
        >>> poor = {"dice": 0.4, "low": 0.0, "high": 0.62, "reliable": False}
        >>> in_words({"WT": good, "TC": poor, "ET": good, "probability_of_any_ET": 0.93})[38:]
        'TC 0.40 (0.00 to 0.62), ET 0.91 (0.85 to 0.95), any ET 93 %: do not rely on the core'
        >>> in_words(None)
        'expected Dice unknown'
    """
    if told is None:
        return "expected Dice unknown"
    parts = [
        f"{region} {told[region]['dice']:.2f} ({told[region]['low']:.2f} to {told[region]['high']:.2f})"
        for region in REGION_NAMES
    ]
    doubtful = [f"the {name}" for region, name in REGION_NAMES.items() if not told[region]["reliable"]]
    advice = f": do not rely on {' or '.join(doubtful)}" if doubtful else ": look closely" * needs_a_look(told)
    return f"expected Dice {', '.join(parts)}, any ET {told['probability_of_any_ET']:.0%}{advice}".replace("%", " %")


def expected_columns(told: Mapping[str, Any] | None) -> dict[str, str]:
    """The columns of ``expected`` in tables, as texts that are empty where it is unknown.

    Example:
        >>> set(expected_columns(None).values())
        {''}
    """
    parts = dict(zip(EXPECTED, ("dice", "low", "high"), strict=True))
    if told is None:
        return dict.fromkeys(columns_of(EXPECTED), "")
    return {f"{name}_{region}": f"{told[region][part]:.3f}" for name, part in parts.items() for region in REGIONS}


def read_cases(evaluation: Path) -> list[Case]:
    """The cases of an evaluation, from its tables of scores and signs.

    Raises:
        InputError: a table is not there, or they differ in their cases.
    """
    scores, path = read_scores(evaluation / "scores.csv"), evaluation / CERTAINTY_FILE
    if not path.is_file():
        raise InputError(f"{path}: no such file; evaluate again.")
    with path.open(newline="", encoding="utf-8") as file:
        signs = {row["case"]: row for row in csv.DictReader(file)}
    if signs.keys() != scores.keys():
        raise InputError(f"{path}: holds other cases than scores.csv; evaluate again.")
    return [
        Case(
            case,
            signs[case],
            {region: values[f"dice_{region}"] for region in REGIONS},
            values["reference_volume_ET"] > 0,
        )
        for case, values in scores.items()
    ]


@dataclass(frozen=True)
class Judgment:
    """How well expected and real Dice of a region agree, in cases that their calibration had not seen.

    Attributes:
        rho: Spearman's rank correlation.
        inside: share of the real values inside the intervals.
        expected, real: the values by case.
    """

    rho: float
    inside: float
    expected: dict[str, Expected]
    real: dict[str, float]


def judge(folds: Sequence[Sequence[Case]]) -> dict[str, Judgment]:
    """Expect the Dice of each fold's cases by a calibration on the other folds.

    Raises:
        InputError: there are too few cases.
    """
    expected: dict[str, dict[str, Expected]] = {}
    for number, held_out in enumerate(folds):
        numbers = calibrate([case for other, fold in enumerate(folds) if other != number for case in fold])
        expected |= {case.name: expect(numbers, case.signs) for case in held_out}
    cases = [case for fold in folds for case in fold]
    judgments = {}
    for region in REGIONS:
        told = {case.name: expected[case.name][region] for case in cases}
        real = {case.name: float(case.dice[region]) for case in cases}
        rho = float(spearmanr([told[name].dice for name in real], list(real.values())).statistic)
        inside = float(
            np.mean([told[name].low - 1e-9 <= value <= told[name].high + 1e-9 for name, value in real.items()])
        )
        judgments[region] = Judgment(rho, inside, told, real)
    return judgments
