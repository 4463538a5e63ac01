# Copyright (c) the brats_mri_panet_segmentation authors
# SPDX-License-Identifier: Apache-2.0
"""Refuses wheels and source archives; pyproject.toml says the rest.

A wheel would lack configurations and weights, and would put a package called ``scripts`` into site-packages.
"""

from setuptools import setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.sdist import sdist

REFUSAL = "error: no wheel and no source archive is built, since the bundle runs in its own folder; run make install."


class NoWheel(bdist_wheel):
    """Refuse to build a wheel. An editable install uses this class, too, without running it."""

    def run(self) -> None:
        raise SystemExit(REFUSAL)


class NoArchive(sdist):
    """Refuse to build a source archive."""

    def run(self) -> None:
        raise SystemExit(REFUSAL)


setup(cmdclass={"bdist_wheel": NoWheel, "sdist": NoArchive})
