# Two virtual ConnectX, mlx5_0 and mlx5_1, on one wire. Sourced by `run` after lib.sh.
stock_library=libmlx5
displaced='' # perftest links libmlx5 itself
devices='mlx5_0 mlx5_1'

device_ready() {
    local state
    read -r state <"/sys/class/infiniband/$1/ports/1/state" && [[ $state == *ACTIVE ]]
} 2>/dev/null

# The driver's hold on the devices begins anew, in the order that gives them their names.
renew_devices() {
    local driver=/sys/bus/pci/drivers/mlx5_core function functions=()
    for function in "$driver"/*:*; do functions+=("${function##*/}"); done
    for function in "${functions[@]}"; do
        echo "$function" >$driver/unbind || bed_broken "$function does not leave its driver"
    done
    for function in "${functions[@]}"; do
        echo "$function" >$driver/bind || bed_broken "$function does not come back"
    done
    devices_ready || bed_broken 'the devices do not become active'
}
