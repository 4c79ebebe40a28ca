# The tools that live through a fault: both sides of each on the device that dies, once for each provider. Sourced by `fault`.
# A wrapper notes when a tool ended. verbs-fatal with the stock provider observes: its log has the kernel's signs.

tools=() # TOOL.SIDE.PROVIDER
port=19000

listening() { # /proc/net/tcp has the port in hexadecimal, and the partner of a listener is 0
    local hex lines
    printf -v hex ':%04X 00000000:0000 0A' "$1"
    mapfile -t lines </proc/net/tcp
    [[ ${lines[*]} == *"$hex"* ]] && return
    printf -v hex ':%04X 00000000000000000000000000000000:0000 0A' "$1"
    mapfile -t lines </proc/net/tcp6
    [[ ${lines[*]} == *"$hex"* ]]
}
ended() { [ -e "$out/$1.ended" ]; }
listening_or_over() { listening "$1" || ended "$2"; }

# tool TOOL.SIDE.PROVIDER COMMAND...
tool() {
    local client=$1 slow=()
    shift
    (
        [[ $client != *.holdfast ]] || export LD_PRELOAD=$HOLDFAST_DIR/libholdfast.so
        # Those of stock that poll for ever shall not slow down the others.
        [[ $client != *.stock ]] || slow=(nice -n 19)
        (under "${client##*.}" "${slow[@]}" "$@") >"$out/$client.said" 2>&1 </dev/null &
        echo $! >"$out/$client.pid"
        wait $!
        local status=$?
        echo "$(clock) $status" >"$out/$client.ended"
    ) &
    tools+=("$client")
}

pair() { # NAME PROVIDER COMMAND...
    local name=$1 provider=$2
    shift 2
    port=$((port + 1))
    tool "$name.server.$provider" "$@" -d mlx5_0 -p $port
    until_ $LIMIT listening_or_over $port "$name.server.$provider" || wrong "$name with $provider: no server"
    tool "$name.client.$provider" "$@" -d mlx5_0 -p $port 127.0.0.1
}

# Queue pairs of user space that can receive: two of each pair, and those of the observer.
connected() {
    [ "$(rdma resource show qp | grep -c 'state RT[RS].*pid')" -ge $((${#tools[@]} + 2)) ]
}

tools_start() {
    local provider
    start observer.stock "$CLIENTS_DIR/verbs-fatal" -p stock -t 3600 mlx5_0
    for provider in $providers; do
        pair rc_pingpong $provider ibv_rc_pingpong -n 1000000000
        pair rc_pingpong_events $provider ibv_rc_pingpong -n 1000000000 -e
        pair send_bw $provider ib_send_bw -F -D 3000
        pair send_bw_events $provider ib_send_bw -F -N -n 100000000 -e
        pair write_lat $provider ib_write_lat -F -n 1000000
    done
    until_ $LIMIT connected || wrong "not all tools are connected: $(rdma resource show qp)"
}

all_ended() { # PROVIDER
    local client
    for client in "${tools[@]}"; do [[ $client != *."$1" ]] || ended "$client" || return 1; done
}

# Those of stock are given ten seconds, those of holdfast a minute: how long they took is told.
tools_end() {
    local provider client at status final words lines
    final=$(sed -n 's/^\([0-9.]*\) event DEVICE_FATAL\/0.*/\1/p' "$out/observer.stock.log" | tail -n 1)
    for provider in $providers; do
        if [ $provider = stock ]; then until_ 10 all_ended stock; else until_ 60 all_ended $provider; fi
        lines=''
        for client in "${tools[@]}"; do
            [[ $client == *.$provider ]] || continue
            if ! ended "$client"; then
                lines+="fact ${client%.*} hangs"$'\n'
                kill -9 "$(<"$out/$client.pid")"
                continue
            fi
            read -r at status <"$out/$client.ended"
            words=$(tr '\r' '\n' <"$out/$client.said" | grep -iE 'fail|error|unable|couldn' | head -n 1)
            if [ "$status" = 0 ]; then
                lines+="fact ${client%.*} ends well"
            else
                lines+="fact ${client%.*} ends in error, says ${words:+why}"
                [ -n "$words" ] || lines+=nothing
            fi
            lines+=$'\n'"$at ${client%.*} ends with $status: $words"$'\n'
            [ -z "$final" ] || lines+="$at time ${client%.*} $(awk "BEGIN { printf \"%.2f\", $at - $final }")"$'\n'
        done
        printf '%s' "$lines" >"$out/tools.$provider.log"
    done
}
