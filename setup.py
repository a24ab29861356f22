"""Builds the operator library with CMake; the metadata is in pyproject.toml."""

from setuptools import find_namespace_packages, find_packages, setup

# The benchmarks lie beside the package and are installed inside it, so that
# `subquad bench` works wherever subquad is installed.
benchmarks = ["subquad.benchmarks"] + [
    f"subquad.benchmarks.{name}" for name in find_namespace_packages("benchmarks")
]

setup(
    cmake_source_dir=".",
    packages=find_packages("python", exclude=["subquad.benchmarks*"]) + benchmarks,
    package_dir={"": "python", "subquad.benchmarks": "benchmarks"},
)
