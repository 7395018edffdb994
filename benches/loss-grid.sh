#!/usr/bin/env bash
# Goodput of one TCP stream over an impaired path, through socktap and directly, for several round-trip times and losses.
#
#   benches/loss-grid.sh [SOCKTAP]                          (default: target/release/socktap)
#   GUEST="run-guest.sh -t 7200" benches/loss-grid.sh [SOCKTAP]
#
# The second form is for a kernel without netem. GUEST is a command that boots another kernel, runs the script in its last
# argument there as root, passes on what that writes, and ends. The guest sees this machine's / as its own, read-only or not
# and with or without its /tmp. The command must allow time for all runs; the guest's kernel needs netem, veth and bridge.
#
#   client ───── port1  socktap or bridge  port2 ───── west  netem  east ───── server
#
# The path between socktap and the server delays by half the round-trip time each way, and loses or reorders packets in the
# direction of the data only. An upload (the client sends) measures socktap's sender, a download its receiver; on its
# other side socktap has a perfect wire. "Direct" is the kernel's bridge in place of socktap: the two hosts' TCP end to end.
#
# - netem sits on west and east, where the kernel transmits: AF_XDP's copy mode bypasses the qdiscs of socktap's own ports.
# - Both middles get the same hosts: MTU 1500, no checksum or segmentation offload, no GRO; a qdisc, so that a full queue
#   holds the sender back as a network card's would; the kernel's own congestion control and buffers; nothing remembered
#   from earlier connections. Queues between the namespaces are long enough for any window.
# - The middles take turns within each round, so that a slow minute hits both; the tables show medians.
# - A stream begins with OMIT seconds that do not count (slow start and the way down from it), then DURATION seconds do; both
#   are longer by the factor 1 + RTT / 50 ms. The figure is what the receiving iperf3 got.
# - Every run says how many packets netem took and lost in the direction of the data, how many were lost elsewhere ("stray":
#   a full queue between the namespaces), how busy the busiest core was, and socktap's share of one core. Cells in which the
#   core or socktap were at least 80 % busy have a star: there the CPU is the limit, not TCP. Under emulation they mean little.
#   A guest does not see what else its host does: on a busy host also cells above some 50 Mbit/s suffer, without a star.
# - The range behind a ratio is that of the single rounds' ratios. Chance is great where few packets get lost: a stream of
#   10 Mbit/s and 0.1 % loses one a second, and 10 losses make the goodput of one run uncertain by some 20 %.
# - "reorder" means: netem sends 1 % of the packets at once, the others after their delay: they overtake by half a round trip.
#
# From the environment:
#   CELLS        RTT:LOSS (milliseconds : percent) or RTT:reorder, in any order.
#                Default: all of 0, 10, 50 ms with 0, 0.1, 1, 3 %; 10:reorder 50:reorder
#   DIRECTIONS   upload download
#   ROUNDS       3
#   DURATION     seconds that count in one run at RTT 0, 8
#   OMIT         seconds before that, 2
#   OUT          a file that gets the tables too
#   LOG          a file that gets one line of figures for every run
#
# The tables go to stdout, progress to stderr. All happens in four namespaces of its own, removed at the end, also when
# interrupted; net.core.netdev_max_backlog is raised meanwhile. The whole grid takes about an hour.
# Ends with 1 if a run failed.
set -euo pipefail
script=$(realpath "$0")
OUT=${OUT:+$(realpath "$OUT")}
LOG=${LOG:+$(realpath "$LOG")}
cd "$(dirname "$script")/.."
PATH=$PATH:/usr/sbin:/sbin
export LC_ALL=C
CELLS=${CELLS:-0:0 0:0.1 0:1 0:3 10:0 10:0.1 10:1 10:3 10:reorder 50:0 50:0.1 50:1 50:3 50:reorder}
DIRECTIONS=${DIRECTIONS:-upload download}
ROUNDS=${ROUNDS:-3}
DURATION=${DURATION:-8}
OMIT=${OMIT:-2}

complain() { echo "loss-grid: $*" >&2; }

for cell in $CELLS; do
    [[ $cell =~ ^[0-9]+:([0-9.]+|reorder)$ && $cell != 0:reorder ]] || {
        complain "no such cell: $cell (RTT:LOSS, or RTT:reorder with an RTT above 0)"
        exit 2
    }
done
for direction in $DIRECTIONS; do
    [[ $direction == upload || $direction == download ]] || {
        complain "no such direction: $direction (upload or download)"
        exit 2
    }
done

