"""Thinking the slow, obvious way: no cache, no batch, one position at a time, the library's own attention.

A thought after x_i sees x_0 .. x_i and itself, which is what a plain causal model sees in the text x_0 .. x_i START y_1 .. y_t END.
"""

import copy
from dataclasses import dataclass

import torch
from torch import Tensor

from quietserve.model.config import SamplingParams
from quietserve.model.quiet_model import QuietModel
from quietserve.model.sampling import Draw, sample, sample_thoughts


@dataclass
class Step:
    """What was computed at one position."""

    logits: Tensor
    thought: list[int]
    weight: float


class Reference:
    """A copy of a model, with the attention its library gives it."""

    def __init__(self, model: QuietModel) -> None:
        self.model = copy.deepcopy(model)
        self.lm = self.model.backbone.lm
        self.lm.set_attn_implementation("eager")

    def hidden(self, embeds_TH: Tensor) -> Tensor:
        """The last row's hidden state."""
        with torch.no_grad():
            return self.lm.base_model(inputs_embeds=embeds_TH[None], use_cache=False).last_hidden_state[0, -1]

    def step(self, tokens: list[int], params: SamplingParams) -> Step:
        """Think after `tokens` and give the mixed logits of the next one."""
        model, embed = self.model, self.lm.get_input_embeddings()
        base = embed(torch.tensor(tokens))
        h_base = self.hidden(base)
        if params.thought_depth == 0:
            return Step(self._logits(h_base), [], 0.0)
        thought: list[int] = []
        read = torch.cat([base, model.start_embedding[None]])
        while len(thought) < params.thought_depth:
            key = (params.seed, len(tokens) - 1, len(thought) + 1)
            logits = self._logits(self.hidden(read))[None]
            token = sample_thoughts(logits, [key], [params.thought_temperature])[0]
            if token in model.stop_ids:
                break
            thought.append(token)
            read = torch.cat([read, embed(torch.tensor([token]))])
        h_thought = self.hidden(torch.cat([read, model.end_embedding[None]]))
        weight = model.mixing_head(h_base, h_thought)
        return Step(self._logits((1 - weight) * h_base + weight * h_thought), thought, float(weight))

    def generate(self, prompt: list[int], params: SamplingParams, eos: frozenset[int]) -> tuple[list[int], list[Step]]:
        """Visible tokens and the steps that gave them."""
        output: list[int] = []
        steps = []
        while len(output) < params.max_tokens and not (output and output[-1] in eos):
            step = self.step(prompt + output, params)
            draw = Draw(params, prompt + output, len(prompt), eos)
            output.append(sample(step.logits[None], [draw])[0])
            steps.append(step)
        return output, steps

    def _logits(self, hidden: Tensor) -> Tensor:
        logits = self.lm.get_output_embeddings()(hidden).float()
        logits[self.model.hidden_ids] = float("-inf")
        return logits
