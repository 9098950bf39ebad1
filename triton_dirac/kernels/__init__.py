"""Triton kernels, one file per family: the kernel, its launcher, its own flops and bytes."""
