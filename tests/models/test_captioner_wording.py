from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gradlight import GradlightError
from gradlight.data.datasets.captions import read_captions
from gradlight.models.captioner.vocabulary import build_vocabulary, encode_captions, tokenize

TEXTS = ["A dog runs.", "a dog, a cat", "The cat sleeps", "a dog"]

# A small alphabet, so that words come again; with letters that fold to others and the name of UNK.
WORDS = st.one_of(
    st.text("abAB", min_size=1, max_size=2), st.sampled_from(["UNK", "unk", "straße", "STRASSE", "İ", "don't"])
)
CAPTIONS = st.lists(st.lists(WORDS, min_size=1, max_size=8), min_size=1, max_size=12)


def counted(captions: list[list[str]]) -> Counter[str]:
    return Counter(word.casefold() for caption in captions for word in caption)


def test_numbers_follow_counts_then_the_alphabet():
    vocabulary = build_vocabulary(TEXTS, threshold=1)
    # a 4, dog 3, cat 2, then runs, sleeps, the, once each
    assert vocabulary.words == {1: "a", 2: "dog", 3: "cat", 4: "runs", 5: "sleeps", 6: "the"}
    assert (vocabulary.special_tokens.bos, vocabulary.special_tokens.end, vocabulary.special_tokens.unk) == (0, 0, None)


def test_a_word_at_the_threshold_is_kept_and_unk_is_last():
    vocabulary = build_vocabulary(TEXTS, threshold=2)
    assert vocabulary.words == {1: "a", 2: "dog", 3: "cat", 4: "UNK"}
    assert vocabulary.special_tokens.unk == 4
    assert build_vocabulary(["w w w w w v v v v"]).words == {1: "w", 2: "UNK"}


def test_texts_and_words_give_the_same():
    words = [tokenize(text) for text in TEXTS]
    assert build_vocabulary(words, 2).to_json() == build_vocabulary(iter(TEXTS), 2).to_json()
    vocabulary = build_vocabulary(TEXTS, 2)
    assert torch.equal(encode_captions(vocabulary, words, 6), encode_captions(vocabulary, TEXTS, 6))


def test_encoding_pads_cuts_and_knows_rare_words():
    tokens = encode_captions(build_vocabulary(TEXTS, threshold=2), [*TEXTS, "A zebra!"], 3)
    assert tokens.tolist() == [[1, 2, 4], [1, 2, 1], [4, 3, 4], [1, 2, -1], [1, 4, -1]]
    assert tokens.dtype == torch.int64


def test_no_captions_encode_to_no_rows():
    assert encode_captions(build_vocabulary(TEXTS, 1), [], 4).shape == (0, 4)


@settings(max_examples=60, deadline=None)
@given(CAPTIONS, st.integers(1, 4))
def test_every_word_is_known_or_rare(captions: list[list[str]], threshold: int):
    counts = counted(captions)
    frequent = {word for word, count in counts.items() if count >= threshold}
    if not frequent:
        with pytest.raises(GradlightError, match=f"No word occurs {threshold} times"):
            build_vocabulary(captions, threshold)
        return
    vocabulary = build_vocabulary(captions, threshold)
    unk = vocabulary.special_tokens.unk
    assert {word for number, word in vocabulary.words.items() if number != unk} == frequent
    assert list(vocabulary.words) == list(range(1, len(vocabulary) + 1))
    assert (unk is not None) == (len(frequent) < len(counts))
    assert unk in (None, len(vocabulary))
    order = [(-counts[vocabulary[number]], vocabulary[number]) for number in vocabulary.words if number != unk]
    assert order == sorted(order)


@settings(max_examples=60, deadline=None)
@given(CAPTIONS, st.integers(1, 4), st.integers(1, 9))
def test_encoding_and_decoding_give_the_words_back(captions: list[list[str]], threshold: int, length: int):
    counts = counted(captions)
    threshold = min(threshold, max(counts.values()))
    vocabulary = build_vocabulary(captions, threshold)
    tokens = encode_captions(vocabulary, captions, length)
    assert tokens.shape == (len(captions), length)
    for row, caption in zip(tokens.tolist(), captions, strict=True):
        said = [token for token in row if token != -1]
        assert row == said + [-1] * (length - len(said))
        folded = [word.casefold() for word in caption[:length]]
        assert vocabulary.decode(said) == [word if counts[word] >= threshold else "UNK" for word in folded]


