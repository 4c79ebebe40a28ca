# The project's own clients on virtual ConnectX.

walk_hca='-d mlx5_0 -e mlx5_1 -g 0'
[ "$providers" = 'stock holdfast' ] && register walk "$BOTH" "walk \$variant walk-differs-hca.txt $walk_hca"

# What the devices were told during a cell is compared, queue by queue: stock runs first. Only trapped devices see every
# store to a doorbell.
journal() { # VARIANT CELL...
    local variant=$1 mark=cell$n rc
    shift
    order mark "$mark" || return 1
    "$@"
    rc=$?
    order mark "$mark.end" || return 1
    hca-save "$log.queues" queues after "$mark" >"$log.order" 2>&1 || { note='no journal'; return 1; }
    [ $rc -eq 0 ] && [ "$variant" = holdfast/holdfast ] || return $rc
    python3 "$here/journal.py" "$out/cells/$name.stock-stock.queues" "$log.queues" "$here/../journal-differs.txt" "$VERSION_CODENAME" "$name" >"$log.differs" 2>&1
    rc=$?
    note=$(tail -n 1 "$log.differs")
    return $rc
}
order() { hca-control "$@" >"$log.order" 2>&1 || { note="the devices refuse: $*"; return 1; }; }

if [ "$providers" = 'stock holdfast' ] && [ "$bar" = trapped ]; then
    # holdfast takes more registers than stock, unless it is told how many.
    for group in wqes registers rc uc ud srq mw cqx events; do
        register journal-$group "$BOTH" "journal \$variant client \${variant%/*} env MLX5_TOTAL_UUARS=16 MLX5_NUM_LOW_LAT_UUARS=4 \"\$clients/verbs-walk\" -p \${variant%/*} $walk_hca $group"
    done
    # Tools with one queue pair at each end: what several do has no order.
    for type in rc uc ud; do
        register journal-pingpong-$type "$BOTH" "journal \$variant pingpong_cell \$variant mlx5_1 ibv_${type}_pingpong -n 100 -c"
    done
    for verb in write send read atomic; do
        register journal-perftest-$verb-bw "$BOTH" "journal \$variant perftest_cell \$variant mlx5_1 ib_${verb}_bw -n 100"
        register journal-perftest-$verb-lat "$BOTH" "journal \$variant perftest_cell \$variant mlx5_1 ib_${verb}_lat -n 50"
    done
    register journal-perftest-write-bw-inline "$BOTH" 'journal $variant perftest_cell $variant mlx5_1 ib_write_bw -n 100 -s 64 -I 64'
    register journal-perftest-send-bw-ud "$BOTH" 'journal $variant perftest_cell $variant mlx5_1 ib_send_bw -c UD -n 100 -s 1024'
    register journal-perftest-write-bw-old-post "$BOTH" 'journal $variant perftest_cell $variant mlx5_1 ib_write_bw --use_old_post_send -n 100'
fi

# What queues cost in memory of the process: not more than with stock, which runs first.
footprint() { # VARIANT
    local provider=${1%/*} what bytes _ most
    client "$provider" "$clients/verbs-footprint" -p "$provider" $walk_hca || return 1
    note=$(tr '\n' ' ' <"$log.lines")
    [ "$provider" = holdfast ] || return 0
    while read -r what bytes _; do
        most=$(sed -n "s/^$what \([0-9]*\) bytes$/\1/p" "$out/cells/$name.stock-stock.lines")
        [ -n "$most" ] && [ "$bytes" -le "$most" ] || { note="$what: $bytes bytes, stock ${most:-no figure}"; return 1; }
    done <"$log.lines"
}
[ "$providers" = 'stock holdfast' ] && register footprint "$BOTH" 'footprint $variant'

# Threads on many queue pairs, everything at once: `make soak` lets each take minutes.
soak() { # VARIANT PROGRAM MODE DEVICE
    local provider=${1%/*} program=$2 mode=$3 device=$4 seconds=${SOAK_SECONDS:-4} uuars=()
    [ "$mode" != own ] || uuars=(MLX5_TOTAL_UUARS=300 MLX5_NUM_LOW_LAT_UUARS=280)
    client "$provider" env "${uuars[@]}" "$program" -p "$provider" -t $((seconds + 600)) -d mlx5_0 -e "$device" -g 0 "$mode" "$seconds" ||
        return 1
    note=$(grep '^soak:' "$log.lines")
}
for mode in shared own domains; do
    register soak-$mode "$BOTH" "soak \$variant \"\$clients/verbs-soak\" $mode mlx5_0"
    register soak-$mode-wire "$BOTH" "soak \$variant \"\$clients/verbs-soak\" $mode mlx5_1"
done
tsan_soak() { # VARIANT MODE
    local -x TSAN_OPTIONS="suppressions=$here/../../clients/tsan.txt"
    soak "$1" "$clients/tsan/verbs-soak" "$2" mlx5_0
}
OURS=holdfast/holdfast
full_only
for mode in shared own domains; do
    register soak-$mode-asan "$OURS" "soak \$variant \"\$clients/asan/verbs-soak\" $mode mlx5_0"
    register soak-$mode-tsan "$OURS" "tsan_soak \$variant $mode"
done
