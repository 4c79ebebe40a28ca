# The tools of rdmacm-utils, and qperf.

cm_tool() { # NAME VARIANTS EXPECT SERVER-WORDS CLIENT-WORDS: by `pair`, where that is set, in place of tool_pair
    register "$1" "$2" "${pair:-tool_pair} \$variant preload cm '$3' -- $4 -- $5"
}

# A thread of rping before rdma-core 59 may read from the event channel once more that the main thread has just destroyed, and ends the
# process with 255, all done: that is no result, and is tried again.
rping_pair() {
    local attempt
    for attempt in 1 2 3; do
        note=''
        tool_pair "$@" && return
        grep -qx 'rdma_get_cm_event: Bad file descriptor' "$log.client" "$log.server" &&
            grep -q '^ping data: rdma-ping-49:' "$log.client" || return 1
        echo "attempt $attempt: $note" >&2
    done
    return 1
}

pair=rping_pair cm_tool rping-local "$BOTH" 'client DISCONNECT|^ping data' 'rping -s -a 10.0.0.1 -p $port -C 50' 'rping -c -v -a 10.0.0.1 -p $port -C 50'
pair=rping_pair cm_tool rping-across "$ALL4" '^ping data' 'rping -s -a 10.0.0.1 -p $port -C 50' 'rping -c -v -I 10.0.0.2 -a 10.0.0.1 -p $port -C 50'
cm_tool ucmatose "$ALL4" 'data transfers complete' 'ucmatose -b 10.0.0.1 -p $port' 'ucmatose -b 10.0.0.2 -s 10.0.0.1 -p $port'
cm_tool ucmatose-many "$BOTH" 'data transfers complete' 'ucmatose -b 10.0.0.1 -p $port -c 10 -C 20' 'ucmatose -b 10.0.0.2 -s 10.0.0.1 -p $port -c 10 -C 20'
cm_tool udaddy "$BOTH" 'data transfers complete' 'udaddy -b 10.0.0.1' 'udaddy -b 10.0.0.2 -s 10.0.0.1'
cm_tool rdma-client-server "$BOTH" 'rdma_client: end 0' 'rdma_server -s 10.0.0.1 -p $port' 'rdma_client -s 10.0.0.1 -p $port'

# qperf's server serves each client in a child. Of its tests only those that connect by rdmacm know RoCE.
qperf_cell() { # VARIANT TEST
    local variant=$1 job server_job rc server client served
    launch server "${variant%/*}" preload qperf -lp $port || return 1
    server_job=$job server=$pid
    until_ $LIMIT ready_or_gone listening $port
    launch client "${variant#*/}" preload qperf 10.0.0.1 -lp $port -cm 1 -t 2 "$2" || return 1
    client_job=$job client=$pid
    # Two seconds of traffic: looked at while they pass.
    prove client "$client" "${variant#*/}" preload && until_ $LIMIT caught_or_gone "$server" "$client" "${variant%/*}" &&
        prove server "$served" "${variant%/*}" preload
    local proof=$?
    kill -CONT "$client" 2>/dev/null
    wait "$client_job"
    rc=$?
    abandon "$server_job"
    [ $rc -eq 0 ] || { note="the client ended with $rc: $(last_words client)"; return 1; }
    [ $proof -eq 0 ] || { note=${note:-'server: not proven in time'}; return 1; }
    grep -qE '(bw|latency|msg_rate) +=' "$log.client" || { note='no figure'; return 1; }
}
# The child opens its device when the client asks it to, and ends with it: it is looked at while the client is stopped, which
# goes on wherever that was too early.
caught_or_gone() { # SERVER CLIENT PROVIDER
    local mapped=''
    kill -STOP "$2" && read -r served _ <"/proc/$1/task/$1/children"
    ! served server "$served" "$3" || return 0
    kill -CONT "$2"
    gone "$2"
} 2>/dev/null
qperf() { register "qperf-$1" "$BOTH" "qperf_cell \$variant $1"; }
qperf rc_bw
qperf rc_lat
full_only
qperf rc_rdma_write_bw
qperf rc_rdma_read_bw
qperf rc_fetch_add_mr
