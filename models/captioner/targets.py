"""What a person asks a captioner about: its own caption, a text, a phrase, words; for all images or for each.

What a captioner says, and what may be asked about it: the whole, a word, a phrase.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from ...errors import GradlightError
from ..objective import Target
from .search import Hypothesis
from .vocabulary import Vocabulary

__all__ = ["Caption", "CaptionTarget", "CaptionTargetSpec", "Phrase", "Word", "parse", "resolve", "word_by_word"]


@dataclass(frozen=True)
class Phrase:
    """The words start … stop (exclusive) of a caption's tokens, to be explained together, given those before them.

    ended: the caption ends there, and was not cut at the length limit.
    """

    tokens: tuple[int, ...]
    start: int
    stop: int
    ended: bool = True


class Word(str):
    """A word that knows its caption: a text like any other, and a target of its own."""

    phrase: Phrase

    @classmethod
    def at(cls, text: str, tokens: tuple[int, ...], position: int, ended: bool = True) -> Word:
        """Make the word at a position of a caption's tokens."""
        word = cls(text)
        word.phrase = Phrase(tokens, position, position + 1, ended)
        return word


@dataclass(frozen=True)
class Caption:
    """A caption: its text, words and tokens, and their log-probabilities.

    log_prob: of the whole, END included where it is counted and was reached. word_log_probs: of each word, given those
    before it. ended: the captioner ended it by itself, and was not cut at the length limit.
    """

    text: str
    words: list[Word]
    tokens: list[int]
    log_prob: float
    word_log_probs: list[float]
    ended: bool = True

    def __str__(self) -> str:
        return self.text

    def span(self, start: int, stop: int) -> Phrase:
        """Give the words start … stop (exclusive) as one target; raises GradlightError for an empty or wrong range."""
        if not 0 <= start < stop <= len(self.tokens):
            raise GradlightError(
                f"{self.text!r} has the words 0 to {len(self.tokens) - 1}; there is none from {start} to before {stop}."
            )
        return Phrase(tuple(self.tokens), start, stop, self.ended)

    def phrase(self, text: str) -> Phrase:
        """Give words that follow one another, as "red star", as one target; the first place where they stand."""
        return self.span(*find_words(text.split(), self.words))


def find_words(wanted: Sequence[str], words: Sequence[str]) -> tuple[int, int]:
    """Find where words stand one after another; raises GradlightError if they do not, and for none."""
    asked, known = [word.casefold() for word in wanted], [word.casefold() for word in words]
    for start in range(len(known) - len(asked) + 1 if asked else 0):
        if known[start : start + len(asked)] == asked:
            return start, start + len(asked)
    raise GradlightError(
        f"{' '.join(wanted)!r} is not in the caption {' '.join(words)!r}. Ask for words that stand there one after"
        " another."
    )


@dataclass(frozen=True)
class CaptionTarget(Target):
    """A caption or a part of it: the words start … stop (exclusive) of its tokens, and END if it is counted.

    ended: whether the caption's loss counts END; it does not where the length limit cut the caption.
    """

    tokens: tuple[int, ...] = ()
    start: int = 0
    stop: int = 0
    counts_end: bool = True
    ended: bool = True


@dataclass(frozen=True)
class CaptionTargetSpec:
    """One thing that is asked of an image, as far as it is known before the network has run.

    text: as it was written, for the record. tokens: of the caption; None: the one that the captioner makes. phrase:
    words to find in it. span: where the part begins and stops; None: the whole. each: every word of the part apart.
    """

    text: str
    tokens: tuple[int, ...] | None = None
    phrase: tuple[str, ...] = ()
    span: tuple[int, int] | None = None
    each: bool = False
    ended: bool = True


def parse(target: Any, words: Vocabulary, unk: str) -> list[list[CaptionTargetSpec]]:
    """Bring a target to rows: one row per image, or one for all; every row holds what is asked of its image.

    None: the caption that the captioner makes. A text: that caption; "a [red star] above" asks for the words between
    the brackets, and "[red star]" for these words of the captioner's own caption. A Caption, Phrase or Word: itself. A
    list holds one entry for each image, or exactly one for all, and an entry that is itself a list asks several; the
    words of one caption (`caption.words`) are one entry that asks for each of them. Raises GradlightError for anything
    else, and for words that are not in the vocabulary.
    """
    if not isinstance(target, (list, tuple)) or _is_words(target):
        return [_entry(target, words, unk)]
    if not target:
        raise GradlightError(
            "The list of targets is empty. Give a text for each image, or None: the generated caption."
        )
    return [_entry(part, words, unk) for part in target]


