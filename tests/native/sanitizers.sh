#!/usr/bin/env bash
# The driver on every instruction set, then the tests in Python on the best one, with libraries that watch every memory
# access and every undefined operation. In a copy of the source tree, FOLDER, whose libraries are built that way.
#     tests/native/sanitizers.sh FOLDER        needs GCC, cmake and the development environment's python on PATH
set -euo pipefail
cd "$(dirname "$0")/../.."
folder=$1

mkdir -p "$folder"
git ls-files -z --cached --others --exclude-standard | xargs -0 cp --parents -t "$folder"
cd "$folder"
cmake -S . -B build -DCMAKE_BUILD_TYPE=None -DCMAKE_CXX_FLAGS="-O1 -g1" -DDSMR_SANITIZE=address,undefined -DDSMR_TESTS=ON \
    -DCMAKE_CXX_COMPILER="${CXX:-g++}" --log-level=NOTICE
cmake --build build --parallel "$(nproc)"
export UBSAN_OPTIONS=print_stacktrace=1
ctest --test-dir build --output-on-failure

# Python itself is not built that way, so the sanitizer's library comes first; what Python never frees is no leak of ours.
# -S: the environment's own editable installation must not come first.
site=$(python -c "import torch, pathlib; print(pathlib.Path(torch.__file__).parents[1])")
export PYTHONPATH=".:$site" ASAN_OPTIONS=detect_leaks=0
export LD_PRELOAD="$("${CXX:-g++}" -print-file-name=libasan.so) $("${CXX:-g++}" -print-file-name=libstdc++.so)"
python -S -c "import os; from dsmr_kernels.backends.cpu import library; assert library.load().path.is_relative_to(os.getcwd())"
python -S -m pytest -q -k "cpu or native" \
    tests/dsmr_kernels/test_laws.py tests/dsmr_kernels/backends/test_cpu.py tests/dsmr/model/test_native.py
