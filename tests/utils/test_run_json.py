# Copyright (c) the brats_mri_panet_segmentation authors
# SPDX-License-Identifier: Apache-2.0
"""The record of a run holds the command that started it, and nothing secret."""

import shlex
import subprocess
import sys

import pytest
from monai.bundle import ConfigParser
from scripts.utils.run_json import command_line, read_run_json, write_run_json
from scripts.workflow.configuration import Configuration
from scripts.workflow.preparation import record_resumption


def test_the_command_is_that_of_this_process(tmp_path):
    write_run_json(tmp_path, {}, phantoms=False)
    command = read_run_json(tmp_path)["command"]
    assert shlex.split(command) == ["python", *sys.orig_argv[1:]]


@pytest.mark.parametrize(
    ("given", "recorded"),
    [
        (["--api_key=abc", "--x", "1"], "'--api_key=***' --x 1"),
        (["--hf-token", "abc"], "--hf-token '***'"),
        (["--password"], "--password"),
        (["--tracking_uri=http://me:abc@host/x"], "--tracking_uri=http://***@host/x"),
        (["--keys", "image", "--dataset_dir", "/data/my tokens"], "--keys image --dataset_dir '/data/my tokens'"),
    ],
)
def test_secrets_become_stars(given, recorded):
    assert command_line(["/usr/bin/python3", "run.py", *given]) == f"python run.py {recorded}"


@pytest.mark.parametrize(
    ("argument", "recorded"),
    [
        ("['a.json','b.yaml']", "\"['a.json','b.yaml']\""),
        ("$@a['b']", "\"\\$@a['b']\""),
        ('it\'s "so" `now` \\ here', '"it\'s \\"so\\" \\`now\\` \\\\ here"'),
        ("$@a", "'$@a'"),
        ("it's so!", "'it'\"'\"'s so!'"),
        ("two  spaces\nand a line", "'two  spaces\nand a line'"),
    ],
)
def test_a_shell_takes_the_command_as_it_was_given(argument, recorded):
    command = command_line(["python3", "run.py", "--x", argument])
    assert command == f"python run.py --x {recorded}"
    shown = subprocess.run(["bash", "-c", f"printf '%s\\0' {command}"], capture_output=True, text=True, check=True)
    assert shown.stdout.split("\0") == ["python", "run.py", "--x", argument, ""]


def test_a_resumed_training_has_its_newest_command(tmp_path):
    write_run_json(tmp_path, {}, phantoms=False, command="python of yesterday", cases={"training": 2})
    record_resumption(Configuration(ConfigParser({})), str(tmp_path), epoch=1)
    record = read_run_json(tmp_path)
    assert record["command"] == command_line() and record["cases"] == {"training": 2}
