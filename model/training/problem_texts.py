"""Generated problems as training batches, answered directly: batch k is a function of (seed, k) alone."""

from collections.abc import Sequence
from typing import Any

from transformers import PreTrainedTokenizerFast

from .batches import Batch
from .documents import DASH_TOKEN, PAD, make_batch
from .loop import step_rng
from .tasks import FAMILIES


class ProblemTexts:
    """Batches of problems of all numbers of steps, families in equal shares.

    Args:
        tokenizer: of a base that `train pretrain` made.
        seed: draws others.
        size: texts of a batch.
        families: names.

    Raises:
        ValueError: the tokenizer is another one.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerFast, seed: int, size: int, families: Sequence[str] = tuple(FAMILIES)
    ) -> None:
        if tokenizer.convert_tokens_to_ids(DASH_TOKEN) is None or PAD not in tokenizer.get_vocab():
            raise ValueError(
                "--data problems: the base's tokenizer does not know them; `train pretrain` makes one that does"
            )
        self._tokenizer, self._seed, self._size, self._families = tokenizer, seed, size, families

    def batch(self, step: int) -> Batch:
        """The batch of a step."""
        return make_batch(
            self._tokenizer, step_rng(self._seed, step), self._size, {"direct": 1.0}, None, self._families
        )

    def state(self) -> dict[str, Any]:
        """Nothing: the step says where it stands."""
        return {}

    def load(self, state: dict[str, Any]) -> None:
        """Go there."""
