#!/usr/bin/env bash
# Runs everything that tests erhu, step by step, after installing what is missing. As root: live hosts live in network
# namespaces. Needs no huge pages and no NIC.
#
#   testbed/test.sh            everything
#   testbed/test.sh STEP...    some of: format lint build test instructions demo
#
# Cargo builds into CARGO_TARGET_DIR, else target. Captures of ERHU_PCAPS (else ../shared/pcaps, if there) are replayed
# beside our own.
set -uo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

steps=(format lint build test instructions demo)
case ${1:-} in
-h | --help)
    sed -n '2,/^set /{/^#/s/^# \{0,1\}//p}' "${BASH_SOURCE[0]}"
    exit 0
    ;;
esac
if (($#)); then steps=("$@"); fi
for step in "${steps[@]}"; do
    [[ " format lint build test instructions demo " == *" $step "* ]] ||
        { echo "No step is called $step: format, lint, build, test, instructions or demo." >&2 && exit 2; }
done

((EUID == 0)) || fail 'The tests need root, for network namespaces and tap devices.' \
    'sudo -E testbed/test.sh    (testbed/demo.sh needs no root)'
cd "$root" || exit 1
if [[ -z ${ERHU_PCAPS:-} && -d $root/../shared/pcaps ]]; then
    ERHU_PCAPS=$(cd "$root/../shared/pcaps" && pwd) && export ERHU_PCAPS
fi

step_format() { cargo fmt --check; }
step_lint() { cargo clippy $quiet --workspace --all-targets -- -D warnings; }
# Live tests run the programs themselves: one build for all.
step_build() { cargo build $quiet --workspace --all-targets; }
# What waits for hosts, for the kernel and for other processes is tested beside what reckons.
step_test() {
    local waiting=() reckoning=() target name waits bad=0
    # Nothing is built while tests run what was built.
    step_build || return 1
    for target in {,*/}*/tests/{*.rs,*/main.rs}; do
        [[ -f $target ]] || continue
        name=${target%/main.rs} name=$(basename "$name" .rs)
        case $name in
        differential | live | resilience | virtio | capsule_runtime | nat_check | trunk | net_*) waiting+=("$name") ;;
        *) reckoning+=("$name") ;;
        esac
    done
    tests waiting "${waiting[@]/#/--test=}" &
    waits=$!
    tests reckoning --lib --bins "${reckoning[@]/#/--test=}" || bad=1
    tests reckoning --doc || bad=1
    wait "$waits" || bad=1
    # DPDK writes around the test's own output: kept back, unless it may say what went wrong.
    if ((bad)); then grep -hE "$of_dpdk" "$folder"/{waiting,reckoning} | tail -n 200; fi
    return $bad
}

# What DPDK and its drivers print, and what need not be said of tests that pass.
of_dpdk='^(EAL|VHOST_CONFIG|(tap|qdisc|eth|vhost|virtio)_[a-z_]+\(\)): '
as_expected='^$|^ +Finished |^running [0-9]+ tests?$|^test [^ ]+ (- [a-z ]+ )?\.\.\. ok$|^all doctests'

