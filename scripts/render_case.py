# Copyright (c) the brats_mri_panet_segmentation authors
# SPDX-License-Identifier: Apache-2.0
"""Draw one patient with the reference and a prediction: `python -m scripts.render_case CASE_DIR PICTURE.png`.

If CASE_DIR holds several patients, the picture has a row for each of them, with the reference.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from scripts import command
from scripts.data.cases import find_cases
from scripts.errors import InputError
from scripts.pictures import draw_case, draw_cases
from scripts.run_record import read_record

MOST_CASES = 12  # in one picture


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status."""
    parser = command.parser("render_case", __doc__)
    parser.add_argument("case_dir", type=Path, help="folder of one case, or of up to 12 cases")
    parser.add_argument("picture", type=Path, help="PNG file to write")
    parser.add_argument("--prediction", type=Path, help="label map that inference or evaluation wrote")
    args = parser.parse_args(argv)
    cases = [case for case in find_cases(args.case_dir) if not case.missing]
    if not 1 <= len(cases) <= MOST_CASES or any(case.file is not None for case in cases):
        raise InputError(
            f"{args.case_dir}: holds {len(cases)} complete cases; give a folder of 1 to {MOST_CASES} cases with a file "
            "per sequence."
        )
    if len(cases) > 1:
        if args.prediction is not None:
            raise InputError(f"--prediction: {args.case_dir} holds {len(cases)} cases; give the folder of one case.")
        draw_cases(cases, args.picture)
        print(args.picture)
        return 0
    note = ""
    if args.prediction is not None:
        record = read_record(args.prediction.parent)
        note = "weights trained on phantoms" if record.get("phantom_weights") else ""
    draw_case(cases[0], args.picture, args.prediction, note)
    print(args.picture)
    return 0


if __name__ == "__main__":
    command.run(main)
