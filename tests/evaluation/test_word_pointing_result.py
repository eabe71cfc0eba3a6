"""The hits of the word pointing game as a result."""

from __future__ import annotations

from gradlight.evaluation.tables import markdown
from gradlight.evaluation.word_pointing import WordHits, word_pointing_result


def test_hits_are_told_as_shares() -> None:
    result = word_pointing_result(
        {("normgrad", "layer1"): WordHits(8, 2, 4), ("baseline", "centre"): WordHits(8, 0, 1)}, 3
    )
    assert result.name == "word_pointing"
    assert result.figures == {
        "words": 8,
        "hits": {
            "normgrad / layer1": {"near": 0.5, "exact": 0.25},
            "baseline / centre": {"near": 0.125, "exact": 0.0},
        },
    }
    text = markdown(result.tables[0])
    assert "| layer1 | **50.0%** (25.0%) |" in text
    assert "8 words of its true captions of 3 scenes. With no map: centre: 12.5% (0.0%)." in text
