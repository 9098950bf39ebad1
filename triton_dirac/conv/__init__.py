"""The convolution room: its problem, kernels, configs, launchers and operator, and the same in torch."""
