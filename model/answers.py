"""What an answer comes to, so that answers can be compared: found in a text by a pattern, in one spelling of equal values.

A pattern is a name of `FINDERS`, or `re:` and a regular expression of RE2, no search of which takes longer than a text is long;
as there may be as many searches as letters, expressions read only the end of a text.
"""

import re
from collections.abc import Callable
from fractions import Fraction

import re2

Finder = Callable[[str], str | None]

MARK = "####"  # what GSM8K's answers stand behind
MAX_EXPRESSION = 500  # characters
MAX_NUMBER = 500  # characters; a longer one is text: its decimals would take milliseconds to count
MAX_READ = 4000  # characters of a text, its last, that an expression reads
_EXPRESSION = "re:"

_DIGITS = r"(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)"
# A minus behind a digit, a letter or a bracket is no sign: it takes away, or joins.
NUMBER = re.compile(
    rf"(?:(?<![\w)])[-\u2212])?\$?(?:\d+ \d+/\d+|{_DIGITS}(?:\.\d+|/\d+)?|(?<![\d.])\.\d+)(?:[eE][-+]?\d+)?"
)
_MARKED = re.compile(rf"{MARK}\s*({NUMBER.pattern})")
_VALUE = re.compile(
    rf"(?P<sign>[-+]?) ?\$?(?:(?P<whole>\d+) (?P<part>\d+/\d+)|(?P<plain>{_DIGITS}?(?:\.\d+)?(?:/\d+|[eE][-+]?\d{{1,3}})?))\.?"
)

_BOX = re.compile(r"\\(?:boxed|fbox)\s*\{")
_BRACE = re.compile(r"[{}]")
_FRACTION = re.compile(r"\\[dt]?frac\s*(?:\{(-?\d+)\}\s*\{(\d+)\}|(\d)\s*(\d)(?!\d))")
_WRAPPED = re.compile(r"\\(?:text|mathrm|mathbf|textbf)\{([^{}]*)\}")
_ORNAMENTS = re.compile(r"\\(?:left|right)(?![a-zA-Z])|(?<!\\)\\[!,;: %$]|\^\{?\\circ\}?|(?<=\d)%")

_CLAIM = re.compile(r"(?:answer|option|choice)\W{0,4}(?:is|must be|:)", re.IGNORECASE)
_BEFORE_LABEL = re.compile(r"(?:\\boxed|\\text|\\mathbf|\W|option\b|choice\b|the\b)*")
_CLAIMED_LABEL = re.compile(r"([B-HJ-Z])(?![\w'])|([AI])(?=\W*$|[.:;)*}\]\n])")
_LABEL_AT_START = re.compile(
    r"\W*([A-Z])(?:\W*$|[.:;)*]| is\b)"
)  # a bare letter may be a word: "A dog" is not the choice A
_LABEL_IN_BRACKETS = re.compile(r"\(([A-Z])\)")


def find_boxed(text: str) -> str | None:
    r"""What stands in the last \boxed{...} that is closed; None where there is none."""
    boxes = {box.end() for box in _BOX.finditer(text)}
    last: tuple[int, int] | None = None
    open_braces: list[int] = []  # where what stands in each begins: one pass pairs them all, however deep they are
    for brace in _BRACE.finditer(text):
        if brace[0] == "{":
            open_braces.append(brace.end())
        elif open_braces and (start := open_braces.pop()) in boxes:
            last = max(last or (0, 0), (start, brace.start()))
    return _plain(text[slice(*last)]) if last else None


def find_last_number(text: str) -> str | None:
    """The last number right behind a "####"; without that, the last number."""
    marked = _MARKED.findall(text)
    found = marked or NUMBER.findall(text)
    return found[-1] if found else None


def find_choice(text: str) -> str | None:
    """A capital that labels a choice: the last that is claimed to be the answer, or at the beginning, or the last in brackets."""
    if claimed := _find_claimed(text):
        return claimed
    if first := _LABEL_AT_START.match(text):
        return first[1]
    in_brackets = _LABEL_IN_BRACKETS.findall(text)
    return in_brackets[-1] if in_brackets else None


def _find_claimed(text: str) -> str | None:
    """The label behind the last claim that has one."""
    unread = len(text)
    for claim in reversed(list(_CLAIM.finditer(text))):
        at = _BEFORE_LABEL.match(text, claim.end(), unread).end()  # type: ignore[union-attr]  # it matches nothing, too
        unread, known = claim.end(), at == unread  # what stands from there on is behind a later claim, and no label
        if not known and (label := _CLAIMED_LABEL.match(text, at)):
            return label[1] or label[2]
    return None


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
    value = _VALUE.fullmatch(text.replace("\u2212", "-"))
    if not value or len(text) > MAX_NUMBER or not any(map(str.isdigit, text)):
        return text
    try:
        size = Fraction((value["plain"] or value["part"]).replace(",", "")) + Fraction(value["whole"] or 0)
        return _spell(-size if value["sign"] == "-" else size)
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
    text = _FRACTION.sub(lambda m: f" {m[1] or m[3]}/{m[2] or m[4]} ", latex.replace("{,}", ","))
    text = _WRAPPED.sub(r"\1", _ORNAMENTS.sub("", text)).strip().strip("$")
    text = re.sub(r"\s*([,()\[\]^])\s*", r"\1", " ".join(text.split()))
    label = _LABEL_IN_BRACKETS.fullmatch(text)
    return label[1] if label else text or None


def _expression(written: str) -> Finder:
    """The last match, or its first group where it has groups."""
    if not 0 < len(written) <= MAX_EXPRESSION:
        raise ValueError(f"the expression has {len(written)} characters; it may have 1 to {MAX_EXPRESSION}")
    options = re2.Options()
    options.log_errors = False
    try:
        compiled = re2.compile(written, options)
    except (re2.error, UnicodeError) as error:
        raise ValueError(f"{written[:50]!r} is no expression (RE2's syntax): {_reason(error)}") from None

    def find(text: str) -> str | None:
        found = None
        for match in compiled.finditer(text[-MAX_READ:]):
            found = match
        said = found and found[1 if compiled.groups else 0]
        return (said or "").strip() or None

    return find


def _reason(error: Exception) -> str:
    said = error.args[0] if error.args else ""
    return said.decode(errors="replace") if isinstance(said, bytes) else str(said)
