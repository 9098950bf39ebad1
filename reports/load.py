"""Reading results files: two kinds of JSON in, checked pandas frames out.

Accepted are the JSON of pytest-benchmark with the keys that bench adds (``environment``, ``accuracy``,
``not_run``, ``counted``, ``tuned``; ``extra_info`` in every benchmark) and the tables of bench.compile (``"kind":
"compile"``), of default kernels or, where rows name their ``tile``, of main loops beside a plain GEMM's or, where
they have ``moved_over_least``, of the bytes that the weight preparation moves. Optional keys may be
missing: text columns then hold "", numbers NaN. What is needed and missing, or stated and of another kind, is a
:class:`ReportError`.
"""

from __future__ import annotations

import gzip
import itertools
import json
import lzma
import re
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from reports import journal

ACCEPTED = (
    "accepted are a results file of `pytest --benchmark-only --benchmark-json FILE`, its journal (.jsonl) "
    "and a compile table of `python -m bench.compile --json FILE`, each also as .gz or .xz"
)
COMPRESSED: dict[str, Callable[[bytes], bytes]] = {".gz": gzip.decompress, ".xz": lzma.decompress}
BROKEN = (OSError, EOFError, lzma.LZMAError, zlib.error)  # what they raise of a file that is cut off or none
# What tells one measurement from another: rows that agree in these are compared with each other.
WHERE = ["run", "suite", "pass", "net", "layer", "dtype"]

TEXT, NUMBER, ERROR, WHOLE, TRUTH, PROBLEM, OTHER = "text", "number", "error", "whole", "truth", "problem", "other"
SIZES = set("NCHWKRS")  # of a problem
DEEPEST = 20  # levels of lists and objects: ours have six, and Python's own limit depends on who calls
BENCHMARK_COLUMNS = {
    "run": NUMBER, "suite": TEXT, "pass": TEXT, "net": TEXT, "layer": TEXT, "dtype": TEXT, "contender": TEXT,
    "device": TEXT, "clock": TEXT, "label": TEXT, "count": WHOLE, "nets": OTHER,
    "published_batch": WHOLE, "flops": NUMBER, "bytes": NUMBER, "host_us": NUMBER, "peak_bytes": NUMBER,
    "first_call_seconds": NUMBER, "mhz": NUMBER, "problem": PROBLEM, "samples": OTHER, "processes": OTHER,
}  # fmt: skip
ACCURACY_COLUMNS = {
    "run": NUMBER, "suite": TEXT, "pass": TEXT, "net": TEXT, "layer": TEXT, "dtype": TEXT, "contender": TEXT,
    "tensor": TEXT, "executed_by": TEXT, "error": ERROR, "scale": ERROR, "torch_error": ERROR,
    "passed": TRUTH, "problem": PROBLEM, "beta": NUMBER, "filters_scale": NUMBER,
}  # fmt: skip
NOT_RUN_COLUMNS = {
    "run": NUMBER, "suite": TEXT, "pass": TEXT, "net": TEXT, "layer": TEXT, "dtype": TEXT, "contender": TEXT,
    "reason": TEXT,
}  # fmt: skip
COUNTED_COLUMNS = {
    "run": NUMBER, "suite": TEXT, "pass": TEXT, "net": TEXT, "layer": TEXT, "dtype": TEXT, "contender": TEXT,
    "launches": NUMBER, "bytes": NUMBER, "least_bytes": NUMBER, "counted_by": TEXT, "label": TEXT,
}  # fmt: skip
TUNED_COLUMNS = {
    "run": NUMBER, "kernel": TEXT, "net": TEXT, "layer": TEXT, "dtype": TEXT, "problem": PROBLEM, "label": TEXT,
    "default": TEXT, "unmeasured": WHOLE, "milliseconds": OTHER,
}  # fmt: skip
MOVED_COLUMNS = {
    "run": NUMBER, "kernel": TEXT, "net": TEXT, "layer": TEXT, "dtype": TEXT, "target": TEXT, "gpu": TEXT,
    "ok": TRUTH, "error": TEXT, "launches": NUMBER, "reads_per_element": NUMBER, "writes_per_element": NUMBER,
    "load_width": NUMBER, "store_width": NUMBER, "bytes_per_weight": NUMBER, "least_bytes_per_weight": NUMBER,
    "moved_over_least": NUMBER, "spills": NUMBER, "label": TEXT,
}  # fmt: skip
COMPILED_COLUMNS = {
    "run": NUMBER, "kernel": TEXT, "net": TEXT, "layer": TEXT, "dtype": TEXT, "target": TEXT, "gpu": TEXT,
    "config": TEXT, "ok": TRUTH, "error": TEXT, "registers": NUMBER, "spills": NUMBER, "shared_bytes": NUMBER,
    "mma": TEXT, "mma_count": NUMBER, "loop_instructions_per_mma": NUMBER, "loops_with_mma": NUMBER,
    "loop_instructions_per_fma": NUMBER, "ratio_to_floor": NUMBER, "tile": TEXT, "tma": TRUTH,
    "compile_seconds": NUMBER, "label": TEXT,
}  # fmt: skip


