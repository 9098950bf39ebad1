"""Processes that compile, and what keeps the caller alive when one of them crashes or hangs.

A request and its answer are one line of JSON each. Processes are spawned: one that interprets kernels cannot compile
them, and one that is forked would have the caller's GPU and threads in a state of which nobody knows.
"""

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
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue
from threading import Event
from typing import Any, TypeVar

GRACE = 0.5  # seconds that an idle worker has to leave by itself
# Ends a worker and the compilers it started, then removes its folder: python -c END PROCESS FOLDER
END = """
import contextlib, os, shutil, signal, sys, time
with contextlib.suppress(ProcessLookupError):
    os.killpg(int(sys.argv[1]), signal.SIGKILL)
time.sleep(0.2)
shutil.rmtree(sys.argv[2], ignore_errors=True)
"""
STARTING = 120  # seconds until a process must be ready: it imports torch and Triton
# How a request may end without the worker's answer, under "ended": the process could not be started, was killed or did
# not answer in time (which says little about the request), or crashed.
UNSTARTED, LOST, CRASHED = "unstarted", "lost", "crashed"


class Worker:
    """One process that runs ``python -m module FOLDER``, started anew after it died or was killed.

    ``timeout`` is in seconds for each request; ``environment`` is added to the caller's. All that it and its compilers
    write is in a folder of its own, which whoever outlives the other removes: the worker where the caller was killed,
    the caller else. Triton's cache is there too, and so empty, unless ``environment`` names another.
    """

    def __init__(self, module: str, timeout: float, environment: Mapping[str, str]) -> None:
        self.module, self.timeout = module, timeout
        # It imports what the caller can, and sees no GPU: a context on it would take time and memory.
        without = {"TRITON_INTERPRET", "PYTHONPATH"}
        self.environment = {name: value for name, value in os.environ.items() if name not in without}
        self.environment |= {
            "PYTHONPATH": os.pathsep.join(path or _here() for path in sys.path),
            "PYTHONSAFEPATH": "1",
            "OMP_NUM_THREADS": "1",
            **dict.fromkeys(("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES"), ""),
        }
        self.named = dict(environment)
        self.process: subprocess.Popen[str] | None = None

    def ask(self, request: dict[str, Any]) -> dict[str, Any]:
        """The worker's answer, or {"ok": False, "error": why there is none, "ended": how}; never raises for that."""
        if self.process is None and (failure := self._start()):
            return failure
        process = self.process
        assert process
        try:
            print(json.dumps(request), file=process.stdin, flush=True)
        except BrokenPipeError:
            return self._died(process)
        return self._answer(process, self.timeout)

    def kill(self) -> None:
        """From another thread than the one that asks: it gets its answer, that there is none, at once."""
        if (process := self.process) is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)

    def close(self) -> None:
        """End the process; its input ends first, so that an idle one leaves by itself."""
        if self.process is not None:
            self._stop(self.process)

    def _start(self) -> dict[str, Any] | None:
        """Start the process; why it is not ready, if it is not."""
        try:
            self.folder = tempfile.mkdtemp(prefix="triton-dirac-compile-")
        except OSError as error:
            return {"ok": False, "error": f"no compiling process: {error}", "ended": UNSTARTED}
        own = {"TMPDIR": self.folder, "TRITON_CACHE_DIR": str(Path(self.folder) / "cache")}
        # Open as long as the process runs; compilers write what they like.
        self.errors = tempfile.TemporaryFile("w+", errors="replace")  # noqa: SIM115
        try:
            self.process = subprocess.Popen(
                [sys.executable, "-m", self.module, self.folder],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self.errors,
                env=self.environment | own | self.named,
                text=True,
                start_new_session=True,
            )
        except OSError as error:
            self.errors.close()
            shutil.rmtree(self.folder, ignore_errors=True)
            return {"ok": False, "error": f"no compiling process: {error}", "ended": UNSTARTED}
        answer = self._answer(self.process, STARTING)
        return None if answer["ok"] else answer | {"ended": UNSTARTED}

    def _answer(self, process: subprocess.Popen[str], timeout: float) -> dict[str, Any]:
        replies = process.stdout
        assert replies
        if not select.select([replies], [], [], timeout)[0]:
            self._stop(process)
            return {"ok": False, "error": f"no answer within {timeout:g} s", "ended": LOST}
        for line in replies:  # what the interpreter's site hooks print comes before the first
            with contextlib.suppress(ValueError):
                answer = json.loads(line)
                if isinstance(answer, dict) and "ok" in answer:
                    return answer
        return self._died(process)

    def _died(self, process: subprocess.Popen[str]) -> dict[str, Any]:
        how, last = self._stop(process)
        error = f"the compiling process died: {how}" + (f" ({last})" if last else "")
        # The kernel kills for memory, and people kill.
        return {"ok": False, "error": error, "ended": LOST if how in ("SIGKILL", "SIGTERM") else CRASHED}

    def _stop(self, process: subprocess.Popen[str]) -> tuple[str, str]:
        """End the process and the compilers it started: (how it ended, what it printed last)."""
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
        return signal.Signals(-ended).name if ended < 0 else f"exit status {ended}", " | ".join(last)[-400:]


