#!/usr/bin/env bash
# The checks beyond `cargo test`: format, lints, docs, benches once in test mode, and the suites that need
# something besides Rust. Each stage prints the minutes it took. Usage: scripts/check.sh [STAGE...]
set -euo pipefail
cd "$(dirname "$0")/.."

fmt() { cargo fmt --all --check; }

# The suites that need more than Rust are no default targets, so they are named.
clippy() {
  cargo clippy --workspace --all-targets --locked -- -D warnings
  cargo clippy --workspace --locked --test peers --test gpu --test gpu_sim --test gpu_ranker --test cudarc --test golden \
    --bench gpu --bench gpu_rows -- -D warnings
}

docs() { RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps --locked --quiet; }

# Each once, on little. One of them asks Redis too; without it, it says so and leaves it out.
benches() {
  if ! command -v redis-server >/dev/null 2>&1; then
    echo "check.sh: the bench beside Redis needs redis-server; installing it" >&2
    apt-get update -q && apt-get install -y -q --no-install-recommends redis-server
  fi
  # All but those that need a GPU, `gpu` and `gpu_rows`: gpu-check.sh runs these, also on the simulated one.
  cargo test --workspace --locked --bench '[!g]*'
}

# The main job on real data. It needs pip for MovieLens, and exits with 3 when a promise is not kept.
demo() {
  if ! python3 -m pip --version >/dev/null 2>&1; then
    echo "check.sh: the demo on MovieLens needs pip; installing python3-pip" >&2
    apt-get update -q && apt-get install -y -q python3-pip
  fi
  scripts/fetch-ml100k.sh
  cargo run --release --locked --quiet -- demo --data movielens --fresh --kill-one --json
}

# Real faults on real processes, on few rows: what is promised about failures and wrong answers is judged, what is
# promised about time is printed, since a gate may share its machine. It exits with 3 when a promise was not kept.
drills() {
  cargo run --release --locked --quiet -- bench drill all --no-timing --rows 100_000 --rate 100 \
    --phase-seconds 1 --lookups 2000 --json
  need_etcd
  cargo run --release --locked --quiet -- drill all --no-timing --rows 100_000 --rate 200 --pairs 2 \
    --requests-during 1000 --json
}

need_etcd() {
  if ! command -v etcd >/dev/null 2>&1 || ! command -v etcdctl >/dev/null 2>&1; then
    echo "check.sh: what is tried beside etcd needs it; installing etcd-server and etcd-client" >&2
    apt-get update -q && apt-get install -y -q --no-install-recommends etcd-server etcd-client
  fi
}

need_venv() {
  if ! python3 -c 'import ensurepip, venv' >/dev/null 2>&1; then
    apt-get update -q && apt-get install -y -q --no-install-recommends python3-venv
  fi
}

# The suites beside real peers, which cargo test leaves out: etcd under the controllers, moto as the object store, clients
# of Triton and ONNX Runtime before a ranker, and namespaces with disks and networks of their own, which only root may
# make.
peers() {
  need_etcd
  if ! command -v ip >/dev/null 2>&1 || ! command -v unshare >/dev/null 2>&1; then
    echo "check.sh: the tests in namespaces need iproute2 and util-linux; installing them" >&2
    apt-get update -q && apt-get install -y -q --no-install-recommends iproute2 util-linux mount
  fi
  local moto="$PWD/data/moto"
  if [ ! -x "$moto/bin/moto_server" ]; then
    echo "check.sh: the tests beside an object store need moto; installing it into data/moto" >&2
    need_venv
    python3 -m venv "$moto" && "$moto/bin/pip" install --quiet 'moto[server]==5.2.5'
  fi
  local triton="$PWD/data/triton"
  if [ ! -x "$triton/bin/python" ] || ! "$triton/bin/python" -c 'import tritonclient.http.aio, tritonclient.grpc.aio, onnxruntime' 2>/dev/null; then
    echo "check.sh: the tests by clients of Triton need tritonclient and ONNX Runtime; installing them into data/triton" >&2
    need_venv
    python3 -m venv "$triton" && "$triton/bin/pip" install --quiet 'tritonclient[grpc,http]==2.73.0' 'onnxruntime==1.31.1' 'numpy==2.4.6'
  fi
  TIDEPOOL_MOTO_SERVER="$moto/bin/moto_server" TIDEPOOL_TRITON_PYTHON="$triton/bin/python" \
    cargo test --workspace --locked --test peers
}

# The CUDA engine where there is no GPU: on the simulated device, whose own suites come first, with kernels by the real
# NVRTC, which ptxas then assembles for real devices; the bugs that the device must find; and gpu-check.sh, as it runs on
# a machine with a GPU, here with the simulated one.
gpu() {
  if ! python3 -m pip --version >/dev/null 2>&1; then
    echo "check.sh: NVRTC and ptxas come through pip; installing python3-pip" >&2
    apt-get update -q && apt-get install -y -q python3-pip
  fi
  if ! command -v patch >/dev/null 2>&1 || ! command -v strip >/dev/null 2>&1; then
    apt-get update -q && apt-get install -y -q --no-install-recommends patch binutils
  fi
  scripts/fetch-cuda.sh
  rm -rf target/gpu-ptx
  export TIDEPOOL_PTX_DIR="$PWD/target/gpu-ptx"
  scripts/with-sim.sh cargo test --workspace --locked --test cudarc --test golden --test gpu_sim --test gpu_ranker
  TIDEPOOL_PACK_PROFILE=test scripts/gpu-check.sh pack target/gpu-check
  scripts/with-sim.sh scripts/gpu-check.sh run target/gpu-check target/gpu-check/result.json --quick
  # What NVRTC writes for compute_80 is not what a device of 9.0 runs: the kernels of each kind once more as such a one
  # has them.
  rm -rf target/gpu-ptx-90
  TIDEPOOL_PTX_DIR="$PWD/target/gpu-ptx-90" TIDEPOOL_SIM_COMPUTE_CAPABILITY=9.0 \
    scripts/with-sim.sh cargo test --workspace --locked --test gpu -- every_model_scores around:: resident:: rows:: select::
  unset TIDEPOOL_PTX_DIR
  scripts/ptxas.sh target/gpu-ptx
  scripts/ptxas.sh target/gpu-ptx-90 sm_90
  scripts/gpu-bugs.sh
}

stages=("$@")
[ ${#stages[@]} -gt 0 ] || stages=(fmt clippy docs benches gpu peers demo drills)
report=""
for stage in "${stages[@]}"; do
  began=$SECONDS
  echo "check.sh: $stage" >&2
  "$stage"
  report+=$(awk -v name="$stage" -v s="$((SECONDS - began))" 'BEGIN { printf "%-10s %5.1f min", name, s / 60 }')$'\n'
done
printf '%s' "$report"
