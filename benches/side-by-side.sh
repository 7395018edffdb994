#!/usr/bin/env bash
# wrk to nginx over one wire, through each of several middles in turn: requests per second and latency.
#
#   benches/side-by-side.sh [SOCKTAP]        (default: target/release/socktap; `make bench` builds it and calls this)
#
#   middle    what stands between the two hosts
#   socktap   a tap without programs: TCP is terminated on both sides, all bytes pass
#   http1     a tap with the http1 filter: every request is cut out and judged (needs `make programs`)
#   haproxy   HAProxy in TCP mode, one thread
#   bridge    the kernel's bridge: the limit without a middle
#
# The middles take turns within each round, so that a slow minute of the machine hits them all; the table shows medians.
# From the environment: MIDDLES, ROUNDS (3), DURATION (seconds of one measurement, 5), CONNECTIONS (64).
# All happens in three namespaces of its own, which are removed at the end, also when interrupted.
set -euo pipefail
cd "$(dirname "$0")/.."
socktap=$(realpath "${1:-target/release/socktap}")
MIDDLES=${MIDDLES:-socktap http1 haproxy bridge}
ROUNDS=${ROUNDS:-3}
DURATION=${DURATION:-5}
CONNECTIONS=${CONNECTIONS:-64}
PATH=$PATH:/usr/sbin:/sbin
export LC_ALL=C

if [ "$(id -u)" -ne 0 ]; then
    echo "side-by-side: needs root, to make network namespaces and attach XDP programs" >&2
    exit 1
fi

id=bench-$$
folder=$(mktemp -d)
nginx_pid=
middle_pid=
stop() {
    [ -n "$1" ] || return 0
    kill "$1" 2> /dev/null || true
    timeout 10 tail -q --pid="$1" -f /dev/null || kill -KILL "$1" 2> /dev/null || true
    wait "$1" 2> /dev/null || true
}
clean_up() {
    local status=$?
    trap - EXIT
    trap '' INT TERM HUP
    stop "$middle_pid"
    stop "$nginx_pid"
    for host in client wire server; do
        ip netns delete "$id-$host" 2> /dev/null || true
    done
    rm -rf "$folder"
    exit "$status"
}
trap clean_up EXIT
trap 'echo "side-by-side: line $LINENO failed" >&2' ERR
trap 'exit 130' INT
trap 'exit 143' TERM HUP