def word_by_word(rows: Sequence[Sequence[CaptionTargetSpec]]) -> list[list[CaptionTargetSpec]]:
    """Ask for every word of what was asked, apart."""
    return [[replace(asked, each=True) for asked in row] for row in rows]


def resolve(
    asked: CaptionTargetSpec, found: Hypothesis | None, words: Vocabulary, count_end: bool
) -> list[CaptionTarget]:
    """Fix what is asked of one image; found: the caption that the captioner made, where none was given."""
    if asked.tokens is None and found is not None:
        asked = replace(asked, tokens=found.tokens, ended=found.ended)
    tokens = asked.tokens or ()
    said = words.decode(tokens)
    span = find_words(asked.phrase, said) if asked.phrase else asked.span
    if asked.each:
        start, stop = span or (0, len(tokens))
        if start == stop:
            raise GradlightError("The captioner says nothing of this image (END comes first), so there are no words.")
        return [_part(tokens, said, at, at + 1, asked.ended and count_end) for at in range(start, stop)]
    if span is not None:
        return [_part(tokens, said, *span, asked.ended and count_end)]
    end = asked.ended and count_end
    return [CaptionTarget("caption", 0, " ".join(said), tokens=tokens, stop=len(tokens), counts_end=end, ended=end)]


def _part(tokens: tuple[int, ...], said: Sequence[str], start: int, stop: int, ended: bool) -> CaptionTarget:
    label = " ".join(said[start:stop])
    return CaptionTarget("word", start, label, tokens=tokens, start=start, stop=stop, counts_end=False, ended=ended)


def _is_words(target: Sequence[Any]) -> bool:
    """Tell whether these are words of one caption, and not a list with an entry for each image."""
    return (
        bool(target)
        and len({part.phrase.tokens if isinstance(part, Word) else None for part in target}) == 1
        and all(isinstance(part, Word) for part in target)
    )


def _entry(target: Any, words: Vocabulary, unk: str) -> list[CaptionTargetSpec]:
    if not isinstance(target, (list, tuple)):
        return [_one(target, words, unk)]
    if not target:
        raise GradlightError("One image's list of targets is empty. Give at least one for each image.")
    return [
        asked for part in target for asked in (_entry(part, words, unk) if _nested(part) else [_one(part, words, unk)])
    ]


def _nested(part: Any) -> bool:
    return isinstance(part, (list, tuple)) and _is_words(part)


def _one(target: Any, words: Vocabulary, unk: str) -> CaptionTargetSpec:
    if target is None:
        return CaptionTargetSpec("")
    if isinstance(target, Caption):
        return CaptionTargetSpec(target.text, tuple(target.tokens), ended=target.ended)
    if isinstance(target, (Word, Phrase)):
        phrase = target.phrase if isinstance(target, Word) else target
        said = words.decode(phrase.tokens)
        if not 0 <= phrase.start < phrase.stop <= len(said):
            raise GradlightError(f"{phrase!r} has no words; caption.phrase(…) and caption.span(…) make phrases.")
        said[phrase.start] = f"[{said[phrase.start]}"
        said[phrase.stop - 1] += "]"
        return CaptionTargetSpec(" ".join(said), phrase.tokens, span=(phrase.start, phrase.stop), ended=phrase.ended)
    if isinstance(target, str) and target.strip():
        return _text(target, words, unk)
    raise GradlightError(
        f"{target!r} is not a target of a captioner. Give a text, a Caption of model.caption(…), its words, or None for"
        " the caption that it makes itself."
    )


def _text(text: str, words: Vocabulary, unk: str) -> CaptionTargetSpec:
    """Read a text, with one pair of brackets around a phrase or without."""
    if "[" not in text and "]" not in text:
        return CaptionTargetSpec(text, tuple(words.encode(text, unk)))
    match = re.fullmatch(r"([^\[\]]*)\[([^\[\]]+)\]([^\[\]]*)", text)
    if match is None:
        raise GradlightError(f'{text!r}: one pair of brackets marks the phrase to explain, as in "a [red star] above".')
    inside = words.encode(match[2], unk)
    before, after = (words.encode(part, unk) if re.search(r"\w", part) else [] for part in (match[1], match[3]))
    if not before and not after:
        return CaptionTargetSpec(text, phrase=tuple(words.decode(inside)))
    return CaptionTargetSpec(text, (*before, *inside, *after), span=(len(before), len(before) + len(inside)))
