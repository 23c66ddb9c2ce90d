#!/usr/bin/env bash
# Fetches what compiling CUDA needs on a machine without a GPU: NVRTC, which compiles kernels, and ptxas, which
# assembles them for real devices. They are wheels of PyPI under NVIDIA's licence, which forbids passing them on, so
# they go into the git-ignored data/cuda. Needs pip and no root. Usage: scripts/fetch-cuda.sh [DIR]
#
#   nvidia-cuda-nvrtc-cu12 12.4.127   25 MB, 63 MB unpacked   libnvrtc.so.12, which writes PTX 8.4
#   nvidia-cuda-nvcc-cu12  12.9.86    40 MB, 110 MB unpacked  ptxas
set -euo pipefail
cd "$(dirname "$0")/.."

dir=${1:-data/cuda}
nvrtc="$dir/nvidia/cuda_nvrtc/lib/libnvrtc.so.12"
ptxas="$dir/nvidia/cuda_nvcc/bin/ptxas"
if [ -e "$nvrtc" ] && [ -x "$ptxas" ]; then
  exit 0
fi
if ! python3 -m pip --version >/dev/null 2>&1; then
  echo "fetch-cuda.sh: NVRTC and ptxas come as Python wheels: install python3 and python3-pip" >&2
  exit 1
fi
echo "fetch-cuda.sh: NVRTC and ptxas come under NVIDIA's CUDA licence (EULA): for use here, not to be passed on" >&2
mkdir -p "$dir"
scratch=$(mktemp -d "$dir/fetch.XXXXXX")
trap 'rm -rf "$scratch"' EXIT
python3 -m pip download --quiet --no-deps --only-binary :all: -d "$scratch" \
  nvidia-cuda-nvrtc-cu12==12.4.127 nvidia-cuda-nvcc-cu12==12.9.86
# A wheel is a zip archive; Python unpacks it where there is no unzip.
for wheel in "$scratch"/*.whl; do
  python3 -m zipfile -e "$wheel" "$scratch/unpacked"
done
chmod +x "$scratch/unpacked/nvidia/cuda_nvcc/bin/ptxas"
rm -rf "$dir/nvidia"
mv "$scratch/unpacked/nvidia" "$dir/nvidia"
"$ptxas" --version | tail -2 >&2
