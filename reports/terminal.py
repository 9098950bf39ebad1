"""What the commands of reports print."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from reports.load import ReportError


def say(lines: Sequence[str]) -> None:
    """Print; what the terminal's encoding lacks is spelled out, and a reader who has seen enough may leave."""
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    try:
        for line in lines:
            print(line.encode(encoding, "backslashreplace").decode(encoding))
        sys.stdout.flush()
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python flushes, and fails, at its end
        if not isinstance(error, BrokenPipeError):
            raise ReportError(f"standard output: {error}; the report is written all the same") from None
