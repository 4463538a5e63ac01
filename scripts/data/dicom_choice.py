# Copyright (c) the brats_mri_panet_segmentation authors
# SPDX-License-Identifier: Apache-2.0
"""Which sequence a DICOM series shows, by its description or its times, and which series of a study are taken."""

import os
import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from scripts.brats import SEQUENCE_TITLES, SEQUENCES
from scripts.data.dicom import Header, Series
from scripts.utils.errors import InputError

# Values of ContrastBolusAgent, in small letters, that mean that there is none.
NO_AGENT = ("no", "none", "0", "n", "n/a", "na", "without")


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

# Words about contrast agent, as ``_plain`` writes them, in English, German, French, Italian, Spanish, Portuguese,
# Dutch, Scandinavian languages, Polish, Chinese and Japanese.
_AGENT = (
    r"(?:gd|gad[a-z]*|[ck]ontras[a-z]*|[ck]ontr|km|mdc|m\.d\.c|ce|enhanced|inj|injection|injected|iniezione|inyeccion|injecao|"
    r"dotarem|magnevist|multihance|prohance|omniscan|clariscan|eovist)(?![a-z])"
)
# What may come between a negation and the agent.
_BETWEEN = r"[ _.,:/-]*(?:(?:i\.?v\.?|de|del|di|du|d|da|do|the|med[ij]o|meio|mezzo|produit|any|c/)[ _.'-]+)*"
_NOT = (
    r"(?:un|non?|not|without|w ?/? ?o|minus|ohne|o\.|kein[a-z]*|sans|pas|senza|sin|sem|s/|zonder|geen|utan|uden|uten|"
    r"ikke|inte|ingen|bez)"
)
_BEFORE = r"(?:pre|before|prior(?: to)?|vor|v\.|avant|prima|antes|voor|innan|fore|for|przed)"
_AFTER = r"(?:post|after|nach|apres|dopo|despues|apos|depois|efter|etter|po)"
# Without an agent beside them, "pre" and "post" mean it too, unless they speak of a treatment.
_TREATMENT = r"(?![ _-]*(?:op|surg|rt\b|radi|treat|trt|therap|chemo|biops|resec|ictal|angio))"
_WITH_AND_WITHOUT = re.compile(
    rf"(?<![a-z])w(?:ith)? ?/?(?: ?(?:and|und|\+|&|/) ?)?w(?:ith)?[ /]?o(?:ut)?(?![a-z])(?:{_BETWEEN}{_AGENT})?"
)
_WITHOUT_AGENT = re.compile(
    # the agent after a negation, and before one
    rf"(?<![a-z])(?:{_NOT}|{_BEFORE}){_BETWEEN}{_AGENT}|"
    rf"(?<![a-z]){_AGENT}[ _:]*(?:none|no|nein|free) *$|"
    # signs: (-C), "T1 -Gd", "T1 C-", s/c
    r"(?<=[ (])-(?:c|k|gd|gad|km)(?![a-z])|(?<![a-z])(?:c|gd|km)-(?![\w])|(?<![a-z])s ?/ ?c(?![a-z])|"
    # words of their own
    r"(?<![a-z])(?:plain|unenhanced|nativ[aeo]?|blanco|noncontrast|pre(?:gd|gad[a-z]*|con[a-z]*))(?![a-z])|"
    rf"(?<![a-z])pre(?![a-z]){_TREATMENT}|(?<![a-z])(?:{_NOT}|{_BEFORE}) *$|"
    # Chinese and Japanese: plain, "before" and "no" beside "contrast"
    r"平扫|平掃|単純|單純|[非無无未不] ?(?:造影|增强|增強|强化|強化)|"
    r"(?:造影剤?|增强|增強|强化|強化|gd|ce) ?(?:前|なし|無し|無|无)"
)
_WITH_AGENT = re.compile(
    rf"(?<![a-z]){_AGENT}|"
    rf"(?<![a-z])post(?:gd|gad[a-z]*|con[a-z]*)(?![a-z])|(?<![a-z])post(?![a-z]){_TREATMENT}|(?<![a-z]){_AFTER} *$|"
    r"(?<![a-z])t1w?(?:ce?|gd|gad|km|post|con)(?![a-z])|"
    r"\+ ?(?:c|k|gd|km)(?![a-z])|(?<![a-z])(?:t?1?c|gd|km) ?\+|t1w?[ _-]c(?![a-z])|(?<![a-z])c ?/ ?c(?![a-z])|"
    r"造影|增强|增強|强化|強化"
)


