#!/bin/sh
# All benchmarks, on a machine that does nothing else; results go to benchmarks/results, `make tables` shows them.
# With MULAN set to a folder that holds wq, scene, yeast and bibtex in Mulan's form, the comparisons run on those too.
set -eu
cd "$(dirname "$0")/.."
bin=.venv/bin
results=benchmarks/results
for name in loss overhead kmeans dmtg branches; do
  $bin/python -m pytest "benchmarks/bench_$name.py" -q -s -W default --timeout 3600 --benchmark-json "$results/$name.json"
  $bin/python benchmarks/_anonymous.py "$results/$name.json"
done
$bin/python benchmarks/specialise_together.py
$bin/python benchmarks/planted_groups.py
$bin/python benchmarks/bench_integrations.py
$bin/python benchmarks/device_gram.py
$bin/python benchmarks/linear_head.py
$bin/python benchmarks/scale_gram.py
$bin/python benchmarks/scale_tasks.py
$bin/python benchmarks/memory_over_epochs.py
$bin/python benchmarks/profile_cost.py
$bin/python benchmarks/import_time.py
$bin/python benchmarks/specialise_ranks.py
methods=stg_soft,stg_hard,stg_joint,dmtg,dmtg_warm,dmtg_diagonal,dmtg_random,mtl,ensemble,random_groups,stl
compare() {
  name=$1
  shift
  $bin/pymtg compare --seeds 5 --methods $methods --quiet --out "$results/compare-$name" "$@"
}
compare digits --data digits
if [ -n "${MULAN:-}" ]; then
  $bin/python benchmarks/dmtg_options.py "$MULAN"
  $bin/python benchmarks/scale_real.py "$MULAN"  # delicious too
  compare wq --data "mulan:$MULAN/wq" --targets 14 --groups 3 --max-epochs 60
  compare scene --data "mulan:$MULAN/scene" --groups 2 --metric roc_auc --max-epochs 40
  compare yeast --data "mulan:$MULAN/yeast" --groups 3 --metric roc_auc --max-epochs 40
  compare bibtex --data "mulan:$MULAN/bibtex" --groups 5 --metric average_precision --hidden 64,64 --batch-size 128 --max-epochs 20
fi
$bin/python benchmarks/_anonymous.py "$results"/compare-*/comparison.json
$bin/python benchmarks/make_tables.py
