# What the case files are written in. Sourced by `run`, which sets providers, glob, out, provider_dir.
. /etc/os-release # VERSION_CODENAME
here=${here:-$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)}

# The bed of soft-RoCE; another bed's `bed.sh` says otherwise.
stock_library=librxe-rdmav # what the stock provider's file is called
displaced=librxe           # what a preloaded holdfast keeps out; empty where the tools link it themselves
devices='rxe0 rxe1'

cells=() bodies=() # each cell "NAME VARIANT", and the shell words that run it
port=19000

# Once a value is asked for, a short wait without a fork.
exec {pause_fd}<> <(:)
pause() { read -r -t 0.05 -u "$pause_fd" || :; }

# holds FILE TEXT: whether the file has the text. No process is made: under emulation each costs tens of milliseconds.
holds() {
    local lines
    mapfile -t lines <"$1" && [[ ${lines[*]} == *"$2"* ]]
} 2>/dev/null

# until_ SECONDS COMMAND...: true as soon as COMMAND is, false when the time is up.
until_() {
    local end=$((SECONDS + $1))
    shift
    until "$@"; do
        [ $SECONDS -lt $end ] || return 1
        pause
    done
}

# What a case file registers after this only varies what other cases do.
full_only() { [ -n "$full" ] || [ "$glob" != '*' ] || wanted=''; }

# register NAME VARIANTS WORDS: a cell for each variant that the chosen providers allow.
register() {
    local name=$1 variant body=$3
    # shellcheck disable=SC2053 # a pattern is what it is
    [[ $wanted && $name == $glob ]] || return 0
    for variant in $2; do
        case "$providers:$variant" in
        'stock holdfast':* | stock:stock/stock | holdfast:holdfast/holdfast)
            cells+=("$name $variant")
            bodies+=("$body")
            ;;
        esac
    done
}

BOTH='stock/stock holdfast/holdfast'
ALL4='stock/stock holdfast/holdfast stock/holdfast holdfast/stock'

# How long anything may take: an emulated CPU on a busy host is slow, and slow is no failure.
LIMIT=180
# For what stock is known not to do here: one way in which it does not is to hang.
KNOWN_LIMIT=25

