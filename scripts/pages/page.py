# Copyright (c) the brats_mri_panet_segmentation authors
# SPDX-License-Identifier: Apache-2.0
"""The report of a run as one HTML file that loads nothing."""

import base64
import hashlib
import io
import json
import math
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from string import Template
from typing import Any

from scripts.brats import CHANNEL_ORDER, REGIONS, SEQUENCE_TITLES
from scripts.pages import plots
from scripts.pages.runs import EVALUATION, INFERENCE, TRAINING, Case, Run, cases_of, read_curves, read_run, read_summary
from scripts.pages.viewer import viewer_content
from scripts.pictures.captions import Captions, captions_of
from scripts.pictures.figure import DPI
from scripts.pictures.parts import SUB_REGIONS
from scripts.pictures.patient import Patient, read_patient
from scripts.pictures.preview import preview
from scripts.scores.expected_dice import in_words, needs_a_look
from scripts.scores.table import EXPECTED, VOLUMES, columns_of, score_of, scores_in, split_column
from scripts.scores.volume_table import TABLE_FILE
from scripts.scores.volumetry import MEASURED_REGIONS, largest_mm
from scripts.utils.errors import InputError
from scripts.utils.files import keep_earlier, read_json, save_text
from scripts.utils.run_json import CONFIG_FILE, without_secrets
from scripts.weights.record import counts
from scripts.workflow.output import DATALIST_FILE

REPORT_FILE = "report.html"
ASSETS = Path(__file__).parent / "assets"
NIIVUE = Path(__file__).parent / "niivue"
VIEWER_FILE = NIIVUE / "niivue.umd.js"  # Packages of the bundle leave it out.
# The volumes of a case take about 5 MB, and its picture 60 KB. Such a page opens quickly.
MOST_VIEWERS = 5
MOST_PICTURES = 100
MOST_LESIONS = 10
TITLES = {TRAINING: "Training", EVALUATION: "Evaluation", INFERENCE: "Segmentation"}
BUTTON = '<button type="button" class="open">Open the viewer</button>'
# Titles of the entries of run.json that are shown as facts, in this order.
FACTS = {
    "cases": "cases",
    "started": "started",
    "resumed": "went on",
    "dataset_dir": "folder of the cases",
    "model_file": "weights",
    "weights": "SHA-256 of the weights",
    "trained_on": "trained on",
    "recipe_changed": "settings changed on resuming",
    "thresholds": "thresholds",
    "accepted": "accepted doubts",
    "channel_order": "order of channels",
    "bundle_version": "version of the bundle",
    "versions": "versions",
    "command": "command line",
}


def save_report(run_dir: Path, output: Path | None = None) -> list[str]:
    """Write the report of the run in a folder, by default into the folder. An earlier one is kept under a dated name.

    Returns:
        Lines for the user: what was not found, and the file that was written.

    Raises:
        InputError: the folder holds no run, or ``output`` is a folder.
    """
    output = output or run_dir / REPORT_FILE
    if output.is_dir():
        raise InputError(f"{output}: a folder; give --output the name of an HTML file.")
    run = read_run(run_dir)
    page = make_report(run)
    kept = keep_earlier(output)
    save_text(page, output)
    return [*run.notes, *([f"kept the earlier file as {kept.name}"] if kept else []), str(output)]


def make_report(run: Run) -> str:
    """The page of a run, to whose ``notes`` sentences about what was not found are added.

    Raises:
        InputError: a file of the run cannot be read.
    """
    if run.kind == TRAINING:
        return _page(run, {"Learning curves": _curves(run), "Cases": _split(run)}, [])
    cases = cases_of(run)
    name, content = ("Scores", _scores(run, cases)) if run.kind == EVALUATION else ("Patients", _patients(run, cases))
    volumes: list[str] = []
    viewed = _with_viewer(run, cases)
    cards = "".join(_card(run, number, case, case in viewed, volumes) for number, case in enumerate(cases, 1))
    return _page(run, {name: content, "Cases": _case_order(run, len(cases)) + cards}, volumes)


def _with_viewer(run: Run, cases: Sequence[Case]) -> list[Case]:
    """The cases that get a viewer: those that need a look, and then the first ones."""

    def is_fine(case: Case) -> bool:
        return case.name not in run.warnings and not needs_a_look(case.record.get("expected_dice"))

    return sorted(cases[:MOST_PICTURES], key=is_fine)[:MOST_VIEWERS]


