# Copyright (c) the brats_mri_panet_segmentation authors
# SPDX-License-Identifier: Apache-2.0
"""Training on a CPU and on a GPU, if there is one: precision, reproducibility, and no step that waits."""

from pathlib import Path

import pytest
import torch
from monai.bundle import ConfigParser
from monai.data import MetaTensor, list_data_collate
from scripts.data.datalist import labeled_items
from scripts.data.transforms import CheckLabelsd, LabelsToRegionsd
from scripts.lab.benchmark.training import trainer_of
from scripts.networks import PriorAttentionNet
from scripts.networks.resize import linear_weights, resize_by_matrices, resize_like
from scripts.training.augmentation import device_step
from scripts.training.losses import PriorAttentionLoss
from scripts.training.reproducibility import choose_algorithms
from scripts.utils.errors import InputError
from torch.utils._python_dispatch import TorchDispatchMode
from workflows import CHANNELS, CONFIGS

# The size must not be smaller: if the deepest maps have 2 x 2 x 3 voxels, oneDNN computes wrong gradients in bfloat16
# (torch 2.13, AVX-512).
SIZE = (48, 48, 48)


def problem(device, batch=1, seed=0):
    """Return a network and a patch with nested bright cubes, one for each region."""
    torch.manual_seed(seed)
    network = PriorAttentionNet(channels=[8, 8, 16, 16, 16]).train().to(device)
    image = torch.randn(batch, 4, *SIZE)
    label = torch.zeros(batch, 4, *SIZE, dtype=torch.uint8)
    for channel, edge in ((3, 16), (2, 12), (1, 8)):
        label[:, channel, 4 : 4 + edge, 6 : 6 + edge, 8 : 8 + edge] = 1
        image[:, channel] += 2 * label[:, channel]
    label[:, 0] = 1 - label[:, 3]
    return network, image.to(device), label.to(device)


def gradients(network, image, label, dtype=None):
    network.zero_grad()
    with torch.autocast(image.device.type, dtype, enabled=dtype is not None):
        loss = PriorAttentionLoss()(network(image), label)
    loss.backward()
    return torch.cat([parameter.grad.flatten() for parameter in network.parameters()])


def test_gradients_in_bfloat16_are_those_of_float32_within_its_precision(device):
    network, image, label = problem(device)
    wanted, found = gradients(network, image, label), gradients(network, image, label, torch.bfloat16)
    assert found.dtype == torch.float32
    # The rounding of an eight-bit mantissa adds up over some forty layers, forward and backward.
    assert (found - wanted).norm() < 0.15 * wanted.norm()
    assert torch.cosine_similarity(found, wanted, dim=0) > 0.99
    assert not torch.equal(found, wanted)


def loss_curve(device, dtype, steps=30):
    network, image, label = problem(device)
    optimizer = torch.optim.Adam(network.parameters(), lr=3e-3, fused=True)
    loss_function = PriorAttentionLoss()
    losses = []
    for _ in range(steps):
        with torch.autocast(device.type, dtype, enabled=dtype is not None):
            loss = loss_function(network(image), label)
        losses.append(loss.detach())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return torch.stack(losses).cpu()


@pytest.mark.slow
@pytest.mark.lab
def test_the_loss_curve_in_bfloat16_lies_on_that_of_float32(device):
    wanted, found = loss_curve(device, None), loss_curve(device, torch.bfloat16)
    # The loss falls, and the two curves stay together.
    assert wanted[-1] < 0.7 * wanted[0]
    assert ((found - wanted).abs() < 0.03 * wanted[0]).all()
    assert not torch.equal(found, wanted)


def test_gradients_are_the_same_in_each_run(device):
    choose_algorithms(deterministic=True)
    first, again = (gradients(*problem(device, batch=2), torch.bfloat16) for _ in range(2))
    assert torch.equal(first, again)


