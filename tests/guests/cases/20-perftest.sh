# perftest: server on rxe0, client on rxe1. It links libmlx5, so holdfast is preloaded as well.

perftest() { # NAME VARIANTS TOOL ARGUMENT...
    local name=$1 variants=$2
    shift 2
    # Atomics between two devices of kernel 5.10 hang, with any provider, and some of their QPs never go, nor then the devices.
    [[ $VERSION_CODENAME != bullseye || $name != perftest-atomic-* ]] || return 0
    register "$name" "$variants" "perftest_cell \$variant $*"
}
perftest_cell() { # VARIANT TOOL ARGUMENT...
    local variant=$1 tool=$2 ready=tcp host=127.0.0.1 first=() second=() under_way=''
    shift 2
    if [[ " $* " == *' -R '* ]]; then
        # rdmacm wants the address of the device itself. The server listens for the test's connections when it has the
        # client's parameters, and a client that was faster, and rejected, crashes (with stock too): until it is connected it
        # gets what the server leaves of one processor.
        ready=cm host=10.0.0.1 first=(taskset -c 1) second=(taskset -c 1 nice -n 19) under_way=set_free
    fi
    set -- -x 1 -p $port -F "$@"
    # The row of results: bytes, iterations, figures.
    tool_pair "$variant" preload $ready '^ [0-9]+ +[0-9]+ +[0-9.inf]+' -- "${first[@]}" "$tool" -d rxe0 "$@" -- \
        "${second[@]}" "$tool" -d rxe1 "$@" $host
}

set_free() { # CLIENT
    until_ $LIMIT connected_or_gone "$1"
    # As renice(1) would, which newer releases leave out of a small system.
    python3 -c 'import os, sys; os.setpriority(os.PRIO_PROCESS, int(sys.argv[1]), 0)' "$1" && taskset -cp 0,1 "$1"
} >/dev/null 2>&1
connected_or_gone() { # a client that has the QP of its parameters and one of the test
    local lines
    mapfile -t lines < <(rdma resource show qp | grep " state RTS .* pid $1 ")
    [ ${#lines[@]} -gt 1 ] || gone "$1"
}

# Iterations are few: under emulation one may take milliseconds.
for verb in write send read atomic; do
    perftest perftest-$verb-bw "$ALL4" ib_${verb}_bw -n 100
    perftest perftest-$verb-lat "$BOTH" ib_${verb}_lat -n 50
done
perftest perftest-write-bw-uc "$BOTH" ib_write_bw -c UC -n 100 -s 4096
perftest perftest-send-bw-uc "$BOTH" ib_send_bw -c UC -n 100 -s 4096
perftest perftest-send-bw-ud "$BOTH" ib_send_bw -c UD -n 100 -s 1024
perftest perftest-send-lat-ud "$BOTH" ib_send_lat -c UD -n 50 -s 256
perftest perftest-send-lat-inline "$BOTH" ib_send_lat -n 50 -s 64 -I 64
perftest perftest-write-bw-2way "$BOTH" ib_write_bw -b -n 100 -s 4096
perftest perftest-send-bw-4qp "$BOTH" ib_send_bw -q 4 -n 100 -s 4096
perftest perftest-write-bw-old-post "$BOTH" ib_write_bw --use_old_post_send -n 100 -s 4096
perftest perftest-send-bw-old-post "$BOTH" ib_send_bw --use_old_post_send -n 100 -s 4096
perftest perftest-send-bw-cm "$BOTH" ib_send_bw -R -n 100 -s 4096
full_only
for verb in write send; do
    perftest perftest-$verb-lat-uc "$BOTH" ib_${verb}_lat -c UC -n 50
    perftest perftest-$verb-bw-inline "$BOTH" ib_${verb}_bw -n 100 -s 64 -I 64
    perftest perftest-$verb-lat-old-post "$BOTH" ib_${verb}_lat --use_old_post_send -n 50
done
perftest perftest-write-lat-inline "$BOTH" ib_write_lat -n 50 -s 64 -I 64
perftest perftest-write-bw-4qp "$BOTH" ib_write_bw -q 4 -n 100 -s 4096
perftest perftest-write-bw-cm "$BOTH" ib_write_bw -R -n 100 -s 4096
perftest perftest-send-bw-2way "$BOTH" ib_send_bw -b -n 100 -s 4096
perftest perftest-read-bw-2way "$BOTH" ib_read_bw -b -n 100 -s 4096
perftest perftest-read-bw-4qp "$BOTH" ib_read_bw -q 4 -n 100 -s 4096
perftest perftest-read-bw-old-post "$BOTH" ib_read_bw --use_old_post_send -n 100 -s 4096
perftest perftest-read-bw-cm "$BOTH" ib_read_bw -R -n 100 -s 4096
perftest perftest-atomic-bw-old-post "$BOTH" ib_atomic_bw --use_old_post_send -n 100
perftest perftest-atomic-cas "$BOTH" ib_atomic_bw -A CMP_AND_SWAP -n 100
perftest perftest-send-bw-events "$BOTH" ib_send_bw -e -n 100 -s 4096
perftest perftest-write-bw-duration "$BOTH" ib_write_bw -D 2 -s 65536
perftest perftest-send-bw-big "$BOTH" ib_send_bw -n 10 -s 1048576
perftest perftest-send-bw-srq "$BOTH" ib_send_bw -r 64 --use-srq -q 2 -n 100 -s 4096
