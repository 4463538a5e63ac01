# Copyright (c) the brats_mri_panet_segmentation authors
# SPDX-License-Identifier: Apache-2.0
"""What may be wrong with data: the kinds of findings, each with its severity.

Kinds are in the order in which a user mends them: files, grids, header, skull, sequences. docs/reference.md has a row
for each.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

from scripts.utils.errors import InputError

# Findings that stop a run, because its result would be absent or wrong.
ERRORS = (
    "missing sequence",
    "doubled file",
    "doubled case name",
    "absent file",
    "pointer in place of a file",
    "folder in place of a file",
    "empty file",
    "unreadable file",
    "other format",
    "not an image",
    "damaged file",
    "damaged header",
    "series in several folders",
    "several patients",
    "contradicting contrast agent",
    "multi-frame DICOM",
    "mixed series",
    "several volumes in a series",
    "slice without a place",
    "missing slice",
    "other dimensions",
    "contradicting order of channels",
    "no plain numbers",
    "no finite numbers",
    "empty image",
    "constant image",
    "same image twice",
    "different grids",
    "label map on another grid",
    "unexpected label",
    "ET 3 and 4 mixed",
)
# Doubts about images. They stop ``panet segment``, unless a user accepts their kind; in other runs they are warnings.
ACCEPTABLE = (
    "contradicting header",
    "other voxel size",
    "skull not stripped",
    "background is not 0",
    "different brains",
    "likely swapped sequences",
)
# Findings that are reported and do not stop a run.
WARNINGS = (
    *ACCEPTABLE,
    "tolerated missing sequence",
    "other origin of a label map",
    "label outside the brain",
    "no place in the header",
    "misnamed file",
    "one patient in several cases",
    "odd name",
    "other tumor",
    "several series of a sequence",
)
KINDS = (*ERRORS, *WARNINGS)
# Doubts about the preparation of scans (``scripts.preparation.judging``). They stop it, unless a user accepts their
# kind.
PREPARATION_DOUBTS = (
    "unlikely head size",
    "unlikely brain size",
    "unlikely brain shape",
    "ambiguous registration",
    "failed registration",
)


def refused_kinds(accept: Collection[str] | None) -> tuple[str, ...]:
    """The kinds of findings that stop a run: all errors, and doubts that are not among ``accept``, if it is not None.

    Raises:
        InputError: ``accept`` names another kind.
    """
    if unknown := sorted(set(accept or ()) - set(ACCEPTABLE)):
        raise InputError(f"--accept {unknown[0]}: no such doubt; choose one of {', '.join(ACCEPTABLE)}.")
    return ERRORS if accept is None else (*ERRORS, *(kind for kind in ACCEPTABLE if kind not in accept))


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
        if kind not in KINDS:
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


def warnings_by_case(findings: Iterable[Finding]) -> dict[str, list[dict[str, str]]]:
    """The warnings of each case that has any, as results keep them: ``kind`` and ``text``.

    Example:
        >>> warnings_by_case([Finding("odd name", "p 1", "p 1: rename it."), Finding("empty file", "p2", "p2: empty.")])
        {'p 1': [{'kind': 'odd name', 'text': 'p 1: rename it.'}]}
    """
    kept: dict[str, list[dict[str, str]]] = {}
    for finding in dict.fromkeys(findings):
        if not finding.is_error:
            kept.setdefault(finding.case, []).append({"kind": finding.kind, "text": finding.message})
    return kept


def warned_of(warnings: Iterable[Mapping[str, str]]) -> list[str]:
    """What a title says of warnings of ``warnings_by_case``: at most one text, with their kinds.

    Example:
        >>> warned_of([{"kind": "odd name", "text": ""}, {"kind": "other voxel size", "text": ""}]), warned_of([])
        (['WARNING: odd name, other voxel size'], [])
    """
    kinds = list(
        dict.fromkeys(warning["kind"] for warning in warnings if warning["kind"] != "tolerated missing sequence")
    )
    return [f"WARNING: {', '.join(kinds)}"] if kinds else []
