"""The second turn: what is said to a model about its own answer, and the prompt that this makes.

The prompt of a second turn is the first one's ids, the answer's ids as they were sampled, and a bridge: what the chat template
writes behind an answer, the instruction, and what it writes before the next answer. Nothing is tokenised anew, so training and
serving see the same prompt to the byte, a template that rewrites earlier answers changes nothing, and what the first turn left
in the cache is read once. SCoRe (arXiv 2409.12917), "Multi-turn RL for self-correction", has the instruction's rule: it never
says whether the answer is right.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, Self, get_args

from .tokens import PromptError, Tokens

INSTRUCTION = "There might be an error in the answer above. Correct it if there is one, and answer again."

_ANSWER = "\u2060an answer\u2060"  # word joiners, which no template trims and no other message holds
_QUESTION = "a question"

Thinking = Literal["every", "last", "none"]


@dataclass(frozen=True)
class CorrectionConfig:
    """How a checkpoint learned to correct itself; `correction.json` holds exactly these fields.

    Raises ValueError naming the field when a value is out of its range.
    """

    instruction: str = INSTRUCTION  # said after each answer but the last
    thinking: Thinking = "every"  # the turns in which the model thinks quietly, at the depth that is asked for

    def __post_init__(self) -> None:
        if not isinstance(self.instruction, str) or not self.instruction.strip():
            raise ValueError(f"instruction is {self.instruction!r}; it must be a text that is not blank")
        if self.thinking not in get_args(Thinking):
            raise ValueError(f"thinking is {self.thinking!r}; it must be one of {', '.join(get_args(Thinking))}")

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """Build from parsed JSON; an unknown key is an error."""
        known = {f.name for f in fields(cls)}
        if unknown := sorted(set(values) - known):
            raise ValueError(f"unknown key {unknown[0]!r}; the keys are {', '.join(sorted(known))}")
        return cls(**values)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values, the inverse of `from_dict`."""
        return asdict(self)

    def depth(self, asked: int, is_last: bool) -> int:
        """The depth at which a turn thinks where `asked` is asked for."""
        return asked if self.thinking == "every" or (self.thinking == "last" and is_last) else 0


def bridge(tokens: Tokens, instruction: str) -> list[int]:
    """Ids from behind an answer to where the next one begins.

    A model without a chat template reads the instruction as a paragraph of its own. Raises PromptError where the instruction
    holds a thought marker, or the template will not have a second question.
    """
    if not tokens.has_chat_template:
        return tokens.encode(f"\n\n{instruction}\n\n", special=False)
    told = [("user", _QUESTION), ("assistant", _ANSWER), ("user", instruction)]
    text = tokens.render_text([{"role": role, "content": content} for role, content in told])
    _, answer, behind = text.rpartition(_ANSWER)
    if not answer:
        raise PromptError("the chat template leaves earlier answers out, so there is nothing to correct")
    return tokens.encode(behind, special=False)


def next_prompt(
    prompt: Sequence[int], answer: Sequence[int], ends: frozenset[int], between: Sequence[int]
) -> list[int]:
    """The prompt of the turn behind an answer.

    Args:
        prompt: ids of the turn that was answered.
        answer: ids as they were decided; one that ended the text is left out: the bridge says in its own way that it ended.
        ends: ids that end a text.
        between: the bridge.
    """
    kept = answer[:-1] if answer and answer[-1] in ends else answer
    return [*prompt, *kept, *between]
