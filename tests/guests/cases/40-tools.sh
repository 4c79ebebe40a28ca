# Tools that need no partner.

# What ibv_devinfo -v says must be what it says with the stock provider, to the letter. Its output goes to a pipe that
# is full, so that it is at rest, with the device open or just closed, when its maps are looked at.
devinfo() { # VARIANT
    local provider=${1%/*} rc fifo=/run/guest/devinfo
    rm -f $fifo && mkfifo $fifo || return 1
    ibv_devinfo -v >"$log.reference" 2>&1 || { note='stock gives no reference'; return 1; }
    exec {pipe}<>$fifo
    dd if=/dev/zero of=$fifo bs=4096 count=16 oflag=nonblock status=none
    launch tool "$provider" drivers bash -c "exec ibv_devinfo -v >$fifo" || return 1
    prove tool "$pid" "$provider" drivers
    local proof=$?
    exec {drain}<$fifo
    exec {pipe}>&-
    tail -c +65537 <&"$drain" >"$log.output"
    exec {drain}<&-
    wait "$job"
    rc=$?
    [ $proof -eq 0 ] || return 1
    [ $rc -eq 0 ] || { note="it ended with $rc"; return 1; }
    grep -q 'hca_id' "$log.output" || { note='no device'; return 1; }
    diff -u "$log.reference" "$log.output" >"$log.diff" || { note="differs from stock: $(grep -c '^[-+][^-+]' "$log.diff") lines"; return 1; }
}
register devinfo "$BOTH" 'devinfo $variant'

# The events of a port that goes down and comes back.
asyncwatch() { # VARIANT
    local provider=${1%/*} ok=0
    launch tool "$provider" drivers stdbuf -oL ibv_asyncwatch -d rxe0 || return 1
    local watch_job=$job watch=$pid
    until_ $LIMIT grep -q 'async event FD' "$log.tool" || { note='it does not start to watch'; ok=1; }
    [ $ok -ne 0 ] || prove tool "$watch" "$provider" drivers || ok=1
    if [ $ok -eq 0 ]; then
        ip link set rx0 down
        until_ $LIMIT grep -q IBV_EVENT_PORT_ERR "$log.tool" || { note='no PORT_ERR'; ok=1; }
        ip link set rx0 up
        ip addr replace fd00::1/64 dev rx0 nodad
        until_ $LIMIT grep -q IBV_EVENT_PORT_ACTIVE "$log.tool" || { note='no PORT_ACTIVE'; ok=1; }
    fi
    abandon "$watch_job"
    devices_ready || bed_broken 'the port does not come back'
    return $ok
}
register asyncwatch "$BOTH" 'asyncwatch $variant'
