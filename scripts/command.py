# Copyright (c) the brats_mri_panet_segmentation authors
# SPDX-License-Identifier: Apache-2.0
"""What the commands (``python -m scripts.<command>``) share."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import NoReturn

from scripts.errors import show_input_errors


def run(main: Callable[[], int]) -> NoReturn:
    """Run a command in a process of its own, which ends with the status that ``main`` returns.

    Wrong input (``InputError``) ends it with one line and status 1.
    """
    show_input_errors()
    sys.exit(main())
