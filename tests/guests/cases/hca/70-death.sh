# A virtual ConnectX is taken away under programs that know nothing of it: each ends by itself, and says why. (With stock those that
# poll hang; `guest faults` has both, and the programs that count. ib_send_lat -e is none of them: it takes the event of one
# completion queue for that of the other, and here ends or hangs by that, with stock as well, while its device lives.)
. "$here/death.sh"
OURS=holdfast/holdfast

device_dies() { # MODE TOOL ARGUMENT...
    local mode=$1 tool=$2 rc
    shift 2
    tool_dies 'echo 1 >/sys/class/infiniband/mlx5_0/device/remove' "$mode" "$tool" -d mlx5_0 "$@"
    rc=$?
    echo 1 >/sys/bus/pci/rescan
    devices_ready || bed_broken 'the device does not come back'
    return $rc
}
# What `make demo` shows, in the same guest: a device that is pulled out under two pairs of a tool and two programs that count.
demo() {
    timeout -k 5 $((LIMIT * 5)) "$here/../../demo-guest" "$provider_dir" "$clients" death >"$log.demo" 2>&1 ||
        { note=$(tail -n 1 "$log.demo"); return 1; }
    note=$(sed -n 's/^ *ibv_rc_pingpong, unmodified *//p' "$log.demo")
}
register death-demo "$OURS" demo
register death-pingpong-events "$OURS" 'device_dies drivers ibv_rc_pingpong -n 1000000000 -e'
register death-send-bw "$OURS" 'device_dies preload ib_send_bw -F -D 3000'
full_only
register death-pingpong "$OURS" 'device_dies drivers ibv_rc_pingpong -n 1000000000'
register death-send-bw-events "$OURS" 'device_dies preload ib_send_bw -F -N -n 100000000 -e'
# Again and again ($DEATHS times), at moments of chance, and how long it takes: the quickest of the orderly ways.
function=$(basename "$(readlink -f /sys/class/infiniband/mlx5_0/device)")
mlx5_goes() { echo "$function" >/sys/bus/pci/drivers/mlx5_core/unbind; }
mlx5_back() { echo "$function" >/sys/bus/pci/drivers/mlx5_core/bind; }
register death-many "$OURS" 'many_deaths ${DEATHS:-30} mlx5_0 mlx5_goes mlx5_back -L all'
# The same of a thousand queue pairs, each with 64 work requests outstanding.
register death-thousand "$OURS" 'many_deaths ${DEATHS:-3} mlx5_0 mlx5_goes mlx5_back -L write -q 500 -D 64'
