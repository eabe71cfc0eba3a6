"""Tables as Markdown, CSV and JSON."""

from __future__ import annotations

import csv as files
import io
import json
import math
from dataclasses import replace

import pytest

from gradlight.errors import GradlightError
from gradlight.evaluation.tables import Table, as_json, csv, markdown

TABLE = Table(
    "Hits",
    ["who", "share", "asked"],
    [["a|b", 1 / 3, 3], ["two\nlines", None, 0], ["c", math.nan, None]],
    ["A note.", "Another."],
)


def test_markdown_is_a_table_for_people() -> None:
    assert markdown(replace(TABLE, digits=2)) == (
        "**Hits**\n\n"
        "| who | share | asked |\n"
        "| --- | ---: | ---: |\n"
        "| a\\|b | 0.33 | 3 |\n"
        "| two lines | – | 0 |\n"
        "| c | – | – |\n\n"
        "A note.\n\n"
        "Another.\n"
    )


def test_csv_keeps_every_digit() -> None:
    rows = list(files.reader(io.StringIO(csv(TABLE))))
    assert rows[0] == ["who", "share", "asked"]
    assert rows[1][0] == "a|b"
    assert float(rows[1][1]) == 1 / 3
    assert rows[2:] == [["two\nlines", "", "0"], ["c", "", ""]]


def test_json_is_strict_and_keeps_every_digit() -> None:
    found = json.loads(json.dumps(as_json(TABLE), allow_nan=False))
    assert found == {
        "title": "Hits",
        "columns": ["who", "share", "asked"],
        "rows": [["a|b", 1 / 3, 3], ["two\nlines", None, 0], ["c", None, None]],
        "notes": ["A note.", "Another."],
    }


def test_a_table_without_rows_has_its_headings() -> None:
    assert markdown(Table("T", ["a"], [])) == "**T**\n\n| a |\n| --- |\n"
    assert csv(Table("T", ["a"], [])) == "a\n"


def test_a_row_must_fit_the_columns() -> None:
    with pytest.raises(GradlightError, match="row of the table 'T' has 1 cells for 2 columns"):
        Table("T", ["a", "b"], [[1]])
