#!/usr/bin/env bash
# The driver built for 64-bit ARM and run in an emulator, into FOLDER. On Debian:
#     apt-get install g++-aarch64-linux-gnu qemu-user
#     tests/native/neon.sh build/neon
set -euo pipefail
cd "$(dirname "$0")/../.."
folder=$1

cmake -S . -B "$folder" -DCMAKE_TOOLCHAIN_FILE=tests/native/aarch64-linux-gnu.cmake -DDSMR_BESIDE_LOADERS=OFF \
    -DDSMR_TESTS=ON --log-level=NOTICE
cmake --build "$folder" --parallel "$(nproc)"
ctest --test-dir "$folder" --output-on-failure
