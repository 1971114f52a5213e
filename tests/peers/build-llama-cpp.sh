#!/bin/sh
# Builds llama-quantize, llama-imatrix, llama-perplexity and llama-gguf-split for tests/it/peer_*.rs and prints the folder
# they lie in. Usage: build-llama-cpp.sh [FOLDER]; the default folder is ${XDG_CACHE_HOME:-~/.cache}/forge-peers.
#
# The sources are those inside the PyPI sdist of llama-cpp-python, the release whose llama.cpp is nearest to the one that
# forge links. They are compiled as llama.cpp compiles itself for x86-64 machines with AVX2, FMA and F16C: the
# level of forge's own engine. Needs pip, cmake and a C++ compiler; about four minutes on two cores, nothing when built.
set -eu

version=0.3.36
root=${1:-${XDG_CACHE_HOME:-$HOME/.cache}/forge-peers}
tools="llama-quantize llama-imatrix llama-perplexity llama-gguf-split"
build=$root/llama-cpp-$version
bin=$build/bin

if [ -f "$build/complete" ]; then
    echo "$bin"
    exit 0
fi

mkdir -p "$root"
sources=$root/llama_cpp_python-$version
if [ ! -f "$sources/vendor/llama.cpp/CMakeLists.txt" ]; then
    # Only this package as sources: what pip needs to look into it may come as wheels.
    python3 -m pip download --quiet --no-deps --no-binary llama-cpp-python --dest "$root" \
        "llama-cpp-python==$version" >&2
    archive=$root/llama_cpp_python-$version.tar.gz
    if [ ! -f "$archive" ]; then
        echo "build-llama-cpp.sh: pip did not download llama-cpp-python $version" >&2
        exit 1
    fi
    tar -xzf "$archive" -C "$root"
fi

level=
case $(uname -m) in
x86_64 | amd64) level="-DGGML_SSE42=ON -DGGML_AVX=ON -DGGML_AVX2=ON -DGGML_BMI2=ON -DGGML_FMA=ON -DGGML_F16C=ON" ;;
esac
# shellcheck disable=SC2086 # the level is a list of options
cmake -S "$sources/vendor/llama.cpp" -B "$build" -DCMAKE_BUILD_TYPE=Release -DGGML_NATIVE=OFF $level \
    -DBUILD_SHARED_LIBS=ON -DLLAMA_CURL=OFF -DLLAMA_OPENSSL=OFF -DLLAMA_BUILD_COMMON=ON -DLLAMA_BUILD_TOOLS=ON \
    -DLLAMA_BUILD_SERVER=OFF -DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_EXAMPLES=OFF >&2
# shellcheck disable=SC2086 # the tools are a list of targets
cmake --build "$build" --parallel "$(getconf _NPROCESSORS_ONLN)" --target $tools >&2
for tool in $tools; do
    test -x "$bin/$tool"
done
touch "$build/complete"
echo "$bin"
