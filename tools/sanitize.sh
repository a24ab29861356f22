#!/usr/bin/env bash
# Builds the library, the GoogleTest programs and the fuzz target with the address
# and undefined behaviour sanitizers, and runs them and a part of the Python tests.
#
#   tools/sanitize.sh [BUILD FOLDER] [FUZZ RUNS]   (default: build/sanitize 100000)
#
# Needs g++, GoogleTest, cmake, ninja and a Python with torch and pytest.
set -euo pipefail
cd "$(dirname "$0")/.."
build=$(realpath -m "${1:-build/sanitize}")
runs=${2:-100000}

cmake -S . -B "$build" -GNinja -DPython_EXECUTABLE="$(command -v python)" \
  -DSUBQUAD_SANITIZE=address,undefined -DSUBQUAD_TESTS=ON -DSUBQUAD_CUDA=off \
  -DSUBQUAD_WITH_PYBIND=OFF >/dev/null
cmake --build "$build"

# Only the AVX2 kernels are watched (cmake/Sanitize.cmake).
export ATEN_CPU_CAPABILITY=avx2
# What torch and Python keep until the end of the process looks like leaks.
export ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=print_stacktrace=1
"$build/tests/csrc/test_common" --gtest_brief=1
"$build/tests/csrc/test_ops" --gtest_brief=1
"$build/tests/fuzz/fuzz_arguments" 1 "$runs"

# The package with the instrumented library. Python is not instrumented: the
# runtime is loaded first, and memory comes from malloc, where it is watched.
rm -rf "$build/python"
cmake --install "$build" --prefix "$build/python" >/dev/null
cp -r python/subquad/. "$build/python/subquad/"
cp "$build/libsubquad.so" "$build/subquad/_build_info.json" "$build/python/subquad/"
LD_PRELOAD="$(g++ -print-file-name=libasan.so) $(g++ -print-file-name=libstdc++.so)" \
  PYTHONMALLOC=malloc PYTHONPATH="$build/python" \
  python -m pytest -q -p no:cacheprovider \
  -m "not cuda" tests/ops/test_window_attention_{errors,order}.py \
  tests/ops/test_merge_attention.py tests/ops/test_mask_to_spans.py tests/smoke \
  tests/ops/test_linear_attention.py::test_{sizes,no_keys,prefix_and_steps} \
  tests/ops/test_{random_features,sequence_pool}.py::test_sizes
