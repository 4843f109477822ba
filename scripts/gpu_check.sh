#!/usr/bin/env bash
# Measures everything about this machine's GPU: bash scripts/gpu_check.sh [--minutes 8] [--no_install]
#
# Installs what is needed (once), and runs `hidiff gpu-check` with the other arguments. The report is
# results/gpu_check/report.md. With --no_install the active environment, or python3 where there is
# none, is taken as it is.
set -euo pipefail
cd "$(dirname "$0")/.."

arguments=()
install=yes
for argument in "$@"; do
    if [ "$argument" = --no_install ]; then install=no; else arguments+=("$argument"); fi
done
if [ "$install" = yes ]; then
    source scripts/setup_env.sh requirements.txt
else
    PYTHON=${PYTHON:-$(command -v python || command -v python3)}
fi
exec "$PYTHON" -m hidiff gpu-check ${arguments[@]+"${arguments[@]}"}