def _plain(text: str) -> str:
    """The text in small letters without accents."""
    letters = unicodedata.normalize("NFC", text.lower()).translate(str.maketrans("øłæ", "ola"))
    # Only Latin letters lose their marks. A Japanese sign would become another one.
    return "".join(
        unicodedata.normalize("NFD", letter)[0] if unicodedata.name(letter, "").startswith("LATIN") else letter
        for letter in letters
    )


def agent_told(text: str) -> bool | None:
    """Whether a description says that there is a contrast agent, or that there is none; None if it says neither.

    Example:
        >>> [agent_told(text) for text in ("T1 sans gado", "T1 vor KM", "T1 +C without FS", "POST GAD PRE-OP", "T1")]
        [False, False, True, True, None]
    """
    words = _WITH_AND_WITHOUT.sub(" ", _plain(text))
    rest = _WITHOUT_AGENT.sub(" ", words)
    without, with_agent = rest != words, bool(_WITH_AGENT.search(rest))
    return None if without == with_agent else with_agent


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
    return weighting, agent_told(text)


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
    """A series, the weighting or the sequence that it shows, and what tells so (``why``).

    ``agent`` says whether words or records tell of a contrast agent in a T1 image, or of none; None if they say
    nothing. ``contradicted`` is true if words say the opposite of a record.
    """

    series: Series
    sequence: str
    why: str
    agent: bool | None = None
    contradicted: bool = False

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

    ``several`` are the sequences for which there was more than one series. ``doubt`` says why it is not sure which T1
    series has a contrast agent, and ``candidates`` are all T1 series.
    """

    chosen: dict[str, Fit] = field(default_factory=dict)
    left_out: list[Series] = field(default_factory=list)
    several: list[str] = field(default_factory=list)
    doubt: str = ""
    candidates: list[Series] = field(default_factory=list)

    @property
    def scattered(self) -> list[tuple[Series, Series]]:
        """The chosen series of which another folder holds files, too, each with those files."""
        return [
            (fit.series, other)
            for fit in self.chosen.values()
            for other in self.left_out
            if other.first.series == fit.series.first.series
        ]

    @property
    def table(self) -> list[str]:
        """The lines of a table of the candidates."""
        rows = [("number", "time", "slices", "spacing in mm", "description")]
        for series in self.candidates:
            header = series.first
            number = "" if header.number is None else f"{header.number:.0f}"
            clock = ":".join((series.time[8:10], series.time[10:12], series.time[12:14])) if series.time else ""
            spacing = " x ".join(f"{mm:g}" for mm in (*header.spacing, header.thickness) if mm is not None)
            rows.append((number, clock, str(len(series.headers)), spacing, header.description or header.protocol))
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        return ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]

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
    return Fit(series, weighting, why, agent if weighting == "t1" else None) if weighting else None


def _with_records(fits: Sequence[Fit]) -> list[Fit]:
    """The T1 series of a study, with what ContrastBolusAgent says of them."""
    texts = [fit.series.first.agent.lower() for fit in fits]
    named = [bool(text) and text not in NO_AGENT for text in texts]
    # Some scanners record the agent for a whole examination, and others never.
    whole = all(named) and len(fits) > 1
    found = []
    for fit, text, has_agent in zip(fits, texts, named, strict=True):
        record = None if whole else True if has_agent else False if text or any(named) else None
        if fit.agent is not None:
            found.append(replace(fit, contradicted=record not in (None, fit.agent)))
        else:
            told = "" if record is None else f", {'an' if record else 'no'} agent is recorded"
            found.append(replace(fit, agent=record, why=f"{fit.why}{told}"))
    return found


def _agents(fits: Sequence[Fit]) -> tuple[list[Fit], str]:
    """The T1 series as t1 and t1ce, and why this is not sure, or an empty text.

    Words and records count alike. A series that says nothing is T1 if it was taken before a series with an agent, and
    T1 with an agent if it was taken after one.
    """
    with_agent = [fit for fit in fits if fit.agent]
    without = [fit for fit in fits if fit.agent is False]
    silent = [fit for fit in fits if fit.agent is None]
    if wrong := [fit for fit in fits if fit.contradicted]:
        agent = wrong[0].series.first.agent
        told = f"{wrong[0].series} is described as {'with' if wrong[0].agent else 'without'} contrast agent"
        return list(fits), f"{told}, but ContrastBolusAgent is '{agent}'"
    times = [fit.series.time for fit in with_agent if fit.series.time]
    given = min(times, default="")

    def later(fit: Fit) -> bool:
        return bool(given and fit.series.time > given)

    if late := [fit for fit in without if later(fit)]:
        return list(fits), f"{late[0].series}, without contrast agent, was taken after a series with it"
    if with_agent:
        first = [fit for fit in silent if not later(fit)]
        if without:
            # Without a time, a silent series may be either.
            first = [fit for fit in first if given and fit.series.time]
        after = [replace(fit, why=f"{fit.why}, taken after the agent") for fit in silent if later(fit)]
        if after and not (without or first):
            return list(fits), f"{after[0].series} was taken after a series with contrast agent, and no T1 before it"
    elif silent and len(fits) > 1:
        return list(fits), "nothing says which of these T1 series has contrast agent"
    else:
        first, after = silent, []
    plain = [replace(fit, sequence="t1") for fit in (*without, *first)]
    return plain + [replace(fit, sequence="t1ce") for fit in (*with_agent, *after)], ""


def _given(study: Sequence[Series], sequence: str, wanted: str) -> Fit:
    """The series that a user names for a sequence, by its number or its folder."""
    if wanted.isdecimal() and not os.path.exists(wanted):
        found = [series for series in study if series.first.number == int(wanted)]
    else:
        folder = os.path.realpath(wanted)
        found = [series for series in study if os.path.realpath(os.path.dirname(series.first.file)) == folder]
    if len(found) != 1:
        there = ", ".join(map(str, study))
        raise InputError(
            f"--{sequence} {wanted}: {len(found) or 'no'} series of this number or folder; name one of: {there}."
        )
    return Fit(found[0], sequence, f"by --{sequence}")


def choose(study: Sequence[Series], given: Mapping[str, str] | None = None) -> Choice:
    """Choose a series of a study for each sequence. Descriptions decide before times, and then ``RULES``.

    ``given`` are numbers or folders of series that a user names, by sequence. An InputError says that there is no such
    series.
    """
    named = {sequence: _given(study, sequence, wanted) for sequence, wanted in (given or {}).items()}
    theirs = [fit.series for fit in named.values()]
    fits = [fit for fit in map(_fit, study) if fit]
    weighted = [fit for fit in fits if fit.sequence == "t1"]
    t1, doubt = _agents(_with_records(weighted))
    if doubt and len(t1) > 1:
        # The study is refused, and not for another reason too.
        t1 = [t1[0], replace(t1[1], sequence="t1ce")]
    if named.keys() & {"t1", "t1ce"}:
        # What the user has not named is only taken if it says what it is, or is the only one left for T1.
        told, doubt = _with_records(weighted), ""
        silent = [fit for fit in told if fit.agent is None and fit.series not in theirs]
        first = silent if "t1ce" in named and all(fit.agent is not False for fit in told) else []
        t1 = [replace(fit, sequence="t1") for fit in told if fit.agent is False or fit in first]
        t1 += [replace(fit, sequence="t1ce") for fit in told if fit.agent]
    fits = [fit for fit in fits if fit.sequence != "t1"] + t1
    fits = [fit for fit in fits if fit.series not in theirs and fit.sequence not in named] + list(named.values())
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
    left_out = [series for series in study if series not in taken]
    return Choice(chosen, left_out, several, doubt, [fit.series for fit in weighted])
