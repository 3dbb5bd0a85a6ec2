"""Problems that are easier to check than to solve, and the documents of two attempts at them."""

import itertools
import random
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quietserve.model import checkpoint
from quietserve.model.training import attempts
from quietserve.model.training.attempts import OR, Attempts
from quietserve.model.training.documents import DASH, PAD, QUESTION_WEIGHT, build_tokenizer, token_id, write_prompt
from quietserve.model.training.tasks import SEARCHES, is_held_out, problems
from quietserve.model.training.tasks.karel import synthesis
from quietserve.model.training.tasks.karel.routes import DEEDS
from quietserve.model.training.tasks.karel.walks import act

TRACED = sorted(SEARCHES.keys() - synthesis.FAMILIES)  # whose answers show their steps
names, seeds = st.sampled_from(TRACED), st.integers(0, 2**32)


@given(names, seeds)
def test_the_drawn_answer_is_right_and_an_attempt_is_true(name: str, seed: int) -> None:
    rng, family = random.Random(seed), SEARCHES[name]
    problem = family.sample(rng, 5)
    assert family.verify(problem, problem.answer)
    assert family.verify(problem, f" {problem.answer}\n")
    attempt = family.attempt(rng, problem)
    assert family.verify(problem, attempt) == reaches_its_goal(name, problem.facts, attempt)


def reaches_its_goal(name: str, facts: tuple[int, ...], attempt: str) -> bool:
    """The slow way: the signs are added up, the program is run."""
    choices = attempt.split()[::2]
    if name == "routes":
        state = facts[:3]
        for word in choices:
            state = act(DEEDS[word], *state, 8)
        return state == facts[3:6]
    total = sum(n if sign == "+" else -n for sign, n in zip(choices, facts[:-1], strict=True))
    return (total - facts[-1]) % 11 == 0


@given(names, seeds, st.data())
def test_one_wrong_word_makes_it_wrong(name: str, seed: int, data: st.DataObject) -> None:
    rng, family = random.Random(seed), SEARCHES[name]
    problem = family.sample(rng, 5)
    words = problem.answer.split()
    at = data.draw(st.integers(0, len(words) - 1))
    words[at] = data.draw(
        st.sampled_from(["+", "-", "0", "7", "move", "left", "aaN", "", "++"]).filter(lambda w: w != words[at])
    )
    spoilt = " ".join(words)
    if spoilt.split() != problem.answer.split():
        assert not family.verify(problem, spoilt), "an answer whose steps are not true claims what is not so"


@pytest.mark.parametrize("name", SEARCHES)
@pytest.mark.parametrize("text", ["", " ", "+", "move", "0", "+ 0 + 0", "- - - - - - - - - -", "7" * 400])
def test_what_is_no_answer_is_wrong(name: str, text: str) -> None:
    family = SEARCHES[name]
    assert not family.verify(family.sample(random.Random(0), 5), text)


def test_a_shorter_program_is_right_too() -> None:
    family = SEARCHES["routes"]
    problem = next(p for p in problems("train", ("routes",)) if family.verify(p, shortened(p.answer)))
    assert len(shortened(problem.answer).split()) < len(problem.answer.split())
    longer = f"{problem.answer} left {problem.answer.split()[-1]}"
    assert not family.verify(problem, longer)


def shortened(program: str) -> str:
    """Without its last deed: right where that was a walk into the wall."""
    return " ".join(program.split()[:-2])


def test_the_question_says_all_that_is_checked() -> None:
    for name in TRACED:
        for problem, _ in zip(problems("held_out", (name,)), range(30), strict=False):
            assert is_held_out(problem.question)
            if name != "routes":
                *numbers, total = problem.facts
                assert {str(n) for n in (*numbers, total)} <= set(re.findall(r"\d+", problem.question))


def corpus(copies: float, foreign: float = 0.0, random_share: float = 0.3) -> Attempts:
    tokenizer = build_tokenizer(
        [
            f"{write_prompt(p)} {p.answer} Again."
            for p, _ in zip(problems("train", ("signed-sum",)), range(400), strict=False)
        ]
    )
    return Attempts(tokenizer, [SEARCHES["signed-sum"]], "Again.", random_share, copies, foreign)


