#!/usr/bin/env bash
# benchmarks/gpu.sh FOLDER: everything that needs one CUDA device, in under eight minutes.
#
# Runs tests/gpu and the benchmarks of the workload from the checkout's root, with the python that is
# there (TANDEM_PYTHON; torch, NumPy and pytest are enough), and leaves in FOLDER:
#   tests.txt, tests.xml          the tests, as said and as JUnit
#   model.json, model.txt         training: Transformer, lengths, precision, recomputation, profile
#   sparse.json, sparse.txt       sparse tables
#   serving.json, serving.txt     scores with and without the cache
#   engine.json, engine.txt       logical workers, memory, rescales, recoveries; not in a rehearsal
#   summary.txt                   exit code and seconds of each
# Each part has a limit; one that fails does not stop the next. Exit code: that of the tests.
# Determinism levels have a script of their own, gpu_levels.sh.
set -u
out=$(mkdir -p "${1:?folder for the results}" && cd "$1" && pwd)
cd "$(dirname "$0")/.." || exit 1
python=${TANDEM_PYTHON:-python3}
device=${TANDEM_GPU_TESTS_ON:-cuda}
export PYTHONPATH=. CUBLAS_WORKSPACE_CONFIG=:4096:8 KINETO_LOG_LEVEL=99 PYTHONUNBUFFERED=1
: >"$out/summary.txt"

part() { # name, limit in seconds, command ...
    local name=$1 limit=$2 began=$SECONDS code
    shift 2
    timeout "$limit" "$@" >"$out/$name.txt" 2>&1
    code=$?
    echo "$name: exit $code after $((SECONDS - began)) s" | tee -a "$out/summary.txt"
    tail -n 25 "$out/$name.txt"
    return $code
}

# The project's own settings name plugins that may not be here; warnings are errors there as well,
# but for what is announced to change in a library one day, and for what cuBLAS says when a thread of
# autograd's is the first to use it.
cat >"$out/pytest.ini" <<'INI'
[pytest]
addopts = -ra --import-mode=importlib -p no:cacheprovider
filterwarnings =
    error
    default::DeprecationWarning
    default::FutureWarning
    default:Attempting to run cuBLAS
markers =
    slow: minutes long
    gpu: needs a CUDA device
INI
part tests 160 "$python" -m pytest -q -c "$out/pytest.ini" --rootdir . --confcutdir tests/gpu --durations 5 \
    --junit-xml "$out/tests.xml" --ignore tests/gpu/test_d2.py tests/gpu
tests=$?
smoke=()
[ "$device" = cpu ] && smoke=(--smoke)
part model 90 "$python" benchmarks/model.py --device "$device" --out "$out/model.json" \
    ${smoke[@]+"${smoke[@]}"}
part sparse 30 "$python" benchmarks/sparse.py --device "$device" --repeats 8 --out "$out/sparse.json"
part serving 40 "$python" benchmarks/serving.py --device "$device" --no-http --out "$out/serving.json"
[ "$device" = cpu ] || part engine 150 "$python" benchmarks/engine.py --device cuda \
    --out "$out/engine.json"
exit $tests
