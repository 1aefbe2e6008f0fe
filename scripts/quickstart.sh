#!/usr/bin/env bash
# Sets up and trains the built-in tiny policy in both modes; extra arguments go to the launcher.
set -euo pipefail
cd "$(dirname "$0")/.."
bash scripts/setup.sh
exec .venv/bin/python -m rl.launch config=hybrid_50_50.yaml "$@"
