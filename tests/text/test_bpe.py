from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tokenizers

from gpugrad.text import BPETokenizer, load_tokenizer
from gpugrad.text.subwords import cut

LINES = [
    "def norm(x):",
    "    return sum(v * v for v in x) ** 0.5",
    "",
    "  ",
    "# it's the Größe, 日本語, 🙂 — I'll see",
    "\ttab \r",
    "x=1;y=22",
    "\x1c",
]


def random_text(count: int, seed: int) -> str:
    random = np.random.default_rng(seed)
    return "\n".join(LINES[i] for i in random.integers(0, len(LINES), count))


def gpt2_json(**changes) -> str:
    return json.dumps(json.loads(BPETokenizer.train(random_text(200, 0), 320).to_json()) | changes)


def test_learns_merges() -> None:
    text = random_text(500, seed=1)
    tokenizer = BPETokenizer.train(text, 320)
    assert tokenizer.vocab_size == 320
    ids = tokenizer.encode(text)
    assert len(ids) < 0.5 * len(text.encode())
    assert tokenizer.decode(ids) == text


def test_training_is_reproducible() -> None:
    text = random_text(500, seed=2)
    assert BPETokenizer.train(text, 350).to_json() == BPETokenizer.train(text, 350).to_json()


def test_training_takes_an_iterable() -> None:
    lines = random_text(300, seed=3).splitlines(keepends=True)
    tokenizer = BPETokenizer.train(iter(lines), 300)
    assert tokenizer.vocab_size == 300
    assert tokenizer.decode(tokenizer.encode(lines[0])) == lines[0]


def test_any_text_can_be_encoded() -> None:
    tokenizer = BPETokenizer.train("abab", 256)
    text = "".join(map(chr, [*range(0xD800), 0x1F642, 0x10FFFF]))
    assert tokenizer.vocab_size == 256
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_short_text_gives_a_smaller_vocabulary() -> None:
    assert BPETokenizer.train("abab", 1000).vocab_size == 258  # ab, abab


def test_vocabulary_has_room_for_the_bytes() -> None:
    with pytest.raises(ValueError, match=r"vocab_size must be at least 256 .* got 255"):
        BPETokenizer.train("abab", 255)


@pytest.mark.parametrize("size", [1, 7, 50, 1000])
@pytest.mark.parametrize("seed", range(5))
def test_cutting_changes_no_token(monkeypatch: pytest.MonkeyPatch, size: int, seed: int) -> None:
    text = random_text(300, seed)
    tokenizer = BPETokenizer.train(random_text(300, seed + 100), 500)
    whole = tokenizer.encode(text)
    pieces = list(cut(text, size))
    assert len(pieces) > 1
    assert "".join(pieces) == text
    monkeypatch.setattr("gpugrad.text.subwords.cut", lambda text: pieces)
    np.testing.assert_array_equal(tokenizer.encode(text), whole)


@pytest.mark.parametrize(
    "changes",
    [
        {"normalizer": {"type": "Lowercase"}},
        {"pre_tokenizer": None},
        {"pre_tokenizer": {"type": "Whitespace"}},
        {
            "pre_tokenizer": {
                "type": "ByteLevel",
                "add_prefix_space": True,
                "trim_offsets": True,
                "use_regex": True,
            }
        },
    ],
    ids=["normalizer", "none", "whitespace", "prefix space"],
)
def test_other_tokenizers_get_the_text_whole(
    monkeypatch: pytest.MonkeyPatch, changes: dict
) -> None:
    tokenizer = BPETokenizer(gpt2_json(**changes))
    text = random_text(50, seed=4)

    def fail(text: str) -> list[str]:
        raise AssertionError("cut")

    monkeypatch.setattr("gpugrad.text.subwords.cut", fail)
    library = tokenizers.Tokenizer.from_str(tokenizer.to_json())
    assert tokenizer.encode(text).tolist() == library.encode(text).ids


