#!/usr/bin/env bash
# The dense plan beside tract and ONNX Runtime on one core: installs onnxruntime into data/ort (git-ignored), then
# runs the bench pinned to the last core. Arguments go to the bench: a model, then a batch.
set -euo pipefail
cd "$(dirname "$0")/.."
ort="$PWD/data/ort"
if [ ! -x "$ort/bin/python" ] || ! "$ort/bin/python" -c 'import onnxruntime' 2>/dev/null; then
  echo "bench-dense.sh: installing onnxruntime into data/ort" >&2
  python3 -m venv "$ort"
  "$ort/bin/pip" install --quiet 'onnxruntime==1.31.1' numpy
fi
TIDEPOOL_ORT_PYTHON="$ort/bin/python" taskset -c "$(($(nproc) - 1))" \
  cargo bench --locked -p tidepool-dense --bench engines -- "$@"
