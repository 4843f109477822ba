#!/usr/bin/env bash
# Install what the tests need (once) and run them: bash scripts/test.sh [pytest arguments]
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/setup_env.sh requirements-test.txt
"$PYTHON" -m ruff check .
"$PYTHON" -m mypy
# A file's tests share what they have made, so a file is one process's.
"$PYTHON" -m pytest -n auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder "$@"
