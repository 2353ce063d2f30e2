#!/bin/sh
# Everything that needs a GPU, in under 9 minutes on one: build, test, measure. The folder of the first argument, or $OUT, gets
# gpu_*.json as the figures come in, and log.txt; the JSON files also go to benchmarks/results, from where
# `python benchmarks/make_tables.py` makes the tables. A step that fails or takes too long leaves what it has, and the others
# run; the exit status says whether all was well.
#
#   sh benchmarks/run_gpu.sh [FOLDER]
#
# Needs Python with torch (CUDA), triton, pybind11 and pytest, cmake and nvcc; nothing is downloaded or installed. pytest-xdist
# makes the tests, most of whose time Triton compiles, eight times as fast; pytest-timeout ends a kernel that hangs. PYTHON
# chooses the interpreter, PYMTG_INSTALL=0 takes an installed pymtg. PYMTG_GPU_DRY=1 tries the script where there is no device.
set -u
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}
out=${1:-${OUT:-build/gpu}}
mkdir -p "$out"
out=$(cd "$out" && pwd)
work=$PWD/build/gpu-work
rm -rf "$work"
mkdir -p "$work"
log=$out/log.txt
: >"$log"
begin=$(date +%s)
planned=0
failed=""
jobs=""
# nvcc and what stands beside the interpreter (cmake, ninja) need not be on the path.
PATH=$(dirname "$("$python" -c 'import sys; print(sys.executable)')"):$PATH
command -v nvcc >/dev/null || PATH=$PATH:/usr/local/cuda/bin
export PATH PYTHONUNBUFFERED=1
# What processes compile is found by those that come after: by Triton, and by torch.compile, which runs none of its own.
export TRITON_CACHE_DIR="$work/triton" TORCHINDUCTOR_CACHE_DIR="$work/inductor" TORCHINDUCTOR_COMPILE_THREADS=1
dry=${PYMTG_GPU_DRY:+--dry-run}

say() {
  echo "$@" | tee -a "$log"
}

elapsed() {
  echo $(($(date +%s) - begin))
}

# A step may use what those before it have left of their time, never that of those behind it.
limited() {
  planned=$((planned + $1))
  name=$2
  shift 2
  start=$(elapsed)
  say "== $name: from $start s, until $planned s at most"
  timeout -k 5 $((planned > start ? planned - start : 1)) "$@" >>"$log" 2>&1
  status=$?
  tail -n 5 "$log" | cut -c -200
  say "   $name took $(($(elapsed) - start)) s, exit status $status"
  [ "$status" -eq 0 ] || failed="$failed $name"
}

# Beside the tests: what it prints and its status are looked at by `finish`.
beside() {
  name=$1
  shift
  (
    timeout -k 5 130 "$@" >"$work/$name.log" 2>&1
    echo $? >"$work/$name.status"
  ) &
  jobs="$jobs $name"
}

finish() {
  wait
  for name in $jobs; do
    status=$(cat "$work/$name.status")
    say "   $name, beside: exit status $status"
    cat "$work/$name.log" >>"$log"
    [ "$status" -eq 0 ] || case $name in warm*) ;; *) failed="$failed $name" ;; esac
  done
  jobs=""
}

measure() {
  limited "$1" "$2" "$python" "benchmarks/gpu_$2.py" --out "$out" $dry
}

has() {
  "$python" -c "import $1" 2>/dev/null
}

# Without the project's pytest options: they ask for plugins that need not be here.
tests() {
  "$@" "$python" -m pytest -c /dev/null --rootdir . --import-mode importlib -p no:cacheprovider -q -rfEs --tb=short \
    --continue-on-collection-errors --maxfail 40 $patience $parallel -k "$chosen" tests/gpu
}

timeout 80 "$python" -c "import torch, triton; torch.zeros(1, device='cuda')" >/dev/null 2>&1 & # off the disk while the compiler runs
if [ "${PYMTG_INSTALL:-1}" = 1 ]; then
  limited 90 build sh benchmarks/build_gpu.sh "$work/site"
else
  mkdir "$work/site"
fi
# The tests and benchmarks must see the package that was built, not the source folder they stand in.
export PYTHONSAFEPATH=1 PYTHONPATH="$work/site:$PWD/benchmarks:$PWD/tests"
wait
limited 40 smoke "$python" benchmarks/gpu_smoke.py
if [ "$status" -eq 2 ] && [ -z "$dry" ]; then
  say "nothing to run on"
  exit 1
fi

patience="" parallel=""
has pytest_timeout && patience="--timeout 100 --timeout-method thread" # a thread ends what hangs in the driver too
has xdist && parallel="-n $(($(nproc) > 16 ? 8 : ($(nproc) + 1) / 2)) --max-worker-restart 20"
export OMP_NUM_THREADS=1
if [ -z "$dry" ]; then
  for part in 0/3 1/3 2/3; do
    beside "warm-loss-${part%/3}" "$python" benchmarks/gpu_loss.py --warm $part
    beside "warm-backends-${part%/3}" "$python" benchmarks/gpu_backends.py --warm $part
  done
  for name in tasks linear training registers; do
    beside "warm-$name" "$python" "benchmarks/gpu_$name.py" --warm 0/1
  done
fi
chosen=test_clean
all=$parallel
parallel=${parallel:+-n 2}
tests beside sanitizer
parallel=$all
chosen="not test_clean and not addresses"
tests limited 140 tests
finish
parallel=""
chosen=addresses # takes most of the device's memory
tests limited 40 addresses
unset OMP_NUM_THREADS

measure 90 loss
measure 40 backends
measure 20 tasks
measure 25 linear
measure 25 training
measure 10 registers
timeout 10 "$python" benchmarks/suggest_dispatch.py "$out" 2>&1 | tee -a "$log"
if [ -z "$dry" ] && [ "$out" != "$PWD/benchmarks/results" ]; then
  mkdir -p benchmarks/results
  cp "$out"/gpu_*.json benchmarks/results/
  timeout 20 "$python" benchmarks/make_tables.py >>"$log" 2>&1 || failed="$failed tables"
  "$python" -c 'import _gpu_tables; [print(name, build(), sep="\n") for name, build in _gpu_tables.TABLES.items()]'
fi
grep -E "^(FAILED|ERROR) " "$log" | cut -c -160 | head -n 40
say "$(elapsed) s in all${failed:+; failed or cut short:$failed}"
[ -z "$failed" ]
