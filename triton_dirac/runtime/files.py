"""Files that outlive a process: replaced in one step, so that a kill or a full disk leaves the old one."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

ABANDONED = 60.0  # seconds: writing takes milliseconds, so an older part has lost its writer
PATIENCE = 60.0  # seconds that a lock is waited for: its holder may have been stopped


def replace(path: Path, content: str | bytes, *, alone: bool = False) -> None:
    """Write beside the path, then take its place: readers see the old file or the new one, never a part.

    A link is followed; a device or pipe is written to, and so is a file that is mounted, whose place cannot be taken.
    Folders are made. Parts that killed writers left are removed once they are old, and at once if the caller is
    ``alone``: holds a lock that all writers take. Raises OSError that names the file, and then leaves the old one as
    it was. Bytes are on the disk before they take the place.
    """
    data = content.encode() if isinstance(content, str) else content
    with _named(path):
        if _is_stream(path):
            path.write_bytes(data)
            return
        place = _place(path)
        for left in [part for part in place.parent.iterdir() if part.name.startswith(f".{place.name}.")]:
            with contextlib.suppress(OSError):
                if left.suffix == ".part" and (alone or time.time() - left.stat().st_mtime > ABANDONED):
                    left.unlink()
        with _part(place) as part:
            with open(part, "xb") as file:
                file.write(data)
                if isinstance(content, bytes):
                    file.flush()
                    os.fsync(file.fileno())
            try:
                os.replace(part, place)
            except OSError as error:
                if error.errno != errno.EBUSY:
                    raise
                place.write_bytes(data)


def read_tensors(path: str | os.PathLike[str]) -> Any:
    """What ``torch.save`` wrote, onto the CPU; only tensors, numbers, text and containers of them: nothing is executed.

    Raises OSError where the file cannot be opened, and ValueError, with a line of the reason, where it is damaged or
    holds anything else: torch raises whatever its parts run into.
    """
    import torch

    with open(path, "rb") as file:
        try:
            return torch.load(file, map_location="cpu", weights_only=True)
        except Exception as error:
            raise ValueError(str(error).partition("\n")[0] or type(error).__name__) from error


def require_writable(path: Path) -> None:
    """Raise now the OSError that ``replace`` would raise later; the file's folder is made, the file left as it is."""
    with _named(path):
        if _is_stream(path):
            if not os.access(path, os.W_OK):
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
            return
        place = _place(path)
        if place.exists():
            with open(place, "ab"):
                pass
        with _part(place) as part, open(part, "xb"):
            pass


def _is_stream(path: Path) -> bool:
    """Whether what is there is a device or a pipe; those of a shell (/dev/stdout, /dev/fd/63) lie in no folder."""
    return path.exists() and not (path.is_file() or path.is_dir())


def _place(path: Path) -> Path:
    """Where the file itself is, or will be, in a folder that is there."""
    place = Path(os.path.realpath(path))
    place.parent.mkdir(parents=True, exist_ok=True)
    return place


@contextlib.contextmanager
def _part(place: Path) -> Iterator[Path]:
    """A new name beside the file, of which nothing is left."""
    part = place.with_name(f".{place.name}.{os.getpid()}-{secrets.token_hex(4)}.part")
    try:
        yield part
    finally:
        with contextlib.suppress(OSError):
            part.unlink()


@contextlib.contextmanager
def _named(path: Path) -> Iterator[None]:
    """OSErrors name the file that was asked for, where they name none (a full disk) or the part."""
    try:
        yield
    except OSError as error:
        if not str(error.filename or ".part").endswith(".part"):
            raise
        raise OSError(error.errno, error.strerror, os.fspath(path)) from error


@contextlib.contextmanager
def locked(path: Path, patience: float | None = None) -> Iterator[bool]:
    """Inside, no other process or thread is inside with the same path; yields whether that is so.

    It is not where files have no locks: on Windows and some network file systems. The path is that of a folder that is
    there, or of a file; a file that is not there is made, and is empty. Raises OSError where it cannot be opened, and
    TimeoutError where it is held for longer than ``patience`` seconds, by default PATIENCE.
    """
    if fcntl is None:
        yield False
        return
    # Only for reading: another user's lock file, in a directory that several share, serves as well.
    descriptor = os.open(path, os.O_RDONLY | (0 if path.is_dir() else os.O_CREAT), 0o666)
    try:
        yield _lock(descriptor, path, PATIENCE if patience is None else patience)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def alone(path: Path) -> Iterator[None]:
    """Inside, nobody else is inside with the same file, there or not yet; TimeoutError at once where somebody is.

    A link is followed. The lock lies beside the file: one that is replaced or moved aside takes its own with it.
    """
    if _is_stream(path):
        yield
        return
    place = _place(path)
    beside = place.with_name(f".{place.name}.lock")
    with contextlib.ExitStack() as lock:
        try:
            lock.enter_context(locked(beside, patience=0))
        except TimeoutError:
            raise TimeoutError(f"{path} is being written by another process") from None
        lock.callback(_remove, beside)
        yield


def _remove(path: Path) -> None:
    with contextlib.suppress(OSError):
        path.unlink()


def _lock(descriptor: int, path: Path, patience: float) -> bool:
    deadline = time.monotonic() + patience
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise TimeoutError(f"{path} is in use by another process") from None
            time.sleep(0.005)
        except OSError:
            return False
