#!/bin/busybox sh
# The guest's first process: from the initramfs to the root, seen read-only under a tmpfs.
b=/bin/busybox
die() { echo "guest: $*" >/dev/kmsg; $b poweroff -f; }
$b mount -t devtmpfs dev /dev && $b mount -t proc proc /proc && $b mount -t sysfs sys /sys || $b poweroff -f
for ko in /modules/*; do $b insmod "$ko" || die "cannot load $ko"; done
$b mount -t 9p -o ro,cache=loose,trans=virtio,version=9p2000.L,access=any,msize=512000 root /lower || die 'no root'
$b mount -t tmpfs rw /rw && $b mkdir /rw/upper /rw/work || die 'no tmpfs'
$b mount -t overlay -o lowerdir=/lower,upperdir=/rw/upper,workdir=/rw/work root /root || die 'no overlay'
$b cp /stage2 /hca /conf /command /root/ || die 'the overlay is not writable'
for d in dev proc sys; do $b mount -o move /$d /root/$d; done
exec $b switch_root /root /bin/bash /stage2
