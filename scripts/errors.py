# Copyright (c) the brats_mri_panet_segmentation authors
# SPDX-License-Identifier: Apache-2.0
"""The error for wrong input, and its display as one line.

MONAI runs a bundle's parts inside its own code, which wraps an error several times; a traceback of fifty lines then
buries the cause. In a command of the bundle, and in a workflow from its ``run`` list's first item on, an uncaught error
that goes back to an ``InputError`` is shown as the ``InputError``'s own line. Programs that import the bundle are left
as they are, and code that catches exceptions sees nothing different.
"""

from __future__ import annotations

import sys
from types import TracebackType


class InputError(ValueError):
    """Wrong input from the user: the message is one line that names the file or setting and the remedy."""


def input_error_behind(error: BaseException | None) -> InputError | None:
    """The ``InputError`` in the chain of causes of ``error``, if there is one."""
    while error is not None:
        if isinstance(error, InputError):
            return error
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    return None


def show_input_errors() -> None:
    """From now on show an uncaught error that goes back to an ``InputError`` as one line; all others as before."""
    former = sys.excepthook
    if getattr(former, "shows_input_errors", False):
        return

    def show(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
        cause = input_error_behind(error)
        if cause is None:
            former(kind, error, traceback)
        else:
            # A DataLoader's worker passes an error on as the text of its traceback, which ends with the message.
            print(f"error: {str(cause).splitlines()[-1].split('InputError: ')[-1]}", file=sys.stderr)

    show.shows_input_errors = True  # type: ignore[attr-defined]
    sys.excepthook = show
