"""Letters stand for digits, each made from the one before; past 9 comes 0. What is the last?"""

import random

from .problem import DIGITS, STEPS, Problem, is_answer, name_steps, narrate, write_notes

name = "chains"
steps = STEPS
verify = is_answer

LETTERS = ("a", "b", "c", "d", "e", "f", "g", "h")
STARTS = ("{letter} is {state}.", "Let {letter} be {state}.", "Say {letter} is {state}.")
PLUS = ("{letter} plus {n}",)
MINUS = ("{letter} minus {n}",)
TWICE = ("{letter} times 2", "twice {letter}")
THRICE = ("{letter} times 3",)
MAKES = ("is", "is", "makes")
RULES = ("Past 9 comes 0.", "After 9 comes 0.", "Count past 9 from 0.")
ASKS = ("What is {letter}?", "Which digit is {letter}?", "How much is {letter}?")


def sample(rng: random.Random, num_steps: int) -> Problem:
    """Draw a chain of `num_steps` letters after the first."""
    letters = (LETTERS[0], *name_steps(num_steps, LETTERS[1:]))
    state = rng.randrange(10)
    parts = [rng.choice(RULES), rng.choice(STARTS).format(letter=letters[0], state=state)]
    deeds, states = [], []
    for letter in letters[:-1]:
        deed, state = _derive(rng, letter, state)
        deeds.append(deed)
        states.append(state)
    parts.append(narrate(rng, "", deeds, letters[1:], rng.choice(MAKES)))
    parts.append(rng.choice(ASKS).format(letter=letters[-1]))
    return Problem(name, " ".join(parts), str(state), write_notes(letters[1:], states), num_steps, DIGITS)


def _derive(rng: random.Random, letter: str, state: int) -> tuple[str, int]:
    n = rng.randint(1, 5)
    wordings, after = rng.choice(
        (
            (PLUS, state + n),
            (PLUS, state + n),
            (MINUS, state - n),
            (MINUS, state - n),
            (TWICE, 2 * state),
            (THRICE, 3 * state),
        )
    )
    return rng.choice(wordings).format(letter=letter, n=n), after % 10