def answers_of(documents: Attempts, number: int) -> list[list[str]]:
    """The attempts in each document, as they are told, from what counts."""
    tokens, rng = documents._tokens, random.Random(5)
    batch, found = documents.batch(rng, number), []
    for ids, weights in zip(batch.ids_BT.tolist(), batch.weights_BT.tolist(), strict=True):
        heavy = [token for token, weight in zip(ids, weights, strict=True) if weight == 1]
        parts, rest = [], heavy
        while rest:
            cut = rest.index(tokens.tokenizer.eos_token_id)
            parts.append(tokens.decode(rest[:cut]))
            rest = rest[cut + 1 :]
        found.append(parts)
    return found


def test_documents_hold_one_attempt_or_two() -> None:
    found = answers_of(corpus(copies=0.0), 300)
    assert {len(parts) for parts in found} == {1, 2}
    pairs = [parts for parts in found if len(parts) == 2]
    assert sum(a == b for a, b in pairs) < 0.3 * len(pairs)
    assert all(len(part.split()) == 10 for parts in found for part in parts)


def test_copies_repeat_the_first_attempt() -> None:
    assert all(len(set(parts)) == 1 for parts in answers_of(corpus(copies=1.0), 200))


def test_an_attempt_at_another_problem_is_read_and_neither_learned_nor_copied() -> None:
    documents = corpus(copies=1.0, foreign=1.0, random_share=0.0)
    assert all(len(parts) == 1 for parts in answers_of(documents, 200)), "one attempt of each document counts"
    batch = documents.batch(random.Random(3), 200)
    told = [documents._tokens.decode(ids, special=True).split("<|endoftext|>") for ids in batch.ids_BT.tolist()]
    pairs = [[attempt.rpartition("Answer:")[2] for attempt in parts[:2]] for parts in told if "Again." in parts[1]]
    assert len(pairs) > 50
    assert all(first != second for first, second in pairs)
    assert all(second.split()[-1] == "0" for _, second in pairs), "the problem that was asked is solved"


@pytest.mark.parametrize("name", TRACED)
def test_an_aside_tries_how_the_rest_might_go(name: str) -> None:
    """In last attempts alone, which are right; what it comes to if it got there is the answer; nobody foretells where it begins."""
    drawn = list(itertools.islice(problems("train", (name,)), 300))
    tokenizer = build_tokenizer([f"{write_prompt(p)} {p.answer} Question: Again.\nAnswer: ---" for p in drawn])
    documents, family = Attempts(tokenizer, [SEARCHES[name]], "Again.", 0.0, 0.5, 0.5, asides=1.0), SEARCHES[name]
    got_there, opens, rng = 0, token_id(tokenizer, DASH), random.Random(2)
    for problem in drawn:
        answer = documents._attempt(rng, family, problem)
        ids, weights = documents._say(rng, family, problem, answer)
        before, aside, rest = documents._tokens.decode(ids).split(DASH)
        assert family.verify(problem, before + rest)
        trial = before + aside
        assert reaches_its_goal(name, problem.facts, trial) == family.verify(problem, trial)
        if family.verify(problem, trial):
            got_there += 1
            assert aside.split() == rest.split()
        else:
            assert before + rest == f" {answer}"
        assert [i for i, weight in enumerate(weights) if weight == 0] == [ids.index(opens)]
        assert len(weights) == len(ids)
    assert 10 < got_there < 290
    batch = documents.batch(random.Random(3), 100)
    told = [documents._tokens.decode(ids, special=True).split("<|endoftext|>") for ids in batch.ids_BT.tolist()]
    assert all(DASH not in parts[0] for parts in told if "Again." in parts[1]), "a thought is not seen later on"


def test_an_aside_may_hold_several_tries_until_one_gets_there() -> None:
    drawn = list(itertools.islice(problems("train", ("signed-sum",)), 300))
    tokenizer = build_tokenizer([f"{write_prompt(p)} {p.answer} Question: Again.\nAnswer: --- or" for p in drawn])
    family, rng = SEARCHES["signed-sum"], random.Random(2)
    share = {}
    for lucky in (0.0, 0.5):
        shares = {"random_share": 0.0, "copies": 0.5, "foreign": 0.5, "asides": 1.0, "tries": 3, "lucky": lucky}
        documents, got_there, longest = Attempts(tokenizer, [family], "Again.", **shares), 0, 0
        for problem in drawn:
            ids, _ = documents._say(rng, family, problem, documents._attempt(rng, family, problem))
            before, aside, rest = documents._tokens.decode(ids).split(DASH)
            tries = aside.split(OR)
            right = [family.verify(problem, before + trial) for trial in tries]
            assert not any(right[:-1]), "the first that gets there is the last"
            assert right[-1] or len(tries) == 3
            assert len(set(tries)) == len(tries)
            assert family.verify(problem, before + rest)
            assert not right[-1] or rest == tries[-1]
            got_there, longest = got_there + right[-1], max(longest, len(tries))
        assert longest == 3
        share[lucky] = got_there / len(drawn)
    assert share[0.0] < share[0.5] < 1


