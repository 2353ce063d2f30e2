#!/bin/sh
# Everything that needs a GPU, in under 9 minutes on one: build, test, measure. Results go to benchmarks/results/gpu_*.json,
# from where `python benchmarks/make_tables.py` makes the tables; logs to the folder of the first argument. A step that
# fails or takes too long leaves what it has, and the others run; the exit status says whether all was well.
#
#   sh benchmarks/run_gpu.sh [FOLDER]
#
# Needs Python with torch (CUDA), triton, scikit-build-core, pybind11, cmake, ninja and pytest, and nvcc;
# nothing is downloaded. PYTHON chooses the interpreter, PYMTG_INSTALL=0 leaves an installed pymtg as it is.
set -u
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}
logs=${1:-build/gpu}
mkdir -p "$logs"
failed=""

limited() {
  seconds=$1
  name=$2
  shift 2
  echo "== $name (at most $seconds s)"
  start=$(date +%s)
  timeout -k 5 "$seconds" "$@" >"$logs/$name.log" 2>&1
  status=$?
  echo "   $(($(date +%s) - start)) s, exit status $status"
  tail -n 5 "$logs/$name.log" | cut -c -200
  [ "$status" -eq 0 ] || failed="$failed $name"
}

measure() {
  limited "$1" "$2" "$python" "benchmarks/gpu_$2.py"
}

if [ "${PYMTG_INSTALL:-1}" = 1 ]; then
  limited 80 build "$python" -m pip install --no-build-isolation --no-deps -C cmake.define.PYMTG_CUDA=ON .
fi
# The tests and benchmarks must see the installed package, not the source folder they stand in.
export PYTHONSAFEPATH=1 PYTHONPATH="$PWD/benchmarks:$PWD/tests"
# Without the project's pytest options: they ask for plugins that need not be here.
limited 150 tests "$python" -m pytest -c /dev/null --rootdir . --import-mode importlib -p no:cacheprovider -q --maxfail 20 tests/gpu
measure 150 loss
measure 25 tasks
measure 55 backends
measure 30 linear
measure 40 training
"$python" benchmarks/make_tables.py || failed="$failed tables"
[ -z "$failed" ] || echo "failed or cut short:$failed"
[ -z "$failed" ]
