# Copyright (c) the brats_mri_panet_segmentation authors
# SPDX-License-Identifier: Apache-2.0
"""Which sequence a DICOM series shows, by its description or its times, and which series of a study are taken."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from scripts.brats import SEQUENCE_TITLES, SEQUENCES
from scripts.data.dicom import Header, Series

# Values of ContrastBolusAgent, in small letters, that mean that there is none.
NO_AGENT = ("", "no", "none", "0", "n", "n/a", "na", "without")


def _words(*words: str) -> str:
    return rf"(?<![a-z])(?:{'|'.join(words)})(?![a-z])"


# Words in descriptions, which are looked for in small letters.
_T = r"(?<![a-z])(?:ax|sag|cor|tra|s|c)?"
_WEIGHTING = {
    "t1": re.compile(rf"{_T}t1(?!\d)|mp-?rage|bravo|f?spgr"),
    "t2": re.compile(rf"{_T}t2(?!\d)"),
    "flair": re.compile(r"flair|dark[ _-]?fl|tirm"),
}
_OTHER = re.compile(
    r"t2[ _-]?(?:\*|star)|t2s(?![a-z])|"
    + _words(
        # susceptibility, and what is computed of other series
        r"hemo|swi|swip|swan|venbold|mag|pha|phase|min-?ip|mip|mpr_range",
        # diffusion
        r"dwi|dti|diff\w*|adc|trace\w*|tensor|b\d{3,4}|ep2d\w*|epi|hardi|dki|noddi",
        # perfusion and function
        r"perf\w*|pwi|dsc|dce|dyn\w*|twist|cbf|r?cbv|mtt|ttp|tmax|asl|p?casl|bold|fmri|rest|resting\w*",
        # localizers and calibration
        r"loc|loc\w*r|scout|aahscout|survey|pilot|(?:3|three)[ _-]?pl(?:ane)?|cal|calibration|asset|smartbrain",
        # vessels and spectroscopy
        r"tof|mra|mrv|angio\w*|veno\w*|mrs|spectro\w*|svs|csi|press",
        # maps, subtractions and rarer weightings
        r"field|fieldmap|b0|map|maps|mapit|sub|subtr\w*|ciss|fiesta|stir|pd",
        # no images of a sequence
        r"screen\w*|report\w*|summary|fused?|fusion",
    )
)
# With T1 in the description they are T1 images, without it T2*.
_GRADIENT_ECHO = re.compile(_words("gre", "ffe", "fl2d", "merge", "medic"))
_WITH_AGENT = re.compile(
    _words(
        r"gd|gad[a-z]*|ce|post(?![ _-]?op)(?:gd|gad[a-z]*|con[a-z]*)?|[ck]ontrast|enhanced|km|mdc",
        r"dotarem|magnevist|multihance|prohance|omniscan|clariscan|eovist",
        r"t1w?(?:ce?|gd|gad|km|post|con)",
    )
    + r"|\+ ?(?:c|k|gd|km)(?![a-z])|(?<![a-z])t?1?c ?\+|t1w?[ _-]c(?![a-z])"
)
_WITHOUT_AGENT = re.compile(
    _words(
        r"pre(?:gd|gad[a-z]*|con[a-z]*)?|without|w/?o|non?[ _-]?(?:contrast|gd|gad|ce|enhanced)|plain|unenhanced",
        r"ohne|nativ|native",
    )
)


def described(text: str) -> tuple[str, bool | None] | None:
    """What a description says of a series.

    That is the weighting (t1, t2 or flair, or an empty text for something else, such as diffusion), and whether there
    is a contrast agent, or None if the text does not say that. The result is None if the weighting is not told.

    Example:
        >>> [described(text) for text in ("AX T1 POST GD", "t2_tirm_tra_dark-fluid", "3-plane loc", "Brain")]
        [('t1', True), ('flair', None), ('', None), None]
    """
    words = text.lower()
    said = {name for name, pattern in _WEIGHTING.items() if pattern.search(words)}
    if _OTHER.search(words) or (_GRADIENT_ECHO.search(words) and "t1" not in said):
        return "", None
    if not said or said == {"t1", "t2"}:
        return None
    # T1 FLAIR is a T1 image with an inversion, and T2 FLAIR is what is called FLAIR.
    weighting = "t1" if said in ({"t1"}, {"t1", "flair"}) else "flair" if "flair" in said else "t2"
    agent = False if _WITHOUT_AGENT.search(words) else True if _WITH_AGENT.search(words) else None
    return weighting, agent


def weighting_by_times(header: Header) -> str | None:
    """The weighting that the times of a pulse sequence give, or None if they are missing or of another sequence."""
    echo, repetition, inversion = header.echo, header.repetition, header.inversion or 0.0
    if echo is None or repetition is None or "EP" in header.technique:
        return None
    gradient = "GR" in header.technique
    if echo >= 60 and inversion >= 1400:
        return "flair"
    if echo >= 60 and repetition >= 2000 and not inversion and not gradient:
        return "t2"
    # A gradient echo that is late shows T2*.
    if echo <= (10 if gradient else 30) and (repetition <= 1000 or 400 <= inversion <= 1300):
        return "t1"
    return None


@dataclass(frozen=True)
class Fit:
    """A series, the sequence that it shows, what tells so (``why``), and what contradicts it (``doubt``).

    ``agent_is_described`` says whether the description speaks of a contrast agent, or of none.
    """

    series: Series
    sequence: str
    why: str
    doubt: str = ""
    agent_is_described: bool = False

    @property
    def rank(self) -> tuple[bool, int, float, float]:
        """The order of choice among the series of one sequence, as ``RULES`` says."""
        header = self.series.first
        no_volume = not header.is_placed or header.several_frames or header.color
        number = np.inf if header.number is None else header.number
        return no_volume, -len(self.series.headers), header.thickness or np.inf, number


# What decides among several series of a sequence, in this order.
RULES = ("a volume of gray values", "most slices", "thinnest", "lowest number")


@dataclass(frozen=True)
class Choice:
    """The series of a study that are taken for the sequences, and the others.

    ``several`` are the sequences for which there was more than one series.
    """

    chosen: dict[str, Fit] = field(default_factory=dict)
    left_out: list[Series] = field(default_factory=list)
    several: list[str] = field(default_factory=list)

    @property
    def scattered(self) -> list[tuple[Series, Series]]:
        """The chosen series of which another folder holds files, too, each with those files."""
        return [
            (fit.series, other)
            for fit in self.chosen.values()
            for other in self.left_out
            if other.first.series == fit.series.first.series
        ]

    def __str__(self) -> str:
        taken = []
        for name in SEQUENCES:
            fit = self.chosen.get(name)
            taken.append(f"{SEQUENCE_TITLES[name]}: {f'{fit.series} ({fit.why})' if fit else 'none'}")
        return "; ".join([*taken, f"left out: {', '.join(map(str, self.left_out)) or 'none'}"])


def _weighting(header: Header) -> tuple[str, bool | None, str]:
    """The weighting of a series, or an empty text; whether there is a contrast agent, if a text says so; what tells."""
    if (told := described(header.description)) is not None:
        return *told, "by its description"
    # The name of a protocol may be that of the whole examination, and it then says nothing of the series.
    if (told := described(header.protocol)) is not None and told[0]:
        return *told, "by its protocol's name"
    if (weighting := weighting_by_times(header)) is None:
        return "", None, ""
    inversion = f", TI {header.inversion:g}" if header.inversion else ""
    return weighting, None, f"by TE {header.echo:g}, TR {header.repetition:g}{inversion} ms"


def _fit(series: Series) -> Fit | None:
    header = series.first
    if header.modality not in ("", "MR"):
        return None
    weighting, agent, why = _weighting(header)
    if weighting != "t1":
        return Fit(series, weighting, why) if weighting else None
    recorded = header.agent.lower() not in NO_AGENT
    if agent is None:
        return Fit(series, "t1ce" if recorded else "t1", f"{why}, {'an' if recorded else 'no'} agent is recorded")
    doubt = ""
    if agent != recorded:
        doubt = f"{series}: its description says that there is {'a' if agent else 'no'} contrast agent, but "
        doubt += f"ContrastBolusAgent is '{header.agent}'"
    return Fit(series, "t1ce" if agent else "t1", why, doubt, agent_is_described=True)


def choose(study: Sequence[Series]) -> Choice:
    """Choose a series of a study for each sequence. Descriptions decide before times, and then ``RULES``."""
    fits = [fit for fit in map(_fit, study) if fit]
    enhanced = [fit for fit in fits if fit.sequence == "t1ce"]
    if all(fit.sequence != "t1" for fit in fits) and any(fit.agent_is_described for fit in enhanced):
        # Some scanners record the agent for the whole examination. A plain "T1" beside a "T1 post" is then the T1.
        fits = [_without_agent(fit) if fit in enhanced and not fit.agent_is_described else fit for fit in fits]
    chosen: dict[str, Fit] = {}
    several: list[str] = []
    for sequence in SEQUENCES:
        found = sorted((fit for fit in fits if fit.sequence == sequence), key=lambda fit: fit.rank)
        if found:
            chosen[sequence] = found[0]
        if len({fit.series.first.series for fit in found}) > 1:
            several.append(sequence)
            ranks = zip(RULES, found[0].rank, found[1].rank, strict=True)
            rule = next((rule for rule, first, second in ranks if first != second), RULES[-1])
            of = f" of {len(found)}" if rule in RULES[1:3] else ""
            chosen[sequence] = replace(found[0], why=f"{found[0].why}, {rule}{of}")
    taken = [fit.series for fit in chosen.values()]
    return Choice(chosen, [series for series in study if series not in taken], several)


def _without_agent(fit: Fit) -> Fit:
    doubt = (
        f"{fit.series}: another series is described as the one with a contrast agent, so this one is taken as T1, but "
        f"ContrastBolusAgent is '{fit.series.first.agent}'"
    )
    return Fit(fit.series, "t1", "by the description of the series with the agent", doubt)
