"""Run the benchmarks, one after another, and write their output to RESULTS.md.

    python benchmarks/bench.py [one_pass targets …] [--out benchmarks/RESULTS.md]

A benchmark that is run alone replaces only its own section. Text that is written by hand between `<!-- note -->` and
`<!-- /note -->` in a section is kept.
"""

from __future__ import annotations

import argparse
import ast
import os
import re
import shlex
import subprocess
import sys
import time
from pathlib import Path

from timing import MACHINE, machine

__all__ = ["COMMANDS", "replaced"]

HERE = Path(__file__).resolve().parent
SETTINGS = {"OMP_WAIT_POLICY": "PASSIVE"}

# Together about twenty-five minutes on two cores; the large batches have few repeats.
COMMANDS: dict[str, tuple[str, ...]] = {
    "one_pass": ("--batch 1 --repeats 5", "--batch 8 --repeats 3"),
    "targets": ("",),
    "meta": ("--batch 1 8 --repeats 2", "--network resnet18 resnet50 --batch 32 --repeats 1"),
    "precision": ("",),
    "memory": ("",),
    "start": ("",),
    "cache_hit": ("",),
    "export_overhead": ("",),
    "viewer_latency": ("",),
}

HEAD = """# Benchmark results

`make bench` writes this page; `python benchmarks/bench.py NAME` replaces one section. Only ratios within one run are
comparable between machines, because their jobs alternated.
"""
NOTE = "<!-- note -->\n<!-- /note -->"
_NOTES = re.compile(r"<!-- note -->.*?<!-- /note -->", re.DOTALL)
_TITLE = re.compile(r"^## (\S+)\n", re.MULTILINE)


class LeftOutError(Exception):
    """A benchmark cannot be run here; the message says why."""


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(COMMANDS)} (default: all)")
    parser.add_argument("--out", type=Path, default=HERE / "RESULTS.md", help="the page (default: %(default)s)")
    options = parser.parse_args()
    unknown = [name for name in options.names if name not in COMMANDS]
    if unknown:
        parser.error(f"no benchmark is called {', '.join(unknown)}; there are {', '.join(COMMANDS)}")
    os.environ.update(SETTINGS)
    failed = [name for name in options.names or COMMANDS if not keep(name, options.out)]
    if failed:
        sys.exit(f"Failed, and their sections are as they were: {', '.join(failed)}.")


def keep(name: str, page: Path) -> bool:
    """Run one benchmark and write its section, unless it fails."""
    begun = time.perf_counter()
    print(f"== {name}", file=sys.stderr, flush=True)
    before = page.read_text(encoding="utf-8") if page.exists() else HEAD
    try:
        page.write_text(replaced(before, name, body(name)), encoding="utf-8")
    except LeftOutError as reason:
        print(f"Left out: {reason}", file=sys.stderr)
    except subprocess.CalledProcessError as error:
        print(error.stderr, file=sys.stderr)
        return False
    print(f"== {name}: {time.perf_counter() - begun:.0f} s\n", file=sys.stderr, flush=True)
    return True


def body(name: str) -> str:
    """Run the commands of a benchmark, and compose its section."""
    paragraphs = [describe(name)]
    for arguments in COMMANDS[name]:
        command = f"python benchmarks/{name}.py {arguments}".strip()
        settings = " ".join(f"{key}={value}" for key, value in SETTINGS.items())
        described, printed = machine(), run(name, arguments)
        if not printed.startswith(MACHINE):
            printed = f"{described}\n\n{printed}"
        print(printed, flush=True)
        paragraphs.append(f"```sh\n{settings} {command}\n```\n\n{printed}")
    return "\n\n".join(paragraphs)


def describe(name: str) -> str:
    """Give the docstring of a benchmark without its command line."""
    doc = ast.get_docstring(ast.parse((HERE / f"{name}.py").read_text(encoding="utf-8"))) or ""
    paragraphs = doc.split("\n\n")
    return "\n\n".join(paragraph for paragraph in paragraphs if not paragraph.lstrip().startswith("python "))


def run(name: str, arguments: str) -> str:
    """Run a benchmark in a process of its own; raises LeftOutError where it exits with a message."""
    command = [sys.executable, str(HERE / f"{name}.py"), *shlex.split(arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode == 1 and "Traceback" not in done.stderr:
        raise LeftOutError(done.stderr.strip().splitlines()[-1])
    done.check_returncode()
    print(done.stderr, end="", file=sys.stderr)
    return done.stdout.strip()


def replaced(page: str, name: str, text: str) -> str:
    """Replace or insert a section of a page; the notes in it are kept."""
    head, sections = split_sections(page)
    notes = _NOTES.findall(sections.get(name, "")) or [NOTE]
    sections[name] = "\n".join(["", text.strip(), "", "\n\n".join(notes), ""])
    order = [*COMMANDS, *(title for title in sections if title not in COMMANDS)]
    texts = [f"## {title}\n{sections[title].rstrip()}\n" for title in order if title in sections]
    return "\n".join([head.rstrip() + "\n", *texts])


def split_sections(page: str) -> tuple[str, dict[str, str]]:
    """Split a page into its head and its sections by title; titles inside notes do not count."""
    notes = [note.span() for note in _NOTES.finditer(page)]
    titles = [
        title for title in _TITLE.finditer(page) if not any(start < title.start() < stop for start, stop in notes)
    ]
    ends = [*(title.start() for title in titles), len(page)]
    return page[: ends[0]], {title[1]: page[title.end() : stop] for title, stop in zip(titles, ends[1:], strict=True)}


if __name__ == "__main__":
    main()
