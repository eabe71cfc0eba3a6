"""The latency of the viewer: key to pixels, bytes per change, frames shown, first payload, opening of a large file.

    python benchmarks/viewer_latency.py [--busy 2] [--keys 60]

17 layers × 5 methods of a ResNet-50 on a photo of 640 × 480, on a bare page and in JupyterLab, while as many processes
as --busy says keep the cores busy. The time of a key is from its time stamp in the browser to the end of the frame in
which the map was drawn. Bytes are measured with a pause after every key: on the page of the JSON, in JupyterLab of all
frames of the connection. Fast keys have the rate of a key that is held down.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import torch
from browsing import SCENES, browser
from PIL import Image

import gradlight as gl
from gradlight.explainers.maps import MapLayer, Origin, SaliencyMaps
from gradlight.models.base import Photo, View
from gradlight.models.objective import Target
from gradlight.widgets.page import program

NETWORK = "torchvision/resnet50"
BLOCKS = (3, 4, 6, 3)
LAYERS = ["input", *(f"layer{stage}.{block}" for stage, count in enumerate(BLOCKS, 1) for block in range(count))]
MANY = 10_000
# A held key repeats about thirty times a second.
FAST = 1 / 30
REST = 150
WATCH = """() => {
  const root = document.querySelector('.gradlight');
  const painted = new MessageChannel();
  window.seen = { pressed: 0, times: [], shown: [] };
  painted.port1.onmessage = () => {
    if (seen.pressed) seen.times.push(performance.now() - seen.pressed);
    seen.pressed = 0;
  };
  root.addEventListener('keydown', (event) => (seen.pressed ||= event.timeStamp), true);
  new MutationObserver(() => {
    if (seen.shown.at(-1) !== root.dataset.shown) seen.shown.push(root.dataset.shown);
    painted.port2.postMessage(0);
  }).observe(root, { attributeFilter: ['data-drawn'] });
}"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--busy", type=int, default=2)
    parser.add_argument("--keys", type=int, default=60)
    options = parser.parse_args()
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder, browser() as running:
        photo = draw_photo(Path(folder) / "photo.png")
        viewer = gl.view(gl.classifier(NETWORK, pretrained=False), photo, 0, layers=LAYERS)
        with busy(options.busy):
            pages = {"bare page": on_a_bare_page(running, viewer, options.keys)}
            if importlib.util.find_spec("jupyterlab") is not None:
                pages["JupyterLab"] = in_jupyterlab(running, Path(folder), photo, options.keys)
        once = {**payload(viewer), f"a file of {MANY:,} images, opened (s)": opening(Path(folder) / "many.h5")}
    report(pages, once)


