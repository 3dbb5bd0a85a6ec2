"""Two attempts at each problem, decoded by what serves: an answer, the instruction, and another answer.

The second prompt is made of the very ids the first attempt decided (`correction.next_prompt`), and what the first turn left in
the cache is not read again.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from ..cache import Cache
from ..checkpoint import Loaded
from ..config import SamplingParams
from ..correction import CorrectionConfig, bridge, next_prompt
from ..decode import Decoder, generate
from ..progress import Generation
from ..quiet_model import QuietModel
from ..sampling import hash_key
from .tasks.item import Item

TURNS = 2


@dataclass(frozen=True)
class Turn:
    """One attempt."""

    prompt: list[int]
    answer: Generation
    right: bool

    @property
    def ids(self) -> list[int]:
        """Of the answer, its end included."""
        return [token.id for token in self.answer.tokens]


@dataclass(frozen=True)
class Episode:
    """A problem's attempts, the first by somebody else where it is not `own`."""

    turns: tuple[Turn, Turn]
    own: bool = True


@dataclass(frozen=True)
class Player:
    """How attempts are made. Two with the same fields and weights make the same ones.

    Raises PromptError where the instruction cannot be said; its methods raise ValueError where the context has no room for both.
    """

    loaded: Loaded
    correction: CorrectionConfig
    max_tokens: int
    temperature: float = 1.0
    depth: int = 0
    thought_temperature: float = 1.0
    stop: tuple[str, ...] = ()
    at_once: int = 256  # attempts
    logprobs: int | None = None  # as `SamplingParams` has it
    between: list[int] = field(init=False)  # two attempts

    def __post_init__(self) -> None:
        object.__setattr__(self, "between", bridge(self.loaded.tokens, self.correction.instruction))

    @property
    def thinks(self) -> bool:
        """There are thoughts in some turn."""
        return any(self.correction.depth(self.depth, is_last) for is_last in (False, True))

    def play(
        self, items: Sequence[Item], seeds: Sequence[int], model: QuietModel, given: Sequence[Turn] = ()
    ) -> list[Episode]:
        """Attempt every item twice, each with its own seed; `given` are somebody else's first attempts at the first items."""
        prompts, own = self.prompts(items), slice(len(given), None)
        decoder = self._decoder(model, prompts)
        firsts = [*given, *self._attempt(items[own], prompts[own], seeds[own], 1, decoder)]
        seconds = self._attempt(items, [self.next_prompt(turn) for turn in firsts], seeds, TURNS, decoder)
        pairs = zip(firsts, seconds, strict=True)
        return [Episode(pair, own=number >= len(given)) for number, pair in enumerate(pairs)]

    def begin(self, items: Sequence[Item], seeds: Sequence[int], model: QuietModel) -> list[Turn]:
        """First attempts alone."""
        prompts = self.prompts(items)
        return self._attempt(items, prompts, seeds, 1, self._decoder(model, prompts)) if items else []

    def swap(
        self, items: Sequence[Item], seeds: Sequence[int], episodes: Sequence[Episode], model: QuietModel
    ) -> list[Turn]:
        """Second attempts, each behind the first attempt at the problem before it in place of its own."""
        prompts = self.prompts(items)
        others = [episodes[number - 1].turns[0] for number in range(len(items))]
        told = [self.next_prompt(replace(other, prompt=own)) for own, other in zip(prompts, others, strict=True)]
        return self._attempt(items, told, seeds, TURNS, self._decoder(model, prompts))

    def prompts(self, items: Sequence[Item]) -> list[list[int]]:
        """Of the first turn: as a chat begins, where the model has a template for one."""
        tokens = self.loaded.tokens
        if not tokens.has_chat_template:
            return [tokens.encode(item.prompt) for item in items]
        return [tokens.render([{"role": "user", "content": item.question}]) for item in items]

    def next_prompt(self, turn: Turn) -> list[int]:
        """Of the turn behind it."""
        return next_prompt(turn.prompt, turn.ids, self.loaded.tokens.eos_ids, self.between)

    def _attempt(
        self, items: Sequence[Item], prompts: Sequence[list[int]], seeds: Sequence[int], turn: int, decoder: Decoder
    ) -> list[Turn]:
        """One turn of each; turns count from 1."""
        depth = self.correction.depth(self.depth, turn == TURNS)
        params = [
            SamplingParams(
                max_tokens=self.max_tokens,
                temperature=self.temperature,
                seed=hash_key(seed, turn),
                stop=self.stop,
                logprobs=self.logprobs,
                thought_depth=depth,
                thought_temperature=self.thought_temperature,
            )
            for seed in seeds
        ]
        answers = generate(decoder, prompts, params)
        return [
            Turn(prompt, answer, item.verify(answer.text))
            for item, prompt, answer in zip(items, prompts, answers, strict=True)
        ]

    def _decoder(self, model: QuietModel, prompts: Sequence[list[int]]) -> Decoder:
        """A new one each time: what a cache holds is the weights' of that moment."""
        longest = max(map(len, prompts)) + TURNS * self.max_tokens + len(self.between)
        room = model.backbone.max_positions - (self.depth + 2 if self.thinks else 0)
        if longest > room:
            raise ValueError(
                f"two attempts of {self.max_tokens} tokens make texts of up to {longest}; the model's context has room for {room}"
            )
        cache = Cache(model.backbone, min(self.at_once, len(prompts)), longest, self.depth)
        return Decoder(model, self.loaded.tokens, cache, prefill_chunk=4096, graphs=False)
