#!/usr/bin/env bash
# benchmarks/gpu_levels.sh FOLDER: determinism levels on one CUDA device, in under six minutes.
#
# Runs tests/gpu/test_d2.py (orders of operations, repetition, shares of the device) and the benchmark
# of D1 against stock and D2 against D1, with the python that is there (TANDEM_PYTHON; torch with
# Triton, NumPy and pytest are enough), and leaves in FOLDER:
#   d2.txt, d2.xml                the tests, as said and as JUnit
#   levels.json, levels.txt       what D1 and D2 cost, by operator and for LONGER
#   devices.json                  the machine and its lanes
# Each part has a limit; one that fails does not stop the next. Exit code: that of the tests.
set -u
out=$(mkdir -p "${1:?folder for the results}" && cd "$1" && pwd)
cd "$(dirname "$0")/.." || exit 1
python=${TANDEM_PYTHON:-python3}
export PYTHONPATH=. KINETO_LOG_LEVEL=99 PYTHONUNBUFFERED=1

part() { # name, limit in seconds, command ...
    local name=$1 limit=$2 began=$SECONDS code
    shift 2
    timeout "$limit" "$@" >"$out/$name.txt" 2>&1
    code=$?
    echo "$name: exit $code after $((SECONDS - began)) s"
    tail -n 25 "$out/$name.txt"
    return $code
}

cat >"$out/pytest.ini" <<'INI'
[pytest]
addopts = -ra --import-mode=importlib -p no:cacheprovider
markers =
    slow: minutes long
    gpu: needs a CUDA device
INI
part d2 240 "$python" -m pytest -q -c "$out/pytest.ini" --rootdir . --confcutdir tests/gpu \
    --durations 8 --junit-xml "$out/d2.xml" tests/gpu/test_d2.py
tests=$?
part levels 80 "$python" benchmarks/levels.py --device cuda --rounds 4 --seconds 0.05 \
    --out "$out/levels.json"
part devices 30 "$python" -c "
import json
from executor.devices import parse_lanes
from executor.fingerprint import fingerprint
from executor.machine import probe
machine = probe()
lanes = parse_lanes('auto', machine) + parse_lanes('cuda:0x2:sm=50%', machine)
print(json.dumps({'machine': fingerprint(machine), 'lanes': [x.to_json() for x in lanes]}))"
cp "$out/devices.txt" "$out/devices.json"
exit $tests
