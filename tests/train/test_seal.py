"""Sealed JSON: what was written is intact, and nothing else is."""

from __future__ import annotations

import hashlib
import json

import numpy as np
import pytest

from gpugrad.train.seal import SEAL, is_intact, sealed

CONTENT = {"b": [0.1, 1e-300, -0.0, 2**70], "a": {"text": "é\ud800\u2028"}, "c": None}


def test_what_was_sealed_is_intact():
    data = sealed(CONTENT)
    found = json.loads(data)
    assert {key: value for key, value in found.items() if key != SEAL} == CONTENT
    assert is_intact(found, data)


def test_every_flipped_bit_shows():
    data = sealed(CONTENT)
    for position in range(len(data) * 8):
        bad = np.frombuffer(data, np.uint8).copy()
        bad[position // 8] ^= 1 << position % 8
        try:
            found = json.loads(bad.tobytes())
        except ValueError:
            continue
        assert not isinstance(found, dict) or not is_intact(found, bad.tobytes())


@pytest.mark.parametrize("change", [{"a": 1}, {"d": 1}, {SEAL: "0" * 64}])
def test_other_content_is_not_intact(change):
    found = {**json.loads(sealed(CONTENT)), **change}
    assert not is_intact(found, json.dumps(found, indent=1).encode() + b"\n")


def test_the_format():
    text = b'{\n "a": [\n  1\n ]'
    digest = hashlib.sha256(text + b"\n}\n").hexdigest()
    assert sealed({"a": [1]}) == text + f',\n "{SEAL}": "{digest}"\n}}\n'.encode()


def test_what_cannot_be_sealed_is_not_intact():
    data = b'{"a": 1e999}'
    assert is_intact(json.loads(data), data) is False
    deep: list = []
    for _ in range(100_000):
        deep = [deep]
    assert is_intact({"a": deep}, data) is False


def test_what_is_no_json_is_not_sealed():
    with pytest.raises(ValueError, match="not JSON compliant"):
        sealed({"a": float("nan")})
