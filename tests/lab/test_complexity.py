# Copyright (c) the brats_mri_panet_segmentation authors
# SPDX-License-Identifier: Apache-2.0
"""Parameters and FLOPs: counts by hand, the authors' figures, and the table that the documentation shows."""

import re

import pytest
import torch
from scripts.lab import network_table
from scripts.lab.complexity import flops, parameters
from scripts.networks import DynUNet, PriorAttentionNet, SwinUNETR
from scripts.utils.errors import InputError
from workflows import CONFIGS, ROOT

PLAIN = {"prior_attention": False, "deep_supervision": False}


def test_operations_of_a_u_net_are_those_of_its_layer_table():
    channels, size = (4, 6, 8, 10, 12), (32, 48, 16)
    network = PriorAttentionNet(channels=channels, **PLAIN)
    voxels = [32 * 48 * 16 // 8**level for level in range(5)]
    adds = 4 * channels[0] * voxels[0]

    def block(c_in, c_out, level, shortcut=True):
        return voxels[level] * (27 * c_in * c_out + 27 * c_out * c_out + shortcut * c_in * c_out)

    for level, (c_in, c_out) in enumerate(zip((4, *channels), channels, strict=False)):
        adds += block(c_in, c_out, level, shortcut=level > 0)
    for level in range(4):
        adds += block(channels[level] + channels[level + 1], channels[level], level)
    assert flops(network, size) == 2 * adds


def test_matrix_products_of_a_transformer_count():
    """Twice as many layers in the deepest level add their four products by weights, and attention in windows."""
    made = [SwinUNETR(feature_size=12, depths=(2, 2, 2, depth), window_size=2) for depth in (2, 4)]
    fewer, more = (flops(network, (64, 64, 64)) for network in made)
    # 64 tokens of 96 features; windows of 8 tokens. Query, key, value and projection, and two layers of four times the
    # width; then the products of queries with keys and of attention with values.
    tokens, features = 4**3, 96
    layer = tokens * (4 + 8) * features**2 + 2 * tokens * 8 * features
    assert more - fewer == 2 * 2 * layer
    assert parameters(made[1]) > parameters(made[0])


def test_counting_leaves_the_network_as_it_was():
    network = DynUNet(filters=(4, 4, 8, 8), strides=(1, 2, 2, 2), deep_supr_num=2).train()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    first = flops(network, (32, 32, 16))
    assert network.training and {value.device.type for value in network.state_dict().values()} == {"cpu"}
    assert all(torch.equal(value, network.state_dict()[name]) for name, value in before.items())
    assert flops(network.eval(), (32, 32, 16)) == first and not network.training
    assert list(network.train()(torch.zeros(1, 4, 32, 32, 16))) == ["out", "level1", "level2"]


def test_panet_has_the_authors_operations():
    """The authors' program has 1.22 TFLOP (610 G multiply-adds) for 128^3 voxels."""
    count = flops(PriorAttentionNet(), (128, 128, 128))
    assert (round(count / 1e12, 2), round(count / 2e9)) == (1.22, 610)


@pytest.mark.slow
def test_the_documented_table_is_what_the_command_prints(capsys):
    assert network_table.main([]) == 0
    shown = capsys.readouterr().out
    assert shown in (ROOT / "docs" / "networks.md").read_text(encoding="utf-8")
    found = {row.split("`")[1]: [cell.strip() for cell in row.split("|")[3:-1]] for row in shown.splitlines()[2:]}
    names = {row.split("`")[1]: row.split("|")[2].strip() for row in shown.splitlines()[2:]}
    plain = "train.json --network_def#prior_attention False"
    wanted = {"train.json": "PANet", plain: "enhanced U-Net", f"{plain} --network_def#deep_supervision False": "U-Net"}
    wanted |= {"train.json --network_def#act relu": "PANet", "network_swin_unetr.yaml": "SwinUNETR"}
    assert {name: names[name] for name in wanted} == wanted
    overlays = {path.name for path in CONFIGS.glob("network_*.yaml")}
    assert {name for name in found if " " not in name} == {"train.json", *overlays}
    # The authors count parameters that nothing reads, too: 18 of PANet, 30 of the attention U-Net.
    assert found["train.json"] == [f"{19_231_833 - 18:,}", "610", "1.22"]
    assert found["network_attention_unet.yaml"][0] == f"{17_116_188 - 30:,}"
    assert re.fullmatch(r"33,8\d\d,\d\d\d", found["network_cascaded_unet.yaml"][0])
    assert found["network_cascaded_unet.yaml"][2] == "2.35"


def test_a_size_that_a_network_cannot_take_is_named_in_one_line(capsys):
    with pytest.raises(InputError, match=r"--size \[100, 96, 96\]: train.json: .*of 16") as caught:
        network_table.main(["--size", "100", "96", "96"])
    assert "\n" not in str(caught.value) and capsys.readouterr().out == ""
