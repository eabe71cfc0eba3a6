"""The words of a captioner and their numbers, and text brought to words."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from typing import Any

from nltk.tokenize import TreebankWordTokenizer

from ...errors import GradlightError, nearest
from .decoder import Specials

__all__ = ["UNKNOWN", "Vocabulary", "tokenize"]

UNKNOWN = ("error", "allow")
"""What may be done with a word that is not in the vocabulary: refuse it, or take UNK in its place."""

_LISTED = 5


def tokenize(text: str) -> list[str]:
    """Divide a text into lower-case words as the Penn Treebank does, without punctuation."""
    return [word for word in TreebankWordTokenizer().tokenize(text.lower()) if re.search(r"\w", word)]


class Vocabulary:
    """The word of every token number that has one, and the numbers with a meaning (BOS, END, UNK)."""

    def __init__(self, words: Mapping[int, str], specials: Specials) -> None:
        self.words = dict(sorted(words.items()))
        self.specials = specials

    def __len__(self) -> int:
        return len(self.words)

    def __getitem__(self, token: int) -> str:
        return self.words[token]

    def __contains__(self, word: object) -> bool:
        return isinstance(word, str) and word.casefold() in self._numbers

    @cached_property
    def _numbers(self) -> dict[str, int]:
        return {word.casefold(): number for number, word in reversed(self.words.items())}

    def decode(self, tokens: Iterable[int]) -> list[str]:
        """Give the words of tokens; a number without a word is shown as it is, "<7>"."""
        return [self.words.get(token, f"<{token}>") for token in tokens]

    def encode(self, text: str | Sequence[str], unk: str = "error") -> list[int]:
        """Give the tokens of a text, or of words; case makes no difference.

        unk: "allow" takes UNK for a word that is not in the vocabulary. Raises GradlightError, with the nearest known
        words, for one otherwise, and for a text without any word.
        """
        if unk not in UNKNOWN:
            raise GradlightError(f'unk={unk!r} is unknown; give "error" or "allow".{nearest(str(unk), UNKNOWN)}')
        words = self._split(text) if isinstance(text, str) else list(text)
        if not words:
            raise GradlightError(f"There is no word in {text!r}, so there is nothing to ask about.")
        missing = list(dict.fromkeys(word for word in words if word not in self))
        if missing and (unk == "error" or self.specials.unk is None):
            raise GradlightError(self._refusal(missing, unk))
        return [self._numbers.get(word.casefold(), self.specials.unk or 0) for word in words]

    def _split(self, text: str) -> list[str]:
        """Divide a text; one that is made of known words between blanks is taken at its word, "<unk>" included."""
        plain = text.split()
        return plain if all(word in self for word in plain) else tokenize(text)

    def _refusal(self, missing: Sequence[str], unk: str) -> str:
        ordinary = [word for number, word in self.words.items() if number != self.specials.unk]
        shown = "; ".join(f"{word!r}.{nearest(word, ordinary)}" for word in missing[:_LISTED])
        more = f" and {len(missing) - _LISTED} more" if len(missing) > _LISTED else ""
        hint = (
            'unk="allow" (of gradlight.captioner) takes UNK in their place.'
            if unk == "error" and self.specials.unk is not None
            else "This vocabulary has no word for the unknown."
        )
        return f"Not among the {len(self)} words that this captioner knows: {shown}{more} {hint}"

    def to_json(self) -> dict[str, Any]:
        """Describe the vocabulary in JSON types."""
        special = {"bos": self.specials.bos, "end": self.specials.end, "unk": self.specials.unk}
        return {"words": {str(number): word for number, word in self.words.items()}, **special}

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> Vocabulary:
        """Make it again from what `to_json` gave; raises GradlightError for anything else."""
        try:
            words = {int(number): str(word) for number, word in record["words"].items()}
            unk = record.get("unk")
            specials = Specials(int(record["bos"]), int(record["end"]), None if unk is None else int(unk))
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise GradlightError(f"This is no vocabulary ({error}); it needs words, bos and end.") from error
        return cls(words, specials)
