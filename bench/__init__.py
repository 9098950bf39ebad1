"""How the kernels and their rivals are measured: pytest-benchmark suites, run by ``pytest --benchmark-only``.

What is compared:

    nets         the nets, registered in one place      layers       their convolutions
    net_weights  all Dirac layers of a net as one       suite        what a suite computes, its true result
    contenders, net_contenders, peers, loaders          the implementations
    net_training, net_inference                         of whole nets

How a row is measured:

    lab          what is selected, done and left behind trial        one row, start to end
    obstacles    why a contender is not timed here      checker, accuracy  right or wrong, against float64
    machine      the device and its sampler             timing       wall clock; device events with a cold L2
    compiled     torch.compile, never silently eager    second_look  what is much faster than cuDNN
    clocks       clocks, heat and power                 ceilings     what the GPU can do at most
    counting     launches and bytes of a call           allocator    glibc keeps what is freed

What remains:

    journal      row by row, for --resume               results      the results file
    budget       what comes first, and what still fits  environment  what it ran on
    options      what the command line selects          conftest     all of it, tied into pytest

``precision``: what bfloat16 leaves of small filters. ``depth``, ``quantisation``, ``published``: whole nets' accuracy.
``compile``: kernels for GPUs that are not here. Needs the extra ``bench``. Results go to ``--benchmark-json``; the
package ``reports`` reads them.
"""
