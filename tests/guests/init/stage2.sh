# The guest's first process in its root: devices, network, then the job. Sourced values (conf): shares, modules, cwd,
# tty, size, rxe, hca. Ports: 1 the job's stdout, 2 its stderr, 3 its exit status, 4 its orders to the host.
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LANG=C.UTF-8 TERM=${TERM:-dumb}

end() { # [STATUS]: no status means that the guest failed
    [ $# -eq 0 ] || echo "$1" >/dev/vport0p3
    sync
    echo b >/proc/sysrq-trigger
    while :; do read -r -t 60 <> <(:); done
}
die() {
    echo "guest: $*" >/dev/kmsg
    end
}

mkdir -p /dev/shm /dev/pts
mount -t tmpfs run /run && mount -t tmpfs tmp /tmp && mount -t tmpfs shm /dev/shm && mount -t devpts pts /dev/pts ||
    die 'cannot mount the first file systems'
ln -s /proc/self/fd /dev/fd
mkdir /run/guest
mv /conf /command /hca /run/guest/ && rm /stage2
. /run/guest/conf
echo guest >/proc/sys/kernel/hostname

n=0
for dir in "${shares[@]}"; do
    mkdir -p "$dir"
    mount -t 9p -o cache=mmap,trans=virtio,version=9p2000.L,access=any,msize=512000 "share$n" "$dir" ||
        die "cannot mount $dir"
    n=$((n + 1))
done

if [ -n "$rxe" ]; then
    modprobe -a ib_uverbs rdma_ucm rdma_rxe veth || die 'no soft-RoCE'
    # Both ends of the pair are local: let each take packets whose source is the other's address.
    sysctl -qw net.ipv4.conf.all.accept_local=1 net.ipv4.conf.all.rp_filter=0 net.ipv4.conf.default.rp_filter=0 \
        net.ipv6.conf.default.accept_dad=0 || die 'sysctl'
    ip link add rx0 mtu 4500 address 02:00:00:00:00:01 type veth \
        peer name rx1 mtu 4500 address 02:00:00:00:00:02 || die 'no veth pair'
    for i in 0 1; do
        ip addr add "10.0.0.$((i + 1))/24" dev rx$i && ip addr add "fd00::$((i + 1))/64" dev rx$i nodad &&
            ip link set rx$i up && rdma link add rxe$i type rxe netdev rx$i || die "no rxe$i"
    done
fi
ip link set lo up

# The virtual ConnectX: usable once each has a port that is up.
hca_up() {
    local n=0 port state
    for port in /sys/class/infiniband/mlx5_*/ports/1; do
        read -r state <"$port/state" && [[ $state == *ACTIVE ]] && n=$((n + 1))
    done 2>/dev/null
    [ $n -ge "$hca" ]
}
if [ -n "$hca" ]; then
    for name in control journal save plug; do ln -s /run/guest/hca /usr/local/bin/hca-$name; done
    modprobe -a mlx5_core mlx5_ib ib_uverbs rdma_ucm || die 'no mlx5 modules'
    end=$((SECONDS + 90))
    until hca_up || [ $SECONDS -ge $end ]; do sleep 0.05; done
    hca_up || die "of $hca virtual ConnectX not all came up: $(rdma link)"
    echo 'guest: the virtual ConnectX are up' >/dev/kmsg
fi
if [ ${#modules[@]} -gt 0 ]; then modprobe -a "${modules[@]}" || die "cannot load ${modules[*]}"; fi

# The ports come when the host has answered the driver.
for n in {1..600}; do [ -c /dev/vport0p3 ] && break || sleep 0.05; done
cd "$cwd" || die "no $cwd"
if [ -n "$tty" ]; then
    export TERM=$tty
    stty rows "${size% *}" cols "${size#* }" </dev/hvc0
    setsid -c -w bash -i </dev/hvc0 >/dev/hvc0 2>&1
else
    bash /run/guest/command </dev/null >/dev/vport0p1 2>/dev/vport0p2
fi
end $?
