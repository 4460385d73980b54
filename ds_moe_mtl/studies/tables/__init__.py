"""The first paper's tables: what is run for them, and the comparison with the paper."""
