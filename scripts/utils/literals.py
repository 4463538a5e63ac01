# Copyright (c) the brats_mri_panet_segmentation authors
# SPDX-License-Identifier: Apache-2.0
"""The door through which paths, names and records reach MONAI's parser.

The parser evaluates a text that begins with ``$``, resolves ``@name`` and ``%file``, and turns ``#`` into ``::``. The
name of a file must not become a program or another name.
"""

import ast
from collections.abc import Mapping
from typing import Any


def literal(value: Any) -> str:
    """The expression of MONAI's configurations that means ``value``, of plain Python types, and nothing else.

    Example:
        >>> literal("out #1")
        "$'out \\\\x231'"
    """
    return "$" + ascii(value).replace("#", r"\x23").replace("@", r"\x40")


def shown(node: Any) -> Any:
    """A configuration's content with the plain values in place of expressions by ``literal``.

    Example:
        >>> shown({"output_dir": literal("out #1"), "amp": "$not @exact"})
        {'output_dir': 'out #1', 'amp': '$not @exact'}
    """
    if isinstance(node, Mapping):
        return {key: shown(value) for key, value in node.items()}
    if isinstance(node, (list, tuple)):
        return [shown(value) for value in node]
    if isinstance(node, str) and node.startswith("$"):
        try:
            return ast.literal_eval(node[1:])
        except (ValueError, SyntaxError):
            return node
    return node
