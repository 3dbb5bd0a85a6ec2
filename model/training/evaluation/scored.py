"""The paper's zero-shot metric: how probable the right answer is among those allowed. Nothing is generated.

Quiet-STaR (arXiv 2403.09629), "Downstream Performance", as its released evaluation computes it. The right answer is appended
to the prompt; behind every position whose next token belongs to the answer the model thinks, and the mixed distribution is
renormalised over the tokens that are allowed there. The product over the answer's tokens is the item's probability, the
metric its mean.

Which tokens are allowed?

- Where there are choices, those that continue a choice whose tokens so far are the answer's; and the end of an answer, where
  a choice ends there. The probabilities of all choices then add up to one, and a choice that begins another one gains nothing
  by being shorter. For labels of one token this is the softmax over the labels. Where only one token is allowed, the factor
  is one and nothing is thought.
- For numbers, every token that is digits with or without a space before them, and the end of an answer. Tokens of the answer
  that are neither (a lone space, a sign, a point) are read and not counted.

The end of an answer is a newline or the end of the text, their probabilities added up. The released code knows the newline
alone, and counts it against labels, too, where its share is next to nothing.

For the built-in families the choices are the right answer and four others that the family gives (`family_items`), in place of
CommonsenseQA's five.
"""

import math
import re
from collections.abc import Collection, Iterator, Sequence, Set
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from ...sampling import hash_key
from ...tokens import Tokens
from ..tasks.item import Item
from .evaluation import Evaluation, Measured
from .intervals import bootstrap, wilson
from .scoring import Scored, score

_DIGITS = re.compile(r" ?[0-9]+")
Beginning = tuple[int, ...]  # tokens that an answer begins with


@dataclass(frozen=True)
class Factor:
    """One factor of an answer's probability: the share of some tokens among those allowed, at one position of one text."""

    text: int  # which of the item's texts
    place: int  # which of that text's positions
    chosen: Tensor  # ids
    allowed: Tensor  # ids, the chosen ones among them

    def logprob(self, logprobs: Sequence[Tensor]) -> float:
        """Its logarithm, from log-probabilities [J, V] of each text."""
        row_V = logprobs[self.text][self.place]
        return float(row_V[self.chosen].logsumexp(0) - row_V[self.allowed].logsumexp(0))


@dataclass(frozen=True)
class Question:
    """What is to be read for one item, and the factors of each answer's probability."""

    texts: Sequence[Scored]
    factors: dict[str, list[Factor]]

    def probabilities(self, logprobs: Sequence[Tensor]) -> dict[str, float]:
        """The probability of each answer."""
        logs = {answer: sum(factor.logprob(logprobs) for factor in every) for answer, every in self.factors.items()}
        return {answer: math.exp(log) for answer, log in logs.items()}


def measure(evaluation: Evaluation, items: Sequence[Item], depths: Sequence[int]) -> Iterator[Measured]:
    """Yield a cell a depth.

    `value` is the mean probability of the right answer, with a bootstrap over items; where all items have choices, `likeliest`
    is the share of items whose likeliest choice is right, with its Wilson interval.
    """
    questions = [_question(evaluation, item, hash_key(evaluation.seed, number)) for number, item in enumerate(items)]
    texts = [text for question in questions for text in question.texts]
    for depth in depths:
        for item, question in zip(items, questions, strict=True):
            for text in question.texts:
                evaluation.require_room(max(text.positions) + 1, depth, item.source)
        scores = score(
            evaluation.loaded.model,
            texts,
            depth,
            evaluation.thought_temperature,
            evaluation.choose,
            evaluation.thoughts_at_once,
        )
        logprobs = (each.logprobs_JV.cpu() for each in scores)
        found = [question.probabilities([next(logprobs) for _ in question.texts]) for question in questions]
        right = [chances[item.answer] for item, chances in zip(items, found, strict=True)]
        yield Measured(depth, _count(items, found, right, evaluation.seed), right)


