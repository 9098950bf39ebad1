"""A report's files, written all or none: a full disk or a kill leaves the last report as it was."""

from __future__ import annotations

import contextlib
import glob
import os
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

ABANDONED = 60.0  # seconds: writing one file takes milliseconds, so an older part has lost its writer
PART = ".part"


def write(files: Mapping[Path, str | bytes]) -> None:
    """Write every file beside its place first; then, in their order, each takes its place in a single step.

    Readers see the old file or the new one, never a part; a link is followed. Folders are made. Raises OSError,
    and then leaves no parts behind.
    """
    parts: list[tuple[str, str]] = []
    try:
        for path, content in files.items():
            parts.append((_write_part(path, content), os.path.realpath(path)))
        while parts:
            os.replace(*parts[0])
            del parts[0]
    finally:
        for part, _ in parts:
            _remove(part)


def _write_part(path: Path, content: str | bytes) -> str:
    place = Path(os.path.realpath(path))
    place.parent.mkdir(parents=True, exist_ok=True)
    for left in place.parent.glob(f".{glob.escape(place.name)}.*{PART}"):
        with contextlib.suppress(OSError):
            if time.time() - left.stat().st_mtime > ABANDONED:
                left.unlink()
    handle, part = tempfile.mkstemp(dir=place.parent, prefix=f".{place.name}.", suffix=PART)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
        os.chmod(part, 0o644)  # mkstemp makes files that only their owner may read
    except BaseException:
        _remove(part)
        raise
    return part


def _remove(part: str) -> None:
    with contextlib.suppress(OSError):
        os.unlink(part)
