# Copyright (c) the brats_mri_panet_segmentation authors
# SPDX-License-Identifier: Apache-2.0
"""MONAI's functions for bundles, called from another program in another folder."""

import json
import os
import subprocess
import textwrap

import numpy as np
import torch
from forks import python
from workflows import voxels

PROGRAM = """
    import json, sys
    from pathlib import Path
    import monai, torch

    bundle, patients, case = map(Path, sys.argv[1:])

    # Weights, as a network on the CPU.
    network = monai.bundle.load(
        bundle.name, bundle_dir=str(bundle.parent), source="github", repo="no/such/repo", device="cpu"
    )
    loaded = {name: value.clone() for name, value in network.state_dict().items()}
    published = torch.load(bundle / "models" / "model.pt", weights_only=True)
    assert all(torch.equal(loaded[name], value) for name, value in published.items())

    # A workflow, with arguments over the configuration, then with properties set.
    training = monai.bundle.create_workflow(
        config_file=str(bundle / "configs" / "train.json"), workflow_type="train",
        bundle_root=str(bundle), logging_file=False, output_dir="mine",
    )
    assert training.max_epochs == 3 and training.val_interval == 2
    assert training.dataset_dir == str(bundle / "data") and len(training.train_dataset_data) == 0
    training.dataset_dir = str(patients)
    training.max_epochs = 1
    training.val_interval = 1
    training.initialize()
    assert (len(training.train_dataset_data), len(training.val_dataset_data)) == (5, 1)
    assert list(training.val_key_metric) == ["val_mean_dice"] and training.check_properties() == []
    training.trainer.network.load_state_dict(loaded)
    training.run()
    training.finalize()
    assert training.trainer.state.epoch == 1

    # Inference, over the same folder's weights.
    inference = monai.bundle.create_workflow(
        config_file=str(bundle / "configs" / "inference.json"), workflow_type="infer",
        bundle_root=str(bundle), logging_file=False, dataset_dir=str(case), output_dir="maps",
    )
    assert [item["case"] for item in inference.dataset.data] == [case.name]
    inference.run()
    monai.bundle.run_workflow(
        config_file=str(bundle / "configs" / "inference.json"), workflow_type="infer",
        bundle_root=str(bundle), logging_file=False, dataset_dir=str(case), output_dir="maps_again",
    )
    import scripts
    print(json.dumps({"scripts": scripts.__file__, "best": float(training.evaluator.state.best_metric)}))
"""


def test_a_program_elsewhere_trains_and_segments(fresh_bundle, small_cohort, cohort, segmentation, tmp_path):
    away = tmp_path / "elsewhere"
    away.mkdir()
    case = next(cohort.rglob("BraTS20_Training_001"))
    done = subprocess.run(
        [python(), "-c", textwrap.dedent(PROGRAM), str(fresh_bundle), str(small_cohort), str(case)],
        cwd=away,
        env={**os.environ, "PYTHONWARNINGS": "ignore", "PYTHONPATH": str(fresh_bundle)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    said = json.loads(done.stdout.splitlines()[-1])
    assert said["scripts"].startswith(str(fresh_bundle))
    assert sorted(path.name for path in away.iterdir()) == ["maps", "maps_again", "mine"]
    # Nothing is written into the bundle, because the program named other folders.
    assert not (fresh_bundle / "runs").exists()
    assert json.loads((away / "mine" / "run.json").read_text())["cases"] == {"training": 5, "validation": 1}
    state = torch.load(away / "mine" / "trainer_state.pt", weights_only=True)
    assert (state["epoch"], state["best_metric"]) == (1, said["best"])
    for folder in ("maps", "maps_again"):
        found, wanted = (voxels(place / f"{case.name}.nii.gz") for place in (away / folder, segmentation))
        assert np.array_equal(found, wanted)
