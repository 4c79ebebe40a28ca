/* SPDX-License-Identifier: MIT OR Apache-2.0
 *
 * verbs-walk: every verb and opcode, right and wrong, one line for each finding.
 */
#include "walk.h"

#include <fnmatch.h>

static const struct group groups[] = {
	{ "device", "queries, verbs that soft-RoCE has not, imports", walk_device, true, false },
	{ "rc", "every opcode by ibv_post_send on RC, inline, SGE lists, signalling, fence", walk_rc, false, false },
	{ "uc", "the same on UC", walk_uc, false, false },
	{ "ud", "the same on UD", walk_ud, false, false },
	{ "builders", "the ibv_wr_* interface", walk_builders, false, false },
	{ "states", "QP states, queries, illegal transitions", walk_states, false, false },
	{ "errors", "requests that fail, flushing", walk_errors, false, false },
	{ "cq", "polling, resizing, many pollers, overflow", walk_cq, false, false },
	{ "cqx", "ibv_start_poll and what it reads", walk_cqx, false, false },
	{ "events", "arming, completion channels, acks", walk_events, false, false },
	{ "srq", "shared receive queues", walk_srq, false, false },
	{ "mr", "memory regions: flags, ranges, rereg, iova, on demand, dmabuf", walk_mr, false, false },
	{ "mw", "memory windows of both types", walk_mw, false, false },
	{ "ah", "address handles, datagrams and their GRH", walk_ah, false, false },
	{ "mcast", "multicast groups", walk_mcast, false, false },
	{ "async", "asynchronous events", walk_async, false, false },
	{ "bad-post", "work requests and lists that make no sense", walk_bad_post, false, false },
	{ "bad-create", "capabilities and attributes that make no sense", walk_bad_create, true, false },
	{ "busy", "destroying what is in use, handles that name nothing", walk_busy, true, false },
	{ "dm", "device memory", walk_dm, false, false },
	{ "import", "a context that is opened twice", walk_import, true, false },
	{ "wqes", "every opcode with every flag and shape of data, one by one", walk_wqes, true, true },
	{ "registers", "many queue pairs, thread domains", walk_registers, true, true },
	{ "hazard", "what the stock provider does not check at all", walk_hazard, true, true },
	{ "port", "the port goes down and up again (needs `ip`)", walk_port, true, true },
};

int main(int argc, char **argv)
{
	struct options o;
	struct dev a, b;
	parse_options(&o, argc, argv, "[--list | GROUP...]    (GROUP may be a pattern, such as 'bad-*')");
	if (o.argc && !strcmp(o.argv[0], "--list")) {
		for (size_t i = 0; i < ARRAY_SIZE(groups); i++)
			printf("%-12s %s%s\n", groups[i].name, groups[i].what,
			       groups[i].named ? " (only when named)" : "");
		return 0;
	}
	dev_open(&a, o.device[0], o.gid_index);
	dev_open(&b, o.device[1], o.gid_index);
	check_provider(&o);
	struct topo topos[] = { { "loop", &a, &a }, { "wire", &a, &b } };
	for (size_t g = 0; g < ARRAY_SIZE(groups); g++) {
		bool chosen = !o.argc && !groups[g].named;
		for (int i = 0; i < o.argc; i++)
			chosen = chosen || !fnmatch(o.argv[i], groups[g].name, 0);
		for (size_t t = 0; chosen && t < (groups[g].once ? 1 : ARRAY_SIZE(topos)); t++) {
			/* What goes down goes between two devices. */
			struct topo *where = groups[g].run == walk_port ? &topos[1] : &topos[t];
			prefix("%s.%s", groups[g].name, where->name);
			groups[g].run(where);
		}
	}
	dev_close(&a);
	dev_close(&b);
	return finish();
}
