# The project's own clients (tests/clients), and every kernel command without libibverbs (tests/uapi_live.rs).

[ "$providers" = 'stock holdfast' ] && register walk "$BOTH" 'walk $variant walk-differs.txt'

OURS=holdfast/holdfast
# Every kernel command, encoded and decoded by the provider's own code.
register uapi "$OURS" 'client stock "$provider_dir/uapi_live"'
register storm "$BOTH" 'STORM_SCALE=0.2 client ${variant%/*} "$clients/verbs-storm" -p ${variant%/*}'
# Nonsense in the mapped queues: the stock provider believes it, and is not asked. Nor is kernel 5.10, whose driver reads the size
# of a queue's elements from the mapping, too, and now and then dies of it (page fault in rxe_requester).
[ "$VERSION_CODENAME" = bullseye ] || register garbage "$OURS" 'client holdfast "$clients/verbs-garbage" -p holdfast'

# ASAN sees the programs, and what they and the provider allocate; valgrind the provider's own instructions too. What they found in
# how many cases is the note, and nothing is suppressed.
asan() { # COMMAND...
    ASAN_OPTIONS=detect_leaks=1 client holdfast "$@" && found 'of ASAN and UBSAN' ' runtime error: |ERROR: [A-Za-z]+Sanitizer'
}
valgrind_() { # LEAKS COMMAND...: they are looked for (full) or not (no)
    local leaks=$1
    shift
    client holdfast valgrind --fair-sched=yes --error-exitcode=99 --leak-check=$leaks --show-leak-kinds=definite --errors-for-leak-kinds=definite \
        "$@" && grep -q 'ERROR SUMMARY: ' "$log.errors" && found 'of valgrind' 'ERROR SUMMARY: [1-9]'
}
# UBSAN ends no program, and valgrind's status is lost where a forked child has it.
found() { # WHOSE EXPRESSION
    local n
    n=$(grep -cE "$2" "$log.errors")
    note="$(sed -n 's/^DONE //p' "$log.lines"), $n findings $1"
    [ "$n" -eq 0 ] || { note+=": $(grep -m1 -E "$2" "$log.errors" | cut -c1-200)"; return 1; }
}
# Without the parts that leave objects behind when they close a device, and that look at the size of the process.
CLEAN='contexts threads crowd storm open-storm'
register walk-asan "$OURS" 'asan "$clients/asan/verbs-walk" -p holdfast'
full_only
register storm-asan "$OURS" 'STORM_SCALE=0.1 asan "$clients/asan/verbs-storm" -p holdfast $CLEAN fork'
[ "$VERSION_CODENAME" = bullseye ] || register garbage-asan "$OURS" 'asan "$clients/asan/verbs-garbage" -p holdfast'
register walk-valgrind "$OURS" 'valgrind_ full "$clients/verbs-walk" -p holdfast -t 3000'
register storm-valgrind "$OURS" 'STORM_SCALE=0.02 valgrind_ full "$clients/verbs-storm" -p holdfast -t 3000 $CLEAN'
# What a thread of the parent owned is lost in a child, which has no such thread: leaks say nothing there.
register fork-valgrind "$OURS" 'STORM_SCALE=0.02 valgrind_ no "$clients/verbs-storm" -p holdfast -t 3000 fork'
