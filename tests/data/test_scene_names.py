"""Scenes by name: "scenes:123" stands for the picture of seed 123 wherever an image is named."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gradlight.data.scenes.generator import HELD_OUT, SAMPLES, SEEDS, TRAINING, name, seed_of
from gradlight.errors import GradlightError


@given(st.sampled_from(SEEDS))
def test_a_name_gives_its_seed_back(seed: int) -> None:
    assert seed_of(name(seed)) == seed


def test_every_purpose_has_names() -> None:
    for seed in (TRAINING[0], TRAINING[-1], HELD_OUT[0], HELD_OUT[-1], *SAMPLES, SEEDS[-1]):
        assert name(seed) == f"scenes:{seed}"
    assert seed_of("scenes:007") == 7


@given(st.text().filter(lambda text: not text.startswith("scenes:")))
def test_anything_else_is_no_name_of_a_scene(text: str) -> None:
    assert seed_of(text) is None
    assert seed_of(f"./scenes:{text}") is None


@pytest.mark.parametrize("seed", [-1, 30_000_000, 10**30])
def test_seeds_beyond_the_ranges_have_no_name(seed: int) -> None:
    with pytest.raises(GradlightError, match=f"scenes:{seed}: .* its seed must be from 0 to 29999999"):
        name(seed)


@pytest.mark.parametrize("rest", ["", "-1", "30000000", "9" * 5000, "1-5", "a.jpg", "1.5", " 1", "1\n", "²", "٣"])
def test_names_that_only_begin_like_a_scenes_are_refused(rest: str) -> None:
    with pytest.raises(GradlightError, match="names no scene: scenes:SEED is expected, with a seed from 0 to 29999999"):
        seed_of(f"scenes:{rest}")
