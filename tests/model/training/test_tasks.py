"""Every generator against a second reading of its English: the answer is derived from the question's text alone."""

import itertools
import random
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quietserve.model.training.tasks import EVERY, FAMILIES, MAX_STEPS, Problem, draw, is_held_out, problems

DAY = r"(?:Mon|Tues|Wednes|Thurs|Fri|Satur|Sun)day"
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
    holder, thing = re.match(r"(\w+) (?:has|holds) the (\w+)[.,]", question).groups()  # pyright: ignore[reportOptionalMemberAccess]
    assert thing in question.split(". ")[-1]
    holding, states = {holder: thing}, []
    for deed, _ in read_steps(question):
        one, other = re.findall(r"[A-Z]\w+", deed)
        holding[one], holding[other] = holding.get(other, "nothing"), holding.get(one, "nothing")
        states.append(next(who for who, held in holding.items() if held == thing))
    return states


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


def solve_chains(question: str) -> list[str]:
    values = {"a": int(re.search(r"\ba (?:is|be) (\d)\.", question)[1])}  # pyright: ignore[reportOptionalSubscript]
    for derived, letter in re.findall(r"(twice [a-g]|\b[a-g] \w+ \d) (?:is|makes) ([b-h])\b", question):
        words = derived.split()
        source = values[words[1] if words[0] == "twice" else words[0]]
        operation, number = ("times", 2) if words[0] == "twice" else (words[1], int(words[2]))
        values[letter] = {"plus": source + number, "minus": source - number, "times": source * number}[operation] % 10
    assert question.endswith(f" {list(values)[-1]}?")
    return [str(value) for letter, value in values.items() if letter != "a"]


def solve_signed(question: str) -> list[str]:
    state = int(re.search(r"from (\d+)|with (\d+)", question)[0].split()[1])  # pyright: ignore[reportOptionalSubscript]
    states = []
    for deed, number in re.findall(r"(plus|add|minus|take|change the sign)(?: (\d))? \w+(?:th|st|d)\b", question):
        state = -state if "sign" in deed else state + (1 if deed in ("plus", "add") else -1) * int(number)
        state %= 11
        states.append(str(state))
    return states


def solve_karel(question: str) -> list[str]:
    cell, facing = re.search(r"on (\w\w) (?:facing|and faces) (\w+)\.", question).groups()  # pyright: ignore[reportOptionalMemberAccess]
    column, row = ("abcd".index(letter) for letter in cell)
    states = []
    for deed, _ in read_steps(question):
        if "turn" in deed:
            turns = {"north": "west", "west": "south", "south": "east", "east": "north"}  # to the left
            facing = turns[facing] if "left" in deed else next(after for after in turns if turns[after] == facing)
        else:
            column += {"east": 1, "west": -1}.get(facing, 0)
            row += {"north": 1, "south": -1}.get(facing, 0)
            column, row = (max(0, min(3, number)) for number in (column, row))
        states.append("abcd"[column] + "abcd"[row] + facing[0].upper())
    return states


SOLVERS = {
    "dial": solve_dial,
    "swaps": solve_swaps,
    "sums": solve_sums,
    "chains": solve_chains,
    "signed": solve_signed,
    "karel": solve_karel,
}
KEYS = {
    "chains": ("b", "c", "d", "e", "f", "g", "h"),
    "signed": ("first", "second", "third", "fourth", "fifth", "sixth", "seventh"),
}
DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
HEADINGS = {"N": "north", "E": "east", "S": "south", "W": "west"}


@settings(max_examples=400)
@given(names, seeds, lengths)
def test_notes_and_answer_follow_from_the_question(name: str, seed: int, num_steps: int):
    problem = FAMILIES[name].sample(random.Random(seed), num_steps)
    states = SOLVERS[name](problem.question)
    keys = KEYS.get(name, DAYS)[:num_steps]
    assert problem.num_steps == num_steps == len(states)
    assert problem.working == "".join(f" {key} {state}" for key, state in zip(keys, states, strict=True))
    assert problem.answer == answer_of(problem, states[-1])


def answer_of(problem: Problem, state: str) -> str:
    """The last state; of Karel's, the part that is asked for."""
    if problem.family != "karel":
        return state
    return HEADINGS[state[2]] if "Which way" in problem.question else state[:2]


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
    assert 0.05 < sum(is_held_out(problem.question) for problem in sampled) / 4000 < 0.075


def test_the_split_is_of_the_text_and_the_same_for_ever():
    """Were the hash to change, problems that a checkpoint was trained on would be evaluated on."""
    stories = [(state, day) for state in range(10) for day in ("Monday", "Friday")]
    questions = [f"A dial is at {state}. It flips over on {day}. Where is the dial now?" for state, day in stories]
    held_out = [story for story, question in zip(stories, questions, strict=True) if is_held_out(question)]
    assert held_out == [(1, "Monday"), (8, "Friday")]


def dial(question: str) -> Problem:
    return Problem("dial", question, "", "", 1)


def test_two_thousand_distinct_problems_of_every_family_can_be_evaluated():
    drawn = list(itertools.islice(problems("held_out", seed=1), len(FAMILIES) * 2000))
    assert len({problem.question for problem in drawn}) == len(FAMILIES) * 2000
    assert {name: sum(p.family == name for p in drawn) for name in FAMILIES} == dict.fromkeys(FAMILIES, 2000)


def test_a_family_that_is_used_up_says_so():
    with pytest.raises(ValueError, match="held_out dial problems of 1 steps are used up"):
        list(itertools.islice(problems("held_out", ["dial"], steps=[1]), 1000))


def test_problems_come_in_turn_and_repeat_for_a_seed():
    one, again, other = (list(itertools.islice(problems("held_out", seed=seed), 42)) for seed in (1, 1, 2))
    assert one == again != other
    assert [p.num_steps for p in one[:12]] == [1] * 6 + [2] * 6
    assert {(p.family, p.num_steps) for p in one} == set(itertools.product(FAMILIES, range(1, 8)))


def test_every_family_has_its_own_numbers_of_steps():
    """All once had the first one's: dials behind signed sums all had five steps, and routes as few as one."""
    names = ("dial", "signed-sum", "routes")
    drawn = list(itertools.islice(problems("train", names), 21))
    assert [problem.family for problem in drawn] == [*names] * 7
    steps = {name: [problem.num_steps for problem in drawn if problem.family == name] for name in names}
    assert steps == {"dial": [1, 2, 3, 4, 5, 6, 7], "signed-sum": [5] * 7, "routes": [5, 6, 7, 5, 6, 7, 5]}


@pytest.mark.parametrize("name", EVERY)
def test_one_family_alone_is_drawn_as_ever(name: str):
    """What was drawn before families had their own numbers of steps is drawn again, so that runs go on."""
    rng, wanted = random.Random("held_out/3"), []
    for num_steps in itertools.islice(itertools.cycle(EVERY[name].steps), 16):
        problem = draw(rng, "held_out", EVERY[name], num_steps)
        while problem in wanted:
            problem = draw(rng, "held_out", EVERY[name], num_steps)
        wanted.append(problem)
    assert list(itertools.islice(problems("held_out", (name,), 3), 16)) == wanted


def test_an_unknown_family_is_named():
    with pytest.raises(ValueError, match=r"'chess'.*dial, swaps, sums, chains, signed, karel"):
        next(problems("train", ["chess"]))
