"""Problems as documents, and the tokenizer that reads them.

A document is a question and its answer, after notes, after notes that break off early, after idle talk, or straight:

    Question: A dial is at 3. It flips over on Monday. It goes up 4 on Tuesday. Where is the dial now?
    Answer: --- Monday 6 Tuesday 0 --- 0<|endoftext|>

Batch k is a function of (seed, k) alone, so a resumed run needs no position in its data."""

import itertools
import random
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from .batches import Batch, pad
from .tasks import EVERY, FAMILIES, Problem, draw, problems

EOS = "<|endoftext|>"
PAD = "<|pad|>"
START = "<|startthought|>"
END = "<|endthought|>"
SPECIAL = (EOS, PAD, START, END)  # the first ids of the vocabulary
DASH = " ---"  # opens and closes an aside; one token
DASH_TOKEN = "\u0120---"  # its name in the vocabulary
QUESTION_WEIGHT = 0.02  # a question can hardly be foretold, but reading it is learned from trying
CLOSING_DASH = -3  # where it stands in a document: before the answer and the end of the text

Style = Literal["direct", "notes", "cut", "idle"]
IDLE_WORDS = ("well", "hmm", "so", "now", "let", "me", "see", "think", "okay", "right", "maybe", "wait")

CHAT_TEMPLATE = """\
{%- for message in messages -%}
{%- if message.role == 'user' -%}
{{ 'Question: ' + message.content | trim + '\\nAnswer:' }}
{%- elif message.role == 'assistant' -%}
{{ ' ' + message.content | trim + eos_token }}
{%- endif -%}
{%- endfor -%}
"""


def token_id(tokenizer: PreTrainedTokenizerFast, text: str) -> int:
    """The id of a text that is one token; ValueError where it is not."""
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    if len(ids) != 1:
        raise ValueError(f"{text!r} is {len(ids)} tokens, not one")
    return ids[0]


def write_prompt(problem: Problem) -> str:
    """What a model is given: the text up to where the answer, or an aside, begins."""
    return f"Question: {problem.question}\nAnswer:"


def write_document(problem: Problem, style: Style, rng: random.Random) -> str:
    """The whole document; `rng` draws the idle words."""
    aside = {
        "direct": "",
        "notes": f"{DASH}{problem.working}{DASH}",
        "cut": f"{DASH}{_break_off(problem, rng)}{DASH}",
        "idle": f"{DASH}{_idle_talk(rng)}{DASH}",
    }[style]
    return f"{write_prompt(problem)}{aside} {problem.answer}{EOS}"


def _break_off(problem: Problem, rng: random.Random) -> str:
    """The first words of the working, at least one and not all: what a thought is worth whose depth was too small.

    Nothing where there is no working to break off: of a problem whose answer shows its steps.
    """
    words = problem.working.split()
    return "".join(f" {word}" for word in words[: rng.randrange(1, len(words))]) if len(words) > 1 else ""


def _idle_talk(rng: random.Random) -> str:
    """Always the same first word: or the likeliest way to open an aside would be notes, however rare they are."""
    return "".join(f" {word}" for word in (IDLE_WORDS[0], *rng.choices(IDLE_WORDS, k=rng.randint(1, 9))))


def build_tokenizer(corpus: Iterable[str] | None = None, spaced: bool = False) -> PreTrainedTokenizerFast:
    """Train a tokenizer on a corpus, that of the thinking families if there is no other.

    Byte-level BPE whose vocabulary is the 256 bytes and every word of the corpus, found whole and not by merges: any
    text survives the round trip, and no row of the embedding is spent on halves of words. A word is letters, digits or
    signs; where texts are `spaced`, whatever stands between spaces.
    """
    splitter = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=not spaced)
    if spaced:
        between = pre_tokenizers.Split(Regex(r" ?\S+|\s"), "isolated")
        splitter = pre_tokenizers.Sequence([between, splitter])
    words = Tokenizer(models.WordLevel())
    words.pre_tokenizer = splitter
    words.train_from_iterator(
        _sample_corpus() if corpus is None else corpus,
        trainers.WordLevelTrainer(vocab_size=10_000, show_progress=False),
    )
    known = sorted(set(words.get_vocab()) | set(pre_tokenizers.ByteLevel.alphabet()))
    vocabulary = {token: index for index, token in enumerate([*SPECIAL, *known])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], ignore_merges=True))
    tokenizer.pre_tokenizer = splitter
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=EOS,
        pad_token=PAD,
        additional_special_tokens=[START, END],
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
    )


def _sample_corpus() -> list[str]:
    drawn = itertools.islice(problems("train", seed=0), 6000)
    corpus = [f"{write_prompt(problem)}{DASH}{problem.working}{DASH} {problem.answer}" for problem in drawn]
    return [*corpus, *(f" {word}" for word in IDLE_WORDS)]


def make_batch(
    tokenizer: PreTrainedTokenizerFast,
    rng: random.Random,
    size: int,
    styles: Mapping[Style, float],
    steps: Sequence[int] | None,
    families: Sequence[str] = tuple(FAMILIES),
) -> Batch:
    """Draw `size` training documents: families and numbers of steps (None: a family's own) evenly, styles by their shares."""
    chosen_families = (EVERY[rng.choice(families)] for _ in range(size))
    drawn = [draw(rng, "train", family, rng.choice(steps or family.steps)) for family in chosen_families]
    chosen = rng.choices(list(styles), weights=list(styles.values()), k=size)
    texts = [write_document(problem, style, rng) for problem, style in zip(drawn, chosen, strict=True)]
    return collate(tokenizer, drawn, texts, chosen)


def collate(
    tokenizer: PreTrainedTokenizerFast, drawn: Sequence[Problem], texts: Sequence[str], styles: Sequence[Style]
) -> Batch:
    """Tokenise the problems' documents; of a question little counts, of what follows everything.

    But not the dash that breaks notes off: a model should know what to answer behind it, not where to write it.
    """
    rows = tokenizer(list(texts))["input_ids"]
    prompts = tokenizer([write_prompt(problem) for problem in drawn])["input_ids"]
    weights = [
        [0.0, *[QUESTION_WEIGHT] * (len(prompt) - 1), *[1.0] * (len(row) - len(prompt))]
        for row, prompt in zip(rows, prompts, strict=True)
    ]
    for row, style in zip(weights, styles, strict=True):
        if style == "cut":
            row[CLOSING_DASH] = 0.0
    return pad(rows, weights, token_id(tokenizer, PAD))
