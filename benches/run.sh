#!/usr/bin/env bash
# Makes the figures of docs/benchmarks.md. Options go to both: --mib, --rounds, --runs, --candidates.
set -euo pipefail
cd "$(dirname "$0")/.."

if [ -z "${FORGE_PEER_BIN:-}" ] && ! FORGE_PEER_BIN=$(sh tests/peers/build-llama-cpp.sh); then
    echo 'SKIPPED: no llama.cpp tools, so nothing is compared with them' >&2
    unset FORGE_PEER_BIN
fi
[ -z "${FORGE_PEER_BIN:-}" ] || export FORGE_PEER_BIN
cargo bench --bench null_build -- "$@"
cargo bench --bench quantize -- "$@"
