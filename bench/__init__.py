"""Benchmarks: what a part costs, measured beside its plain form in the same run."""
