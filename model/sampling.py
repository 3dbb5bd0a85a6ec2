"""Logits to tokens. The noise is a function of (seed, position), so a draw does not depend on who shares the batch."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from .config import SamplingParams

_MASK = (1 << 64) - 1
_GOLDEN = 0x9E3779B97F4A7C15  # splitmix64's increment and multipliers (Steele, Lea and Flood 2014)
_MULTIPLIERS = (0xBF58476D1CE4E5B9, 0x94D049BB133111EB)


@dataclass(frozen=True)
class Draw:
    """What choosing one visible token depends on, besides its logits."""

    params: SamplingParams
    tokens: Sequence[int]  # the prompt and the output so far
    num_prompt: int
    eos_ids: frozenset[int] = frozenset()  # may not be chosen before min_tokens, nor at all under ignore_eos

    @property
    def output(self) -> Sequence[int]:
        """The tokens chosen so far."""
        return self.tokens[self.num_prompt :]

    @property
    def banned(self) -> frozenset[int]:
        """Ids that may not be chosen now."""
        return self.params.banned(len(self.tokens) - self.num_prompt, self.eos_ids)


def sample(logits_MV: Tensor, draws: Sequence[Draw]) -> list[int]:
    """One token a row. Penalties and bias first, then temperature, top-k, top-p, min-p, then Gumbel-max."""
    if not draws:
        return []
    logits_MV = _adjust(logits_MV, draws)
    warm = [i for i, draw in enumerate(draws) if draw.params.temperature > 0]
    chosen = logits_MV.argmax(-1)
    if warm:
        params = [draws[i].params for i in warm]
        scaled = _truncate(logits_MV[warm] / _warmth([p.temperature for p in params], logits_MV), params)
        noise = gumbel([(p.seed, len(draws[i].tokens)) for i, p in zip(warm, params, strict=True)], scaled)
        chosen[warm] = (scaled + noise).argmax(-1)
    return chosen.tolist()


def sample_thoughts(logits_MV: Tensor, keys: Sequence[tuple[int, ...]], temperatures: Sequence[float]) -> list[int]:
    """One thought token a row; a temperature of 0 is greedy."""
    if not any(temperatures):
        return logits_MV.argmax(-1).tolist()
    noisy = logits_MV / _warmth(temperatures, logits_MV) + gumbel(keys, logits_MV)
    if all(temperatures):
        return noisy.argmax(-1).tolist()
    return torch.where(_column(temperatures, logits_MV) > 0, noisy, logits_MV).argmax(-1).tolist()


def gumbel(keys: Sequence[tuple[int, ...]], like_MV: Tensor) -> Tensor:
    """Standard Gumbel noise [M, V] that depends on each row's key alone, the same on every device.

    -log(E) of exponential E = -log(1 - u), which is precise where it decides: for small E, whose tokens win.
    """
    size = like_MV.shape[-1]
    roots = torch.tensor([_signed(hash_key(*key)) for key in keys], device=like_MV.device)
    bits = _scramble(roots[:, None] + _counters((size + 1) // 2, like_MV.device))
    halves = bits.view(torch.int32)[:, :size].bitwise_and(0x7FFFFFFF)  # one hash does for two tokens
    minus_u = halves.float().add_(0.5).mul_(-(2.0**-31)).clamp_(min=2.0**-24 - 1)
    return minus_u.log1p_().neg_().log_().neg_().to(like_MV.dtype)


@lru_cache(maxsize=8)
def _counters(size: int, device: torch.device) -> Tensor:
    return torch.arange(1, size + 1, device=device) * _signed(_GOLDEN)


def hash_key(*parts: int) -> int:
    """A 64-bit hash of integers; their order counts."""
    state = 0
    for part in parts:
        state = (state + _GOLDEN + (part & _MASK)) & _MASK
        state = ((state ^ (state >> 30)) * _MULTIPLIERS[0]) & _MASK
        state = ((state ^ (state >> 27)) * _MULTIPLIERS[1]) & _MASK
        state ^= state >> 31
    return state


def top_logprobs(logprobs_V: Tensor, chosen: int, count: int) -> tuple[float, list[tuple[int, float]]]:
    """The chosen token's log-probability and the `count` likeliest alternatives with theirs."""
    values, ids = logprobs_V.topk(min(count, len(logprobs_V)))
    return float(logprobs_V[chosen]), list(zip(ids.tolist(), values.tolist(), strict=True))


