# Copyright (c) the brats_mri_panet_segmentation authors
# SPDX-License-Identifier: Apache-2.0
"""Calibrate the expected Dice of results on evaluated patients.

The evaluations are of patients that the weights of each had not seen, such as the folds of a cross-validation. The
numbers go into the record of the weights, and results of these weights then say what Dice to expect. A calibration of
the same kind of run (flips, windows) replaces an earlier one.
"""

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table
from scripts import command
from scripts.utils.errors import InputError

EXAMPLES = (
    "runs/train/evaluation_validation --model runs/train/model.pt",
    "runs/fold_*/evaluation_validation --model models/model.pt --plot reliability.png",
)
# An evaluation alone is divided into so many parts to judge it.
PARTS = 5


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status."""
    parser = command.parser("calibrate_weights", __doc__, EXAMPLES)
    given = parser.add_argument_group("input")
    given.add_argument(
        "evaluations",
        type=command.path,
        metavar="EVALUATION",
        nargs="+",
        help="folders of evaluations; the patients of each are expected by the others to judge the calibration",
    )
    output = parser.add_argument_group("output")
    output.add_argument("--model", type=command.path, required=True, help="weights whose record gets the numbers")
    output.add_argument("--plot", type=command.path, help="PNG file to write: expected and real Dice")
    args = parser.parse_args(argv)

    from scripts.brats import REGIONS
    from scripts.pictures.figure import save_figure
    from scripts.pictures.reliability import draw_reliability
    from scripts.scores.expected_dice import calibrate, conditions, judge, read_cases
    from scripts.utils.files import save_json
    from scripts.weights.record import read_weights_record, record_file

    record = read_weights_record(args.model, quiet=True) if args.model.is_file() else None
    if record is None:
        raise InputError(f"{args.model}: no such weights, or no record beside them; give weights of a training.")
    command.check_output("--plot", args.plot, picture=True)
    folds = [read_cases(evaluation) for evaluation in args.evaluations]
    cases = [case for fold in folds for case in fold]
    names = [case.name for case in cases]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise InputError(f"{twice}: in two evaluations; each patient counts once.")
    numbers = calibrate(cases)
    judged = judge(folds if len(folds) > 1 else [cases[start::PARTS] for start in range(PARTS)])

    table = Table(title=f"Expected Dice of {len(cases)} cases by calibrations that had not seen them")
    for title in ("region", "Spearman's rho", "real Dice in the interval of 80 %", "reliable from"):
        table.add_column(title, justify="right")
    for region in REGIONS:
        found = judged[region]
        bound = numbers["regions"][region]["reliable_from"]
        table.add_row(region, f"{found.rho:.2f}", f"{found.inside:.0%}", f"{bound:.2f}")
    Console().print(table)
    kind = conditions(cases[0].signs)
    others = [one for one in record.get("expected_dice", []) if any(one[name] != kind[name] for name in kind)]
    save_json({**record, "expected_dice": [*others, numbers]}, record_file(args.model))
    print(record_file(args.model))
    if args.plot is not None:
        command.keep(args.plot)
        real = {region: list(judged[region].real.values()) for region in REGIONS}
        expected = {region: list(judged[region].expected.values()) for region in REGIONS}
        save_figure(draw_reliability(real, expected), args.plot)
        print(args.plot)
    return 0


if __name__ == "__main__":
    command.run(main)
