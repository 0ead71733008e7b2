#!/usr/bin/env bash
# Train the rows of the README's large table that are not stored yet: .github/rows.sh [ENV ...]
# Every core trains a row of its own: on two cores that is 1.5 times as fast as one row on both.
set -euo pipefail
cd "$(dirname "$0")/.."
envs=${*:-tworoom reacher pusht cube}
for env in $envs; do  # with all cores
  python -c "import smwm; smwm.collect(smwm.settings_for(env='$env'))"
done
export OMP_NUM_THREADS=1
{
  for seed in ${SEEDS:-1 2 3}; do
    for env in $envs; do
      for method in smwm sigreg forward; do
        echo "$env-$method-s$seed --env $env --method $method --seed $seed"
        row="--env $env --method $method --seed $seed"
        case $env-$method in
          *-forward) ;;
          reacher-*) echo "reacher-h3-$method-s$seed $row --history 3" ;;
          pusht-*) echo "pusht-long-$method-s$seed $row --steps 16000" ;;
        esac
      done
    done
  done
  if [[ " $envs " == *" pusht "* ]]; then  # more data
    for seed in ${SEEDS:-1 2 3}; do
      for method in smwm sigreg; do
        row="--env pusht --method $method --frames 1200000 --seed $seed"
        echo "pusht-8k-1.2M-$method-s$seed $row --steps 8000"
        echo "pusht-1.2M-$method-s$seed $row --steps 16000"
      done
    done
  fi
} | xargs -P "$(nproc)" -L 1 .github/row.sh
other() {  # ENV DATA METHODS: rows with other data of an environment, made by DATA.py
  if [[ " $envs " != *" $1 "* ]]; then return; fi
  collect="import $2, smwm; smwm.collect(smwm.settings_for(env='$2'))"
  PYTHONPATH=.github OMP_NUM_THREADS=$(nproc) python -c "$collect"
  for seed in ${SEEDS:-1 2 3}; do
    for method in $3; do
      echo "$1-$2-$method-s$seed --env $2 --method $method --seed $seed"
    done
  done | xargs -P "$(nproc)" -L 1 .github/row.sh
}
other pusht strokes "smwm sigreg"  # the first edition's data
