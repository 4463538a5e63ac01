# Copyright (c) the brats_mri_panet_segmentation authors
# SPDX-License-Identifier: Apache-2.0
"""Import of the authors' checkpoints: every kind of their networks is imported whole, and anything else is refused."""

import os
import pickle
import re
import shlex
import subprocess
from pathlib import Path

import pytest
import torch
from forks import python
from scripts.import_checkpoint import main
from scripts.networks import AttentionUNet, CascadedUNet, PriorAttentionNet
from scripts.utils.errors import InputError
from scripts.weights.authors import convert, read_state_dict
from scripts.weights.loading import check_weights
from scripts.weights.record import read_weights_record
from workflows import ROOT, initialized

GOLDEN = Path(__file__).parent.parent / "golden"
HEADS = ("fcn", "parallel")
SMALL = (4, 8, 8, 12, 16)

# This bundle's names are on the left, and the authors' names are on the right.
HEAD_LAYERS = {
    "fcn": {"reduce4": "conv5_4", "fuse3": "conv4_0", "reduce3": "conv4_3", "fuse2": "conv3_0", "output": "conv_out"},
    "parallel": {
        "reduce2": "conv3_0",
        "reduce3": "conv4_0",
        "reduce4": "conv5_0",
        "join_deep": "conv4_5",
        "join_shallow": "conv3_4",
        "output": "conv_out",
    },
}
# Level, residual block and transposed convolution in the authors' decoder.
DECODER = ((3, "conv3_1", "up4_3"), (2, "conv2_2", "up3_2"), (1, "conv1_3", "up2_1"), (0, "conv0_4", "up1_0"))


def authors_name(name, head="fcn", supervision=True):
    """Return the authors' name for a tensor of this bundle's network."""
    name = re.sub(r"\.body\.(\d)\.", lambda m: f".conv{int(m[1]) + 1}.", name)
    name = name.replace(".shortcut.", ".identity_mapping.")
    name = re.sub(r"^encoder\.(\d)\.", r"backbone.conv\1_0.", name)
    for level, block, up in DECODER:
        ours = f"decoder.{3 - level}."
        name = name.replace(f"{ours}block.", f"{block}.").replace(f"{ours}upsample.", f"{up}.trans_conv.")
        name = name.replace(f"{ours}skip_weight", f"skip_{level}.param")
        if name.startswith(f"outputs.{3 - level}."):
            name = name.replace(f"outputs.{3 - level}.", f"convds{level if supervision else 0}.")
    for ours, theirs in HEAD_LAYERS[head].items():
        name = name.replace(f"head.{ours}.", f"one_stage.{theirs}.")
    return name.replace("prior_downsample.", "conv_down.")


def authors_state(network, head="fcn", supervision=True, dead_slopes=True):
    """Return the weights as the authors store them, and the names of tensors that they store but never read."""
    state = {authors_name(name, head, supervision): value.clone() for name, value in network.state_dict().items()}
    dead = set()
    group = "backbone.conv0_0.0.weight" in state
    # The authors also store an identity shortcut as a block. Each block has a slope, even without an activation: the
    # last units have none or, with group normalization, the sum has none.
    blocks = {re.match(r"(backbone\.conv\d_0|conv\d_\d)\.conv1\.", name) for name in state}
    for block in {found[1] for found in blocks if found}:
        last = "conv3" if f"{block}.conv3.conv.weight" in state else "conv2"
        if f"{block}.identity_mapping.conv.weight" not in state:
            dead.add(f"{block}.identity_mapping.conv.weight")
        if dead_slopes and group:
            dead.add(f"{block}.act.weight")
        elif dead_slopes:
            dead |= {f"{block}.{last}.act.weight", f"{block}.identity_mapping.act.weight"}
    state |= {name: torch.full((1,), 9.0) for name in dead}
    return state, dead


def randomized(network, seed=3):
    generator = torch.Generator().manual_seed(seed)
    for name, value in network.state_dict().items():
        if value.is_floating_point():
            value.copy_(torch.rand(value.shape, generator=generator) - (0.0 if "running_var" in name else 0.4))
    return network


def golden_checkpoint(head="fcn"):
    return golden_of(f"panet_{head}")


