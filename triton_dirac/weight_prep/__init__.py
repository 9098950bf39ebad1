"""The weight-preparation room: kernels for one layer and for a whole net, the operator, and the same in torch."""