SHORTEST, LONGEST = 1e-12, 1e9  # seconds: what is beyond is no time, and its ratios no numbers
NAMES = ("suite", "kernel", "pass", "net", "layer", "dtype", "contender", "target", "reason")  # of a row, in messages
FASTEST = 10**6  # MHz: what states more is no clock
LARGEST = 10**300  # whole numbers beyond are no floats
# Halves of characters, and control characters that XML and terminals have no place for.
_UNPRINTABLE = re.compile("[\ud800-\udfff\x00-\x08\x0b\x0c\x0e-\x1f\ufffe\uffff]")


class ReportError(Exception):
    """Input that no report can be made from; the message names the file and what is accepted."""


@dataclass
class Results:
    """Everything the files hold. ``run`` in each frame is an index into ``runs``.

    ``benchmarks.samples`` are one contender's, in seconds, ``processes`` the same cut into those of each process;
    ``mhz`` is the GPU's clock beside them. ``benchmarks.nets`` maps the nets that have the layer to how often they
    do; ``net`` and ``count`` are all of them together. ``loops`` has the columns of ``compiled``: the table of main
    loops at equal tiles. ``counted``: launches and bytes of calls; ``moved``: bytes of compiled kernels. ``tuned``: by
    kernel and problem what each config took, None where it failed.
    """

    runs: list[dict[str, Any]]  # file, kind ("results", "compile"), environment, how many rows are missing
    benchmarks: pd.DataFrame
    accuracy: pd.DataFrame
    not_run: pd.DataFrame
    compiled: pd.DataFrame
    loops: pd.DataFrame
    counted: pd.DataFrame
    moved: pd.DataFrame
    tuned: pd.DataFrame


def load(paths: Iterable[Path]) -> Results:
    """Read every file. Raises :class:`ReportError` at the first that cannot be used."""
    columns = {
        "benchmarks": BENCHMARK_COLUMNS,
        "accuracy": ACCURACY_COLUMNS,
        "not_run": NOT_RUN_COLUMNS,
        "compiled": COMPILED_COLUMNS,
        "loops": COMPILED_COLUMNS,
        "counted": COUNTED_COLUMNS,
        "moved": MOVED_COLUMNS,
        "tuned": TUNED_COLUMNS,
    }
    runs: list[dict[str, Any]] = []
    rows: dict[str, dict[str, list[Any]]] = {name: {column: [] for column in of} for name, of in columns.items()}
    for run, path in enumerate(paths):
        content = _read(path)
        kind = "compile" if content.get("kind") == "compile" else "results"
        found = _compile_rows(path, content) if kind == "compile" else _result_rows(path, content)
        for name, part in found.items():
            for column, of in columns[name].items():
                rows[name][column] += [run] * len(part) if column == "run" else _column(path, part, column, of)
        environment = content.get("environment") or {}
        if not isinstance(environment, Mapping):
            raise ReportError(f"{path}: `environment` is a {type(environment).__name__}; accepted is an object")
        name = path.name.encode(errors="replace").decode()  # file systems know names that no encoding can write
        missing = _missing(path, content, sum(map(len, found.values()))) if kind == "compile" else 0
        runs.append({"file": name, "kind": kind, "environment": dict(environment), "missing": missing})
    if not runs:
        raise ReportError(f"no file given; {ACCEPTED}")
    results = Results(runs, **{name: _frame(rows[name], kinds) for name, kinds in columns.items()})
    _refuse_duplicates(results)
    return results


