"""Worker processes and what keeps the table alive when one of them crashes or hangs."""

from __future__ import annotations

import contextlib
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue
from typing import Any

ROOT = Path(__file__).parents[2]


class Worker:
    """One worker process, started anew after it died or was killed; ``ask`` never raises for that."""

    def __init__(self, cache: str, timeout: float) -> None:
        self.timeout = timeout
        self.environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
        path = [str(ROOT), *filter(None, [self.environment.get("PYTHONPATH")])]
        self.environment |= {"PYTHONPATH": os.pathsep.join(path), "TRITON_CACHE_DIR": cache}
        self.process: subprocess.Popen[str] | None = None

    def ask(self, request: dict[str, Any]) -> dict[str, Any]:
        """The worker's answer, or {"ok": False, "error": why there is none}."""
        if self.process is None:
            self.process = self._start()
        requests, replies = self.process.stdin, self.process.stdout
        assert requests
        assert replies
        try:
            print(json.dumps(request), file=requests, flush=True)
        except BrokenPipeError:
            return {"ok": False, "error": self._stop(self.process)}
        if not select.select([replies], [], [], self.timeout)[0]:
            self._stop(self.process)
            return {"ok": False, "error": f"no answer within {self.timeout:g} s"}
        line = replies.readline()
        return json.loads(line) if line else {"ok": False, "error": self._stop(self.process)}

    def close(self) -> None:
        """End the process; its input ends first, so that an idle one leaves by itself."""
        if self.process is not None:
            self._stop(self.process)

    def _start(self) -> subprocess.Popen[str]:
        self.errors = tempfile.TemporaryFile("w+")  # noqa: SIM115 - open as long as the process runs
        return subprocess.Popen(
            [sys.executable, "-m", "bench.compile.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.errors,
            env=self.environment,
            text=True,
            start_new_session=True,
        )

    def _stop(self, process: subprocess.Popen[str]) -> str:
        """End the process and the compilers it started; says how it ended and what it printed last."""
        self.process = None
        with contextlib.suppress(BrokenPipeError):
            process.stdin.close()  # type: ignore[union-attr]
        try:
            ended = process.wait(1)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            ended = process.wait()
        process.stdout.close()  # type: ignore[union-attr]
        with self.errors as errors:
            errors.seek(0)
            last = [line.strip() for line in errors.read()[-4000:].splitlines() if line.strip()][-3:]
        how = signal.Signals(-ended).name if ended < 0 else f"exit status {ended}"
        return f"the compiling process died: {how}" + (f" ({' | '.join(last)[-400:]})" if last else "")


class Pool:
    """Workers that answer many requests. ``timeout`` is in seconds for each request.

    The compilers' cache is a new folder each time, so that compile times are those of compiling.
    """

    def __init__(self, jobs: int, timeout: float) -> None:
        self.cache = tempfile.mkdtemp(prefix="triton-dirac-compile-")
        self.workers = [Worker(self.cache, timeout) for _ in range(max(1, jobs))]
        self.idle: SimpleQueue[Worker] = SimpleQueue()
        for worker in self.workers:
            self.idle.put(worker)

    def __enter__(self) -> Pool:
        return self

    def __exit__(self, *exception: object) -> None:
        for worker in self.workers:
            worker.close()
        shutil.rmtree(self.cache, ignore_errors=True)

    def ask_all(
        self, requests: Sequence[dict[str, Any]], done: Callable[[], object] = lambda: None
    ) -> list[dict[str, Any]]:
        """Answers to all requests, in their order; ``done`` is called after each."""

        def one(request: dict[str, Any]) -> dict[str, Any]:
            worker = self.idle.get()
            try:
                return worker.ask(request)
            finally:
                self.idle.put(worker)
                done()

        with ThreadPoolExecutor(len(self.workers)) as threads:
            return list(threads.map(one, requests))
