"""Word problems whose answer is a number, in the shape of GSM8K."""

from dataclasses import dataclass
from typing import Any

from ...answers import MARK, NUMBER, find_last_number, normalise
from .item import Wording


@dataclass(frozen=True)
class Numeric:
    """A question whose answer is a number, and its worked solution."""

    source: str
    question: str
    solution: str  # ends in "#### 72"
    answer: str  # one spelling of the number: "1000" for "1,000.0"
    wording: Wording

    choices = None
    reasoning = None
    num_steps = None

    @property
    def prompt(self) -> str:
        """The question, to be answered at once."""
        return self.wording.ask(self.question)

    @property
    def reasoning_prompt(self) -> str:
        """The question, to be answered step by step."""
        return self.wording.ask_to_reason(self.question)

    @property
    def reasoning_stop(self) -> tuple[str, ...]:
        """The beginning of another question."""
        return self.wording.stop

    @property
    def document(self) -> str:
        """The question and its worked solution."""
        return f"{self.prompt} {self.solution}"

    def verify(self, text: str) -> bool:
        """Whether the number that `text` comes to is the right one."""
        return self.extract(text) == self.answer

    def extract(self, text: str) -> str | None:
        """The first number behind the last "####"; without that mark, the last number."""
        found = find_last_number(text)
        return normalise(found) if found else None


def read_numeric(record: dict[str, Any], source: str, wording: Wording) -> Numeric:
    """An item from `{"question": ..., "answer": "... #### 72"}`. Raises ValueError saying what is wrong with it."""
    question, solution = record.get("question"), record.get("answer")
    if not isinstance(question, str) or not isinstance(solution, str):
        raise ValueError("`question` and `answer` must both be texts")
    _, mark, behind = solution.rpartition(MARK)
    if not mark or not NUMBER.fullmatch(behind.strip()):
        raise ValueError(f"`answer` must end in {MARK} and a number, as in '{MARK} 72'; it ends in {solution[-20:]!r}")
    return Numeric(source, question.strip(), solution.strip(), normalise(behind.strip()), wording)
