"""What an answer comes to, so that answers can be compared: found in a text by a pattern, in one spelling of equal values.

A pattern is a name of `FINDERS`, or `re:` and a regular expression, which is run by an engine whose time grows with the text
and not with the pattern's tricks (RE2).
"""

import re
from collections.abc import Callable
from fractions import Fraction

import re2

Finder = Callable[[str], str | None]

MARK = "####"  # what GSM8K's answers stand behind
MAX_EXPRESSION = 500  # characters
_EXPRESSION = "re:"

# A minus behind a digit or a bracket takes away; anywhere else it is part of the number.
NUMBER = re.compile(r"(?:(?<![\d)])-)?\$?(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+|/\d+)?")
_WHOLE_NUMBER = re.compile(r"[+-]?\$?(?:\d{1,3}(?:,\d{3})+|\d+)?(?:\.\d+)?(?:/\d+)?")
_FRACTION = re.compile(r"\\[dt]?frac(?:\{(\d+)\}\{(\d+)\}|(\d)(\d))")
_WRAPPED = re.compile(r"\\(?:text|mathrm|mathbf|textbf)\{([^{}]*)\}")
_ORNAMENTS = re.compile(r"\\left|\\right|\\[!,;: %$]|\^\{?\\circ\}?|(?<=\d)%")
_BOX = re.compile(r"\\(?:boxed|fbox)\s*\{")
_CLAIM = re.compile(r"answer(?: is|:)\s*", re.IGNORECASE)
_CLAIMED_LABEL = re.compile(r"\W*([A-Z])\b")
_LABEL_AT_START = re.compile(r"\W*([A-Z])(?:\W*$|[.,:;)*])")  # a bare letter may be a word: "A dog" is not the choice A
_LABEL_IN_BRACKETS = re.compile(r"\(([A-Z])\)")


def find_boxed(text: str) -> str | None:
    r"""What stands in the last \boxed{...}; None where there is none, or it is not closed."""
    starts = [match.end() for match in _BOX.finditer(text)]
    if not starts:
        return None
    open_braces = 1
    for end in range(starts[-1], len(text)):
        open_braces += (text[end] == "{") - (text[end] == "}")
        if not open_braces:
            return _plain(text[starts[-1] : end])
    return None


def find_last_number(text: str) -> str | None:
    """The first number behind the last "####"; without that mark, the last number."""
    _, mark, behind = text.rpartition(MARK)
    found = NUMBER.findall(behind)
    return found[0 if mark else -1] if found else None


def find_choice(text: str) -> str | None:
    """A capital that labels a choice: behind the last "answer is" or "answer:" or at the beginning, else the last in brackets."""
    *claims, said = _CLAIM.split(text)
    if first := (_CLAIMED_LABEL if claims else _LABEL_AT_START).match(said):
        return first[1]
    in_brackets = _LABEL_IN_BRACKETS.findall(text)
    return in_brackets[-1] if in_brackets else None


def find_all(text: str) -> str | None:
    """All of it; None where that is nothing."""
    return text.strip() or None


FINDERS: dict[str, Finder] = {
    "full_text": find_all,
    "last_number": find_last_number,
    "boxed": find_boxed,
    "choice": find_choice,
}


def finder(pattern: str) -> Finder:
    """What finds an answer by a pattern. Raises ValueError for one that there is not."""
    if pattern in FINDERS:
        return FINDERS[pattern]
    if not pattern.startswith(_EXPRESSION):
        names = ", ".join(FINDERS)
        raise ValueError(f"{pattern[:50]!r} is no pattern; there are {names}, and {_EXPRESSION} with an expression")
    return _expression(pattern.removeprefix(_EXPRESSION))


def normalise(answer: str) -> str:
    """One spelling of equal answers: numbers without currency, commas or needless zeros, halves as 0.5, thirds as 1/3."""
    text = " ".join(answer.split())
    number = text.rstrip(".")
    if not any(map(str.isdigit, number)) or not _WHOLE_NUMBER.fullmatch(number):
        return text
    try:
        return _spell(Fraction(number.replace(",", "").replace("$", "")))
    except (ValueError, ZeroDivisionError):  # too long for a number, a fraction of a fraction, or one of nothing
        return text


def _spell(value: Fraction) -> str:
    """As a decimal where that ends, otherwise as a fraction."""
    rest, places = value.denominator, 0
    for prime in (2, 5):
        count = 0
        while rest % prime == 0:
            rest, count = rest // prime, count + 1
        places = max(places, count)
    if rest > 1 or not places:
        return str(value)
    digits = str(abs(value.numerator) * 10**places // value.denominator).rjust(places + 1, "0")
    return f"{'-' if value < 0 else ''}{digits[:-places]}.{digits[-places:]}"


def _plain(latex: str) -> str | None:
    """Without what only says how it is to look."""
    text = _FRACTION.sub(lambda m: f"{m[1] or m[3]}/{m[2] or m[4]}", latex)
    text = _WRAPPED.sub(r"\1", _ORNAMENTS.sub("", text))
    return text.strip().strip("$").strip() or None


def _expression(written: str) -> Finder:
    """The last match, or its first group where it has groups."""
    if len(written) > MAX_EXPRESSION:
        raise ValueError(f"the expression has {len(written)} characters; it may have {MAX_EXPRESSION}")
    options = re2.Options()
    options.log_errors = False
    try:
        compiled = re2.compile(written, options)
    except re2.error as error:
        raise ValueError(f"{written[:50]!r} is no expression (RE2's syntax): {_reason(error)}") from None

    def find(text: str) -> str | None:
        found = None
        for match in compiled.finditer(text):
            found = match
        said = found and found[1 if compiled.groups else 0]
        return (said or "").strip() or None

    return find


def _reason(error: Exception) -> str:
    said = error.args[0] if error.args else ""
    return said.decode(errors="replace") if isinstance(said, bytes) else str(said)
