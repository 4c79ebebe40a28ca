// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0
/*
 * Loaded with netdev=NAME, raises the fatal event of the RDMA device on that interface, as the driver of a device that has failed
 * would; soft-RoCE, which has no hardware to fail, never does. `count`: how often.
 */
#include <linux/module.h>
#include <linux/netdevice.h>
#include <rdma/ib_verbs.h>

static char *netdev = "";
module_param(netdev, charp, 0400);
MODULE_PARM_DESC(netdev, "the interface whose RDMA device fails");
static unsigned int count = 1;
module_param(count, uint, 0400);
MODULE_PARM_DESC(count, "how many events");

static int __init fatal_init(void)
{
	struct ib_event event = { .event = IB_EVENT_DEVICE_FATAL, .element.port_num = 1 };
	struct net_device *below = dev_get_by_name(&init_net, netdev);

	if (!below)
		return -ENODEV;
	/* Not by the device's own name: that way has gone from newer kernels. */
	event.device = ib_device_get_by_netdev(below, RDMA_DRIVER_UNKNOWN);
	dev_put(below);
	if (!event.device)
		return -ENODEV;
	while (count--)
		ib_dispatch_event(&event);
	ib_device_put(event.device);
	return 0;
}

static void __exit fatal_exit(void)
{
}

module_init(fatal_init);
module_exit(fatal_exit);
MODULE_LICENSE("Dual MIT/GPL");
MODULE_DESCRIPTION("raises the fatal event of an RDMA device, for tests");
