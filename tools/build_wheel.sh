#!/usr/bin/env bash
# Builds the release files: the sdist, and from it a wheel for every Python.
#
#   tools/build_wheel.sh [FOLDER]      (default: dist)
#
# The wheel is built against the torch of the running environment, which needs
# `pip install ".[release]"`. It holds no introspection module, so that nothing in
# it depends on the version of Python. Of what it links, torch's libraries come
# with torch: the wheel names them and does not carry them. CUDA kernels follow
# the build's own rule; CMAKE_ARGS=-DSUBQUAD_CUDA=off leaves them out.
set -euo pipefail
cd "$(dirname "$0")/.."
output=$(realpath -m "${1:-dist}")
raw=$(mktemp -d)
trap 'rm -rf "$raw"' EXIT

# The sdist and its metadata need no torch.
mkdir "$raw/without"
echo 'raise ImportError("torch is not needed here")' >"$raw/without/torch.py"
PYTHONPATH="$raw/without" python -m build --sdist --no-isolation --outdir "$output" .
version=$(sed -n 's/^version = "\(.*\)"$/\1/p' pyproject.toml)
SUBQUAD_WITH_PYBIND=0 python -m pip wheel --no-deps --no-build-isolation \
  --wheel-dir "$raw" "$output/subquad-$version.tar.gz"
auditwheel repair --wheel-dir "$output" \
  --exclude 'libtorch*.so' --exclude 'libc10*.so' --exclude 'libgomp*.so*' \
  --exclude 'libcudart.so*' --exclude 'libcublas*.so*' "$raw"/*.whl
ls -l "$output"
