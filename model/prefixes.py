"""Prompts that begin alike are read once: what each slot holds is known, and a new attempt takes over what it shares."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from .cache import Cache
from .decoding import Decoding

MIN_SHARED = 16  # tokens; fewer are read sooner than looked for, waited for or copied


@dataclass
class _Contents:
    """The tokens whose keys and values a slot's base columns hold: tokens[:cached]."""

    tokens: Sequence[int] = field(default_factory=list)
    cached: int = 0


class Prefixes:
    """What the slots of a cache hold, also after their attempts have ended.

    Args:
        cache: the cache.
        enabled: False: nothing is ever taken over.
    """

    def __init__(self, cache: Cache, enabled: bool = True) -> None:
        self._cache, self._enabled = cache, enabled
        self._contents: list[_Contents | Decoding] = [_Contents() for _ in range(cache.slots)]
        self._last_used = [0] * cache.slots
        self._clock = 0

    def choose_slot(self, tokens: Sequence[int], free: Sequence[int]) -> int:
        """The best of the free slots: one that holds little else than a prefix of these tokens, or the longest unused."""
        wanted = list(tokens)  # a tuple equals no list, and slots hold lists
        shared, best = self._longest(wanted, len(wanted), free)
        if shared and 2 * shared >= self._contents[best].cached:
            return best
        return min(free, key=lambda slot: (self._last_used[slot], slot))

    def enter(self, decoding: Decoding) -> None:
        """An attempt takes its slot over, with what the slot holds of its tokens."""
        if self._enabled:
            decoding.counts.looked_up = decoding.num_prompt
            self._reuse(decoding, self._shared(self._contents[decoding.slot], decoding.tokens, decoding.next_position))
        self._contents[decoding.slot] = decoding
        self._touch(decoding.slot)

    def leave(self, decoding: Decoding) -> None:
        """An attempt goes to another slot; what it has read stays behind."""
        if self._contents[decoding.slot] is decoding:
            self._contents[decoding.slot] = _Contents(decoding.tokens[: decoding.cached], decoding.cached)

    def fill(self, decoding: Decoding, ahead: Sequence[Decoding]) -> bool:
        """Copy the longest prefix that any slot holds; False: wait, one of those ahead is still reading a longer one."""
        if not self._enabled:
            return True
        if decoding.awaited is not None:
            leader, length = decoding.awaited
            if leader.cached < length and leader in ahead:
                return False
            decoding.awaited = None
        tokens, most = decoding.tokens, decoding.next_position
        shared, source = self._longest(tokens, most, range(self._cache.slots))
        if awaited := self._coming(decoding, ahead, max(shared, decoding.cached) + MIN_SHARED):
            decoding.awaited = awaited
            return False
        if shared >= decoding.cached + MIN_SHARED:
            self._cache.copy(source, decoding.slot, shared)
            self._touch(source)
            self._reuse(decoding, shared)
        return True

    def _coming(self, decoding: Decoding, ahead: Sequence[Decoding], least: int) -> tuple[Decoding, int] | None:
        """Who ahead will have read the longest prefix, and its length, if it is worth waiting for.

        Prompts that are scored are not: they are read as fast as is thought after each token.
        """
        head = decoding.tokens[:MIN_SHARED]
        readers = [o for o in ahead if o.cached < o.num_prompt - 1 and o.tokens[:MIN_SHARED] == head]
        readers = [o for o in readers if o.params.prompt_logprobs is None]
        lengths = [_common(o.tokens, decoding.tokens, min(decoding.next_position, o.num_prompt)) for o in readers]
        longest = max(lengths, default=0)
        return (readers[lengths.index(longest)], longest) if longest >= least else None

    def _reuse(self, decoding: Decoding, shared: int) -> None:
        decoding.counts.reused += shared - decoding.cached
        decoding.cached = shared

    def _touch(self, slot: int) -> None:
        self._clock += 1
        self._last_used[slot] = self._clock

    def _longest(self, tokens: list[int], most: int, slots: Sequence[int]) -> tuple[int, int]:
        """The longest prefix worth taking over, 0 where there is none, and the lowest slot that holds it."""
        if not self._enabled or most < MIN_SHARED:
            return 0, 0
        head = tokens[:MIN_SHARED]  # most slots differ in it: hundreds are passed over in no time
        alike = [slot for slot in slots if self._contents[slot].tokens[:MIN_SHARED] == head]
        lengths = [(self._shared(self._contents[slot], tokens, most), -slot) for slot in alike]
        shared, slot = max(lengths, default=(0, 0))
        return (shared, -slot) if shared >= MIN_SHARED else (0, 0)

    def _shared(self, held: "_Contents | Decoding", tokens: Sequence[int], most: int) -> int:
        return _common(held.tokens, tokens, min(most, held.cached))


def _common(a: Sequence[int], b: Sequence[int], most: int) -> int:
    """Length of the longest common prefix, at most `most`; slices are compared, not tokens: prompts are long."""
    low, high = 0, min(len(a), len(b), most)
    if a[:high] == b[:high]:
        return high
    while high - low > 1:  # a[:low] is common, a[:high] is not
        middle = (low + high) // 2
        if a[low:middle] == b[low:middle]:
            low = middle
        else:
            high = middle
    return low
