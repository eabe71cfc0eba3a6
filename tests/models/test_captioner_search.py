"""Greedy and beam search against searches written out word by word, and against every caption there is."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor

from gradlight.errors import GradlightError
from gradlight.models.captioner.decoder import KEPT, REMOVED, REPLACED, Decoder, EndRule, SpecialTokens
from gradlight.models.captioner.rnn_decoders import FC, Att2in2, ShowTell, SoftAttention
from gradlight.models.captioner.search import Hypothesis, beam_search, generate, length_score

Features = dict[str, Tensor]
Steps = Callable[[tuple[int, ...]], list[float]]

ONE = SpecialTokens(0, 0, 4)
SIZES = {"embed": 4, "size": 5, "rows": 5, "columns": 5}
RULES = {"replaced": REPLACED, "kept": KEPT, "leaves": REMOVED}
PENALTIES = ["avg", "wu_0.9", "wu_2"]
LIMIT = 4
SEEDS = (0, 1, 3, 5, 12, 21)
"""Decoders whose best captions have 4, 0, 4, 0, 1 and 1 words."""
GOES_ON = (8, 10, 40)
"""Decoders that have much to say behind END."""


def filled(decoder: Decoder, seed: int) -> Decoder:
    """Give a decoder of four words, the last of them UNK, whose captions are short."""
    torch.manual_seed(seed)
    for parameter in decoder.parameters():
        torch.nn.init.uniform_(parameter, -1.5, 1.5)
    return decoder.double().eval()


def decoder_of(seed: int, end_rule: EndRule = REPLACED) -> Decoder:
    return filled(FC(ONE, features=6, max_length=LIMIT, end_rule=end_rule, **SIZES), seed)


def features_of(count: int, seed: int = 0) -> Features:
    torch.manual_seed(seed)
    shapes = {"fc": (count, 6), "att": (count, 3, 6)}
    return {name: torch.randn(*shape, dtype=torch.float64) for name, shape in shapes.items()}


def found(decoder: Decoder, features: Features, size: int, **options: Any) -> list[Hypothesis]:
    given = {"limit": LIMIT, "suppress_unk": False, "penalty": None, **options}
    return beam_search(decoder, features, size, given.pop("limit"), **given)


def steps_of(decoder: Decoder, features: Features) -> Steps:
    """Give what follows tokens that one image's caption begins with, as log-probabilities."""

    def following(said: tuple[int, ...]) -> list[float]:
        with torch.no_grad():
            last: Tensor = decoder.log_probs(features, torch.tensor([said], dtype=torch.long).view(1, -1))[0, -1]
        numbers: list[float] = last.tolist()
        return numbers

    return following


def by_hand(following: Steps, size: int, end_rule: EndRule, penalty: str | None = None) -> Hypothesis:
    """Search with lists, one beam at a time; an ended beam is let go of, or goes on behind END where it is kept."""
    score = length_score(penalty)
    beams: list[tuple[float, tuple[int, ...]]] = [(0.0, ())]
    done: list[Hypothesis] = []
    for step in range(1, LIMIT + 1):
        longer = [(total + p, (*said, word)) for total, said in beams for word, p in enumerate(following(said))]
        beams = sorted(longer, reverse=True)[: size - (len(done) if end_rule is REMOVED else 0)]
        for total, said in beams:
            if said.index(0) == step - 1 if 0 in said else False:
                done.append(Hypothesis(said[:-1], total, True, score(total, step)))
        if end_rule is not KEPT:
            beams = [(total, said) for total, said in beams if said[-1] != 0]
    if end_rule is not REMOVED or not done:
        done += [Hypothesis(said, total, False, score(total, LIMIT)) for total, said in beams if 0 not in said]
    return max(done, key=lambda each: each.rank)


def every_caption(
    decoder: Decoder, features: Features, words: range, penalty: str | None, cut: bool
) -> list[Hypothesis]:
    """List every caption of these words with its rank: those that end within the limit, and those that it cuts."""
    made = []
    for length in range(LIMIT + 1):
        captions = torch.tensor(list(product(words, repeat=length)), dtype=torch.long)
        with torch.no_grad():
            steps = decoder.log_probs({n: t.expand(len(captions), *t.shape[1:]) for n, t in features.items()}, captions)
        sums = steps[:, :length].gather(2, captions[..., None])[..., 0].sum(1)
        ended = length < LIMIT
        if ended or cut:
            totals = (sums + steps[:, length, 0] if ended else sums).tolist()
            many = zip(captions.tolist(), totals, strict=True)
            score = length_score(penalty)
            made += [Hypothesis(tuple(said), t, ended, score(t, min(length + 1, LIMIT))) for said, t in many]
    return made


def assert_same(got: Hypothesis, wanted: Hypothesis) -> None:
    assert (got.tokens, got.ended) == (wanted.tokens, wanted.ended)
    assert (got.log_prob, got.rank) == pytest.approx((wanted.log_prob, wanted.rank), rel=1e-10)


