"""Phrases in brackets lie where the tokenizer's own offsets say, for every kind of tokenizer."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, normalizers, pre_tokenizers, trainers
from tokenizers.models import BPE, Unigram, WordLevel, WordPiece
from transformers import PreTrainedTokenizer, PreTrainedTokenizerFast

from gradlight.errors import GradlightError
from gradlight.models.captioner.vocabulary import SubwordTokenizer, flatten_tokens

CORPUS = [
    "a man's red hat, a t-shirt and a dog.",
    "A Woman isn't wearing the well-known hat; she's running!",
    "the naïve café of Zoë costs 3.50 € (half-price)",
    "一只猫坐在红色的帽子上。",
    "แมวนั่งบนหมวก",
    "кот в шляпе, ça va?",
] * 3
SPECIALS = ["<pad>", "<bos>", "<end>", "<unk>"]
WORDS = ["a", "man", "man's", "red", "Hat", "t-shirt", "isn't", "naïve", "café", "Zoë", "(dog)", "cat,", "3.50", "кот"]
WORDS += ["猫", "红色的帽子", "“quoted”", "ÇA", "well-known", "🐈", "x"]


def fast(inner: Tokenizer) -> Any:
    names = dict(zip(("pad_token", "bos_token", "eos_token", "unk_token"), SPECIALS, strict=True))
    return PreTrainedTokenizerFast(tokenizer_object=inner, **names)


def byte_level(prefix: bool = False, trim: bool = True) -> Any:
    inner = Tokenizer(BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix, trim_offsets=trim)
    inner.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=420, special_tokens=SPECIALS, initial_alphabet=alphabet)
    inner.train_from_iterator(CORPUS, trainer)
    return fast(inner)


def word_piece(lowercase: bool) -> Any:
    inner = Tokenizer(WordPiece(unk_token="<unk>"))
    inner.normalizer = normalizers.BertNormalizer(lowercase=lowercase)
    inner.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    inner.train_from_iterator([*CORPUS, *WORDS], trainers.WordPieceTrainer(vocab_size=260, special_tokens=SPECIALS))
    inner.decoder = decoders.WordPiece(cleanup=True)
    return fast(inner)


def unigram() -> Any:
    inner = Tokenizer(Unigram())
    inner.normalizer = normalizers.NFKC()
    inner.pre_tokenizer = pre_tokenizers.Metaspace()
    inner.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(vocab_size=150, special_tokens=SPECIALS, unk_token="<unk>")
    inner.train_from_iterator([*CORPUS, *WORDS], trainer)
    return fast(inner)


def byte_fallback() -> Any:
    """Make a tokenizer as Llama's: pieces with ▁, and bytes for all other characters."""
    pieces = [*SPECIALS, *(f"<0x{byte:02X}>" for byte in range(256)), *"▁amnredHt"]
    known = {piece: number for number, piece in enumerate(pieces)}
    merges = [("▁", "a"), ("r", "e"), ("re", "d"), ("▁", "red")]
    known.update({left + right: len(known) + at for at, (left, right) in enumerate(merges)})
    inner = Tokenizer(BPE(known, merges, byte_fallback=True, fuse_unk=True))
    inner.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    strip = decoders.Strip(content=" ", left=1)
    inner.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), strip])
    return fast(inner)


def word_level() -> Any:
    inner = Tokenizer(WordLevel(unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    inner.train_from_iterator([*CORPUS, *WORDS], trainers.WordLevelTrainer(special_tokens=SPECIALS))
    return fast(inner)


class Letters(PreTrainedTokenizer):  # type: ignore[misc]
    """A tokenizer in Python, which has no offsets: one token per letter, small letters only."""

    def __init__(self, **options: Any) -> None:
        self.table = {
            piece: number for number, piece in enumerate([*SPECIALS, *sorted({*"".join(CORPUS + WORDS).lower()})])
        }
        super().__init__(**options)

    @property
    def vocab_size(self) -> int:
        return len(self.table)

    def get_vocab(self) -> dict[str, int]:
        return dict(self.table)

    def _tokenize(self, text: str, **_: Any) -> list[str]:
        return [*text.lower()]

    def _convert_token_to_id(self, token: str) -> int:
        return self.table.get(token, 3)

    def _convert_id_to_token(self, index: int) -> str:
        return [*self.table][index]

    def convert_tokens_to_string(self, tokens: list[str]) -> str:
        return "".join(tokens)


def slow() -> Any:
    return Letters(pad_token="<pad>", bos_token="<bos>", eos_token="<end>", unk_token="<unk>")


KINDS: dict[str, Callable[[], Any]] = {
    "byte-level BPE": byte_level,
    "byte-level BPE, blanks in offsets": lambda: byte_level(trim=False),
    "byte-level BPE with a prefix": lambda: byte_level(prefix=True),
    "WordPiece": lambda: word_piece(lowercase=True),
    "WordPiece, cased": lambda: word_piece(lowercase=False),
    "Unigram": unigram,
    "BPE with bytes": byte_fallback,
    "WordLevel": word_level,
    "letters in Python": slow,
}


@cache
def vocabulary(kind: str) -> SubwordTokenizer:
    return SubwordTokenizer(KINDS[kind](), 1, 2, 400)


def plain(text: str) -> str:
    """Leave out what tokenizers change: blanks, case, accents, forms of one character."""
    letters = unicodedata.normalize("NFKD", text.casefold())
    return "".join(letter for letter in letters if not (letter.isspace() or unicodedata.combining(letter)))


def explained(words: SubwordTokenizer, before: str, phrase: str, after: str) -> str:
    """Give what stands in the brackets' place among the words, after checks of the tokens around them."""
    tokens, start, stop = words.encode_phrase(before, phrase, after, "allow")
    assert flatten_tokens(tokens) == words.tokenizer(before + phrase + after, add_special_tokens=False)["input_ids"]
    texts = words.decode(tokens)
    assert len(texts) == len(tokens)
    assert all(texts)
    return " ".join(texts[start:stop])


texts = st.lists(st.sampled_from(WORDS), min_size=1, max_size=5)


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=60, deadline=None)
@given(before=texts, phrase=texts, after=texts)
def test_whole_words_in_brackets_are_what_is_explained(
    kind: str, before: list[str], phrase: list[str], after: list[str]
) -> None:
    words = vocabulary(kind)
    found = explained(words, " ".join(before) + " ", " ".join(phrase), " " + " ".join(after))
    if "<unk>" not in found:
        assert plain(found) == plain(" ".join(phrase))


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=80, deadline=None)
@given(text=texts.map(" ".join), ends=st.tuples(st.integers(0, 60), st.integers(1, 60)))
@example(text="a man's red hat", ends=(8, 7))
@example(text="一只猫", ends=(1, 1))
def test_brackets_anywhere_are_exact_or_refused(kind: str, text: str, ends: tuple[int, int]) -> None:
    start = ends[0] % len(text)
    stop = min(start + ends[1], len(text))
    before, phrase, after = text[:start], text[start:stop], text[stop:]
    if not phrase.strip():
        with pytest.raises(GradlightError, match="reads nothing in"):
            explained(vocabulary(kind), before, phrase, after)
        return
    try:
        found = explained(vocabulary(kind), before, phrase, after)
    except GradlightError as error:
        if "cut through" not in str(error):
            raise
        return
    if "<unk>" not in found:
        assert plain(found) == plain(phrase)
