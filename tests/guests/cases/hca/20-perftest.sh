# perftest: server on mlx5_0, client on mlx5_1; "-loop": both on mlx5_0. It links libmlx5, so holdfast is preloaded as
# well. What it sends is not looked at (a pingpong's is).

perftest() { # NAME VARIANTS TOOL ARGUMENT...
    local name=perftest-$1 variants=$2
    shift 2
    register "$name" "$variants" "perftest_cell \$variant mlx5_1 $*"
    register "$name-loop" "$BOTH" "perftest_cell \$variant mlx5_0 $*"
}
perftest_cell() { # VARIANT CLIENT-DEVICE TOOL ARGUMENT...
    local variant=$1 device=$2 tool=$3
    shift 3
    set -- -p $port -F "$@"
    # The row of results: bytes, iterations, figures.
    tool_pair "$variant" preload tcp '^ [0-9]+ +[0-9]+ +[0-9.inf]+' -- "$tool" -d mlx5_0 "$@" -- "$tool" -d "$device" "$@" 127.0.0.1
}

# Iterations are few: under emulation one may take milliseconds.
for verb in write send read atomic; do
    perftest $verb-bw "$ALL4" ib_${verb}_bw -n 100
    perftest $verb-lat "$BOTH" ib_${verb}_lat -n 50
done
perftest write-bw-uc "$BOTH" ib_write_bw -c UC -n 100 -s 4096
perftest send-bw-uc "$BOTH" ib_send_bw -c UC -n 100 -s 4096
perftest send-bw-ud "$BOTH" ib_send_bw -c UD -n 100 -s 1024
perftest send-lat-ud "$BOTH" ib_send_lat -c UD -n 50 -s 256
perftest write-bw-inline "$BOTH" ib_write_bw -n 100 -s 64 -I 64
perftest send-lat-inline "$BOTH" ib_send_lat -n 50 -s 64 -I 64
perftest write-bw-16qp "$BOTH" ib_write_bw -q 16 -n 100 -s 4096
perftest send-bw-16qp "$BOTH" ib_send_bw -q 16 -n 100 -s 4096
perftest send-bw-srq "$BOTH" ib_send_bw -r 64 --use-srq -q 2 -n 100 -s 4096
perftest write-bw-old-post "$BOTH" ib_write_bw --use_old_post_send -n 100 -s 4096
perftest send-bw-old-post "$BOTH" ib_send_bw --use_old_post_send -n 100 -s 4096
full_only
for verb in write send; do
    perftest $verb-lat-uc "$BOTH" ib_${verb}_lat -c UC -n 50
    perftest $verb-lat-old-post "$BOTH" ib_${verb}_lat --use_old_post_send -n 50
done
perftest write-lat-inline "$BOTH" ib_write_lat -n 50 -s 64 -I 64
perftest write-lat-not-inline "$BOTH" ib_write_lat -n 50 -s 64 -I 0
perftest send-bw-inline "$BOTH" ib_send_bw -n 100 -s 64 -I 64
perftest read-bw-16qp "$BOTH" ib_read_bw -q 16 -n 100 -s 4096
perftest atomic-bw-16qp "$BOTH" ib_atomic_bw -q 16 -n 100
perftest write-bw-2way "$BOTH" ib_write_bw -b -n 100 -s 4096
perftest send-bw-2way "$BOTH" ib_send_bw -b -n 100 -s 4096
perftest read-bw-old-post "$BOTH" ib_read_bw --use_old_post_send -n 100 -s 4096
perftest atomic-bw-old-post "$BOTH" ib_atomic_bw --use_old_post_send -n 100
perftest atomic-cas "$BOTH" ib_atomic_bw -A CMP_AND_SWAP -n 100
# perftest posts no more receives than one queue pair has messages; datagrams that find none are lost, and waited for in vain.
perftest send-bw-srq-ud "$BOTH" ib_send_bw -c UD -r 256 --use-srq -q 1 -n 100 -s 1024
perftest send-bw-events "$BOTH" ib_send_bw -e -n 100 -s 4096
perftest send-bw-ud-inline "$BOTH" ib_send_bw -c UD -n 100 -s 64 -I 64
perftest send-bw-big "$BOTH" ib_send_bw -n 10 -s 1048576
