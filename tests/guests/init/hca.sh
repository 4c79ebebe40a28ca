#!/bin/bash
# hca-control COMMAND... | hca-journal QUERY... | hca-save FILE QUERY... | hca-plug del SLOT | hca-plug add SLOT [DEVICE]: an order to the host
# (src/hca.rs says which there are). Prints the answer; the status is the order's.
exec 9>/run/guest/orders.lock && flock 9 || exit 125
exec 8<>/dev/vport0p4 || exit 125
printf '%s %s\n' "${0##*hca-}" "$*" >&8
while IFS= read -r line <&8; do
    case $line in
    '|'*) printf '%s\n' "${line#|}" ;;
    =*) exit "${line#=}" ;;
    esac
done
echo "${0##*/}: no answer" >&2
exit 125
