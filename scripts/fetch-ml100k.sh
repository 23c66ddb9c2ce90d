#!/bin/sh
# Brings MovieLens-100K into a folder that git ignores (default: data/ml-100k), out of the PyPI wheel recbole==1.2.1,
# which carries it as an example. The wheel is downloaded and opened; nothing is installed.
#
#     scripts/fetch-ml100k.sh [FOLDER]
#
# Needs python3 with pip, and PyPI. Does nothing when the folder has the files already. Exit code 1 when it cannot.
set -eu

wheel="recbole==1.2.1"
inside="recbole/dataset_example/ml-100k"
files="ml-100k.inter ml-100k.item ml-100k.user"

root=$(cd "$(dirname "$0")/.." && pwd)
target=${1:-"$root/data/ml-100k"}

fail() {
    echo "fetch-ml100k: $1" >&2
    exit 1
}

terms() {
    cat >&2 <<'EOF'
MovieLens-100K is from GroupLens Research at the University of Minnesota. Its terms: research use; no commercial use
without GroupLens' permission; no redistribution without it either. It stays in this folder, is never committed, and
publications cite F. M. Harper and J. A. Konstan, "The MovieLens Datasets: History and Context", ACM TiiS 5(4), 2015.
EOF
}

complete() {
    for file in $files; do
        [ -s "$1/$file" ] || return 1
    done
}

if complete "$target"; then
    echo "fetch-ml100k: $target has the data already" >&2
    terms
    exit 0
fi
[ ! -e "$target" ] || fail "$target exists and lacks some of: $files; move it away first"

command -v python3 >/dev/null 2>&1 || fail "python3 is not there: install Python 3 with pip, or run on synthetic data"
python3 -m pip --version >/dev/null 2>&1 || fail "python3 has no pip: install it, or run on synthetic data"

parent=$(dirname "$target")
mkdir -p "$parent" || fail "cannot create $parent"
# Beside the target, so that the last step is a rename within one file system.
work=$(mktemp -d "$parent/.fetch-ml100k.XXXXXX") || fail "cannot write to $parent"
trap 'rm -rf "$work"' EXIT
trap 'exit 1' HUP INT TERM

# A machine without network should be told so in seconds, not after minutes of retries.
python3 -m pip download --quiet --disable-pip-version-check --no-deps --only-binary :all: --retries 1 --timeout 15 \
    --dest "$work/wheel" "$wheel" >"$work/log" 2>&1 || {
    tail -n 3 "$work/log" >&2
    fail "pip could not download $wheel: is PyPI within reach?"
}
python3 - "$work" "$inside" $files <<'EOF' || fail "the wheel does not hold the data where it should"
import pathlib, sys, zipfile

work, inside, *files = sys.argv[1:]
work = pathlib.Path(work)
(wheel,) = (work / "wheel").glob("*.whl")
(work / "ml-100k").mkdir()
with zipfile.ZipFile(wheel) as archive:
    for name in files:
        (work / "ml-100k" / name).write_bytes(archive.read(f"{inside}/{name}"))
EOF
complete "$work/ml-100k" || fail "the wheel's files are empty"
chmod 755 "$work/ml-100k"
mv "$work/ml-100k" "$target" || fail "cannot move the data to $target"
echo "fetch-ml100k: MovieLens-100K is in $target" >&2
terms
