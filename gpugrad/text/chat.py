"""Instructions and conversations as training examples: the loss counts answers only.

    template = ChatTemplate()
    x, y = template.batch(tokenizer, [[("user", "2+2?"), ("assistant", "4")]], block=64)
    loss = model.loss(x, y)                     # targets outside of answers are -100
    model.generate(tokenizer.encode(template.prompt([("user", "3+3?")])), 20)

Supervised fine-tuning as in Ouyang et al., "Training language models to follow instructions with
human feedback" (2022).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from gpugrad.text.batches import Windows
from gpugrad.text.protocol import Ids, Tokenizer

Turns = Sequence[tuple[str, str]]
IGNORED = -100  # a target that does not count
ROLES = ("system", "user", "assistant")


@dataclass(frozen=True)
class ChatTemplate:
    """How the turns of a conversation are written: what comes before each, by role, and behind.

    ``end`` closes every turn; the model learns to write it behind an answer, so it is the stop
    sequence of a dialogue. The tokenizer must know all of its characters.
    """

    system: str = ""
    user: str = "Q: "
    assistant: str = "A: "
    end: str = "\n"

    def __post_init__(self) -> None:
        if not self.end:
            raise ValueError("ChatTemplate: end must not be empty: the model has to learn to stop")

    def text(self, turns: Turns) -> str:
        """Return a conversation as text."""
        return "".join(text for text, _ in self._segments(turns))

    def prompt(self, turns: Turns) -> str:
        """Return the text up to where the assistant's next answer begins."""
        return self.text(turns) + self.assistant

    def encode(self, tokenizer: Tokenizer, turns: Turns) -> tuple[Ids, npt.NDArray[np.bool_]]:
        """Return the ids of a conversation and which of them are answers, each with its end.

        Answers are encoded apart from what is around them, as when one is generated behind
        ``prompt``. Raises ValueError for a role other than system, user and assistant.
        """
        ids: list[Ids] = []
        answers: list[npt.NDArray[np.bool_]] = []
        for text, is_answer in self._segments(turns):
            part = tokenizer.encode(text) if text else np.empty(0, np.int64)
            ids.append(part)
            answers.append(np.full(len(part), is_answer))
        return np.concatenate(ids), np.concatenate(answers)

    def batch(
        self, tokenizer: Tokenizer, conversations: Sequence[Turns], block: int, pad: int = 0
    ) -> Windows:
        """Return inputs and targets, int64 (N, block): one conversation per row, padded behind.

        Targets are the ids that follow where those belong to an answer, and -100 in prompts and
        padding. A conversation of more than block + 1 ids is cut at its end. Raises ValueError
        naming the first conversation without an answer within block.
        """
        if block < 1:
            raise ValueError(f"ChatTemplate.batch: block must be at least 1, got {block}")
        x = np.full((len(conversations), block), pad, np.int64)
        y = np.full((len(conversations), block), IGNORED, np.int64)
        for row, turns in enumerate(conversations):
            ids, answers = self.encode(tokenizer, turns)
            length = min(len(ids) - 1, block)
            x[row, :length] = ids[:length]
            y[row, :length] = np.where(answers, ids, IGNORED)[1 : length + 1]
            if (y[row] == IGNORED).all():
                raise ValueError(
                    f"ChatTemplate.batch: conversation {row} ({len(ids)} ids) has no answer within "
                    f"block {block}: nothing could be learned from it"
                )
        return x, y

    def _segments(self, turns: Turns) -> list[tuple[str, bool]]:
        """Return the pieces of a conversation and whether each is an answer."""
        if not turns:
            raise ValueError("ChatTemplate: a conversation needs at least one turn")
        pieces: list[tuple[str, bool]] = [("", False)]
        for role, content in turns:
            if role not in ROLES:
                raise ValueError(f"ChatTemplate: role must be one of {ROLES}, got {role!r}")
            before = getattr(self, role)
            if role == "assistant":
                pieces[-1] = pieces[-1][0] + before, False
                pieces += [(content + self.end, True), ("", False)]
            else:
                pieces[-1] = pieces[-1][0] + before + content + self.end, False
        return [piece for piece in pieces if piece[0]]
