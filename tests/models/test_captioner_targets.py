"""What may be asked of a captioner: texts, brackets, captions, words, phrases, lists of them; and what may not."""

from __future__ import annotations

from typing import Any

import pytest

from gradlight.errors import GradlightError
from gradlight.models.captioner import Caption, Phrase, Vocabulary
from gradlight.models.captioner.decoder import SpecialTokens
from gradlight.models.captioner.search import Hypothesis
from gradlight.models.captioner.targets import (
    CaptionTarget,
    CaptionTargetSpec,
    Word,
    find_words,
    parse,
    resolve,
    word_by_word,
)

WORDS = ["a", "red", "blue", "star", "ring", "above", "below", "Café", "small", "cross", "UNK"]
KNOWN = Vocabulary(dict(enumerate(WORDS, 1)), SpecialTokens(0, 0, 11))
CLOSED = Vocabulary(dict(enumerate(WORDS[:-1], 1)), SpecialTokens(0, 0))


def numbers(text: str) -> tuple[int, ...]:
    return tuple(WORDS.index(word) + 1 for word in text.split())


def said(text: str, ended: bool = True) -> Caption:
    tokens = numbers(text)
    words = [Word.at(word, tokens, at) for at, word in enumerate(text.split())]
    return Caption(text, words, list(tokens), -3.0, [-1.0] * len(tokens), ended)


def asked(target: Any, words: Vocabulary = KNOWN, unk: str = "error") -> list[list[CaptionTargetSpec]]:
    return parse(target, words, unk)


def one(target: Any, words: Vocabulary = KNOWN, unk: str = "error") -> CaptionTargetSpec:
    ((found,),) = asked(target, words, unk)
    return found


# Texts


@pytest.mark.parametrize(
    "text",
    ["a red star", "A Red STAR", "a red star.", " a  red\tstar! ", '"a red, star"', "a (red) star", "a red star ..."],
)
def test_case_blanks_and_punctuation_make_no_difference(text: str) -> None:
    found = one(text)
    assert (found.tokens, found.span, found.phrase, found.per_word) == (numbers("a red star"), None, (), False)
    assert found.text == text


def test_case_makes_no_difference_to_a_word_with_capitals() -> None:
    assert one("a CAFÉ").tokens == one("a café").tokens == numbers("a Café")


@pytest.mark.parametrize(
    ("text", "plain", "span"),
    [
        ("a [red star] above", "a red star above", (1, 3)),
        ("[a red] star", "a red star", (0, 2)),
        ("a red [star]", "a red star", (2, 3)),
        ("A small[ RED ]Star", "a small red star", (2, 3)),
        ("a [red, star] above.", "a red star above", (1, 3)),
        ("a [red] star [", None, None),
    ],
)
def test_brackets_mark_a_phrase(text: str, plain: str | None, span: tuple[int, int] | None) -> None:
    if plain is None:
        with pytest.raises(GradlightError, match="one pair of brackets"):
            one(text)
        return
    found = one(text)
    assert (found.tokens, found.span) == (numbers(plain), span)


@pytest.mark.parametrize("text", ["a [red star].", "- a [red star]", '"[a red] star"', "a, [red star]!"])
def test_punctuation_beside_the_brackets_makes_no_difference(text: str) -> None:
    found = one(text)
    assert found.tokens is not None
    assert found.span is not None
    start, stop = found.span
    assert KNOWN.decode(found.tokens) == ["a", "red", "star"]
    assert KNOWN.decode(found.tokens[start:stop]) in (["red", "star"], ["a", "red"])


def test_brackets_alone_ask_for_words_of_the_captioners_own_caption() -> None:
    found = one("[Red Star]")
    assert (found.tokens, found.phrase) == (None, ("red", "star"))
    (target,) = resolve(found, Hypothesis(numbers("a small red star above"), -1.0, True, -1.0), KNOWN, True)
    assert (target.label, target.start, target.stop, target.counts_end) == ("red star", 2, 4, False)
    with pytest.raises(GradlightError, match="'red star' is not in the caption 'a red ring'"):
        resolve(found, Hypothesis(numbers("a red ring"), -1.0, True, -1.0), KNOWN, True)


@pytest.mark.parametrize(
    "text", ["a [red] [star]", "a [red star", "a red] star", "a ]red[ star", "a [[red]] star", "a [] star", "[]"]
)
def test_other_brackets_are_refused(text: str) -> None:
    with pytest.raises(GradlightError, match=r'one pair of brackets marks the phrase .* "a \[red star\] above"'):
        one(text)


@pytest.mark.parametrize("text", ["a [ ] star", "[ ]", "a [.] star", "[ . ]"])
def test_brackets_without_a_word_are_refused(text: str) -> None:
    with pytest.raises(GradlightError, match=r"no word|one pair of brackets"):
        one(text)


def test_a_text_without_a_word_is_refused() -> None:
    with pytest.raises(GradlightError, match=r"There is no word in '\. !'"):
        one(". !")


