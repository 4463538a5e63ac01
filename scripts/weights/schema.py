# Copyright (c) the brats_mri_panet_segmentation authors
# SPDX-License-Identifier: Apache-2.0
"""The JSON schema of a record of weights.

A record comes with weights from anywhere, and parts of it become parts of a configuration, so it holds plain data only.
"""

from __future__ import annotations

from typing import Any

from scripts.data.postprocessing import THRESHOLDS


def _switch_or_volume(default: Any) -> dict[str, Any]:
    return {"type": "boolean"} if isinstance(default, bool) else {"type": "number", "minimum": 0}


_COUNT = {"type": ["integer", "null"], "minimum": 0}
_SIZES = {"type": "array", "items": {"type": "integer", "minimum": 1}, "minItems": 2, "maxItems": 3}
_TRAINED_ON = {
    "type": ["object", "null"],
    "properties": {
        "patients": _COUNT,
        "phantoms": _COUNT,
        "imported": {"type": ["string", "null"]},
        "started_from": {"type": ["object", "null"], "properties": {"trained_on": {"$ref": "#/$defs/trained_on"}}},
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
    "required": ["checksum", "network", "sequences", "spacing", "exclusive", "normalization", "thresholds"],
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
            "properties": {name: _switch_or_volume(value) for name, value in THRESHOLDS.items()},
            "additionalProperties": False,
        },
        "training": {"type": ["object", "null"], "properties": {"window": _SIZES}},
        "trained_on": {"$ref": "#/$defs/trained_on"},
        "missing_sequences": {"enum": [0, 1]},
    },
    "$defs": {"trained_on": _TRAINED_ON, "argument": _ARGUMENT},
}
