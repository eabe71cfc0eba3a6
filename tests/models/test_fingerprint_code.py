"""A cached map is that of the code as it is now: globals, helpers, classes and modules that `forward` reads."""

from __future__ import annotations

import sys
import threading
import types
import warnings
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import gradlight as gl
from gradlight.errors import GradlightError, GradlightWarning
from gradlight.models.fingerprint import fingerprint, value_sha256

NOTEBOOK = """
import threading
from collections import deque
from torch import nn
import gradlight_test_helpers as helpers

SCALE, TABLE, WEIGHTS, QUEUE = 1.0, {"power": [1.0]}, torch.ones(8)[:, None, None], deque([1.0])

class Setting:
    factor = 1.0
    def __init__(self): self.offset = 0.0

SETTING = Setting()

def inner(x): return x * 1.0
def act(x, slope=0.0): return inner(torch.where(x > 0, x, slope * x))

def closure(factor):
    cell = [factor]
    def scaled(x): return x * cell[0]
    return scaled, cell

scaled, cell = closure(1.0)

class Base(nn.Module):
    gain = 1.0
    shift = torch.zeros(1)
    def finish(self, x): return x * self.gain + self.shift

class Net(Base):
    def __init__(self):
        super().__init__()
        self.c, self.h = nn.Conv2d(3, 8, 3, 2, 1), nn.Linear(8, 5)
    def forward(self, x):
        x = act(self.c(x * SCALE)) ** TABLE["power"][0] * WEIGHTS * QUEUE[0]
        x = scaled(helpers.act(x) * helpers.LEVEL) * SETTING.factor + SETTING.offset
        return self.h(self.finish(x).mean((2, 3)) ** 2)
"""
HELPERS = "LEVEL = 1.0\nSLOPE = 1.0\ndef act(x): return x * SLOPE\n"


