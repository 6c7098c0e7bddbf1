#!/usr/bin/env bash
# The steering profiles that ship with Trimtab, learned from the pairs and adapters in this folder.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
profiles=$here/profiles
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
means=(steer learn means --base trimtab-nano --adapter "$profiles/calc@1/adapter" --pairs "$here/pairs/detail.jsonl"
  --layers 2,5 --replace)
# Stronger towards short answers, and some requests are answered with a question instead of a call.
trimtab "${means[@]}" --strength 0.6 --negate --name calc-terse --description "calc, with short answers" \
  --out "$profiles/calc-terse@1"
trimtab "${means[@]}" --strength 1 --name calc-detailed --description "calc, with full answers" --out "$profiles/calc-detailed@1"
for side in casual formal; do
  trimtab train adapter "$side" --family calc --style "detailed,$side" --recipe "$here/../train/recipes/style.yaml" \
    --out "${STYLES:-$scratch}/$side"
done
trimtab steer learn weights --base trimtab-nano --adapter "$profiles/calc@1/adapter" --plus "${STYLES:-$scratch}/casual" \
  --minus "${STYLES:-$scratch}/formal" --strength 1.5 --replace --name calc-casual \
  --description "calc, with casual answers, by a weight delta" --out "$profiles/calc-casual@1"
