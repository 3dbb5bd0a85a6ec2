"""What is learnt from samples: texts whose completion counts, and which of them an update reads.

A completion ends with the token that ends a text, which counts as any other of it does; prompts and padding do not count.
"""

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

from ..tokens import Tokens
from .batches import Batch, pad
from .samples import Asked


@dataclass(frozen=True)
class Text:
    """A prompt and what is said behind it, as ids."""

    prompt: tuple[int, ...]
    said: tuple[int, ...]  # the token that ends it included
    question: int  # its number
    beta: float = 0.0  # how far the teacher is from its negative half on it (NCE)


@dataclass(frozen=True)
class Lesson:
    """What one part of a batch teaches."""

    text: Text
    wrong: Text | None = None  # what not to say


Draw = Callable[[int], list[Lesson]]  # those of a step


class Texts:
    """The samples of a folder as texts.

    Args:
        tokens: of the model that learns.
        asked: the questions.
        room: most tokens of a text.

    Raises:
        ValueError: nothing ends a text in this vocabulary, or a text is longer.
    """

    def __init__(self, tokens: Tokens, asked: Sequence[Asked], room: int) -> None:
        if not tokens.eos_ids:
            raise ValueError("the tokenizer has no token that ends a text: what is learnt would have no end")
        own = tokens.tokenizer.eos_token_id
        self.end = own if own in tokens.eos_ids else min(tokens.eos_ids)
        self._tokens, self._asked, self._room = tokens, asked, room
        every = list(enumerate(asked))
        self.right = [self.encode(number, sample.text) for number, one in every for sample in one.right]
        self.wrong = [self.encode(number, sample.text) for number, one in every for sample in one.wrong]

    def direct(self) -> list[Text]:
        """Of every question the answer alone."""
        return [self._text(n, one.direct_prompt, f" {one.key}") for n, one in enumerate(self._asked)]

    def encode(self, question: int, said: str) -> Text:
        """What was said to a question."""
        return self._text(question, self._asked[question].prompt, said)

    def _text(self, question: int, prompt: str, said: str) -> Text:
        ids = self._tokens.encode(prompt)
        text = Text(tuple(ids), (*self._tokens.encode(said, special=False), self.end), question)
        if (length := len(text.prompt) + len(text.said)) > self._room:
            source = self._asked[question].source
            raise ValueError(
                f"{source}: a sample has {length} tokens with its question; there is room for {self._room}"
            )
        return text


class Deck:
    """Texts in random order, shuffled anew when all were read. What is taken is a function of the seed and the step alone.

    Raises ValueError where there are none.
    """

    def __init__(self, texts: Sequence[Text], seed: str, what: str) -> None:
        if not texts:
            raise ValueError(f"--data holds no {what}")
        self._texts, self._seed = texts, seed
        self._order = lru_cache(maxsize=2)(self._shuffle)

    def take(self, step: int, size: int) -> list[Text]:
        """The texts of a step."""
        numbers = (divmod(place, len(self._texts)) for place in range(step * size, (step + 1) * size))
        return [self._texts[self._order(round_)[at]] for round_, at in numbers]

    def _shuffle(self, round_: int) -> list[int]:
        return random.Random(f"{self._seed}/{round_}").sample(range(len(self._texts)), len(self._texts))


def pair(right: Sequence[Text], wrong: Mapping[int, Sequence[Text]], rng: random.Random) -> list[Lesson]:
    """Each with a wrong text of its question, where there is one; `wrong` are those of every question."""
    return [Lesson(text, rng.choice(wrong[text.question]) if text.question in wrong else None) for text in right]


def by_question(texts: Sequence[Text]) -> dict[int, list[Text]]:
    """Texts by their question."""
    found: dict[int, list[Text]] = {}
    for text in texts:
        found.setdefault(text.question, []).append(text)
    return found


def collate(texts: Sequence[Text]) -> Batch:
    """Texts side by side; the tokens of completions count."""
    rows = [[*text.prompt, *text.said] for text in texts]
    weights = [[0.0] * len(text.prompt) + [1.0] * len(text.said) for text in texts]
    return pad(rows, weights, texts[0].said[-1])
