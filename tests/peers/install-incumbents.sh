#!/bin/sh
# Installs DVC, ninja and Snakemake (incumbents.txt) for tests/it/conformance.rs and benches/null_build.rs, and prints the
# folder that holds their programs: the only line on stdout. Usage: install-incumbents.sh [FOLDER]; the default folder is
# ${XDG_CACHE_HOME:-~/.cache}/forge-peers. If it cannot, it says why in one line and exits with 1. Needs python3 with venv
# and pip, and a minute; nothing when they are there.
set -eu

here=$(cd "$(dirname "$0")" && pwd)
root=${1:-${XDG_CACHE_HOME:-$HOME/.cache}/forge-peers}
venv=$root/incumbents
log=$root/incumbents.log

fail() {
    echo "install-incumbents.sh: $1" >&2
    exit 1
}

if cmp -s "$here/incumbents.txt" "$venv/complete"; then
    echo "$venv/bin"
    exit 0
fi
command -v python3 >/dev/null || fail "python3 is not installed"
mkdir -p "$root" || fail "cannot make the folder $root"
rm -rf "$venv"
{ python3 -m venv "$venv" && "$venv/bin/python" -m pip install -q -r "$here/incumbents.txt"; } >"$log" 2>&1 ||
    fail "pip cannot install $(tr '\n' ' ' <"$here/incumbents.txt")(see $log)"
cp "$here/incumbents.txt" "$venv/complete"
echo "$venv/bin"
