"""Builds the operator library with CMake; the metadata is in pyproject.toml."""

from setuptools import setup

setup(cmake_source_dir=".")
