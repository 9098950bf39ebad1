"""What a visit to a GPU does, in the order of its worth, and how much of the time each part may take.

A stage is a program of its own: a driver that answers no more, a hang or a crash ends one stage and not the visit.
Its limit is its share of the time that is left among the stages still to come, so that what one leaves unused goes to
the others. ``{name}`` in a command is filled in by the visit.
"""

from __future__ import annotations

from dataclasses import dataclass

SUITE = ("-m", "pytest", "--benchmark-only", "--benchmark-quiet", "-q", "--tb=line", "-p", "no:cacheprovider")
TESTS = ("-q", "--tb=no", "-rN", "-p", "bench.gpu.failing", "-p", "no:cacheprovider")
# Which contenders a wrong kernel family may be inside of: these get no time. Names as the suites'.
USED_BY = {
    "gather": ("triton-gather",),
    "tile": ("triton-tile",),
    "batch": (),
    "direct": (),
    "weight_prep": ("triton*", "DiracConv2d*", "dirac_conv2d*", "prepared*", "auto"),
}
ALL_CONVOLUTIONS = (
    "triton",
    "auto",
    "triton-split",
    "triton-materialised",
    "DiracConv2d*",
    "dirac_conv2d*",
    "prepared*",
)


@dataclass(frozen=True)
class Stage:
    """``share``: of the visit, in parts of whatever size; ``least``: seconds under which it is not begun.

    ``suite``: the file of a benchmark suite, which gets the visit's options and its own results file; ``command`` its
    own arguments then.
    """

    name: str
    what: str
    share: int
    least: int
    command: tuple[str, ...] = ()
    rehearsal: tuple[str, ...] = ()
    suite: str | None = None
    without: tuple[str, ...] = ()  # contenders that it leaves out


PEERS = ("inductor", "flag_gems")
# A row that is stopped has none of its contenders, and torch.compile takes most of a minute for a net.
COMPILED = ("*-compile", "compile*")
STAGES = (
    Stage(
        "checks",
        "right or wrong: kernels x dtypes x loaders, calls, graphs, streams",
        70,
        20,
        ("-m", "bench.gpu.checks", "--journal", "{out}/checks.jsonl", "--seconds", "{seconds}"),
        ("-m", "bench.gpu.checks", "--journal", "{out}/checks.jsonl", "--seconds", "{seconds}", "--processes", "2"),
    ),
    Stage(
        "tests",
        "the project's tests of what runs on a GPU, in parallel",
        60,
        30,
        ("-m", "pytest", "tests", *TESTS, "-m", "not cpu", "-n", "{cores}", "--dist", "worksteal"),
        ("-m", "pytest", "tests/test_reference.py", *TESTS),
    ),
    Stage(
        "tune",
        "every config compiled in parallel, then timed",
        90,
        20,
        ("-m", "triton_dirac.tuning", "--nets", "DiracNet-28-10,DiracNet-18,DiracNet-34-2", "--dtypes", "bfloat16"),
        (
            *("-m", "triton_dirac.tuning", "--compile-only", "--target", "cuda:90", "--nets", "DiracNet-34-2"),
            *("--dtypes", "bfloat16", "--layers", "64x16x16-64", "--passes", "fprop", "--cache", "{work}/kernels"),
        ),
    ),
    Stage("conv", "convolutions against cuDNN", 75, 40, suite="bench/test_conv.py", without=PEERS),
    Stage("training", "training steps of nets", 90, 60, suite="bench/test_training_step.py", without=COMPILED),
    Stage("inference", "inference, folded and not", 45, 40, suite="bench/test_inference.py", without=COMPILED),
    Stage("weight_prep_nets", "weight preparation of nets", 40, 35, suite="bench/test_weight_prep_nets.py"),
    Stage("dirac_block", "ReLU, Dirac convolution, batch-norm", 40, 35, suite="bench/test_dirac_block.py"),
    Stage("host", "what a layer costs the host", 35, 30, suite="bench/test_host_overhead.py", without=COMPILED),
    Stage(
        "peers",
        "Inductor's and FlagGems' convolutions",
        45,
        40,
        ("--contenders", "inductor,flag_gems,cudnn,triton", "--dtypes", "bfloat16"),
        suite="bench/test_conv.py",
    ),
    Stage(
        "compiled",
        "training steps of nets under torch.compile",
        60,
        90,
        (
            "--contenders",
            "reference,reference-graph,*-compile,prepared-graph",
            "--dtypes",
            "bfloat16",
            "--nets",
            "DiracNet-34-2",
        ),
        suite="bench/test_training_step.py",
    ),
)
# On a machine without a GPU the suites time what a CPU can, on one small layer.
REHEARSED = ("--nets", "DiracNet-34-2", "--batch", "1", "--dtypes", "float32")


def limits(stages: tuple[Stage, ...], left: float) -> float:
    """Seconds that the first of ``stages`` may take of ``left``: its share, or what it takes at least."""
    share = left * stages[0].share / sum(stage.share for stage in stages)
    return min(left, max(share, stages[0].least))


def wrong_contenders(wrong: dict[str, list[str]]) -> list[str]:
    """The contenders that may run a kernel of a family that is wrong."""
    found: list[str] = []
    for family in wrong:
        direction_or_name, _, loader = family.partition(" ")
        if direction_or_name in ("fprop", "dgrad", "wgrad"):
            found += [*USED_BY[loader], *ALL_CONVOLUTIONS]
        else:
            found += USED_BY.get(direction_or_name, ALL_CONVOLUTIONS)
    return sorted(set(found))
