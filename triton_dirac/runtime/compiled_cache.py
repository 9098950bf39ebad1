"""Triton's cache of compiled kernels, made to work where it lies.

Triton writes absolute paths into its groups of files (``<cache>/<key>/__grp__<kernel>.json``), so that a cache that was
copied to another folder or machine would be compiled again. What ``compile_ahead`` fills is marked with the path that
it has; where that is another one now, the groups' paths are put right, once.

What else must be the same for a kernel to be found: Triton with its ptxas, the GPU's architecture, this package's
kernels, and variables of the environment that change code (TRITON_DEFAULT_FP_FUSION and the like).
"""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import triton

from triton_dirac.runtime import files

MARK = "triton_dirac.json"
UNREADABLE = (ValueError, KeyError, TypeError, RecursionError)  # what is raised for a file that is not ours


def directory() -> Path:
    """TRITON_CACHE_DIR, else ~/.triton/cache."""
    return Path(triton.knobs.cache.dir)


def mark(cache: Path | None = None) -> None:
    """Note where the cache is, for ``relocate_if_moved`` elsewhere."""
    cache = cache or directory()
    text = json.dumps({"path": str(cache.resolve())})
    if _marked(cache) != str(cache.resolve()):
        try:
            files.replace(cache / MARK, text)
        except OSError as error:
            warnings.warn(f"the compiled kernels are not marked with their place: {error}", stacklevel=2)


def relocate_if_moved(cache: Path | None = None) -> int:
    """``relocate``, if the cache is marked with another path than it has."""
    cache = cache or directory()
    marked = _marked(cache)
    return 0 if marked is None or marked == str(cache.resolve()) else relocate(cache)


def relocate(cache: Path | None = None) -> int:
    """Put the groups' paths right and mark the cache; returns how many groups had wrong ones.

    A folder that cannot be written is warned of, and its kernels are compiled again.
    """
    cache = cache or directory()
    changed = 0
    try:
        for group in cache.glob("*/__grp__*.json"):
            changed += _put_right(group)
    except OSError as error:
        warnings.warn(f"compiled kernels in {cache} are not used: {error}", stacklevel=2)
        return changed
    if cache.is_dir():
        mark(cache)
    return changed


def _put_right(group: Path) -> bool:
    """Name the group's files where they lie, if they are complete."""
    try:
        paths = json.loads(group.read_text(encoding="utf-8"))["child_paths"]
        right = {name: str(group.parent.resolve() / name) for name in paths}
    except UNREADABLE:  # half a file, of a Triton that was killed: Triton compiles again
        return False
    if paths == right or not all(Path(path).exists() for path in right.values()):
        return False
    files.replace(group, json.dumps({"child_paths": right}))
    return True


def _marked(cache: Path) -> str | None:
    try:
        return json.loads((cache / MARK).read_text(encoding="utf-8"))["path"]
    except (OSError, *UNREADABLE):
        return None
