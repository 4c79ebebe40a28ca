# rdma-core's own Python tests, those of no vendor, each in a process of its own. Every test is a row of its own.

pyverbs() { # VARIANT
    local provider=${1%/*} environment=()
    [ "$provider" = stock ] || environment=(RDMAV_DRIVERS="$provider_dir/libholdfast"
        LD_PRELOAD="$provider_dir/libholdfast.so" HOLDFAST_LOG="info:$log.holdfast")
    env "${environment[@]}" python3 "$here/pytests.py" "$provider" "$1" "$out" "$log.log" >"$log.summary" 2>&1
    local rc=$?
    note=$(tail -n 1 "$log.summary" | tr '\t' ' ' | cut -c1-160)
    [ $rc -eq 0 ] || return 1
    [ "$provider" = stock ] || grep -qs 'rxe0: opened, served by holdfast' "$log.holdfast" ||
        { note='holdfast does not say that it opened the device'; return 1; }
}
register pyverbs "$BOTH" 'pyverbs $variant'
