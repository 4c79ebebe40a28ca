# ibv_*_pingpong of ibverbs-utils: server on rxe0, client on rxe1, plain RDMAV_DRIVERS.

pingpong() { # NAME VARIANTS TOOL ARGUMENT...
    local name=$1 variants=$2
    shift 2
    register "$name" "$variants" "pingpong_cell \$variant drivers $*"
}
pingpong_cell() { # VARIANT MODE TOOL ARGUMENT...
    local variant=$1 mode=$2 tool=$3
    shift 3
    set -- -g 1 -p $port "$@"
    tool_pair "$variant" "$mode" tcp ' iters in .* seconds' -- "$tool" -d rxe0 "$@" -- "$tool" -d rxe1 "$@" 127.0.0.1
}

pingpong pingpong-rc "$ALL4" ibv_rc_pingpong -n 100
pingpong pingpong-uc "$BOTH" ibv_uc_pingpong -n 100
pingpong pingpong-ud "$ALL4" ibv_ud_pingpong -n 100
pingpong pingpong-srq "$ALL4" ibv_srq_pingpong -n 100
pingpong pingpong-rc-events "$ALL4" ibv_rc_pingpong -n 100 -e
pingpong pingpong-rc-big "$BOTH" ibv_rc_pingpong -n 10 -s 1000000 -m 4096 -c
pingpong pingpong-rc-odp "$BOTH" ibv_rc_pingpong -n 100 -o
pingpong pingpong-rc-new-send "$BOTH" ibv_rc_pingpong -n 100 -N
full_only
pingpong pingpong-xsrq "$BOTH" ibv_xsrq_pingpong -n 100
pingpong pingpong-rc-timestamp "$BOTH" ibv_rc_pingpong -n 100 -t
pingpong pingpong-uc-events "$BOTH" ibv_uc_pingpong -n 100 -e
pingpong pingpong-ud-events "$BOTH" ibv_ud_pingpong -n 100 -e
pingpong pingpong-srq-events "$BOTH" ibv_srq_pingpong -n 100 -e
pingpong pingpong-rc-check "$BOTH" ibv_rc_pingpong -n 100 -c
register pingpong-rc-preload "$BOTH" 'pingpong_cell $variant preload ibv_rc_pingpong -n 100'
