# Copyright (c) the brats_mri_panet_segmentation authors
# SPDX-License-Identifier: Apache-2.0
"""One reading of the files of each case: it is checked and segmented, and may be measured and drawn."""

import functools
import logging
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from monai.data import list_data_collate
from monai.transforms import apply_transform
from scripts.brats import CHANNEL_ORDER, ET_LABELS
from scripts.data.datalist import complete_item
from scripts.data.findings import refused_kinds
from scripts.data.images import READ, inputs_of, read_file
from scripts.data.inspection import CheckedCase, check_case, refuse
from scripts.inference.failures import CASE_ERRORS, CHECKED, INPUTS, CaseDataset, CaseFailures, case_of, reason_of
from scripts.utils.errors import InputError

logger = logging.getLogger(__name__)


class CheckedDataset(CaseDataset):
    """A dataset that checks the voxels of a case when it loads them. A faulty case cannot be loaded.

    An item that was loaded holds under ``CHECKED`` what was found, for ``CaseFailures`` to tell, and under ``INPUTS``
    the checksums of its files.

    Args:
        data: entries of cases, whose headers have been checked.
        transform: the preprocessing. ``LoadImageByReaderd`` takes the files that were read for the check.
        channel_order: the sequences in the order of the channels of four-dimensional files.
        accept: kinds of doubts that do not stop a case, where the others do. None stops at errors alone.
        keep_files: hand on the function that has read the files and remembers them, under ``READ``. It cannot leave
            the process.
        options: further arguments of ``CacheDataset``.
    """

    def __init__(
        self,
        data: Sequence[Mapping[str, Any]],
        transform: Any,
        channel_order: Sequence[str] = CHANNEL_ORDER,
        accept: Collection[str] | None = None,
        keep_files: bool = False,
        **options: Any,
    ) -> None:
        super().__init__(data, transform, **options)
        self.channel_order = channel_order
        self.accept = accept
        self.keep_files = keep_files
        # By number of the case: what ``read`` has returned or raised.
        self.ahead: dict[int, Any] = {}

    def read(self, index: int) -> tuple[Any, CheckedCase, list[dict[str, str]]]:
        """Read and check a case; return the function that has read the files, what was found, and the checksums."""
        # A caller such as MONAI Label may give less than an entry; labels are of no use here.
        item = complete_item(self.data[index], ET_LABELS[-1])
        item.pop("label", None)
        read = functools.cache(read_file)
        checked = check_case(item, self.channel_order, read)
        refuse(checked.findings, checked.case, refused_kinds(self.accept))
        return read, checked, inputs_of(item["image"], lambda file: read(file).extra["sha256"])

    def refuse_if_all_are_faulty(self) -> None:
        """Read cases until one is sound. It is not read again when its turn comes. If none is, refuse them all."""
        for index in range(len(self)):
            try:
                self.ahead[index] = self.read(index)
                return
            except CASE_ERRORS as error:
                self.ahead[index] = error
                if len(self) == 1:
                    raise
        reasons = {case_of(self.data[index]): reason_of(error) for index, error in self.ahead.items()}
        for case, reason in reasons.items():
            logger.error("%s: %s", case, reason)
        if reasons:
            raise InputError(CaseFailures.summary(reasons, len(self)))

    def load(self, index: int) -> Any:
        """Read, check and transform a case."""
        found = self.ahead.pop(index, None) or self.read(index)
        if isinstance(found, Exception):
            raise found
        read, checked, inputs = found
        item: Any = apply_transform(self.transform, {**self.data[index], READ: read})
        return {**item, CHECKED: checked, INPUTS: inputs, **({READ: read} if self.keep_files else {})}


def collate(items: list[dict[str, Any]]) -> dict[str, Any]:
    """MONAI's batch of one case. What ``CheckedDataset`` has added stays as it is."""
    (item,) = items
    added = {key: item[key] for key in (CHECKED, INPUTS, READ) if key in item}
    return {**list_data_collate([{key: value for key, value in item.items() if key not in added}]), **added}
