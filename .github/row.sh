#!/usr/bin/env bash
# Train one row of a table and store its results: .github/row.sh NAME SETTING ...
# RESULTS is the folder to store them in, SMWM the script to run. A row that is stored already is skipped.
set -euo pipefail
cd "$(dirname "$0")/.."
stored=${RESULTS:-.github/results}/$1
if [ -e "$stored/metrics.json" ]; then exit; fi
mkdir -p runs
python "${SMWM:-smwm.py}" train --out "runs/$1" "${@:2}" > "runs/$1.log" 2>&1 || { tail -3 "runs/$1.log"; exit 1; }
mkdir -p "$stored"
cp "runs/$1/metrics.json" "runs/$1/settings.json" "$stored"
echo "$(date +%T) $1, $(grep 'all tasks' "runs/$1.log")"
