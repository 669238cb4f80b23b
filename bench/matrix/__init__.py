"""From a matrix file to cells and a plan, or to cases of kernels: crossing, ids and order; every mistake at once."""
