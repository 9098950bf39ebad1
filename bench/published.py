"""The published results as a file, for the report to draw: python -m bench.published --output DIR

Each row of ``triton_dirac.models.PUBLISHED`` with its errors, their source, what is printed of its parameters, and the
count of the net that this package builds.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import torch

from bench.results import output_folder
from triton_dirac.models import PUBLISHED, Published
from triton_dirac.runtime import files

RESULTS = "published.json"


def row_of(name: str, net: Published) -> dict[str, Any]:
    with torch.device("meta"):
        count = sum(parameter.numel() for parameter in net.build().parameters())
    row: dict[str, Any] = {"name": name, "depth": net.depth, "width": net.width, "dirac": net.is_dirac}
    row |= {"parameters": count, "printed_millions": net.millions, "note": net.note}
    return row | {"results": [asdict(result) for result in net.results]}


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser("python -m bench.published", description=__doc__)
    parser.add_argument("--output", type=output_folder, required=True)
    options = parser.parse_args(arguments)
    rows = [row_of(name, net) for name, net in PUBLISHED.items()]
    files.replace(options.output / RESULTS, json.dumps(rows, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