def _card(run: Run, number: int, case: Case, with_viewer: bool, volumes: list[str]) -> str:
    """A case with its scores or lesions and its picture. Its volumes for the viewer go to ``volumes``."""
    title = escape(case.name)
    if not math.isnan(case.mean_dice):
        title += f' <span class="dim">mean Dice {case.mean_dice:.3f}</span>'
    notes = [] if case.prediction else ["The run has saved no label map of it."]
    told = "".join(f'<p class="notice">{escape(one["text"])}</p>' for one in run.warnings.get(case.name, []))
    if run.kind == INFERENCE:
        expected = case.record.get("expected_dice")
        look = ' class="notice"' if needs_a_look(expected) else ""
        told = f"<p{look}>{escape(in_words(expected))}</p>{told}"
        if lacking := case.record.get("missing_sequences"):
            told += f'<p class="notice">Without {" and ".join(SEQUENCE_TITLES[name] for name in lacking)}.</p>'
    figure = ""
    if case.entry is not None and number <= MOST_PICTURES:
        try:
            order = run.record.get("channel_order") or CHANNEL_ORDER
            patient = read_patient(case.entry, case.prediction, order)
        except InputError as error:
            notes.append(f"It has no picture, since its images cannot be read. {escape(str(error))}")
        else:
            figure = _figure(patient, captions_of(case.record, run.record, case.name))
            if with_viewer and VIEWER_FILE.is_file():
                volumes.append(_json_element(f"case-{number}-volumes", viewer_content(patient)))
                notes.append(BUTTON)
    table = _lesions(case) if run.kind == INFERENCE else _case_table(case)
    return (
        f'<article class="case" id="case-{number}"><h3>{number}. {title}</h3>'
        f"{told}{figure}{table}<p>{' '.join(notes)}</p></article>\n"
    )


def _figure(patient: Patient, captions: Captions) -> str:
    drawn = io.BytesIO()
    preview(patient, captions).savefig(drawn, dpi=DPI, format="webp", pil_kwargs={"quality": 80})
    picture = base64.b64encode(drawn.getvalue()).decode("ascii")
    return f'<figure><img src="data:image/webp;base64,{picture}" alt="Slices of {escape(patient.name)}"></figure>'


def _lesions(case: Case) -> str:
    """A row for each lesion, the largest first: volumes and diameters."""
    lesions = case.record.get("lesions", [])
    header = ["", *(f"{region} (ml)" for region in REGIONS)]
    header += [f"{region}, {title}" for region in MEASURED_REGIONS for title in ("largest (mm)", "axial (mm)")]
    rows = []
    for number, lesion in enumerate(lesions[:MOST_LESIONS], 1):
        row = [f"lesion {number}", *(f"{lesion['volume_ml'][region]:.1f}" for region in REGIONS)]
        for region in MEASURED_REGIONS:
            row += _diameters(lesion["diameters"][region])
        rows.append(row)
    more = f"<p>{len(lesions) - MOST_LESIONS} smaller lesions.</p>" if len(lesions) > MOST_LESIONS else ""
    return (_table(header, rows) if rows else "") + more


def _diameters(found: Mapping[str, float] | None) -> list[str]:
    """The largest diameter, and the axial ones."""
    if found is None:
        return ["", ""]
    return [f"{found['largest_mm']:.0f}", f"{found['axial_mm']:.0f} x {found['perpendicular_mm']:.0f}"]


def _json_element(name: str, content: Any) -> str:
    # A text in it must not end the element.
    text = json.dumps(content).replace("<", "\\u003c")
    return f'<script type="application/json" id="{name}">{text}</script>\n'


def _case_table(case: Case) -> str:
    columns = list(case.scores)
    names = [*scores_in(columns), *(name for name in (*VOLUMES, *EXPECTED) if f"{name}_{REGIONS[0]}" in columns)]
    rows = [[score_of(name).heading, *_texts(case, [name])] for name in names]
    return _table(["", *REGIONS], rows) if rows else ""


def _texts(case: Case, names: Sequence[str]) -> list[str]:
    return [_text(column, case.scores[column]) for column in columns_of(names)]


def _text(column: str, value: float) -> str:
    return score_of(split_column(column)[0]).text(value)


def _heading(column: str) -> str:
    name, region = split_column(column)
    return f"{score_of(name).heading}, {region}"


def _table(header: Sequence[str], rows: Sequence[Sequence[str]], links: Sequence[str] = ()) -> str:
    """A table of texts. The first text of a row is its title, which leads to the row's link."""
    head = "".join(f'<th scope="col">{escape(text)}</th>' for text in header)
    lines = []
    for number, (title, *texts) in enumerate(rows):
        shown = f'<a href="{links[number]}">{escape(title)}</a>' if links else escape(title)
        cells = "".join(f"<td>{escape(text)}</td>" for text in texts)
        lines.append(f'<tr><th scope="row">{shown}</th>{cells}</tr>')
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{"".join(lines)}</tbody></table></div>'


def _plots(drawn: Sequence[str]) -> str:
    return f'<div class="plots">{"".join(drawn)}</div>'