def _read(path: Path) -> dict[str, Any]:
    unpack = COMPRESSED.get(path.suffix, bytes)
    is_journal = (path.with_suffix("") if path.suffix in COMPRESSED else path).suffix == ".jsonl"
    try:
        text = unpack(path.read_bytes()).decode("utf-8-sig").replace("\r\n", "\n")
    except FileNotFoundError:
        raise ReportError(f"{path}: no such file; {ACCEPTED}") from None
    except (*BROKEN, ValueError) as error:  # ValueError: bytes that are no text, a name that is none
        raise ReportError(f"{path}: cannot be read ({error}); {ACCEPTED}") from None
    if not text.strip():
        raise ReportError(f"{path}: empty file; {ACCEPTED}")
    try:
        content = journal.document(text) if is_journal else json.loads(text)
    except json.JSONDecodeError as error:
        raise ReportError(f"{path}: not JSON (line {error.lineno}: {error.msg}); {ACCEPTED}") from None
    except (ValueError, RecursionError) as error:  # thousands of digits, thousands of levels
        raise ReportError(f"{path}: JSON that cannot be read ({error}); {ACCEPTED}") from None
    _refuse_extremes(path, content)
    if not isinstance(content, dict) or not ({"benchmarks", "kind"} & content.keys()):
        raise ReportError(f"{path}: has neither `benchmarks` nor `kind`; {ACCEPTED}")
    if "benchmarks" not in content and content["kind"] != "compile":
        raise ReportError(f"{path}: unknown kind {_shown(content['kind'])}; {ACCEPTED}")
    return content


def _refuse_extremes(path: Path, content: Any) -> None:
    """What JSON can say and a table or a page cannot hold, wherever it stands: looked at level by level."""
    level = [content]
    for _ in range(DEEPEST + 1):
        texts = {value for value in level if type(value) is str}  # JSON has no types but these
        if _UNPRINTABLE.search(" ".join(texts)):
            text = min(text for text in texts if _UNPRINTABLE.search(text))
            raise ReportError(f"{path}: {_shown(text)} holds a character that no page can show; accepted is text")
        for whole in (value for value in level if type(value) is int and not -LARGEST <= value <= LARGEST):
            raise ReportError(f"{path}: a whole number of {len(str(whole))} digits; accepted are those up to 1e300")
        objects = [value for value in level if type(value) is dict]
        # Most of a file are samples, which are looked at later.
        listed = [part for value in level if type(value) is list for part in value if type(part) is not float]
        level = [part for value in objects for part in (*value, *value.values())] + listed
    if level:
        raise ReportError(f"{path}: nested deeper than {DEEPEST} levels; {ACCEPTED}")


def _objects(path: Path, content: Mapping[str, Any], key: str) -> list[dict[str, Any]]:
    part = content.get(key) or []
    if not isinstance(part, list) or not all(isinstance(row, dict) for row in part):
        raise ReportError(f"{path}: `{key}` must be a list of objects")
    return part


def _need(path: Path, where: str, row: Mapping[str, Any], *keys: str) -> None:
    missing = [key for key in keys if row.get(key) in (None, "")]
    if missing:
        raise ReportError(f"{path}: {where} lacks {', '.join(f'`{key}`' for key in missing)}; {ACCEPTED}")


