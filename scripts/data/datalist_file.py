# Copyright (c) the brats_mri_panet_segmentation authors
# SPDX-License-Identifier: Apache-2.0
"""Files of datalists: JSON of the form that ``write_datalist`` makes, or a CSV table (``scripts.data.tables``)."""

import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from scripts.brats import (
    DECATHLON,
    ET_LABELS,
    LABEL_RELEASES,
    SEQUENCES,
    Release,
    in_network_order,
    released_file,
    sequence_named,
    sequences_told,
)
from scripts.data.cases import DECATHLON_IMAGES, NO_FILE, image_files, image_name, resolve_image
from scripts.data.dicom import series_file
from scripts.data.tables import DESCRIPTIONS, LISTS, read_table
from scripts.utils.errors import InputError
from scripts.utils.files import save_json

# Bytes of a case's name. A file's name has at most 255, and a result's name is longer than its case's.
LONGEST_NAME = 200
# Key of the fold that an entry belongs to, in a split by folds. A later run knows by it which fold a folder has.
HELD_OUT_IN = "held_out_in"


def read_datalist(
    path: str | Path, dataset_dir: str | Path, with_labels: bool = True
) -> dict[str, list[dict[str, Any]]]:
    """Read a datalist file, in which relative paths are relative to ``dataset_dir``.

    The lists are ``training``, ``validation`` and ``testing`` (or ``test``, as in the Decathlon). At least one of them
    is there. An entry of ``testing`` may be the path of an image alone. ``sequences`` at the top of the file says which
    sequence each of an entry's four images is. Without it the names of the images must say so. The result has the four
    images in the network's order. Without ``with_labels``, entries need no label map and hold case and image only.

    Raises:
        InputError: the file cannot be read, or something in it is missing or contradictory. The message names the file.
    """
    path = Path(path)
    content = read_table(path) if path.suffix.lower() == ".csv" else _json_content(path)
    sequences = _stated_sequences(content, path)
    lists: dict[str, list[dict[str, Any]]] = {}
    for key in (*LISTS, "test"):
        if key in content:
            if not isinstance(content[key], list):
                raise InputError(f"{path}: '{key}' is no list; a datalist holds the lists {', '.join(LISTS)}.")
            name = "testing" if key == "test" else key
            labeled = with_labels and name != "testing"
            lists[name] = [_item(entry, path, dataset_dir, sequences, labeled) for entry in content[key]]
    if not lists:
        raise InputError(f"{path}: no list 'training'; a datalist holds the lists {', '.join(LISTS)}.")
    return lists


def _json_content(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); give an existing --datalist_file.") from error
    except ValueError as error:
        raise InputError(f"{path}: not JSON ({error}); a datalist holds the lists {', '.join(LISTS)}.") from error
    return content if isinstance(content, dict) else {}


def _stated_sequences(content: Mapping[str, Any], path: Path) -> list[str] | None:
    if (stated := content.get("sequences")) is None:
        return None
    known = [str(sequence_named(str(name))) for name in stated] if isinstance(stated, list) else []
    if sorted(known) != sorted(SEQUENCES):
        raise InputError(
            f"{path}: 'sequences' is {json.dumps(stated)}; list each of {', '.join(SEQUENCES)} once, "
            "in the order of every entry's four images."
        )
    return known


def _item(
    entry: Any, path: Path, dataset_dir: str | Path, sequences: list[str] | None, labeled: bool
) -> dict[str, Any]:
    def refusal(fault: str) -> InputError:
        return InputError(f"{path}: {fault}: {entry}")

    if isinstance(entry, str) and not labeled:
        entry = {"image": entry}
    if not isinstance(entry, dict) or not isinstance(entry.get("image"), list | str):
        raise refusal("an entry lacks 'image' (four files, or one)")
    if labeled and not isinstance(entry.get("label"), str):
        raise refusal("an entry lacks 'label' (file)")
    if isinstance(entry["image"], str):
        image: str | list[str] = resolve_image(str(Path(dataset_dir) / entry["image"]))
    else:
        files = [NO_FILE if file is None else file for file in entry["image"]]
        if len(files) != len(SEQUENCES) or not all(isinstance(file, str) for file in files):
            raise refusal(f"'image' must list four files, {', '.join(SEQUENCES)}")
        if not image_files(files):
            raise refusal("'image' has no file")
        ordered = _in_network_order(files, path, sequences)
        image = [file if file == NO_FILE else series_file(Path(dataset_dir) / file) for file in ordered]
    name = entry.get("case", image_name(image))
    if not isinstance(name, str) or not is_plain_name(name):
        raise refusal(f"'case' must be a plain name of at most {LONGEST_NAME} bytes")
    item = {"case": name, "image": image}
    if labeled:
        item |= {"label": str(Path(dataset_dir) / entry["label"]), **_description(entry, image, refusal)}
    return item