# tests LOG ARGUMENT...: one run of `cargo test`; shows a line for each of its programs, and what is wrong. A test
# program that takes longer than ten minutes, of which none needs two, is ended (what it had started may go on).
tests() {
    local log=$folder/$1 machine limit=()
    shift
    machine=$(rustc -vV | sed -n 's/^host: //p') machine=${machine//-/_}
    # Doctests are run by rustdoc, which takes no `timeout`.
    [[ $1 == --doc ]] || limit=("CARGO_TARGET_${machine^^}_RUNNER=timeout --foreground --verbose --kill-after=10 600")
    env "${limit[@]}" cargo test --workspace --no-fail-fast "$@" 2>&1 | tee -a "$log" | short
    return "${PIPESTATUS[0]}"
}

# Line by line, as they come: Debian's awk waits for more, and a test that hangs is not named.
short() {
    local line name=''
    while IFS= read -r line; do
        if [[ $line =~ ^\ +(Running|Doc-tests)\ (unittests\ )?([^ ]+) ]]; then
            name=${BASH_REMATCH[3]}
            if [[ -n ${BASH_REMATCH[2]} ]]; then name=${line##*/} name=${name%-*}; fi
        elif [[ $line == 'test result: '* ]]; then
            [[ $line =~ ^test\ result:\ ok.\ 0\ passed\;.*\ 0\ ignored ]] ||
                printf '%-40s %s\n' "$name" "${line#test result: }"
        elif ! [[ $line =~ $of_dpdk|$as_expected ]]; then
            printf '%s\n' "$line"
        fi
    done
}

# Of the code as it is shipped, counted under valgrind and held against testbed/instructions.toml.
step_instructions() { cargo run $quiet --release -p erhu-count; }
step_demo() { testbed/demo.sh; }

declare -A remedy=(
    [format]='cargo fmt'
    [lint]='cargo clippy --workspace --all-targets'
    [build]='cargo build --workspace --all-targets'
    [test]='cargo test -p PACKAGE --test TEST NAME    runs one test alone; the lines above name it'
    [instructions]='cargo run --release -p erhu-count    what it says about testbed/instructions.toml is to be done there'
    [demo]='testbed/demo.sh'
)

began=$SECONDS
title 'what is missing'
need_for_build
need_for_tests
install_missing
need_rust
for component in clippy rustfmt; do
    cargo "${component/rustfmt/fmt}" --version >/dev/null 2>&1 || rustup component add "$component" >/dev/null 2>&1 ||
        fail "cargo ${component/rustfmt/fmt} is not there." "rustup component add $component"
done
printf 'nothing any more (%d s)\n' $((SECONDS - began))

# Tests write thousands of small files and wait for some to be on the disk: in memory, where there is room for them and
# programs may run, as doctests do.
room=$(df --output=avail --block-size=1M /dev/shm 2>/dev/null | tail -1)
if [[ -z ${TMPDIR:-} ]] && ((${room:-0} >= 1024)) && ! grep -qE ' /dev/shm [^ ]+ [^ ]*noexec' /proc/mounts; then
    TMPDIR=/dev/shm
fi
for old in "${TMPDIR:-/tmp}"/erhu-test.*; do
    owner=${old##*/erhu-test.}
    # Of a run that was killed.
    [[ -d $old ]] && ! kill -0 "${owner%%.*}" 2>/dev/null && rm -rf "$old"
done
folder=$(mktemp -d "${TMPDIR:-/tmp}/erhu-test.$$.XXXXXX")
trap 'rm -rf "$folder"' EXIT
trap 'trap - TERM HUP; kill -TERM 0' TERM HUP
export TMPDIR=$folder
failed=() not_run=()
for step in "${steps[@]}"; do
    # What does not build cannot be tested.
    if [[ " ${failed[*]} " == *' build '* ]]; then
        not_run+=("$step")
        continue
    fi
    title "$step"
    step_began=$SECONDS
    if "step_$step"; then
        printf '%s%s: ok%s (%d s)\n' "$green" "$step" "$normal" $((SECONDS - step_began))
    else
        failed+=("$step")
        printf '%s%s: failed%s (%d s). Alone: %s\n' "$red" "$step" "$normal" $((SECONDS - step_began)) "${remedy[$step]}"
    fi
done

title 'in all'
awk '/^test result:/ { passed += $4; failed += $6; ignored += $8 }
     END { printf "tests: %d passed, %d failed, %d ignored\n", passed, failed, ignored }' "$folder"/{waiting,reckoning} 2>/dev/null
printf 'steps: %d passed, %d failed%s%s (%d s)\n' $((${#steps[@]} - ${#failed[@]} - ${#not_run[@]})) ${#failed[@]} \
    "${failed[*]:+: ${failed[*]}}" "${not_run[*]:+; not run: ${not_run[*]}}" $((SECONDS - began))
((${#failed[@]} == 0))
