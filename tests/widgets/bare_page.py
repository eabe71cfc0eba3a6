"""A bare page that shows a viewer: the real program in a browser, the real widget in this process."""

from __future__ import annotations

import base64
import json
import queue
import time
from pathlib import Path
from typing import Any

from gradlight.widgets.viewer import Viewer

HOST = Path(__file__).with_name("bare_page.js")
_BACKGROUND = (
    "<!doctype html><html lang=en><title>viewer</title><style>body{margin:8px;background:Canvas}</style><main></main>"
)


class BarePage:
    """A viewer on a page; what passes between them is counted. Python's part runs while the page is looked at."""

    def __init__(self, page: Any, viewer: Viewer) -> None:
        self.page, self.viewer = page, viewer
        self.to_python: list[str] = []
        self.asked: list[Any] = []
        self._waiting: queue.Queue[tuple[dict[str, Any], list[Any]]] = queue.Queue()
        assert viewer.comm is not None
        viewer.comm.send = lambda data, buffers=None, **_: self._waiting.put((data, buffers or []))  # type: ignore[method-assign]
        page.set_content(_BACKGROUND)
        page.expose_function("toPython", self._receive)
        page.add_style_tag(content=viewer._css)
        page.add_script_tag(content=HOST.read_text(encoding="utf-8"))
        self._send(viewer.get_state())
        self.show()

    def show(self) -> None:
        """Open one display more."""
        self.page.evaluate("(program) => host.show(program)", self.viewer._esm)
        self.until("[...document.querySelectorAll('.gradlight')].every((each) => each.dataset.missing === '0')")
        self.drawn()

    def _receive(self, sent: dict[str, Any]) -> None:
        self.to_python.append(json.dumps(sent))
        if "state" in sent:
            self.viewer.set_state(sent["state"])
        else:
            self.asked.append(sent["message"])
            self.viewer._handle_custom_msg(sent["message"], [])

    def _send(self, state: dict[str, Any]) -> None:
        own = {name: value for name, value in state.items() if name in Viewer.class_own_traits(sync=True)}
        coded = {n: base64.b64encode(v).decode() for n, v in own.items() if isinstance(v, (bytes, memoryview))}
        plain = {name: value for name, value in own.items() if name not in coded}
        self.page.evaluate("(sent) => host.take(sent)", {"state": plain, "bytes": coded})

    def pump(self) -> None:
        """Hand the page what Python has sent."""
        while not self._waiting.empty():
            data, buffers = self._waiting.get()
            if data.get("method") == "update":
                state = dict(data["state"])
                for path, value in zip(data["buffer_paths"], buffers, strict=True):
                    state[path[0]] = value
                self._send(state)

    def until(self, condition: str, seconds: float = 15) -> None:
        """Wait until a condition, as JavaScript, holds on the page."""
        end = time.monotonic() + seconds
        while not self.page.evaluate(f"() => Boolean({condition})"):
            if time.monotonic() > end:
                raise AssertionError(f"never true: {condition}; {self.data()}; {self.viewer.work}")
            self.pump()
            self.page.wait_for_timeout(5)

    def settled(self, seconds: float = 15) -> None:
        """Wait until everything asked for is computed, sent and drawn."""
        # The page tells Python of a change only when the hand rests.
        self.page.wait_for_timeout(120)
        assert self.viewer.wait(seconds)
        self.pump()
        self.drawn()
        self.until("document.querySelector('.gradlight').dataset.missing === '0'", seconds)

    def drawn(self) -> None:
        """Wait for two frames."""
        self.page.evaluate("() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")

    def data(self, number: int = 0) -> dict[str, str]:
        """Give what a display says of itself."""
        found: dict[str, str] = self.page.evaluate(
            "(n) => ({...document.querySelectorAll('.gradlight')[n].dataset})", number
        )
        return found

    def pixels(self, number: int = 0) -> str:
        """Give what a pane shows."""
        found: str = self.page.evaluate("(n) => document.querySelectorAll('canvas')[n].toDataURL()", number)
        return found
