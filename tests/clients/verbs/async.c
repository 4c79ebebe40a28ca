/* SPDX-License-Identifier: MIT OR Apache-2.0
 *
 * Asynchronous events: which come, with what element, and that destroying waits for none that was acked.
 */
#include "walk.h"

#include <fcntl.h>
#include <net/if.h>
#include <stdarg.h>
#include <unistd.h>

/* Reads what is there and comes within `ms`; for each event its name and whether its element is the expected one. */
static void drain(const char *name, struct ibv_context *ctx, int ms, void *element)
{
	char text[512] = "";
	struct ibv_async_event e;
	bool seen[64] = { false };
	while (readable(ctx->async_fd, ms) && !ibv_get_async_event(ctx, &e)) {
		/* Each kind once, in the order of their numbers: how often and in what order they come varies. */
		if ((unsigned)e.event_type < ARRAY_SIZE(seen))
			seen[e.event_type] = true;
		if (element && (void *)e.element.qp != element)
			snprintf(text, sizeof(text), "(of something else) ");
		ibv_ack_async_event(&e);
	}
	for (size_t i = 0; i < ARRAY_SIZE(seen); i++) {
		if (!seen[i])
			continue;
		size_t n = strlen(text);
		snprintf(text + n, sizeof(text) - n, "%s; ", ibv_event_type_str((enum ibv_event_type)i));
	}
	say(name, "%s", *text ? text : "none");
}

void walk_async(struct topo *t)
{
	struct pair p;
	struct spec spec = { .type = IBV_QPT_RC };
	struct ibv_context *ctx = t->b->ctx;
	struct ibv_async_event e;
	int fl = fcntl(ctx->async_fd, F_GETFL);
	need(!fcntl(ctx->async_fd, F_SETFL, fl | O_NONBLOCK), "make the async fd non-blocking");
	errno = 0;
	want_int("none", ibv_get_async_event(ctx, &e), -1);
	want_errno("none.errno", errno, EAGAIN);
	need(!fcntl(ctx->async_fd, F_SETFL, fl), "make the async fd blocking");

	/* A message that comes before the receiver is in RTS: communication established. */
	p = (struct pair){ .spec = spec };
	need(!side_open(&p.a, t->a, &spec) && !side_open(&p.b, t->b, &spec), "create QPs");
	need(!to_init(&p.a, &spec) && !to_init(&p.b, &spec) && !to_rtr(&p.a, &p.b, &spec) &&
		     !to_rtr(&p.b, &p.a, &spec) && !to_rts(&p.a, &spec),
	     "connect one way");
	need(!recv_one(&p.b, 1, 0, 64), "post a receive");
	struct ibv_sge sg = sge(&p.a, 0, 16);
	struct ibv_send_wr w = wr(IBV_WR_SEND, 2, &sg);
	need(!send_wr(&p.a, &w), "send");
	want_wc("comm_est.sent", p.a.scq, 2, IBV_WC_SUCCESS);
	want_wc("comm_est.received", p.b.rcq, 1, IBV_WC_SUCCESS);
	drain("comm_est", ctx, 200, p.b.qp);
	pair_close(&p);

	/* The send queue runs dry. */
	need(!pair_open(&p, t->a, t->b, &spec), "connect");
	int err = to_state(p.b.qp, IBV_QPS_SQD);
	say("sqd", "%s", errname(err));
	drain("sqd.event", ctx, 200, p.b.qp);
	pair_close(&p);

	/* A request the responder must refuse. */
	need(!pair_open(&p, t->a, t->b, &spec), "connect");
	w = wr(IBV_WR_RDMA_WRITE, 3, &sg);
	sg = sge(&p.a, 0, 16);
	wr_rdma(&w, &p.b, 0);
	w.wr.rdma.rkey ^= 0x100;
	need(!send_wr(&p.a, &w), "send");
	struct ibv_wc wc;
	if (wait_one(p.a.scq, &wc))
		say_wc("access.completion", &wc);
	else
		say("access.completion", "none");
	drain("access.event", ctx, 200, p.b.qp);
	pair_close(&p);
	/* An unread event of a QP that is destroyed goes with it. */
	need(!pair_open(&p, t->a, t->b, &spec), "connect");
	sg = sge(&p.a, 0, 16);
	wr_rdma(&w, &p.b, 0);
	w.wr.rdma.rkey ^= 0x100;
	need(!send_wr(&p.a, &w), "send");
	wait_one(p.a.scq, &wc);
	pair_close(&p);
	check("unread.destroyed", true);
	drain("unread.after", ctx, 50, NULL);
}

void walk_port(struct topo *t)
{
	char path[128], ifname[IF_NAMESIZE + 1] = "", command[160];
	struct ibv_port_attr pa;
	snprintf(path, sizeof(path), "/sys/class/infiniband/%s/ports/1/gid_attrs/ndevs/0", t->b->name);
	FILE *f = fopen(path, "r");
	need(f && fscanf(f, "%16s", ifname) == 1, "find the network device");
	fclose(f);
	drain("before", t->b->ctx, 50, NULL);
	struct pair p;
	struct spec spec = { .type = IBV_QPT_RC, .retry_cnt = 1, .timeout = 8 };
	need(!pair_open(&p, t->a, t->b, &spec), "connect");

	snprintf(command, sizeof(command), "ip link set %s down", ifname);
	need(!system(command), command);
	drain("down", t->b->ctx, 1500, NULL);
	need(!ibv_query_port(t->b->ctx, 1, &pa), "query the port");
	say("down.state", "%s", ibv_port_state_str(pa.state));
	struct ibv_sge sg = sge(&p.b, 0, 16);
	struct ibv_send_wr w = wr(IBV_WR_SEND, 1, &sg);
	say("down.post", "%s", errname(send_wr(&p.b, &w)));
	struct ibv_wc wc;
	if (wait_one(p.b.scq, &wc))
		say("down.completion", "%s", wc.status ? "error" : "success");
	else
		say("down.completion", "none");

	snprintf(command, sizeof(command), "ip link set %s up && ip addr replace fd00::2/64 dev %s nodad", ifname, ifname);
	need(!system(command), command);
	drain("up", t->b->ctx, 1500, NULL);
	need(!ibv_query_port(t->b->ctx, 1, &pa), "query the port");
	say("up.state", "%s", ibv_port_state_str(pa.state));
	pair_close(&p);
	/* All is as before. */
	need(!ibv_query_gid(t->b->ctx, 1, t->b->gid_index, &t->b->gid), "query the GID");
	spec = (struct spec){ .type = IBV_QPT_RC };
	if (want_errno("up.open", pair_open(&p, t->a, t->b, &spec), 0)) {
		need(!recv_one(&p.b, 1, 0, 64), "post a receive");
		sg = sge(&p.a, 0, 16);
		w = wr(IBV_WR_SEND, 2, &sg);
		need(!send_wr(&p.a, &w), "send");
		want_wc("up.sent", p.a.scq, 2, IBV_WC_SUCCESS);
		want_wc("up.received", p.b.rcq, 1, IBV_WC_SUCCESS);
		pair_close(&p);
	}
}
