#!/usr/bin/env bash
# The GPU check, on a machine with CUDA: .github/gpu.sh [FOLDER]
# It runs the tests that need CUDA, measures speeds, plans with the runs of Push-T and Cube that lie
# in runs/ (trained on a CPU, say), trains SMWM in all environments but the sprite with three seeds,
# in Push-T with 16,000 steps, too, then the baselines with their presets, and then Push-T's
# other rows of 16,000 steps. It ends after LIMIT seconds (default 580; an H100 or H200 with 16 cores
# trains 26 of the rows in it).
# FOLDER (.github/results-gpu) gets a new log.txt, and results.tar anew every ten seconds, so that the
# limit costs unfinished rows alone. Unpack it there: report.py shows those that the CPU has, too.
# TINY=1 tries the script on any machine with tiny settings.
set -uo pipefail
cd "$(dirname "$0")/.."
folder=${1:-.github/results-gpu} end=$((SECONDS + ${LIMIT:-580})) tiny="" vit="--size 224"
RESULTS=$(mktemp -d) RUNS=$(mktemp -d)
export RESULTS RUNS OMP_NUM_THREADS=2
if [ "${TINY:-}" ]; then
  tiny="--frames 800 --steps 6 --batch 8 --probe-epochs 2 --tasks 4 --samples 8 --elites 4 --iterations 2"
  vit="--size 64 --batch 4"
fi

limited() { timeout $((end > SECONDS ? end - SECONDS : 1)) "$@"; }
pack() { tar cf "$folder/new.tar" -C "$RESULTS" . && mv "$folder/new.tar" "$folder/results.tar"; }
row() { echo "$1${tiny:+ $tiny}"; }  # a blank at the end would join the next line
rows() {
  for seed in 1 2 3; do
    for env in cube pusht reacher tworoom dotworld; do
      row "$env-smwm-s$seed --env $env --seed $seed"
    done
    row "reacher-h3-smwm-s$seed --env reacher --history 3 --seed $seed"
  done
  row "pusht-long-smwm-s1 --env pusht --seed 1 --steps 16000"
  for method in sigreg forward; do
    for seed in 1 2 3; do
      for env in cube pusht reacher tworoom; do
        row "$env-$method-s$seed --env $env --method $method --seed $seed"
      done
      [ $method = forward ] || row "reacher-h3-sigreg-s$seed --env reacher --method sigreg --history 3 --seed $seed"
    done
  done
  for seed in 1 2 3; do
    for method in smwm sigreg; do
      [ $method$seed = smwm1 ] ||  # above
        row "pusht-long-$method-s$seed --env pusht --method $method --seed $seed --steps 16000"
    done
  done
}

mkdir -p "$folder"
{
  limited pytest -q -k cuda
  for env in cube pusht reacher tworoom; do  # with all cores
    [ "$tiny" ] || limited env -u OMP_NUM_THREADS python -c "import smwm; smwm.collect(smwm.settings_for(env='$env'))"
  done
  limited python .github/bench.py --env pusht $tiny
  limited python .github/bench.py --env pusht --networks vit --width 384 $tiny $vit
  for run in runs/{pusht,cube}-smwm-s?; do
    [ "$tiny" ] || [ ! -e "$run" ] || limited python .github/samples.py "$run" 2
  done
  while sleep 10; do pack; done &
  rows | limited xargs -P 8 -L 1 .github/row.sh  # evaluation keeps the cores busy, not the GPU
  kill %% && pack
  echo "ended after $SECONDS s"
} 2>&1 | tee "$folder/log.txt"
