"""Karel's worlds and programs: the interpreter against one written to be read, texts that lose nothing, and bad ones."""

import random
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from naive_karel import Karel

from quietserve.model.training.tasks import EVERY, is_held_out, problems
from quietserve.model.training.tasks.karel import compact, drawing, interpreter, programs, synthesis, worlds
from quietserve.model.training.tasks.karel.programs import MEANINGS, NOTHING, OPS
from quietserve.model.training.tasks.karel.synthesis import solves
from quietserve.model.training.tasks.karel.worlds import HEADINGS, Worlds, inner_cells, row_and_column

seeds, sizes = st.integers(0, 2**32), st.integers(2, 8)
NAMES = sorted(synthesis.FAMILIES)


def naive(world: Worlds) -> Karel:
    size, inner = world.size, inner_cells(world.size).tolist()
    return Karel(
        size,
        row_and_column(size, int(world.cells_N[0])),
        HEADINGS[int(world.headings_N[0])],
        {row_and_column(size, cell) for cell in inner if world.walls_NC[0, cell]},
        {row_and_column(size, cell): int(world.markers_NC[0, cell]) for cell in inner if world.markers_NC[0, cell]},
    )


def same(world: Worlds, other: Karel) -> bool:
    mine = naive(world)
    lying = {cell: count for cell, count in other.markers.items() if count}
    return (mine.robot, mine.heading, mine.walls, mine.markers) == (other.robot, other.heading, other.walls, lying)


@settings(max_examples=30, deadline=None)
@given(seeds, sizes)
def test_every_operation_does_what_the_slow_one_does(seed: int, size: int) -> None:
    check_operations(seed, size, count=8, length=30)


@pytest.mark.slow
def test_a_hundred_thousand_operations() -> None:
    for seed in range(40):
        check_operations(seed, 2 + seed % 7, count=50, length=50)


def check_operations(seed: int, size: int, count: int, length: int) -> None:
    rng = np.random.default_rng(seed)
    begin, ops_NL = worlds.draw(rng, count, size), rng.integers(0, len(OPS), (count, length))
    ops_NL[rng.random((count, length)) < 0.1] = OPS.index("put")  # or a tenth marker would never be tried
    slow = [naive(world) for world in begin]
    for number, now in enumerate(interpreter.trace(begin, ops_NL)):
        blocked_N = interpreter.is_blocked(now)
        for world, karel, op, blocked in zip(now, slow, ops_NL[:, number], blocked_N, strict=True):
            karel.do(OPS[op])
            assert same(world, karel)
            assert karel.is_blocked() == bool(blocked)


@given(seeds, sizes)
def test_drawn_worlds_are_as_they_are_said_to_be(seed: int, size: int) -> None:
    for world in worlds.draw(np.random.default_rng(seed), 5, size):
        karel = naive(world)
        assert karel.robot not in karel.walls
        assert karel.robot not in karel.markers
        assert not karel.walls & karel.markers.keys()
        assert set(karel.markers.values()) <= {1}
        assert all(world.walls_NC[0, cell] for cell in set(range((size + 2) ** 2)) - set(inner_cells(size).tolist()))


def test_how_often_things_are_drawn() -> None:
    rng = np.random.default_rng(0)
    drawn = worlds.draw(rng, 4000, 6)
    inner = inner_cells(6)
    assert drawn.walls_NC[:, inner].mean() == pytest.approx(0.1 * 35 / 36, abs=0.002)
    assert drawn.markers_NC[:, inner].mean() == pytest.approx(0.09 * 35 / 36, abs=0.002)
    assert np.bincount(drawn.headings_N) / 4000 == pytest.approx(np.full(4, 0.25), abs=0.03)
    ops_NL = programs.draw(rng, range(6, 11), 4000)
    shares = np.bincount(ops_NL[ops_NL != NOTHING]) / (ops_NL != NOTHING).sum()
    assert shares == pytest.approx(np.array([5, 3, 3, 2, 2]) / 15, abs=0.01)
    assert np.bincount((ops_NL != NOTHING).sum(1))[6:] / 4000 == pytest.approx(np.full(5, 0.2), abs=0.03)