def _in_network_order(files: list[str], path: Path, sequences: list[str] | None) -> list[str]:
    if sequences is None and (sequences := sequences_told(files)) is None:
        raise InputError(
            f"{path}: neither 'sequences' nor the names of these files say which sequence each file is; "
            f'add "sequences": {json.dumps(list(SEQUENCES))}, in the order of the files, to {path.name}: {files}'
        )
    for file, sequence, name in misnamed(files, sequences):
        raise InputError(
            f"{path}: 'sequences' says that {file} is {sequence}, but its name says {name}; "
            "correct 'sequences' or the name."
        )
    return in_network_order(files, sequences)


def misnamed(image: Sequence[str], sequences: Sequence[str]) -> list[tuple[str, str, str | None]]:
    """The files of ``image`` whose names say another sequence: file, its sequence, and the sequence of its name.

    Example:
        >>> misnamed(["p1_t2.nii", "b.nii", "missing", "d.nii"], ["t1", "t2", "t1ce", "flair"])
        [('p1_t2.nii', 't1', 't2')]
    """
    released = [released_file(file) for file in image]
    named: Sequence[str | None] = sequences_told(image) or [found.sequence if found else None for found in released]
    return [row for row in zip(image, sequences, named, strict=True) if row[2] not in (None, row[1])]


def _description(
    entry: Mapping[str, Any], image: str | list[str], refusal: Callable[[str], InputError]
) -> dict[str, Any]:
    """What the values of an entry's label map mean, and what describes the patient."""
    found: dict[str, Any] = {}
    release = _release_of(entry, image)
    # A default value of edema would be risky, because the Decathlon swaps the labels of core and edema.
    for key, possible, meaning in (
        ("et_label", ET_LABELS, "3 or 4"),
        ("edema_label", (1, 2), "2 as in BraTS, 1 as in the Decathlon; core has the other value"),
    ):
        found[key] = getattr(release, key, None) if entry.get(key) is None else entry[key]
        if found[key] is None:
            raise refusal(f"an entry has no '{key}' ({meaning}) and its files' names tell no release")
        if found[key] not in possible:
            raise refusal(f"'{key}' is {possible[0]} or {possible[1]}")
    if (release_year := entry.get("label_release", 0)) not in (0, *LABEL_RELEASES):
        raise refusal(f"'label_release' is {' or '.join(map(str, LABEL_RELEASES))}")
    found["label_release"] = release_year
    for key in (*DESCRIPTIONS, HELD_OUT_IN):
        if (value := entry.get(key)) is not None:
            if not isinstance(value, str | int):
                raise refusal(f"'{key}' is a text or a number")
            found[key] = value
    return found


def _release_of(entry: Mapping[str, Any], image: str | list[str]) -> Release | None:
    """The release whose label values apply to an entry without its own, or None if the file names do not tell."""
    if found := released_file(image_files(image)[0]):
        return found.release
    if isinstance(image, str) and Path(image).parent.name in DECATHLON_IMAGES:
        # Another value of ET shows that the label maps were converted, so the value of edema is unknown.
        return DECATHLON if entry.get("et_label") in (None, DECATHLON.et_label) else None
    return None


def is_plain_name(name: str) -> bool:
    """Whether a case may have this name. Results are named after it, and a path would let them leave their folder."""
    plain = name not in ("", ".", "..") and name == Path(name).name and "\0" not in name
    return plain and len(os.fsencode(name)) <= LONGEST_NAME


def write_datalist(
    datalist: Mapping[str, Sequence[Mapping[str, Any]]], dataset_dir: str | Path, path: str | Path
) -> None:
    """Write those of the lists that are named in ``LISTS``. Paths below ``dataset_dir`` become relative to it."""
    root = Path(dataset_dir).absolute()

    def relative(file: str | Sequence[str]) -> str | list[str]:
        if not isinstance(file, str):
            return [one if one == NO_FILE else str(relative(one)) for one in file]
        absolute = Path(file).absolute()
        return str(absolute.relative_to(root) if absolute.is_relative_to(root) else absolute)

    lists = {
        name: [{**item, **{key: relative(item[key]) for key in ("image", "label") if key in item}} for item in items]
        for name, items in datalist.items()
        if name in LISTS
    }
    save_json({"sequences": list(SEQUENCES), **lists}, path)