def golden_of(name):
    return torch.load(GOLDEN / f"{name}_checkpoint.pkl", weights_only=True)


def saved(value, path):
    torch.save(value, path)
    return path


@pytest.mark.parametrize("head", HEADS)
def test_golden_checkpoint_names_are_all_accounted_for(head):
    state = golden_checkpoint(head)["net"]
    network, dropped = convert(state)
    # Each of the 9 residual blocks has a slope for its second convolution and for its shortcut. The shortcut of the
    # first block, from 4 to 4 channels, is the identity, and the authors store an unused convolution for it.
    convolutions = [
        name for name in dropped if not name.endswith((".conv2.act.weight", ".identity_mapping.act.weight"))
    ]
    assert convolutions == ["backbone.conv0_0.identity_mapping.conv.weight"]
    assert len(dropped) == len(set(dropped)) == 9 * 2 + 1
    ours = network.state_dict()
    assert {authors_name(name, head) for name in ours} == set(state) - set(dropped)
    for name, value in ours.items():
        assert torch.equal(value, state[authors_name(name, head)]), name


@pytest.mark.parametrize("head", HEADS)
def test_command_writes_a_bare_state_dict_for_the_network_it_names(head, tmp_path, capsys):
    target = tmp_path / "models" / "model.pt"
    assert main([str(GOLDEN / f"panet_{head}_checkpoint.pkl"), str(target)]) == 0
    state = torch.load(target, weights_only=True)
    network = PriorAttentionNet(channels=SMALL, head=head)
    network.load_state_dict(state)
    shown = capsys.readouterr().out
    assert f"{len(state)} tensors; 19 unused tensors were dropped" in shown
    for words in (f"head {head}", "channels [4, 8, 8, 12, 16]", "spatial_dims 3", "norm instance", "prelu"):
        assert words in shown
    assert sorted(p.name for p in target.parent.iterdir()) == ["model.json", "model.pt"]


@pytest.mark.parametrize("head", HEADS)
def test_the_record_says_how_the_authors_weights_are_used_and_the_command_does_so(head, tmp_path, capsys):
    target = tmp_path / "my models" / "model.pt"
    assert main([str(GOLDEN / f"panet_{head}_checkpoint.pkl"), str(target)]) == 0
    record = read_weights_record(target)
    assert record["sequences"] == ["t1", "t2", "t1ce", "flair"]
    assert (record["normalization"], record["exclusive"], record["spacing"]) == ("volume", False, [1.0] * 3)
    assert record["thresholds"] == {
        "min_component_mm3": 10,
        "min_tumor_probability": 0,
        "min_et_mm3": 300,
        "et_per_component": False,
    }
    assert record["training"]["window"] == [128] * 3
    assert record["trained_on"] == {"patients": None, "phantoms": None, "origin": None}
    shown = shlex.split(capsys.readouterr().out.splitlines()[-1])
    assert shown[:5] == ["python", "-m", "monai.bundle", "run", "inference"]
    options = dict(zip(shown[5:-4:2], shown[6:-4:2], strict=True))
    configs = ["configs/inference.json", "configs/authors.yaml"]
    assert options.pop("--config_file") == str(configs)
    assert options.pop("--model_file") == str(target)
    assert options == {
        "--network_def#channels": str(list(SMALL)),
        **({"--network_def#head": head} if head != "fcn" else {}),
    }
    # The printed command fits the record. Without the authors' preprocessing, the error names the missing overlay.
    changes = {name.removeprefix("--"): value for name, value in options.items()}
    changes["network_def#channels"] = list(SMALL)
    for names, said in ((configs, None), (configs[:1], "add configs/authors.yaml")):
        made = initialized(*(Path(name).name for name in names), kind="infer", **changes).parser
        check = (made.get_parsed_content("network_def"), str(target), made.get_parsed_content("weights_settings"))
        if said is None:
            assert check_weights(*check) == record
        else:
            with pytest.raises(InputError, match=said):
                check_weights(*check)


