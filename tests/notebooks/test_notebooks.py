"""The notebooks as they are committed, and what they show when they are executed anew."""

from __future__ import annotations

import base64
import importlib.util
import io
import re
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

nbformat = pytest.importorskip("nbformat", reason="the notebooks need nbformat and nbclient: the dev extra")
pytest.importorskip("nbclient", reason="the notebooks need nbformat and nbclient: the dev extra")

FOLDER = Path(__file__).resolve().parents[2] / "notebooks"
NAMES = [
    "1_classifier_tour",
    "2_caption_word_by_word",
    "3_class_sensitivity_and_meta",
    "4_batch_export",
    "5_your_own_network",
]
LARGEST = 400_000

spec = importlib.util.spec_from_file_location("notebooks_execute", FOLDER / "execute.py")
assert spec is not None
assert spec.loader is not None
executing = importlib.util.module_from_spec(spec)
spec.loader.exec_module(executing)

each = pytest.mark.parametrize("name", NAMES)


def committed(name: str) -> Any:
    return nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)


def outputs(notebook: Any) -> list[Any]:
    return [output for cell in notebook.cells for output in cell.get("outputs", [])]


def told(notebook: Any) -> str:
    """Join everything that the cells printed."""
    return "".join(output.text for output in outputs(notebook) if output.output_type == "stream")


def pictures(notebook: Any) -> list[Image.Image]:
    found = [output.data["image/png"] for output in outputs(notebook) if "image/png" in output.get("data", {})]
    return [Image.open(io.BytesIO(base64.b64decode(png))) for png in found]


def numbers(text: str, row: str) -> list[list[float]]:
    """Find the numbers of every line that begins with a word."""
    lines = [line.split() for line in text.splitlines() if line.split()[:1] == [row]]
    return [[float(part.rstrip("%,")) for part in line[1:] if re.fullmatch(r"-?[\d.]+%?,?", part)] for line in lines]


def test_the_five_notebooks_are_there() -> None:
    assert [path.stem for path in executing.notebooks()] == NAMES


@each
def test_a_committed_notebook_is_whole_and_small(name: str) -> None:
    notebook = committed(name)
    nbformat.validate(notebook)
    assert (FOLDER / f"{name}.ipynb").stat().st_size <= LARGEST
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    assert [output for output in outputs(notebook) if output.output_type == "error"] == []
    assert "stderr" not in [output.get("name") for output in outputs(notebook)]
    assert pictures(notebook)
    assert all(picture.width <= 800 for picture in pictures(notebook))


@each
def test_a_committed_notebook_says_nothing_of_where_it_was_made(name: str) -> None:
    notebook = committed(name)
    for picture in [output.data for output in outputs(notebook) if "data" in output]:
        picture.pop("image/png", None)
    text = nbformat.writes(notebook)
    assert re.findall(r"""(?:/(?:home|Users|root|work|tmp|var|usr|opt)/|[A-Z]:\\\\)\S*""", text) == []
    assert re.findall(r"0x[0-9a-f]{6,}|\b\d+(?:\.\d+)?\s?(?:ms|it/s|s/it)\b", text) == []
    assert "widget" not in str(notebook.metadata)
    assert all(cell.metadata == {} for cell in notebook.cells)


@each
def test_a_notebook_shows_the_line_for_pretrained_networks(name: str) -> None:
    source = "\n".join(cell.source for cell in committed(name).cells if cell.cell_type == "code")
    line = next(line for line in source.splitlines() if line.startswith("# ") and "pretrained" in line)
    assert re.match(r'# (model|network|MODEL) = (gl\.classifier\("timm/|gl\.captioner\("|torchvision\.|"timm/)', line)
    compile(line.removeprefix("# "), name, "exec")
    assert re.search(r"gl\.view\(", source)


