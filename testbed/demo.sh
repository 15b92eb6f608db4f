#!/usr/bin/env bash
# Builds erhu and shows it at work: two tenants with the same addresses, each out through its own, from one script.
#
# Runs the two real processes on capture files, without huge pages, NIC or root (but for missing packages), and ends
# by itself. With --stay both processes go on until Ctrl-C.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

stay=no
case ${1:-} in
'') ;;
--stay) stay=yes ;;
*)
    echo "Usage: testbed/demo.sh [--stay]"
    [[ $1 == -h || $1 == --help ]] && exit 0 || exit 2
    ;;
esac

need_for_build
install_missing
need_rust
echo "building (the first time takes minutes, and fetches crates from crates.io)"
(cd "$root" && cargo build $quiet -p erhu-dataplane -p erhu-controlplane -p erhu-testbed --bins) ||
    fail 'The build failed; what cargo says is above.'
bin=$(target_folder)/debug

folder=$(mktemp -d "${TMPDIR:-/tmp}/erhu-demo.XXXXXX")
# Everything of this run lies in its folder, DPDK's files too: runs do not meet each other or a router that works here.
export ERHU_RUNTIME_DIR=$folder/run ERHU_STATE_DIR=$folder/state RUNTIME_DIRECTORY=$folder XDG_RUNTIME_DIR=$folder
dataplane='' daemon=''

finish() {
    local process
    for process in $daemon $dataplane; do
        kill "$process" 2>/dev/null || true
    done
    for process in $daemon $dataplane; do
        timeout 3 tail --pid="$process" -f /dev/null || kill -KILL "$process" 2>/dev/null || true
    done
}
trap finish EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

# What went wrong is in the logs of the two.
explain() {
    tail -n 5 "$folder/dataplane.log" "$folder/daemon.log" >&2 2>/dev/null || true
    fail "The demo failed: $1." "The logs, whole: $folder/dataplane.log $folder/daemon.log"
}

"$bin/erhu-testbed" demo prepare "$folder" --config "$root/configs/ci.toml"
cd "$folder"
"$bin/erhu-dataplane" --config demo.toml 2>dataplane.log &
dataplane=$!
"$bin/erhu" serve --config demo.toml 2>daemon.log &
daemon=$!
for ((tries = 0; tries < 200; tries++)); do
    kill -0 $dataplane 2>/dev/null || explain 'the dataplane did not start'
    kill -0 $daemon 2>/dev/null || explain 'the daemon did not start'
    [[ -S run/${folder##*/}/dataplane.sock ]] && break
    sleep 0.05
done
"$bin/erhu-testbed" demo show "$folder" --erhu "$bin/erhu" || explain 'see above'
"$bin/erhu-testbed" demo back "$folder" || explain 'see above'

title 'Where to look'
cat <<TEXT
  $folder
    lan.in.pcap  wan.in.pcap     what came in
    lan.out.pcap wan.out.pcap    what the dataplane sent
    replay/                      what the replay sent, and its connections
    demo.toml                    the dataplane's configuration
    dataplane.log daemon.log     what the two processes said
TEXT
if [[ $stay == yes ]]; then
    title 'Both processes go on until Ctrl-C. In another terminal:'
    cat <<TEXT
  export ERHU_RUNTIME_DIR=$ERHU_RUNTIME_DIR ERHU_STATE_DIR=$ERHU_STATE_DIR PATH=$bin:\$PATH
  erhu conntrack -L -p tcp -w 1                           blue's TCP connections
  erhu show pools                                         or ports, interfaces, zones, routes, rules, workers …
  erhu apply $root/configs/many-tenants.rhai --dry-run    what another script would change
  erhu conntrack -F -w 2                                  end green's connections
TEXT
    wait $dataplane $daemon || true
else
    title 'What to try next'
    bin=${bin#"$root"/}
    cat <<TEXT
  The same, and both processes stay for you to ask:
    testbed/demo.sh --stay
  The same packets under a virtual clock: what happens to connections in the hour after them
    $bin/erhu-testbed replay --config configs/ci.toml --rules configs/two-tenants.rhai \\
      --in lan=$folder/lan.in.pcap --in wan=$folder/wan.in.pcap \\
      --in wan=$folder/answers.in.pcap --out $folder/again \\
      --until 3600 --events /dev/stdout
  A thousand tenants, checked:
    $bin/erhu check configs/many-tenants.rhai --config configs/ci.toml
  Change configs/two-tenants.rhai (the script that ran) and run either again. Every test:
    testbed/test.sh
TEXT
fi