def test_the_threshold_of_the_authors_recipe_with_sgd_comes_along(tmp_path):
    checkpoint = golden_checkpoint()
    network = PriorAttentionNet(channels=SMALL)
    for optimizer, mm3 in (
        (torch.optim.Adam(network.parameters()), 300),
        (torch.optim.SGD(network.parameters(), lr=0.01, momentum=0.99, nesterov=True), 500),
    ):
        source = saved({**checkpoint, "optimizer": optimizer.state_dict()}, tmp_path / "a.pkl")
        target = tmp_path / f"{mm3}.pt"
        assert main([str(source), str(target)]) == 0
        assert read_weights_record(target)["thresholds"]["min_et_mm3"] == mm3


def test_exclusive_classes_come_in_this_bundles_order(tmp_path, capsys):
    """The authors' order is background, necrotic core, edema, ET; here it is background, ET, rest of TC, rest of WT."""
    plain, exclusive = tmp_path / "plain.pt", tmp_path / "exclusive.pt"
    source = str(GOLDEN / "panet_fcn_checkpoint.pkl")
    assert main([source, str(plain)]) == main([source, str(exclusive), "--exclusive"]) == 0
    assert " --exclusive True " in capsys.readouterr().out.splitlines()[-1]
    assert read_weights_record(exclusive)["exclusive"] is True
    network, x = PriorAttentionNet(channels=SMALL), torch.randn(1, 4, 32, 16, 16)
    results = []
    for file in (plain, exclusive):
        network.load_state_dict(torch.load(file, weights_only=True))
        with torch.no_grad():
            results.append(network.predict_all(x))
    for name in ("out", "level1", "level2", "level3"):
        background, necrosis, edema, et = results[0][name].unbind(1)
        assert torch.equal(results[1][name], torch.stack([background, et, necrosis, edema], 1)), name
    assert torch.equal(results[0]["prior"], results[1]["prior"])


def test_exclusive_needs_four_classes(tmp_path):
    state, _ = authors_state(PriorAttentionNet(channels=SMALL, out_channels=3))
    with pytest.raises(InputError, match="3 outputs, not the four classes of --exclusive; leave it out"):
        main([str(saved(state, tmp_path / "a.pkl")), str(tmp_path / "model.pt"), "--exclusive"])
    assert [path.name for path in tmp_path.iterdir()] == ["a.pkl"]


@pytest.mark.parametrize("name", ["model.pt", "model.json"])
def test_neither_weights_nor_a_record_are_overwritten(name, tmp_path):
    (tmp_path / name).write_text("mine")
    with pytest.raises(InputError, match="exists already") as caught:
        main([str(GOLDEN / "panet_fcn_checkpoint.pkl"), str(tmp_path / "model.pt")])
    assert str(caught.value).startswith(f"{tmp_path / name}: ")
    assert [path.name for path in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize("name", ["model.json", "run.pt", "config.pt", "datalist.pt"])
def test_weights_are_not_given_a_name_whose_record_is_another_file(name, tmp_path):
    with pytest.raises(InputError, match=r"choose a name like model\.pt"):
        main([str(GOLDEN / "panet_fcn_checkpoint.pkl"), str(tmp_path / name)])
    assert not any(tmp_path.iterdir())


@pytest.mark.slow
def test_command_line_imports_and_then_refuses_to_overwrite(tmp_path):
    """The command runs in a process of its own; a refusal gives status 1, one line of error and no traceback."""
    target = tmp_path / "model.pt"
    command = [python(), "-m", "scripts.import_checkpoint", str(GOLDEN / "panet_fcn_checkpoint.pkl"), str(target)]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    first = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False)
    assert first.returncode == 0, first.stderr
    before = target.read_bytes()
    second = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False)
    assert second.returncode == 1
    lines = [line for line in second.stderr.splitlines() if "Warning" not in line and not line.startswith("  ")]
    assert lines == [f"error: {target}: exists already; move it away or choose another name."]
    assert "Traceback" not in second.stderr
    assert target.read_bytes() == before


# The networks that the authors compared PANet with.

# Beside the slopes of PANet, each layer of a gate has one. The shortcut of a first block is the identity.
COMPARED = {
    "attention_unet": (AttentionUNet, "network_attention_unet.yaml", 9 * 2 + 4 * 3 + 1),
    "cascaded_unet": (CascadedUNet, "network_cascaded_unet.yaml", 2 * (9 * 2 + 1)),
}


