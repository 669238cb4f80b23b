"""From a matrix file to cells and a plan: schema, crossing, ids and order; every mistake at once."""
