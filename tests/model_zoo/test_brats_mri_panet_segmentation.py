# Copyright (c) the brats_mri_panet_segmentation authors
# SPDX-License-Identifier: Apache-2.0
"""The model zoo's unit test of this bundle: it trains, evaluates and infers at a small size.

The file belongs in the zoo's folder ci/unit_tests. The zoo's runner starts it in the zoo's root, where the bundle is
models/brats_mri_panet_segmentation. Each run writes to a temporary folder only, so the test can be repeated in the same
checkout.
"""

import os
import sys
import tempfile
import unittest

import nibabel as nib
import numpy as np
from monai.bundle import ConfigWorkflow

BUNDLE = os.path.join("models", "brats_mri_panet_segmentation")
SMALL = {
    "network_def#channels": [4, 4, 8, 8, 8],
    "patch_size": [32, 32, 32],
    "roi_size": [48, 48, 48],
    "max_epochs": 1,
    "val_interval": 1,
    "train#dataloader#num_workers": 1,
    "validate#dataloader#num_workers": 1,
}


def write_cases(folder: str, count: int) -> None:
    """Write ``count`` cases of 48^3 voxels of 1 mm, named as in BraTS 2020, with a bright lesion in a gray brain."""
    random = np.random.default_rng(0)
    for number in range(1, count + 1):
        case = f"BraTS20_Training_{number:03d}"
        os.makedirs(os.path.join(folder, case))
        label = np.zeros((48, 48, 48), np.uint8)
        for value, half in ((2, 10), (1, 6), (4, 4)):
            inside = slice(24 - half, 24 + half)
            label[inside, inside, inside] = value
        brain = np.zeros_like(label, bool)
        brain[4:44, 4:44, 4:44] = True
        maps = {"seg": label}
        for sequence in ("t1", "t1ce", "t2", "flair"):
            maps[sequence] = np.where(brain, 100 + 50 * label + random.integers(0, 20, label.shape), 0).astype(np.int16)
        for name, voxels in maps.items():
            image = nib.Nifti1Image(voxels, np.diag([-1.0, -1.0, 1.0, 1.0]))
            nib.save(image, os.path.join(folder, case, f"{case}_{name}.nii.gz"))


class TestBratsMriPanetSegmentation(unittest.TestCase):
    def setUp(self) -> None:
        temporary = tempfile.TemporaryDirectory()
        self.addCleanup(temporary.cleanup)
        # The bundle's code, the package scripts, lies in the bundle's folder.
        sys.path.insert(0, BUNDLE)
        self.addCleanup(sys.path.remove, BUNDLE)
        self.folder = temporary.name
        self.data = os.path.join(self.folder, "data")
        write_cases(self.data, 4)

    def run_workflow(self, kind: str, *names: str, **settings: object) -> None:
        """Run a workflow of the bundle, after a check of its properties."""
        workflow = ConfigWorkflow(
            config_file=[os.path.join(BUNDLE, "configs", name) for name in names],
            workflow_type=kind,
            meta_file=os.path.join(BUNDLE, "configs", "metadata.json"),
            logging_file=os.path.join(BUNDLE, "configs", "logging.conf"),
            bundle_root=BUNDLE,
            dataset_dir=self.data,
            **settings,
        )
        workflow.initialize()
        self.assertEqual(workflow.check_properties() or [], [])
        workflow.run()
        workflow.finalize()

    def test_train_evaluate_and_infer(self) -> None:
        output = os.path.join(self.folder, "run")
        self.run_workflow("train", "train.json", output_dir=output, **SMALL)
        model = os.path.join(output, "model.pt")
        self.assertTrue(os.path.isfile(model))
        self.run_workflow("train", "train.json", "evaluate.json", output_dir=output, **SMALL)
        self.assertTrue(os.path.isfile(os.path.join(output, "evaluation_validation", "scores.csv")))
        maps = os.path.join(self.folder, "maps")
        size = {key: SMALL[key] for key in ("network_def#channels", "roi_size")}
        self.run_workflow("infer", "inference.json", output_dir=maps, model_file=model, num_workers=1, **size)
        written = sorted(name for name in os.listdir(maps) if name.endswith(".nii.gz"))
        self.assertEqual(written, [f"BraTS20_Training_{number:03d}.nii.gz" for number in range(1, 5)])
        for name in written:
            self.assertLessEqual(set(np.unique(nib.load(os.path.join(maps, name)).dataobj)), {0, 1, 2, 4})


if __name__ == "__main__":
    unittest.main()