# Against every caption


@pytest.mark.parametrize("rule", list(RULES))
@pytest.mark.parametrize("seed", SEEDS)
def test_a_beam_for_every_caption_finds_the_best(rule: str, seed: int) -> None:
    end_rule = RULES[rule]
    decoder, features = decoder_of(seed, end_rule), features_of(1, seed)
    wanted = max(every_caption(decoder, features, range(1, 5), None, end_rule.keeps_truncated), key=lambda f: f.rank)
    assert_same(found(decoder, features, 5**LIMIT)[0], wanted)


def test_the_best_captions_are_of_different_lengths() -> None:
    """Or the tests above would prove little."""
    best = [
        max(every_caption(decoder_of(seed), features_of(1, seed), range(1, 5), None, True), key=lambda f: f.rank)
        for seed in SEEDS
    ]
    assert len({len(each.tokens) for each in best}) >= 3
    assert {each.ended for each in best} == {True, False}


@pytest.mark.parametrize("rule", ["replaced", "leaves"])
@pytest.mark.parametrize("penalty", PENALTIES)
@pytest.mark.parametrize("seed", SEEDS[2:5])
def test_a_length_penalty_ranks_all_of_them(rule: str, penalty: str, seed: int) -> None:
    end_rule = RULES[rule]
    decoder, features = decoder_of(seed, end_rule), features_of(1, seed)
    wanted = max(every_caption(decoder, features, range(1, 5), penalty, end_rule.keeps_truncated), key=lambda f: f.rank)
    assert_same(found(decoder, features, 5**LIMIT, penalty=penalty)[0], wanted)


@pytest.mark.parametrize("penalty", PENALTIES)
@pytest.mark.parametrize("seed", GOES_ON)
def test_what_goes_on_behind_end_is_never_a_caption(penalty: str, seed: int) -> None:
    decoder, features = decoder_of(seed, KEPT), features_of(1, seed)
    wanted = max(every_caption(decoder, features, range(1, 5), penalty, True), key=lambda f: f.rank)
    assert_same(found(decoder, features, 5**LIMIT, penalty=penalty)[0], wanted)


@pytest.mark.parametrize("seed", SEEDS)
def test_suppressed_unk_is_never_said(seed: int) -> None:
    decoder, features = decoder_of(seed), features_of(1, seed)
    with torch.no_grad():
        decoder.logit.bias[4] += 3
    wanted = max(every_caption(decoder, features, range(1, 4), None, True), key=lambda f: f.rank)
    assert_same(found(decoder, features, 5**LIMIT, suppress_unk=True)[0], wanted)
    assert 4 in found(decoder, features, 5**LIMIT)[0].tokens
    for size in (1, 2):
        assert 4 not in found(decoder, features, size, suppress_unk=True)[0].tokens


# Against searches written out


@pytest.mark.parametrize("rule", list(RULES))
@pytest.mark.parametrize("size", [1, 2, 3, 5])
def test_few_beams_are_those_of_lists(rule: str, size: int) -> None:
    decoders = [decoder_of(seed, RULES[rule]) for seed in range(8)]
    for seed, decoder in enumerate(decoders):
        features = features_of(1, seed)
        assert_same(found(decoder, features, size)[0], by_hand(steps_of(decoder, features), size, RULES[rule]))


@pytest.mark.parametrize("rule", ["replaced", "leaves"])
@pytest.mark.parametrize("penalty", PENALTIES)
def test_few_beams_with_a_length_penalty(rule: str, penalty: str) -> None:
    for seed in range(8):
        decoder, features = decoder_of(seed, RULES[rule]), features_of(1, seed)
        wanted = by_hand(steps_of(decoder, features), 3, RULES[rule], penalty)
        assert_same(found(decoder, features, 3, penalty=penalty)[0], wanted)


@pytest.mark.parametrize("rule", list(RULES))
def test_one_beam_says_the_likeliest_word_each_time(rule: str) -> None:
    lengths = set()
    for seed in range(12):
        decoder, features = decoder_of(seed, RULES[rule]), features_of(1, seed)
        following, said, total = steps_of(decoder, features), (), 0.0
        for _ in range(LIMIT):
            words = following(said)
            word = words.index(max(words))
            total += words[word]
            if word == 0:
                break
            said = (*said, word)
        got = found(decoder, features, 1)[0]
        assert (got.tokens, got.ended) == (said, len(said) < LIMIT)
        assert got.log_prob == pytest.approx(total, rel=1e-12)
        lengths.add(len(said))
    assert len(lengths) >= 3


# Batches, limits, families


FAMILIES: dict[str, Callable[[], Decoder]] = {
    "fc": lambda: FC(ONE, features=6, **SIZES),
    "show_tell": lambda: ShowTell(ONE, features=6, layers=2, **SIZES),
    "att2in2": lambda: Att2in2(ONE, location_features=6, attention=3, **SIZES),
    "soft": lambda: SoftAttention(
        SpecialTokens(5, 6, 4), location_features=6, attention=3, embed=4, size=5, rows=7, columns=7, max_length=9
    ),
}


