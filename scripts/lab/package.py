# Copyright (c) the brats_mri_panet_segmentation authors
# SPDX-License-Identifier: Apache-2.0
"""Pack the bundle for others: a folder and a zip file of it, as the model zoo and ``monai.bundle.download`` take them.

    python -m scripts.lab.package dist

makes ``dist/<bundle>/``, which ``monai.bundle push_to_hf_hub --bundle_dir dist --name <bundle>`` uploads, and
``dist/<bundle>_v<version>.zip`` with that one folder in it, beside its SHA-256. Name and version are those of
configs/metadata.json. The same files give the same zip, byte by byte.

    python -m scripts.lab.package dist --starter

makes a package of another name, whose weights are the starter weights and whose train.json and inference.json hold the
settings of configs/starter.yaml.
"""

from __future__ import annotations

import json
import shutil
import zipfile
from collections.abc import Sequence
from pathlib import Path

import yaml
from monai.bundle import ConfigParser
from scripts import command
from scripts.utils.errors import InputError
from scripts.utils.files import file_checksum, replacing
from scripts.weights.record import record_file

# What belongs to a bundle; the repository's tests and tools do not.
CONTENT = (
    "LICENSE",
    "configs/*.json",
    "configs/*.yaml",
    "configs/*.conf",
    "docs/**/*",
    "scripts/**/*.py",
    # Template, style and viewer of reports.
    "scripts/pages/assets/*",
    "scripts/pages/niivue/*",
)
WEIGHTS = ("models/model.pt", "models/model.ts")
# Beside the weights: what they need, and what they were trained on.
RECORD = str(record_file(WEIGHTS[0]))
STARTER = "models/starter/*"
STARTER_OVERLAY = "configs/starter.yaml"
# The starter's overlay names its file of weights and a folder for results, which a package of its own needs no more.
NOT_IN_STARTER_PACKAGE = ("model_file", "output_dir")
# Of every file in the zip, so that its bytes depend on nothing else; the earliest that the format knows.
TIMESTAMP = (1980, 1, 1, 0, 0, 0)


def bundle_name_and_version(bundle_root: Path) -> tuple[str, str]:
    """Folder name and version of the bundle, from its metadata's ``name`` and ``version``.

    Raises:
        InputError: there is no metadata.json, or the version is not in its changelog.
    """
    path = bundle_root / "configs" / "metadata.json"
    if not path.is_file():
        raise InputError(f"{path}: no such file; give --bundle_root.")
    try:
        metadata = json.loads(path.read_text(encoding="utf-8"))
        name, version = metadata["name"].lower().replace(" ", "_"), metadata["version"]
        if version not in metadata["changelog"]:
            raise InputError(f"{path}: version {version} is not in the changelog; say there what changed.")
    except json.JSONDecodeError as error:
        raise InputError(f"{path}: not JSON ({error}); restore it.") from error
    except KeyError as error:
        raise InputError(f"{path}: no {error}; name, version and changelog are needed.") from error
    return name, version


def bundle_files(bundle_root: Path, with_weights: bool = True) -> list[Path]:
    """Files to pack, relative to ``bundle_root`` and in order.

    Raises:
        InputError: one of them is a link, which an archive could not hold.
    """
    found = {path for pattern in (*CONTENT, STARTER) for path in bundle_root.glob(pattern) if path.is_file()}
    found = {path for path in found if not any(p.startswith(".") for p in path.relative_to(bundle_root).parts)}
    weights = {bundle_root / name for name in WEIGHTS if (bundle_root / name).is_file()}
    if with_weights:
        found |= weights
    if weights and (bundle_root / RECORD).is_file():
        # Wherever the weights themselves are fetched from.
        found.add(bundle_root / RECORD)
    for path in sorted(found):
        if path.is_symlink():
            raise InputError(f"{path}: a link; put the file itself in its place.")
    return sorted(path.relative_to(bundle_root) for path in found)


def copy_files(bundle_root: Path, folder: Path, files: Sequence[Path]) -> None:
    """Copy files, relative to ``bundle_root``, to the same places in ``folder``."""
    for file in files:
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(bundle_root / file, folder / file)


def make_folder(bundle_root: Path, folder: Path, weights_url: str | None = None) -> None:
    """Copy the bundle into ``folder``.

    Args:
        bundle_root: root of the bundle.
        folder: the folder to make.
        weights_url: address below which the weights can be had by their names. They are then left out, and
            large_files.yml says where they are, as the model zoo asks of files above 25 MB.

    Raises:
        InputError: ``weights_url`` is given, but there are no weights.
    """
    copy_files(bundle_root, folder, bundle_files(bundle_root, with_weights=weights_url is None))
    if weights_url is not None:
        weights = [name for name in WEIGHTS if (bundle_root / name).is_file()]
        if not weights:
            raise InputError(f"{bundle_root / WEIGHTS[0]}: no such file; --weights_url is the address of weights.")
        entries = [
            {
                "path": name,
                "url": f"{weights_url.rstrip('/')}/{Path(name).name}",
                "hash_val": file_checksum(bundle_root / name),
                "hash_type": "sha256",
            }
            for name in weights
        ]
        (folder / "large_files.yml").write_text(yaml.safe_dump({"large_files": entries}, sort_keys=False))
    (folder / "models").mkdir(exist_ok=True)


