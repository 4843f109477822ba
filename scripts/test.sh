#!/usr/bin/env bash
# Install what the tests need (once) and run them: bash scripts/test.sh [pytest arguments]
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/setup_env.sh requirements-test.txt
"$PYTHON" -m ruff check .
"$PYTHON" -m mypy
# A file's tests share what they have made, so a file is one process's. One process more than cores,
# because many tests wait for others.
workers=$("$PYTHON" -c 'import os; print(min(4, os.cpu_count() + 1))')
"$PYTHON" -m pytest -n "$workers" --dist loadfile --no-loadscope-reorder "$@"
