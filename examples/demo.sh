#!/usr/bin/env bash
# Shows the Redis filter on real traffic: two hosts (network namespaces), a wire between them, socktap on the wire.
#
#   examples/demo.sh [SOCKTAP]        (default: target/release/socktap; `make demo` builds it and calls this)
#
# Makes three namespaces of its own and removes them again, also when interrupted. Ends with 0 if all went as told.
set -euo pipefail
cd "$(dirname "$0")/.."
socktap=$(realpath "${1:-target/release/socktap}")
PATH=$PATH:/usr/sbin:/sbin
server_ip=10.77.0.2

if [ "$(id -u)" -ne 0 ]; then
    echo "demo: needs root, to make network namespaces and attach XDP programs" >&2
    exit 1
fi

heading() { printf '\n== %s\n' "$*"; }
say() { printf '   %s\n' "$*"; }
fail() {
    printf '\ndemo: %s\n' "$*" >&2
    [ ! -s "$folder/socktap.log" ] || { echo "socktap wrote:" && tail -30 "$folder/socktap.log"; } >&2
    exit 1
}

# The namespaces have names of this process alone; the prompts below show the last part of them.
id=demo-$$
folder=$(mktemp -d)
started=()
clean_up() {
    local status=$?
    trap - EXIT
    trap '' INT TERM HUP
    for pid in "${started[@]}"; do
        kill "$pid" 2> /dev/null || true
    done
    for pid in "${started[@]}"; do
        # A process that does not end by itself within two seconds is killed.
        timeout 2 tail -q --pid="$pid" -f /dev/null || kill -KILL "$pid" 2> /dev/null || true
        wait "$pid" 2> /dev/null || true
    done
    for host in client wire server; do
        ip netns delete "$id-$host" 2> /dev/null || true
    done
    rm -rf "$folder"
    exit "$status"
}
trap clean_up EXIT
trap 'echo "demo: line $LINENO failed" >&2' ERR
trap 'exit 130' INT
trap 'exit 143' TERM HUP

# on HOST COMMAND...: runs a command on a host, and shows both.
on() {
    local host=$1 status=0
    shift
    printf '%s$ %s\n' "$host" "$*"
    ip netns exec "$id-$host" "$@" 2>&1 || status=$?
    return "$status"
}
# start HOST LOG COMMAND...: starts a process on a host.
start() {
    local host=$1 log=$2
    shift 2
    printf '%s$%s &\n' "$host" "$(printf " %s" "${@/#$PWD\//}" | sed "s/  / '' /")"
    ip netns exec "$id-$host" "$@" < /dev/null > "$folder/$log" 2>&1 &
    started+=($!)
}
# await SECONDS WHAT COMMAND...: tries a command until it succeeds.
await() {
    local end=$((SECONDS + $1)) what=$2
    shift 2
    until "$@" > /dev/null 2>&1; do
        [ $SECONDS -lt $end ] || fail "waited in vain for $what"
        kill -0 "${started[-1]}" 2> /dev/null || fail "$what: the process has ended"
        sleep 0.05
    done
}
# expect ANSWER FAILURE COMMAND...: runs a command, shows what it writes, and compares its last line.
expect() {
    local answer=$1 failure=$2 output
    shift 2
    output=$("$@") || fail "$failure: $output"
    printf '%s\n' "$output"
    [ "${output##*$'\n'}" = "$answer" ] || fail "$failure"
}
# quietly HOST COMMAND...: its output only.
quietly() {
    local host=$1
    shift
    ip netns exec "$id-$host" "$@"
}

heading "Two hosts, and a wire between them"
say "client 10.77.0.1 ──────── port1  socktap  port2 ──────── server $server_ip"
for host in client wire server; do
    ip netns add "$id-$host"
    ip -n "$id-$host" link set lo up
done
ip -n "$id-wire" link add port1 type veth peer name eth0 netns "$id-client"
ip -n "$id-wire" link add port2 type veth peer name eth0 netns "$id-server"
ip -n "$id-client" addr add 10.77.0.1/24 dev eth0
ip -n "$id-server" addr add $server_ip/24 dev eth0
for link in client:eth0 server:eth0 wire:port1 wire:port2; do
    ip -n "$id-${link%:*}" link set "${link#*:}" up
done
start server redis.log redis-server --save '' --protected-mode no
await 10 "redis-server" quietly server redis-cli ping
start wire socktap.log "$socktap" run examples/redis.toml
await 20 "socktap" grep -q "socktap is running" "$folder/socktap.log"
sed -n 's/.*socktap is running/   socktap is running/p' "$folder/socktap.log"

heading "What is allowed works"
expect OK "SET failed" on client redis-cli -h $server_ip SET greeting hello
expect hello "GET failed" on client redis-cli -h $server_ip GET greeting

heading "FLUSHALL is dropped: the server never sees it, so the client waits in vain; the data is still there"
status=0
on client timeout 2 redis-cli -h $server_ip FLUSHALL || status=$?
[ $status -eq 124 ] || fail "FLUSHALL ended with $status instead of waiting"
say "(no answer within 2 seconds)"
expect hello "the data is gone" on client redis-cli -h $server_ip GET greeting

heading "SHUTDOWN disconnects: both ends are reset; the server lives on"
# redis-cli takes the end of its connection for the success of SHUTDOWN, and ends with 0; so it is the server that is asked.
on client timeout 10 redis-cli -h $server_ip SHUTDOWN NOSAVE || [ $? -ne 124 ] || fail "SHUTDOWN did not disconnect"
expect PONG "the server is gone" on client redis-cli -h $server_ip PING

heading "Full speed, every command and every reply cut and judged: requests per second"
say "(redis-benchmark asks for CONFIG first, which the filter forbids too: hence its warning)"
for pipelined in 1 16; do
    on client timeout 60 redis-benchmark -h $server_ip -t set,get -n 100000 -c 50 -P $pipelined --csv |
        awk -F'"' -v OFS='' '!/,/ || /\$/ { print; next } $2 != "test" { printf "   %-4s %9.0f requests/s, median %s ms\n", $2, $4, $10 }'
done

heading "The counters"
# The worker publishes them ten times a second: wait until they stand still.
before=
for _ in {1..25}; do
    after=$(quietly wire curl -sS http://127.0.0.1:9464/metrics)
    [ "$after" != "$before" ] || break
    before=$after
    sleep 0.2
done
on wire curl -sS http://127.0.0.1:9464/metrics |
    grep -E '^wire|^socktap_(messages|flow_events|parse_errors)_total|"(tapped|to_worker|to_port)"' |
    grep -v ' 0$' | sed 's/^socktap/   socktap/'

heading "The end: SIGTERM"
kill "${started[-1]}"
status=0
wait "${started[-1]}" || status=$?
unset 'started[-1]'
[ $status -eq 0 ] || fail "socktap ended with $status"
[[ $(ip -n "$id-wire" -d link show) != *prog/xdp* ]] || fail "an XDP program is left"
say "socktap ended with 0, and no XDP program is left"
