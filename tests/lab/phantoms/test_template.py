# Copyright (c) the brats_mri_panet_segmentation authors
# SPDX-License-Identifier: Apache-2.0
"""Varied phantoms on a deformed template: the anatomy of a brain, and one line where the template is absent."""

import importlib.util

import numpy as np
import pytest
from scripts.lab.phantoms import __main__ as make_phantoms
from scripts.lab.phantoms import cohort as phantom
from scripts.lab.phantoms import template as phantom_template
from scripts.lab.phantoms.anatomy import BOX, PhantomLesion
from scripts.lab.phantoms.template import Template, load_template, shape_template, template_tissue
from scripts.lab.phantoms.variety import Tumor, grow_tumor
from scripts.utils.errors import InputError


@pytest.fixture(scope="module")
def template():
    if importlib.util.find_spec("nilearn") is None:
        pytest.skip("the package nilearn is not here")
    return load_template()


def test_the_template_is_an_adult_brain(template):
    assert template.gray.shape == template.white.shape == template.brain.shape == (197, 233, 189)
    liters = template.brain.sum() / 1e6
    assert 1.5 < liters < 2.2
    # Gray matter is outside white matter: the cortex is nearer to the surface.
    assert template.at(template.white, [np.full(1, v, np.float32) for v in (25.0, -10.0, 22.0)]) > 0.8
    assert template.at(template.brain, [np.full(1, v, np.float32) for v in (0.0, 0.0, 200.0)]) == 0


def test_deformed_tissues_are_shares_of_a_brain(template):
    rng = np.random.default_rng(3)
    head = shape_template(rng, template)
    lesion = PhantomLesion((30.0, 0.0, 20.0), 30e3, 0.5, 0.5)
    tissue = template_tissue(rng, template, head, [lesion])
    np.testing.assert_allclose(tissue.csf + tissue.gray + tissue.white, np.ones(BOX), atol=1e-5)
    for share in (tissue.csf, tissue.gray, tissue.white):
        assert share.min() > -1e-5
    assert 1.1e6 < tissue.brain.sum() < 2.2e6
    inside = tissue.brain
    assert 0.15 < tissue.white[inside].mean() < 0.6 and 0.2 < tissue.gray[inside].mean() < 0.75
    assert (tissue.ventricle > 0).sum() > 5e3 and (tissue.csf[tissue.ventricle > 0] > 0.5).mean() > 0.95
    # The left hemisphere is on the side of the larger index in LPS.
    assert tissue.across[: BOX[0] // 2 - 10].max() <= 0 <= tissue.across[BOX[0] // 2 + 10 :].min()
    assert tissue.across[-30, 96, 120] == 1 and tissue.across[30, 96, 120] == -1


@pytest.mark.slow
def test_patients_differ_and_depend_on_their_seed_alone(template):
    first, again, other = (phantom.make_patient(5, number, "varied_template") for number in (1, 1, 2))
    for (images, labels), same in ((again, True), (other, False)):
        assert np.array_equal(labels, first[1]) == same
        assert np.array_equal(images["flair"], first[0]["flair"]) == same
    images, labels = first
    brain = images["t1"] != 0
    assert 0.8e6 < brain.sum() < 2.2e6 and (labels > 0).sum() > 1000
    assert not labels[~brain].any() and set(np.unique(labels)) <= {0, 1, 2, 4}


def test_lesions_stay_in_their_hemisphere(template):
    """Unless they come near the midline, where the corpus callosum joins both."""
    rng = np.random.default_rng(1)
    head = shape_template(rng, template)
    lesion = PhantomLesion((40.0, -10.0, 35.0), 40e3, 0.5, 0.5)
    tissue = template_tissue(rng, template, head, [lesion])
    labels = grow_tumor(rng, tissue, Tumor("patches", [lesion]))
    where = np.argwhere(labels > 0)[:, 0] - BOX[0] / 2
    assert (where > -3).all() and where.mean() > 15


def test_an_absent_template_is_said_in_one_line(tmp_path, monkeypatch):
    load_template.cache_clear()
    monkeypatch.setattr(phantom_template.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"The template is in the package nilearn, which is absent; pip install"):
        make_phantoms.main([str(tmp_path / "out"), "--cases", "1", "--difficulty", "varied_template", "--workers", "1"])


def test_a_package_without_the_template_is_named(tmp_path, monkeypatch):
    load_template.cache_clear()
    (tmp_path / "nilearn").mkdir()
    (tmp_path / "nilearn" / "__init__.py").touch()
    monkeypatch.syspath_prepend(str(tmp_path))
    importlib.invalidate_caches()
    with pytest.raises(InputError, match=r"mni_icbm152_gm_\S+: no such file; pip install"):
        load_template()


def test_coordinates_are_those_of_the_phantoms_box():
    """x to the left, y to the front, z up, about the center of the box; the template counts to the right."""
    volume = np.zeros((9, 9, 9), np.float32)
    volume[2, 5, 6] = 1
    affine = np.eye(4)
    affine[:3, 3] = [-4, -4, -4]
    small = Template(volume, volume, volume, affine)
    place = (2.0, 1.0 - phantom_template.CENTER[1], 2.0 - phantom_template.CENTER[2])
    assert small.at(volume, [np.full(1, v, np.float32) for v in place]) == 1
