#!/usr/bin/env bash
# Install what the tests need (once) and run them: bash scripts/test.sh [pytest arguments]
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/setup_env.sh requirements-test.txt
"$PYTHON" -m ruff check .
"$PYTHON" -m pytest "$@"
