#!/usr/bin/env bash
# The whole way of a user with own files: three tables, a YAML, a model, a page, answers, an export.
#   journey.sh FOLDER ENCODER [section.key=value ...]
# FOLDER has stars.csv, tickets.csv and pairs.csv; everything is written there. `outside.py` opens the
# exported folder in a Python that cannot import this package, and prints what it answers.
set -euo pipefail
here="$(cd "$(dirname "$0")" && pwd)"
folder="$1" encoder="$2"
shift 2
cd "$folder"

cat > run.yaml <<YAML
run: {dir: runs/mine}
tasks:
  - {name: stars, train: stars.csv, text: review, label: stars, kind: classification}
  - {name: tickets, train: tickets.csv, text: subject, label: team}
  - {name: pairs, train: pairs.csv, text: [first, second], label: likeness}
model: {kind: mt_tag, encoder: $encoder}
train: {epochs: 1, batch_size: 32, lr: 3e-4, max_length: 64, threads: 1}
YAML

ds-moe-mtl train run.yaml "$@"
ds-moe-mtl report runs/mine --output page.html
ds-moe-mtl predict runs/mine --task stars --input stars.csv --output answers.jsonl --probabilities
ds-moe-mtl export runs/mine --to huggingface --output exported

packages="$(python -c 'import sys; print(":".join(p for p in sys.path if p.endswith("site-packages")))')"
HF_MODULES_CACHE="$folder/modules" python -I -S "$here/outside.py" "$packages" exported stars stars.csv review \
    > outside.json