def draw_photo(path: Path) -> Path:
    """Write a photo of a camera's shape: sample scenes side by side."""
    paper = Image.new("RGB", (640, 480))
    for number in range(12):
        scene = Image.open(SCENES / f"scene_{number % 6 + 1}.png").convert("RGB")
        paper.paste(scene.resize((160, 160)), (number % 4 * 160, number // 4 * 160))
    paper.save(path)
    return path


@contextmanager
def busy(count: int) -> Iterator[None]:
    others = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for other in others:
            other.kill()
            other.wait()


def on_a_bare_page(running: Any, viewer: gl.Viewer, keys: int) -> dict[str, str]:
    from bare_page import BarePage

    page = running.new_page(viewport={"width": 1240, "height": 900})
    shown = BarePage(page, viewer)

    def passed() -> tuple[int, int]:
        back = sum(len(json.dumps(data)) + sum(map(len, buffers)) for data, buffers in shown._waiting.queue)
        return sum(map(len, shown.to_python)), back

    results = press_keys(page, keys, passed)
    page.close()
    return results


def in_jupyterlab(running: Any, folder: Path, photo: Path, keys: int) -> dict[str, str]:
    import lab

    server = lab.start(folder)
    try:
        page = running.new_page(viewport={"width": 1400, "height": 1000})
        sent: list[int] = []
        received: list[int] = []
        for event, sizes in (("framesent", sent), ("framereceived", received)):
            page.on("websocket", partial(count_frames, event, sizes))
        made = f"gl.classifier({NETWORK!r}, pretrained=False), {str(photo)!r}, 0, layers={LAYERS}"
        server.write("viewer.ipynb", f"import gradlight as gl\ngl.view({made})")
        book = lab.Notebook(page, server, "viewer.ipynb")
        book.run(300)
        results = press_keys(page, keys, lambda: (sum(sent), sum(received)))
        book.close()
        return results
    finally:
        server.stop()


def count_frames(event: str, sizes: list[int], wire: Any) -> None:
    wire.on(event, lambda frame: sizes.append(len(frame)))


def press_keys(page: Any, keys: int, passed: Callable[[], tuple[int, int]]) -> dict[str, str]:
    """Press keys one by one and then fast; passed: gives the bytes sent to Python so far, and received from it."""
    slider = page.locator(".gradlight").get_by_label("Layer")
    slider.focus()
    page.wait_for_timeout(1000)
    page.evaluate(WATCH)
    before = passed()
    for key in sweep(keys):
        page.keyboard.press(key)
        page.wait_for_timeout(REST)
    sent, received = ((now - then) / keys for now, then in zip(passed(), before, strict=True))
    times = sorted(page.evaluate("() => seen.times"))
    page.evaluate("() => (seen.shown = [])")
    begun = time.perf_counter()
    for number, key in enumerate(sweep(keys), 1):
        page.keyboard.press(key)
        page.wait_for_timeout(max(1000 * (begun + number * FAST - time.perf_counter()), 0))
    rate = keys / (time.perf_counter() - begun)
    page.wait_for_timeout(REST)
    frames = page.evaluate("() => seen.shown.length")
    return {
        "slider key → new pixels, median (ms)": f"{statistics.median(times):.1f} (of {len(times)} keys)",
        "slider key → new pixels, p95 (ms)": f"{times[int(0.95 * len(times))]:.1f}",
        "bytes to Python for each change": f"{sent:.0f}",
        "bytes from Python for each change": f"{received:.0f}",
        f"frames shown of {keys} fast keys": f"{frames} (at {rate:.0f} keys/s)",
    }


def sweep(keys: int) -> Iterator[str]:
    """Give keys that go from the last layer to the first and back, repeatedly."""
    steps = len(LAYERS) - 1
    return islice(cycle(["ArrowLeft"] * steps + ["ArrowRight"] * steps), keys)


def payload(viewer: gl.Viewer) -> dict[str, str]:
    """Measure the data that a page receives before it shows anything."""
    state = viewer.get_state()
    packed = {name: len(value) for name, value in state.items() if isinstance(value, (bytes, memoryview))}
    words = json.dumps({name: value for name, value in state.items() if name not in packed})
    kilobytes = (sum(packed.values()) + len(words.encode())) / 1000
    details = f"maps {packed['_maps'] / 1000:.0f}, photo {packed['_photo'] / 1000:.0f}"
    pairs = f"{len(LAYERS)} layers × {len(viewer.maps.methods)} methods"
    return {
        f"first payload, {pairs} (kB)": f"{kilobytes:.0f} ({details})",
        "of it the program (bytes)": f"{len(program().encode()):,}",
    }


def opening(path: Path) -> str:
    """Write a file of many images, and time its opening."""
    size, view_of = (160, 160), View.whole((160, 160), (160, 160))
    photos = [Photo(f"scenes:{number}", "0" * 64, *size, view_of) for number in range(MANY)]
    targets = [[Target("class", number % 7, f"class {number % 7}", 1.0)] for number in range(MANY)]
    layers = {"a": MapLayer(1, (16.0, 16.0)), "b": MapLayer(2, (32.0, 32.0))}
    maps = {("normgrad", name): torch.rand(MANY, side, side) for name, side in (("a", 10), ("b", 5))}
    SaliencyMaps(maps, layers, photos, targets, size, Origin({"name": "x"}, "0" * 64)).save(path)
    times = []
    for _ in range(5):
        begun = time.perf_counter()
        gl.view(path).close()
        times.append(time.perf_counter() - begun)
    return f"{statistics.median(times):.2f}"


def report(pages: dict[str, dict[str, str]], once: dict[str, str]) -> None:
    print(f"| | {' | '.join(pages)} |\n|---|{'---|' * len(pages)}")
    for name in next(iter(pages.values())):
        print(f"| {name} | {' | '.join(results[name] for results in pages.values())} |")
    for name, value in once.items():
        print(f"| {name} | {value} |{' |' * (len(pages) - 1)}")


if __name__ == "__main__":
    main()
