#!/usr/bin/env bash
# Makes the figures of docs/benchmarks.md. Options go to all: --mib, --rounds, --runs, --steps, --model, --chunks.
set -euo pipefail
cd "$(dirname "$0")/.."

if [ -z "${FORGE_PEER_BIN:-}" ] && ! FORGE_PEER_BIN=$(sh tests/peers/build-llama-cpp.sh); then
    echo 'SKIPPED: no llama.cpp tools, so nothing is compared with them' >&2
    unset FORGE_PEER_BIN
fi
[ -z "${FORGE_PEER_BIN:-}" ] || export FORGE_PEER_BIN
if [ -z "${FORGE_INCUMBENTS_BIN:-}" ] && ! FORGE_INCUMBENTS_BIN=$(sh tests/peers/install-incumbents.sh); then
    echo 'SKIPPED: no ninja, so nothing is compared with it' >&2
    unset FORGE_INCUMBENTS_BIN
fi
[ -z "${FORGE_INCUMBENTS_BIN:-}" ] || export FORGE_INCUMBENTS_BIN
cargo bench --bench null_build -- "$@"
cargo bench --bench quantize -- "$@"
cargo bench --bench probes -- "$@"
# Some 10 minutes.
cargo bench --bench rounding
# Each some 20 minutes. They say with their status that a target is missed, which stops nothing here.
cargo bench --bench refined || true
cargo bench --bench refined -- --texts Q4_K
# Some 20 minutes.
cargo bench --bench estimates
# Some hours: every type of every tensor is measured.
cargo bench --bench policies -- "$@"
