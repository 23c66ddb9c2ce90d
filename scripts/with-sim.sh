#!/usr/bin/env bash
# Runs a command where libcuda and libcublasLt are the simulated device, and NVRTC is the real one.
# Usage: scripts/with-sim.sh COMMAND...
#
# The device is set by TIDEPOOL_SIM_* (docs/gpu-simulation.md). TIDEPOOL_NVRTC_DIR is where libnvrtc.so.12 lies, when it
# is not what scripts/fetch-cuda.sh brought.
set -euo pipefail
here=$(cd "$(dirname "$0")/.." && pwd)

[ $# -gt 0 ] || { echo "with-sim.sh: no command; see the head of the file" >&2; exit 2; }

target=${CARGO_TARGET_DIR:-$here/target}
if [ -z "${TIDEPOOL_SIM_LIBRARY:-}" ]; then
  # Optimised, since the interpreter runs inside. Its own messages would stand in the way of the command's.
  (cd "$here" && cargo build --release --locked --quiet -p tidepool-cuda-sim)
  TIDEPOOL_SIM_LIBRARY=$target/release/libtidepool_cuda_sim.so
fi
nvrtc=${TIDEPOOL_NVRTC_DIR:-$here/data/cuda/nvidia/cuda_nvrtc/lib}
if [ ! -e "$nvrtc/libnvrtc.so.12" ]; then
  "$here/scripts/fetch-cuda.sh"
fi

folder=$target/cuda-sim
mkdir -p "$folder"
# Links to one file: whichever of the names is loaded, it is one library with one state.
for name in libcuda.so libcuda.so.1 libcublasLt.so libcublasLt.so.12; do
  ln -sf "$TIDEPOOL_SIM_LIBRARY" "$folder/$name"
done
LD_LIBRARY_PATH=$folder:$nvrtc${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH} exec "$@"
