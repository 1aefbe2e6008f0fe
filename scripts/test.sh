#!/usr/bin/env bash
# Everything that must hold before a commit lands: lint, types, import contracts, tests.
set -euo pipefail
cd "$(dirname "$0")/.."
bash scripts/setup.sh
export PATH="$PWD/.venv/bin:$PATH" OMP_NUM_THREADS=1
# Some images set it. Then each of the hundreds of processes here would compile its libraries anew.
unset PYTHONDONTWRITEBYTECODE

step() { printf '\n\033[1m[test]\033[0m %s\n' "$*"; }

step "lint"
ruff check .
ruff format --check .
step "import contracts"
lint-imports
step "unit tests, and types beside them: pyright takes a core"
pyright &
types=$!
python -m pytest tests/unit -q -m "not slow"
wait "$types"
step "integration tests: Ray, vLLM and DeepSpeed on CPU"
# Most of a file's time is the start of its engines, on one core each; a file's tests share them.
python -m pytest tests/integration tests/gpu -q -m "not slow" -n 3 --dist loadfile --no-loadscope-reorder
