#!/usr/bin/env bash
# Shows that the simulated device finds what it is for: builds the CUDA engine in a copy of the tree with the five bugs of
# tests/cuda-sim/bugs in it, each behind a name in TIDEPOOL_BUG, and runs its tests with each. They must pass without
# a bug and fail with one, each time with the right finding. Usage: scripts/gpu-bugs.sh
set -euo pipefail
cd "$(dirname "$0")/.."

target=${CARGO_TARGET_DIR:-$PWD/target}
bugs=$PWD/tests/cuda-sim/bugs
tree=$target/gpu-bugs
rm -rf "$tree"
mkdir -p "$tree"
# Times are kept, so that what was built for the last copy is still fresh.
git ls-files -z --cached --others --exclude-standard | xargs -0 cp -p --parents --target-directory="$tree"
for patch in "$bugs"/*.patch; do
  # Not `git apply`, which does nothing in a folder that an outer repository ignores.
  patch --quiet --directory="$tree" --strip=1 <"$patch"
done
# The copy's own packages are of another version. Otherwise cargo would take them for those of the tree, and what has bugs
# for what has none; so the two share what was built of all other packages.
sed -i '/^\[workspace\.package\]/,/^\[/ s/^version = "0\.1\.0"$/version = "0.1.0-bugs"/' "$tree/Cargo.toml"
sed -i '/^name = "tidepool/ { n; s/^version = "0\.1\.0"$/version = "0.1.0-bugs"/ }' "$tree/Cargo.lock"

try() {
  (cd "$tree" && TIDEPOOL_BUG=$1 CARGO_TARGET_DIR=$target cargo test --locked --quiet --workspace --test gpu -- \
    scores::a_batch_leaves_nothing_behind_for_the_next) >"$tree/output" 2>&1
}
if ! scripts/with-sim.sh true; then
  exit 1
fi
export TIDEPOOL_SIM_LIBRARY=$target/release/libtidepool_cuda_sim.so
nvrtc=${TIDEPOOL_NVRTC_DIR:-$PWD/data/cuda/nvidia/cuda_nvrtc/lib}
export LD_LIBRARY_PATH=$target/cuda-sim:$nvrtc${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}
if ! try none; then
  cat "$tree/output" >&2
  echo "gpu-bugs.sh: without a bug the tests fail" >&2
  exit 1
fi
while read -r bug finding; do
  case $bug in '' | '#'*) continue ;; esac
  if try "$bug"; then
    echo "gpu-bugs.sh: $bug was not found: the tests pass with it" >&2
    exit 1
  fi
  if ! grep -Eq -- "$finding" "$tree/output"; then
    cat "$tree/output" >&2
    echo "gpu-bugs.sh: with $bug the tests fail, but nobody finds \"$finding\"" >&2
    exit 1
  fi
  echo "gpu-bugs.sh: $bug is found: $(grep -Em1 -o -- ".{0,60}$finding.{0,60}" "$tree/output")"
done <"$bugs/findings"