# Words that are not known


def test_unknown_words_are_named_with_the_nearest() -> None:
    with pytest.raises(
        GradlightError, match=r"the 11 words .*: 'strar'\. Did you mean 'star'\?; 'zzz'\. unk=\"allow\" .* takes UNK"
    ):
        one("a strar zzz strar")


def test_unk_itself_is_not_among_the_nearest() -> None:
    with pytest.raises(GradlightError, match="'unc'") as caught:
        one("a unc")
    assert "'UNK'" not in str(caught.value)


def test_many_unknown_words_are_counted() -> None:
    with pytest.raises(GradlightError, match=r"'q5'.* and 3 more"):
        one(" ".join(f"q{n}" for n in range(1, 9)))


def test_unk_can_be_taken_in_their_place() -> None:
    assert one("a strar [zebra]", unk="allow").tokens == (1, 11, 11)
    assert one("a UNK").tokens == (1, 11)
    assert one("a <unk>", Vocabulary({1: "a", 2: "<unk>"}, SpecialTokens(3, 4, 2))).tokens == (1, 2)


@pytest.mark.parametrize("unk", ["error", "allow"])
def test_where_there_is_no_unk_nothing_is_allowed(unk: str) -> None:
    with pytest.raises(GradlightError, match=r"'strar'\..*This vocabulary has no word for the unknown"):
        one("a strar", CLOSED, unk)


def test_unk_must_be_known() -> None:
    with pytest.raises(GradlightError, match=r"unk='alow' is unknown.*Did you mean 'allow'"):
        one("a ring", unk="alow")


# Captions, words, phrases


def test_a_caption_is_itself_and_remembers_whether_it_ended() -> None:
    for ended in (True, False):
        found = one(said("a red star", ended))
        assert (found.text, found.tokens, found.span, found.ended) == ("a red star", numbers("a red star"), None, ended)


def test_one_word_of_a_caption() -> None:
    caption = said("a red star above a red ring")
    for at in (1, 5):
        found = one(caption.words[at])
        assert (found.tokens, found.span) == (tuple(caption.tokens), (at, at + 1))
    assert one(caption.words[5]).text == "a red star above a [red] ring"
    assert one(str(caption.words[5])).tokens == numbers("red"), "without its caption it is a text"


def test_the_words_of_a_caption_are_one_entry_that_asks_for_each() -> None:
    caption = said("a red star")
    for words in (caption.words, list(caption.words), tuple(caption.words), [caption.words]):
        (row,) = asked(words)
        assert [found.span for found in row] == [(0, 1), (1, 2), (2, 3)]
        assert {found.tokens for found in row} == {tuple(caption.tokens)}
    assert [found.span for found in asked(caption.words[1:3])[0]] == [(1, 2), (2, 3)]
    assert [found.span for found in asked(caption.words[2:])[0]] == [(2, 3)]


def test_a_phrase_is_itself() -> None:
    caption = said("a red star above a ring")
    for phrase in (caption.span(1, 3), caption.phrase("Red star"), Phrase(tuple(caption.tokens), 1, 3)):
        found = one(phrase)
        assert (found.text, found.tokens, found.span) == ("a [red star] above a ring", tuple(caption.tokens), (1, 3))


def test_words_are_found_at_the_first_place_where_they_stand() -> None:
    words = ["a", "red", "ring", "above", "a", "red", "star", "above", "a", "red", "star"]
    assert find_words(["Red", "STAR"], words) == (5, 7)
    assert find_words(words, words) == (0, 11)
    for wanted in (["star", "red"], ["red", "star", "alone"], [], [*words, "a"]):
        with pytest.raises(GradlightError, match="is not in the caption"):
            find_words(wanted, words)


def test_none_is_what_the_captioner_says() -> None:
    found = one(None)
    assert (found.text, found.tokens, found.span) == ("", None, None)


# Lists


def test_a_list_has_an_entry_for_each_image() -> None:
    one_caption, other = said("a red star"), said("a ring")
    rows = asked([None, "a ring", one_caption, one_caption.words, other.words[1], other.span(0, 2)])
    assert [len(row) for row in rows] == [1, 1, 1, 3, 1, 1]
    assert [row[0].span for row in rows] == [None, None, None, (0, 1), (1, 2), (0, 2)]


def test_words_of_several_captions_are_an_entry_for_each() -> None:
    one_caption, other = said("a red star"), said("a ring")
    rows = asked([one_caption.words[2], other.words[1]])
    assert [[(found.text, found.span) for found in row] for row in rows] == [
        [("a red [star]", (2, 3))],
        [("a [ring]", (1, 2))],
    ]
    assert [len(row) for row in asked([one_caption.words, other.words])] == [3, 2]


