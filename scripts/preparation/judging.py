# Copyright (c) the brats_mri_panet_segmentation authors
# SPDX-License-Identifier: Apache-2.0
"""What may be wrong with a preparation: bounds, each with what it was set on, and what passes them.

They were set on TCGA-FG-6692 as acquired, on TCGA-DU-7294, on sixteen prepared patients of TCGA in right and in wrong
orientations, and on phantoms. docs/get_started.md says what was never seen.
"""

import logging
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

import numpy as np
from scripts.data.findings import Finding
from scripts.preparation.grids import Array, Volume, angle
from scripts.preparation.registration import Fit, coarse
from scripts.utils.errors import InputError

logger = logging.getLogger(__name__)

LARGEST_HEAD_MM = 350.0
BRAIN_ML = (900.0, 2000.0)
LEAST_SHAPE_DICE = 0.87
LARGEST_APART_MM = 2.0
# Two results are alike if their mutual information differs by less than this share of what it has above 1.
LIKE = 0.05
# Right registrations had 1.05 to 1.17; of a sequence upside down, back to front or of noise, at most 1.018. A mirrored
# sequence has up to 1.04 and is not found.
LEAST_INFORMATION = 1.03
LARGEST_SHARE_OUTSIDE = 0.01
THICKEST_MM = 6.0
LARGEST_MOVE = 10.0  # degrees
LARGEST_TILT = 30.0
LEAST_MASK_DICE = 0.95
# Area of the brain in an outermost slice, as a share of its largest area along the same axis.
CUT_SHARE = 0.005
ANOTHER = "correct its header if it turns the head, give another scan, or leave the sequence out."


@dataclass
class Judge:
    """Collects the doubts about the preparation of a case; one whose kind is not in ``accept`` stops it."""

    case: str
    accept: Collection[str] = ()
    found: list[Finding] = field(default_factory=list)

    def doubt(self, kind: str, message: str) -> None:
        """Raise an InputError, or warn if a user accepts this kind."""
        if kind not in self.accept:
            raise InputError(f'{message} --accept "{kind}" goes on.', kind)
        self.warn(kind, message)

    def warn(self, kind: str, message: str) -> None:
        """Keep a warning, and log it."""
        self.found.append(Finding(kind, self.case, message))
        logger.warning("%s", message)

    @property
    def accepted(self) -> list[str]:
        """The kinds of doubts that a user has accepted."""
        return [one.kind for one in self.found if one.kind in self.accept]

    def head(self, head: Volume, file: str) -> None:
        """Doubt a head whose units or scale are wrong."""
        small = coarse(head, 8.0)
        inside = small.voxels > 0.3 * small.voxels.mean()
        size = [int(np.ptp(np.flatnonzero(inside.any(axes)))) + 1 for axes in ((1, 2), (0, 2), (0, 1))]
        if (largest := 8.0 * max(size)) > LARGEST_HEAD_MM:
            self.doubt(
                "unlikely head size",
                f"{file}: by its header, the head is {largest:.0f} mm long; correct the voxel size or its unit.",
            )

    def slices(self, volumes: Mapping[str, Volume], files: Mapping[str, str]) -> None:
        """Warn of thick slices."""
        for name, volume in volumes.items():
            if volume.spacing.max() > THICKEST_MM:
                self.warn(
                    "thick slices",
                    f"{files[name]}: slices of {volume.spacing.max():.1f} mm; small parts of the tumor may be missed.",
                )

    def brain(self, brain: Volume, file: str) -> None:
        """Doubt the volume of a brain, and warn if the field of view cuts it."""
        mask = brain.voxels > 0
        if not mask.any():
            raise InputError(f"{file}: no brain was found; look at the scan, and correct its header if it is wrong.")
        ml = float(mask.sum() * brain.voxel_ml)
        if not BRAIN_ML[0] <= ml <= BRAIN_ML[1]:
            self.doubt(
                "unlikely brain size",
                f"{file}: the brain that was found has {ml:.0f} ml, which no adult's has; correct the voxel size, or "
                "give a scan of the whole head.",
            )
        largest = np.array([mask.sum(axes).max() for axes in ((1, 2), (0, 2), (0, 1))])
        faces = [(axis, np.take(mask, end, axis).sum() / max(largest[axis], 1)) for axis in range(3) for end in (0, -1)]
        if (cut := sum(share > CUT_SHARE for _, share in faces)) > 0:
            self.warn(
                "cut brain",
                f"{file}: the field of view cuts the brain (at {cut} of 6 faces); tumor beyond it is not seen.",
            )

    def field(self, outside: float, file: str) -> None:
        """Warn of a sequence whose field of view leaves out this share of the brain."""
        if outside > LARGEST_SHARE_OUTSIDE:
            self.warn("cut brain", f"{file}: its field of view leaves out {outside:.0%} of the brain.")

    def registration(self, fit: Fit, file: str) -> None:
        """Doubt the registration of a sequence, and warn of movement."""
        if fit.apart_mm > LARGEST_APART_MM and fit.gain < LIKE:
            self.doubt(
                "ambiguous registration",
                f"{file}: two registrations to T1ce that fit alike are {fit.apart_mm:.1f} mm apart; {ANOTHER}",
            )
        if fit.information < max(fit.of_header, LEAST_INFORMATION):
            worse = "worse than the places in the headers" if fit.information < fit.of_header else "hardly at all"
            self.doubt("failed registration", f"{file}: its registration to T1ce fits {worse}; {ANOTHER}")
        if (turned := angle(fit.matrix)) > LARGEST_MOVE:
            self.warn("moved head", f"{file}: the head moved by {turned:.0f} degrees since T1ce; look at the picture.")

    def masks(self, dice: float, file: str) -> None:
        """Warn if the brain that was found in another sequence is another."""
        if dice < LEAST_MASK_DICE:
            self.warn(
                "contradicting brain masks",
                f"{file}: the brain found in it and the one found in T1ce have Dice {dice:.2f}; look at the picture.",
            )

    def pose(self, shape_dice: float, to_brats: Array, file: str) -> None:
        """Doubt a brain that is not shaped like one, as by a header that turns it, and warn of a tilt."""
        if shape_dice < LEAST_SHAPE_DICE:
            self.doubt(
                "unlikely brain shape",
                f"{file}: the brain that was found does not fit a brain's shape (Dice {shape_dice:.2f}); correct the "
                "header if it turns the head round or upside down, or give a scan of the whole head.",
            )
        if (tilt := angle(to_brats)) > LARGEST_TILT:
            self.warn("tilted head", f"{file}: the head is tilted by {tilt:.0f} degrees; look at the picture.")