fail() {
    echo "side-by-side: $*" >&2
    tail -n 20 "$folder"/*.log >&2 || true
    exit 1
}
on() {
    local host=$1
    shift
    ip netns exec "$id-$host" "$@"
}
# start_on HOST LOG COMMAND...: starts a process on a host; its id is in $!.
start_on() {
    local host=$1 log=$2
    shift 2
    ip netns exec "$id-$host" "$@" < /dev/null > "$folder/$log" 2>&1 &
}
# await WHAT COMMAND...: tries a command for 20 seconds until it succeeds.
await() {
    local end=$((SECONDS + 20)) what=$1
    shift
    until "$@" > /dev/null 2>&1; do
        [ $SECONDS -lt $end ] || fail "waited in vain for $what"
        sleep 0.05
    done
}

build_wire() {
    local link host
    for host in client wire server; do
        ip netns add "$id-$host"
        ip -n "$id-$host" link set lo up
    done
    ip -n "$id-wire" link add port1 type veth peer name eth0 netns "$id-client"
    ip -n "$id-wire" link add port2 type veth peer name eth0 netns "$id-server"
    ip -n "$id-client" addr add 10.77.0.1/24 dev eth0
    ip -n "$id-server" addr add 10.77.0.2/24 dev eth0
    for link in client:eth0 server:eth0 wire:port1 wire:port2; do
        ip -n "$id-${link%:*}" link set "${link#*:}" up
    done
}

start_nginx() {
    mkdir "$folder/www"
    printf 'x%.0s' {1..64} > "$folder/www/index.html"
    cat > "$folder/nginx.conf" << END
daemon off; master_process off; pid $folder/nginx.pid; error_log stderr crit;
events { worker_connections 4096; }
http {
  access_log off; keepalive_requests 1000000000; root $folder/www;
  client_body_temp_path $folder/t1; proxy_temp_path $folder/t2; fastcgi_temp_path $folder/t3;
  uwsgi_temp_path $folder/t4; scgi_temp_path $folder/t5;
  server { listen 80 backlog=4096; }
}
END
    start_on server nginx.log nginx -e stderr -p "$folder" -c "$folder/nginx.conf"
    nginx_pid=$!
    await nginx on server curl -sf http://127.0.0.1/
}

start_socktap() {
    {
        printf '[ports]\nclient = "port1"\nserver = "port2"\nxdp_mode = "native"\n\n[[tap]]\nname = "web"\nserver_port = [80]\n'
        printf '%s\n' "$@"
    } > "$folder/ops.toml"
    start_on wire middle.log "$socktap" run "$folder/ops.toml"
    middle_pid=$!
    await socktap grep -q "socktap is running" "$folder/middle.log"
}

# start MIDDLE: brings it up; sets the address that wrk is to use.
start() {
    address=10.77.0.2
    case $1 in
        socktap) start_socktap ;;
        http1)
            start_socktap \
                "receive = { object = \"$PWD/tap-engine/programs/http1.bpf.o\", parser = \"parse_request\", verdict = \"no_admin\" }"
            ;;
        bridge)
            ip -n "$id-wire" link add br0 type bridge
            ip -n "$id-wire" link set port1 master br0
            ip -n "$id-wire" link set port2 master br0
            ip -n "$id-wire" link set br0 up
            ;;
        haproxy)
            # One address, a route to each host: no bridge and no forwarding on its way.
            address=10.77.0.3
            ip -n "$id-wire" addr add $address/32 dev port1
            ip -n "$id-wire" route add 10.77.0.1 dev port1 src $address
            ip -n "$id-wire" route add 10.77.0.2 dev port2 src $address
            cat > "$folder/haproxy.cfg" << END
global
  nbthread 1
  maxconn 4000
defaults
  mode tcp
  timeout connect 10s
  timeout client 60s
  timeout server 60s
listen web
  bind $address:80
  server nginx 10.77.0.2:80
END
            start_on wire middle.log haproxy -db -f "$folder/haproxy.cfg"
            middle_pid=$!
            ;;
        *) fail "no such middle: $1" ;;
    esac
    await "$1 to connect client and server" on client curl -sf -m 2 "http://$address/"
}

stop_middle() {
    stop "$middle_pid"
    middle_pid=
    ip -n "$id-wire" link delete br0 2> /dev/null || true
    ip -n "$id-wire" addr flush dev port1 scope global
    ip -n "$id-wire" route flush dev port2 2> /dev/null || true
    ip -n "$id-client" neigh flush dev eth0
    ip -n "$id-server" neigh flush dev eth0
}

# A latency of wrk (56.00us, 1.20ms, 1.00s) in microseconds.
microseconds() {
    awk '{ factor = /us$/ ? 1 : /ms$/ ? 1000 : 1000000; printf "%.0f\n", $1 * factor }'
}
median() {
    sort -g | awk '{ value[NR] = $1 } END { print value[int((NR + 1) / 2)] }'
}

build_wire
start_nginx
echo "wrk: 1 thread, $CONNECTIONS connections, $DURATION s, 64-byte body; $ROUNDS rounds; $(nproc) cores; Linux $(uname -r)"
! command -v haproxy > /dev/null || haproxy -v | sed -n '1s/ - .*//; 1s/ [0-9/]*$//; 1p'
for round in $(seq "$ROUNDS"); do
    for middle in $MIDDLES; do
        start "$middle"
        on client wrk -t1 -c"$CONNECTIONS" -d1s "http://$address/" > /dev/null # warm up
        on client wrk -t1 -c"$CONNECTIONS" -d"${DURATION}s" --latency "http://$address/" > "$folder/wrk.log"
        stop_middle
        rate=$(awk '/^Requests\/sec/ { print $2 }' "$folder/wrk.log")
        half=$(awk '$1 == "50%" { print $2 }' "$folder/wrk.log" | microseconds)
        most=$(awk '$1 == "99%" { print $2 }' "$folder/wrk.log" | microseconds)
        errors=$(grep -E 'Socket errors|Non-2xx' "$folder/wrk.log" | tr -s ' ' || true)
        echo "$rate" >> "$folder/$middle.rate"
        echo "$half" >> "$folder/$middle.half"
        echo "$most" >> "$folder/$middle.most"
        printf 'round %s  %-8s %8.0f requests/s %s\n' "$round" "$middle" "$rate" "$errors"
    done
done

echo
printf '| %-8s | %10s | %8s | %8s | %10s |\n' middle requests/s "p50 µs" "p99 µs" "x haproxy"
printf '|%s|%s|%s|%s|%s|\n' ---------- -----------: ---------: ---------: -----------:
peer=$([ ! -e "$folder/haproxy.rate" ] || median < "$folder/haproxy.rate")
for middle in $MIDDLES; do
    rate=$(median < "$folder/$middle.rate")
    ratio=$([ -z "$peer" ] || awk -v a="$rate" -v b="$peer" 'BEGIN { printf "%.2f", a / b }')
    printf '| %-8s | %10.0f | %7s | %7s | %10s |\n' \
        "$middle" "$rate" "$(median < "$folder/$middle.half")" "$(median < "$folder/$middle.most")" "$ratio"
done