@pytest.mark.parametrize("name", COMPARED)
def test_networks_that_the_authors_compared_with_are_imported_and_told_how_to_run(name, tmp_path, capsys):
    kind, overlay, dropped = COMPARED[name]
    target = tmp_path / "model.pt"
    assert main([str(GOLDEN / f"{name}_checkpoint.pkl"), str(target)]) == 0
    shown = capsys.readouterr().out.splitlines()
    state = torch.load(target, weights_only=True)
    assert shown[0] == f"{target}: {len(state)} tensors; {dropped} unused tensors were dropped"
    kind(channels=SMALL).load_state_dict(state)
    # Every value comes from the checkpoint, and no value comes twice.
    theirs = [value for value in golden_of(name)["net"].values() if value.numel() > 1]
    ours = [value for value in state.values() if value.numel() > 1]
    found = [[i for i, their in enumerate(theirs) if torch.equal(their, our)] for our in ours if our.dim() == 5]
    assert found and all(found) and len(set(map(tuple, found))) == len(found)
    record = read_weights_record(target)
    assert record["network"]["class"] == kind.__name__
    words = shlex.split(shown[-1])
    names = ["inference.json", "authors.yaml", overlay]
    assert words[words.index("--config_file") + 1] == str([f"configs/{file}" for file in names])
    assert [word for word in words if word.startswith("--network_def")] == ["--network_def#channels"]
    made = initialized(*names, kind="infer", **{"network_def#channels": list(SMALL)}).parser
    check = (made.get_parsed_content("network_def"), str(target), made.get_parsed_content("weights_settings"))
    assert check_weights(*check) == record
    # Without the overlay, the error names it.
    made = initialized(*names[:-1], kind="infer", **{"network_def#channels": list(SMALL)}).parser
    check = (made.get_parsed_content("network_def"), str(target), made.get_parsed_content("weights_settings"))
    with pytest.raises(InputError, match=f"the network {kind.__name__}, not PriorAttentionNet; add configs/{overlay}"):
        check_weights(*check)


def test_weights_of_panet_are_told_to_leave_out_the_overlay_of_another_network(tmp_path):
    target = tmp_path / "model.pt"
    assert main([str(GOLDEN / "panet_fcn_checkpoint.pkl"), str(target)]) == 0
    made = initialized("inference.json", "authors.yaml", "network_attention_unet.yaml", kind="infer").parser
    check = (made.get_parsed_content("network_def"), str(target), made.get_parsed_content("weights_settings"))
    with pytest.raises(InputError, match="not AttentionUNet; leave out the overlay that names AttentionUNet"):
        check_weights(*check)


def test_the_classes_of_a_cascade_are_those_of_its_second_stage(tmp_path):
    source = str(GOLDEN / "cascaded_unet_checkpoint.pkl")
    states = []
    for options in ([], ["--exclusive"]):
        target = tmp_path / f"{len(options)}.pt"
        assert main([source, str(target), *options]) == 0
        states.append(torch.load(target, weights_only=True))
    changed = {name for name in states[0] if not torch.equal(states[0][name], states[1][name])}
    assert changed == {"second_stage.outputs.0.weight", "second_stage.outputs.0.bias"}
    bias = "second_stage.outputs.0.bias"
    assert torch.equal(states[1][bias], states[0][bias][[0, 3, 1, 2]])


@pytest.mark.parametrize(
    ("name", "change", "said"),
    [
        ("attention_unet", lambda s: s.pop("gate3_2.W_x.norm.bias"), "missing: gates.1.skip.norm.bias"),
        ("attention_unet", lambda s: s.update({"gate3_2.W_y.a": torch.zeros(1)}), "unexpected: gate3_2.W_y.a"),
        ("attention_unet", lambda s: s.update({"skip_0.param": torch.zeros(1)}), "unexpected: skip_0.param"),
        ("cascaded_unet", lambda s: s.pop("first_stage.convds0.bias"), "missing: first_stage.outputs.0.bias"),
        ("cascaded_unet", lambda s: s.update({"convds0.bias": torch.zeros(4)}), "unexpected: convds0.bias"),
        ("cascaded_unet", lambda s: s.pop("second_stage.convds0.weight"), "no tensor second_stage.convds0.weight"),
    ],
)
def test_what_does_not_fit_the_compared_networks_is_named(name, change, said, tmp_path):
    checkpoint = golden_of(name)
    change(checkpoint["net"])
    source = saved(checkpoint, tmp_path / "authors.pkl")
    with pytest.raises(InputError, match=re.escape(said)):
        main([str(source), str(tmp_path / "model.pt")])
    assert not (tmp_path / "model.pt").exists()


