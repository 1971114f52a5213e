#!/bin/sh
# Builds llama-quantize, llama-imatrix, llama-perplexity and llama-gguf-split for tests/it/peer_*.rs and prints the folder
# they lie in: the only line on stdout. Usage: build-llama-cpp.sh [FOLDER]; the default folder is
# ${XDG_CACHE_HOME:-~/.cache}/forge-peers. If it cannot, it says why in one line and exits with 1.
#
# The sources are those inside the PyPI sdist of llama-cpp-python, the release whose llama.cpp is nearest to the one that
# forge links. They are compiled as llama.cpp compiles itself for x86-64 machines with AVX2, FMA and F16C: the
# level of forge's own engine. Needs pip, tar and a C++ compiler, and cmake or else pip's; about five minutes on two
# cores, nothing when built.
set -eu

version=0.3.36
sha256=832db0699007f1be95a7e41ef12e88926b02ba836461e36a36372db2760c1a2e
root=${1:-${XDG_CACHE_HOME:-$HOME/.cache}/forge-peers}
tools="llama-quantize llama-imatrix llama-perplexity llama-gguf-split"
build=$root/llama-cpp-$version
bin=$build/bin
log=$root/build.log

fail() {
    echo "build-llama-cpp.sh: $1" >&2
    exit 1
}

# Runs a command with all it says in the log.
logged() {
    "$@" >>"$log" 2>&1
}

if [ -f "$build/complete" ]; then
    echo "$bin"
    exit 0
fi

mkdir -p "$root" || fail "cannot make the folder $root"
: >"$log"
command -v python3 >/dev/null || fail "python3, which fetches the sources with pip, is not installed"
sources=$root/llama_cpp_python-$version
archive=$sources.tar.gz
if [ ! -f "$sources/unpacked" ]; then
    # Only this package as sources: what pip needs to look into it may come as wheels.
    logged python3 -m pip download --no-deps --no-binary llama-cpp-python --dest "$root" \
        "llama-cpp-python==$version" || fail "pip cannot fetch the sources of llama-cpp-python $version (see $log)"
    found=$(python3 -c 'import hashlib, sys; print(hashlib.sha256(open(sys.argv[1], "rb").read()).hexdigest())' "$archive") ||
        fail "pip did not leave $archive"
    [ "$found" = "$sha256" ] || fail "$archive is not the file it should be: its SHA-256 is $found, not $sha256"
    rm -rf "$sources"
    logged tar -xzf "$archive" -C "$root" || fail "$archive cannot be unpacked (see $log)"
    touch "$sources/unpacked"
fi

cmake=cmake
if ! command -v cmake >/dev/null; then
    cmake=$root/cmake/bin/cmake
    if [ ! -x "$cmake" ]; then
        { logged python3 -m venv "$root/cmake" && logged "$root/cmake/bin/python" -m pip install cmake; } ||
            fail "cmake is not installed, and pip cannot install it (see $log)"
    fi
fi

# What this machine would add is not to be in them.
unset CFLAGS CXXFLAGS
level=
case $(uname -m) in
x86_64 | amd64) level="-DGGML_SSE42=ON -DGGML_AVX=ON -DGGML_AVX2=ON -DGGML_BMI2=ON -DGGML_FMA=ON -DGGML_F16C=ON" ;;
esac
# shellcheck disable=SC2086 # the level is a list of options
logged "$cmake" -S "$sources/vendor/llama.cpp" -B "$build" -DCMAKE_BUILD_TYPE=Release -DGGML_NATIVE=OFF $level \
    -DBUILD_SHARED_LIBS=ON -DGGML_OPENMP=ON -DLLAMA_CURL=OFF -DLLAMA_OPENSSL=OFF -DLLAMA_BUILD_COMMON=ON \
    -DLLAMA_BUILD_TOOLS=ON -DLLAMA_BUILD_SERVER=OFF -DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_EXAMPLES=OFF ||
    fail "llama.cpp cannot be configured (see $log)"
# shellcheck disable=SC2086 # the tools are a list of targets
logged "$cmake" --build "$build" --parallel "$(getconf _NPROCESSORS_ONLN)" --target $tools ||
    fail "llama.cpp cannot be compiled (see $log)"
for tool in $tools; do
    [ -x "$bin/$tool" ] || fail "the build made no $tool (see $log)"
done
touch "$build/complete"
echo "$bin"
