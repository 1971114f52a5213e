# Makes this shell ready to build: cargo, a C++ compiler, cmake and libclang. Sourced, not run: `. scripts/ready.sh`.
# What is missing is installed with apt-get (as root, on Debian and its kin), else as Python wheels into a folder of
# forge's own in the user's cache. Nothing is done where everything is there.

forge_say() { printf 'forge: %s\n' "$*" >&2; }

forge_has_libclang() {
    [ -n "${LIBCLANG_PATH:-}" ] && return 0
    for dir in /usr/lib /usr/lib64 /usr/local/lib /usr/lib/llvm-*/lib /usr/lib/*-linux-gnu /opt/homebrew/opt/llvm/lib \
        /Library/Developer/CommandLineTools/usr/lib /Applications/Xcode.app/Contents/Developer/Toolchains/XcodeDefault.xctoolchain/usr/lib; do
        # An unmatched pattern stays as it is, and is then no file.
        for lib in "$dir"/libclang.so "$dir"/libclang.so.* "$dir"/libclang-*.so* "$dir"/libclang.dylib; do
            [ -e "$lib" ] && return 0
        done
    done
    return 1
}

forge_ready() {
    if ! command -v cargo >/dev/null 2>&1; then
        forge_say "cargo is missing: install Rust (https://rustup.rs) and try again"
        return 3
    fi
    need=""
    command -v cmake >/dev/null 2>&1 || need="cmake"
    forge_has_libclang || need="$need libclang"
    command -v c++ >/dev/null 2>&1 || need="$need c++"
    [ -z "$need" ] && return 0
    if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null 2>&1; then
        forge_say "installing:$(printf ' %s' $need) (apt-get)"
        apt-get update -qq >/dev/null && apt-get install -y -qq cmake libclang-dev g++ >/dev/null && return 0
    fi
    case "$need" in *c++*)
        forge_say "a C++ compiler is missing: install g++ or clang and try again"
        return 3
        ;;
    esac
    if command -v python3 >/dev/null 2>&1; then
        tools="${XDG_CACHE_HOME:-$HOME/.cache}/forge-tools"
        if [ ! -x "$tools/bin/cmake" ]; then
            forge_say "installing:$(printf ' %s' $need) (Python wheels, into $tools)"
            python3 -m venv "$tools" && "$tools/bin/pip" install -q cmake libclang || {
                forge_say "cannot install them: install cmake and libclang (Debian: cmake libclang-dev) and try again"
                return 3
            }
        fi
        PATH="$tools/bin:$PATH"
        LIBCLANG_PATH=$("$tools/bin/python" -c 'import clang, os; print(os.path.join(os.path.dirname(clang.__file__), "native"))')
        export PATH LIBCLANG_PATH
        return 0
    fi
    forge_say "missing:$(printf ' %s' $need): install cmake and libclang (Debian: cmake libclang-dev) and try again"
    return 3
}

forge_ready
