"""Text to token ids and back: prompts, chat rendering, text that arrives a token at a time."""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from .shrinking import most_characters

if TYPE_CHECKING:  # it takes seconds, and a server's settings are read with this module
    from transformers import PreTrainedTokenizerBase

_CONTEXT = 6  # tokens
_UNFINISHED = "\ufffd"  # what a tokenizer prints for bytes that are not yet a whole character


class PromptError(ValueError):
    """A prompt that cannot be read: a thought marker in it, an id out of range, no chat template."""


def is_writable(text: str) -> bool:
    """It holds no half of a surrogate pair, which is no character."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


class Tokens:
    """A tokenizer, and the ids that mean something to us.

    Args:
        tokenizer: any Hugging Face tokenizer.
        eos_ids: ids that end a text; the tokenizer's own is always among them.
        marker_tokens: names of the thought markers; those the vocabulary holds are refused in prompts.
        num_ids: ids the model can embed.
    """

    def __init__(
        self,
        tokenizer: "PreTrainedTokenizerBase",
        eos_ids: Iterable[int] = (),
        marker_tokens: Iterable[str] = (),
        num_ids: int | None = None,
    ) -> None:
        self.tokenizer: Any = tokenizer
        own = tokenizer.eos_token_id
        self.eos_ids = frozenset(eos_ids) | (frozenset({own}) if isinstance(own, int) else frozenset())
        vocab = tokenizer.get_vocab()
        self.markers = {name: vocab[name] for name in marker_tokens if name in vocab}
        self.num_ids = num_ids or len(tokenizer)
        self._anchor = self.tokenizer("a", add_special_tokens=False)["input_ids"][-1]
        self._most_characters = most_characters(tokenizer)
        self._texts: dict[int, str] = {}  # what was decoded alone, as often as a reply names it: at most the vocabulary

    @property
    def has_chat_template(self) -> bool:
        """Messages can be rendered."""
        return bool(self.tokenizer.chat_template)

    def encode(self, text: str, *, special: bool = True) -> list[int]:
        """Ids of a prompt; `special` adds what the tokenizer begins a text with. Raises PromptError."""
        for name in self.markers:
            if name in text:
                raise PromptError(f"the text contains the thought marker {name!r}, which no prompt may hold")
        if not is_writable(text):
            raise PromptError("the text contains half of a surrogate pair, which is no character")
        return list(self.tokenizer(text, add_special_tokens=special)["input_ids"])

    def encode_written(self, text: str) -> list[int]:
        """Ids of what a model wrote. A marker's name that it spelled out has no ids: the marker's own would mean a thought."""
        while spelled := [name for name in self.markers if name in text]:
            for name in spelled:
                text = text.replace(name, "")
        return self.encode(text, special=False)

    def least(self, text: str) -> int:
        """Tokens that it has at the least, however it is read; it is not read to know."""
        return -(-len(text) // self._most_characters) if self._most_characters else 0

    def check(self, ids: Sequence[int]) -> list[int]:
        """The same ids, if a prompt may hold them. Raises PromptError."""
        markers = set(self.markers.values())
        for token in ids:
            if not 0 <= token < self.num_ids:
                raise PromptError(f"token id {token} is out of range; ids are 0 to {self.num_ids - 1}")
            if token in markers:
                raise PromptError(f"token id {token} is a thought marker, which no prompt may hold")
        return list(ids)

    def render(self, messages: list[dict[str, str]], *, add_generation_prompt: bool = True) -> list[int]:
        """Ids of a conversation, up to where the answer begins. Raises PromptError."""
        return self.encode(self.render_text(messages, add_generation_prompt=add_generation_prompt), special=False)

    def render_text(self, messages: list[dict[str, str]], *, add_generation_prompt: bool = True) -> str:
        """The same as text. Raises PromptError."""
        if not self.has_chat_template:
            raise PromptError("this model has no chat template; use completions")
        try:
            return self.tokenizer.apply_chat_template(
                messages, tokenize=False, add_generation_prompt=add_generation_prompt
            )
        except Exception as error:  # a template is a program of the checkpoint's: it may raise anything
            raise PromptError(f"the chat template refuses these messages: {error}") from error

    def decode(self, ids: Sequence[int], *, special: bool = False) -> str:
        """Text of visible ids; tokens that end a text have none, unless `special` asks for their names."""
        return self.tokenizer.decode(list(ids), skip_special_tokens=not special, clean_up_tokenization_spaces=False)

    def describe(self) -> dict[str, Any]:
        """The tokenizer's class, special tokens and chat template, as `tokenizer_config.json` calls them."""
        named = {
            name: str(token) for name, token in self.tokenizer.special_tokens_map.items() if isinstance(token, str)
        }
        return {
            "tokenizer_class": type(self.tokenizer).__name__,
            **{name: named.get(name) for name in ("bos_token", "eos_token", "pad_token", "unk_token")},
            "chat_template": self.tokenizer.chat_template,
            "model_max_length": self.tokenizer.model_max_length,
        }

    def token_text(self, token: int) -> str:
        """Text that one id adds to a text, special ones by their name."""
        if (text := self._texts.get(token)) is None:
            text = self._texts[token] = self._decode_alone(token)
        return text

    def _decode_alone(self, token: int) -> str:
        # Behind another one: alone, some tokenizers would strip the space that it begins with.
        before, both = (
            self.tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
            for ids in ([self._anchor], [self._anchor, token])
        )
        return both[len(before) :]


class TextStream:
    """Text of tokens that arrive one at a time; withholds what might become a stop string or half a character.

    The joined results of `add` and `finish` are the whole text, cut before the first stop string. `context` is what stands
    before: a token that begins with a space may lose it at the beginning of a text. `whole`: nobody reads along
    and nothing stops it; the text comes at the finish, decoded once.
    """

    def __init__(
        self, tokens: Tokens, stop: Sequence[str] = (), context: Sequence[int] = (), whole: bool = False
    ) -> None:
        self._tokens = tokens
        self.stop = stop  # may be exchanged between tokens
        self._whole = whole
        self._ids = list(context[-_CONTEXT:])
        if tokens.decode(self._ids).endswith(_UNFINISHED):
            self._ids = []
        self._begin = 0  # decoding restarts here, so that the cost of a token does not grow with the text
        self._read = len(self._ids)  # ids before it are in `_held` or were handed out
        self._held = ""
        self.stopped = False

    def add(self, token: int) -> str:
        """The text that is certain now."""
        self._ids.append(token)
        if self._whole:
            return ""
        before = self._tokens.decode(self._ids[self._begin : self._read])
        text = self._tokens.decode(self._ids[self._begin :])
        if text.endswith(_UNFINISHED):
            return ""
        self._begin, self._read = self._read, len(self._ids)
        return self._release(text[len(before) :])

    def finish(self) -> str:
        """What was withheld."""
        if self.stopped:
            return ""
        before = self._tokens.decode(self._ids[self._begin : self._read])
        rest = self._release(self._tokens.decode(self._ids[self._begin :])[len(before) :])
        held, self._held = self._held, ""
        return rest if self.stopped else rest + held

    def _release(self, text: str) -> str:
        held = self._held + text
        found = [at for at in (held.find(stop) for stop in self.stop) if at >= 0]
        if found:
            self.stopped, self._held = True, ""
            return held[: min(found)]
        keep = max((_overlap(held, stop) for stop in self.stop), default=0)
        self._held = held[len(held) - keep :]
        return held[: len(held) - keep]


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that begins `stop`."""
    return next((n for n in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:n])), 0)