VARIATIONS = [
    {"upsample": "deconv"},
    {"prior_attention": False, "deep_supervision": False},
    {"prior_attention": False},
    {"deep_supervision": False},
    {"head": "parallel", "upsample": "deconv"},
    {"head": "parallel", "deep_supervision": False},
    {"spatial_dims": 2},
    {"spatial_dims": 2, "head": "parallel", "upsample": "deconv"},
    {"norm": "batch"},
    {"norm": "group"},
    {"norm": "group", "channels": (8, 16, 16, 8, 8), "head": "parallel", "upsample": "deconv"},
    {"norm": "group", "bottleneck": True, "spatial_dims": 2},
    {"norm": "group", "act": "relu"},
    {"act": "relu"},
    {"bottleneck": True},
    {"bottleneck": True, "norm": "batch", "upsample": "deconv"},
    {"channels": (4, 4, 8, 8, 330)},
    {"in_channels": 8, "channels": (8, 8, 8, 8, 8)},
    {"in_channels": 1, "out_channels": 3},
]


@pytest.mark.parametrize("switches", VARIATIONS, ids=str)
def test_every_network_of_the_authors_comes_back_as_it_was(switches):
    arguments = {"channels": SMALL, **switches}
    original = randomized(PriorAttentionNet(**arguments))
    head = arguments.get("head", "fcn")
    relu = arguments.get("act") == "relu"
    state, dead = authors_state(original, head, arguments.get("deep_supervision", True), dead_slopes=not relu)
    network, dropped = convert(state)
    assert set(dropped) == dead
    assert list(network.state_dict()) == list(original.state_dict())
    for name, value in original.state_dict().items():
        assert torch.equal(network.state_dict()[name], value), name
    size = (32, 16) if network.spatial_dims == 2 else (32, 16, 16)
    x = torch.randn(1, network.in_channels, *size, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(network.eval()(x), original.eval()(x))


@pytest.mark.parametrize("wrapped", ["net", "bare", "parallel"])
def test_checkpoint_state_dict_and_data_parallel_names_are_accepted(wrapped, tmp_path):
    checkpoint = golden_checkpoint()
    if wrapped == "bare":
        checkpoint = checkpoint["net"]
    elif wrapped == "parallel":
        checkpoint["net"] = {f"module.{name}": value for name, value in checkpoint["net"].items()}
    assert main([str(saved(checkpoint, tmp_path / "a.pkl")), str(tmp_path / "model.pt")]) == 0
    written = torch.load(tmp_path / "model.pt", weights_only=True)
    wanted = convert(golden_checkpoint()["net"])[0].state_dict()
    assert list(written) == list(wanted)
    assert all(torch.equal(written[name], wanted[name]) for name in wanted)


def drop(state):
    del state["conv1_3.conv2.conv.weight"], state["skip_2.param"]


def add(state):
    state["gate3.weight"] = torch.zeros(1)
    state["backbone.conv5_0.conv1.conv.weight"] = torch.zeros(1)


def reshape(state):
    state["conv_down.weight"] = torch.zeros(1, 1, 5, 5, 5)


def widen(state):
    state["backbone.conv1_0.conv2.conv.weight"] = torch.zeros(10, 8, 3, 3, 3)


@pytest.mark.parametrize(
    ("change", "what", "named"),
    [
        (drop, "missing", ["decoder.2.block.body.1.conv.weight", "decoder.1.skip_weight"]),
        (add, "unexpected", ["gate3.weight", "backbone.conv5_0.conv1.conv.weight"]),
        (reshape, "of another shape", ["prior_downsample.weight"]),
        (widen, "of another shape", ["encoder.1.body.1.conv.weight", "encoder.1.body.0.conv.weight"]),
        (lambda state: state.pop("one_stage.conv4_0.norm.running_var"), "missing", ["head.fuse3.norm.running_var"]),
        (lambda state: state.pop("conv2_2.conv1.act.weight"), "missing", ["decoder.1.block.body.0.act.weight"]),
    ],
    ids=["dropped", "added", "reshaped", "widened", "statistic", "live slope"],
)
def test_what_does_not_fit_is_named_and_nothing_written(change, what, named, tmp_path):
    checkpoint = golden_checkpoint()
    change(checkpoint["net"])
    source = saved(checkpoint, tmp_path / "authors.pkl")
    with pytest.raises(InputError) as caught:
        main([str(source), str(tmp_path / "out" / "model.pt")])
    assert str(caught.value).startswith(f"{source}: tensors {what}: ")
    for name in named:
        assert name in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["backbone.conv3_0.conv2.conv.weight", "convds0.weight"])
