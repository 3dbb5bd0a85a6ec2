"""How many characters of a text a token may stand for, so that a text which cannot fit is refused before it is read."""

import json
from typing import Any

from tokenizers import Tokenizer, models, pre_tokenizers

_KEEPING = frozenset({"ByteLevel", "Metaspace", "Digits", "Punctuation", "Split", "UnicodeScripts"})  # pre-tokenizers
# Normalizers that leave at least one character of so many. None is decomposed into more than four (UAX #15).
_SHRINKING = {"ByteLevel": 1, "NFD": 1, "NFKD": 1, "Prepend": 1, "Replace": 1, "NFC": 4}


def most_characters(tokenizer: Any) -> int | None:
    """Of a text, that one token stands for; None where that is not certain: one that drops characters has no such bound."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if not isinstance(backend, Tokenizer) or not _reads_every_byte(backend):
        return None
    if any(added.lstrip or added.rstrip for added in backend.get_added_tokens_decoder().values()):
        return None  # which take any number of spaces along
    if not all(map(_keeps, _steps(backend.pre_tokenizer, "pretokenizers"))):
        return None
    longest = max(map(len, backend.get_vocab()), default=0)
    for step in _steps(backend.normalizer, "normalizers"):
        if step["type"] not in _SHRINKING or (step["type"] == "Replace" and not _is_as_long(step)):
            return None
        longest *= _SHRINKING[step["type"]]
    return longest or None


def _reads_every_byte(backend: Tokenizer) -> bool:
    """Whatever is not in the vocabulary is spelled in bytes, not dropped, and not joined to one unknown token."""
    vocab = backend.get_vocab()
    if not isinstance(backend.model, models.BPE):
        return False
    if backend.model.byte_fallback:
        return all(f"<0x{byte:02X}>" in vocab for byte in range(256))
    steps = [*_steps(backend.normalizer, "normalizers"), *_steps(backend.pre_tokenizer, "pretokenizers")]
    in_bytes = any(step["type"] == "ByteLevel" for step in steps)
    return in_bytes and all(letter in vocab for letter in pre_tokenizers.ByteLevel.alphabet())


def _steps(part: Any, several: str) -> list[dict[str, Any]]:
    """What a part of a tokenizer does, one after the other."""
    if part is None:
        return []
    state = json.loads(part.__getstate__())
    return state[several] if state["type"] == "Sequence" else [state]


def _keeps(step: dict[str, Any]) -> bool:
    return step["type"] in _KEEPING and step.get("behavior") != "Removed"


def _is_as_long(replacement: dict[str, Any]) -> bool:
    return len(replacement["content"]) >= len(replacement["pattern"].get("String", ())) > 0
