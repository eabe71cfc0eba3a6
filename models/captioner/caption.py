"""What a captioner says, and what may be asked about it: the whole, a word, a phrase."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ...errors import GradlightError

__all__ = ["Caption", "Phrase", "Word"]


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
