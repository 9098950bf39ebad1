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
from threading import Event
from typing import Any

ROOT = Path(__file__).parents[2]


class Worker:
    """One worker process, started anew after it died or was killed; ``ask`` never raises for that.

    All that it and its compilers write is in a folder of its own, which whoever outlives the other removes: the
    worker where this process was killed, this process else. It is new each time, so that compile times are those
    of compiling and not of reading a cache.
    """

    def __init__(self, timeout: float) -> None:
        self.timeout = timeout
        self.environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
        path = [str(ROOT), *filter(None, [self.environment.get("PYTHONPATH")])]
        self.environment["PYTHONPATH"] = os.pathsep.join(path)
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

    def kill(self) -> None:
        """From another thread than the one that asks: it gets its answer, that there is none, at once."""
        if (process := self.process) is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)

    def close(self) -> None:
        """End the process; its input ends first, so that an idle one leaves by itself."""
        if self.process is not None:
            self._stop(self.process)

    def _start(self) -> subprocess.Popen[str]:
        self.errors = tempfile.TemporaryFile("w+")  # noqa: SIM115 - open as long as the process runs
        self.folder = tempfile.mkdtemp(prefix="triton-dirac-compile-")
        own = {"TMPDIR": self.folder, "TRITON_CACHE_DIR": str(Path(self.folder) / "cache")}
        return subprocess.Popen(
            [sys.executable, "-m", "bench.compile.worker", self.folder],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.errors,
            env=self.environment | own,
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
        shutil.rmtree(self.folder, ignore_errors=True)
        with self.errors as errors:
            errors.seek(0)
            last = [line.strip() for line in errors.read()[-4000:].splitlines() if line.strip()][-3:]
        how = signal.Signals(-ended).name if ended < 0 else f"exit status {ended}"
        return f"the compiling process died: {how}" + (f" ({' | '.join(last)[-400:]})" if last else "")


class Pool:
    """Workers that answer many requests. ``timeout`` is in seconds for each request."""

    def __init__(self, jobs: int, timeout: float) -> None:
        self.workers = [Worker(timeout) for _ in range(max(1, jobs))]
        self.idle: SimpleQueue[Worker] = SimpleQueue()
        for worker in self.workers:
            self.idle.put(worker)

    def __enter__(self) -> Pool:
        return self

    def __exit__(self, *exception: object) -> None:
        for worker in self.workers:
            worker.close()

    def ask_all(
        self,
        requests: Sequence[dict[str, Any]],
        done: Callable[[int, dict[str, Any]], object] = lambda number, answer: None,
    ) -> list[dict[str, Any]]:
        """Answers to all requests, in their order; ``done(number, answer)`` is called after each, in any thread."""

        def one(number: int, request: dict[str, Any]) -> dict[str, Any]:
            worker = self.idle.get()
            try:
                answer = {} if stopped.is_set() else worker.ask(request)
            finally:
                self.idle.put(worker)
            if not stopped.is_set():
                done(number, answer)
            return answer

        stopped = Event()
        with ThreadPoolExecutor(len(self.workers)) as threads:
            try:
                return list(threads.map(one, range(len(requests)), requests))
            except BaseException:  # nobody waits minutes for the kernels that are being compiled
                stopped.set()
                for worker in self.workers:
                    worker.kill()
                raise