# ---------------------------------------------------------------------------------------------------------------------
# The measurement itself: `loss-grid.sh --measure SOCKTAP`, here or in the guest. Writes "note|TEXT" and, for each run,
# "run|ROUND|DIRECTION|CELL|MIDDLE|MBIT/S or failed|PACKETS|LOST|STRAY|CORE %|SOCKTAP %|REMARK".
# ---------------------------------------------------------------------------------------------------------------------
measure() {
    socktap=$1
    id=grid-$$
    folder=$(mktemp -d)
    middle_pid=
    iperf_pid=
    backlog=$(cat /proc/sys/net/core/netdev_max_backlog)
    trap measure_clean_up EXIT
    trap 'complain "line $LINENO failed"' ERR
    trap 'exit 130' INT
    trap 'exit 143' TERM HUP
    local need round cell middle direction order
    for need in ip tc ss ethtool iperf3; do
        command -v $need > /dev/null || fail "$need is missing (.ci/setup bench installs what is needed)"
    done
    build_wire
    echo "note|$("$socktap" --version); Linux $(uname -r), $(nproc) cores;" \
        "$(on client cat /proc/sys/net/ipv4/tcp_congestion_control); $(iperf3 --version | sed -n '1s/ (.*//p')"
    for round in $(seq "$ROUNDS"); do
        # Which one begins alternates too.
        order="direct socktap"
        [ $((round % 2)) -eq 1 ] || order="socktap direct"
        for cell in $CELLS; do
            for direction in $DIRECTIONS; do
                for middle in $order; do
                    "start_$middle"
                    impair "$direction" "$cell"
                    run "$round" "$direction" "$cell" "$middle"
                    stop_middle
                done
            done
        done
    done
}

