# Copyright (c) the brats_mri_panet_segmentation authors
# SPDX-License-Identifier: Apache-2.0
"""The table of all scores: how each is shown on the screen, in reports and in comparisons.

``scores.csv`` has a column for each score and region, such as ``dice_ET``.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from scripts.brats import REGIONS


@dataclass(frozen=True)
class Score:
    """How a score is shown.

    A minor score says little more than the Dice, so it has no plot and no column in the list of all cases.
    """

    title: str
    unit: str = ""  # A score without a unit is a share, from 0 to 1.
    digits: int = 3  # behind the point
    divisor: float = 1.0  # of a value in scores.csv, to get the unit
    minor: bool = False

    @property
    def heading(self) -> str:
        """Title and unit, such as "HD95 (mm)"."""
        return f"{self.title} ({self.unit})" if self.unit else self.title

    def text(self, value: float) -> str:
        """A value of ``scores.csv`` as it is shown.

        Example:
            >>> SCORES["dice"].text(0.5), SCORES["volume"].text(2500), SCORES["specificity"].text(0.9998)
            ('0.500', '2.5', '0.9998')
        """
        return f"{value / self.divisor:.{self.digits}f}"


SCORES = {
    "dice": Score("Dice"),
    "hd95": Score("HD95", "mm", digits=2),
    "sensitivity": Score("sensitivity", minor=True),
    "specificity": Score("specificity", digits=4, minor=True),  # It differs from 1 only in its last digits.
    "surface_dice_0.5mm": Score("surface Dice at 0.5 mm", minor=True),
    "surface_dice_1mm": Score("surface Dice at 1 mm", minor=True),
    "lesion_dice": Score("lesion-wise Dice"),
    "lesion_hd95": Score("lesion-wise HD95", "mm", digits=2),
    # scores.csv has mm³.
    "volume": Score("volume", "ml", digits=1, divisor=1000.0),
    "reference_volume": Score("reference volume", "ml", digits=1, divisor=1000.0),
    # What the run expected without a reference; low and high bound 80 % of such results.
    "expected_dice": Score("expected Dice", digits=2),
    "expected_dice_low": Score("expected Dice, low", digits=2),
    "expected_dice_high": Score("expected Dice, high", digits=2),
}
VOLUMES = ("volume", "reference_volume")
EXPECTED = ("expected_dice", "expected_dice_low", "expected_dice_high")


def score_of(name: str) -> Score:
    """The row of a score. One that is not in the table, such as a user's own, counts as a share."""
    return SCORES.get(name) or Score(name.replace("_", " "))


def split_column(column: str) -> tuple[str, str]:
    """Score and region of a column, such as "lesion_dice" and "ET"."""
    name, _, region = column.rpartition("_")
    return name, region


def columns_of(names: Sequence[str]) -> list[str]:
    """The columns of scores: all regions of the first score, then those of the next.

    Example:
        >>> columns_of(["dice", "hd95"])
        ['dice_ET', 'dice_TC', 'dice_WT', 'hd95_ET', 'hd95_TC', 'hd95_WT']
    """
    return [f"{name}_{region}" for name in names for region in REGIONS]


def scores_in(columns: Sequence[str]) -> list[str]:
    """The scores that have a column for each region, without volumes and expected scores.

    Example:
        >>> scores_in([*columns_of(["dice", "volume"]), "hd95_ET", "seconds"])
        ['dice']
    """
    names = dict.fromkeys(split_column(column)[0] for column in columns)
    return [name for name in names if name not in (*VOLUMES, *EXPECTED) and set(columns_of([name])) <= set(columns)]