def test_shrinking_takes_out_what_differs_and_keeps_the_picture() -> None:
    stream = io.BytesIO()
    Image.linear_gradient("L").convert("RGB").resize((1600, 400)).save(stream, format="PNG")
    data = {
        "text/plain": "<Viewer at 0x7f0012345678>",
        "application/vnd.jupyter.widget-view+json": {"model_id": "a1b2"},
        "image/png": base64.b64encode(stream.getvalue()).decode(),
    }
    shown = nbformat.v4.new_output("display_data", data, metadata={"needs_background": "light"})
    cell = nbformat.v4.new_code_cell("view", outputs=[shown], metadata={"execution": {"iopub.status.busy": "now"}})
    small = executing.shrink(nbformat.v4.new_notebook(cells=[cell], metadata={"widgets": {}}))
    assert set(small.cells[0].outputs[0].data) == {"image/png"}
    assert (small.cells[0].metadata, small.cells[0].outputs[0].metadata) == ({}, {})
    assert set(small.metadata) == {"kernelspec", "language_info"}
    (picture,) = pictures(small)
    assert (picture.width / picture.height, picture.mode) == (4.0, "P")
    assert picture.width < 1600
    once = nbformat.writes(small)
    assert nbformat.writes(executing.shrink(small)) == once


@pytest.fixture(scope="module")
def executed(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Execute notebooks, each once, in a folder of its own."""
    done: dict[str, Any] = {}

    def run(name: str) -> Any:
        if name not in done:
            done[name] = executing.execute(FOLDER / f"{name}.ipynb", tmp_path_factory.mktemp("notebook"))
        return done[name]

    return run


@pytest.mark.slow
@each
def test_an_executed_notebook_shows_what_the_committed_one_shows(name: str, executed: Any) -> None:
    fresh, kept = executed(name), committed(name)
    kinds = [[output.output_type for output in outputs(notebook)] for notebook in (fresh, kept)]
    assert kinds[0] == kinds[1]
    assert len(pictures(fresh)) == len(pictures(kept))
    assert [cell.source for cell in fresh.cells] == [cell.source for cell in kept.cells]
    bundles = [output.data for output in outputs(fresh) if "application/vnd.jupyter.widget-view+json" in str(output)]
    assert bundles
    assert all("image/png" in bundle for bundle in bundles), "a viewer carries its picture"


@pytest.mark.slow
def test_the_tour_finds_each_class_on_its_object(executed: Any) -> None:
    text = told(executed("1_classifier_tour"))
    assert {line.split()[0] for line in text.splitlines()[:4]} == {"orange", "white", "star", "heart"}
    assert "5 methods x 62 layers = 310 maps" in text
    ((heart, star),) = numbers(text, "product(linear)")
    assert heart > 30, "the heart covers an eighth of the picture"
    assert star > 10, "the star less than that"


@pytest.mark.slow
def test_words_point_at_what_they_name(executed: Any) -> None:
    text = told(executed("2_caption_word_by_word"))
    assert text.startswith("a large red square and an orange ring\n")
    where = dict(re.findall(r"^ *(\w+): (.+)$", text, flags=re.M))
    assert {word: where[word] for word in ("red", "square", "an", "ring")} == {
        "red": "a large red square", "square": "a large red square", "an": "an orange ring", "ring": "an orange ring",
    }  # fmt: skip
    own, other = (float(score) for score in re.findall(r"^ *(-[\d.]+)  caption", text, flags=re.M))
    assert own > -1 > -5 > other


@pytest.mark.slow
def test_descent_makes_normgrad_sensitive_to_the_class(executed: Any) -> None:
    text = told(executed("3_class_sensitivity_and_meta"))
    for method in ("normgrad", "selective_normgrad"):
        plain, descent, _, means = numbers(text, method)
        assert means[1] < 0.7 * means[0]
        assert descent[3] < plain[3] - 0.3
    assert numbers(text, "normgrad")[0][3] > 0.98, "one gradient at all places ranks them alike for every class"
    assert abs(numbers(text, "linear_approx")[0][3]) < 0.4
    assert "weights as before: True" in text


@pytest.mark.slow
def test_the_export_is_whole_and_sound(executed: Any) -> None:
    text = told(executed("4_batch_export"))
    assert "maps.h5: 60 images, 0 failures" in text
    assert "maps.h5: sound" in text
    assert re.search(r"/maps/normgrad/layer4 +\(60, 10, 10\) float32", text)
    assert "torch.Size([4, 1, 20, 20])" in text
    found = re.search(r"on the object: (\d+) of 60", text)
    assert found
    assert int(found[1]) > 20


@pytest.mark.slow
def test_a_network_of_ones_own_points_at_its_colours(executed: Any) -> None:
    text = told(executed("5_your_own_network"))
    assert "fine (40, 40)" in text
    (chance,) = re.findall(r"by chance +(\d+)%", text)
    assert int(chance) < 10
    assert numbers(text, "fine")[0][0] > 80
    assert numbers(text, "product(linear)")[0][0] > 60