stop() {
    [ -n "$1" ] || return 0
    kill "$1" 2> /dev/null || true
    timeout 10 tail -q --pid="$1" -s 0.1 -f /dev/null || kill -KILL "$1" 2> /dev/null || true
    wait "$1" 2> /dev/null || true
}
measure_clean_up() {
    local status=$? host
    trap - EXIT
    trap '' INT TERM HUP
    stop "$iperf_pid"
    stop "$middle_pid"
    for host in client wire path server; do
        ip netns delete "$id-$host" 2> /dev/null || true
    done
    echo "$backlog" > /proc/sys/net/core/netdev_max_backlog || true
    rm -rf "$folder"
    exit "$status"
}
fail() {
    complain "$*"
    tail -n 20 "$folder"/*.log >&2 2> /dev/null || true
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
    rm -f "$folder/$log"
    ip netns exec "$id-$host" "$@" < /dev/null > "$folder/$log" 2>&1 &
}
# await WHAT COMMAND...: tries a command for 30 seconds until it succeeds.
await() {
    local end=$((SECONDS + 30)) what=$1
    shift
    until "$@" > /dev/null 2>&1; do
        [ $SECONDS -lt $end ] || fail "waited in vain for $what"
        sleep 0.05
    done
}

build_wire() {
    local host link other
    # A frame that crosses a veth pair waits here.
    echo 20000 > /proc/sys/net/core/netdev_max_backlog
    for host in client wire path server; do
        ip netns add "$id-$host"
        ip -n "$id-$host" link set lo up
    done
    ip -n "$id-wire" link add port1 type veth peer name eth0 netns "$id-client"
    ip -n "$id-wire" link add port2 type veth peer name west netns "$id-path"
    ip -n "$id-path" link add east type veth peer name eth0 netns "$id-server"
    ip -n "$id-path" link add br0 type bridge || fail "this kernel has no bridge"
    ip -n "$id-path" link set west master br0
    ip -n "$id-path" link set east master br0
    ip -n "$id-client" addr add 10.77.0.1/24 dev eth0
    ip -n "$id-server" addr add 10.77.0.2/24 dev eth0
    for link in client:eth0 server:eth0 wire:port1 wire:port2 path:west path:east path:br0; do
        ip -n "$id-${link%:*}" link set "${link#*:}" mtu 1500 up
    done
    for host in client server; do
        on $host ethtool -K eth0 tx off tso off gso off gro off > /dev/null
        tc -n "$id-$host" qdisc replace dev eth0 root pfifo limit 10000
        # No connection learns from the one before it, and no ARP gets lost.
        on $host bash -c 'echo 1 > /proc/sys/net/ipv4/tcp_no_metrics_save'
        other=$([ $host = client ] && echo server || echo client)
        ip -n "$id-$host" neigh replace "10.77.0.$([ $other = client ] && echo 1 || echo 2)" dev eth0 nud permanent \
            lladdr "$(on $other cat /sys/class/net/eth0/address)"
    done
    printf '[ports]\nclient = "port1"\nserver = "port2"\n\n[[tap]]\nname = "all"\nserver_port = [5201]\n' > "$folder/ops.toml"
    printf '\n[metrics]\nlisten = "127.0.0.1:9464"\n' >> "$folder/ops.toml"
    tc -n "$id-path" qdisc add dev east root netem limit 20000 ||
        fail "this kernel has no netem: name a command that boots one in GUEST, see the head of this script"
}

# impair DIRECTION CELL: new netem qdiscs, so that their counters begin at 0.
impair() {
    local rtt=${2%:*} what=${2#*:} data=east other=west delay=()
    [ "$1" = upload ] || { data=west && other=east; }
    [ "$rtt" = 0 ] || delay=(delay "$((rtt * 500))us")
    case $what in
        0) what=() ;;
        reorder) what=(reorder 1%) ;;
        *) what=(loss "$what%") ;;
    esac
    for end in east west; do
        tc -n "$id-path" qdisc delete dev $end root 2> /dev/null || true
    done
    # A limit that no window here fills: only what is asked for gets lost.
    tc -n "$id-path" qdisc add dev $data root netem limit 20000 "${delay[@]}" "${what[@]}"
    tc -n "$id-path" qdisc add dev $other root netem limit 20000 "${delay[@]}"
}

start_direct() {
    ip -n "$id-wire" link add br0 type bridge
    ip -n "$id-wire" link set port1 master br0
    ip -n "$id-wire" link set port2 master br0
    ip -n "$id-wire" link set br0 up
}
start_socktap() {
    start_on wire socktap.log "$socktap" run "$folder/ops.toml"
    middle_pid=$!
    await socktap grep -q "socktap is running" "$folder/socktap.log"
}
stop_middle() {
    stop "$middle_pid"
    middle_pid=
    ip -n "$id-wire" link delete br0 2> /dev/null || true
}

# Packets lost that nobody asked to lose: on the links, before them, and between them. netem's own are not among these.
stray_drops() {
    local host
    {
        for host in client wire path server; do
            on $host bash -c 'cat /sys/class/net/*/statistics/[rt]x_dropped'
        done
        for host in client server; do tc -n "$id-$host" -s qdisc show dev eth0; done |
            sed -n 's/.*(dropped \([0-9]*\),.*/\1/p'
        on wire bash -c 'for port in port1 port2; do ethtool -S $port; done' | awk '/xdp_drops/ { print $2 }'
        while read -r _ dropped _; do echo $((16#$dropped)); done < /proc/net/softnet_stat
    } | awk '{ sum += $1 } END { print sum + 0 }'
}
# The clock ticks since the boot: idle and all of each core; of socktap.
ticks() {
    awk '/^cpu[0-9]/ { all = 0; for (i = 2; i <= 9; i++) all += $i; print $1, $5 + $6, all }' /proc/stat
    [ -z "$middle_pid" ] || awk '{ print "socktap", $14 + $15, 0 }' "/proc/$middle_pid/stat"
}
listening() { on server ss -Htln "sport = :5201" | grep -q 5201; }

# run ROUND DIRECTION CELL MIDDLE: one stream.
run() {
    local direction=$2 middle=$4 data=east reverse=() mbit=failed remark='' stray tapped factor=$((50 + ${3%:*}))
    [ "$direction" = upload ] || { data=west && reverse=(-R); }
    start_on server iperf3-server.log iperf3 -s -1
    iperf_pid=$!
    await "iperf3's server" listening
    stray=$(stray_drops)
    ticks > "$folder/before"
    local seconds=$((DURATION * factor / 50)) before=$((OMIT * factor / 50))
    if on client timeout $((before + seconds + 30)) iperf3 -c 10.77.0.2 -t $seconds -O $before "${reverse[@]}" -J \
        > "$folder/iperf3.log" 2>&1; then
        mbit=$(awk '/"sum_received"/ { here = 1 }
            here && /"bits_per_second"/ { sub(/,.*/, "", $2); printf "%.3f", $2 / 1e6; exit }' "$folder/iperf3.log")
        # The kernel's own measure of the path, where the sender is this iperf3.
        remark=$(awk '/"min_rtt"/ && $2 + 0 > 0 { printf ", min rtt %.1f ms", $2 / 1000; exit }' "$folder/iperf3.log")
    else
        remark=", iperf3 ended with $?: $(sed -n 's/.*"error"://p' "$folder/iperf3.log" | tr -d '"|')"
    fi
    ticks > "$folder/after"
    stray=$(($(stray_drops) - stray))
    if [ "$middle" = socktap ]; then
        kill -0 "$middle_pid" 2> /dev/null || fail "socktap has ended"
        # Control and data connection: if they did not go through the tap, the figure is not socktap's.
        on wire curl -sf -m 5 http://127.0.0.1:9464/metrics > "$folder/metrics.log" || fail "socktap does not answer"
        tapped=$(awk '/^socktap_flow_events_total.*event="established"/ { sum += $2 } END { print sum + 0 }' \
            "$folder/metrics.log")
        [ "$mbit" = failed ] || [ "$tapped" -ge 2 ] || fail "the connections did not go through the tap"
        remark+=$(awk '/^socktap_frames_dropped/ && $2 > 0 {
            gsub(/.*reason="|"}/, "", $1)
            printf ", socktap dropped %d: %s", $2, $1
        }' "$folder/metrics.log")
    fi
    stop "$iperf_pid"
    iperf_pid=
    tc -n "$id-path" -s qdisc show dev $data > "$folder/netem.log"
    awk -v head="run|$1|$2|$3|$4|${mbit:-failed}" -v stray="$stray" -v remark="$remark" '
        FNR == 1 { file++ }
        file == 1 { idle[$1] = $2; all[$1] = $3 }
        file == 2 && /^cpu/ {
            time = $3 - all[$1]
            busy = 1 - ($2 - idle[$1]) / time
            if (busy > busiest) busiest = busy
        }
        file == 2 && /^socktap/ { share = sprintf("%.0f", 100 * ($2 - idle[$1]) / time) }
        file == 3 && /Sent/ {
            gsub(/[(,]/, " ")
            for (i = 1; i <= NF; i++) { if ($i == "pkt") sent = $(i - 1); if ($i == "dropped") lost = $(i + 1) }
        }
        END { printf "%s|%d|%d|%s|%.0f|%s|%s\n", head, sent + lost, lost, stray, 100 * busiest, share, remark }
    ' "$folder/before" "$folder/after" "$folder/netem.log"
}

if [ "${1:-}" = --measure ]; then
    measure "$2"
    exit
fi

# ---------------------------------------------------------------------------------------------------------------------
# From here on: start the measurement, follow it, and make the tables.
# ---------------------------------------------------------------------------------------------------------------------
socktap=$(realpath "${1:-target/release/socktap}")
[ -x "$socktap" ] || {
    complain "$socktap is missing: cargo build --release"
    exit 1
}
if [ -z "${GUEST:-}" ] && [ "$(id -u)" -ne 0 ]; then
    complain "needs root, to make network namespaces and attach XDP programs"
    exit 1
fi

# Not below /tmp, which a guest may have anew.
folder=$(mktemp -d -p /var/tmp loss-grid.XXXXXX)
measurement=
# The process and all its descendants: a guest may be a few processes deep.
terminate() {
    local child
    for child in $(ps -o pid= --ppid "$1"); do
        terminate "$child"
    done
    kill "$1" 2> /dev/null || true
}
clean_up() {
    local status=$?
    trap - EXIT
    trap '' INT TERM HUP
    if [ -n "$measurement" ]; then
        [ -z "${GUEST:-}" ] && kill "$measurement" 2> /dev/null || terminate "$measurement"
        wait "$measurement" 2> /dev/null || true
    fi
    rm -rf "$folder"
    exit "$status"
}
trap clean_up EXIT
trap 'complain "line $LINENO failed"' ERR
trap 'exit 130' INT
trap 'exit 143' TERM HUP

export CELLS DIRECTIONS ROUNDS DURATION OMIT
command=("$script" --measure "$socktap")
if [ -n "${GUEST:-}" ]; then
    cp "$script" "$folder/loss-grid.sh"
    cp "$socktap" "$folder/socktap"
    chmod 755 "$folder"
    {
        printf '#!/bin/sh\n'
        printf 'export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin\n'
        printf "export CELLS='%s' DIRECTIONS='%s' ROUNDS='%s' DURATION='%s' OMIT='%s'\n" \
            "$CELLS" "$DIRECTIONS" "$ROUNDS" "$DURATION" "$OMIT"
        printf 'exec bash %s/loss-grid.sh --measure %s/socktap\n' "$folder" "$folder"
    } > "$folder/job"
    chmod 755 "$folder/job"
    read -r -a command <<< "$GUEST"
    command+=("$folder/job")
fi

total=$((ROUNDS * $(wc -w <<< "$CELLS") * $(wc -w <<< "$DIRECTIONS") * 2))
echo "loss-grid: $total runs of $((OMIT + DURATION)) s and some seconds more each" >&2
touch "$folder/runs" "$folder/notes"
mkfifo "$folder/output"
"${command[@]}" > "$folder/output" < /dev/null &
measurement=$!
count=0
while IFS='|' read -r kind round direction cell middle mbit packets lost stray core share remark; do
    case $kind in
        run)
            remark=${remark%$'\r'}
            echo "$round|$direction|$cell|$middle|$mbit|$packets|$lost|$stray|$core|$share|$remark" >> "$folder/runs"
            count=$((count + 1))
            printf '%3d/%d  %-8s rtt %2s ms  loss %-7s  %-7s %9s Mbit/s  netem lost %s of %s, stray %s, core %s %%%s%s\n' \
                "$count" "$total" "$direction" "${cell%:*}" "${cell#*:}" "$middle" "$mbit" "$lost" "$packets" "$stray" "$core" \
                "${share:+, socktap $share %}" "$remark" >&2
            ;;
        note) echo "${round%$'\r'}" | tee -a "$folder/notes" >&2 ;;
        *) echo "$kind${round:+|$round}" >&2 ;;
    esac