def test_what_does_nothing() -> None:
    before, _ = compact.read("2x2 @r0c0N #r0c1 *r1c0 =r0c0N")
    for program in ("move", "pick", "right move", "left move"):
        after = interpreter.run(before, programs.collect([programs.read(program)]))
        assert after.cells_N == before.cells_N
        assert (after.markers_NC == before.markers_NC).all()
    many = interpreter.run(before, programs.collect([programs.read(" ".join(["put"] * 12))]))
    assert many.markers_NC[0, before.cells_N[0]] == 9
    assert before.markers_NC[0, before.cells_N[0]] == 0, "the world that it began with is as it was"


def test_a_turn_each_way() -> None:
    before, _ = compact.read("3x3 @r1c1N =r1c1N")
    for program, heading in (("left", "W"), ("left left", "S"), ("right", "E"), ("right right right", "W")):
        after = interpreter.run(before, programs.collect([programs.read(program)]))
        assert HEADINGS[int(after.headings_N[0])] == heading


@given(seeds, sizes, st.integers(1, 5), st.integers(1, 12))
def test_the_compact_text_loses_nothing(seed: int, size: int, pairs: int, length: int) -> None:
    drawn = synthesis.draw(np.random.default_rng(seed), 3, size, pairs, (length,))
    for number, text in enumerate(drawn.texts()):
        one = slice(number * pairs, (number + 1) * pairs)
        before, after = compact.read(text)
        assert before.equals(drawn.before[one]).all()
        assert after.equals(drawn.after[one]).all()
        assert set(text.split()) <= set(compact.vocabulary(range(2, 9)))
        assert compact.write(before, after) == text


@given(st.sampled_from(NAMES), seeds)
def test_who_solves_a_task(name: str, seed: int) -> None:
    rng, family = random.Random(seed), synthesis.FAMILIES[name]
    problem = family.sample(rng, rng.choice(family.steps))
    before, after = compact.read(problem.question)
    tried = [problem.answer, f" {problem.answer} left right\n", f"{problem.answer} put", family.attempt(rng, problem)]
    for text in tried:
        right = True
        for one, wanted in zip(before, after, strict=True):
            karel = naive(one)
            for word in text.split():
                karel.do(word)
            right &= same(wanted, karel)
        assert family.verify(problem, text) == right
    assert family.verify(problem, tried[0])
    assert family.verify(problem, tried[1])
    assert not family.verify(problem, tried[2])
    assert not any(family.verify(problem, text) for text in ("", "  ", "jump", f"{problem.answer}, move", "Move"))


@given(seeds)
def test_many_programs_at_once_are_judged_as_one(seed: int) -> None:
    rng = np.random.default_rng(seed)
    drawn = synthesis.draw(rng, 12, 4, 2, range(1, 4))
    tried = programs.draw(rng, range(1, 4), 12)
    tried[:4], tried[4] = drawn.ops_NL[:4], NOTHING
    one_by_one = [
        bool(programs.write(ops)) and solves(text, programs.write(ops))
        for text, ops in zip(drawn.texts(), tried, strict=True)
    ]
    assert drawn.solves(tried).tolist() == one_by_one
    assert one_by_one[:4] == [True] * 4
    assert not one_by_one[4]


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "'' is no size of a world; it must be first, and one of 2x2 to 8x8"),
        ("4x5 @r0c0N =r0c0N", "'4x5' is no size"),
        ("9x9 @r0c0N =r0c0N", "'9x9' is no size"),
        ("@r0c0N =r0c0N", "'@r0c0N' is no size"),
        ("4x4", "there is no pair of worlds"),
        ("4x4 #r0c0 @r0c1N =r0c1N", "'#r0c0' stands before the first robot's place"),
        ("4x4 @r0c0N", "behind '@r0c0N' there is no place that the robot comes to"),
        ("4x4 @r0c0N =r0c0N =r0c1N @r0c1N", "behind '@r0c1N' there is no place"),
        ("4x4 @r0c4N =r0c0N", "'@r0c4N' is outside the world; rows and columns are 0 to 3"),
        ("4x4 @r0c0N #r4c0 =r0c0N", "'#r4c0' is outside the world"),
        ("4x4 @r0c0 =r0c0N", "'@r0c0' cannot stand here; a word is like @r0c0N, #r0c0 or *r0c0"),
        ("4x4 @r0c0N #r0c1N =r0c0N", "'#r0c1N' cannot stand here"),
        ("4x4 @r0c0N +r0c1 =r0c0N", "'+r0c1' cannot stand here"),
        ("4x4 @r0c0N =r0c0N #r0c1", "'#r0c1' cannot stand here; a word is like =r0c0N, +r0c0 or -r0c0"),
        ("4x4 @r0c0N =r0c0N -r0c1", "'-r0c1' leaves -1 markers; there are 0 to 9 on a cell"),
        ("4x4 @r0c0N =r0c0N" + " +r0c1" * 10, "'+r0c1' leaves 10 markers"),
        ("4x4 @r0c0N #r0c0 =r0c1N", "the world of '@r0c0N' has the robot or a marker inside a wall"),
        ("4x4 @r0c0N #r0c1 *r0c1 =r0c0N", "the robot or a marker inside a wall"),
        ("4x4 @r0c0N #r0c1 =r0c1N", "'=r0c1N': the robot, or a marker, comes to be inside a wall"),
        ("4x4 @r0c0N #r0c1 =r0c0N +r0c1", "comes to be inside a wall"),
    ],
)
def test_worlds_that_do_not_parse(text: str, complaint: str) -> None:
    with pytest.raises(ValueError, match=re.escape(complaint)):
        compact.read(text)


