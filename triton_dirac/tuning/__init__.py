"""Compile and measure ahead of time: ``python -m triton_dirac.tuning --help``.

The first call of a layer on a GPU compiles and measures its configs, which takes some seconds. Here that is done for
whole nets at once, and the compiling on a machine that needs no GPU. The rooms, in the order data passes through them:

=============== =================================================================================
work            what a model's convolutions have to compile and measure, from their shapes
preparation     the weight preparations, which are compiled only
run             compile all on all cores; measure on the GPU that is here
progress        how far it is
=============== =================================================================================

>>> from triton_dirac.models import diracnet
>>> works = works_of(diracnet(28, 10), image_size=32, batch=128, dtypes=["bfloat16"])
>>> tune(works, torch.device("cuda"))  # doctest: +SKIP
"""

from triton_dirac.tuning.run import compile_works, tune
from triton_dirac.tuning.work import Work, works_of

__all__ = ["Work", "compile_works", "tune", "works_of"]
