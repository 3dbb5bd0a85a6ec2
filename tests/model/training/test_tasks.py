"""Every generator against a second reading of its English: the answer is derived from the question's text alone."""

import itertools
import random
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quietserve.model.training.tasks import FAMILIES, MAX_STEPS, Problem, is_held_out, problems

DAY = r"(?:Mon|Tues|Wednes|Thurs|Fri|Satur)day"
seeds = st.integers(0, 2**32)
lengths = st.integers(1, MAX_STEPS)
names = st.sampled_from(sorted(FAMILIES))


def read_steps(question: str) -> list[tuple[str, str]]:
    """Each deed and its day, without what joins them."""
    found = re.findall(rf"(.+?) on ({DAY})(?:, | and |\. |\.)", question)
    return [(deed.split(". ")[-1], day) for deed, day in found]


def number_in(deed: str) -> int:
    return int(re.search(r"\d+", deed)[0])  # pyright: ignore[reportOptionalSubscript]


def solve_dial(question: str) -> list[str]:
    state = int(re.match(r"\w+ dial.*? (?:at|to) (\d)\. ", question)[1])  # pyright: ignore[reportOptionalSubscript]
    states = []
    for deed, _ in read_steps(question):
        if " up " in deed or deed.endswith(" up"):
            state += number_in(deed)
        elif "down" in deed:
            state -= number_in(deed)
        elif "flip" in deed:
            state = 9 - state
        else:
            state *= {"double": 2, "triple": 3}[re.search("double|triple", deed)[0]]  # pyright: ignore[reportOptionalSubscript]
        state %= 10
        states.append(str(state))
    return states


def solve_swaps(question: str) -> list[str]:
    holding = dict(re.findall(r"(\w+) (?:has|holds) the (\w+)", question.split(". ")[0] + "."))
    wanted = wanted_thing(question)
    states = [next(who for who, thing in holding.items() if thing == wanted)]
    for deed, _ in read_steps(question):
        one, other = re.findall(r"[A-Z]\w+", deed)
        holding[one], holding[other] = holding.get(other, "nothing"), holding.get(one, "nothing")
        states.append(next(who for who, thing in holding.items() if thing == wanted))
    return states


def wanted_thing(question: str) -> str:
    return re.search(r"the (\w+)[^.]*\?$", question)[1]  # pyright: ignore[reportOptionalSubscript]


def solve_sums(question: str) -> list[str]:
    state = number_in(question.split(". ")[0])
    states = []
    for deed, _ in read_steps(question):
        if "half" in deed:
            assert state % 2 == 0
            state //= 2
        elif match := re.search("double|triple", deed):
            state *= {"double": 2, "triple": 3}[match[0]]
        else:
            state += number_in(deed) * (1 if re.search("buys|finds|gets", deed) else -1)
        assert 0 <= state <= 12
        states.append(str(state))
    return states


SOLVERS = {"dial": solve_dial, "swaps": solve_swaps, "sums": solve_sums}


@settings(max_examples=400)
@given(names, seeds, lengths)
def test_notes_and_answer_follow_from_the_question(name: str, seed: int, num_steps: int):
    problem = FAMILIES[name].sample(random.Random(seed), num_steps)
    states = SOLVERS[name](problem.question)
    days = [day for _, day in read_steps(problem.question)]
    labels = [wanted_thing(problem.question), *days] if name == "swaps" else days
    assert problem.num_steps == num_steps == len(states)
    assert problem.working == "".join(f" {label} {state}" for label, state in zip(labels, states, strict=True))
    assert problem.answer == states[-1]


@given(names, seeds, lengths)
def test_the_same_seed_gives_the_same_problem(name: str, seed: int, num_steps: int):
    first, second = (FAMILIES[name].sample(random.Random(seed), num_steps) for _ in range(2))
    assert first == second


def test_verify_wants_the_one_exact_answer():
    problem = Problem("dial", "?", "7", " Monday 7", 1)
    verify = FAMILIES["dial"].verify
    assert verify(problem, " 7")
    assert verify(problem, "7\n")
    for wrong in ("", " 17", "7 7", "seven", " --- Monday 7 --- 7"):
        assert not verify(problem, wrong)


@pytest.mark.parametrize("num_steps", [-1, MAX_STEPS + 1])
def test_a_number_of_steps_out_of_range_is_refused(num_steps: int):
    for family in FAMILIES.values():
        with pytest.raises(ValueError, match="num_steps"):
            family.sample(random.Random(0), num_steps)


def test_training_and_held_out_problems_never_meet():
    drawn = {split: {p.question for p in itertools.islice(problems(split), 3000)} for split in ("train", "held_out")}
    assert not drawn["train"] & drawn["held_out"]
    assert all(len(questions) == 3000 for questions in drawn.values())


def test_one_question_in_sixteen_is_held_out():
    rng = random.Random(0)
    sampled = [FAMILIES["sums"].sample(rng, 3) for _ in range(4000)]
    assert 0.05 < sum(map(is_held_out, sampled)) / 4000 < 0.075


def test_the_split_is_of_the_text_and_the_same_for_ever():
    """Were the hash to change, problems that a checkpoint was trained on would be evaluated on."""
    stories = [(state, day) for state in range(10) for day in ("Monday", "Friday")]
    questions = [f"A dial is at {state}. It flips over on {day}. Where is the dial now?" for state, day in stories]
    held_out = [story for story, question in zip(stories, questions, strict=True) if is_held_out(dial(question))]
    assert held_out == [(1, "Monday"), (8, "Friday")]


def dial(question: str) -> Problem:
    return Problem("dial", question, "", "", 1)


def test_two_thousand_distinct_problems_of_every_family_can_be_evaluated():
    drawn = list(itertools.islice(problems("held_out", seed=1), 3 * 2000))
    assert len({problem.question for problem in drawn}) == 6000
    assert {name: sum(p.family == name for p in drawn) for name in FAMILIES} == dict.fromkeys(FAMILIES, 2000)


def test_a_family_that_is_used_up_says_so():
    with pytest.raises(ValueError, match="held_out dial problems of 1 steps are used up"):
        list(itertools.islice(problems("held_out", ["dial"], steps=[1]), 1000))


def test_problems_come_in_turn_and_repeat_for_a_seed():
    one, again, other = (list(itertools.islice(problems("held_out", seed=seed), 36)) for seed in (1, 1, 2))
    assert one == again != other
    assert [p.num_steps for p in one[:6]] == [1, 1, 1, 2, 2, 2]
    assert {(p.family, p.num_steps) for p in one} == set(itertools.product(FAMILIES, range(1, 7)))


def test_an_unknown_family_is_named():
    with pytest.raises(ValueError, match=r"'chess'.*dial, swaps, sums"):
        next(problems("train", ["chess"]))