def test_programs_that_do_not_parse() -> None:
    with pytest.raises(ValueError, match="the program is empty"):
        programs.read(" \n")
    with pytest.raises(ValueError, match="'jump' is no operation; they are move, left, right, pick, put"):
        programs.read("move jump")
    assert programs.collect([]).shape == (0, 0)


def test_meanings() -> None:
    """The paper's: flip swaps what is opposite and leaves move; adversarial moves all five (another one bore its name)."""
    told = {name: dict(zip(OPS, (OPS[op] for op in ops), strict=True)) for name, ops in MEANINGS.items()}
    assert told["flip"] == {"move": "move", "left": "right", "right": "left", "pick": "put", "put": "pick"}
    assert told["adversarial"] == {"pick": "put", "put": "pick", "right": "move", "left": "right", "move": "left"}
    for name, ops in MEANINGS.items():
        assert sorted(ops) == list(range(len(OPS))), name
        assert name in ("original", "flip") or all(op != own for own, op in enumerate(ops))
    renamed = programs.rename(programs.collect([programs.read("move left"), programs.read("put")]), "flip")
    assert [programs.write(ops) for ops in renamed] == ["move right", "pick"]


def test_the_papers_text() -> None:
    before, after = compact.read("2x2 @r0c1W #r1c0 *r1c1 *r1c1 =r0c0W +r0c1")
    drawn = "Input0\n__space__ __left__\n__wall__ __2_Marker__\nOutput0\n__left__ __1_Marker__\n__wall__ __2_Marker__"
    assert drawing.write(before, after) == drawn
    assert set(drawn.split()) <= set(drawing.vocabulary())
    hidden, _ = compact.read("2x2 @r0c1W *r0c1 =r0c1W")
    assert "Marker" not in drawing.draw(hidden), "what lies under the robot cannot be seen"


def test_what_lies_under_the_robot_counts() -> None:
    assert solves("2x2 @r0c0N =r0c0N +r0c0", "put")
    assert not solves("2x2 @r0c0N =r0c0N +r0c0", "left right")


@pytest.mark.parametrize("name", NAMES)
def test_problems_are_told_apart(name: str) -> None:
    drawn = problems("held_out", (name,))
    for _, problem in zip(range(20), drawn, strict=False):
        assert is_held_out(problem.question)
        assert EVERY[name].verify(problem, problem.answer)
        assert len(problem.answer.split()) == problem.num_steps


@pytest.mark.parametrize("name", NAMES)
def test_attempts_are_right_and_wrong(name: str) -> None:
    """Those that learn to correct themselves need both; drawn evenly, one in thousands would be right."""
    rng, family = random.Random(0), synthesis.FAMILIES[name]
    problem = family.sample(rng, family.steps[-1])
    right = sum(family.verify(problem, family.attempt(rng, problem)) for _ in range(200))
    assert 20 < right < 180