@pytest.mark.parametrize("family", list(FAMILIES))
@pytest.mark.parametrize("size", [1, 3])
@pytest.mark.parametrize("penalty", [None, "avg"])
def test_a_batch_is_its_images_alone(family: str, size: int, penalty: str | None) -> None:
    features, different = features_of(6), 0
    for seed in range(4):
        decoder = filled(FAMILIES[family](), seed)
        together = found(decoder, features, size, limit=8, penalty=penalty)
        for i, each in enumerate(together):
            alone = found(decoder, {n: t[i : i + 1] for n, t in features.items()}, size, limit=8, penalty=penalty)
            assert_same(alone[0], each)
        different += len({each.tokens for each in together}) - 1
    assert different >= 2, "the images of a batch say different things"


@pytest.mark.parametrize("family", list(FAMILIES))
@pytest.mark.parametrize("size", [1, 3])
def test_the_sum_is_that_of_teacher_forcing(family: str, size: int) -> None:
    decoder, features = filled(FAMILIES[family](), 2), features_of(4)
    for i, each in enumerate(found(decoder, features, size, limit=6)):
        said = (*each.tokens, decoder.special_tokens.end) if each.ended else each.tokens
        following = steps_of(decoder, {n: t[i : i + 1] for n, t in features.items()})
        total = sum(following(said[:t])[word] for t, word in enumerate(said))
        assert each.log_prob == pytest.approx(total, rel=1e-10)
        assert decoder.special_tokens.end not in each.tokens


@pytest.mark.parametrize("rule", list(RULES))
def test_the_limit_counts_end(rule: str) -> None:
    decoder, features = decoder_of(0, RULES[rule]), features_of(3)
    with torch.no_grad():
        decoder.logit.bias[0] -= 50
    for limit in (1, 2, 7):
        for each in found(decoder, features, 2, limit=limit):
            assert (len(each.tokens), each.ended) == (limit, False)
    with torch.no_grad():
        decoder.logit.bias[0] += 100
    for each in found(decoder, features, 2, limit=1):
        assert (each.tokens, each.ended) == ((), True)


def test_generate_takes_the_decoders_own_limit() -> None:
    decoder, features = decoder_of(0), features_of(2)
    with torch.no_grad():
        decoder.logit.bias[0] -= 50
    assert [len(tokens) for tokens, _ in generate(decoder, features)] == [LIMIT, LIMIT]
    assert [len(tokens) for tokens, _ in generate(decoder, features, 3, max_length=2)] == [2, 2]
    wanted = found(decoder, features, 3, penalty="avg", suppress_unk=True)
    got = generate(decoder, features, 3, suppress_unk=True, length_penalty="avg")
    assert got == [(list(each.tokens), each.log_prob) for each in wanted]


def test_more_beams_than_words() -> None:
    decoder, features = decoder_of(1), features_of(2)
    few, many = (found(decoder, features, size, limit=1) for size in (5, 50))
    assert few == many


@pytest.mark.parametrize("value", [0, -1, 2.5, True, "3", None])
def test_beams_and_lengths_are_whole_numbers(value: Any) -> None:
    decoder, features = decoder_of(0), features_of(1)
    with pytest.raises(GradlightError, match="beam_size must be a whole number, 1 or more; it is"):
        found(decoder, features, value)
    with pytest.raises(GradlightError, match="max_length must be a whole number, 1 or more; it is"):
        found(decoder, features, 1, limit=value)


@pytest.mark.parametrize(
    ("penalty", "score"), [(None, -6.0), ("avg", -1.5), ("wu_0", -6.0), ("wu_1", -4.0), ("wu_.5", -6 / 1.5**0.5)]
)
def test_length_scores(penalty: str | None, score: float) -> None:
    assert length_score(penalty)(-6.0, 4) == pytest.approx(score)


@pytest.mark.parametrize("penalty", ["av", "wu", "wu_", "wu_x", "wu_-1", "AVG", ""])
def test_an_unknown_length_penalty_is_told(penalty: str) -> None:
    with pytest.raises(GradlightError, match=f'length_penalty={penalty!r} is unknown: give None, "avg" or "wu_ALPHA"'):
        found(decoder_of(0), features_of(1), 2, penalty=penalty)


@pytest.mark.parametrize("size", [1, 3])
def test_features_that_are_no_numbers_are_told(size: int) -> None:
    features = features_of(2)
    features["fc"][1] = float("nan")
    with pytest.raises(GradlightError, match=r"finite|no number|NaN"):
        found(decoder_of(0), features, size)


def test_the_search_makes_no_graph() -> None:
    decoder, features = decoder_of(0), features_of(1)
    features["fc"].requires_grad_()
    state = decoder.start(features)
    assert state["h"].requires_grad
    assert isinstance(found(decoder, features, 2)[0].log_prob, float)
    assert features["fc"].grad is None
