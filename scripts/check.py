# Copyright (c) the brats_mri_panet_segmentation authors
# SPDX-License-Identifier: Apache-2.0
"""Check data before anything runs, and name all that is wrong with them.

The status is 1 if there is an error, which would stop a workflow. Warnings leave it at 0, although ``panet segment``
refuses some of them, as the end of the list says. docs/reference.md explains every kind of finding.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict

from rich.console import Console
from rich.markup import escape
from rich.table import Table
from scripts import command
from scripts.brats import ET_LABELS, LABEL_RELEASES
from scripts.data.findings import ACCEPTABLE, Finding
from scripts.utils.errors import InputError, printable
from scripts.utils.files import save_json

EXAMPLES = ("brats", "brats --datalist-file datalist.json --json findings.json")


def table_of(findings: Sequence[Finding]) -> Table:
    """The findings as a table, errors first."""
    table = Table(show_lines=True)
    for column in ("", "kind", "case", "what is wrong, and what to do"):
        table.add_column(column, overflow="fold")
    for finding in sorted(findings, key=lambda finding: not finding.is_error):
        color = "red" if finding.is_error else "yellow"
        case, message = (escape(printable(text)) for text in (finding.case, finding.message))
        table.add_row(f"[{color}]{finding.severity}[/]", finding.kind, case, message)
    return table


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status."""
    parser = command.parser("check", __doc__, EXAMPLES)
    given = parser.add_argument_group("input")
    given.add_argument(
        "data", type=command.path, metavar="DATASET_OR_CASE", help="folder of cases, of one case, or 4-D file"
    )
    given.add_argument(
        "--datalist-file",
        type=command.path,
        help="check the cases of this list; its paths are relative to DATASET_OR_CASE",
    )
    given.add_argument("--et-label", type=int, choices=ET_LABELS, help="value of ET (default: by each case's release)")
    releases = "release of label maps with 3 and 4: core and ET (2015), or ET and resection cavity (2024)"
    given.add_argument("--label-release", type=int, choices=LABEL_RELEASES, help=releases)
    command.add_channel_order(given)
    given.add_argument(
        "--may-lack", type=int, default=0, help="sequences that a case may lack, by the weights' record (default: 0)"
    )
    output = parser.add_argument_group("output")
    output.add_argument("--json", type=command.path, help="also write the findings to this new file")
    args = parser.parse_args(argv)

    from scripts.data.datalist import every_item, set_et_label
    from scripts.data.datalist_file import read_datalist
    from scripts.data.inspection import PREPARATION_PAGE, examine

    if args.json and args.json.exists():
        raise InputError(f"{args.json}: exists already; move it away or choose another name.")
    if args.datalist_file:
        items = [item for items in read_datalist(args.datalist_file, args.data).values() for item in items]
        set_et_label(items, args.et_label, args.label_release)
    else:
        items = every_item(args.data, args.et_label, args.label_release)
    findings, _ = examine(items, args.data, "cases", args.datalist_file, args.channel_order, args.may_lack)
    errors = [finding for finding in findings if finding.is_error]
    console = Console()
    if findings:
        console.print(table_of(findings))
        for kind, count in Counter(finding.kind for finding in findings).most_common():
            console.print(f"{count:6d}  {kind}", highlight=False)
    kinds = {finding.kind for finding in findings}
    if refused := ", ".join(kind for kind in ACCEPTABLE if kind in kinds):
        advice = f"panet segment refuses without --accept: {refused}; see {PREPARATION_PAGE}."
        console.print(advice, highlight=False)
    numbers = {"error": len(errors), "warning": len(findings) - len(errors)}
    told = [f"{count} {word}{'s' * (count != 1)}" for word, count in {"case": len(items), **numbers}.items()]
    console.print(
        f"{told[0]}: {', '.join(told[1:])}" + ("; docs/reference.md explains each kind." if findings else "."),
        highlight=False,
    )
    if args.json:
        content = [{"severity": finding.severity, **asdict(finding)} for finding in findings]
        save_json({"data": args.data, "cases": len(items), "errors": len(errors), "findings": content}, args.json)
    return 1 if errors else 0


if __name__ == "__main__":
    command.run(main)
