"""What one quantized layer costs: pytest-benchmark over the cases of a matrix of kernels."""
