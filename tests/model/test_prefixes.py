"""What prompts have in common is read once, and never what they have not."""

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

import tiny
from quietserve.model.cache import Cache
from quietserve.model.config import SamplingParams
from quietserve.model.decode import Decoder, generate
from quietserve.model.decoding import Decoding
from quietserve.model.prefixes import _common
from quietserve.model.tokens import Tokens

TOKENS = Tokens(tiny.tokenizer(), eos_ids=[0], marker_tokens=tiny.SPECIAL[1:])
MODEL = tiny.quiet_model()
PROMPT = [5 + i % 200 for i in range(40)]
SHORT = SamplingParams(max_tokens=2, temperature=0, thought_depth=2, ignore_eos=True)


def decoder(slots: int = 4, **settings: Any) -> Decoder:
    return Decoder(MODEL, TOKENS, Cache(MODEL.backbone, slots, max_len=80, max_depth=3), **settings)


def finish(engine: Decoder, *decodings: Decoding) -> int:
    """Run to the end; returns how many rows it took."""
    rows = 0
    while running := [d for d in decodings if d.finish_reason is None]:
        engine.step(running)
        rows += engine.num_rows
    return rows


@given(st.lists(st.integers(0, 1), max_size=40), st.lists(st.integers(0, 1), max_size=40), st.integers(0, 40))
def test_the_longest_common_prefix(a: list[int], b: list[int], most: int) -> None:
    slow = next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
    assert _common(a, b, most) == min(slow, most)


def test_sixteen_answers_to_one_prompt_read_it_once() -> None:
    engine = decoder(slots=16)
    together = [engine.start(slot, PROMPT, SHORT) for slot in range(16)]
    alone = decoder(slots=16, reuse_prefixes=False)
    apart = [alone.start(slot, PROMPT, SHORT) for slot in range(16)]
    assert finish(alone, *apart) - finish(engine, *together) == 15 * (len(PROMPT) - 1)
    assert [d.counts.reused for d in together] == [0] + [len(PROMPT) - 1] * 15
    assert len({tuple(d.tokens) for d in together + apart}) == 1


def test_a_second_turn_goes_on_where_the_first_ended() -> None:
    engine = decoder()
    first = engine.start(engine.prefixes.choose_slot(PROMPT, [0, 1, 2, 3]), PROMPT, SHORT)
    finish(engine, first)
    longer = [*first.tokens, 7, 8, 9]
    slot = engine.prefixes.choose_slot(tuple(longer), [0, 1, 2, 3])  # as the server has it: it once found nothing
    second = engine.start(slot, longer, SHORT)
    assert slot == first.slot
    assert second.counts.reused >= len(PROMPT)
    finish(engine, second)
    assert second.tokens[len(longer) :] == [t.id for t in generate(decoder(), [longer], SHORT)[0].tokens]


def test_a_shared_system_prompt_leaves_other_conversations_in_place() -> None:
    """A long conversation's slot once went to any request that began like it, which lost all that was behind."""
    engine = decoder()
    finish(engine, engine.start(engine.prefixes.choose_slot(PROMPT, [0, 1]), PROMPT, SHORT))
    other = [*PROMPT[:18], 99, 98]
    slot = engine.prefixes.choose_slot(other, [0, 1])
    assert slot == 1
    decoding = engine.start(slot, other, SHORT)
    finish(engine, decoding)
    assert decoding.counts.reused == 18
    again = engine.start(engine.prefixes.choose_slot(PROMPT, [0, 1]), PROMPT, SHORT)
    assert again.counts.reused == len(PROMPT) - 1


def test_the_slot_that_was_used_longest_ago_is_given_first() -> None:
    engine = decoder()
    for prompt in ([5], [6], [7]):
        finish(engine, engine.start(engine.prefixes.choose_slot(prompt, [0, 1, 2, 3]), prompt, SHORT))
    assert engine.prefixes.choose_slot([8], [0, 1, 2, 3]) == 3
    assert engine.prefixes.choose_slot([8], [0, 1, 2]) == 0


def test_a_leader_that_leaves_does_not_keep_its_followers_waiting() -> None:
    engine = decoder(prefill_chunk=16)
    leader, follower = engine.start(0, PROMPT, SHORT), engine.start(1, PROMPT, SHORT)
    engine.step([leader, follower])
    assert (leader.cached, follower.cached) == (16, 0)
    finish(engine, follower)  # the leader was cancelled
    assert follower.counts.reused == 16


def test_nobody_waits_for_a_prompt_that_is_scored() -> None:
    """It is read as fast as is thought after each of its tokens, and its neighbour once waited for all of that."""
    engine = decoder()
    scored = engine.start(0, PROMPT, SamplingParams(max_tokens=0, prompt_logprobs=0, thought_depth=3))
    beside = engine.start(1, PROMPT, SHORT)
    steps = 0
    while beside.finish_reason is None:
        engine.step([scored, beside])
        steps += 1
    assert steps < 12
    assert scored.finish_reason is None


def test_a_short_prompt_does_not_wait_for_a_long_one() -> None:
    engine = decoder(prefill_chunk=8)
    long, short = engine.start(0, PROMPT, SHORT), engine.start(1, [9, 8, 7], SHORT)
    engine.step([long, short])
    assert (long.cached, short.cached) == (5, 3)


def test_scored_prompts_read_every_token() -> None:
    engine = decoder()
    scored = SamplingParams(max_tokens=0, prompt_logprobs=0, thought_depth=2)
    decodings = [engine.start(slot, PROMPT, scored) for slot in range(2)]
    finish(engine, *decodings)
    assert [d.counts.reused for d in decodings] == [0, 0]


def test_what_a_failed_attempt_has_read_is_nobodys_prefix() -> None:
    engine = decoder()
    broken = engine.start(0, PROMPT, SHORT)
    engine.step([broken])
    engine.drop(broken)
    after = engine.start(0, PROMPT, SHORT)
    finish(engine, after)
    assert (after.finish_reason, after.counts.reused) == ("length", 0)
