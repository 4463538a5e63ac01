# Copyright (c) the brats_mri_panet_segmentation authors
# SPDX-License-Identifier: Apache-2.0
"""The report of an evaluation: scores and volumes by case, and their summary."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ignite.engine import Events
from monai.engines.workflow import Workflow
from rich.console import Console
from rich.table import Table
from scripts.brats import REGIONS
from scripts.scores.certainty import CERTAINTY_FILE, SIGNS, Signs
from scripts.scores.expected_dice import expected, expected_columns
from scripts.scores.table import EXPECTED, VOLUMES, columns_of, score_of, split_column
from scripts.scores.volumetry import voxel_volume
from scripts.utils.distributed import gathered, rank
from scripts.utils.files import save_csv

logger = logging.getLogger(__name__)


class EvaluationReport:
    """A handler that writes scores and volumes of every case to disk, and their summary to disk and to the screen.

    ``scores.csv`` has one row for each case: the scores of the metrics, and the volumes (mm^3) of prediction and
    reference, each for ET, TC and WT. ``summary.csv`` has mean, standard deviation, median and quartiles of each
    column. The columns have the names that a metric gives its means, such as ``val_dice_ET``, without ``val_``. A
    metric with one mean only, such as ``val_mean_dice``, has no columns.

    ``certainty.csv`` has the signs by which a Dice can be expected. If the weights have calibrations that hold for this
    run, ``scores.csv`` has the expected Dice, too.

    With several ranks, each rank evaluates its share of the cases, and rank 0 writes the report of all cases. So attach
    the handler on every rank. All files are written into ``output_dir``.
    """

    def __init__(self, output_dir: str | Path, calibrations: Sequence[Mapping[str, Any]] = ()) -> None:
        self.output_dir = Path(output_dir)
        self.calibrations = calibrations
        self.cases: list[str] = []
        self.volumes: list[list[float]] = []
        self.signs: list[Signs] = []

    def attach(self, engine: Workflow) -> None:
        """Follow the evaluator ``engine``, whose outputs hold regions under ``pred`` and ``label``."""
        engine.add_event_handler(Events.STARTED, self.started)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self.iteration_completed)
        engine.add_event_handler(Events.COMPLETED, self.completed)

    def started(self, engine: Workflow) -> None:
        """Forget an earlier evaluation."""
        self.cases, self.volumes, self.signs = [], [], []

    def iteration_completed(self, engine: Workflow) -> None:
        """Note the case's name and volumes. A case that failed has no output (``scripts.inference.failures``)."""
        if not engine.state.output:
            return
        for item, output in zip(engine.state.batch, engine.state.output, strict=True):
            self.cases.append(item["case"])
            row = []
            for regions in (output["pred"], output["label"]):
                voxel = voxel_volume(np.asarray(regions.affine))
                row += [float((regions[channel] > 0).sum()) * voxel for channel in range(1, 1 + len(REGIONS))]
            self.volumes.append(row)
            self.signs.append(output.get(SIGNS, {}))

    def completed(self, engine: Workflow) -> None:
        """Write and print the report."""
        # The metrics gather the ranks' cases in this order too.
        shares = gathered((self.cases, self.volumes, self.signs))
        if rank() != 0:
            return
        cases = [case for names, *_ in shares for case in names]
        volumes = np.array([row for _, rows, _ in shares for row in rows])
        signs = [one for *_, share in shares for one in share]
        order = np.argsort(cases, kind="stable")
        columns: dict[str, np.ndarray] = {}
        for name, details in engine.state.metric_details.items():
            means = engine.state.metrics[name]
            if isinstance(means, Mapping):
                values = np.asarray(details.cpu(), dtype=float)
                columns |= zip((label.removeprefix("val_") for label in means), values.T, strict=True)
        columns |= zip(columns_of(VOLUMES), volumes.T, strict=True)

        told = [expected_columns(expected(self.calibrations, signs[i])) for i in order]
        rows = [[cases[i], *(f"{values[i]:.4f}" for values in columns.values())] for i in order]
        rows = [[*row, *one.values()] for row, one in zip(rows, told, strict=True)]
        save_csv(["case", *columns, *columns_of(EXPECTED)], rows, self.output_dir / "scores.csv")
        header = list(dict.fromkeys(name for one in signs for name in one))
        if header:
            rows = [[cases[i], *(str(signs[i][name]) for name in header)] for i in order]
            save_csv(["case", *header], rows, self.output_dir / CERTAINTY_FILE)
        summary = {name: summarize(values) for name, values in columns.items()}
        statistics = list(next(iter(summary.values())))
        rows = [[s, *(f"{values[s]:.4f}" for values in summary.values())] for s in statistics]
        save_csv(["statistic", *columns], rows, self.output_dir / "summary.csv")

        table = Table(title=f"{len(cases)} case{'s' * (len(cases) != 1)}; BraTS 2020 rules for empty regions")
        for title in ("score", "region"):
            table.add_column(title)
        for statistic in statistics:
            table.add_column(statistic, justify="right")
        for column, found in summary.items():
            name, region = split_column(column)
            score = score_of(name)
            heading = score.heading if region == REGIONS[0] else ""
            texts = [score.text(found[statistic]) for statistic in statistics]
            table.add_row(heading, region, *texts, end_section=region == REGIONS[-1])
        Console().print(table)
        logger.info("Scores by case: %s", self.output_dir / "scores.csv")


def summarize(values: np.ndarray) -> dict[str, float]:
    """Mean, standard deviation (of a sample; 0 for one value), median and quartiles of a column.

    Example:
        >>> summarize(np.array([0.5, 0.75, 1.0]))
        {'mean': 0.75, 'std': 0.25, 'median': 0.75, 'quartile1': 0.625, 'quartile3': 0.875}
    """
    low, median, high = np.percentile(values, [25, 50, 75])
    return {
        "mean": float(np.mean(values)),
        "std": float(np.std(values, ddof=1)) if len(values) > 1 else 0.0,
        "median": float(median),
        "quartile1": float(low),
        "quartile3": float(high),
    }
