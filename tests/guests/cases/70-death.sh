# A soft-RoCE device is taken away under a program with work of every kind in flight. Its removal waits until nobody uses it: with
# holdfast it completes while the program lives on, and the program sees what the verbs contract promises; then the device
# comes back, and the same process uses it again. (With stock the removal hangs until the program ends.)
. "$here/death.sh"

OURS=holdfast/holdfast
# What the client has to say; kernel 5.10 does not survive atomics between two queue pairs of one device.
death_facts='srq_receives kept
late post_send=0 post_recv=0 post_srq_recv=0 arm=0
after_final post_send=0 post_recv=0 post_srq_recv=0 arm=0
qps query_qp=ERR to_rts=EIO to_err=0 to_reset=0 to_init=EIO
left fds=0 maps=0 threads=0'

death() { # DEVICE HOW-IT-GOES HOW-IT-COMES-BACK FACT...
    local device=$1 how=$2 back=$3 pid rc fact ok=0 loads=write,send,srq,ud,idle
    RDMAV_DRIVERS="$provider_dir/libholdfast" HOLDFAST_LOG=info:stderr \
        "$clients/verbs-death" -a -l 10 -p holdfast -L $loads "$device" >"$log.client" 2>&1 </dev/null &
    pid=$!
    until_ $LIMIT says_or_gone $pid 'traffic flows'
    timeout -k 5 $LIMIT bash -c "$how" || { note="$how ended with $?"; ok=1; }
    gone $pid && { note='the program did not live on'; ok=1; }
    until_ $LIMIT says_or_gone $pid 'bring it back'
    $back
    until_ $LIMIT gone $pid || { kill $pid; note='it does not end'; ok=1; }
    wait $pid
    rc=$?
    [ $rc -eq 0 ] || { note="the program ended with $rc: $(tail -n 1 "$log.client")"; ok=1; }
    while read -r fact; do
        grep -qxE "fact $fact" "$log.client" || { note="not a fact: $fact; $(grep "^fact ${fact%% *} " "$log.client")"; ok=1; }
    done < <(printf '%s\n' "${@:4}" "$death_facts")
    grep -q '^fact never_completed .*=some' "$log.client" && { note=$(grep '^fact never_completed' "$log.client"); ok=1; }
    return $ok
}

rxe0_back() { rdma link add rxe0 type rxe netdev rx0; }
link_delete() {
    death rxe0 'rdma link delete rxe0' rxe0_back 'events DEVICE_FATAL/0' 'wrong none' 'statuses none'
    local rc=$?
    devices_ready || bed_broken 'the device does not come back'
    return $rc
}
register death-link-delete "$OURS" link_delete

# The fatal event of a driver whose device has failed: soft-RoCE has none, a module of ours (tests/guests/fatal) raises it. Nothing
# follows, and the device stays.
fatal_module=${MODULES_DIR-}/holdfast_fatal.ko
[ ! -e "$fatal_module" ] ||
    register death-fatal "$OURS" 'death rxe0 "insmod $fatal_module netdev=rx0 && rmmod holdfast_fatal" true "events DEVICE_FATAL/1" "wrong none" "statuses none"'

# The interface below goes, which waits for the device, which waits for its users: on a pair of its own. The driver notices first that
# it can send nothing any more: what it was sending then ends with an error of its own, and it flushes by itself what came after, without
# the opcode.
extra_ready() {
    local state gid
    read -r state </sys/class/infiniband/rxe2/ports/1/state && [[ $state == *ACTIVE ]] &&
        read -r gid </sys/class/infiniband/rxe2/ports/1/gids/1 && [[ $gid != *0000:0000 ]]
} 2>/dev/null
extra_comes() {
    ip link add ex0 mtu 4500 type veth peer name ex1 mtu 4500 && ip addr add 10.0.1.1/24 dev ex0 &&
        ip link set ex1 up && ip link set ex0 up && rdma link add rxe2 type rxe netdev ex0 && until_ $LIMIT extra_ready
}
extra_goes() {
    [ ! -e /sys/class/net/ex0 ] || timeout -k 5 $LIMIT ip link delete ex0 || bed_broken 'ex0 does not go'
}
netdev_delete() {
    local unsent='local QP operation error'
    # The driver of 5.10 calls whatever it cannot send an error of protection.
    [ "$VERSION_CODENAME" != bullseye ] || unsent='local protection error'
    extra_comes || bed_broken 'no rxe2'
    death rxe2 'ip link delete ex0' extra_comes 'events .*DEVICE_FATAL/0' \
        'wrong (none|flush_opcode)' "statuses (none|$unsent)"
    local rc=$?
    extra_goes
    return $rc
}
register death-netdev-delete "$OURS" netdev_delete

# Programs that know nothing of it end, each with words of its own.
link_delete_under() { # MODE TOOL ARGUMENT...
    local mode=$1 tool=$2 rc
    shift 2
    tool_dies 'rdma link delete rxe0' "$mode" "$tool" -d rxe0 "$@"
    rc=$?
    rxe0_back
    devices_ready || bed_broken 'the device does not come back'
    return $rc
}
register death-pingpong-events "$OURS" 'link_delete_under drivers ibv_rc_pingpong -g 1 -n 1000000000 -e'
full_only
register death-pingpong "$OURS" 'link_delete_under drivers ibv_rc_pingpong -g 1 -n 1000000000'
register death-send-bw "$OURS" 'link_delete_under preload ib_send_bw -x 1 -F -D 3000'
register death-send-bw-events "$OURS" 'link_delete_under preload ib_send_bw -x 1 -F -N -n 100000000 -e'
register death-send-lat-events "$OURS" 'link_delete_under preload ib_send_lat -x 1 -F -n 1000000 -e'
rxe0_goes() { timeout -k 5 $LIMIT rdma link delete rxe0; }
register death-many "$OURS" 'many_deaths ${DEATHS:-30} rxe0 rxe0_goes rxe0_back -L write,send,srq,ud,idle'
