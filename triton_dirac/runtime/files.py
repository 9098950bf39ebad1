"""Files that outlive a process: replaced in one step, so that a kill or a full disk leaves the old one."""

from __future__ import annotations

import contextlib
import os
import secrets
import time
from collections.abc import Iterator
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

ABANDONED = 60.0  # seconds: writing takes milliseconds, so an older part has lost its writer
PATIENCE = 60.0  # seconds that a lock is waited for: its holder may have been stopped


def replace(path: Path, content: str | bytes, *, alone: bool = False) -> None:
    """Write beside the path, then take its place: readers see the old file or the new one, never a part.

    A link is followed; a device or pipe is written to. Folders are made. Parts that killed writers left are
    removed once they are old, and at once if the caller is ``alone``: holds a lock that all writers take. Raises
    OSError, and then leaves the old file as it was. Bytes are on the disk before they take the place.
    """
    data = content.encode() if isinstance(content, str) else content
    place = Path(os.path.realpath(path))
    place.parent.mkdir(parents=True, exist_ok=True)
    if place.exists() and not (place.is_file() or place.is_dir()):
        place.write_bytes(data)
        return
    for left in [part for part in place.parent.iterdir() if part.name.startswith(f".{place.name}.")]:
        with contextlib.suppress(OSError):
            if left.suffix == ".part" and (alone or time.time() - left.stat().st_mtime > ABANDONED):
                left.unlink()
    part = place.with_name(f".{place.name}.{os.getpid()}-{secrets.token_hex(4)}.part")
    try:
        with open(part, "xb") as file:
            file.write(data)
            if isinstance(content, bytes):
                file.flush()
                os.fsync(file.fileno())
        os.replace(part, place)
    except BaseException:
        with contextlib.suppress(OSError):
            part.unlink()
        raise


def require_writable(path: Path) -> None:
    """Raise now the OSError that writing the file would raise later; its folder is made, the file left as it is."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists():
        with open(path, "ab"):
            pass
    else:
        with open(path, "xb"):
            pass
        path.unlink()


@contextlib.contextmanager
def locked(path: Path) -> Iterator[bool]:
    """Inside, no other process or thread is inside with the same path; yields whether that is so.

    It is not where files have no locks: on Windows and some network file systems. Raises OSError where the file
    cannot be opened or is held for longer than PATIENCE.
    """
    if fcntl is None:
        yield False
        return
    # Only for reading: another user's lock file, in a directory that several share, serves as well.
    descriptor = os.open(path, os.O_RDONLY | os.O_CREAT, 0o666)
    try:
        yield _lock(descriptor, path)
    finally:
        os.close(descriptor)


def _lock(descriptor: int, path: Path) -> bool:
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise TimeoutError(f"{path} is held by another process") from None
            time.sleep(0.005)
        except OSError:
            return False
