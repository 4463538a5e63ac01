# Copyright (c) the brats_mri_panet_segmentation authors
# SPDX-License-Identifier: Apache-2.0
"""The model zoo's unit test of this bundle on several GPUs, for the zoo's folder ci/unit_tests with its ``utils``."""

import os
import sys
import tempfile
import unittest
import unittest.mock

import torch
from test_brats_mri_panet_segmentation import BUNDLE, SMALL, write_cases
from utils import export_config_and_run_mgpu_cmd


class TestBratsMriPanetSegmentationMGPU(unittest.TestCase):
    def setUp(self) -> None:
        # This process and those that torchrun starts must find the bundle's code, the package scripts, in its folder.
        sys.path.insert(0, BUNDLE)
        self.addCleanup(sys.path.remove, BUNDLE)
        paths = os.pathsep.join([os.path.abspath(BUNDLE), os.environ.get("PYTHONPATH", "")])
        patcher = unittest.mock.patch.dict(os.environ, PYTHONPATH=paths)
        patcher.start()
        self.addCleanup(patcher.stop)

    def test_train_and_evaluate(self) -> None:
        ranks = max(torch.cuda.device_count(), 1)
        with tempfile.TemporaryDirectory() as folder:
            data, output = os.path.join(folder, "data"), os.path.join(folder, "run")
            # The validation gets one case for each process.
            write_cases(data, 5 * ranks)
            for names, wanted in (
                (["train.json", "multi_gpu_train.json"], "model.pt"),
                (["train.json", "evaluate.json", "multi_gpu_evaluate.json"], "evaluation_validation/scores.csv"),
            ):
                export_config_and_run_mgpu_cmd(
                    config_file=[os.path.join(BUNDLE, "configs", name) for name in names],
                    logging_file=os.path.join(BUNDLE, "configs", "logging.conf"),
                    meta_file=os.path.join(BUNDLE, "configs", "metadata.json"),
                    override_dict={"bundle_root": BUNDLE, "dataset_dir": data, "output_dir": output, **SMALL},
                    output_path=os.path.join(folder, "override.json"),
                    ngpu=ranks,
                    check_config=True,
                )
                self.assertTrue(os.path.isfile(os.path.join(output, wanted)))


if __name__ == "__main__":
    unittest.main()
