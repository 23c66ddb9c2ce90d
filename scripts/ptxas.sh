#!/usr/bin/env bash
# Assembles every PTX file of a folder with ptxas, for sm_80 and sm_90 if not said otherwise, lists registers, shared
# memory and spills of each kernel (0 registers: not for that one), and fails where one spills or does not assemble.
# Usage: scripts/ptxas.sh DIR [ARCHITECTURE...]
set -euo pipefail
cd "$(dirname "$0")/.."

dir=$1
shift
architectures=${*:-sm_80 sm_90}
ptxas=${TIDEPOOL_PTXAS:-data/cuda/nvidia/cuda_nvcc/bin/ptxas}
[ -x "$ptxas" ] || { scripts/fetch-cuda.sh; }
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
find "$dir" -name '*.ptx' | sort >"$scratch/files"
[ -s "$scratch/files" ] || { echo "ptxas.sh: no PTX in $dir" >&2; exit 1; }
export ptxas scratch architectures
# shellcheck disable=SC2016
assemble='
  name=$(basename "$1" .ptx)
  for arch in $architectures; do
    if ! "$ptxas" -arch=$arch -v -o /dev/null "$1" >"$scratch/$name.$arch" 2>&1; then
      cat "$scratch/$name.$arch" >&2
      echo "ptxas.sh: $1 does not assemble for $arch" >&2
      exit 255
    fi
  done'
xargs -P "$(nproc)" -I{} bash -c "$assemble" _ {} <"$scratch/files"

# "Compiling entry function 'name' for 'sm_80'", then a line of stack and spills, then "Used N registers, ...".
awk '
  /Compiling entry function/ { split($0, part, "\047"); kernel = part[2]; arch = part[4] }
  /bytes spill stores/ { for (i = 2; i <= NF; i++) if ($i == "bytes" && $(i + 1) == "spill") spill += $(i - 1) }
  /Used [0-9]+ registers/ {
    registers = $0; sub(/.*Used /, "", registers); sub(/ registers.*/, "", registers)
    shared = 0
    if (match($0, /[0-9]+ bytes smem/)) { shared = substr($0, RSTART, RLENGTH); sub(/ .*/, "", shared) }
    file = FILENAME; sub(/.*\//, "", file); sub(/\.sm_[0-9]+$/, "", file)
    key = file " " kernel
    if (!(key in seen)) { seen[key] = 1; keys[++count] = key }
    used[key, arch] = registers; memory[key] = shared; spills[key] += spill
    total += spill; spill = 0
    if (registers + 0 > most) most = registers + 0
  }
  END {
    printf "%-76s %6s %6s %8s %7s\n", "file and kernel", "sm_80", "sm_90", "shared", "spills"
    for (i = 1; i <= count; i++) {
      key = keys[i]
      printf "%-76s %6d %6d %8d %7d\n", key, used[key, "sm_80"], used[key, "sm_90"], memory[key], spills[key]
    }
    printf "%d kernels, at most %d registers, %d bytes of spills\n", count, most, total
    exit (total > 0 || count == 0)
  }' "$scratch"/*.sm_[0-9]*
