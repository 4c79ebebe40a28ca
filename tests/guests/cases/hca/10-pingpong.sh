# ibv_*_pingpong of ibverbs-utils: server on mlx5_0, client on mlx5_1; "-loop": both on mlx5_0. Addressed by LID.

pingpong() { # NAME VARIANTS TOOL ARGUMENT...
    local name=$1 variants=$2
    shift 2
    register "$name" "$variants" "pingpong_cell \$variant mlx5_1 $*"
    register "$name-loop" "$BOTH" "pingpong_cell \$variant mlx5_0 $*"
}
pingpong_cell() { # VARIANT CLIENT-DEVICE TOOL ARGUMENT...
    local variant=$1 device=$2 tool=$3
    shift 3
    set -- -p $port "$@"
    tool_pair "$variant" drivers tcp ' iters in .* seconds|^success' -- "$tool" -d mlx5_0 "$@" -- "$tool" -d "$device" "$@" 127.0.0.1
}

# -c: what is received is compared with what was sent.
for type in rc uc ud srq; do
    pingpong pingpong-$type "$ALL4" ibv_${type}_pingpong -n 100 -c
    pingpong pingpong-$type-events "$BOTH" ibv_${type}_pingpong -n 100 -c -e
done
pingpong pingpong-xsrq "$ALL4" ibv_xsrq_pingpong -n 100
pingpong pingpong-xsrq-events "$BOTH" ibv_xsrq_pingpong -n 100 -e
full_only
pingpong pingpong-rc-big "$BOTH" ibv_rc_pingpong -n 10 -s 1000000 -m 4096 -c
pingpong pingpong-rc-gid "$BOTH" ibv_rc_pingpong -n 100 -g 0 -c
pingpong pingpong-ud-gid "$BOTH" ibv_ud_pingpong -n 100 -g 0 -c
pingpong pingpong-rc-new-send "$BOTH" ibv_rc_pingpong -n 100 -N -c
pingpong pingpong-rc-timestamp "$BOTH" ibv_rc_pingpong -n 100 -t
