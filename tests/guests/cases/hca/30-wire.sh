# The wire between the two devices loses, delays and breaks: what RC makes good and what it does not.

# wire VARIANT FAULT CELL...: the cell while the wire has that fault.
wire() {
    local variant=$1 fault=$2 rc
    shift 2
    hca-control wire "$fault" >"$log.wire" 2>&1 || { note="no such fault: $fault"; return 1; }
    "$@"
    rc=$?
    hca-control wire heal >"$log.wire" 2>&1 || bed_broken 'the wire does not heal'
    return $rc
}
register wire-drop "$BOTH" 'wire $variant "drop every 7" pingpong_cell $variant mlx5_1 ibv_rc_pingpong -n 50 -c'
register wire-drop-write "$BOTH" 'wire $variant "drop every 7" perftest_cell $variant mlx5_1 ib_write_bw -n 50 -s 4096'
register wire-slow "$BOTH" 'wire $variant "slow 2ms" pingpong_cell $variant mlx5_1 ibv_rc_pingpong -n 20 -c'

# A client on a wire that is cut ends with an error of its own, for want of an answer, and does not hang.
wire_cut() { # VARIANT
    local variant=$1
    wire "$variant" cut pingpong_cell "$variant" mlx5_1 ibv_rc_pingpong -n 20
    [[ $note == 'the client ended with 1:'* ]] && grep -q 'transport retry counter exceeded' "$log.client" ||
        { note="not ended by retries: $note"; return 1; }
    note=''
}
register wire-cut "$BOTH" 'wire_cut $variant'