def test_an_entry_that_is_a_list_asks_several() -> None:
    caption = said("a red star")
    rows = asked([["a ring", None], [caption, "a [red] ring"], ("blue", caption.words[1]), ["blue", caption.words]])
    assert [[found.text for found in row] for row in rows] == [
        ["a ring", ""],
        ["a red star", "a [red] ring"],
        ["blue", "a [red] star"],
        ["blue", "[a] red star", "a [red] star", "a red [star]"],
    ]
    assert [len(row) for row in asked([["blue", "a ring"]])] == [2]


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ([], "The list of targets is empty"),
        ((), "The list of targets is empty"),
        ([[]], "One image's list of targets is empty"),
        (["a ring", []], "One image's list of targets is empty"),
        ([[[]]], r"\[\] is not a target of a captioner"),
        ([[["a ring"]]], r"\['a ring'\] is not a target of a captioner"),
        (3, "3 is not a target of a captioner. Give a text, a Caption"),
        (True, "True is not a target"),
        (b"a ring", "b'a ring' is not a target"),
        ("", "'' is not a target"),
        (" \n", "is not a target"),
        ([["a ring", 2.5]], "2.5 is not a target"),
        ({"a": "ring"}, "is not a target"),
    ],
)
def test_what_is_no_target_is_told(target: Any, message: str) -> None:
    with pytest.raises(GradlightError, match=message):
        asked(target)


# Resolving


def test_a_caption_resolves_to_itself_with_end() -> None:
    assert resolve(one("a red star"), None, KNOWN, True) == [
        _of(CaptionTarget("caption", 0, "a red star", tokens=numbers("a red star"), stop=3))
    ]


def _of(wanted: CaptionTarget) -> Any:
    """Compare with a target whose score is not yet known: NaN equals nothing."""

    class Same:
        def __eq__(self, other: object) -> bool:
            return isinstance(other, CaptionTarget) and {**vars(other), "score": 0} == {**vars(wanted), "score": 0}

        __hash__ = None  # type: ignore[assignment]

    return Same()


@pytest.mark.parametrize(("count_end", "ended"), [(True, True), (True, False), (False, True), (False, False)])
def test_end_counts_where_it_is_counted_and_was_said(count_end: bool, ended: bool) -> None:
    both = count_end and ended
    made = Hypothesis(numbers("a red star"), -1.0, ended, -1.0)
    for target in (
        *resolve(one(None), made, KNOWN, count_end),
        *resolve(one(said("a ring", ended)), None, KNOWN, count_end),
    ):
        assert (target.counts_end, target.ended) == (both, both)
    (words,) = word_by_word(asked(None))
    for target in resolve(words[0], made, KNOWN, count_end):
        assert (target.counts_end, target.ended) == (False, both)


def test_every_word_of_a_caption_and_of_a_phrase() -> None:
    ((whole,),) = word_by_word(asked("a red star above"))
    assert [(t.kind, t.index, t.label, t.start, t.stop) for t in resolve(whole, None, KNOWN, True)] == [
        ("word", at, word, at, at + 1) for at, word in enumerate(["a", "red", "star", "above"])
    ]
    ((part,),) = word_by_word(asked("a [red star] above"))
    assert [(t.index, t.label) for t in resolve(part, None, KNOWN, True)] == [(1, "red"), (2, "star")]
    ((own,),) = word_by_word(asked("[red star]"))
    made = Hypothesis(numbers("small red star"), -1.0, True, -1.0)
    assert [(t.index, t.label) for t in resolve(own, made, KNOWN, True)] == [(1, "red"), (2, "star")]


def test_the_words_of_nothing_said_are_refused() -> None:
    ((own,),) = word_by_word(asked(None))
    with pytest.raises(GradlightError, match=r"is empty \(END comes first\)"):
        resolve(own, Hypothesis((), -1.0, True, -1.0), KNOWN, True)


def test_a_given_caption_is_not_replaced_by_the_generated_one() -> None:
    (target,) = resolve(one("a ring"), Hypothesis(numbers("blue"), -1.0, False, -1.0), KNOWN, True)
    assert (target.label, target.ended) == ("a ring", True)


def test_a_token_without_a_word_is_shown_as_its_number() -> None:
    (target,) = resolve(one(None), Hypothesis((1, 77), -1.0, True, -1.0), KNOWN, True)
    assert target.label == "a <77>"


# Vocabulary


def test_a_vocabulary_goes_through_json() -> None:
    for words in (KNOWN, CLOSED):
        again = Vocabulary.from_json(words.to_json())
        assert (again.words, again.special_tokens) == (words.words, words.special_tokens)
    with pytest.raises(GradlightError, match="This is not a vocabulary"):
        Vocabulary.from_json({"words": []})


def test_the_first_of_two_words_that_differ_by_case_is_meant() -> None:
    words = Vocabulary({2: "Bus", 1: "bus"}, SpecialTokens(0, 0))
    assert words.encode("BUS") == [1]
    assert words[2] == "Bus"
    assert "bUs" in words
    assert 1 not in words


def test_a_phrase_must_have_words() -> None:
    with pytest.raises(GradlightError, match="has no words"):
        one(Phrase((1, 2), 1, 1))
