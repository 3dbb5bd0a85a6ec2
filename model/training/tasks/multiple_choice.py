"""Questions with lettered choices, in the shape of CommonsenseQA."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from .item import Wording

_CLAIM = re.compile(r"answer(?: is|:)\s*", re.IGNORECASE)


@dataclass(frozen=True)
class MultipleChoice:
    """A question, its lettered choices and the right letter."""

    source: str
    stem: str
    options: dict[str, str]  # label: text, in order
    answer: str  # the right one's label
    wording: Wording

    reasoning = None
    num_steps = None

    @property
    def choices(self) -> tuple[str, ...]:
        """The labels: what is scored, as in the paper."""
        return tuple(self.options)

    @property
    def question(self) -> str:
        """The stem and a line for each choice, laid out as in the paper's evaluation."""
        return "\n".join([self.stem, *(f"({label}) {text}" for label, text in self.options.items())])

    @property
    def prompt(self) -> str:
        """The question and its choices, to be answered at once."""
        return self.wording.ask(self.question)

    @property
    def reasoning_prompt(self) -> str:
        """The question and its choices, to be answered step by step."""
        return self.wording.ask_to_reason(self.question)

    @property
    def reasoning_stop(self) -> tuple[str, ...]:
        """The beginning of another question."""
        return self.wording.stop

    @property
    def document(self) -> str:
        """The question, its choices and the right label."""
        return f"{self.prompt} {self.answer}"

    def verify(self, text: str) -> bool:
        """Whether `text` says the right label, or that choice's text."""
        return self.extract(text) == self.answer

    def extract(self, text: str) -> str | None:
        """The label that is said.

        It is looked for behind the last "answer is" or "answer:", and where there is none, in the whole: a label or a
        choice's text at the beginning, else the last label in parentheses, else the one choice whose text is named.
        """
        said = _CLAIM.split(text)[-1].strip()
        if first := self._label_at_start.match(said):
            return first[1] or first[2]
        for label, option in self.options.items():
            if said.casefold().rstrip(".!") == option.casefold():
                return label
        if marked := self._label_in_parentheses.findall(said):
            return marked[-1]
        named = [label for label, option in self.options.items() if _names(said, option)]
        return named[0] if len(named) == 1 else None

    @cached_property
    def _labels(self) -> str:
        return "|".join(map(re.escape, self.options))

    @cached_property
    def _label_at_start(self) -> re.Pattern[str]:
        """A bare letter must be followed by what is no word: "A dog" is not the choice A."""
        return re.compile(rf"\(({self._labels})\)|({self._labels})(?=$|[.,:;)\n])")

    @cached_property
    def _label_in_parentheses(self) -> re.Pattern[str]:
        return re.compile(rf"\(({self._labels})\)")


def _names(text: str, option: str) -> bool:
    """Whether `option` stands in `text` as whole words."""
    return bool(re.search(rf"(?<!\w){re.escape(option.casefold())}(?!\w)", text.casefold()))


def read_multiple_choice(record: dict[str, Any], source: str, wording: Wording) -> MultipleChoice:
    """An item from CommonsenseQA's own shape, or from the flattened one of its Hugging Face copy.

    `{"question": {"stem", "choices": [{"label", "text"}]}, "answerKey"}` or
    `{"question", "choices": {"label": [...], "text": [...]}, "answerKey"}`. Raises ValueError saying what is wrong with it.
    """
    question = record.get("question")
    stem, choices = (
        (question.get("stem"), question.get("choices"))
        if isinstance(question, dict)
        else (question, record.get("choices"))
    )
    options = _options(choices)
    if not isinstance(stem, str):
        raise ValueError("`question`, or its `stem`, must be a text")
    answer = record["answerKey"]
    if not isinstance(answer, str) or answer not in options:
        raise ValueError(f"`answerKey` is {answer!r}; it must be among {', '.join(options)}")
    return MultipleChoice(source, stem.strip(), options, answer, wording)


def _options(choices: Any) -> dict[str, str]:
    """Labels and texts of either shape."""
    pairs = list(_pairs(choices))
    options = {label.strip(): text.strip() for label, text in pairs if isinstance(label, str) and isinstance(text, str)}
    if len(options) < 2 or len(options) < len(pairs) or not all([*options, *options.values()]):
        raise ValueError("`choices` must be two or more different labels with their texts")
    return options


def _pairs(choices: Any) -> Iterator[tuple[Any, Any]]:
    """What stands where labels and texts should; nothing where there are none."""
    if isinstance(choices, dict):
        labels, texts = choices.get("label"), choices.get("text")
        if isinstance(labels, list) and isinstance(texts, list) and len(labels) == len(texts):
            yield from zip(labels, texts, strict=True)
    elif isinstance(choices, list):
        yield from ((entry.get("label"), entry.get("text")) for entry in choices if isinstance(entry, dict))
