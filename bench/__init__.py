"""How the kernels and their rivals are measured: pytest-benchmark suites, run by ``pytest --benchmark-only``.

    options      what the command line selects          layers       the nets' convolutions
    contenders   the implementations compared           suite        what a suite computes, its true result
    accuracy     the check that gates timing            timing       wall clock; device events with a cold L2
    lab          one row of a comparison, start to end  environment  what it ran on
    results      the results file                       compile      kernels for GPUs that are not here
    networks     whole nets: contenders, true results   counting     launches and bytes of a call
    allocator    glibc keeps what is freed              precision    what bfloat16 leaves of small filters
    conftest     all of it, tied into pytest

Needs the extra ``bench``. Results go to ``--benchmark-json``; the package ``reports`` reads them.
"""