def _count(
    items: Sequence[Item], found: Sequence[dict[str, float]], right: Sequence[float], seed: int
) -> dict[str, Any]:
    n = len(items)
    cell: dict[str, Any] = {"value": sum(right) / n, "ci95": bootstrap(right, seed=seed), "n": n}
    if all(item.choices for item in items):
        hits = sum(
            max(chances, key=lambda answer: chances[answer]) == item.answer
            for item, chances in zip(items, found, strict=True)
        )
        cell["likeliest"] = {"value": hits / n, "ci95": wilson(hits, n)}
    return cell


def _question(evaluation: Evaluation, item: Item, seed: int) -> Question:
    return _among_choices(evaluation, item, seed) if item.choices else _as_number(evaluation, item, seed)


def _as_number(evaluation: Evaluation, item: Item, seed: int) -> Question:
    """A factor for each token of digits, and one for the end."""
    prompt, ids = evaluation.encode_answer(item, item.answer)
    digits, ends = _digit_ids(evaluation.loaded.tokens), end_ids(evaluation.loaded.tokens)
    allowed = _ids(digits | ends)
    steps = [(k, frozenset({token})) for k, token in enumerate(ids) if token in digits]
    if not steps:
        raise ValueError(f"{item.source}: the answer {item.answer!r} has no token of digits in this model's vocabulary")
    steps.append((len(ids), ends))
    positions = [len(prompt) - 1 + k for k, _ in steps]
    factors = [Factor(0, j, _ids(chosen), allowed) for j, (_, chosen) in enumerate(steps)]
    return Question([Scored([*prompt, *ids], positions, seed)], {item.answer: factors})


def _among_choices(evaluation: Evaluation, item: Item, seed: int) -> Question:
    """A factor for each place at which choices part, or one ends and another goes on."""
    encoded = {choice: evaluation.encode_answer(item, choice) for choice in item.choices or ()}
    answers = {choice: tuple(ids) for choice, (_, ids) in encoded.items()}
    prompt = next(iter(encoded.values()))[0]
    ends = end_ids(evaluation.loaded.tokens)
    branches = _branches(answers.values(), ends)
    texts: list[Scored] = []
    places: dict[Beginning, tuple[int, int]] = {}
    for ids in sorted(answers.values(), key=len, reverse=True):
        if new := [ids[:k] for k in range(len(ids)) if ids[:k] in branches and ids[:k] not in places]:
            places |= {begun: (len(texts), j) for j, begun in enumerate(new)}
            texts.append(Scored([*prompt, *ids], [len(prompt) - 1 + len(begun) for begun in new], seed))
    factors = {
        choice: [
            Factor(*places[ids[:k]], _ids({ids[k]} if k < len(ids) else ends), _ids(branches[ids[:k]]))
            for k in range(len(ids) + 1)
            if ids[:k] in branches
        ]
        for choice, ids in answers.items()
    }
    return Question(texts, factors)


def _branches(answers: Collection[Beginning], ends: Set[int]) -> dict[Beginning, set[int]]:
    """What may stand behind each beginning of an answer, its end included; only where that is more than one token."""
    nexts: dict[Beginning, set[int]] = {}
    for ids in answers:
        for k in range(len(ids)):
            nexts.setdefault(ids[:k], set()).add(ids[k])
    for ids in answers:
        if ids in nexts:  # another answer goes on where this one ends
            nexts[ids] |= ends
    return {begun: tokens for begun, tokens in nexts.items() if len(tokens) > 1}


def _ids(tokens: Set[int]) -> Tensor:
    return torch.tensor(sorted(tokens))


def end_ids(tokens: Tokens) -> frozenset[int]:
    """Tokens that end an answer: those that end a text, and the newline, where it is one token."""
    line, with_newline = tokens.encode("a", special=False), tokens.encode("a\n", special=False)
    newline = with_newline[len(line) :] if with_newline[: len(line)] == line else []
    found = tokens.eos_ids | frozenset(newline if len(newline) == 1 else [])
    if not found:
        raise ValueError("the tokenizer has neither a token that ends a text nor one for the newline: no answer ends")
    return found


@lru_cache(maxsize=2)
def _digit_ids(tokens: Tokens) -> frozenset[int]:
    """Tokens that are digits, with or without a space before them."""
    ids = range(min(tokens.num_ids, len(tokens.tokenizer)))
    return frozenset(token for token in ids if _DIGITS.fullmatch(tokens.token_text(token)))
