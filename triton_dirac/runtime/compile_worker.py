"""``python -m triton_dirac.runtime.compile_worker FOLDER``: compiles the launches that it reads into Triton's cache."""

from __future__ import annotations

import base64
import pickle
import sys
from typing import Any

from triton_dirac.runtime.launch import Launch
from triton_dirac.runtime.launchers import build_launcher
from triton_dirac.runtime.specialise import specialise, with_kernel, without_tensors
from triton_dirac.runtime.targets import Target
from triton_dirac.runtime.workers import serve


def request(launch: Launch, target: Target) -> dict[str, Any]:
    """What a worker is asked: it crosses as JSON, but launches hold types that only pickle knows."""
    return {"launch": base64.b64encode(pickle.dumps((without_tensors(launch), target))).decode()}


def answer(asked: dict[str, Any]) -> dict[str, Any]:
    launch, target = pickle.loads(base64.b64decode(asked["launch"]))
    specialised = specialise(with_kernel(launch), target)
    build_launcher(specialised.source, specialised.compile())
    return {"ok": True}


if __name__ == "__main__":
    serve(answer, sys.argv[1])
