"""Forwards of fixed shapes against forwards of what there is: the same tokens. Without a GPU nothing is recorded."""

import pytest
import torch

import tiny
from quietserve.model.cache import Cache
from quietserve.model.config import SamplingParams
from quietserve.model.decode import Decoder, generate
from quietserve.model.graphs import MAX_WIDTH, StaticForwards
from quietserve.model.tokens import Tokens

TOKENS = Tokens(tiny.tokenizer(), eos_ids=[0], marker_tokens=tiny.SPECIAL[1:])
MODEL = tiny.quiet_model(stops="aeiou")
PROMPTS = [[5 + i] * length for i, length in enumerate((1, 3, MAX_WIDTH, MAX_WIDTH + 20, 7))]
PARAMS = [
    SamplingParams(max_tokens=6 + i, thought_depth=i, seed=i, ignore_eos=True, num_thoughts=1 + i % 2) for i in range(5)
]


def decoder(slots: int) -> Decoder:
    return Decoder(MODEL, TOKENS, Cache(MODEL.backbone, slots, max_len=80, max_depth=4))


def tokens_of(engine: Decoder) -> list[list[tuple[int, list[tuple[int, ...]]]]]:
    """Visible tokens and thoughts of every answer."""
    results = generate(engine, PROMPTS, PARAMS)
    return [[(t.id, [thought.token_ids for thought in t.thoughts]) for t in r.tokens] for r in results]


@pytest.mark.parametrize("slots", [1, 3, 5])
def test_fixed_shapes_decide_the_same(slots: int) -> None:
    fixed = decoder(slots)
    fixed._graphs = forwards = StaticForwards(MODEL, fixed.cache, record=False)
    assert tokens_of(fixed) == tokens_of(decoder(slots))
    assert forwards._forwards
    assert len(forwards._forwards) < 20, "shapes are few, so that they are recorded once"


def test_what_rows_nobody_asked_for_write_is_seen_by_nobody() -> None:
    engine = decoder(2)
    engine._graphs = StaticForwards(MODEL, engine.cache, record=False)
    decoding = engine.start(1, [5, 6, 7], PARAMS[2])
    while decoding.finish_reason is None:
        engine.step([decoding])
        for tensor in (*engine.cache.keys, *engine.cache.values):
            tensor[:, engine.cache.scratch + engine.cache.spare] = torch.nan
    assert decoding.finish_reason == "length"


def test_a_shape_that_cannot_be_recorded_runs_unrecorded(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr("quietserve.model.graphs.StaticForwards._recorded", fail)
    engine = decoder(3)
    engine._graphs = StaticForwards(MODEL, engine.cache)
    assert tokens_of(engine) == tokens_of(decoder(3))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_recorded_forwards_decide_the_same() -> None:
    model = tiny.quiet_model(stops="aeiou").cuda()
    results = []
    for graphs in (False, True):
        engine = Decoder(model, TOKENS, Cache(model.backbone, 3, max_len=80, max_depth=4), graphs=graphs)
        results.append(tokens_of(engine))
    assert results[0] == results[1]
