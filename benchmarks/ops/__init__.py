"""Benchmarks of operators, one file each."""