def test_resizing_gives_interpolations_values_and_gradients(device):
    x = torch.randn(2, 3, 5, 6, 7, device=device, requires_grad=True)
    target = torch.empty(1, 1, 10, 12, 21, device=device)
    found = resize_like(x, target)
    assert found.device.type == device.type
    plain = x.detach().cpu().requires_grad_()
    wanted = torch.nn.functional.interpolate(plain, size=(10, 12, 21), mode="trilinear")
    torch.testing.assert_close(found.cpu(), wanted)
    upstream = torch.randn(wanted.shape)
    found.backward(upstream.to(device))
    wanted.backward(upstream)
    torch.testing.assert_close(x.grad.cpu(), plain.grad)


@pytest.mark.parametrize("old", [(8, 6, 10), (15, 11, 5), (7, 3), (9, 9, 9), (4, 4, 4)])
@pytest.mark.parametrize("new", [(16, 12, 20), (32, 32, 32), (4, 4, 5), (16, 16, 16)])
def test_matrices_interpolate_as_torch_does(old, new):
    new = new[: len(old)]
    x = torch.randn(2, 3, *old, dtype=torch.float64, requires_grad=True)
    found = resize_by_matrices(x, new)
    mode = "trilinear" if len(old) == 3 else "bilinear"
    wanted = torch.nn.functional.interpolate(x, size=new, mode=mode)
    torch.testing.assert_close(found, wanted)
    upstream = torch.randn_like(found)
    torch.testing.assert_close(*(torch.autograd.grad(y, x, upstream)[0] for y in (found, wanted)))


@pytest.mark.parametrize("factor", [2, 4, 8])
def test_matrices_of_the_networks_factors_are_exact_in_bfloat16(factor):
    exact = linear_weights(16, 16 * factor, torch.device("cpu"), torch.float64)
    assert torch.equal(linear_weights(16, 16 * factor, torch.device("cpu"), torch.bfloat16).double(), exact)
    assert torch.equal(exact.sum(dim=1), torch.ones(16 * factor, dtype=torch.float64))


class NoWaiting(TorchDispatchMode):
    """Raise an error on any device where an operation would make the host wait for the result of a GPU.

    A tensor on torch's device "meta" has no values. If a value is read without such an operation, torch itself raises.
    """

    WAITING = ("_local_scalar_dense", "nonzero", "masked_select", "equal", "_unique2", "unique_dim", "bincount")

    def __init__(self, device):
        super().__init__()
        self.device = torch.device(device).type

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        name = func.overloadpacket.__name__
        waits = name in self.WAITING and args[0].device.type == self.device
        if name in ("index", "index_put_"):
            indices = [index for index in args[1] if index is not None and index.dtype in (torch.bool, torch.uint8)]
            waits = any(index.device.type == self.device for index in indices)
        elif name == "_to_copy":
            waits = self.copy_waits(args[0], kwargs.get("device") or args[0].device, kwargs.get("non_blocking"))
        elif name == "copy_":
            waits = self.copy_waits(args[1], args[0].device, kwargs.get("non_blocking") or args[2:] == (True,))
        if waits:
            raise AssertionError(f"{func} waits for the device")
        return func(*args, **kwargs)

    @staticmethod
    def copy_waits(source, target, non_blocking):
        """A copy to the host always waits, because its values are used there. A copy to a device waits by default."""
        target = torch.device(target)
        return source.device.type != target.type and (target.type == "cpu" or not non_blocking)


