"""What every room's kernels share: launching, plans of calls, operator registration, autotuning, GPU targets, files."""
