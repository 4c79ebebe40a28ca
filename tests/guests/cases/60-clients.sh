# The project's own clients (tests/clients), and every kernel command without libibverbs (tests/uapi_live.rs). Compiled by
# the suite's own compiler into $CLIENTS_DIR.

clients=${CLIENTS_DIR:-$here/../../../target/clients/$VERSION_CODENAME}

# client PROVIDER NAME COMMAND...: its lines go to cells/NAME.VARIANT.lines.
client() {
    local provider=$1 environment=()
    shift
    [ "$provider" = stock ] ||
        environment=(RDMAV_DRIVERS="$provider_dir/libholdfast" HOLDFAST_LOG="info:$log.holdfast")
    timeout -k 5 $((LIMIT * 10)) env "${environment[@]}" "$@" >"$log.lines" 2>"$log.errors" </dev/null || {
        note="it ended with $?: $(grep -hE '^FAIL|ERROR|==.*(Invalid|lost in)' "$log.lines" "$log.errors" | head -n 3 | tr '\t\n' '  ' | cut -c1-300)"
        return 1
    }
    [ "$provider" = stock ] || grep -qs 'rxe0: opened, served by holdfast' "$log.holdfast" ||
        { note='holdfast does not say that it opened the device'; return 1; }
}

# What both providers do is compared, line by line: stock runs first.
walk() { # VARIANT
    local provider=${1%/*}
    client "$provider" "$clients/verbs-walk" -p "$provider" || return 1
    [ "$provider" = holdfast ] || return 0
    python3 "$here/walk.py" "$out/cells/walk.stock-stock.lines" "$log.lines" "$here/../walk-differs.txt" "$VERSION_CODENAME" >"$log.differs" 2>&1
    local rc=$?
    note=$(tail -n 1 "$log.differs")
    return $rc
}
[ "$providers" = 'stock holdfast' ] && register walk "$BOTH" 'walk $variant'

OURS=holdfast/holdfast
# Every kernel command, encoded and decoded by the provider's own code.
register uapi "$OURS" 'client stock "$provider_dir/uapi_live"'
register storm "$BOTH" 'STORM_SCALE=0.2 client ${variant%/*} "$clients/verbs-storm" -p ${variant%/*}'
# Nonsense in the mapped queues: the stock provider believes it, and is not asked. Nor is kernel 5.10, whose driver reads the size
# of a queue's elements from the mapping, too, and now and then dies of it (page fault in rxe_requester).
[ "$VERSION_CODENAME" = bullseye ] || register garbage "$OURS" 'client holdfast "$clients/verbs-garbage" -p holdfast'

# ASAN sees the programs, and what they and the provider allocate; valgrind the provider's own instructions too.
asan() { # COMMAND...
    ASAN_OPTIONS=detect_leaks=1 client holdfast "$@"
}
valgrind_() { # COMMAND...
    client holdfast valgrind -q --fair-sched=yes --error-exitcode=99 --leak-check=full --show-leak-kinds=definite --errors-for-leak-kinds=definite \
        "$@"
}
# Without the parts that leave objects behind when they close a device, and that look at the size of the process.
CLEAN='contexts threads crowd storm open-storm fork'
register walk-asan "$OURS" 'asan "$clients/asan/verbs-walk" -p holdfast'
full_only
register storm-asan "$OURS" 'STORM_SCALE=0.1 asan "$clients/asan/verbs-storm" -p holdfast $CLEAN'
[ "$VERSION_CODENAME" = bullseye ] || register garbage-asan "$OURS" 'asan "$clients/asan/verbs-garbage" -p holdfast'
register walk-valgrind "$OURS" 'valgrind_ "$clients/verbs-walk" -p holdfast -t 3000'
register storm-valgrind "$OURS" 'STORM_SCALE=0.02 valgrind_ "$clients/verbs-storm" -p holdfast -t 3000 $CLEAN'
