# Copyright (c) the brats_mri_panet_segmentation authors
# SPDX-License-Identifier: Apache-2.0
"""Import the consumers' own packages without the parts that are not needed to read a bundle.

These parts would bring their own build of torch or gigabytes of CUDA. Empty modules take their place.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from types import ModuleType

import monai
import pytest

# `make test` installs the consumers' packages in this folder, apart from the packages that the bundle needs.
PACKAGES = Path(sys.prefix) / "interoperability"


class Empty:
    """An empty class that takes the place of any class."""

    def __init__(self, *args, **kwargs) -> None:
        pass


def module(name: str, *classes: str) -> ModuleType:
    made = ModuleType(name)
    made.__path__ = []
    made.__all__ = list(classes)
    for name in classes:
        setattr(made, name, type(name, (Empty,), {}))
    return made


@contextmanager
def imported(name: str, package: str, **in_place: ModuleType) -> Iterator[ModuleType]:
    """Import module ``name`` of the consumer's ``package``, or skip the test if the package is not installed.

    Afterwards, the import is undone and the bundle's own modules are restored, because MONAI Label imports the
    ``scripts`` of the bundle that it reads.
    """
    if not list(PACKAGES.glob(f"{package.replace('-', '_')}-*.dist-info")):
        pytest.skip(f"{package} is not installed")
    before, path, below_monai = dict(sys.modules), list(sys.path), list(monai.__path__)
    # The folder comes last, so that the packages of the bundle take precedence.
    sys.path.append(str(PACKAGES))
    monai.__path__.append(str(PACKAGES / "monai"))
    sys.modules.update({part.replace("__", "."): empty for part, empty in in_place.items()})
    try:
        yield import_module(name)
    finally:
        sys.path[:], monai.__path__[:] = path, below_monai
        for key in set(sys.modules) - set(before):
            if key.split(".")[0] == "scripts" or key.replace(".", "__") in in_place:
                del sys.modules[key]
        sys.modules.update({key: value for key, value in before.items() if key.split(".")[0] == "scripts"})


@contextmanager
def monai_label(name: str) -> Iterator[ModuleType]:
    """Import a module of monailabel without torchvision, from which it imports two functions that draw pictures."""
    pictures = module("torchvision.utils", "make_grid", "save_image")
    with imported(name, "monailabel", torchvision=module("torchvision"), torchvision__utils=pictures) as found:
        yield found


@contextmanager
def monai_deploy(name: str) -> Iterator[ModuleType]:
    """Import a module of monai-deploy-app-sdk without Holoscan, which passes messages between operators, and Triton.

    The other operators, all of which the package would import, are left out as well.
    """
    core = ["Application", "Condition", "ConditionType", "Fragment", "Operator", "OperatorSpec", "Resource"]
    operators = module("monai.deploy.operators")
    operators.__path__ = [str(PACKAGES / "monai" / "deploy" / "operators")]
    in_place = {
        "holoscan": module("holoscan"),
        "holoscan__core": module("holoscan.core", *core),
        "holoscan__logger": module("holoscan.logger"),
        "holoscan__resources": module("holoscan.resources"),
        "holoscan__conditions": module("holoscan.conditions", "CountCondition"),
        "tritonclient": module("tritonclient"),
        "tritonclient__http": module("tritonclient.http"),
        "tritonclient__grpc": module("tritonclient.grpc"),
        "tritonclient__grpc__model_config_pb2": module("tritonclient.grpc.model_config_pb2", "DataType", "ModelConfig"),
        "monai__deploy__operators": operators,
    }
    with imported(name, "monai-deploy-app-sdk", **in_place) as found:
        yield found