def test_who_repeats_an_answer_does_not_try_others() -> None:
    """An aside that got there used to stand for another answer in most repetitions, and one base in three never learned to repeat."""
    drawn = list(itertools.islice(problems("train", ("signed-sum",)), 300))
    tokenizer = build_tokenizer([f"{write_prompt(p)} {p.answer} Question: Again.\nAnswer: --- or" for p in drawn])
    shares = {"random_share": 0.1, "copies": 1.0, "foreign": 0.0, "asides": 1.0, "tries": 3, "lucky": 0.5}
    documents = Attempts(tokenizer, [SEARCHES["signed-sum"]], "Again.", **shares)
    batch = documents.batch(random.Random(3), 200)
    texts = [documents._tokens.decode(ids, special=True).split("<|endoftext|>")[:2] for ids in batch.ids_BT.tolist()]
    pairs = [(first.split("Answer:")[1], then.split("Answer:")[1]) for first, then in texts if "Again." in then]
    assert len(pairs) > 50
    assert all(first == then for first, then in pairs)


def test_prompts_and_the_instruction_count_little() -> None:
    documents = corpus(copies=0.0)
    batch = documents.batch(random.Random(1), 50)
    pad = token_id(documents._tokens.tokenizer, PAD)
    assert sorted(set(batch.weights_BT.flatten().tolist())) == pytest.approx([0.0, QUESTION_WEIGHT, 1.0])
    for ids, weights in zip(batch.ids_BT.tolist(), batch.weights_BT.tolist(), strict=True):
        text = documents._tokens.decode(ids[: ids.index(pad)] if pad in ids else ids, special=True)
        assert text.startswith("Question: ")
        assert text.endswith("<|endoftext|>")
        assert weights[0] == 0


def test_the_base_is_made_and_carries_its_instruction(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = [
        "--steps",
        "2",
        "--batch",
        "4",
        "--width",
        "32",
        "--layers",
        "1",
        "--heads",
        "1",
        "--instruction",
        "Again.",
    ]
    assert attempts.main(["--out", str(tmp_path / "base"), *flags]) == 0
    loaded = checkpoint.load(tmp_path / "base")
    assert loaded.correction is not None
    assert loaded.correction.instruction == "Again."
    assert not loaded.model.can_think
    assert attempts.main(["--out", str(tmp_path / "base"), *flags]) == 2
    assert "is an earlier run's" in capsys.readouterr().err


@pytest.mark.parametrize("family", TRACED)
def test_there_are_problems_enough(family: str) -> None:
    """Once Karel's routes were used up before the tokenizer was built, or 2,000 of them measured."""
    for split, number in (("held_out", 2000), ("train", 3000)):
        assert sum(1 for _ in itertools.islice(problems(split, (family,)), number)) == number  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--copies", "2"], "--copies is 2.0; it must be between 0 and 1"),
        (["--foreign", "1.5"], "--foreign is 1.5; it must be between 0 and 1"),
        (["--random", "-1"], "--random is -1.0; it must be between 0 and 1"),
        (["--families", "dial"], "--families is dial; it must be among signed-sum, signed-sum-worded, routes"),
        (["--instruction", " "], "instruction is ' '; it must be a text that is not blank"),
        (["--steps", "0"], "--steps is 0; it must be 1 or more"),
        (["--lr", "0"], "--lr is 0.0; it must be above 0"),
        (["--asides", "1", "--lucky", "2"], "--lucky is 2.0; it must be between 0 and 1"),
        (["--lucky", "0.5"], "--lucky is 0.5; it must be left out without --asides"),
        (["--tries", "3"], "--tries is 3; it must be left out without --asides"),
    ],
)
def test_arguments_that_cannot_be(
    tmp_path: Path, flags: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert attempts.main(["--out", str(tmp_path / "base"), *flags]) == 2
    assert message in capsys.readouterr().err