def test_the_tensors_that_tell_the_network_are_asked_for_by_name(name, tmp_path):
    checkpoint = golden_checkpoint()
    del checkpoint["net"][name]
    with pytest.raises(InputError, match=re.escape(f"no tensor {name}")):
        main([str(saved(checkpoint, tmp_path / "a.pkl")), str(tmp_path / "model.pt")])
    assert not (tmp_path / "model.pt").exists()


@pytest.mark.parametrize(
    "content",
    [{"net": {"epoch": 3}}, {"net": [1, 2]}, [torch.zeros(1)], torch.zeros(1), {"epoch": 3, "optimizer": {}}],
    ids=["no tensors", "list", "list of tensors", "tensor", "no net"],
)
def test_a_file_without_a_state_dict_is_refused(content, tmp_path):
    source = saved(content, tmp_path / "a.pkl")
    with pytest.raises(InputError, match="no state dict") as caught:
        main([str(source), str(tmp_path / "model.pt")])
    assert str(source) in str(caught.value)
    assert not (tmp_path / "model.pt").exists()


@pytest.mark.parametrize(
    "content", [b"", b"not a checkpoint at all\n", bytes(range(256)) * 8, b"PK\x03\x04" + bytes(60)]
)
def test_a_file_that_is_no_checkpoint_is_refused(content, tmp_path):
    source = tmp_path / "a.pkl"
    source.write_bytes(content)
    with pytest.raises(InputError, match=re.escape(str(source))):
        main([str(source), str(tmp_path / "model.pt")])
    assert not (tmp_path / "model.pt").exists()


def test_a_cut_off_checkpoint_is_refused(tmp_path):
    whole = (GOLDEN / "panet_fcn_checkpoint.pkl").read_bytes()
    source = tmp_path / "a.pkl"
    for kept in (10, 1000, len(whole) // 2, len(whole) - 10):
        source.write_bytes(whole[:kept])
        with pytest.raises(InputError, match=re.escape(f"{source}: not a readable file of tensors")):
            main([str(source), str(tmp_path / "model.pt")])
    assert not (tmp_path / "model.pt").exists()


def test_an_absent_checkpoint_is_named(tmp_path):
    with pytest.raises(InputError, match="no such file") as caught:
        main([str(tmp_path / "absent.pkl"), str(tmp_path / "model.pt")])
    assert str(tmp_path / "absent.pkl") in str(caught.value)


class RunsCode:
    """An object that would create a file when it is unpickled."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return (open, (self.path, "w"))


@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickle_that_would_run_code_is_refused_unrun(zipped, tmp_path):
    checkpoint = {**golden_checkpoint(), "extra": RunsCode(tmp_path / "ran")}
    source = tmp_path / "a.pkl"
    if zipped:
        torch.save(checkpoint, source)
    else:
        source.write_bytes(pickle.dumps({"net": {}, "extra": RunsCode(tmp_path / "ran")}))
    with pytest.raises(InputError, match="could run code") as caught:
        main([str(source), str(tmp_path / "model.pt")])
    assert str(source) in str(caught.value) and "\n" not in str(caught.value)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.pkl"]


def test_prefix_is_removed_only_at_the_beginning():
    state = read_state_dict({"net": {"module.a.module.b": torch.zeros(1)}}, "x")
    assert list(state) == ["a.module.b"]