Own = TypeVar("Own", bound="Pool")


class Pool:
    """Up to ``jobs`` workers that answer many requests; each starts with its first."""

    def __init__(self, module: str, jobs: int, timeout: float, environment: Mapping[str, str]) -> None:
        self.workers = [Worker(module, timeout, environment) for _ in range(max(1, jobs))]
        self.idle: SimpleQueue[Worker] = SimpleQueue()
        for worker in self.workers:
            self.idle.put(worker)

    def __enter__(self: Own) -> Own:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
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


def serve(answer: Callable[[dict[str, Any]], dict[str, Any]], folder: str) -> None:
    """A worker's life: answer requests until the input ends, then remove ``folder``. What compilers print goes to the
    error stream."""
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    requests: SimpleQueue[str | None] = SimpleQueue()
    threading.Thread(target=_listen, args=(requests, folder), daemon=True).start()
    try:
        print(json.dumps({"ok": True}), file=replies, flush=True)
        for line in iter(requests.get, None):
            print(json.dumps(_reply(answer, line)), file=replies, flush=True)
    except BrokenPipeError:  # whoever asked is gone
        pass
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _reply(answer: Callable[[dict[str, Any]], dict[str, Any]], line: str) -> dict[str, Any]:
    try:
        return answer(json.loads(line))
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        return {"ok": False, "error": describe(error)}


def _listen(requests: SimpleQueue[str | None], folder: str) -> None:
    """Pass the input on. It ends when the asking process ends, killed or not: then nobody waits for a kernel that may
    take minutes, or hang, and nobody else removes the folder."""
    for line in sys.stdin:
        requests.put(line)
    requests.put(None)
    time.sleep(GRACE)  # an idle worker is gone by now
    if os.getpgid(0) == os.getpid():
        # From outside: what is being compiled writes into the folder, and makes it anew, until it is stopped.
        subprocess.Popen([sys.executable, "-I", "-c", END, str(os.getpid()), folder], start_new_session=True)


def _here() -> str:
    """The working directory, or nothing where it has been removed."""
    try:
        return os.getcwd()
    except FileNotFoundError:
        return ""


def describe(error: BaseException) -> str:
    """The first cause's kind and words, and where: Triton quotes pages of source between them."""
    cause, where = error, ""
    while cause.__cause__ is not None:
        cause = cause.__cause__
    lines = [line.strip() for line in str(cause).splitlines() if line.strip(" ^")]
    if cause is not error or len(lines) > 3:
        where = f" ({str(error).strip().splitlines()[0]})"
    return f"{type(cause).__name__}: {' | '.join(lines[-2:])[:500]}{where}"
