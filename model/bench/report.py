"""From runs to rows: medians over rounds, ratios within a round, and the tables that are printed."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from statistics import median
from typing import Any

from .measure import Measured, Run

# Faster by how much: the first over the second.
PAIRS = (
    ("pipeline", "sequential"),
    ("pipeline", "recompute"),
    ("pipeline", "plain"),
    ("plain", "transformers"),
    ("plain", "transformers-cb"),
    ("plain", "llama.cpp"),
)
_OTHER_TEXT = (("pipeline", "plain"),)  # here the two do not decode the same text
_SPREAD = ("tokens_per_s", "tokens_per_cpu_s")

Row = dict[str, Any]


def system_rows(measured: Measured) -> list[Row]:
    """A row for every system that was measured: medians over rounds, with the least and the most where it matters."""
    names = dict.fromkeys(name for runs in measured.rounds for name in runs)
    return [_system_row(measured, name) for name in names]


def ratio_rows(measured: Measured) -> list[Row]:
    """A row for every pair: the median of the rounds' ratios, with the least and the most."""
    rows = []
    for pair in PAIRS:
        rounds = [(runs[pair[0]], runs[pair[1]]) for runs in measured.rounds if set(pair) <= runs.keys()]
        if rounds:
            rows.append({"ratio": "/".join(pair), **_place(measured), **_ratio(pair, rounds)})
    return rows


def table(rows: Sequence[Row], ratios: Sequence[Row]) -> str:
    """Both tables in Markdown: ratios first."""
    parts = [_markdown(_RATIO_COLUMNS, ratios), _markdown(_SYSTEM_COLUMNS, rows)]
    if any(row["extrapolated"] for row in [*rows, *ratios]):
        parts.append("~ worked out from the forwards done in the time given: too slow for two tokens.")
    return "\n\n".join(part for part in parts if part)


def _place(measured: Measured) -> Row:
    setup = measured.setup
    dtype = str(setup.subject.model.backbone.dtype).removeprefix("torch.")
    return {**asdict(setup.cell), "dtype": dtype, "temperature": setup.cell.temperature}


def _system_row(measured: Measured, name: str) -> Row:
    rounds = [asdict(runs[name].figures) for runs in measured.rounds if name in runs]
    row: Row = {"system": name, **_place(measured)}
    for figure in rounds[0]:
        values = [each[figure] for each in rounds if each[figure] is not None]
        row[figure] = median(values) if values else None
    row["extrapolated"] = bool(rounds[0]["extrapolated"])
    row["spread"] = {figure: _ends(each[figure] for each in rounds) for figure in _SPREAD}
    return {**row, "rounds": len(rounds)}


def _ratio(pair: tuple[str, str], rounds: Sequence[tuple[Run, Run]]) -> Row:
    walls = [a.figures.tokens_per_s / b.figures.tokens_per_s for a, b in rounds]
    cpus = [a.figures.tokens_per_cpu_s / b.figures.tokens_per_cpu_s for a, b in rounds]
    same = None if pair in _OTHER_TEXT else median(_share_of_same(a.tokens, b.tokens) for a, b in rounds)
    return {
        "median": median(walls),
        "spread": _ends(walls),
        "cpu_median": median(cpus),
        "cpu_spread": _ends(cpus),
        "same_tokens": same,
        "rounds": len(rounds),
        "extrapolated": any(run.figures.extrapolated for each in rounds for run in each),
    }


def _share_of_same(a: Sequence[Sequence[int]], b: Sequence[Sequence[int]]) -> float:
    """Tokens that two runs agree on, as far as both went."""
    pairs = [pair for one, other in zip(a, b, strict=True) for pair in zip(one, other, strict=False)]
    return sum(x == y for x, y in pairs) / len(pairs) if pairs else 1.0


def _ends(values: Iterable[float]) -> list[float]:
    known = list(values)
    return [min(known), max(known)]


Column = tuple[str, Callable[[Row], str]]


def _plain(key: str) -> Column:
    return key, lambda row: str(row[key])


def _number(title: str, key: str, digits: int, scale: float = 1.0) -> Column:
    return title, lambda row: "" if row[key] is None else f"{row[key] * scale:.{digits}f}"


def _range(title: str, key: Callable[[Row], Sequence[float]], digits: int) -> Column:
    return title, lambda row: " .. ".join(f"{value:.{digits}f}" for value in key(row))


def _marked(title: str, key: str, digits: int) -> Column:
    return title, lambda row: ("~" if row["extrapolated"] else "") + f"{row[key]:.{digits}f}"


_PLACE_COLUMNS: list[Column] = [_plain(key) for key in ("shape", "dtype", "batch", "prompt", "depth")]
_RATIO_COLUMNS: list[Column] = [
    *_PLACE_COLUMNS,
    _plain("ratio"),
    _marked("times", "median", 2),
    _range("spread", lambda row: row["spread"], 2),
    _marked("by CPU time", "cpu_median", 2),
    _range("its spread", lambda row: row["cpu_spread"], 2),
    _number("same tokens", "same_tokens", 3),
    _plain("rounds"),
]
_SYSTEM_COLUMNS: list[Column] = [
    *_PLACE_COLUMNS,
    _plain("system"),
    _marked("tokens/s", "tokens_per_s", 1),
    _range("spread", lambda row: row["spread"]["tokens_per_s"], 1),
    _marked("by CPU time", "tokens_per_cpu_s", 1),
    _number("forwards/token", "forwards_per_token", 2),
    _number("accepted", "acceptance", 3),
    _number("thought", "thought_length", 2),
    _number("first token, ms", "ttft_s", 0, 1e3),
    _number("next tokens, ms", "inter_token_s", 1, 1e3),
    _number("95 %, ms", "inter_token_p95_s", 1, 1e3),
    _number("tokens measured", "tokens", 0),
]


def _markdown(columns: Sequence[Column], rows: Sequence[Row]) -> str:
    """A table whose columns are padded, so that it reads well as it is, too."""
    if not rows:
        return ""
    cells = [[title for title, _ in columns], *([text(row) for _, text in columns] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = ["| " + " | ".join(f"{cell:<{w}}" for cell, w in zip(line, widths, strict=True)) + " |" for line in cells]
    return "\n".join([lines[0], "|" + "|".join("-" * (width + 2) for width in widths) + "|", *lines[1:]])