class Notebook:
    """Cells that ran, as in a notebook: a namespace, a module beside it, and a network."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, code: str = NOTEBOOK) -> None:
        self.helpers = types.ModuleType("gradlight_test_helpers")
        exec(HELPERS, vars(self.helpers))
        monkeypatch.setitem(sys.modules, "gradlight_test_helpers", self.helpers)
        self.cells: dict[str, Any] = {"__name__": "__main__", "torch": torch}
        self.run(code)
        torch.manual_seed(0)
        self.network: nn.Module = self.cells["Net"]().eval()

    def run(self, code: str) -> None:
        exec(code, self.cells)

    def __getitem__(self, name: str) -> Any:
        return self.cells[name]

    def maps(self, cache: Path | None) -> Tensor:
        model = gl.classifier(self.network)
        pixels = torch.linspace(-1, 1, 3 * 32 * 32).reshape(1, 3, 32, 32)
        return gl.explain(model, pixels, 0, layers="c", methods="linear_approx", cache=cache)["linear_approx", "c"]


@pytest.fixture
def notebook(monkeypatch: pytest.MonkeyPatch) -> Iterator[Notebook]:
    return Notebook(monkeypatch)


CHANGES: dict[str, Callable[[Notebook], Any]] = {
    "a global": lambda n: n.run("SCALE = 3.0"),
    "a table in place": lambda n: n["TABLE"]["power"].__setitem__(0, 2.0),
    "a tensor in place": lambda n: n["WEIGHTS"].data.mul_(2),
    "a deque in place": lambda n: n["QUEUE"].appendleft(2.0),
    "a helper": lambda n: n.run("def act(x): return x.sigmoid()"),
    "a helper of a helper": lambda n: n.run("def inner(x): return x * 2.0"),
    "a helper's code": lambda n: setattr(n["inner"], "__code__", (lambda x: x * 5.0).__code__),
    "a helper's default": lambda n: setattr(n["act"], "__defaults__", (0.5,)),
    "an attribute of a global": lambda n: setattr(n["SETTING"], "offset", 1.0),
    "a class attribute of a global": lambda n: setattr(n["Setting"], "factor", 2.0),
    "a closure": lambda n: n["cell"].__setitem__(0, 2.0),
    "a class attribute": lambda n: setattr(n["Base"], "gain", 2.0),
    "a tensor of a class": lambda n: n["Base"].shift.data.add_(1),
    "a method of a base class": lambda n: setattr(n["Base"], "finish", lambda self, x: x.sin()),
    "a method that now shadows": lambda n: setattr(n["Net"], "finish", lambda self, x: x.cos()),
    "a method's code": lambda n: setattr(n["Base"].finish, "__code__", (lambda self, x: x.exp()).__code__),
    "a global of a module": lambda n: setattr(n.helpers, "LEVEL", 2.0),
    "a global of a module's function": lambda n: setattr(n.helpers, "SLOPE", 2.0),
    "a function of a module": lambda n: setattr(n.helpers, "act", torch.tanh),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_cached_map_is_that_of_the_code_now(change: str, notebook: Notebook, tmp_path: Path) -> None:
    first, known = notebook.maps(tmp_path), fingerprint(notebook.network)
    assert torch.equal(notebook.maps(tmp_path), first)
    assert fingerprint(notebook.network) == known
    CHANGES[change](notebook)
    assert fingerprint(notebook.network).everything != known.everything
    fresh = notebook.maps(None)
    assert not torch.allclose(fresh, first)
    assert torch.equal(notebook.maps(tmp_path), fresh)
    assert torch.equal(notebook.maps(tmp_path), fresh)


def test_what_is_put_back_is_found_again(notebook: Notebook) -> None:
    known = fingerprint(notebook.network)
    notebook.run("SCALE = 3.0")
    assert fingerprint(notebook.network) != known
    notebook.run("SCALE = 1.0")
    assert fingerprint(notebook.network) == known


def test_what_nothing_reads_does_not_count(notebook: Notebook) -> None:
    known = fingerprint(notebook.network)
    notebook.run("OTHER = 3.0\ndef unused(x): return x\nhelpers.more = 1")
    assert fingerprint(notebook.network) == known


@pytest.mark.parametrize(
    ("before", "line", "reason"),
    [
        ("THING = (step for step in [1.0, 2.0])", "x * (THING is not None)", "reads 'THING'.*generator"),
        ("THING = threading.Lock()", "x * (not THING.locked())", "reads 'THING'.*lock"),
        ("NAME = 'SCALE'", "x * eval(NAME)", "uses 'eval'"),
        ("NAME = 'SCALE'", "x * globals()[NAME]", "uses 'globals'"),
        ("import os", "x * float(os.environ.get('GRADLIGHT_TEST_SCALE', 1))", "uses 'environ'"),
        ("def size():\n    with open('/dev/null') as file: return len(file.read())", "x + size()", "size uses 'open'"),
    ],
)
def test_what_cannot_be_seen_is_not_cached(
    before: str, line: str, reason: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    code = NOTEBOOK.replace("class Setting", f"{before}\nclass Setting", 1).replace(
        "    def forward(self, x):", f"    def forward(self, x):\n        x = {line}"
    )
    notebook = Notebook(monkeypatch, code)
    with pytest.warns(GradlightWarning, match=f"The cache is not used: .*{reason}"):
        kept = notebook.maps(tmp_path)
    assert torch.equal(kept, notebook.maps(None))


def test_what_the_constructor_reads_does_not_count(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    code = NOTEBOOK.replace(
        "        super().__init__()", "        super().__init__()\n        open('/dev/null').close()"
    )
    notebook = Notebook(monkeypatch, code)
    with warnings.catch_warnings():
        warnings.simplefilter("error", GradlightWarning)
        assert torch.equal(notebook.maps(tmp_path), notebook.maps(tmp_path))


def test_a_librarys_class_that_was_patched(monkeypatch: pytest.MonkeyPatch) -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()).eval()
    known = fingerprint(network)
    monkeypatch.setattr(nn.ReLU, "forward", lambda self, x: x.sigmoid())
    patched = fingerprint(network)
    assert patched.everything != known.everything
    monkeypatch.undo()
    assert fingerprint(network) == known


FACTOR = 1.0


def score(logits: Tensor) -> Tensor:
    return logits.sum(1) * FACTOR


def test_a_function_that_is_hashed_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    known = value_sha256(score)
    monkeypatch.setitem(globals(), "FACTOR", 2.0)
    assert value_sha256(score) != known


def test_modules_that_name_each_other_end() -> None:
    one, other = types.ModuleType("gradlight_test_one"), types.ModuleType("gradlight_test_other")
    one.other, other.one, other.LEVEL = other, one, 1.0  # type: ignore[attr-defined]
    exec("def run(x): return x * one.other.one.other.LEVEL", space := {"__name__": "__main__", "one": one})
    known = value_sha256(space["run"])
    assert value_sha256(space["run"]) == known
    other.LEVEL = 2.0  # type: ignore[attr-defined]
    assert value_sha256(space["run"]) != known


def test_values_of_c_are_told_apart_by_their_state() -> None:
    exec("def run(x): return x + THING[0]", space := {"__name__": "__main__"})
    shas = set()
    for thing in (deque([1]), deque([2]), range(3), range(4), slice(1), slice(2)):
        space["THING"] = thing
        shas.add(value_sha256(space["run"]))
    assert len(shas) == 6
    space["THING"] = threading.Lock()
    with pytest.raises(GradlightError, match="run reads 'THING': a lock cannot be described"):
        value_sha256(space["run"])