def special(content: str, **flags: bool) -> tokenizers.AddedToken:
    return tokenizers.AddedToken(content, special=True, normalized=False, **flags)


@pytest.mark.parametrize(
    ("token", "cut"),
    [
        (special("<|end|>"), True),
        (special("<|end|>", rstrip=True), False),
        (special("<|end|>", lstrip=True), False),
        (special("<\n>"), False),
    ],
    ids=["plain", "rstrip", "lstrip", "newline"],
)
def test_added_tokens_that_reach_across_lines_prevent_cutting(
    token: tokenizers.AddedToken, cut: bool
) -> None:
    library = tokenizers.Tokenizer.from_str(gpt2_json())
    library.add_special_tokens([token])
    tokenizer = BPETokenizer(library.to_str())
    assert tokenizer._splits_lines is cut
    text = "x = 1\n" * 20_000 + f"{token.content}\n{token.content}"
    assert tokenizer.encode(text).tolist() == library.encode(text).ids


def test_special_tokens_are_neither_added_nor_dropped() -> None:
    library = tokenizers.Tokenizer.from_str(gpt2_json())
    library.add_special_tokens([special("<|end|>")])
    end = library.token_to_id("<|end|>")
    library.post_processor = tokenizers.processors.TemplateProcessing(
        single="<|end|> $A", special_tokens=[("<|end|>", end)]
    )
    tokenizer = BPETokenizer(library.to_str())
    assert tokenizer.vocab_size == end + 1
    ids = tokenizer.encode("x = 1<|end|>y")
    assert np.count_nonzero(ids == end) == 1
    assert tokenizer.decode(ids) == "x = 1<|end|>y"


def test_truncation_and_padding_in_the_file_are_switched_off() -> None:
    library = tokenizers.Tokenizer.from_str(gpt2_json())
    text = "def norm(x): return 0.5"
    ids = library.encode(text).ids
    library.enable_truncation(3)
    library.enable_padding(length=100)
    assert BPETokenizer(library.to_str()).encode(text).tolist() == ids


def test_vocabulary_with_a_gap_counts_to_the_largest_id() -> None:
    model = {"type": "BPE", "vocab": {"a": 0, "b": 7}, "merges": []}
    assert BPETokenizer(gpt2_json(model=model)).vocab_size == 8


def test_load(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    tokenizers.Tokenizer.from_str(gpt2_json()).save(str(path))
    text = random_text(20, seed=5)
    for tokenizer in (BPETokenizer.load(path), load_tokenizer(path)):
        assert tokenizer.vocab_size == 320
        assert tokenizer.decode(tokenizer.encode(text)) == text


@pytest.mark.parametrize("content", [b"", b"{}", b"\xff\xfe"], ids=["empty", "foreign", "binary"])
def test_load_names_a_file_it_cannot_read(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=re.escape(f"BPETokenizer.load: {path}")):
        BPETokenizer.load(path)


def test_lone_surrogate_is_named() -> None:
    with pytest.raises(ValueError, match=r"^BPETokenizer\.encode: .*position 1"):
        BPETokenizer(gpt2_json()).encode("a\ud83d")


def test_missing_library_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(ModuleNotFoundError, match=r'pip install "gpugrad\[text\]"'):
        BPETokenizer.train("abc", 256)


def test_ctrl_c_is_heard_while_learning() -> None:
    """One word of 10^6 letters takes the library minutes."""
    code = (
        "import os, random, signal, threading\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "from gpugrad.text import BPETokenizer\n"
        "text = ''.join(random.choices('acgt', k=10**6))\n"
        "threading.Timer(1, os.kill, [os.getpid(), signal.SIGINT]).start()\n"
        "try:\n    BPETokenizer.train(text, 500)\nexcept KeyboardInterrupt:\n    print('heard')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=20, check=True
    )
    assert done.stdout == "heard\n"
