"""The vote, and that it counts what decoding chain by chain says."""

import pytest

import tiny
from quietserve.model.cache import Cache
from quietserve.model.checkpoint import Loaded
from quietserve.model.config import SamplingParams
from quietserve.model.decode import Decoder, generate
from quietserve.model.progress import Generation, Token
from quietserve.model.sampling import hash_key
from quietserve.model.tokens import Tokens
from quietserve.model.training.evaluation import majority as module
from quietserve.model.training.evaluation.evaluation import Evaluation
from quietserve.model.training.evaluation.family_items import draw_items
from quietserve.model.training.evaluation.majority import majority
from quietserve.model.training.tasks import FAMILIES
from quietserve.model.training.tasks.item import Wording
from quietserve.model.training.tasks.numeric import Numeric


@pytest.mark.parametrize(
    ("answers", "winner"),
    [
        ([("3", -1), ("4", -2), ("4", -2)], "4"),
        ([("4", -2), ("3", -1), ("3", -1), ("4", -2)], "3"),  # of equals the likelier
        ([("4", -1), ("3", -1)], "4"),  # of these the one seen first
        ([(None, -1), (None, -1), ("5", -9)], "5"),  # those without an answer abstain
        ([(None, -1)], None),
        ([], None),
    ],
)
def test_the_majority(answers: list[tuple[str | None, float]], winner: str | None) -> None:
    said, chains = [text for text, _ in answers], [Generation(tokens=[Token(1, value)]) for _, value in answers]
    assert majority(said, chains) == winner


def test_it_counts_what_single_chains_say() -> None:
    """A random model says numbers now and then; the right answer is made to be one that it says."""
    loaded = Loaded(tiny.quiet_model(), Tokens(tiny.tokenizer()), "tiny")
    prompts = [f"Q: How many {what}?\nA: Let's think step by step." for what in ("oars", "owls")]
    decoder = Decoder(loaded.model, loaded.tokens, Cache(loaded.model.backbone, 1, 128, 2))
    blank = Numeric("", "", "", "", Wording())
    said: list[list[str | None]] = [[], []]
    chains: list[list[Generation]] = [[], []]
    for number, prompt in enumerate(prompts):
        for sample in range(3):
            params = SamplingParams(
                max_tokens=20,
                temperature=1.2,
                seed=hash_key(6, number, sample),
                thought_depth=2,
                stop=("\nQ:",),
                logprobs=0,
            )
            chains[number] += generate(decoder, [loaded.tokens.encode(prompt)], params)
            said[number].append(blank.extract(chains[number][-1].text))
    elected = list(map(majority, said, chains))
    items = [
        Numeric("f:1", f"How many {what}?", "", winner or "none", Wording())
        for what, winner in zip(("oars", "owls"), elected, strict=True)
    ]
    evaluation = Evaluation(loaded, 6, 1.0, samples=3, temperature=1.2, reasoning_tokens=20)
    (measured,) = module.measure(evaluation, items, [2])
    cell = measured.cell
    told = [answer for answers in said for answer in answers]
    assert any(told)
    assert measured.depth == 2
    assert cell["value"] == sum(winner is not None for winner in elected) / 2
    assert cell["answered"] == sum(answer is not None for answer in told) / 6
    right = sum(answer is not None and answer == elected[i // 3] for i, answer in enumerate(told))
    assert cell["single"]["value"] == pytest.approx(right / 6)


@pytest.mark.parametrize("family", FAMILIES)
def test_there_is_room_for_a_familys_chains(family: str) -> None:
    loaded = Loaded(tiny.quiet_model(), Tokens(tiny.tokenizer()), "tiny")
    items = draw_items(family, 12, 1)
    room = module.longest_chain(Evaluation(loaded), items)
    assert all(len(loaded.tokens.encode(item.reasoning)) < room for item in items)
    assert module.longest_chain(Evaluation(loaded), [*items, Numeric("", "", "", "1", Wording())]) == 256
