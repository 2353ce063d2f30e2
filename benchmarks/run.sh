#!/bin/sh
# All benchmarks, on a machine that does nothing else; results go to benchmarks/results, `make tables` shows them.
# With MULAN set to a folder that holds scene and yeast in Mulan's form, the comparisons run on those too.
set -eu
cd "$(dirname "$0")/.."
bin=.venv/bin
results=benchmarks/results
for name in loss overhead kmeans dmtg branches; do
  $bin/python -m pytest "benchmarks/bench_$name.py" -q -s -W default --timeout 3600 --benchmark-json "$results/$name.json"
  $bin/python benchmarks/_anonymous.py "$results/$name.json"
done
$bin/pymtg compare --data digits --seeds 5 --out "$results/compare-digits"
if [ -n "${MULAN:-}" ]; then
  $bin/pymtg compare --data "mulan:$MULAN/scene" --groups 2 --metric roc_auc --seeds 3 --out "$results/compare-scene"
  $bin/pymtg compare --data "mulan:$MULAN/yeast" --groups 3 --metric roc_auc --seeds 3 --out "$results/compare-yeast"
fi
$bin/python benchmarks/_anonymous.py "$results"/compare-*/comparison.json
$bin/python benchmarks/make_tables.py
