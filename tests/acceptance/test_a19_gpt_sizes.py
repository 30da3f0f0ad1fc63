"""A19: exact parameter counts of published models, by arithmetic; nothing is allocated."""

from __future__ import annotations

import pytest

from gpugrad.models import GPTConfig, parameter_count, preset


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("gpt1", 116_534_784),
        ("gpt2", 124_439_808),
        ("gpt2-xl", 1_557_611_200),
        ("gpt3-175b", 174_604_259_328),
    ],
)
def test_a19_gpt_sizes(name: str, count: int) -> None:
    assert parameter_count(preset(name)) == count


def test_a19_gpt1_has_no_final_norm() -> None:
    config: GPTConfig = preset("gpt1")
    assert (config.vocab_size, config.block_size) == (40478, 512)
    assert not config.norm_first
    assert not config.has_final_norm
