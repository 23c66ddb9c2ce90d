#!/usr/bin/env bash
# The CUDA engine on a real GPU: its tests, then its benches, into one JSON file. What runs is built before, on a machine
# with Rust; where the GPU is, neither cargo nor a network is needed, and ten minutes are enough.
#
#   scripts/gpu-check.sh pack DIR              builds, strips and packs tests and benches into DIR (under 64 MiB)
#   scripts/gpu-check.sh run DIR [OUT.json]    runs them; --quick runs each case of the benches once
#
# `run` needs the driver (libcuda), NVRTC and cuBLASLt of CUDA 12 or 13: in LD_LIBRARY_PATH, known to ldconfig, or as the
# wheels of PyPI that a Python of the machine has. It names what is missing, and then exits with 1, as it does when a
# test fails. The figures belong into docs/gpu.md. TIDEPOOL_PACK_PROFILE is the profile of cargo, release if not set.
set -euo pipefail

usage() { sed -n '2,13s/^# \{0,1\}//p' "$0" >&2; exit 2; }

pack() {
  local dir=$1 built name
  mkdir -p "$dir"
  dir=$(cd "$dir" && pwd)
  cd "$(dirname "$0")/.."
  # The benches as programs, which `cargo test` makes of a bench without a harness.
  built=$(cargo test --workspace --locked --profile "${TIDEPOOL_PACK_PROFILE:-release}" --test gpu --bench gpu \
    --bench gpu_rows --no-run --message-format=json)
  for name in test/gpu bench/gpu bench/gpu_rows; do
    local path
    path=$(grep "\"kind\":\[\"${name%/*}\"\]" <<<"$built" | grep "\"name\":\"${name#*/}\"" |
      grep -o '"executable":"[^"]*"' | cut -d'"' -f4 | tail -1) || true
    [ -n "$path" ] || { echo "gpu-check.sh: cargo built no $name" >&2; exit 1; }
    strip -o "$dir/${name%/*}-${name#*/}" "$path"
    gzip -f "$dir/${name%/*}-${name#*/}"
  done
  cp scripts/gpu-check.sh "$dir/gpu-check.sh"
  local bytes
  bytes=$(cat "$dir"/*.gz | wc -c)
  echo "gpu-check.sh: $bytes bytes in $dir" >&2
  [ "$bytes" -lt $((64 << 20)) ] || { echo "gpu-check.sh: that is more than 64 MiB" >&2; exit 1; }
}

# The folder of the first library that matches a name, where cudarc would not find it by itself; nothing where it would.
find_library() {
  local pattern=$1 folder
  local IFS=:
  for folder in ${LD_LIBRARY_PATH:-}; do
    compgen -G "$folder/$pattern" >/dev/null && return 0
  done
  IFS=$'\n'
  for folder in $(ldconfig -p 2>/dev/null | awk '{ print $1 }'); do
    # shellcheck disable=SC2053
    [[ $folder == $pattern ]] && return 0
  done
  unset IFS
  for folder in /usr/local/cuda*/lib64 /usr/local/nvidia/lib64 /usr/lib/x86_64-linux-gnu \
    /usr/lib/python3*/*-packages/nvidia/*/lib /usr/local/lib/python3*/*-packages/nvidia/*/lib \
    "${VIRTUAL_ENV:-/nowhere}"/lib/python3*/site-packages/nvidia/*/lib /opt/conda/lib/python3*/site-packages/nvidia/*/lib; do
    if compgen -G "$folder/$pattern" >/dev/null; then
      LD_LIBRARY_PATH=${LD_LIBRARY_PATH:+$LD_LIBRARY_PATH:}$folder
      export LD_LIBRARY_PATH
      return 0
    fi
  done
  return 1
}

# A text as JSON has it.
quoted() { printf '"%s"' "$(printf '%s' "$1" | tr -d '\000-\037' | sed 's/\\/\\\\/g; s/"/\\"/g')"; }

run() {
  local dir=$1 out=${2:-gpu-check.json} quick=$3
  dir=$(cd "$dir" && pwd)
  local scratch began=$SECONDS missing="" failed=0
  scratch=$(mktemp -d)
  # Named now: at the end there is no such variable any more.
  # shellcheck disable=SC2064
  trap "rm -rf '$scratch'" EXIT
  find_library 'libcuda.so*' || missing+=', "the driver (libcuda): install an NVIDIA driver, or pass the GPU into the container"'
  find_library 'libnvrtc.so*' || missing+=', "NVRTC (libnvrtc): nvidia-cuda-nvrtc-cu12 or -cu13"'
  find_library 'libcublasLt.so*' || missing+=', "cuBLASLt (libcublasLt): nvidia-cublas-cu12 or nvidia-cublas"'
  local gpu=""
  gpu=$(nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader 2>/dev/null | head -1) || true
  local tests=null benches=""
  if [ -z "$missing" ]; then
    local name
    for name in test-gpu bench-gpu bench-gpu_rows; do
      gzip -dc "$dir/$name.gz" >"$scratch/$name"
      chmod +x "$scratch/$name"
    done
    # One at a time: a fault of one test would be a fault of all that share the device.
    timeout 300 "$scratch/test-gpu" --test-threads 1 >"$scratch/tests" 2>&1 || failed=1
    local passed of_them
    # No such line, and so none passed, when the run was cut off.
    passed=$(sed -n 's/^test result: .* \([0-9]*\) passed;.*/\1/p' "$scratch/tests")
    passed=${passed:-0}
    of_them=$(sed -n 's/^---- \(.*\) stdout ----$/\1/p' "$scratch/tests" | while read -r name; do
      printf ', %s' "$(quoted "$name")"
    done)
    # A count of all, so that a run that was cut off does not pass for one that went well.
    local all
    all=$("$scratch/test-gpu" --list 2>/dev/null | grep -c ': test$' || true)
    [ "$passed" -eq "$all" ] || failed=1
    tests="{\"all\": $all, \"passed\": $passed, \"failed\": [${of_them#, }], \"seconds\": $((SECONDS - began))}"
    [ "$failed" -eq 0 ] || cat "$scratch/tests" >&2
    # Of ten minutes the tests above have five at most.
    local seconds=180
    for name in gpu gpu_rows; do
      # shellcheck disable=SC2086
      if timeout $((seconds + 25)) "$scratch/bench-$name" $quick --seconds=$seconds >"$scratch/bench" 2>"$scratch/bench.words"; then
        benches+=", \"$name\": $(tail -1 "$scratch/bench")"
      else
        # The cases that were there by then are kept: each is a line.
        benches+=", \"$name\": {\"cut_off\": true, \"cases\": [$(grep '^{.*}$' "$scratch/bench.words" | paste -sd, || true)]}"
        cat "$scratch/bench.words" >&2
        echo "gpu-check.sh: the bench $name failed, or took too long" >&2
        failed=1
      fi
      seconds=45
    done
  else
    failed=1
    echo "gpu-check.sh: missing: ${missing#, }" >&2
  fi
  printf '{"schema_version": 1, "check": "gpu", "gpu": %s, "kernel": %s, "seconds": %d,\n "missing": [%s],\n "tests": %s,\n "benches": {%s}}\n' \
    "$(quoted "$gpu")" "$(quoted "$(uname -sr)")" "$((SECONDS - began))" "${missing#, }" "$tests" "${benches#, }" >"$out"
  echo "gpu-check.sh: $out" >&2
  return "$failed"
}

quick="" arguments=()
for argument in "$@"; do
  case $argument in
    --quick) quick=--test ;;
    *) arguments+=("$argument") ;;
  esac
done
set -- "${arguments[@]}"
case ${1:-} in
  pack) [ $# -eq 2 ] || usage; pack "$2" ;;
  run) [ $# -ge 2 ] || usage; run "$2" "${3:-gpu-check.json}" "$quick" ;;
  *) usage ;;
esac
