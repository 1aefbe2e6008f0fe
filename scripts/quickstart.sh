#!/usr/bin/env bash
# Sets up and trains the built-in tiny policy in both modes; extra arguments go to the launcher.
set -euo pipefail
cd "$(dirname "$0")/.."
bash scripts/setup.sh
# Some images set it. Then each of the run's processes would compile its libraries anew.
unset PYTHONDONTWRITEBYTECODE
exec .venv/bin/python -m rl.launch config=hybrid_50_50.yaml "$@"
