#!/usr/bin/env bash
# The dense plan beside tract and ONNX Runtime on one core: installs onnxruntime into data/ort (git-ignored), then
# runs the bench pinned to the last core. Arguments go to the bench: --json, a model, then a batch. A model that is called
# as a reference model is (dcn-mmoe, two-tower, dlrm) is exported first, large, with the CLI, into data/reference.
set -euo pipefail
cd "$(dirname "$0")/.."
ort="$PWD/data/ort"
if [ ! -x "$ort/bin/python" ] || ! "$ort/bin/python" -c 'import onnxruntime' 2>/dev/null; then
  echo "bench-dense.sh: installing onnxruntime into data/ort" >&2
  python3 -m venv "$ort"
  "$ort/bin/pip" install --quiet 'onnxruntime==1.31.1' numpy
fi
arguments=()
for argument in "$@"; do
  case "$argument" in
    dcn-mmoe | two-tower | dlrm)
      release="$PWD/data/reference/releases/$argument/speed"
      if [ ! -e "$release/model.onnx" ]; then
        echo "bench-dense.sh: exporting $argument into data/reference" >&2
        cargo run --locked --release -p tidepool-cli -- train --model "$argument" --size large --untrained \
          --data synthetic --store data/reference --release speed >&2
      fi
      arguments+=("$release")
      ;;
    *) arguments+=("$argument") ;;
  esac
done
TIDEPOOL_ORT_PYTHON="$ort/bin/python" taskset -c "$(($(nproc) - 1))" \
  cargo bench --locked -p tidepool-dense --bench engines -- "${arguments[@]}"
