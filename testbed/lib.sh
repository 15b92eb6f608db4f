# Shared by demo.sh and test.sh: what is missing on this machine, and where things are. Sourced, not run.

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

if [[ -t 1 && -z ${NO_COLOR:-} ]]; then
    bold=$'\e[1m' dim=$'\e[2m' red=$'\e[31m' green=$'\e[32m' normal=$'\e[0m'
else
    bold='' dim='' red='' green='' normal=''
fi

# Cargo's progress is for people.
quiet=--quiet
if [[ -t 2 ]]; then quiet=''; fi

# title TEXT: opens a part, as `erhu-testbed demo` does.
title() {
    local line
    printf -v line '%*s' $((96 - ${#1})) ''
    printf '\n%s──%s %s%s%s %s%s%s\n' "$dim" "$normal" "$bold" "$1" "$normal" "$dim" "${line// /─}" "$normal"
}

# fail WHAT [REMEDY]: ends the script.
fail() {
    printf '%s%s%s\n' "$red" "$1" "$normal" >&2
    if (($# > 1)); then printf '%s\n' "$2" >&2; fi
    exit 1
}

missing=()

# need PACKAGE WHY COMMAND...: notes a Debian package as missing unless the command succeeds.
need() {
    local package=$1 why=$2
    shift 2
    if ! "$@" >/dev/null 2>&1; then
        printf 'missing: %-14s %s\n' "$package" "$why"
        missing+=("$package")
    fi
}

has() { command -v "$1"; }

# libclang-cpp is another library: it is no help.
has_libclang() {
    compgen -G "${LIBCLANG_PATH:-/usr/lib/llvm-*/lib}/libclang.so*" ||
        compgen -G "${LIBCLANG_PATH:-/usr/lib/llvm-*/lib}/libclang-[0-9]*.so*" ||
        ldconfig -p | grep -qE 'libclang(-[0-9.]+)?\.so'
}

# Drivers are plugins that DPDK loads, each in a package of its own.
has_driver() { compgen -G "$(pkg-config --variable=libdir libdpdk)/dpdk/pmds-*/librte_net_$1.so*"; }

need_for_build() {
    need gcc 'compiles the C shim over DPDK and links' has cc
    need libc6-dev "the C library's headers" test -e /usr/include/stdio.h
    need pkg-config 'finds DPDK' has pkg-config
    need libdpdk-dev 'DPDK: headers, libraries, drivers (with libpcap)' pkg-config --exists libdpdk
    need libclang-dev "reads DPDK's headers for bindgen" has_libclang
}

need_for_tests() {
    need iproute2 'makes network namespaces for live hosts' has ip
    need iputils-ping 'a live host' has ping
    need iperf3 'a live host' has iperf3
    need curl 'a live host' has curl
    need traceroute 'a live host' has traceroute
    need python3 "a live host's web server" has python3
    need nftables "the kernel's translation, for comparison" has nft
    need conntrack "the kernel's connection table, for comparison" has conntrack
    need tcpdump 'reads captures' has tcpdump
    need valgrind 'counts instructions' has valgrind
}

# Installs what was noted as missing, or says how to.
install_missing() {
    ((${#missing[@]})) || return 0
    local command="apt-get install -y --no-install-recommends ${missing[*]}" as=''
    if ! has apt-get >/dev/null; then
        fail 'This is no Debian: apt-get is not there.' "Install what these Debian packages hold: ${missing[*]}"
    fi
    if ((EUID != 0)); then
        has sudo >/dev/null || fail 'Installing needs root.' "As root: apt-get update && $command"
        as=sudo
    fi
    printf 'installing: %s\n' "${missing[*]}"
    # An old package list names files that are gone from the servers.
    if ! { $as apt-get -qq update && $as env DEBIAN_FRONTEND=noninteractive $command -qq >/dev/null; }; then
        fail 'apt-get failed.' "As root: apt-get update && $command"
    fi
    missing=()
}

oldest_rust=$(sed -n 's/^rust-version = "\(.*\)"/\1/p' "$root/Cargo.toml")

need_rust() {
    [[ -d ${CARGO_HOME:-$HOME/.cargo}/bin ]] && PATH=$PATH:${CARGO_HOME:-$HOME/.cargo}/bin
    has cargo >/dev/null ||
        fail 'Rust is not installed.' "curl --proto '=https' --tlsv1.2 -sSf https://sh.rustup.rs | sh -s -- -y"
    local have
    have=$(rustc --version | cut -d' ' -f2)
    [[ $(printf '%s\n%s\n' "$oldest_rust" "$have" | sort -V | head -1) == "$oldest_rust" ]] ||
        fail "Rust $have is too old, $oldest_rust is needed." 'rustup update stable && rustup default stable'
}

# The folder that cargo builds into: CARGO_TARGET_DIR, else cargo's configuration, else target.
target_folder() {
    cargo metadata --manifest-path "$root/Cargo.toml" --format-version 1 --no-deps |
        sed 's/.*"target_directory":"\([^"]*\)".*/\1/'
}
