/* SPDX-License-Identifier: MIT OR Apache-2.0
 *
 * Shared receive queues.
 */
#include "walk.h"

static bool event_is(struct ibv_context *ctx, enum ibv_event_type type, void *element)
{
	struct ibv_async_event e;
	for (int i = 0; i < 16 && readable(ctx->async_fd, 5000); i++) {
		if (ibv_get_async_event(ctx, &e))
			return false;
		bool found = e.event_type == type && (void *)e.element.srq == element;
		ibv_ack_async_event(&e);
		if (found)
			return true;
	}
	return false;
}

static void query(const char *name, struct ibv_srq *srq)
{
	struct ibv_srq_attr a;
	memset(&a, 0xa5, sizeof(a));
	int err = ibv_query_srq(srq, &a);
	say(name, "%s: %u x %u, limit %u", errname(err), a.max_wr, a.max_sge, a.srq_limit);
}

static int post(struct ibv_srq *srq, struct ibv_mr *mr, uint64_t id)
{
	struct ibv_sge sg = { .addr = (uintptr_t)mr->addr, .length = 128, .lkey = mr->lkey };
	struct ibv_recv_wr r = { .wr_id = id, .sg_list = &sg, .num_sge = 1 }, *bad;
	return ibv_post_srq_recv(srq, &r, &bad);
}

