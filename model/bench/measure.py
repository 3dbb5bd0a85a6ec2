"""Measuring the systems of one cell against each other: round by round, each round in another order."""

import gc
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from .cell import Setup, Unavailable
from .systems import Factory, System
from .timings import Figures, figures

_WARM_PROMPT, _WARM_TOKENS = 16, 4
_WARM_SEED = 1 << 20  # no round's


@dataclass(frozen=True)
class Run:
    """One system's run in one round."""

    figures: Figures
    tokens: list[list[int]]


@dataclass
class Measured:
    """A cell's runs."""

    setup: Setup
    rounds: list[dict[str, Run]] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)  # systems that could not be measured, and why
    failed: bool = False  # one of them broke


def measure(setup: Setup, factories: Mapping[str, Factory], rounds: int) -> Measured:
    """Run every system once a round. All systems of a round get the same prompts; every round has its own."""
    measured = Measured(setup)
    with _open(measured, factories) as systems:
        _warm_up(measured, systems)
        for number in range(rounds):
            prompts, runs = setup.draw_prompts(number), {}
            measured.rounds.append(runs)
            for name in _rotated(list(systems), number):
                if number and _is_too_slow(measured, name):
                    continue
                if run := _run(measured, systems[name], prompts, setup.num_tokens):
                    runs[name] = run
    return measured


@contextmanager
def _open(measured: Measured, factories: Mapping[str, Factory]) -> Iterator[dict[str, System]]:
    systems: dict[str, System] = {}
    try:
        for name, factory in factories.items():
            try:
                systems[name] = factory(measured.setup)
            except Unavailable as reason:
                measured.skipped[name] = str(reason)
            except Exception as error:
                _give_up(measured, name, error)
        yield systems
    finally:
        for system in systems.values():
            system.close()
        systems.clear()
        gc.collect()


def _warm_up(measured: Measured, systems: Mapping[str, System]) -> None:
    prompts = [prompt[:_WARM_PROMPT] for prompt in measured.setup.draw_prompts(_WARM_SEED)]
    for system in systems.values():
        _run(measured, system, prompts, _WARM_TOKENS)


def _run(measured: Measured, system: System, prompts: list[list[int]], num_tokens: int) -> Run | None:
    """One run, or None where the system fails now or has failed before: a long grid goes on without it."""
    if system.name in measured.skipped:
        return None
    try:
        timings = system.run(prompts, measured.setup.cell.depth, num_tokens)
        return Run(figures(timings), timings.tokens)
    except Exception as error:
        _give_up(measured, system.name, error)
        return None


def _give_up(measured: Measured, name: str, error: Exception) -> None:
    measured.failed = True
    measured.skipped[name] = f"failed: {type(error).__name__}: {str(error).partition(chr(10))[0]}"
    print(f"quietserve bench: {name} {measured.skipped[name]}", file=sys.stderr)


def _is_too_slow(measured: Measured, name: str) -> bool:
    """It did not make two tokens within the time: once is enough."""
    first = measured.rounds[0].get(name)
    return first is not None and first.figures.extrapolated


def _rotated(names: Sequence[str], by: int) -> list[str]:
    by %= max(len(names), 1)
    return [*names[by:], *names[:by]]
