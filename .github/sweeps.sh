#!/usr/bin/env bash
# The sweeps of the README's figures that are not stored yet, into .github/sweeps: success and R²
# against lam (seed 0, on which settings are chosen), and success against the distance of the goals,
# for the runs of rows.sh with seed 1, which must lie in runs/.
set -euo pipefail
cd "$(dirname "$0")/.."
export RESULTS=.github/sweeps OMP_NUM_THREADS=1
export MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=20000000000  # see rows.sh
for env in dotworld tworoom reacher; do
  for lam in 0 0.1 1 10 100; do
    echo "$env-lam$lam --env $env --lam $lam --seed 0"
  done
done | xargs -P "$(nproc)" -L 1 .github/row.sh

goals() {  # RUN OFFSET
  stored="$RESULTS/$(basename "$1")-goal$2"
  if [ -e "$stored/metrics.json" ]; then return; fi
  python smwm.py evaluate "$1" --goal-offset "$2" --probe-epochs 1 > /dev/null 2>&1
  mkdir -p "$stored"
  cp "$1/metrics-goal_offset$2-probe_epochs1.json" "$stored/metrics.json"
  echo "$stored"
}
export -f goals
for offset in 40 55 70 85; do
  for run in runs/{tworoom,reacher,pusht,cube}-*-s1; do echo "$run $offset"; done
done | xargs -P "$(nproc)" -L 1 bash -c 'goals "$@"' goals
