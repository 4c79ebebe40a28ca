# Tools that need no partner.

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
