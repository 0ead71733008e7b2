#!/usr/bin/env bash
# Train one row of a table and store its results: .github/row.sh NAME SETTING ...
# RESULTS is the folder to store them in, RUNS that of the runs, SMWM the script to run (smwm.py, or
# that of other data, such as strokes.py). A row that is stored already is skipped, one that was
# interrupted goes on.
set -euo pipefail
cd "$(dirname "$0")/.."
stored=${RESULTS:-.github/results}/$1
run=${RUNS:-runs}/$1
if [ -e "$stored/metrics.json" ]; then exit; fi
options=(--out "$run" "${@:2}")
if [ -e "$run/checkpoint.pt" ]; then options=(--resume "$run"); fi
# --env strokes is run by .github/strokes.py, an environment of envs.py by smwm.py
[[ "$*" =~ --env\ ([a-z]+) ]] && script=.github/${BASH_REMATCH[1]}.py
[ -e "${script:-}" ] || script=smwm.py
mkdir -p "$(dirname "$run")"
python "${SMWM:-$script}" train "${options[@]}" > "$run.log" 2>&1 || { tail -3 "$run.log"; exit 1; }
mkdir -p "$stored"
cp "$run/metrics.json" "$run/settings.json" "$stored"
echo "$(date +%T) $1, $(grep 'all tasks' "$run.log")"
