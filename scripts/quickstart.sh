#!/usr/bin/env bash
# From nothing to restored photographs on a CPU: bash scripts/quickstart.sh [--fresh]
#
# Installs what is needed (once), makes a small data set, restores a photograph with the bundled
# model, trains both stages of a tiny HI-Diff, restores and scores held-out photographs with that,
# and reports. An interrupted run goes on where it was; --fresh archives earlier trainings and
# trains anew.
set -euo pipefail
cd "$(dirname "$0")/.."

case "${1:-}" in
"" | --fresh) ;;
*)
    echo "usage: bash scripts/quickstart.sh [--fresh]" >&2
    exit 2
    ;;
esac

source scripts/setup_env.sh requirements.txt
started=$SECONDS

train() {
    "$PYTHON" train.py -opt "$1" --auto_resume || {
        code=$?
        # Stopped by a signal or Ctrl-C, and saved.
        [ "$code" -ne 75 ] || echo "interrupted; the same command goes on from here" >&2
        exit "$code"
    }
}

if [ "${1:-}" = --fresh ]; then
    for stage in S1 S2; do
        folder=experiments/quickstart_$stage
        [ ! -e "$folder" ] || mv "$folder" "${folder}_archived_$(date +%Y%m%d_%H%M%S)"
    done
fi

echo "== data: photographs of scikit-image, with the blur of a shaking camera"
"$PYTHON" -m hidiff prepare quickstart
echo "== the bundled model restores a photograph"
photographs=(datasets/quickstart/test/input/*.png)
"$PYTHON" -m hidiff restore "${photographs[0]}" -m bundled -o results/quickstart_bundled --compare --overwrite
echo "look at results/quickstart_bundled/compare.html; what follows trains a much smaller model, to show how"
echo "== stage 1: the Transformer with a latent encoder that sees the sharp image"
train options/quickstart/S1.yml
echo "== stage 2: the diffusion model and the Transformer, jointly"
train options/quickstart/S2.yml
echo "== test: photographs that were not trained on"
"$PYTHON" test.py -opt options/quickstart/test.yml
echo "== report: the scores, and a page with the pictures before and after"
"$PYTHON" -m hidiff report results/quickstart --page results/quickstart/report.html
echo "look at results/quickstart/report.html"
