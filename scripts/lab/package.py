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

A package holds what its users need. The workshop (scripts/lab), with the pages and overlays that need it, stays in the
repository.
"""

import json
import re
import shutil
import zipfile
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path

import yaml
from monai.bundle import ConfigParser
from scripts import command
from scripts.panet import COMMANDS
from scripts.utils.errors import InputError
from scripts.utils.files import file_checksum, read_json, replacing, save_json
from scripts.weights.record import record_file

# What belongs to a package, but for what follows.
CONTENT = (
    "LICENSE",
    "configs/*.json",
    "configs/*.yaml",
    "configs/*.conf",
    "docs/**/*",
    "scripts/**/*.py",
    "scripts/pages/assets/*",
)
# What only the repository holds: the workshop, and what needs it. The viewer of reports (scripts/pages/niivue) stays
# there, too. It is larger than the model zoo allows, so reports of a package show slices.
REPOSITORY = (
    "configs/*_demo.yaml",
    "configs/train_starter*.yaml",
    "docs/architecture.md",
    "docs/benchmarks/**/*",
    "docs/images/p*.png",
    "docs/performance.md",
    "docs/phantoms.md",
    "docs/reproduction.md",
    "scripts/lab/**/*",
)
# What only the package of the starter weights holds.
STARTER = ("docs/get_started.md", "docs/viewers.md", "docs/images/tcga*.png")
STARTER_CARD = ("models/starter/README.md", "docs/starter.md")
STARTER_OVERLAY = "configs/starter.yaml"
STARTER_WEIGHTS = "models/starter/model.pt"
# The starter's overlay names its file of weights and a folder for results, which a package of its own needs no more.
NOT_IN_STARTER_PACKAGE = ("model_file", "output_dir")
WEIGHTS = ("models/model.pt", "models/model.ts")
# Beside the weights: what they need, and what they were trained on.
RECORD = str(record_file(WEIGHTS[0]))
# Of every file in the zip, so that its bytes depend on nothing else; the earliest that the format knows.
TIMESTAMP = (1980, 1, 1, 0, 0, 0)

PASSAGE = re.compile(r"<!-- (repository|starter) -->\n(.*?)<!-- /\1 -->\n", re.DOTALL)
LINK = re.compile(r"!?\[([^\]]*)\]\(([^)#\s]+)[^)]*\)")
TABLE_ROW = re.compile(r"^\| `([^`]+)` \|.*\n", re.MULTILINE)
PANET = re.compile(rf"(?m)(^|`|`time )panet (?={'|'.join(COMMANDS)})")


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


def find_files(bundle_root: Path, patterns: Iterable[str]) -> set[Path]:
    """Files that fit one of the patterns, relative to ``bundle_root``. Hidden files are left out.

    Raises:
        InputError: one of them is a link, which an archive could not hold.
    """
    found = {path for pattern in patterns for path in bundle_root.glob(pattern) if path.is_file()}
    for path in sorted(found):
        if path.is_symlink():
            raise InputError(f"{path}: a link; put the file itself in its place.")
    relative = {path.relative_to(bundle_root) for path in found}
    return {path for path in relative if not any(part.startswith(".") for part in path.parts)}


def make_folder(bundle_root: Path, folder: Path, weights_url: str | None = None, starter: bool = False) -> None:
    """Copy the bundle into ``folder``.

    Args:
        bundle_root: root of the bundle.
        folder: the folder to make.
        weights_url: address below which the weights can be had by their names. They are then left out, and
            large_files.yml says where they are, as the model zoo asks of files above 25 MB.
        starter: take the starter weights and their settings as the bundle's own.

    Raises:
        InputError: ``weights_url`` is given, but there are no weights; or there are no starter weights, or their
            overlay sets what a main configuration does not have.
    """
    left_out = find_files(bundle_root, (*REPOSITORY, STARTER_OVERLAY, *(() if starter else STARTER)))
    files = find_files(bundle_root, CONTENT) - left_out
    sources = {path: path for path in files}
    if starter:
        for file in (STARTER_OVERLAY, STARTER_WEIGHTS):
            if not (bundle_root / file).is_file():
                raise InputError(f"{bundle_root / file}: no such file; there is no starter to package.")
        card, page = map(Path, STARTER_CARD)
        sources[page] = card
        weights = {Path(WEIGHTS[0]): Path(STARTER_WEIGHTS)}
        record = record_file(STARTER_WEIGHTS)
    else:
        weights = {path: path for path in find_files(bundle_root, WEIGHTS)}
        record = Path(RECORD)
    if weights_url is None:
        sources |= weights
    if weights and (bundle_root / record).is_file():
        # Wherever the weights themselves are fetched from.
        sources[Path(RECORD)] = record
    for path, source in sources.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(bundle_root / source, folder / path)
    (folder / "models").mkdir(exist_ok=True)
    absent = {path.name for path in left_out}
    for page in sorted(folder.glob("docs/*.md")):
        page.write_text(fit_page(page.read_text(encoding="utf-8"), folder, absent, starter), encoding="utf-8")
    if starter:
        take_starter_settings(bundle_root, folder)
    if weights_url is not None:
        if not weights:
            raise InputError(f"{bundle_root / WEIGHTS[0]}: no such file; --weights_url is the address of weights.")
        entries = [
            {
                "path": str(path),
                "url": f"{weights_url.rstrip('/')}/{path.name}",
                "hash_val": file_checksum(bundle_root / source),
                "hash_type": "sha256",
            }
            for path, source in sorted(weights.items())
        ]
        (folder / "large_files.yml").write_text(yaml.safe_dump({"large_files": entries}, sort_keys=False))


def fit_page(text: str, folder: Path, absent: Collection[str], starter: bool) -> str:
    """A page of docs/ as a package has it, where each command runs and each link leads to a file.

    ``<!-- repository -->`` and ``<!-- /repository -->`` enclose what no package has, and ``starter`` encloses what only
    the package of the starter weights has.

    Args:
        text: the page.
        folder: the package, in which all files are.
        absent: names of files that only the repository holds. Their rows in tables are left out.
        starter: whether it is the package of the starter weights.
    """
    text = PASSAGE.sub(lambda passage: passage[2] if starter and passage[1] == "starter" else "", text)
    text = TABLE_ROW.sub(lambda row: "" if row[1] in absent else row[0], text)
    text = PANET.sub(r"\1python -m scripts.panet ", text)
    if starter:
        title = read_json(folder / "configs" / "metadata.json")["name"]
        name, _ = bundle_name_and_version(folder)
        source, card = STARTER_CARD
        for old, new in (
            (f",'{STARTER_OVERLAY}'", ""),
            (f"../{source}", Path(card).name),
            ("../../docs/", ""),
            ("models/starter/", "models/"),
            (title, f"{title} starter"),
            (name, f"{name}_starter"),
        ):
            text = text.replace(old, new)
    text = LINK.sub(lambda m: m[0] if "//" in m[2] or (folder / "docs" / m[2]).exists() else m[1], text)
    return text.rstrip("\n") + "\n"


def take_starter_settings(bundle_root: Path, folder: Path) -> None:
    """Make the settings of the starter's overlay a part of train.json and inference.json in ``folder``.

    Raises:
        InputError: the overlay sets what one of them does not have.
    """
    overlay = bundle_root / STARTER_OVERLAY
    settings = yaml.safe_load(overlay.read_text(encoding="utf-8"))
    for name in ("train.json", "inference.json"):
        parser = ConfigParser(read_json(folder / "configs" / name))
        for key in [key for key in settings if key not in NOT_IN_STARTER_PACKAGE]:
            if key not in parser:
                raise InputError(f"{overlay}: {key} is not in {name}, so it cannot become a part of it.")
            parser[key] = settings[key]
        save_json(parser.get(), folder / "configs" / name)
    metadata = read_json(folder / "configs" / "metadata.json")
    metadata["name"] += " starter"
    save_json(metadata, folder / "configs" / "metadata.json")


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
    parser.add_argument("--bundle-root", type=Path, default=Path("."), help="root of the bundle")
    parser.add_argument("--weights-url", help="address of the folder of the weights, which are then left out")
    parser.add_argument("--starter", action="store_true", help="package the starter weights with their settings")
    args = parser.parse_args(argv)
    name, version = bundle_name_and_version(args.bundle_root)
    name += "_starter" * args.starter
    folder, archive = args.output_dir / name, args.output_dir / f"{name}_v{version}.zip"
    checksum = archive.with_name(f"{archive.name}.sha256")
    for path in (folder, archive, checksum):
        if path.exists():
            raise InputError(f"{path}: exists already; move it away or choose another folder.")
    with replacing(folder) as temporary:
        make_folder(args.bundle_root, temporary, args.weights_url, args.starter)
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