void walk_srq(struct topo *t)
{
	struct ibv_srq_init_attr ia = { .srq_context = t, .attr = { .max_wr = 20, .max_sge = 3 } };
	errno = 0;
	struct ibv_srq *srq = ibv_create_srq(t->b->pd, &ia);
	say("create", "%s", srq ? "0" : errname(errno));
	if (!srq)
		return;
	say("create.attr", "%u x %u", ia.attr.max_wr, ia.attr.max_sge);
	check("create.not_less", ia.attr.max_wr >= 20 && ia.attr.max_sge >= 3);
	check("create.members", srq->srq_context == t && srq->pd == t->b->pd && srq->context == t->b->ctx);
	query("query", srq);
	uint32_t num = 0;
	say("get_srq_num", "%s", errname(ibv_get_srq_num(srq, &num)));

	/* Two QPs that share it, on the two kinds of transport that may. */
	struct spec spec = { .type = IBV_QPT_RC };
	struct pair p[2];
	for (int i = 0; i < 2; i++) {
		need(!pair_open(&p[i], t->a, t->b, &spec), "connect");
		need(!ibv_destroy_qp(p[i].b.qp), "replace the QP");
		struct ibv_qp_init_attr a =
			qp_init(IBV_QPT_RC, p[i].b.scq, p[0].b.rcq, (struct ibv_qp_cap){ 16, 0, 1, 0, 0 });
		a.srq = srq;
		p[i].b.qp = ibv_create_qp(t->b->pd, &a);
		need(p[i].b.qp, "create a QP on the SRQ");
		need(!to_state(p[i].a.qp, IBV_QPS_RESET) && !to_init(&p[i].a, &spec) && !to_init(&p[i].b, &spec) &&
			     !to_rtr(&p[i].a, &p[i].b, &spec) && !to_rtr(&p[i].b, &p[i].a, &spec) &&
			     !to_rts(&p[i].a, &spec) && !to_rts(&p[i].b, &spec),
		     "connect");
	}
	struct ibv_mr *mr = p[0].b.mr;
	for (int i = 0; i < 8; i++)
		need(!post(srq, mr, 1 + (uint64_t)i), "post to the SRQ");
	char name[64];
	for (int i = 0; i < 8; i++) {
		struct pair *q = &p[i & 1];
		struct ibv_sge sg = sge(&q->a, 0, 32);
		struct ibv_send_wr w = wr(IBV_WR_SEND, 100 + (uint64_t)i, &sg);
		need(!send_wr(&q->a, &w), "send");
		want_wc("shared.sent", q->a.scq, 100 + (uint64_t)i, IBV_WC_SUCCESS);
		snprintf(name, sizeof(name), "shared.received.%d", i);
		struct ibv_wc wc = want_wc(name, p[0].b.rcq, 1 + (uint64_t)i, IBV_WC_SUCCESS);
		snprintf(name, sizeof(name), "shared.qp_num.%d", i);
		check(name, wc.qp_num == q->b.qp->qp_num);
	}

	/* The limit: armed once, told once. */
	for (int i = 0; i < 6; i++)
		need(!post(srq, mr, 20 + (uint64_t)i), "post to the SRQ");
	struct ibv_srq_attr sa = { .srq_limit = 4 };
	want_errno("limit", ibv_modify_srq(srq, &sa, IBV_SRQ_LIMIT), 0);
	query("limit.query", srq);
	for (int i = 0; i < 4; i++) {
		struct ibv_sge sg = sge(&p[0].a, 0, 32);
		struct ibv_send_wr w = wr(IBV_WR_SEND, 120, &sg);
		struct ibv_wc wc;
		need(!send_wr(&p[0].a, &w) && wait_one(p[0].a.scq, &wc) && wait_one(p[0].b.rcq, &wc), "send");
	}
	check("limit.event", event_is(t->b->ctx, IBV_EVENT_SRQ_LIMIT_REACHED, srq));
	query("limit.after", srq);
	check("limit.once", !readable(t->b->ctx->async_fd, 50));
	sa.srq_limit = 1000;
	say("limit.over", "%s", errname(ibv_modify_srq(srq, &sa, IBV_SRQ_LIMIT)));
	say("modify.mask_0", "%s", errname(ibv_modify_srq(srq, &sa, 0)));
	say("modify.mask_unknown", "%s", errname(ibv_modify_srq(srq, &sa, 1 << 20)));

	/* Resizing, with two receives still inside. */
	sa = (struct ibv_srq_attr){ .max_wr = 60 };
	int err = ibv_modify_srq(srq, &sa, IBV_SRQ_MAX_WR);
	say("resize", "%s", errname(err));
	query("resize.query", srq);
	for (int i = 0; i < 2; i++) {
		struct ibv_sge sg = sge(&p[1].a, 0, 32);
		struct ibv_send_wr w = wr(IBV_WR_SEND, 130, &sg);
		need(!send_wr(&p[1].a, &w), "send");
		want_wc("resize.sent", p[1].a.scq, 130, IBV_WC_SUCCESS);
		want_wc("resize.kept", p[0].b.rcq, 24 + (uint64_t)i, IBV_WC_SUCCESS);
	}
	sa.max_wr = 0;
	say("resize.0", "%s", errname(ibv_modify_srq(srq, &sa, IBV_SRQ_MAX_WR)));
	sa.max_wr = UINT32_MAX;
	say("resize.huge", "%s", errname(ibv_modify_srq(srq, &sa, IBV_SRQ_MAX_WR)));
	query("resize.refused.query", srq);

	/* Full, and too many SGEs. */
	int n = 0;
	while (n < 10000 && !(err = post(srq, mr, 200 + (uint64_t)n)))
		n++;
	say("full.count", "%d", n);
	strict_errno("full", err, ENOMEM);
	struct ibv_sge many[64];
	for (size_t i = 0; i < ARRAY_SIZE(many); i++)
		many[i] = (struct ibv_sge){ .addr = (uintptr_t)mr->addr, .length = 1, .lkey = mr->lkey };
	struct ibv_recv_wr list[3], *bad = NULL;
	for (int i = 0; i < 3; i++) {
		list[i] = (struct ibv_recv_wr){ .wr_id = 7, .sg_list = many, .num_sge = 1 };
		list[i].next = i < 2 ? &list[i + 1] : NULL;
	}
	strict_errno("full.list", ibv_post_srq_recv(srq, list, &bad), ENOMEM);
	check("full.list.bad_wr", bad == list);
	/* Room for one: the second of the list is then the one too many. */
	struct ibv_sge sg = sge(&p[0].a, 0, 32);
	struct ibv_send_wr w = wr(IBV_WR_SEND, 140, &sg);
	struct ibv_wc wc;
	need(!send_wr(&p[0].a, &w) && wait_one(p[0].a.scq, &wc) && wait_one(p[0].b.rcq, &wc), "send");
	strict_errno("almost_full.list", ibv_post_srq_recv(srq, list, &bad), ENOMEM);
	want_int("almost_full.list.bad_wr", bad ? bad - list : -1, 1);
	for (int i = 0; i < 4; i++)
		need(!send_wr(&p[0].a, &w) && wait_one(p[0].a.scq, &wc) && wait_one(p[0].b.rcq, &wc), "send");
	list[1].num_sge = (int)ia.attr.max_sge + 1;
	strict_errno("too_many_sges.list", ibv_post_srq_recv(srq, list, &bad), EINVAL);
	want_int("too_many_sges.bad_wr", bad ? bad - list : -1, 1);

	want_errno("busy", ibv_destroy_srq(srq), EBUSY);
	/* A QP on an SRQ that goes to ERR tells that it has taken its last. */
	need(!to_state(p[0].b.qp, IBV_QPS_ERR), "modify to ERR");
	struct ibv_async_event e;
	bool last = false;
	for (int i = 0; i < 8 && !last && readable(t->b->ctx->async_fd, 2000); i++) {
		if (ibv_get_async_event(t->b->ctx, &e))
			break;
		last = e.event_type == IBV_EVENT_QP_LAST_WQE_REACHED && e.element.qp == p[0].b.qp;
		ibv_ack_async_event(&e);
	}
	say("last_wqe", "%s", last ? "told" : "not told");
	pair_close(&p[1]);
	need(!ibv_destroy_qp(p[0].b.qp), "destroy the QP");
	p[0].b.qp = NULL;
	want_errno("destroy", ibv_destroy_srq(srq), 0);
	pair_close(&p[0]);

	/* The extended way to make one. */
	struct ibv_srq_init_attr_ex x = { .attr = { .max_wr = 16, .max_sge = 1 },
					  .comp_mask = IBV_SRQ_INIT_ATTR_PD | IBV_SRQ_INIT_ATTR_TYPE,
					  .pd = t->b->pd, .srq_type = IBV_SRQT_BASIC };
	errno = 0;
	srq = ibv_create_srq_ex(t->b->ctx, &x);
	say("ex.create", "%s", srq ? "0" : errname(errno));
	if (srq) {
		query("ex.query", srq);
		say("ex.get_srq_num", "%s", errname(ibv_get_srq_num(srq, &num)));
		want_errno("ex.destroy", ibv_destroy_srq(srq), 0);
	}
}
