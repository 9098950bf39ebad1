"""The worker processes of the table: ``triton_dirac.runtime.workers``, each with an empty cache.

So compile times are those of compiling and not of reading a cache.
"""

from __future__ import annotations

from triton_dirac.runtime import workers


class Pool(workers.Pool):
    """Workers that answer many requests. ``timeout`` is in seconds for each request."""

    def __init__(self, jobs: int, timeout: float) -> None:
        super().__init__("bench.compile.worker", jobs, timeout, {})
