"""A visit to a GPU in one command: ``python -m bench.gpu --budget 9 --out DIR``.

stages        what a visit does, in which order, and for how long at most
visit         runs the stages, each in a process of its own, and writes down what became of them
checks        right or wrong, of many checks in parallel processes; names what faults
kernel_checks every kernel family x dtype x config on small hostile problems
call_checks   calls as users make them: replayed, prepared, captured, on other streams, misaligned
summary       the table at the end
"""