@pytest.mark.parametrize("name", ["train.json", "inference.json"])
@pytest.mark.parametrize(
    ("device", "capability", "set_by_hand", "wanted"),
    [
        ("cuda:1", (7, 0), None, torch.float16),
        ("cuda:1", (7, 5), None, torch.float16),
        ("cuda:1", (8, 0), None, torch.bfloat16),
        ("cuda:1", (9, 0), None, torch.bfloat16),
        ("cuda:1", (9, 0), "float16", torch.float16),
        ("cuda:1", (7, 5), "bfloat16", torch.bfloat16),
        ("cpu", None, None, torch.bfloat16),
    ],
)
def test_the_precision_is_one_that_the_gpu_computes_in(name, device, capability, set_by_hand, wanted, monkeypatch):
    def found(asked):
        assert str(asked) == "cuda:1" and capability is not None
        return capability

    monkeypatch.setattr(torch.cuda, "get_device_capability", found)
    parser = ConfigParser()
    parser.read_config(str(CONFIGS / name))
    parser["device"] = device
    if set_by_hand is not None:
        parser["amp_dtype"] = set_by_hand
    inferers = ["train#inferer", "inferer"] if name == "train.json" else ["inferer"]
    for inferer in inferers:
        made = parser.get_parsed_content(inferer)
        assert (made.enabled, getattr(torch, made.dtype)) == (device != "cpu", wanted)
    if name == "train.json":
        # float16 needs a scaled loss, and bfloat16 does not.
        scaled = ConfigParser({key: parser[key] for key in ("amp", "amp_dtype", "device")})
        scaled["amp"], scaled["scaled"] = True, parser["train#trainer#amp"]
        assert scaled.get_parsed_content("scaled") == (wanted == torch.float16)


def step_settings(device, **more):
    size = {"network_def#channels": CHANNELS, "patch_size": [32] * 3, "num_workers": 0, "val_interval": 0}
    return {"device": str(device), "max_epochs": 1, "optimizer#fused": True, **size, **more}


def assert_no_step_waits(device, **settings):
    """Run three steps of train.json on a batch on the device, and return the losses of all steps but the first."""
    image = torch.randn(1, 4, 32, 32, 32, device=device)
    batch = {"image": image, "label": (image > 0).to(torch.uint8)}
    trainer = trainer_of(("train.json",), step_settings(device, **settings), [], [batch] * 3)
    step = trainer._process_function
    losses = []

    def watched(engine, batchdata):
        # The first step may wait, because it chooses algorithms and sets up the state of the optimizer.
        if engine.state.iteration == 1:
            return step(engine, batchdata)
        with NoWaiting(device):
            if device.type == "cuda":
                torch.cuda.set_sync_debug_mode("error")
            try:
                output = step(engine, batchdata)
            finally:
                if device.type == "cuda":
                    torch.cuda.set_sync_debug_mode("default")
        losses.append(output[0]["loss"])
        return output

    trainer._process_function = watched
    trainer.run()
    assert len(losses) == 2 and all(loss.device.type == device.type for loss in losses)
    return losses


def test_no_step_waits_for_the_device(device):
    assert all(0 < float(loss) < 20 for loss in assert_no_step_waits(device))


def test_no_step_reads_a_value_from_its_device():
    """On a CPU, a value is read without a visible copy; on "meta", there are no values, so reading one raises."""
    assert_no_step_waits(torch.device("meta"), **{"optimizer#fused": False})


WAITS = {
    "item": lambda x: x.sum().item(),
    "float": lambda x: float(x.sum()),
    "truth": lambda x: bool(x.any()),
    "to the host": lambda x: x.cpu(),
    "to the host, without blocking": lambda x: x.to("cpu", non_blocking=True),
    "into a tensor of the host": lambda x: torch.empty(3).copy_(x),
    "from the host": lambda x: torch.ones(3).to("meta"),
    "from a tensor of the host": lambda x: x.copy_(torch.ones(3)),
    "nonzero": lambda x: x.nonzero(),
    "mask": lambda x: x[x > 0],
    "unique": lambda x: x.unique(),
    "equal": lambda x: torch.equal(x, x + 1),
}


@pytest.mark.parametrize("wait", WAITS.values(), ids=WAITS)
def test_the_check_for_waiting_sees_it(wait):
    with pytest.raises(AssertionError, match="waits"), NoWaiting("meta"):
        wait(torch.ones(3, device="meta"))


