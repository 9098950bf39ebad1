"""What every room's kernels share: launching, replaying, operator registration, autotuning, GPU targets, files."""
