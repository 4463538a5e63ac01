# Copyright (c) the brats_mri_panet_segmentation authors
# SPDX-License-Identifier: Apache-2.0
"""What may be wrong with data: the kinds of findings, each with its severity.

docs/reference.md has a row for each kind.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from scripts.utils.errors import InputError

# Findings that stop a run, because its result would be absent or wrong.
ERRORS = (
    "missing sequence",
    "doubled file",
    "doubled case name",
    "absent file",
    "folder in place of a file",
    "empty file",
    "unreadable file",
    "other format",
    "not an image",
    "damaged file",
    "damaged header",
    "other dimensions",
    "no plain numbers",
    "no finite numbers",
    "empty image",
    "constant image",
    "different grids",
    "label map on another grid",
    "unexpected label",
    "ET 3 and 4 mixed",
    "same image twice",
    "contradicting order of channels",
    "missing slice",
    "several volumes in a series",
    "mixed series",
    "slice without a place",
    "multi-frame DICOM",
    "series in several folders",
    "several patients",
)
# Findings that are reported and do not stop a run.
WARNINGS = (
    "tolerated missing sequence",
    "other origin of a label map",
    "other voxel size",
    "skull not stripped",
    "different brains",
    "likely swapped sequences",
    "label outside the brain",
    "contradicting header",
    "no place in the header",
    "misnamed file",
    "one patient in several cases",
    "odd name",
    "other tumor",
    "several series of a sequence",
    "contradicting contrast agent",
)

# Warnings about scans as the scanner made them. Weights have never seen such scans.
NOT_PREPARED = ("skull not stripped", "other voxel size", "different brains")


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong, or may be wrong, with a case. The message names the file and the remedy in one line."""

    kind: str
    case: str
    message: str

    @property
    def is_error(self) -> bool:
        """Whether the finding stops a run."""
        return self.kind in ERRORS

    @property
    def severity(self) -> str:
        """The word for it: error or warning."""
        return "error" if self.is_error else "warning"


@dataclass
class Findings:
    """The findings of one case."""

    case: str
    list: list[Finding] = field(default_factory=list)

    def add(self, kind: str, message: str) -> None:
        """Add a finding of a kind that is known; another kind is a KeyError."""
        if kind not in (*ERRORS, *WARNINGS):
            raise KeyError(kind)
        self.list.append(Finding(kind, self.case, message))

    @contextmanager
    def collecting(self) -> Iterator[None]:
        """Make an ``InputError`` that states its kind a finding, and go on after the block."""
        try:
            yield
        except InputError as error:
            if not error.kind:
                raise
            self.add(error.kind, str(error))
