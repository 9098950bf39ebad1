"""Compile the kernels for GPUs that are not here and read their machine code; needs no GPU.

``python -m bench.compile`` prints the table and, with ``--json``, writes it; ``--loops`` prints the main
loops beside those of a plain GEMM and of peers; ``--configs`` compiles every config of the tuning tables;
``--bytes`` counts the global bytes that a weight preparation moves.
The rooms, in the order data passes through them:

=========== ===================================================================================
selection   what the command line names: an error where that is nothing
jobs        what to compile: kernel, layer, dtype and target, as plain data
plans       in the worker: plain data -> planned launches on meta tensors (our kernels)
floors      in the worker: the GEMMs that the loops are compared with
peers       in the worker: other people's convolution kernels, read from their installed packages
worker      the process that compiles: launch -> the JIT's own specialisation -> binary -> counts
pool        starts workers, gives them jobs, survives their crashes and hangs
listing     an assembly listing: instructions, labels, loops
counts      what is counted of a listing
sass        NVIDIA: binary -> listing, registers, spills
amdgcn      AMD: assembly text -> listing, registers, spills
run         jobs -> rows: plan all, compile each distinct kernel once
loops       the second table: main loops at equal tiles
configs     every config of the tuning tables: registers, spills, shared memory
table       rows -> rich tables
=========== ===================================================================================
"""
