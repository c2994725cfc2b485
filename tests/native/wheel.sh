#!/usr/bin/env bash
# Builds the wheel into FOLDER and tries it in empty environments: with this Python and its PyTorch, a call; with another
# version of Python (OTHER_PYTHON, or the newest that is found) and nothing else, loading the libraries.
#     tests/native/wheel.sh FOLDER        needs the development environment's python on PATH
set -euo pipefail
cd "$(dirname "$0")/../.."
folder=$(mkdir -p "$1" && cd "$1" && pwd)

python -m pip wheel --disable-pip-version-check --no-build-isolation --no-deps --quiet -w "$folder" .
wheel=$(echo "$folder"/dsmr-*-py3-none-*.whl)
ls -l "$wheel"
python - "$wheel" <<'PYTHON'
import sys, zipfile
names = zipfile.ZipFile(sys.argv[1]).namelist()
libraries = sorted(name for name in names if name.endswith((".so", ".dylib")))
assert [name.rpartition(".")[0] for name in libraries] == ["dsmr/model/native/libdsmr_native", "dsmr_kernels/backends/cpu/libdsmr_kernels"], libraries
assert not [name for name in names if "/src/" in name], "sources in the wheel"
parts = ["dsmr/demo/page.css", *(f"dsmr/music/player/{name}" for name in ("page.html", "page.css", "piano.js", "player.js"))]
assert not [part for part in parts if part not in names], "a page without its parts"
for name in ("model.safetensors", "config.json", "README.md"):
    assert f"dsmr/pretrained/pianist/{name}" in names, f"no {name} of the model that ships"
PYTHON

python -m pip install --disable-pip-version-check --no-deps --quiet --target "$folder/packages" "$wheel"
# -S: this environment's own editable installation must not come first.
site=$(python -c "import torch, pathlib; print(pathlib.Path(torch.__file__).parents[1])")
(cd "$folder/packages" && PYTHONPATH=".:$site" python -S - <<'PYTHON')
import sys, torch, dsmr_kernels
from pathlib import Path
assert Path(dsmr_kernels.__file__).is_relative_to(Path.cwd()), dsmr_kernels.__file__
q, k, v = torch.randn(3, 1, 8, 2, 16).unbind()
stack = dsmr_kernels.MemoryStack([16], lanes=1, kv_heads=2, head_dim=16, max_segment=8)
exact = dsmr_kernels.recurrent_attention(q, k, v, stack[0], impl="eager")
torch.testing.assert_close(dsmr_kernels.recurrent_attention(q, k, v, stack[0], impl="cpu"), exact)
print("the wheel's kernels work with Python", sys.version.split()[0])
PYTHON
(cd "$folder/packages" && HF_HUB_OFFLINE=1 PYTHONPATH=".:$site" python -S -m dsmr generate --seconds 20 --out "$folder/new.mid" --force)
test -s "$folder/new.mid"
echo "the wheel's model plays"

# The path of a Python of another version than this one's.
other_python() {
    local candidate mine found ask="import ensurepip, sys; print('%d.%d' % sys.version_info[:2], sys.executable)"
    mine=$(python -c "$ask")
    PYENV_VERSION=$(pyenv versions --bare 2>/dev/null | paste -sd:) # pyenv hides those that are not chosen
    export PYENV_VERSION
    for candidate in ${OTHER_PYTHON:-python3.15 python3.14 python3.13 python3.12 python3.11}; do
        found=$("$candidate" -c "$ask" 2>/dev/null) || continue
        if [ "${found%% *}" != "${mine%% *}" ]; then
            echo "${found#* }"
            return
        fi
    done
    return 1
}

if ! other=$(other_python); then
    [ -z "${OTHER_PYTHON:-}" ] || { echo "$OTHER_PYTHON is not another version of Python" >&2; exit 1; }
    echo "*** NOT CHECKED: there is no other version of Python here to install the wheel with" >&2
    exit
fi
rm -rf "$folder/other"
"$other" -m venv "$folder/other"
"$folder/other/bin/python" -m pip install --disable-pip-version-check --no-index --no-deps --quiet "$wheel"
(cd "$folder/other" && bin/python - <<'PYTHON')
import ctypes, importlib.util, pathlib, sys, sysconfig
packages = pathlib.Path(sysconfig.get_path("purelib"))
source = packages / "dsmr_kernels/backends/cpu/library.py"  # it needs no PyTorch
library = importlib.util.module_from_spec(spec := importlib.util.spec_from_file_location("library", source))
spec.loader.exec_module(library)
for isa in library.load().available:
    library.load().use(isa)
(native,) = (packages / "dsmr/model/native").glob("libdsmr_native.*")
assert ctypes.CDLL(str(native)).dsmr_native_abi() > 0
print("both libraries load with Python", sys.version.split()[0])
PYTHON