def make_starter(bundle_root: Path, folder: Path) -> None:
    """Copy the bundle into ``folder``, with the starter weights and settings as its own.

    Args:
        bundle_root: root of the bundle.
        folder: the folder to make.

    Raises:
        InputError: there are no starter weights, or their overlay sets what a main configuration does not have.
    """
    overlay = bundle_root / STARTER_OVERLAY
    weights = bundle_root / Path(STARTER).parent / "model.pt"
    for file in (overlay, weights):
        if not file.is_file():
            raise InputError(f"{file}: no such file; there is no starter to package.")
    own = {overlay.relative_to(bundle_root), Path(RECORD)}
    # The card stays at its place, so that links to it hold.
    own |= {file.relative_to(bundle_root) for file in (weights, record_file(weights))}
    files = bundle_files(bundle_root, with_weights=False)
    copy_files(bundle_root, folder, [file for file in files if file not in own])
    settings = yaml.safe_load(overlay.read_text(encoding="utf-8"))
    for name in ("train.json", "inference.json"):
        path = folder / "configs" / name
        parser = ConfigParser(json.loads(path.read_text(encoding="utf-8")))
        for key in [key for key in settings if key not in NOT_IN_STARTER_PACKAGE]:
            if key not in parser:
                raise InputError(f"{overlay}: {key} is not in {name}, so it cannot become a part of it.")
            parser[key] = settings[key]
        path.write_text(json.dumps(parser.get(), indent=4) + "\n", encoding="utf-8")
    path = folder / "configs" / "metadata.json"
    metadata = json.loads(path.read_text(encoding="utf-8"))
    metadata["name"] += " starter"
    path.write_text(json.dumps(metadata, indent=4) + "\n", encoding="utf-8")
    (folder / "models").mkdir(exist_ok=True)
    shutil.copyfile(weights, folder / WEIGHTS[0])
    shutil.copyfile(record_file(weights), folder / RECORD)


def make_zip(folder: Path, path: Path) -> None:
    """Write ``folder``, and nothing beside it, into the zip file ``path``."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in sorted(folder.rglob("*")):
            name = file.relative_to(folder.parent).as_posix()
            if file.is_dir():
                continue
            entry = zipfile.ZipInfo(name, TIMESTAMP)
            entry.compress_type = zipfile.ZIP_DEFLATED
            entry.external_attr = 0o644 << 16
            with file.open("rb") as source, archive.open(entry, "w", force_zip64=True) as target:
                shutil.copyfileobj(source, target)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    parser = command.parser("lab.package", __doc__)
    parser.add_argument("output_dir", type=Path, help="where folder and zip file go")
    parser.add_argument("--bundle_root", type=Path, default=Path("."), help="root of the bundle")
    parser.add_argument("--weights_url", help="address of the folder of the weights, which are then left out")
    parser.add_argument("--starter", action="store_true", help="package the starter weights with their settings")
    args = parser.parse_args(argv)
    if args.starter and args.weights_url is not None:
        raise InputError("--weights_url: the starter weights are small enough to be in their package.")

    name, version = bundle_name_and_version(args.bundle_root)
    name += "_starter" * args.starter
    folder, archive = args.output_dir / name, args.output_dir / f"{name}_v{version}.zip"
    checksum = archive.with_name(f"{archive.name}.sha256")
    for path in (folder, archive, checksum):
        if path.exists():
            raise InputError(f"{path}: exists already; move it away or choose another folder.")
    with replacing(folder) as temporary:
        if args.starter:
            make_starter(args.bundle_root, temporary)
        else:
            make_folder(args.bundle_root, temporary, args.weights_url)
        with replacing(archive) as temporary_archive:
            make_zip(temporary, temporary_archive)
    with replacing(checksum) as temporary:
        temporary.write_text(f"{file_checksum(archive)}  {archive.name}\n", encoding="utf-8")
    if args.weights_url is None and not (folder / WEIGHTS[0]).is_file():
        print(f"no {WEIGHTS[0]}: the package is without weights")
    print(f"{folder}\n{archive}\nsha1 for the model zoo's model_info.json: {file_checksum(archive, 'sha1')}")
    return 0


if __name__ == "__main__":
    command.run(main)