def _curves(run: Run) -> str:
    curves = read_curves(run)
    drawn = []
    if any(tag.startswith("val_") for tag in curves):
        drawn.append(plots.validation_curves(curves))
    if any(tag.startswith("train/loss") for tag in curves):
        drawn.append(plots.loss_curves(curves))
    if "train/learning_rate" in curves:
        drawn.append(plots.rate_curve(curves))
    best = ""
    if "val_mean_dice" in curves:
        steps, values = curves["val_mean_dice"]
        at = max(range(len(values)), key=values.__getitem__)
        best = f"<p>The best validation has a mean Dice of {values[at]:.3f}, in epoch {steps[at]}.</p>"
    return best + _plots(drawn) if drawn else "<p>There are no curves.</p>"


def _split(run: Run) -> str:
    lists = read_json(run.folder / DATALIST_FILE)
    parts = []
    for name in ("training", "validation"):
        if entries := lists.get(name):
            names = ", ".join(escape(str(entry.get("case"))) for entry in entries)
            parts.append(_details(f"{len(entries)} for {name}", f"<p>{names}</p>"))
    return "".join(parts) or "<p>The folder holds no list of cases.</p>"


def _scores(run: Run, cases: Sequence[Case]) -> str:
    if not cases:
        return "<p>There are no scores.</p>"
    header, summary = read_summary(run)
    columns = header[1:]
    rows = [
        [_heading(column), *(_text(column, float(row[at])) for row in summary)] for at, column in enumerate(columns, 1)
    ]
    table = _table(["", *(row[0] for row in summary)], rows)
    names = [name for name in scores_in(list(cases[0].scores)) if not score_of(name).minor]
    drawn = [plots.distributions(cases, name) for name in names]
    if set(columns_of(VOLUMES)) <= cases[0].scores.keys():
        drawn.append(plots.volumes_compared(cases))
    header = ["case", "mean Dice", *map(_heading, columns_of(names)), "warnings"]
    rows = [[case.name, f"{case.mean_dice:.3f}", *_texts(case, names), _kinds(run, case)] for case in cases]
    links = [f"#case-{number}" for number in range(1, len(cases) + 1)]
    every = _details(f"All {len(cases)} cases, the worst first", _table(header, rows, links), " open")
    return table + _plots(drawn) + every


def _kinds(run: Run, case: Case) -> str:
    return ", ".join(dict.fromkeys(warning["kind"] for warning in run.warnings.get(case.name, [])))


def _patients(run: Run, cases: Sequence[Case]) -> str:
    done = [case for case in cases if case.scores]
    if not done:
        return "<p>There are no label maps.</p>"
    known = any(case.record.get("expected_dice") for case in done)
    expected = [f"expected Dice, {region}" for region in REGIONS if known]
    diameters = [f"{region}, largest (mm)" for region in MEASURED_REGIONS]
    header = ["case", *expected, *map(_heading, columns_of(["volume"])), "lesions", *diameters, "missing", "warnings"]
    rows = []
    for case in done:
        told, lesions = case.record.get("expected_dice"), case.record["lesions"]
        row = [case.name, *(f"{told[region]['dice']:.2f}" if told else "" for region in REGIONS if known)]
        row += [*_texts(case, ["volume"]), str(len(lesions))]
        for region in MEASURED_REGIONS:
            largest = largest_mm(lesions, region)
            row.append("" if largest is None else f"{largest:.0f}")
        rows.append([*row, ", ".join(case.record["missing_sequences"]), _kinds(run, case)])
    links = [f"#case-{number}" for number, case in enumerate(cases, 1) if case.scores]
    listed = (
        f'<p>The same in <a href="{TABLE_FILE}">{TABLE_FILE}</a>.</p>' if (run.folder / TABLE_FILE).is_file() else ""
    )
    drawn = _plots([plots.distributions(done, "volume")]) if len(done) > 1 else ""
    return _table(header, rows, links) + listed + drawn


def _details(title: str, content: str, state: str = "") -> str:
    return f"<details{state}><summary>{title}</summary>{content}</details>"


def _case_order(run: Run, count: int) -> str:
    order = "mean Dice" if run.kind == EVALUATION else "expected Dice"
    told = f"The cases are ordered from the worst {order} to the best"
    told += "." if run.kind == EVALUATION else "; where it is unknown, those with warnings come first."
    if count > MOST_PICTURES:
        told += f" The first {MOST_PICTURES} have a picture."
    if not VIEWER_FILE.is_file():
        told += " This package of the bundle has no viewer."
    elif count > MOST_VIEWERS:
        told += f" Viewers ({MOST_VIEWERS}): cases that need a look, and then the first."
    return f'<p>{told}</p>\n<ul class="legend">{_legend()}</ul>\n'