# What the list says that stock cannot do on this suite. Its expressions are those of Rust's regex and of bash alike.
cannot=''
read_cannot() { # FILE
    local line
    while IFS= read -r line; do
        [[ $line == "$VERSION_CODENAME :: "* ]] || continue
        line=${line#* :: }
        cannot+="${cannot:+|}${line%% :: *}"
    done <"$1"
}

result() { printf '%s\t%s\t%s\t%s\t%s\n' "$1" "$2" "$3" "$4" "$5" >>"$out/results.tsv"; }

run_cell() { # NAME VARIANT WORDS
    local LIMIT=$LIMIT name=$1 variant=$2 started=$EPOCHREALTIME status note='' seconds
    port=$((port + 1))
    [[ -z $cannot || ! $name =~ ^($cannot)$ ]] || LIMIT=$KNOWN_LIMIT
    log=$out/cells/$name.${variant/\//-} # the file names of this cell
    rm -f "$log".*
    echo "holdfast-case: $name $variant" >/dev/kmsg
    if eval "$3"; then status=pass; else status=fail; fi
    seconds=$(((${EPOCHREALTIME/./} - ${started/./}) / 100000)) # tenths
    seconds=$((seconds / 10)).$((seconds % 10))
    result "$name" "$variant" $status "$seconds" "$note"
    echo "[$n/$total] $name $variant: $status, $seconds s${note:+ ($note)}"
    [ $status = pass ] || renew_devices
}

# After a failure the devices are made anew, so that the next case does not pay for it.
renew_devices() {
    local i
    for i in 0 1; do
        timeout -k 5 $LIMIT rdma link del rxe$i || bed_broken "rxe$i does not go"
        ip link set rx$i up
        ip addr replace "fd00::$((i + 1))/64" dev rx$i nodad
        rdma link add rxe$i type rxe netdev rx$i || bed_broken "rxe$i does not come"
    done
    devices_ready || bed_broken 'the new devices do not become active'
}
bed_broken() {
    echo "run: the bed is broken: $*" >&2
    exit 3
}

device_ready() {
    local state gid
    read -r state <"/sys/class/infiniband/$1/ports/1/state" && [[ $state == *ACTIVE ]] &&
        read -r gid <"/sys/class/infiniband/$1/ports/1/gids/1" && [[ $gid == *:ffff:0a00:000? ]]
} 2>/dev/null
devices_ready() {
    local device
    for device in $devices; do until_ $LIMIT device_ready "$device" || return 1; done
}

# launch SIDE PROVIDER MODE COMMAND...: starts a tool, sets job (to wait for) and pid (of the tool itself).
# MODE: "drivers" is RDMAV_DRIVERS alone; "preload" is that with LD_PRELOAD, which programs that link libmlx5 need.
launch() {
    local side=$1 provider=$2 mode=$3 environment=()
    shift 3
    if [ "$provider" = holdfast ]; then
        environment=(RDMAV_DRIVERS="$provider_dir/libholdfast" HOLDFAST_LOG="info:$log.$side.holdfast")
        [ "$mode" = drivers ] || environment+=(LD_PRELOAD="$provider_dir/libholdfast.so")
    fi
    echo "$ ${environment[*]} $*" >"$log.$side"
    timeout -k 5 $LIMIT env "${environment[@]}" "$@" >>"$log.$side" 2>&1 </dev/null &
    job=$!
    pid=''
    until_ $LIMIT child_of $job || { note="$side did not start"; return 1; }
}
child_of() {
    read -r pid _ <"/proc/$1/task/$1/children"
    [ -n "$pid" ] || [ ! -e "/proc/$1/exe" ]
} 2>/dev/null

# A process in the middle of an exec has no maps for a moment: only its absence, or its state, says that it has ended.
gone() {
    local stat
    ! read -r stat <"/proc/$1/stat" || [[ ${stat##*) } == [ZX]* ]]
} 2>/dev/null

# served SIDE PID PROVIDER: the live tool has the provider mapped and, where that is holdfast, its device opened by it.
# What was mapped when it was last looked at is in $mapped.
served() {
    local lines
    { mapfile -t lines <"/proc/$2/maps"; } 2>/dev/null
    [ ${#lines[@]} -eq 0 ] || printf -v mapped '%s\n' "${lines[@]}"
    case $3 in
    stock) [[ $mapped == *$stock_library* ]] ;;
    holdfast) [[ $mapped == *libholdfast* ]] && holds "$log.$1.holdfast" ': opened, served by holdfast' ;;
    esac
}
served_or_gone() { served "$@" || gone "$2"; }

# prove SIDE PID PROVIDER MODE: the tool, while it lives, is served by PROVIDER and by no other. Preloaded, holdfast is
# there before the stock one would be loaded, which then must not be mapped at all; named by RDMAV_DRIVERS alone,
# libibverbs loads both, and what holdfast opened stands in its log.
prove() {
    local mapped=''
    until_ $LIMIT served_or_gone "$1" "$2" "$3"
    printf '%s' "$mapped" >"$log.$1.maps"
    # A tool that has ended meanwhile is judged by what was seen while it lived.
    if ! served "$1" "$2" "$3"; then
        note="$1: not proven that $3 serves it"
    elif [ "$3" = stock ] && [[ $mapped == *libholdfast* ]]; then
        note="$1: holdfast is mapped in a run with stock"
    elif [ "$3:$4" = holdfast:preload ] && [ -n "$displaced" ] && [[ $mapped == *$displaced* ]]; then
        note="$1: the stock provider is mapped beside holdfast"
    else
        return 0
    fi
    return 1
}

listening() { # a TCP server; /proc/net/tcp has the port in hexadecimal, and the partner of a listener is 0
    local hex
    printf -v hex ':%04X 00000000' "$1"
    holds /proc/net/tcp "$hex:0000 0A" || holds /proc/net/tcp6 "${hex}000000000000000000000000:0000 0A"
}
cm_listening() { rdma resource show cm_id | grep -q "state LISTEN .*pid $1 "; }
ready_or_gone() { "$@" || gone "$server"; }

# tool_pair VARIANT MODE READY EXPECT -- SERVER... -- CLIENT...: the server is stopped when it is ready, so that the
# client has to wait for it, at rest, when its maps are looked at. Both must end with 0 and the client say EXPECT. What $under_way
# names, if anything, is done to the client as they start.
tool_pair() {
    local variant=$1 mode=$2 ready=$3 expect=$4 words=() server_job client_job server client
    local as_server=${variant%/*} as_client=${variant#*/} rc_server rc_client
    shift 5
    while [ "$1" != -- ]; do
        words+=("$1")
        shift
    done
    shift
    launch server "$as_server" "$mode" "${words[@]}" || return 1
    server_job=$job server=$pid
    case $ready in
    tcp) until_ $LIMIT ready_or_gone listening "$port" ;;
    cm) until_ $LIMIT ready_or_gone cm_listening "$server" ;;
    esac
    if gone "$server"; then
        wait "$server_job"
        note="the server ended with $?: $(last_words server)"
        return 1
    fi
    if ! prove server "$server" "$as_server" "$mode"; then
        abandon "$server_job"
        return 1
    fi
    kill -STOP "$server"
    launch client "$as_client" "$mode" "$@"
    client_job=$job client=$pid
    prove client "$client" "$as_client" "$mode"
    local proof=$?
    kill -CONT "$server"
    [ -z "${under_way:-}" ] || $under_way "$client"
    wait "$client_job"
    rc_client=$?
    # A server whose client has failed may wait for another one for ever.
    [ $rc_client -eq 0 ] || abandon "$server_job"
    wait "$server_job"
    rc_server=$?
    if [ $rc_client -ne 0 ]; then
        note="the client ended with $rc_client: $(last_words client)"
        return 1
    fi
    if [ $rc_server -ne 0 ]; then
        note="the server ended with $rc_server: $(last_words server)"
        return 1
    fi
    [ $proof -eq 0 ] || return 1
    if ! grep -qE "$expect" "$log.client"; then
        note="the client does not say: $expect"
        return 1
    fi
}

abandon() { # ends what timeout started; a tool may take no notice of being told
    local tool
    kill "$1"
    until_ 10 gone "$1" || { read -r tool _ <"/proc/$1/task/$1/children" && kill -KILL "$tool"; }
    wait "$1"
} 2>/dev/null

last_words() { tail -n 1 "$log.$1" | tr '\t\r' '  ' | cut -c1-120; }

# What ibv_devinfo -v says must be what it says with the stock provider, to the letter. Its output goes to a pipe that
# is full, so that it is at rest, with the device open or just closed, when its maps are looked at.
devinfo() { # VARIANT
    local provider=${1%/*} rc fifo=/run/guest/devinfo
    rm -f $fifo && mkfifo $fifo || return 1
    ibv_devinfo -v >"$log.reference" 2>&1 || { note='stock gives no reference'; return 1; }
    exec {pipe}<>$fifo
    dd if=/dev/zero of=$fifo bs=4096 count=16 oflag=nonblock status=none
    launch tool "$provider" drivers bash -c "exec ibv_devinfo -v >$fifo" || return 1
    prove tool "$pid" "$provider" drivers
    local proof=$?
    exec {drain}<$fifo
    exec {pipe}>&-
    tail -c +65537 <&"$drain" >"$log.output"
    exec {drain}<&-
    wait "$job"
    rc=$?
    [ $proof -eq 0 ] || return 1
    [ $rc -eq 0 ] || { note="it ended with $rc"; return 1; }
    local device
    for device in $devices; do
        grep -q "^hca_id:.*$device\$" "$log.output" || { note="$device is not in it"; return 1; }
    done
    diff -u "$log.reference" "$log.output" >"$log.diff" || { note="differs from stock: $(grep -c '^[-+][^-+]' "$log.diff") lines"; return 1; }
}

# The project's own clients (tests/clients), compiled by the suite's own compiler.
# The demo brings its own.
clients=${clients:-${CLIENTS_DIR:-$here/../../../target/clients/$VERSION_CODENAME}}

# client PROVIDER COMMAND...: its lines go to cells/NAME.VARIANT.lines.
client() {
    local provider=$1 environment=()
    shift
    [ "$provider" = stock ] ||
        environment=(RDMAV_DRIVERS="$provider_dir/libholdfast" HOLDFAST_LOG="info:$log.holdfast")
    timeout -k 5 $((LIMIT * 10)) env "${environment[@]}" "$@" >"$log.lines" 2>"$log.errors" </dev/null || {
        note="it ended with $?: $(grep -hE '^FAIL|ERROR|==.*(Invalid|lost in)' "$log.lines" "$log.errors" | head -n 3 | tr '\t\n' '  ' | cut -c1-300)"
        return 1
    }
    [ "$provider" = stock ] || grep -qs "${devices%% *}: opened, served by holdfast" "$log.holdfast" ||
        { note='holdfast does not say that it opened the device'; return 1; }
}

# walk VARIANT DIFFERS ARGUMENT...: what both providers do is compared, line by line: stock runs first.
walk() {
    local provider=${1%/*} differs=$here/../$2
    shift 2
    client "$provider" "$clients/verbs-walk" -p "$provider" "$@" || return 1
    [ "$provider" = holdfast ] || return 0
    python3 "$here/walk.py" "$out/cells/$name.stock-stock.lines" "$log.lines" "$differs" "$VERSION_CODENAME" >"$log.differs" 2>&1
    local rc=$?
    note=$(tail -n 1 "$log.differs")
    return $rc
}