@settings(max_examples=60, deadline=None)
@given(CAPTIONS, st.integers(1, 3), st.integers(0, 3))
def test_a_higher_threshold_keeps_a_part(captions: list[list[str]], threshold: int, more: int):
    highest = max(counted(captions).values())
    low, high = (build_vocabulary(captions, min(bound, highest)) for bound in (threshold, threshold + more))
    kept = [[word for number, word in v.words.items() if number != v.special_tokens.unk] for v in (low, high)]
    # Numbers go by the count, so what is kept is the beginning, with the same numbers.
    assert kept[0][: len(kept[1])] == kept[1]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.text(max_size=30), max_size=8))
def test_any_text(texts: list[str]):
    captions = [text for text in texts if tokenize(text)]
    if not captions:
        with pytest.raises(GradlightError, match="There is no word in these captions"):
            build_vocabulary(texts, 1)
        return
    vocabulary = build_vocabulary(texts, 1)
    for row, caption in zip(encode_captions(vocabulary, captions, 40).tolist(), captions, strict=True):
        decoded = vocabulary.decode(token for token in row if token != -1)
        assert decoded == [word.casefold() for word in tokenize(caption)][:40]


def test_real_captions(shared: Path):
    folder = shared / "coco_captions"
    photos = read_captions(folder / "captions.json", folder / "images").photos
    texts = [caption for photo in photos for caption in photo.captions]
    vocabulary = build_vocabulary(texts)
    counts = Counter(word for text in texts for word in tokenize(text))
    assert vocabulary[1] == "a"
    assert vocabulary.words == {
        **dict(enumerate(sorted((w for w in counts if counts[w] >= 5), key=lambda w: (-counts[w], w)), 1)),
        vocabulary.special_tokens.unk: "UNK",
    }
    tokens = encode_captions(vocabulary, texts, 16)
    assert tokens.shape == (160, 16)
    rare = sum(counts[word] for word in counts if counts[word] < 5)
    cut = encode_captions(vocabulary, texts, max(len(tokenize(text)) for text in texts))
    assert int((cut == vocabulary.special_tokens.unk).sum()) == rare > 0
    assert int((cut != -1).sum()) == sum(counts.values())
    whole = build_vocabulary(texts, 1)
    back = [whole.decode(t for t in row if t != -1) for row in encode_captions(whole, texts, 60).tolist()]
    assert back == [tokenize(text) for text in texts]


@pytest.mark.parametrize(
    ("captions", "threshold", "message"),
    [
        (["a dog"], 0, "kept from 0 occurrences on; the threshold must be 1 or more"),
        ([], 1, "There is no word in these captions"),
        (["...", " "], 1, "There is no word in these captions"),
        (
            ["a dog", "a cat"],
            5,
            "No word occurs 5 times; the most frequent, 'a', has a count of 2. Lower",
        ),
        ([("a dog", "a cat")], 1, "one text or a list of single words, but a word here is 'a dog'"),
        ([["a", ""]], 1, "a word here is ''"),
        ([["a", 3]], 1, "a word here is 3"),
    ],
)
def test_what_gives_no_vocabulary(captions: list[list[str]], threshold: int, message: str):
    with pytest.raises(GradlightError, match=message):
        build_vocabulary(captions, threshold)


def test_what_cannot_be_encoded():
    vocabulary = build_vocabulary(TEXTS, 1)
    with pytest.raises(GradlightError, match="Captions of length 0 hold nothing"):
        encode_captions(vocabulary, TEXTS, 0)
    with pytest.raises(GradlightError, match=r"'zebra'.*This vocabulary has no word for the unknown"):
        encode_captions(vocabulary, ["a zebra"], 4)
    with pytest.raises(GradlightError, match="There is no word in"):
        encode_captions(vocabulary, ["a dog", "..."], 4)
    with pytest.raises(GradlightError, match="a word here is 'a dog, a cat'"):
        encode_captions(vocabulary, [TEXTS[1:]], 4)