def _overview(run: Run) -> str:
    record = {**run.record, "trained_on": counts(run.record.get("trained_on", {}))}
    facts = {title: _words(record[key]) for key, title in FACTS.items() if record.get(key) not in (None, [], {})}
    parts = [_list(facts)]
    if run.kind == TRAINING and run.warnings:
        texts = {case: " ".join(warning["text"] for warning in found) for case, found in run.warnings.items()}
        parts.append(f"<h3>Warnings</h3>{_list(texts)}")
    parts += [f'<p class="dim">{escape(note)}</p>' for note in run.notes]
    return "".join(parts)


def _list(facts: Mapping[str, str]) -> str:
    lines = (f"<dt>{escape(title)}</dt><dd>{escape(without_secrets(text))}</dd>" for title, text in facts.items())
    return f"<dl>{''.join(lines)}</dl>"


def _words(value: Any) -> str:
    """A value of a record in words.

    Example:
        >>> _words({"patients": 0, "phantoms": 12, "origin": None, "weights": ["a", True]})
        'patients 0, phantoms 12, origin none, weights a, yes'
    """
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_words(item)}" for key, item in value.items())
    if isinstance(value, list):
        return ", ".join(map(_words, value))
    if value is None or isinstance(value, bool):
        return {None: "none", True: "yes", False: "no"}[value]
    return str(value)


def _settings(run: Run) -> str:
    if not run.config:
        return "<p>The folder holds no configuration.</p>"
    text = escape(without_secrets(json.dumps(run.config, indent=2)))
    return _details(f"The configuration that was run ({CONFIG_FILE})", f"<pre>{text}</pre>")


def _licenses() -> str:
    texts = "\n\n".join((NIIVUE / name).read_text(encoding="utf-8") for name in ("LICENSE", "THIRD_PARTY.txt"))
    return _details("The viewer is NiiVue 0.69.0 (BSD-2-Clause)", f"<pre>{escape(texts)}</pre>")


def _page(run: Run, parts: Mapping[str, str], volumes: Sequence[str]) -> str:
    """The page: ``parts`` are its middle sections by title, and ``volumes`` the elements for the viewers."""
    failed = {"Failed cases": _list(run.failed)} if run.failed else {}
    sections = {**failed, **parts, "Run": _overview(run), "Settings": _settings(run)}
    scripts: list[str] = []
    viewer = ""
    if volumes:
        sections["Licenses"] = _licenses()
        scripts = [VIEWER_FILE.read_text("utf-8"), (ASSETS / "viewer.js").read_text("utf-8")]
        settings = {"titles": SEQUENCE_TITLES, "colors": [region.color for region in SUB_REGIONS]}
        viewer = _asset("viewer.html", legend=_legend()) + _json_element("viewer-settings", settings)
        viewer += "".join(volumes) + "".join(f"<script>{script}</script>\n" for script in scripts)
    digests = [hashlib.sha256(script.encode("utf-8")).digest() for script in scripts]
    allowed = " ".join(f"'sha256-{base64.b64encode(digest).decode('ascii')}'" for digest in digests) or "'none'"
    ids = {title: title.lower().replace(" ", "-") for title in sections}
    place = run.folder.resolve()
    return _asset(
        "template.html",
        policy=f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; img-src data:; "
        "base-uri 'none'; form-action 'none'",
        title=escape(f"{TITLES[run.kind]} {place.parent.name}/{place.name}"),
        subtitle=escape(str(place)),
        style=(ASSETS / "style.css").read_text("utf-8"),
        notices="".join(f'<p class="notice">{text}</p>' for text in _notices(run)),
        navigation="".join(f'<a href="#{ids[title]}">{title}</a>' for title in sections),
        sections="".join(
            f'<section id="{ids[title]}"><h2>{title}</h2>{content}</section>\n' for title, content in sections.items()
        ),
        viewer=viewer,
    )


def _notices(run: Run) -> list[str]:
    told = []
    if run.record.get("phantoms"):
        told.append("Synthetic phantoms are among the cases of this run.")
    if run.record.get("phantom_weights"):
        told.append("The weights were trained on phantoms alone. Do not rely on their results for patients.")
    if run.failed:
        told.append(f"{len(run.failed)} case{'s' * (len(run.failed) != 1)} failed.")
    if warned := len(run.warnings):
        told.append(f"There are warnings about {warned} case{'s' * (warned != 1)}.")
    return [*told, "This page is for research. It is not for diagnosis."]


def _legend() -> str:
    return "".join(
        f'<li><span class="swatch" style="background:{part.color}"></span>{part.name}</li>' for part in SUB_REGIONS
    )


def _asset(name: str, **texts: str) -> str:
    return Template((ASSETS / name).read_text(encoding="utf-8")).substitute(texts)
