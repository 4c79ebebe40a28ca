# The death of a device under programs that know nothing of it. Sourced by the death cases of each bed. (ib_write_lat is none of
# them: it waits for its memory to change and looks at no queue meanwhile, so that nobody can tell it anything.)

# How long a program may take to end once its device is gone: a second is what it takes, an emulated CPU on a busy host more.
SOON=60

connected() { [ "$(rdma resource show qp | grep -c "state RT[RS].*pid \($server\|$client\) ")" -ge 2 ]; }
connected_or_gone() { connected || gone "$server" || gone "$client"; }

# ended SIDE JOB PID SINCE: it ends by itself, soon, in error, and says why.
ended() {
    local rc words
    until_ $SOON gone "$3" || { note="the $1 hangs"; abandon "$2"; return 1; }
    tenths=$(((${EPOCHREALTIME/./} - $4) / 100000))
    wait "$2"
    rc=$?
    words=$(tr '\r' '\n' <"$log.$1" | grep -m1 -iE 'fail|error|unable|couldn')
    [ $rc -ne 0 ] || { note="the $1 ends as if all were well"; return 1; }
    [ $rc -lt 124 ] || { note="the $1 ended with $rc"; return 1; }
    [ -n "$words" ] || { note="the $1 does not say why it ends"; return 1; }
}

# tool_dies HOW MODE TOOL ARGUMENT...: both ends are on a device that is taken away by HOW, which has to come to its end.
tool_dies() {
    local how=$1 mode=$2 server='' client='' server_job client_job ok=0 went tenths=0
    shift 2
    set -- "$@" -p "$port"
    launch server holdfast "$mode" "$@" || return 1
    server=$pid server_job=$job
    until_ $LIMIT ready_or_gone listening "$port"
    launch client holdfast "$mode" "$@" 127.0.0.1 || { abandon "$server_job"; return 1; }
    client=$pid client_job=$job
    until_ $LIMIT connected_or_gone
    if connected && prove server "$server" holdfast "$mode" && prove client "$client" holdfast "$mode"; then
        timeout -k 5 $LIMIT bash -c "$how" >"$log.how" 2>&1 || { note="'$how' ended with $?"; ok=1; }
        went=${EPOCHREALTIME/./}
        ended server "$server_job" "$server" "$went" || ok=1
        local of_server=$tenths
        ended client "$client_job" "$client" "$went" || ok=1
        [ $ok -ne 0 ] || note="server $((of_server / 10)).$((of_server % 10)) s, client $((tenths / 10)).$((tenths % 10)) s after"
    else
        note="not connected: $(last_words server); $(last_words client); $note"
        ok=1
        abandon "$server_job"
        abandon "$client_job"
    fi
    return $ok
}

# many_deaths N DEVICE GO BACK [ARGUMENT...]: one process lives through N deaths of the device at moments of chance. Function GO takes it
# away, BACK brings it back. Everything has to be as it should each time, and nothing to grow.
many_deaths() {
    local n=$1 device=$2 go=$3 back=$4 pid round rc fact ok=0
    shift 4
    RDMAV_DRIVERS="$provider_dir/libholdfast" HOLDFAST_LOG="info:$log.holdfast" \
        "$clients/verbs-death" -a -n "$n" -l 30 -p holdfast "$@" "$device" >"$log.client" 2>&1 </dev/null &
    pid=$!
    for ((round = 1; round <= n; round++)); do
        until_ $LIMIT says_or_gone $pid "round $round: traffic flows"
        gone $pid && break
        read -r -t "0.$((RANDOM % 10))$((RANDOM % 10))1" -u "$pause_fd"
        $go || { note="round $round: it does not go"; ok=1; }
        until_ $LIMIT says_often_or_gone $pid 'bring it back' $round
        $back || { note="round $round: it does not come back"; ok=1; }
    done
    until_ $LIMIT gone $pid || { kill $pid; note='it does not end'; ok=1; }
    wait $pid
    rc=$?
    [ $rc -eq 0 ] || { note="the program ended with $rc: $(tail -n 1 "$log.client")"; ok=1; }
    for fact in 'wrong none' 'statuses none' 'left fds=0 maps=0 threads=0' 'resident steady'; do
        grep -qxF "fact $fact" "$log.client" || { note="not a fact: $fact; $(grep "^fact ${fact%% *} " "$log.client")"; ok=1; }
    done
    grep -q '^fact never_completed .*=some' "$log.client" && { note=$(grep '^fact never_completed' "$log.client"); ok=1; }
    [ $ok -ne 0 ] || note=$(python3 "$here/times.py" "$log.client" "$log.holdfast" | tee "$log.times" | head -n 1)
    return $ok
}
says_often_or_gone() { # PID TEXT N
    local lines line n=0
    mapfile -t lines <"$log.client"
    for line in "${lines[@]}"; do [[ $line != *"$2" ]] || n=$((n + 1)); done
    [ $n -ge "$3" ] || gone "$1"
}
says_or_gone() { holds "$log.client" "$2" || gone "$1"; } # PID TEXT