def _result_rows(path: Path, content: Mapping[str, Any]) -> dict[str, list[dict[str, Any]]]:
    benchmarks = []
    for index, entry in enumerate(_objects(path, content, "benchmarks")):
        where = f"benchmarks[{index}] ({entry.get('name', 'unnamed')})"
        _need(path, where, entry, "extra_info", "stats")
        info, stats = entry["extra_info"], entry["stats"]
        if not isinstance(info, dict) or not isinstance(stats, dict):
            raise ReportError(f"{path}: {where}: `extra_info` and `stats` must be objects")
        _need(path, f"{where}: extra_info", info, "suite", "contender")
        _need(path, f"{where}: stats", stats, "data")
        samples = _samples(path, where, stats["data"])
        parts = _processes(path, where, info, samples)
        nets = _nets(path, where, info)
        found = {"nets": nets, "count": sum(nets.values()), "mhz": _mhz(info), "samples": samples, "processes": parts}
        benchmarks.append({**info, **found})
    accuracy, not_run = _objects(path, content, "accuracy"), _objects(path, content, "not_run")
    counted, tuned = _objects(path, content, "counted"), _objects(path, content, "tuned")
    for index, row in enumerate(tuned):
        _need(path, f"tuned[{index}]", row, "kernel", "milliseconds")
        _require_config_times(path, f"tuned[{index}].milliseconds", row["milliseconds"])
    for index, row in enumerate(counted):
        _need(path, f"counted[{index}]", row, "suite", "contender", "launches")
    for index, row in enumerate(accuracy):
        _need(path, f"accuracy[{index}]", row, "suite", "contender", "passed")
    for index, row in enumerate(not_run):
        _need(path, f"not_run[{index}]", row, "reason")
    if not (benchmarks or accuracy or not_run):
        raise ReportError(f"{path}: holds no benchmark, no accuracy check and nothing that was not run")
    return {"benchmarks": benchmarks, "accuracy": accuracy, "not_run": not_run, "counted": counted, "tuned": tuned}


def _compile_rows(path: Path, content: Mapping[str, Any]) -> dict[str, list[dict[str, Any]]]:
    rows = _objects(path, content, "rows")
    if not rows:
        raise ReportError(f"{path}: a compile table without `rows`")
    for index, row in enumerate(rows):
        _need(path, f"rows[{index}]", row, "kernel", "target", "ok")
    return {
        "compiled": [row for row in rows if not {"tile", "moved_over_least"} & row.keys()],
        "loops": [row for row in rows if "tile" in row],
        "moved": [row for row in rows if "moved_over_least" in row],
    }


def _missing(path: Path, content: Mapping[str, Any], rows: int) -> int:
    """How many rows a table lacks that was cut off: ``planned`` says how many it was to have."""
    planned = content.get("planned", rows)
    if not _is_whole(planned):
        raise ReportError(f"{path}: `planned` is {_shown(planned)}; accepted is a whole number")
    return max(0, int(planned) - rows)


def _nets(path: Path, where: str, info: Mapping[str, Any]) -> dict[str, float]:
    """``nets``; of results that state one net, that one and its count."""
    nets = info.get("nets") or {str(info.get("net") or ""): info.get("count") or 1}
    if not isinstance(nets, Mapping) or not all(_is_whole(count) and count > 0 for count in nets.values()):
        raise ReportError(f"{path}: {where}: extra_info.nets must map nets to how often they have the layer")
    return {net: float(count) for net, count in nets.items()}


def _samples(path: Path, where: str, data: Any) -> np.ndarray:
    numbers = isinstance(data, list) and set(map(type, data)) <= {int, float}  # numpy takes true and "1" for 1
    if not numbers or not data or not all(SHORTEST <= time <= LONGEST for time in data):
        raise ReportError(
            f"{path}: {where}: stats.data must be a list of positive times in seconds, from {SHORTEST:g} to {LONGEST:g}"
        )
    return np.array(data, dtype=float)


def _require_config_times(path: Path, where: str, times: Any) -> None:
    def fits(time: Any) -> bool:
        return time is None or (_is_number(time) and SHORTEST <= time / 1000 <= LONGEST)

    if not isinstance(times, Mapping) or not all(map(fits, times.values())):
        raise ReportError(
            f"{path}: {where} must map configs to positive times in milliseconds, null for one that failed"
        )


