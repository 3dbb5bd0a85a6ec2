"""Who draws answers: a checkpoint, by the code that serves, or a model that is served somewhere."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Protocol

from ...clients.client import Client
from ..cache import Cache
from ..checkpoint import Loaded
from ..config import SamplingParams
from ..decode import Decoder, generate
from ..sampling import hash_key

MOST_AT_ONCE = 16  # answers that one request asks a served model for
RESERVED = ("prompt", "n", "logprobs", "seed", "stream", "model", "request_id")  # of a request; nobody else sets these


class Drawn(NamedTuple):
    """One answer."""

    text: str
    logprobs: list[float]  # of its tokens, before temperature


class Sampler(Protocol):
    """Draws answers."""

    def draw(
        self, prompts: Sequence[str], numbers: Sequence[int], count: int, bare: Sequence[bool] | None = None
    ) -> list[list[Drawn]]:
        """`count` answers to every prompt; its number and the sampler's seed decide which.

        `bare`: of each whether its answers are to be given without an aside before them; None: of none.
        """
        ...


@dataclass(frozen=True)
class LocalSampler:
    """Draws from a checkpoint. Raises ValueError where prompt and answer exceed its context."""

    loaded: Loaded
    params: SamplingParams  # its seed is that of the whole draw
    at_once: int = 128  # answers
    dash: int | None = None  # what opens an aside: not said in bare answers, or a base would reason in the open

    def draw(
        self, prompts: Sequence[str], numbers: Sequence[int], count: int, bare: Sequence[bool] | None = None
    ) -> list[list[Drawn]]:
        """`count` answers to every prompt."""
        params, model = self.params, self.loaded.model
        ids = [self.loaded.tokens.encode(prompt) for prompt in prompts]
        longest, depth = max(map(len, ids)) + params.max_tokens, params.thought_depth
        room = model.backbone.max_positions - (depth + 2 if depth else 0)
        if longest > room:
            raise ValueError(
                f"a prompt and its answer have up to {longest} tokens; the model's context has room for {room}"
            )
        cache = Cache(model.backbone, min(self.at_once, len(ids) * count), longest, depth)
        decoder = Decoder(model, self.loaded.tokens, cache)
        mute = params.logit_bias if self.dash is None else {**params.logit_bias, self.dash: -100.0}
        wanted = [
            replace(
                params, seed=hash_key(params.seed, number, sample), logit_bias=mute if is_bare else params.logit_bias
            )
            for number, is_bare in zip(numbers, bare or [False] * len(ids), strict=True)
            for sample in range(count)
        ]
        made = generate(decoder, [row for row in ids for _ in range(count)], wanted)
        drawn = [Drawn(one.text, [token.logprob or 0.0 for token in one.tokens]) for one in made]
        return [drawn[first : first + count] for first in range(0, len(drawn), count)]


@dataclass(frozen=True)
class ServedSampler:
    """Draws from a served model, by the completions that OpenAI's clients ask for. Raises what the client raises."""

    client: Client
    params: Mapping[str, Any]  # of every request; of those that are `RESERVED` the model alone
    seed: int

    def draw(
        self,
        prompts: Sequence[str],
        numbers: Sequence[int],
        count: int,
        bare: Sequence[bool] | None = None,  # noqa: ARG002  what its tokens are is not known here
    ) -> list[list[Drawn]]:
        """`count` answers to every prompt."""
        return [self._draw(prompt, number, count) for prompt, number in zip(prompts, numbers, strict=True)]

    def _draw(self, prompt: str, number: int, count: int) -> list[Drawn]:
        drawn: list[Drawn] = []
        while len(drawn) < count:
            seed = hash_key(self.seed, number, len(drawn)) % 2**31
            n = min(MOST_AT_ONCE, count - len(drawn))
            reply = self.client.complete(prompt, n=n, logprobs=0, seed=seed, **self.params)
            if any(choice.text and not choice.logprobs for choice in reply.choices):
                raise ValueError("the server sends no log-probabilities of its tokens (`logprobs`), which samples hold")
            drawn += [
                Drawn(choice.text, [token.logprob or 0.0 for token in choice.logprobs]) for choice in reply.choices
            ]
        return drawn
