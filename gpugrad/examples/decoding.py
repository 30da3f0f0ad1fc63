"""One model, many ways to write: greedy, drawn, cut off, penalized, by beams.

The model counts which character follows the four before it in a nursery rhyme (a 5-gram, which any
other language model could replace), and goes on from "this is the". Greedy decoding takes the most
likely character each time and walks in a circle; beam search finds a more likely text; ancestral
sampling draws as the model thinks, the others from a distribution made sharper or cut off. How
likely each text is, the model says itself.

    python -m gpugrad.examples.decoding [--picture FILE.svg]

>>> main([])
strategy             bits per character
greedy               0.25  this is the cat that Jack built./this is the cat tha
greedy, penalty 1.3  0.22  this is the cat that Jack built./this is the malt th
ancestral            0.32  this is the rat that lay in that ate that Jack built
temperature 0.5      0.44  this is the malt that kis the dog that Jack built./t
temperature 2        1.98  this is the rat that milt the house the dogkhtoissed
top-k 2              0.33  this is the malt that lay in the cow with the malt t
top-p 0.8            0.32  this is the rat that lay in that ate that Jack built
min-p 0.2            0.32  this is the rat that lay in that ate that Jack built
2 beams              0.20  this is the malt that Jack built./this is the malt t
8 beams              0.20  this is the malt that Jack built./this is the house
8 beams, stop .      0.24  this is the malt that Jack built.
                     probability 0.0285
streamed up to 'Jack': rat that lay in that ate that
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from typing import Any

import gpugrad as gg
from gpugrad.examples._command import new_figure, parse_picture, save
from gpugrad.examples._rhyme import RHYME
from gpugrad.generate import Sampler, beam_search, generate, log_probability, stream
from gpugrad.models import NGram, NGramConfig
from gpugrad.text import CharTokenizer, StreamDecoder, until

PROMPT = "this is the "
LENGTH = 40
STRATEGIES: dict[str, dict[str, Any]] = {
    "greedy": {"greedy": True},
    "greedy, penalty 1.3": {"greedy": True, "repetition_penalty": 1.3},
    "ancestral": {},
    "temperature 0.5": {"temperature": 0.5},
    "temperature 2": {"temperature": 2.0},
    "top-k 2": {"top_k": 2},
    "top-p 0.8": {"top_p": 0.8},
    "min-p 0.2": {"min_p": 0.2},
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Print what each way of decoding writes, and how likely the model finds it."""
    picture = parse_picture(__doc__, arguments)
    tokenizer = CharTokenizer(RHYME)
    model = NGram(NGramConfig(tokenizer.vocab_size, order=5, smoothing="witten-bell"))
    model.fit(tokenizer.encode(RHYME))
    prompt = tokenizer.encode(PROMPT)

    def show(name: str, ids: Any) -> None:
        new = ids[len(prompt) :]
        bits = log_probability(model, new, prompt).bits_per(len(new))
        print(f"{name:19} {bits:5.2f}  {PROMPT}{tokenizer.decode(new)}".replace("\n", "/"))

    print("strategy             bits per character")
    for name, settings in STRATEGIES.items():
        show(name, generate(model, prompt, LENGTH, seed=1, **settings).numpy())
    for beams in (2, 8):
        show(f"{beams} beams", beam_search(model, prompt, LENGTH, num_beams=beams)[0].ids)

    end = tokenizer.encode(".")
    best = beam_search(model, prompt, LENGTH, num_beams=8, stop=end)[0]
    show("8 beams, stop .", best.ids)
    print(f"                     probability {math.exp(best.log_probability):.4f}")

    decoder = StreamDecoder(tokenizer)
    pieces = (decoder.feed([id]) for id in stream(model, prompt, 200, seed=1))
    print("streamed up to 'Jack':", "".join(until(pieces, ["Jack"])).replace("\n", "/"))

    if picture is not None:
        logits = model.next_logits(gg.tensor([prompt])).numpy()
        likely = logits[0].argsort()[::-1][:12]
        drawn = {k: v for k, v in STRATEGIES.items() if "greedy" not in v}
        figure = new_figure(10, 5)
        for axes, (name, settings) in zip(figure.subplots(2, 3).flat, drawn.items(), strict=True):
            axes.bar(range(12), Sampler(**settings).probabilities(logits)[0, likely])
            axes.set(title=name, xticks=range(12), ylim=(0, 0.7))
            axes.set_xticklabels([tokenizer.decode([id]) for id in likely])
        figure.suptitle(f"what follows {PROMPT!r}: what is drawn from")
        save(figure, picture)


if __name__ == "__main__":
    main(sys.argv[1:])
