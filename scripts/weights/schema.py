# Copyright (c) the brats_mri_panet_segmentation authors
# SPDX-License-Identifier: Apache-2.0
"""The JSON schema of a record of weights.

A record comes with weights from anywhere, and parts of it become parts of a configuration, so it holds plain data only.
"""

from typing import Any

from scripts.brats import REGIONS
from scripts.data.postprocessing import THRESHOLDS

_SETTINGS = ("network", "sequences", "spacing", "exclusive", "normalization", "thresholds")
_SWITCH = {"type": "boolean"}
_VOLUME = {"type": "number", "minimum": 0}
_PROBABILITY = {"type": "number", "minimum": 0, "maximum": 1}
_COUNT = {"type": ["integer", "null"], "minimum": 0}
_SIZES = {"type": "array", "items": {"type": "integer", "minimum": 1}, "minItems": 2, "maxItems": 3}
_TRAINED_ON = {
    "description": "At least so many cases; null where nobody counted them. origin: checksum of the first weights that "
    "these go back to, null if they are the first.",
    "type": "object",
    "required": ["patients", "phantoms", "origin"],
    "properties": {
        "patients": _COUNT,
        "phantoms": _COUNT,
        "origin": {"type": ["string", "null"]},
        "cases": {
            "description": "The first digits of the SHA-256 of each case's first image.",
            "type": "object",
            "required": ["patients", "phantoms"],
            "properties": {kind: {"type": "array", "items": {"type": "string"}} for kind in ("patients", "phantoms")},
            "additionalProperties": False,
        },
    },
    "additionalProperties": False,
}
_NUMBERS = {"type": "array", "items": {"type": "number"}, "minItems": 1}
_CURVE = {"score": _NUMBERS, "value": _NUMBERS}
_FIT = {
    "weights": {"type": "object", "additionalProperties": {"type": "number", "minimum": 0}},
    **dict.fromkeys(("center", "scale", "low", "high"), _NUMBERS),
    **_CURVE,
    "reliable_from": {"type": "number"},
}
# See scripts.scores.expected_dice.
_CALIBRATION = {
    "type": "object",
    "required": ["cases", "flips", "windows", "absent", "voxel_mm", "intensities", "regions", "any_et"],
    "properties": {
        **{name: {"type": "integer", "minimum": 0} for name in ("cases", "flips", "absent")},
        "windows": {"type": "string"},
        "voxel_mm": {**_NUMBERS, "minItems": 2, "maxItems": 2},
        "intensities": {
            "type": "object",
            "required": ["mean", "deviation"],
            "properties": {"mean": _NUMBERS, "deviation": _NUMBERS},
        },
        "regions": {
            "type": "object",
            "required": list(REGIONS),
            "properties": {name: {"type": "object", "required": list(_FIT), "properties": _FIT} for name in REGIONS},
        },
        "any_et": {"type": "object", "required": list(_CURVE), "properties": _CURVE},
    },
}
# An argument of a network: numbers, names, and lists of them.
_ARGUMENT = {
    "type": ["number", "boolean", "null", "string", "array", "object"],
    "pattern": r"^[\w.-]*\Z",
    "items": {"$ref": "#/$defs/argument"},
    "additionalProperties": {"$ref": "#/$defs/argument"},
}
RECORD_SCHEMA: dict[str, Any] = {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "type": "object",
    "required": ["checksum", *_SETTINGS, "trained_on"],
    "properties": {
        "checksum": {"type": "string"},
        "network": {
            "type": "object",
            "required": ["class", "arguments"],
            "properties": {
                "class": {"type": "string", "pattern": r"^[A-Za-z_]\w*\Z"},
                "arguments": {"type": "object", "additionalProperties": {"$ref": "#/$defs/argument"}},
            },
        },
        "sequences": {"type": "array", "items": {"type": "string"}},
        "spacing": {"type": "array", "items": {"type": "number", "exclusiveMinimum": 0}, "minItems": 2, "maxItems": 3},
        "exclusive": {"type": "boolean"},
        "normalization": {"type": "string"},
        "thresholds": {
            "type": "object",
            "required": list(THRESHOLDS),
            "properties": dict.fromkeys(THRESHOLDS, _VOLUME)
            | {"min_tumor_probability": _PROBABILITY, "et_per_component": _SWITCH},
            "additionalProperties": False,
        },
        "training": {"type": ["object", "null"], "properties": {"window": _SIZES}},
        "trained_on": _TRAINED_ON,
        "missing_sequences": {"enum": [0, 1]},
        "expected_dice": {"type": "array", "items": _CALIBRATION},
    },
    "$defs": {"argument": _ARGUMENT},
}
