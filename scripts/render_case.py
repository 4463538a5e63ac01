# Copyright (c) the brats_mri_panet_segmentation authors
# SPDX-License-Identifier: Apache-2.0
"""Draw one patient with the reference and a prediction.

If CASE_DIR holds several patients, the picture has a row for each of them, with the reference.
"""

from collections.abc import Sequence

from scripts import command
from scripts.utils.errors import InputError

EXAMPLES = ("ann picture.png --prediction out/ann/ann.nii.gz --surface picture_3d.png", "brats picture.png")
MOST_CASES = 12  # in one picture


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status."""
    parser = command.parser("render_case", __doc__, EXAMPLES)
    given = parser.add_argument_group("input")
    given.add_argument(
        "case_dir",
        type=command.path,
        metavar="CASE_DIR",
        help=f"folder of one case, or of up to {MOST_CASES} cases, or a 4-D file",
    )
    given.add_argument("--prediction", type=command.path, help="label map that inference or evaluation wrote")
    command.add_channel_order(given)
    output = parser.add_argument_group("output")
    output.add_argument("picture", type=command.path, metavar="PICTURE", help="PNG file to write")
    output.add_argument(
        "--surface", type=command.path, help="also draw brain and tumor from outside, into this PNG file"
    )
    args = parser.parse_args(argv)
    command.check_output("PICTURE", args.picture, picture=True)
    command.check_output("--surface", args.surface, picture=True)

    from scripts.data.datalist import every_item
    from scripts.pictures.captions import NO_CAPTIONS, captions_beside
    from scripts.pictures.figure import save_figure
    from scripts.pictures.patient import read_patient
    from scripts.pictures.preview import overview, preview
    from scripts.pictures.surface import surface_view

    items = every_item(args.case_dir)
    if not 1 <= len(items) <= MOST_CASES:
        raise InputError(f"{args.case_dir}: holds {len(items)} cases; give a folder of 1 to {MOST_CASES} cases.")
    if len(items) > 1:
        for option in ("prediction", "surface"):
            if getattr(args, option) is not None:
                raise InputError(f"--{option}: {args.case_dir} holds {len(items)} cases; give the folder of one case.")
        figure = overview(items, args.channel_order)
        command.keep(args.picture)
        save_figure(figure, args.picture)
        print(args.picture)
        return 0
    captions = NO_CAPTIONS if args.prediction is None else captions_beside(args.prediction)
    patient = read_patient(items[0], args.prediction, args.channel_order)
    for draw, path in ((preview, args.picture), (surface_view, args.surface)):
        if path is not None:
            figure = draw(patient, captions)
            command.keep(path)
            save_figure(figure, path)
            print(path)
    return 0


if __name__ == "__main__":
    command.run(main)
