"""Benchmarks of modules, one file each."""
