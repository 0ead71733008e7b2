#!/usr/bin/env bash
# The GPU check, on a machine with CUDA: .github/gpu.sh [FOLDER]
# It runs the tests that need CUDA, measures speeds, and trains SMWM in all environments with three
# seeds, then in Push-T and Cube four times as long. It ends after LIMIT seconds (default 580).
# FOLDER (.github/results-gpu) gets log.txt, and results.tar anew every ten seconds, so that the
# limit costs unfinished rows alone. TINY=1 tries the script on any machine with tiny settings.
set -uo pipefail
cd "$(dirname "$0")/.."
folder=${1:-.github/results-gpu} end=$((SECONDS + ${LIMIT:-580})) tiny="" vit="--size 224"
RESULTS=$(mktemp -d)
export RESULTS OMP_NUM_THREADS=4
if [ "${TINY:-}" ]; then
  tiny="--frames 800 --steps 6 --batch 8 --probe-epochs 2 --tasks 4 --samples 8 --elites 4 --iterations 2"
  vit="--size 64 --batch 4"
fi

limited() { timeout $((end > SECONDS ? end - SECONDS : 1)) "$@"; }
pack() { tar cf "$folder/new.tar" -C "$RESULTS" . && mv "$folder/new.tar" "$folder/results.tar"; }
rows() {  # rows train four at a time: evaluation keeps the cores busy, not the GPU
  for seed in 1 2 3; do
    for env in cube pusht reacher tworoom dotworld; do
      echo "$env-smwm-s$seed --env $env --seed $seed $tiny"
    done
  done
  for env in cube pusht; do
    echo "$env-long-smwm-s1 --env $env --seed 1 --steps 20000 $tiny"
  done
}

mkdir -p "$folder"
{
  limited pytest -q -k cuda
  for env in cube pusht reacher; do  # with all cores
    [ "$tiny" ] || limited env -u OMP_NUM_THREADS python -c "import smwm; smwm.collect(smwm.settings_for(env='$env'))"
  done
  limited python .github/bench.py --env pusht $tiny
  limited python .github/bench.py --env pusht --networks vit --width 384 $tiny $vit
  while sleep 10; do pack; done &
  rows | limited xargs -P 4 -L 1 .github/row.sh
  kill %% && pack
  echo "ended after $SECONDS s"
} 2>&1 | tee "$folder/log.txt"
