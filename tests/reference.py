"""Thinking the slow, obvious way: no cache, no batch, one position at a time, the library's own attention.

A thought after x_i sees x_0 .. x_i and itself, which is what a plain causal model sees in the text x_0 .. x_i START y_1 .. y_t END.
"""

import copy
import functools
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from transformers import PreTrainedModel

from quietserve.model.config import SamplingParams
from quietserve.model.decode import thought_seed
from quietserve.model.quiet_model import QuietModel
from quietserve.model.sampling import Draw, sample, sample_thoughts


@dataclass
class Step:
    """What was computed at one position."""

    logits: Tensor
    thoughts: list[list[int]]
    weights: list[float]

    @property
    def thought(self) -> list[int]:
        """The only thought; empty where there was none."""
        return self.thoughts[0] if self.thoughts else []


class Reference:
    """A copy of a model, with the attention its library gives it; `lm` where the model's own has been sped up."""

    def __init__(self, model: QuietModel, lm: PreTrainedModel | None = None) -> None:
        self.model = copy.deepcopy(model) if lm is None else model
        self.lm = self.model.backbone.lm if lm is None else copy.deepcopy(lm)
        self.lm.set_attn_implementation("eager")

    def hidden(self, embeds_TH: Tensor) -> Tensor:
        """The last row's hidden state."""
        return self.lm.base_model(inputs_embeds=embeds_TH[None], use_cache=False).last_hidden_state[0, -1]

    @torch.no_grad()
    def step(self, tokens: list[int], params: SamplingParams, num_hidden: int = 0) -> Step:
        """Think after `tokens` and give the mixed logits of the next one; `num_hidden` tokens were thought before."""
        if params.thinking_token_budget is not None:
            left = (params.thinking_token_budget - num_hidden) // params.num_thoughts
            params = replace(params, thought_depth=min(params.thought_depth, left))
        base = self.lm.get_input_embeddings()(torch.tensor(tokens))
        h_base = self.hidden(base)
        logits = self._logits(h_base)
        if params.thought_depth == 0 or self._is_sure(logits, params):
            return Step(logits, [], [])
        read = functools.cache(functools.partial(self._read, base))  # thoughts of a position begin alike
        thoughts = [self._think(read, len(tokens), i, params) for i in range(params.num_thoughts)]
        weights = [self.model.mixing_head(h_base, h) for _, h in thoughts]
        mixed = [self._logits((1 - w) * h_base + w * h) for w, (_, h) in zip(weights, thoughts, strict=True)]
        if len(mixed) > 1:
            mixed = [torch.stack([logits.double().softmax(-1) for logits in mixed]).mean(0).log().float()]
        return Step(mixed[0], [thought for thought, _ in thoughts], [float(w) for w in weights])

    def _is_sure(self, logits: Tensor, params: SamplingParams) -> bool:
        if params.thought_threshold is None:
            return False
        probs = logits.softmax(-1)
        return float(-(probs * probs.clamp(min=1e-30).log()).sum()) < params.thought_threshold

    def _read(self, base: Tensor, thought: tuple[int, ...], end: bool = False) -> Tensor:
        """The hidden state behind a thought's last token, or behind its END."""
        model, embed = self.model, self.lm.get_input_embeddings()
        ids = torch.tensor(thought, dtype=torch.long)
        return self.hidden(torch.cat([base, model.start_embedding[None], embed(ids), model.end_embedding[None][:end]]))

    def _think(
        self, read: Callable[..., Tensor], length: int, index: int, params: SamplingParams
    ) -> tuple[list[int], Tensor]:
        """One thought after a text, and the hidden state behind its END."""
        thought: list[int] = []
        while len(thought) < params.thought_depth:
            key = (thought_seed(params.seed, index), length - 1, len(thought) + 1)
            logits = self._logits(read(tuple(thought)))[None]
            token = sample_thoughts(logits, [key], [params.thought_temperature])[0]
            if token in self.model.stop_ids:
                break
            thought.append(token)
        return thought, read(tuple(thought), end=True)

    @torch.no_grad()
    def states(self, tokens: list[int]) -> Tensor:
        """What every layer makes of a text without thoughts [layers + 1, T, H]: the library's `output_hidden_states`."""
        out = self.lm.base_model(input_ids=torch.tensor([tokens]), use_cache=False, output_hidden_states=True)
        return torch.cat(out.hidden_states)

    def generate(self, prompt: list[int], params: SamplingParams, eos: frozenset[int]) -> tuple[list[int], list[Step]]:
        """Visible tokens and the steps that gave them."""
        output: list[int] = []
        steps: list[Step] = []
        while len(output) < params.max_tokens and not (output and output[-1] in eos):
            num_hidden = sum(len(thought) for step in steps for thought in step.thoughts)
            step = self.step(prompt + output, params, num_hidden)
            draw = Draw(replace(params, allowed_token_ids=()), prompt + output, len(prompt), eos)
            output.append(sample(_limited(step.logits, params)[None], [draw])[0])
            steps.append(step)
        return output, steps

    def _logits(self, hidden: Tensor) -> Tensor:
        logits = self.lm.get_output_embeddings()(hidden).float()
        logits[self.model.hidden_ids] = float("-inf")
        return logits


def _limited(logits: Tensor, params: SamplingParams) -> Tensor:
    """The same, with nothing left to all but the allowed tokens."""
    allowed = params.allowed_token_ids or range(len(logits))
    return torch.tensor([value if i in allowed else float("-inf") for i, value in enumerate(logits.tolist())])