def test_the_check_for_waiting_lets_pass_what_does_not():
    with NoWaiting("meta"):
        assert torch.ones(1).item() == 1
        x = torch.ones(3).to("meta", non_blocking=True)
        x.copy_(torch.ones(3), non_blocking=True)
        assert (torch.where(x > 0, x, 2)[None, :2] + 1).to(torch.float16).device.type == "meta"


def device_half(device):
    """Return the transforms that train_cached.yaml leaves to the trainer's device, and batches as from its loader."""
    settings = {**step_settings(device), "cache_dir": "unused", "augment_in_loader": False, "batch_size": 2}
    parser = ConfigParser()
    parser.read_config([str(CONFIGS / name) for name in ("train.json", "train_cached.yaml")])
    parser.update(settings | {"bundle_root": str(CONFIGS.parent)})
    transform = parser.get_parsed_content("train#preprocessing")
    batches = []
    for first in range(0, 8, 2):
        items = []
        for number in (first, first + 1):
            generator = torch.Generator().manual_seed(number)
            image = torch.randn(4, 32, 32, 32, generator=generator).half()
            label = torch.randint(0, 4, (1, 32, 32, 32), generator=generator).to(torch.uint8)
            item = {"image": MetaTensor(image), "label": MetaTensor(label), "et_label": 3, "case": f"case {number}"}
            items.append(item | {"edema_label": 2, "label_release": 0})
        batches.append(list_data_collate(items))
    return transform, parser.get_parsed_content("train#trainer#prepare_batch"), batches


def test_no_transform_of_the_device_half_reads_a_value_from_its_device():
    """All transforms from the move to the device on are checked, with collation; each changes at least one sample."""
    transform, prepare, batches = device_half("meta")
    moving = device_step(transform)
    seen = set()
    for batch in batches:
        with NoWaiting("meta"):
            image, label = prepare(batch, torch.device("meta"), True)
        assert image.device.type == label.device.type == "meta"
        assert (image.shape, image.dtype) == ((2, 4, 32, 32, 32), torch.float32)
        assert (label.shape, label.dtype) == ((2, 4, 32, 32, 32), torch.uint8)
        seen |= {type(step).__name__ for step in transform.transforms[moving:] if getattr(step, "_do_transform", True)}
    assert seen == {type(step).__name__ for step in transform.transforms[moving:]} and len(seen) == 8


def test_labels_that_went_to_the_device_were_checked_before():
    transform, _, _ = device_half("meta")
    kinds = [type(step) for step in transform.transforms]
    checks = [step for step in transform.transforms if isinstance(step, CheckLabelsd)]
    before, after = checks
    assert kinds.index(CheckLabelsd) < device_step(transform) < kinds.index(LabelsToRegionsd) and not after.check
    wrong = MetaTensor(torch.full((1, 4, 4, 4), 4.0), meta={"filename_or_obj": "seg.nii.gz"})
    with pytest.raises(InputError, match=r"^seg\.nii\.gz: unexpected label 4 beside 0, 1, 2, 3"):
        before({"label": wrong, "et_label": 3})


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU that torch can use")
def test_augmentation_on_the_gpu_gives_the_loaders_samples_and_does_not_wait(cohort: Path, tmp_path: Path):
    samples = {}
    for device in ("cpu", "cuda"):
        settings = step_settings(device, cache_dir=str(tmp_path / "cache"), augment_in_loader=False)
        trainer = trainer_of(("train.json", "train_cached.yaml"), settings, labeled_items(cohort)[:2])
        (first, *_) = trainer.data_loader
        prepare = trainer.prepare_batch
        prepare(first, torch.device(device), True)
        torch.cuda.set_sync_debug_mode("error" if device == "cuda" else "default")
        try:
            samples[device] = prepare(first, torch.device(device), True)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    for ours, wanted in zip(samples["cuda"], samples["cpu"], strict=True):
        assert ours.device.type == "cuda"
        # Nearest-neighbor resampling may go either way where a point lies between two voxels.
        different = (ours.cpu().float() - wanted.float()).abs() > 1e-3
        assert different.float().mean() < 1e-3
