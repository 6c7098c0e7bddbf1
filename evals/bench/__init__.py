"""Benchmarks: speed as a ratio within one run, against what else does the same; sizes and cards against their bars."""
