"""What every room's kernels share: launching, plans of calls, operator registration, autotuning, GPU targets, files."""

from triton_dirac.runtime import supported

supported.check()  # before anything is imported that other versions may lack
