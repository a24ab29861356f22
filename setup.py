"""Builds the operator library with CMake; the metadata is in pyproject.toml."""

import os

from setuptools import find_namespace_packages, find_packages, setup
from setuptools.command.bdist_wheel import bdist_wheel

# The introspection module is the only part that needs a particular Python;
# SUBQUAD_WITH_PYBIND=0 leaves it out.
WITH_PYBIND = os.environ.get("SUBQUAD_WITH_PYBIND", "1") != "0"


class Wheel(bdist_wheel):
    """Names a wheel without the introspection module as one for every Python."""

    def get_tag(self):
        python, abi, platform = super().get_tag()
        return (python, abi, platform) if WITH_PYBIND else ("py3", "none", platform)


# The benchmarks lie beside the package and are installed inside it, so that
# `subquad bench` works wherever subquad is installed.
benchmarks = ["subquad.benchmarks"] + [
    f"subquad.benchmarks.{name}" for name in find_namespace_packages("benchmarks")
]

setup(
    cmake_source_dir=".",
    cmake_args=[f"-DSUBQUAD_WITH_PYBIND={'ON' if WITH_PYBIND else 'OFF'}"],
    cmdclass={"bdist_wheel": Wheel},
    packages=find_packages("python", exclude=["subquad.benchmarks*"]) + benchmarks,
    package_dir={"": "python", "subquad.benchmarks": "benchmarks"},
)