def _processes(path: Path, where: str, info: Mapping[str, Any], samples: np.ndarray) -> list[np.ndarray]:
    """The samples of each process, which stand one after another; of one process where nothing else is stated."""
    sizes = info.get("samples_per_process") or [len(samples)]
    is_list = isinstance(sizes, list) and all(_is_whole(size) and size > 0 for size in sizes)
    if not is_list or sum(sizes) != len(samples):
        raise ReportError(f"{path}: {where}: extra_info.samples_per_process must cut stats.data into parts")
    ends = itertools.accumulate(map(int, sizes), initial=0)
    return [samples[start:end] for start, end in itertools.pairwise(ends)]


def _mhz(info: Mapping[str, Any]) -> float | None:
    """The mean of the GPU's clocks before and after, as far as they are stated."""
    states = (info.get(name) for name in ("clocks_before", "clocks_after"))
    clocks = [state.get("sm_mhz") for state in states if isinstance(state, Mapping)]
    stated = [float(clock) for clock in clocks if clock is not None and _is_number(clock) and 0 < clock < FASTEST]
    return sum(stated) / len(stated) if stated else None


def _column(path: Path, rows: Sequence[Mapping[str, Any]], name: str, kind: str) -> list[Any]:
    """One column of the rows, of its kind: text is never missing, numbers may be NaN, and only a true that is written
    as such is true."""
    values = [row.get(name) for row in rows]
    if kind == TRUTH:
        return [value is True for value in values]
    if kind == OTHER:
        return values
    accepted, fits, converted, missing = CONVERSIONS[kind]
    for row, value in zip(rows, values, strict=True):
        if value is not None and not fits(value):
            where = " ".join(str(row[name]) for name in NAMES if row.get(name))[:100]
            raise ReportError(f"{path}: {where}: `{name}` is {_shown(value)}; accepted is {accepted}")
    return [missing if value is None else converted(value) for value in values]


def _frame(columns: Mapping[str, list[Any]], kinds: Mapping[str, str]) -> pd.DataFrame:
    """The converted columns as a frame."""
    types = {NUMBER: float, ERROR: float, WHOLE: float, TRUTH: bool}
    return pd.DataFrame(
        {
            name: pd.Series(columns[name], dtype=types.get(kind, object))  # type: ignore[call-overload]
            for name, kind in kinds.items()
        }
    )


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_from_0(value: Any) -> bool:
    """NaN too: it says that there is none."""
    return _is_number(value) and not value < 0


def _is_whole(value: Any) -> bool:
    """Also 3.0: that is how some programs write 3."""
    if type(value) is int:
        return abs(value) < 2**53
    return _is_number(value) and abs(value) < 2**53 and float(value).is_integer()


def _is_problem(value: Any) -> bool:
    return isinstance(value, Mapping) and all(
        _is_whole(value[name]) and value[name] >= 0 for name in SIZES & value.keys()
    )


# kind -> (what is accepted, in words and as a check; the value in a frame; what stands for a missing one)
CONVERSIONS: dict[str, tuple[str, Callable[[Any], bool], Callable[[Any], Any], Any]] = {
    TEXT: ("text", lambda value: isinstance(value, str) or _is_number(value), str, ""),
    NUMBER: ("a number from 0 on", lambda value: _is_from_0(value) and value != np.inf, float, np.nan),
    ERROR: ("a number from 0 on", _is_from_0, float, np.nan),
    WHOLE: ("a whole number from 0 on", lambda value: _is_whole(value) and value >= 0, float, np.nan),
    PROBLEM: ("an object, its sizes whole numbers from 0 on", _is_problem, dict, None),
}


def _shown(value: Any) -> str:
    text = ascii(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _refuse_duplicates(results: Results) -> None:
    """Two times for one thing cannot both be shown, and choosing one silently would be a lie."""
    identity = results.benchmarks[[*WHERE, "device", "clock", "label", "contender"]].assign(
        problem=[json.dumps(problem, sort_keys=True) for problem in results.benchmarks["problem"]]
    )
    repeated = identity[identity.duplicated()]
    if len(repeated):
        row = repeated.iloc[0]
        name = " · ".join(str(row[key]) for key in [*WHERE[1:], "contender"] if row[key])
        raise ReportError(f"{results.runs[int(row['run'])]['file']}: more than one benchmark of {name}")
