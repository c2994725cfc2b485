#!/usr/bin/env bash
# The laws in Triton's interpreter and the gate of compiled kernels, on every version of Triton that is supported:
#     tests/aot/versions.sh [VERSION...]
# Run it in the development environment. Each version gets an environment that adds to that one and leaves it as it is.
set -euo pipefail
cd "$(dirname "$0")/../.."

versions=("$@")
[ ${#versions[@]} -gt 0 ] || versions=(3.6.0 3.7.1 3.9.0)
packages=$(python -c 'import pathlib, torch; print(pathlib.Path(torch.__file__).parents[1])')
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

for version in "${versions[@]}"; do
    python -m venv "$work/$version"
    python="$work/$version/bin/python"
    own=$("$python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
    echo "import site; site.addsitedir('$packages')" > "$own/below.pth" # behind its own: what it lacks is found there
    requirements=("triton==$version") options=()
    if [[ $version == 3.6.* ]]; then # its interpreter's loops fail with a later NumPy and are deprecated in this one
        requirements+=("numpy<2.4") options+=(-W "ignore:Conversion of an array with ndim > 0:DeprecationWarning")
    fi
    "$python" -m pip install --quiet --disable-pip-version-check --no-deps "${requirements[@]}"
    "$python" -c 'import triton; print(f"\nTriton {triton.__version__}")'
    TRITON_INTERPRET=1 "$python" -m pytest -q "${options[@]}" tests/dsmr_kernels/test_laws.py tests/triton
    "$python" -m pytest -q tests/aot
done