done < "$folder/output"
status=0
wait "$measurement" || status=$?
measurement=
[ $status -eq 0 ] || complain "the measurement ended with $status after $count of $total runs"
[ "$count" -gt 0 ] || exit 1
[ -z "$LOG" ] || cp "$folder/runs" "$LOG"

# entry DIRECTION CELL: the cell of a table.
entry() {
    awk -F'|' -v direction="$1" -v cell="$2" '
        function figure(x) { return sprintf((x >= 99.5 ? "%.0f" : (x >= 9.95 ? "%.1f" : "%.2f")), x) }
        function median(middle,    n, i, j, sorted, x) {
            for (i = 1; i <= rounds; i++) {
                if (!((middle, i) in rate)) continue
                x = rate[middle, i]
                for (j = ++n; j > 1 && sorted[j - 1] > x; j--) sorted[j] = sorted[j - 1]
                sorted[j] = x
            }
            return n % 2 ? sorted[(n + 1) / 2] : (n ? (sorted[n / 2] + sorted[n / 2 + 1]) / 2 : 0)
        }
        $2 != direction || $3 != cell { next }
        { if ($1 > rounds) rounds = $1 + 0 }
        $9 >= 80 || $10 >= 80 { star = "\\*" }
        $5 == "failed" { failed++; next }
        { rate[$4, $1 + 0] = $5 }
        END {
            for (i = 1; i <= rounds; i++) {
                if (!(("socktap", i) in rate) || !(("direct", i) in rate) || rate["direct", i] == 0) continue
                ratio = rate["socktap", i] / rate["direct", i]
                if (!pairs++) least = most = ratio
                if (ratio < least) least = ratio
                if (ratio > most) most = ratio
            }
            direct = median("direct"); socktap = median("socktap")
            if (direct > 0) {
                printf "**%.2f**%s", socktap / direct, star
                if (pairs > 1) printf " %.2f–%.2f", least, most
                printf " (%s / %s)", figure(socktap), figure(direct)
            }
            if (failed) printf " %d runs failed", failed
            else if (!rounds) printf "–"
        }' "$folder/runs"
}
tables() {
    local direction rtt loss losses rtts
    losses=$(printf '%s\n' $CELLS | sed 's/.*://' | sort -g | uniq | grep -v reorder || true)
    ! grep -q reorder <<< "$CELLS" || losses+=" reorder"
    rtts=$(printf '%s\n' $CELLS | sed 's/:.*//' | sort -nu)
    sed 's/$/./' "$folder/notes"
    echo "Goodput through socktap as a share of the direct one (Mbit/s: socktap / direct)."
    echo "Rounds: $ROUNDS; seconds of a run: $DURATION, after $OMIT that do not count; more where the RTT is long."
    echo "A star: a core, or socktap, was at least 80 % busy in a run."
    for direction in $DIRECTIONS; do
        printf '\n| %s: RTT |' "$direction"
        for loss in $losses; do
            [ "$loss" = reorder ] && printf ' 1 %% reordered |' || printf ' %s %% lost |' "$loss"
        done
        printf '\n|---|'
        for loss in $losses; do printf -- '---|'; done
        for rtt in $rtts; do
            printf '\n| %s ms |' "$rtt"
            for loss in $losses; do printf ' %s |' "$(entry "$direction" "$rtt:$loss")"; done
        done
        echo
    done
}
tables > "$folder/tables"
cat "$folder/tables"
[ -z "$OUT" ] || cp "$folder/tables" "$OUT"
[ $status -eq 0 ] && ! grep -q '|failed|' "$folder/runs"
