"""The start time of imports, the command line's help, and the first explanation.

    python benchmarks/start.py [--repeats 5]

Processor time of complete processes, which alternate; the first run of each is not counted.
"""

from __future__ import annotations

import resource
import subprocess
import sys
from functools import partial

from timing import Job, Times, measured, parser, settle, table

BARE = "bare python"
_EXPLAIN = (
    "import gradlight as gl; m = gl.classifier('scenes', device='cpu');"
    " gl.explain(m, __import__('torch').zeros(1, 3, *m.size), 0)"
)
CODE = {
    BARE: "pass",
    "import gradlight": "import gradlight",
    "gradlight --help": "import sys; sys.argv = ['gradlight', '--help']; from gradlight.cli.app import main; main()",
    "import torch": "import torch",
    "import torchvision, timm": "import torchvision, timm",
    "gl.explain, imported": "import gradlight as gl; gl.explain",
    "gl.explain, first maps (scenes)": _EXPLAIN,
}


def main() -> None:
    made = parser(__doc__, repeats=5)
    options = made.parse_args()
    settle(options)
    jobs: dict[str, Job] = {name: partial(run, code) for name, code in CODE.items()}
    times = measured(jobs, options.repeats, clock=children)
    print(f"\nturns: {options.repeats}\n")
    print(table(("process", "s", "s beyond bare python"), rows(times)))


def rows(times: Times) -> list[tuple[str, ...]]:
    bare = times.seconds(BARE)
    return [(name, f"{times.seconds(name):.3f}", f"{times.seconds(name) - bare:.3f}") for name in times.taken]


def run(code: str) -> None:
    subprocess.run([sys.executable, "-c", code], stdout=subprocess.DEVNULL, check=True)


def children() -> float:
    """Give the processor time of the processes that have ended."""
    spent = resource.getrusage(resource.RUSAGE_CHILDREN)
    return spent.ru_utime + spent.ru_stime


if __name__ == "__main__":
    main()