def _adjust(logits_MV: Tensor, draws: Sequence[Draw]) -> Tensor:
    """Penalties, bias and tokens that may not be chosen, yet or ever; most rows have none of them."""
    penalised = [i for i, draw in enumerate(draws) if _is_penalised(draw.params)]
    limited = [i for i, draw in enumerate(draws) if draw.params.allowed_token_ids]
    banned = [(i, token) for i, draw in enumerate(draws) for token in draw.banned]
    if not (penalised or limited or banned):
        return logits_MV
    logits_MV = logits_MV.clone()
    for i in penalised:
        _penalise(logits_MV[i], draws[i])
    for i in limited:
        logits_MV[i] = _only(logits_MV[i], draws[i].params.allowed_token_ids)
    if banned:
        rows, tokens = zip(*banned, strict=True)
        logits_MV[list(rows), list(tokens)] = float("-inf")
    return logits_MV


def _is_penalised(params: SamplingParams) -> bool:
    penalties = params.presence_penalty or params.frequency_penalty or params.repetition_penalty != 1
    return bool(penalties or params.logit_bias)


def _penalise(logits_V: Tensor, draw: Draw) -> None:
    """Penalties and bias, in place."""
    params, output = draw.params, draw.output
    if params.repetition_penalty != 1:
        seen = torch.tensor(sorted(set(draw.tokens)), device=logits_V.device)
        values = logits_V[seen]
        logits_V[seen] = torch.where(values > 0, values / params.repetition_penalty, values * params.repetition_penalty)
    if output and (params.presence_penalty or params.frequency_penalty):
        counts = torch.bincount(torch.tensor(output, device=logits_V.device), minlength=len(logits_V))
        logits_V -= params.frequency_penalty * counts + params.presence_penalty * (counts > 0)
    if params.logit_bias:
        ids, biases = _biases(params, logits_V.device)
        logits_V[ids] += biases


def _biases(params: SamplingParams, device: torch.device) -> tuple[Tensor, Tensor]:
    """The ids that have one, and it; they stay on the device from the first token of an attempt to its last."""
    if ("biases", device) not in params.worked_out:
        ids, biases = list(params.logit_bias), list(params.logit_bias.values())
        params.worked_out["biases", device] = torch.tensor(ids, device=device), torch.tensor(biases, device=device)
    return params.worked_out["biases", device]


def _only(logits_V: Tensor, allowed: Sequence[int]) -> Tensor:
    """The same, where no other token may be chosen."""
    ids = torch.tensor(allowed, device=logits_V.device)
    return torch.full_like(logits_V, float("-inf")).index_copy_(0, ids, logits_V[ids])


def _truncate(logits_MV: Tensor, params: Sequence[SamplingParams]) -> Tensor:
    """Cut to top-k, top-p and min-p, one sort for all three; the likeliest token always stays."""
    if all(p.top_k == 0 and p.top_p == 1 and p.min_p == 0 for p in params):
        return logits_MV
    size = logits_MV.shape[-1]
    values, order = logits_MV.sort(dim=-1, descending=True, stable=True)
    probs = values.softmax(-1)
    ranks = torch.arange(size, device=logits_MV.device)
    cut = ranks >= _column([p.top_k or size for p in params], probs)
    cut |= probs.cumsum(-1) - probs >= _column([p.top_p if p.top_p < 1 else 2.0 for p in params], probs)
    cut |= probs < probs[:, :1] * _column([p.min_p for p in params], probs)
    cut[:, 0] = False
    return torch.full_like(logits_MV, float("-inf")).scatter(-1, order, values.masked_fill(cut, float("-inf")))


def _warmth(temperatures: Sequence[float], like: Tensor) -> Tensor:
    """Temperatures to divide by; the smallest ones would overflow what they divide."""
    return _column(temperatures, like).clamp(min=1e-6)


def _column(values: Sequence[float], like: Tensor) -> Tensor:
    return torch.tensor(values, dtype=like.dtype, device=like.device)[:, None]


def _signed(value: int) -> int:
    return value - (1 << 64) if value >> 63 else value


def _shift(bits: Tensor, count: int, out: Tensor) -> Tensor:
    """Logical right shift of int64."""
    return torch.bitwise_right_shift(bits, count, out=out).bitwise_and_((1 << (64 - count)) - 1)


def _scramble(bits: Tensor) -> Tensor:
    """In place: this is done to whole vocabularies for every token."""
    shifted = torch.empty_like(bits)
    for count, multiplier in zip((30, 27), _MULTIPLIERS, strict=True):
        bits.bitwise_xor_(_shift(bits, count, shifted)).mul_(_signed(multiplier))
    return bits.bitwise_xor_(_shift(bits, 31, shifted))
