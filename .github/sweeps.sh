#!/usr/bin/env bash
# The sweeps that are not stored yet, into .github/sweeps: lam and rate of either method by short runs,
# success and R² against lam (both on seed 0, on which settings are chosen), the paper's lam, Push-T
# with more data and steps, other encoders (deeper.py), other rounding (rounding.py), and success
# against the distance of the goals. The last needs the runs of rows.sh with seed 1 in runs/.
# Names with grasps and oracle are of Cube's former data and simulation, and no longer made here: see
# this file at commit a7ba3ed. stiff-* are Cube's rows with the hard contacts of commit 992a0ed.
# gpu-pusht-8k-* and gpu-grasps-* are rows that row.sh made on a GPU.
set -euo pipefail
cd "$(dirname "$0")/.."
export RESULTS=.github/sweeps OMP_NUM_THREADS=1
short="--seed 0 --tasks 200 --probe-epochs 50"
tune() {  # ENV METHOD LAM RATE STEPS, some 0.3 of the preset's steps
  echo "tune-$1-$2-lam$3-lr$4 --env $1 --method $2 --lam $3 --lr $4 --steps $5 $short"
}
{
  while read -r env steps; do
    for lam in 1 10 100; do tune "$env" smwm $lam 2e-3 "$steps"; done
    for lam in 0.03 0.09 0.3; do tune "$env" sigreg $lam 2e-3 "$steps"; done
    for rate in 1e-3 4e-3; do
      tune "$env" smwm 10 $rate "$steps"
      tune "$env" sigreg 0.09 $rate "$steps"
    done
  done <<< $'tworoom 300\nreacher 600\npusht 1500\ncube 1500'
  for lam in 0 0.1 30; do tune pusht smwm $lam 2e-3 1500; done
  tune cube smwm 0.1 2e-3 1500
  for rate in 1e-3 4e-3; do tune pusht smwm 30 $rate 1500; done
  tune pusht smwm 10 8e-3 1500
  tune pusht sigreg 0.09 8e-3 1500
} | xargs -P "$(nproc)" -L 1 .github/row.sh
long() {  # ENV RATE, all steps of the preset
  echo "long-$1-sigreg-lam0.09-lr$2 --env $1 --method sigreg --lr $2 --seed 0 --tasks 300"
}
{  # all steps: the default and the best of SIGReg's rates, data, the paper's lam and more steps
  for rate in 2e-3 4e-3; do long pusht $rate; done
  for rate in 1e-3 2e-3; do long tworoom $rate; done
  echo "long-pusht-smwm-0.6M --env pusht --seed 0 --tasks 300"
  echo "long-pusht-smwm-1.2M --env pusht --frames 1200000 --seed 0 --tasks 300"
  for seed in 1 2 3; do
    echo "cube-lam1-smwm-s$seed --env cube --lam 1 --seed $seed"
    echo "pusht-lam30-smwm-s$seed --env pusht --lam 30 --seed $seed"
    echo "pusht-8k-smwm-s$seed --env pusht --steps 8000 --seed $seed"
  done
} | xargs -P "$(nproc)" -L 1 .github/row.sh

.github/row.sh pusht-32k-smwm-s1 --env pusht --steps 32000 --seed 1  # too many steps
.github/row.sh pusht-1.2M-32k-smwm-s1 --env pusht --frames 1200000 --steps 32000 --seed 1  # not too many
for env in pusht cube; do  # worse in Push-T, better probes in Cube
  deeper="--networks deeper --decay 0.5 --steps 16000"
  SMWM=.github/deeper.py .github/row.sh "$env-deeper-smwm-s1" --env $env $deeper --seed 1
done

# Cube on a quarter of its data: as it is, with AdamW instead of Muon, with an arm in the picture
small="--frames 100000 --steps 1500 --tasks 200 --probe-epochs 50"
rows() {  # NAME SETTING ..., for both methods and two seeds
  for method in smwm sigreg; do
    for seed in 0 1; do echo "$1-$method-s$seed --method $method --seed $seed ${*:2}"; done
  done | xargs -P "$(nproc)" -L 1 .github/row.sh
}
rows small-cube --env cube "$small"
SMWM=.github/adamw.py rows small-adamw --env cube --lr 1e-3 "$small"
.github/row.sh small-arm-sigreg-s0 --env arm --method sigreg --seed 0 $small

rounding() {  # NAME KIND ENV SEED [SETS OF SAMPLES]
  if [ -e "$RESULTS/$1/samples.txt" ]; then return; fi
  export KIND=$2
  SMWM=.github/rounding.py .github/row.sh "$1" --env "$3" --seed "$4"
  PYTHONPATH=.github python -c "import rounding, samples; samples.main()" "runs/$1" "${5:-4}" \
    2> /dev/null > "runs/$1/samples.txt"
  cp "runs/$1/samples.txt" "$RESULTS/$1"
}
rounding nudged-pusht-s1 nudge pusht 1

for env in dotworld tworoom reacher; do
  for lam in 0 0.1 1 10 100; do
    echo "$env-lam$lam --env $env --lam $lam --seed 0"
  done
done | xargs -P "$(nproc)" -L 1 .github/row.sh

goals() {  # RUN OFFSET
  stored="$RESULTS/$(basename "$1")-goal$2"
  if [ -e "$stored/metrics.json" ]; then return; fi
  python smwm.py evaluate "$1" --goal-offset "$2" --probe-epochs 1 > /dev/null 2>&1 &&
    mkdir -p "$stored" &&
    cp "$1/metrics-probe_epochs1-goal_offset$2.json" "$stored/metrics.json" &&
    echo "$stored"
}
export -f goals
for offset in 40 55 70 85; do
  for run in runs/{tworoom,reacher,pusht,cube}-{smwm,sigreg,forward}-s1; do
    echo "$run $offset"
  done
done | xargs -P "$(nproc)" -L 1 bash -c 'goals "$@"' goals
