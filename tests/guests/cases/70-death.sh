# A soft-RoCE device is taken away under a program with work of every kind in flight. Its removal waits until nobody uses it: with
# holdfast it completes while the program lives on, and the program sees what the verbs contract promises; then the device
# comes back, and the same process uses it again. (With stock the removal hangs until the program ends.)

clients=${CLIENTS_DIR:-$here/../../../target/clients/$VERSION_CODENAME}
# What the client has to say; kernel 5.10 does not survive atomics between two queue pairs of one device.
death_facts='events DEVICE_FATAL/0
wrong none
statuses none
srq_receives kept
late post_send=0 post_recv=0 post_srq_recv=0 arm=0
after_final post_send=0 post_recv=0 post_srq_recv=0 arm=0
qps query_qp=ERR to_rts=EIO to_err=0 to_reset=0 to_init=EIO
left fds=0 maps=0 threads=0'

says_or_gone() { holds "$log.client" "$2" || gone "$1"; } # PID TEXT

death() { # HOW IT GOES
    local pid rc fact ok=0 loads=write,send,srq,ud,idle
    RDMAV_DRIVERS="$provider_dir/libholdfast" HOLDFAST_LOG=info:stderr \
        "$clients/verbs-death" -a -l 10 -p holdfast -L $loads rxe0 >"$log.client" 2>&1 </dev/null &
    pid=$!
    until_ $LIMIT says_or_gone $pid 'traffic flows'
    timeout -k 5 $LIMIT $1 || { note="$1 ended with $?"; ok=1; }
    gone $pid && { note='the program did not live on'; ok=1; }
    until_ $LIMIT says_or_gone $pid 'bring it back'
    rdma link add rxe0 type rxe netdev rx0
    until_ $LIMIT gone $pid || { kill $pid; note='it does not end'; ok=1; }
    wait $pid
    rc=$?
    [ $rc -eq 0 ] || { note="the program ended with $rc: $(tail -n 1 "$log.client")"; ok=1; }
    while read -r fact; do
        grep -qxF "fact $fact" "$log.client" || { note="not a fact: $fact; $(grep "^fact ${fact%% *} " "$log.client")"; ok=1; }
    done <<<"$death_facts"
    grep -q '^fact never_completed .*=some' "$log.client" && { note=$(grep '^fact never_completed' "$log.client"); ok=1; }
    devices_ready || bed_broken 'the device does not come back'
    return $ok
}
register death-link-delete holdfast/holdfast 'death "rdma link delete rxe0"'
