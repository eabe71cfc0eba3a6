"""Mean average precision of the bundled scenes classifier on held-out scenes, the number in the README.

python benchmarks/scenes_map.py [--count 2000]
"""

from __future__ import annotations

import argparse
import sys

from gradlight.data.scenes.generator import HELD_OUT
from gradlight.models.scenes.classifier import load_bundled, mean_average_precision


def main() -> None:
    parser = argparse.ArgumentParser(description="Mean average precision of the bundled classifier on held-out scenes.")
    parser.add_argument("--count", type=int, default=2000, help="held-out scenes to draw (default: 2000)")
    count = parser.parse_args().count
    if count < 1:
        parser.error(f"--count must be 1 or more; got {count}")
    mean, each = mean_average_precision(load_bundled(), HELD_OUT[:count], progress=sys.stderr.isatty())
    print("class      average precision")
    for name, value in each.items():
        print(f"{name:10} {value:.4f}")
    print(f"\nmean average precision on {count} held-out scenes: {mean:.4f}")


if __name__ == "__main__":
    main()
