#!/bin/sh
# Says that a peer is missing, and fails if all must be there. Usage: missing.sh NAME WHAT-FOLLOWS. With FORGE_REQUIRE_PEERS=1, as
# CI sets it, only those may be missing that FORGE_MISSING_PEERS names, separated by spaces.
name=$1
if [ "${FORGE_REQUIRE_PEERS:-0}" = 1 ]; then
    case " ${FORGE_MISSING_PEERS:-} " in
    *" $name "*) ;;
    *)
        echo "FAILED: $2. FORGE_MISSING_PEERS=\"$name\" allows that." >&2
        exit 1
        ;;
    esac
fi
echo "SKIPPED: $2" >&2
