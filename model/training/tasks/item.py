"""What an evaluation asks of a model: one question, whatever it was made or read from."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

SLOT = "{question}"


class Item(Protocol):
    """One question of a task.

    An answer follows its prompt after one space, and a newline or the end of the text follows it.
    """

    @property
    def source(self) -> str:
        """Where it comes from, for messages: "gsm8k.jsonl:12"."""
        ...

    @property
    def question(self) -> str:
        """What a user would say in a chat."""
        ...

    @property
    def prompt(self) -> str:
        """The text up to where the answer begins."""
        ...

    @property
    def reasoning_prompt(self) -> str:
        """The text up to where a visible chain of thought begins."""
        ...

    @property
    def reasoning_stop(self) -> Sequence[str]:
        """Texts at which a chain of thought ends."""
        ...

    @property
    def reasoning(self) -> str | None:
        """A right chain of thought with its answer, as this model was taught to write it; None where it was taught none."""
        ...

    @property
    def answer(self) -> str:
        """The right answer: "7", "Anna", "B"."""
        ...

    @property
    def choices(self) -> Sequence[str] | None:
        """The answers that are allowed, the right one among them; None: any number."""
        ...

    @property
    def document(self) -> str:
        """The question with what is to be known about it, as one text."""
        ...

    @property
    def num_steps(self) -> int | None:
        """Steps that the answer takes, where that is known."""
        ...

    def verify(self, text: str) -> bool:
        """Whether `text`, which was said after the prompt, gives the right answer."""
        ...

    def extract(self, text: str) -> str | None:
        """The answer that a chain of thought comes to, as one to vote on; None where it comes to none."""
        ...


@dataclass(frozen=True)
class Wording:
    """How a question of a file is put to the model, and how it is asked to reason.

    The defaults are those of the paper's own evaluation (Quiet-STaR, arXiv 2403.09629, and its released code), zero-shot.
    Raises ValueError for a template that has no place for the question, or that ends in white space, which belongs to the
    answer's first token.
    """

    direct: str = f"Q: {SLOT}\nA:"
    reasoning: str = f"Q: {SLOT}\nA: Let's think step by step."

    def __post_init__(self) -> None:
        for flag, template in (("--template", self.direct), ("--reasoning-template", self.reasoning)):
            if SLOT not in template or template != template.rstrip():
                raise ValueError(f"{flag} is {template!r}; it must hold {SLOT} and not end in white space")

    def ask(self, question: str) -> str:
        """The prompt of a direct answer."""
        return self.direct.replace(SLOT, question)

    def ask_to_reason(self, question: str) -> str:
        """The prompt of a chain of thought."""
        return self.reasoning.replace(SLOT, question)

    @property
    def stop(self) -> tuple[str, ...]:
        """What a model writes when it goes on to a next question."""
        lead = self.reasoning.partition(SLOT)[0].strip()
        return (f"\n{lead}",) if lead else ()
