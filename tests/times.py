# Copyright (c) the brats_mri_panet_segmentation authors
# SPDX-License-Identifier: Apache-2.0
"""Where the time of the tests goes: ``pytest --times FILE`` writes a table of it by test file.

These are processor seconds, which do not depend on what else the machine does. They include those of the processes that
a test starts, and those of the fixtures that it is the first to ask for.
"""

import csv
import os
import resource
from collections.abc import Generator
from pathlib import Path

import pytest

NAMES = ("tests", "processor_s")


def processor_seconds() -> float:
    """Of this process, of its children that have ended, and of those that run, with their own children."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    seconds = sum(one.ru_utime + one.ru_stime for one in used)
    # Not by pathlib, which a test may have patched.
    with open(f"/proc/self/task/{os.getpid()}/children") as file:
        children = file.read().split()
    for child in children:
        try:
            with open(f"/proc/{child}/stat") as file:
                fields = file.read().rpartition(")")[2].split()
        except OSError:  # it has ended
            continue
        seconds += sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")
    return seconds


class Times:
    """A plugin that measures each phase of a test where it runs, and adds up what the workers report."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.files: dict[str, list[float]] = {}

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_setup(self, item: pytest.Item) -> Generator[None]:
        return (yield from self.measured(item))

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_call(self, item: pytest.Item) -> Generator[None]:
        return (yield from self.measured(item))

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_teardown(self, item: pytest.Item) -> Generator[None]:
        return (yield from self.measured(item))

    def measured(self, item: pytest.Item) -> Generator[None]:
        start = processor_seconds()
        try:
            return (yield)
        finally:
            item.user_properties.append(("processor seconds", processor_seconds() - start))

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        found = self.files.setdefault(report.nodeid.partition("::")[0], [0, 0])
        if report.when == "teardown":  # it has the properties of all phases
            found[0] += 1
            found[1] += sum(seconds for name, seconds in report.user_properties if name == "processor seconds")

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        if hasattr(session.config, "workerinput"):
            return
        total = [sum(values) for values in zip(*self.files.values(), strict=True)]
        with self.path.open("w", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(["file", *NAMES])
            for name, values in sorted([*self.files.items(), ("all", total)], key=lambda entry: -entry[1][1]):
                writer.writerow([name, *(f"{value:.0f}" for value in values)])
