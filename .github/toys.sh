#!/usr/bin/env bash
# Train the rows of the README's dot world table that are not stored yet.
set -euo pipefail
cd "$(dirname "$0")/.."
for method in smwm sigreg forward; do
  .github/row.sh "dotworld-$method-s0" --method "$method"
done
for variant in independent2 coupled distractor static combined; do
  .github/row.sh "dotworld-$variant-smwm-s0" --variant "$variant"
done
.github/row.sh sprite-smwm-s0 --env sprite
for variant in none x xy; do
  .github/row.sh "sprite-$variant-smwm-s0" --env sprite --variant "$variant"
done
