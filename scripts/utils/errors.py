# Copyright (c) the brats_mri_panet_segmentation authors
# SPDX-License-Identifier: Apache-2.0
"""The error for wrong input, and its display as one line.

MONAI wraps an error several times, so the cause hides in a traceback of fifty lines. Commands, and workflows from the
first item of their ``run`` list on, show only the line. Programs that import the bundle keep their tracebacks.
"""

import sys
from types import TracebackType


class InputError(ValueError):
    """Wrong input from the user. The message is one line that names the file or setting and the remedy.

    ``kind`` is the kind of the fault, for faults of data (``scripts.data.findings``).
    """

    def __init__(self, message: str, kind: str = "") -> None:
        super().__init__(printable(message), kind)
        self.kind = kind

    def __str__(self) -> str:
        return str(self.args[0])

    def __repr__(self) -> str:
        return f"InputError({str(self)!r})"


class WriteError(InputError):
    """A file cannot be written, because its disk is full or takes no files. Every further file would fail, too."""


def printable(text: str) -> str:
    """``text`` with escapes for what one line cannot show, such as line breaks or bytes that are no UTF-8.

    Example:
        >>> printable("p\\n1\\udcff")
        'p\\\\n1\\\\udcff'
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


# A line break in a message.
BREAK = printable("\n")


def one_line(error: BaseException) -> str:
    """The message of ``error`` on one line."""
    return " ".join(str(error).split())


def input_error_behind(error: BaseException | None) -> InputError | None:
    """The ``InputError`` in the chain of causes of ``error``; None if there is none."""
    while error is not None:
        if isinstance(error, InputError):
            return error
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    return None


def show_input_errors(goes_on: str = "") -> None:
    """From now on, show an uncaught error that an ``InputError`` caused as one line, and all other errors as before.

    A run that the user stops (Ctrl-C) ends in one line, too, which says by ``goes_on`` how to go on.
    """
    former = sys.excepthook
    if getattr(former, "shows_input_errors", False):
        former.goes_on = goes_on or former.goes_on  # type: ignore[attr-defined]
        return

    def show(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
        cause = input_error_behind(error)
        if issubclass(kind, KeyboardInterrupt):
            print(f"stopped{show.goes_on and '; '}{show.goes_on}", file=sys.stderr)  # type: ignore[attr-defined]
        elif cause is None:
            former(kind, error, traceback)
        else:
            # A worker of a DataLoader passes on the text of a traceback, which ends with the message and a line break.
            print(f"error: {str(cause).split('InputError: ')[-1].removesuffix(BREAK)}", file=sys.stderr)

    show.shows_input_errors, show.goes_on = True, goes_on  # type: ignore[attr-defined]
    sys.excepthook = show
