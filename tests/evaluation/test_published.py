"""The published figures that come with the package."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from gradlight.errors import GradlightError
from gradlight.evaluation.tables import published, published_sections, published_sources


def test_every_section_says_what_it_is_and_is_there() -> None:
    assert set(published_sources()) == {"paper", "torchray"}
    for section, what in published_sections().items():
        assert published(section)
        assert len(what) > 40


def test_the_figures_are_the_published_ones(shared: Path) -> None:
    reference = json.loads((shared / "reference" / "published_figures.json").read_text())
    table = reference["table3_voc07"]
    kinds = {"best single": "single", "best weighted": "combined"}
    for method in published("pointing_best"):
        for column, value in zip(table["columns"], table[method], strict=True):
            network, subset, kind = column.split("/")
            assert published("pointing_best")[method][network][subset][kinds[kind]] == value
    rows = reference["torchray_pointing_csv"]
    for column, value in zip(rows["columns"], rows["grad_cam"], strict=True):
        data, network, subset = column.replace("voc_2007", "voc07").split()
        assert published("pointing_benchmark")["grad_cam"][data][network][subset] == value
    layers = reference["pointing_accuracy_voc07_all"]["resnet50"]
    assert published("pointing_layers")["resnet50"]["selective_normgrad"] == layers["norm_grad_selective"]
    mean, deviation = reference["table4_identity_correlation_percent"]["vgg16"]["features.28"]
    found = published("identity_correlation")["vgg16"]["features.28"]
    assert found == {"mean": mean, "deviation": deviation}


def test_a_section_that_is_not_there_is_named() -> None:
    with pytest.raises(GradlightError, match=r"no published figures 'pointing_bst'.*pointing_best"):
        published("pointing_bst")
