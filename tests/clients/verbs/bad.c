/* SPDX-License-Identifier: MIT OR Apache-2.0
 *
 * Bad input: what each verb answers to work requests and capabilities that make no sense.
 *
 * `hazard` holds what rdma-core's own rxe provider does not look at at all (it writes beyond its queue, or hands
 * the kernel an opcode that it uses as an index): it runs with the stock provider only when asked for by name.
 */
#include "walk.h"

#include <limits.h>
#include <unistd.h>

static void post_in(struct topo *t, enum ibv_qp_state state, const char *what)
{
	struct pair p;
	struct spec spec = { .type = IBV_QPT_RC };
	char name[64];
	p = (struct pair){ .spec = spec };
	need(!side_open(&p.a, t->a, &spec) && !side_open(&p.b, t->b, &spec), "create QPs");
	if (state != IBV_QPS_RESET)
		need(!to_init(&p.a, &spec), "modify to INIT");
	if (state == IBV_QPS_RTR)
		need(!to_rtr(&p.a, &p.b, &spec), "modify to RTR");
	struct ibv_sge sg = sge(&p.a, 0, 16);
	struct ibv_send_wr w = wr(IBV_WR_SEND, 1, &sg), *bad = NULL;
	snprintf(name, sizeof(name), "%s.post_send", what);
	strict_errno(name, ibv_post_send(p.a.qp, &w, &bad), EINVAL);
	snprintf(name, sizeof(name), "%s.post_send.bad_wr", what);
	strict_check(name, bad == &w);
	struct ibv_recv_wr r = { .wr_id = 2, .sg_list = &sg, .num_sge = 1 }, *rbad = NULL;
	snprintf(name, sizeof(name), "%s.post_recv", what);
	strict_errno(name, ibv_post_recv(p.a.qp, &r, &rbad), state == IBV_QPS_RESET ? EINVAL : 0);
	snprintf(name, sizeof(name), "%s.post_recv.bad_wr", what);
	strict_check(name, state == IBV_QPS_RESET ? rbad == &r : rbad == NULL);
	snprintf(name, sizeof(name), "%s.nothing_done", what);
	check(name, stays_empty(p.a.scq));
	pair_close(&p);
}

static void null_lists(struct pair *p)
{
	struct ibv_sge sg = sge(&p->a, 0, 16);
	struct ibv_send_wr w = wr(IBV_WR_SEND, 1, &sg), *bad = &w;
	struct ibv_recv_wr r = { .wr_id = 2, .sg_list = &sg, .num_sge = 1 }, *rbad = &r;
	strict_errno("null_list.post_send", ibv_post_send(p->a.qp, NULL, &bad), EINVAL);
	strict_check("null_list.post_send.bad_wr", bad == NULL);
	strict_errno("null_list.post_recv", ibv_post_recv(p->a.qp, NULL, &rbad), EINVAL);
	strict_check("null_list.post_recv.bad_wr", rbad == NULL);
	strict_errno("null_bad_wr.post_send", ibv_post_send(p->a.qp, &w, NULL), EINVAL);
	strict_errno("null_bad_wr.post_recv", ibv_post_recv(p->a.qp, &r, NULL), EINVAL);
	check("null.nothing_done", stays_empty(p->a.scq));
}

/* The ring takes what was asked for (the kernel rounds up), then says ENOMEM, and goes on once there is room. */
static void ring_full(struct topo *t)
{
	struct pair p;
	struct spec spec = { .type = IBV_QPT_RC, .send_wr = 4, .recv_wr = 4 };
	need(!pair_open(&p, t->a, t->b, &spec), "connect");
	struct ibv_sge sg = sge(&p.b, 0, 16);
	struct ibv_recv_wr r = { .sg_list = &sg, .num_sge = 1 }, *rbad;
	int n = 0, err;
	for (;; n++) {
		r.wr_id = (uint64_t)n;
		rbad = NULL;
		err = ibv_post_recv(p.b.qp, &r, &rbad);
		if (err || n > 1000)
			break;
	}
	say("recv_full.count", "%d", n);
	check("recv_full.as_many_as_said", n >= 4 && n >= (int)p.b.cap.max_recv_wr);
	strict_errno("recv_full", err, ENOMEM);
	check("recv_full.bad_wr", rbad == &r);

	/* A list longer than the ring: the peer has no receive beyond n, so that the ring cannot drain. */
	struct ibv_send_wr list[64], *bad = NULL;
	struct ibv_sge ssg = sge(&p.a, 0, 16);
	for (size_t i = 0; i < ARRAY_SIZE(list); i++) {
		list[i] = wr(IBV_WR_SEND, i, &ssg);
		list[i].next = i + 1 < ARRAY_SIZE(list) ? &list[i + 1] : NULL;
	}
	err = ibv_post_send(p.a.qp, list, &bad);
	strict_errno("send_full", err, ENOMEM);
	long at = bad ? bad - list : -1;
	say("send_full.bad_wr", "%ld", at);
	check("send_full.as_many_as_said", at >= 4 && at >= (long)p.a.cap.max_send_wr);
	for (long i = 0; i < at && i < n; i++) {
		char name[64];
		snprintf(name, sizeof(name), "send_full.sent.%ld", i);
		want_wc(name, p.a.scq, (uint64_t)i, IBV_WC_SUCCESS);
	}
	/* Room again: some devices' receive queues have it only once the completions are polled. */
	struct ibv_wc received[64];
	int arrived = at < n ? (int)at : n;
	check("send_full.received", arrived <= (int)ARRAY_SIZE(received) && wait_wc(p.b.rcq, received, arrived) == arrived);
	if (at > n) {
		for (long i = n; i < at; i++)
			need(!recv_one(&p.b, 50, 0, 16), "post a receive");
		for (long i = n; i < at; i++)
			want_wc("send_full.rest", p.a.scq, (uint64_t)i, IBV_WC_SUCCESS);
	}
	need(!recv_one(&p.b, 51, 0, 16), "post a receive");
	struct ibv_send_wr w = wr(IBV_WR_SEND, 99, &ssg);
	want_errno("send_full.again", send_wr(&p.a, &w), 0);
	want_wc("send_full.again.sent", p.a.scq, 99, IBV_WC_SUCCESS);
	pair_close(&p);
}

/* What is refused of a list is in the middle: what stands before it is done, what follows is not. */
static void bad_in_a_send_list(struct topo *t, const char *what)
{
	struct pair p;
	struct spec spec = { .type = IBV_QPT_RC, .inl = 32 };
	char name[64];
	need(!pair_open(&p, t->a, t->b, &spec), "connect");
	struct ibv_sge sg[64];
	for (size_t i = 0; i < ARRAY_SIZE(sg); i++)
		sg[i] = sge(&p.a, i * 16, 16);
	struct ibv_send_wr list[4], *bad = NULL;
	for (int i = 0; i < 4; i++) {
		list[i] = wr(IBV_WR_SEND, 60 + (uint64_t)i, sg);
		list[i].next = i < 3 ? &list[i + 1] : NULL;
		need(!recv_one(&p.b, 70 + (uint64_t)i, (size_t)i * 1024, 1024), "post a receive");
	}
	if (!strcmp(what, "too_many_sges")) {
		list[2].num_sge = (int)p.a.cap.max_send_sge + 1;
	} else if (!strcmp(what, "too_much_inline")) {
		list[2].send_flags |= IBV_SEND_INLINE;
		sg[8].length = p.a.cap.max_inline_data + 1;
		list[2].sg_list = &sg[8];
	} else {
		list[2].opcode = IBV_WR_ATOMIC_FETCH_AND_ADD;
		list[2].wr.atomic.remote_addr = (uintptr_t)p.b.buf + 1;
		list[2].wr.atomic.rkey = p.b.mr->rkey;
	}
	snprintf(name, sizeof(name), "list.%s", what);
	strict_errno(name, ibv_post_send(p.a.qp, list, &bad), EINVAL);
	snprintf(name, sizeof(name), "list.%s.bad_wr", what);
	want_int(name, bad ? bad - list : -1, 2);
	for (int i = 0; i < 2; i++) {
		snprintf(name, sizeof(name), "list.%s.sent.%d", what, i);
		want_wc(name, p.a.scq, 60 + (uint64_t)i, IBV_WC_SUCCESS);
		snprintf(name, sizeof(name), "list.%s.received.%d", what, i);
		want_wc(name, p.b.rcq, 70 + (uint64_t)i, IBV_WC_SUCCESS);
	}
	snprintf(name, sizeof(name), "list.%s.no_more", what);
	check(name, stays_empty(p.a.scq) && stays_empty(p.b.rcq));
	/* And more can be posted. */
	struct ibv_send_wr w = wr(IBV_WR_SEND, 80, sg);
	need(!send_wr(&p.a, &w), "send");
	snprintf(name, sizeof(name), "list.%s.after.sent", what);
	want_wc(name, p.a.scq, 80, IBV_WC_SUCCESS);
	snprintf(name, sizeof(name), "list.%s.after.received", what);
	want_wc(name, p.b.rcq, 72, IBV_WC_SUCCESS);
	pair_close(&p);
}

static void bad_in_a_receive_list(struct topo *t)
{
	struct pair p;
	struct spec spec = { .type = IBV_QPT_RC };
	need(!pair_open(&p, t->a, t->b, &spec), "connect");
	struct ibv_sge sg[64];
	for (size_t i = 0; i < ARRAY_SIZE(sg); i++)
		sg[i] = sge(&p.b, i * 16, 16);
	struct ibv_recv_wr r[4] = { { 0 } }, *rbad = NULL;
	for (int i = 0; i < 4; i++) {
		r[i] = (struct ibv_recv_wr){ .wr_id = 90 + (uint64_t)i, .sg_list = sg, .num_sge = 1 };
		r[i].next = i < 3 ? &r[i + 1] : NULL;
	}
	r[2].num_sge = (int)p.b.cap.max_recv_sge + 1;
	strict_errno("list.recv", ibv_post_recv(p.b.qp, r, &rbad), EINVAL);
	want_int("list.recv.bad_wr", rbad ? rbad - r : -1, 2);
	for (int i = 0; i < 2; i++) {
		struct ibv_sge s = sge(&p.a, 0, 8);
		struct ibv_send_wr w = wr(IBV_WR_SEND, 81, &s);
		need(!send_wr(&p.a, &w), "send");
		want_wc("list.recv.sent", p.a.scq, 81, IBV_WC_SUCCESS);
		want_wc("list.recv.received", p.b.rcq, 90 + (uint64_t)i, IBV_WC_SUCCESS);
	}
	pair_close(&p);
}

static void bad_in_the_middle(struct topo *t)
{
	bad_in_a_send_list(t, "too_many_sges");
	/* Stock loses what stands before it, silently. */
	if (soft_roce() || provider() != PROVIDER_STOCK)
		bad_in_a_send_list(t, "too_much_inline");
	else
		say("list.too_much_inline", "left out");
	/* Nobody but soft-RoCE refuses it before it is sent. */
	if (soft_roce())
		bad_in_a_send_list(t, "misaligned_atomic");
	bad_in_a_receive_list(t);
}

static void wrong_type(struct topo *t)
{
	static const struct {
		const char *name;
		enum ibv_qp_type type;
		enum ibv_wr_opcode op;
	} c[] = {
		{ "uc.read", IBV_QPT_UC, IBV_WR_RDMA_READ },
		{ "uc.fetch_add", IBV_QPT_UC, IBV_WR_ATOMIC_FETCH_AND_ADD },
		{ "ud.write", IBV_QPT_UD, IBV_WR_RDMA_WRITE },
		{ "ud.read", IBV_QPT_UD, IBV_WR_RDMA_READ },
		{ "ud.cmp_swp", IBV_QPT_UD, IBV_WR_ATOMIC_CMP_AND_SWP },
		{ "ud.local_inv", IBV_QPT_UD, IBV_WR_LOCAL_INV },
		{ "ud.send_inv", IBV_QPT_UD, IBV_WR_SEND_WITH_INV },
		{ "rc.tso", IBV_QPT_RC, IBV_WR_TSO },
	};
	for (size_t i = 0; i < ARRAY_SIZE(c); i++) {
		struct pair p;
		struct spec spec = { .type = c[i].type };
		char name[64];
		need(!pair_open(&p, t->a, t->b, &spec), "connect");
		struct ibv_sge sg = sge(&p.a, 0, 8);
		struct ibv_send_wr w = wr(c[i].op, 1, &sg), *bad = NULL;
		if (c[i].type == IBV_QPT_UD) {
			wr_ud(&w, &p.a, &p.b);
		} else if (c[i].op == IBV_WR_ATOMIC_FETCH_AND_ADD) {
			w.wr.atomic.remote_addr = (uintptr_t)p.b.buf;
			w.wr.atomic.rkey = p.b.mr->rkey;
		} else {
			wr_rdma(&w, &p.b, 0);
		}
		int err = ibv_post_send(p.a.qp, &w, &bad);
		snprintf(name, sizeof(name), "wrong_type.%s", c[i].name);
		strict_errno(name, err, EINVAL);
		snprintf(name, sizeof(name), "wrong_type.%s.bad_wr", c[i].name);
		strict_check(name, bad == &w);
		if (!err) {
			struct ibv_wc wc;
			snprintf(name, sizeof(name), "wrong_type.%s.completion", c[i].name);
			if (wait_one(p.a.scq, &wc))
				say_wc(name, &wc);
			else
				say(name, "none");
		}
		pair_close(&p);
	}
}

void walk_bad_post(struct topo *t)
{
	struct pair p;
	struct spec spec = { .type = IBV_QPT_RC };
	post_in(t, IBV_QPS_RESET, "reset");
	post_in(t, IBV_QPS_INIT, "init");
	post_in(t, IBV_QPS_RTR, "rtr");
	need(!pair_open(&p, t->a, t->b, &spec), "connect");
	null_lists(&p);
	pair_close(&p);
	ring_full(t);
	bad_in_the_middle(t);
	wrong_type(t);
}

/* ------------------------------------------------------------------ create */

static void bad_caps(struct topo *t)
{
	struct ibv_cq *cq = ibv_create_cq(t->a->ctx, 16, NULL, NULL, 0);
	need(cq, "create a CQ");
	static const struct {
		const char *name;
		struct ibv_qp_cap cap;
	} c[] = {
		{ "all_zero", { 0, 0, 0, 0, 0 } },
		{ "one_each", { 1, 1, 1, 1, 0 } },
		{ "send_wr.huge", { UINT32_MAX, 1, 1, 1, 0 } },
		{ "send_wr.int_max", { INT_MAX, 1, 1, 1, 0 } },
		{ "recv_wr.huge", { 1, UINT32_MAX, 1, 1, 0 } },
		{ "send_sge.huge", { 1, 1, UINT32_MAX, 1, 0 } },
		{ "send_sge.64", { 1, 1, 64, 1, 0 } },
		{ "recv_sge.huge", { 1, 1, 1, UINT32_MAX, 0 } },
		{ "recv_sge.64", { 1, 1, 1, 64, 0 } },
		{ "inline.huge", { 1, 1, 1, 1, UINT32_MAX } },
		{ "inline.4096", { 1, 1, 1, 1, 4096 } },
		{ "inline.512", { 1, 1, 1, 1, 512 } },
		{ "inline.513", { 1, 1, 1, 1, 513 } },
		{ "send_wr.16384", { 16384, 1, 1, 1, 0 } },
	};
	for (size_t i = 0; i < ARRAY_SIZE(c); i++) {
		char name[64];
		struct ibv_qp_init_attr a = qp_init(IBV_QPT_RC, cq, cq, c[i].cap);
		errno = 0;
		struct ibv_qp *qp = ibv_create_qp(t->a->pd, &a);
		snprintf(name, sizeof(name), "qp.%s", c[i].name);
		if (!qp) {
			say(name, "%s", errname(errno));
			continue;
		}
		say(name, "send %u x %u, recv %u x %u, inline %u", a.cap.max_send_wr, a.cap.max_send_sge,
		    a.cap.max_recv_wr, a.cap.max_recv_sge, a.cap.max_inline_data);
		snprintf(name, sizeof(name), "qp.%s.not_less", c[i].name);
		strict_check(name, a.cap.max_send_wr >= c[i].cap.max_send_wr && a.cap.max_recv_wr >= c[i].cap.max_recv_wr &&
				    a.cap.max_send_sge >= c[i].cap.max_send_sge &&
				    a.cap.max_recv_sge >= c[i].cap.max_recv_sge &&
				    a.cap.max_inline_data >= c[i].cap.max_inline_data);
		need(!ibv_destroy_qp(qp), "destroy the QP");
	}
	static const struct {
		const char *name;
		int type;
	} types[] = { { "raw_packet", IBV_QPT_RAW_PACKET }, { "xrc_send", IBV_QPT_XRC_SEND },
		      { "xrc_recv", IBV_QPT_XRC_RECV }, { "driver", IBV_QPT_DRIVER }, { "zero", 0 }, { "255", 255 } };
	for (size_t i = 0; i < ARRAY_SIZE(types); i++) {
		char name[64];
		struct ibv_qp_init_attr a = qp_init(IBV_QPT_RC, cq, cq, (struct ibv_qp_cap){ 1, 1, 1, 1, 0 });
		*(int *)&a.qp_type = types[i].type;
		snprintf(name, sizeof(name), "qp.type.%s", types[i].name);
		errno = 0;
		struct ibv_qp *qp = ibv_create_qp(t->a->pd, &a);
		say(name, "%s", qp ? "created" : errname(errno));
		if (qp)
			need(!ibv_destroy_qp(qp), "destroy the QP");
	}
	need(!ibv_destroy_cq(cq), "destroy the CQ");
}

static void bad_qp_ex(struct topo *t)
{
	struct ibv_cq *cq = ibv_create_cq(t->a->ctx, 16, NULL, NULL, 0);
	need(cq, "create a CQ");
	static const struct {
		const char *name;
		enum ibv_qp_type type;
		uint32_t comp_mask, create_flags;
		uint64_t ops;
	} c[] = {
		{ "no_pd", IBV_QPT_RC, 0, 0, 0 },
		{ "pd_only", IBV_QPT_RC, IBV_QP_INIT_ATTR_PD, 0, 0 },
		{ "ops.none", IBV_QPT_RC, IBV_QP_INIT_ATTR_PD | IBV_QP_INIT_ATTR_SEND_OPS_FLAGS, 0, 0 },
		{ "ops.tso", IBV_QPT_RC, IBV_QP_INIT_ATTR_PD | IBV_QP_INIT_ATTR_SEND_OPS_FLAGS, 0, IBV_QP_EX_WITH_TSO },
		{ "ops.unknown", IBV_QPT_RC, IBV_QP_INIT_ATTR_PD | IBV_QP_INIT_ATTR_SEND_OPS_FLAGS, 0, 1ULL << 40 },
		{ "ops.uc_read", IBV_QPT_UC, IBV_QP_INIT_ATTR_PD | IBV_QP_INIT_ATTR_SEND_OPS_FLAGS, 0,
		  IBV_QP_EX_WITH_RDMA_READ },
		{ "ops.ud_write", IBV_QPT_UD, IBV_QP_INIT_ATTR_PD | IBV_QP_INIT_ATTR_SEND_OPS_FLAGS, 0,
		  IBV_QP_EX_WITH_RDMA_WRITE },
		{ "flags.zero", IBV_QPT_RC, IBV_QP_INIT_ATTR_PD | IBV_QP_INIT_ATTR_CREATE_FLAGS, 0, 0 },
		{ "flags.scatter_fcs", IBV_QPT_RC, IBV_QP_INIT_ATTR_PD | IBV_QP_INIT_ATTR_CREATE_FLAGS,
		  IBV_QP_CREATE_SCATTER_FCS, 0 },
		{ "flags.block_self_mcast", IBV_QPT_UD, IBV_QP_INIT_ATTR_PD | IBV_QP_INIT_ATTR_CREATE_FLAGS,
		  IBV_QP_CREATE_BLOCK_SELF_MCAST_LB, 0 },
		{ "comp_mask.tso", IBV_QPT_RC, IBV_QP_INIT_ATTR_PD | IBV_QP_INIT_ATTR_MAX_TSO_HEADER, 0, 0 },
		{ "comp_mask.rss", IBV_QPT_RC, IBV_QP_INIT_ATTR_PD | IBV_QP_INIT_ATTR_RX_HASH, 0, 0 },
		{ "comp_mask.unknown", IBV_QPT_RC, IBV_QP_INIT_ATTR_PD | 1U << 31, 0, 0 },
	};
	for (size_t i = 0; i < ARRAY_SIZE(c); i++) {
		char name[64];
		struct ibv_qp_init_attr_ex a = {
			.send_cq = cq, .recv_cq = cq, .cap = { 1, 1, 1, 1, 0 }, .qp_type = c[i].type,
			.comp_mask = c[i].comp_mask, .pd = t->a->pd, .create_flags = c[i].create_flags,
			.send_ops_flags = c[i].ops,
		};
		snprintf(name, sizeof(name), "qp_ex.%s", c[i].name);
		errno = 0;
		struct ibv_qp *qp = ibv_create_qp_ex(t->a->ctx, &a);
		say(name, "%s", !qp ? errname(errno) : ibv_qp_to_qp_ex(qp) ? "created, extended" : "created");
		if (qp)
			need(!ibv_destroy_qp(qp), "destroy the QP");
	}
	need(!ibv_destroy_cq(cq), "destroy the CQ");
}

static void bad_cqs(struct topo *t)
{
	static const struct {
		const char *name;
		int cqe, vector;
	} c[] = {
		{ "cqe.0", 0, 0 },	     { "cqe.minus_1", -1, 0 },	       { "cqe.1", 1, 0 },
		{ "cqe.int_max", INT_MAX, 0 }, { "cqe.int_min", INT_MIN, 0 },    { "cqe.100", 100, 0 },
		{ "vector.minus_1", 16, -1 },  { "vector.int_max", 16, INT_MAX }, { "vector.1000", 16, 1000 },
	};
	for (size_t i = 0; i < ARRAY_SIZE(c); i++) {
		char name[64];
		errno = 0;
		struct ibv_cq *cq = ibv_create_cq(t->a->ctx, c[i].cqe, NULL, NULL, c[i].vector);
		snprintf(name, sizeof(name), "cq.%s", c[i].name);
		if (cq)
			say(name, "created, %d", cq->cqe);
		else
			say(name, "%s", errname(errno));
		if (cq)
			need(!ibv_destroy_cq(cq), "destroy the CQ");
	}
	int max = t->a->attr.max_cqe;
	errno = 0;
	struct ibv_cq *cq = ibv_create_cq(t->a->ctx, max, NULL, NULL, 0);
	say("cq.cqe.max", "%s", cq ? "created" : errname(errno));
	if (cq)
		need(!ibv_destroy_cq(cq), "destroy the CQ");
	want_errno("cq.cqe.max_and_1", ERR_OF_PTR(cq = ibv_create_cq(t->a->ctx, max + 1, NULL, NULL, 0)), EINVAL);
	if (cq)
		ibv_destroy_cq(cq);

	cq = ibv_create_cq(t->a->ctx, 16, NULL, NULL, 0);
	need(cq, "create a CQ");
	say("cq.resize.0", "%s", errname(ibv_resize_cq(cq, 0)));
	say("cq.resize.minus_1", "%s", errname(ibv_resize_cq(cq, -1)));
	say("cq.resize.int_max", "%s", errname(ibv_resize_cq(cq, INT_MAX)));
	say("cq.cqe.after", "%d", cq->cqe);
	struct ibv_wc wc[2];
	say("cq.poll.0", "%d", ibv_poll_cq(cq, 0, wc));
	say("cq.poll.minus_1", "%d", ibv_poll_cq(cq, -1, wc));
	need(!ibv_destroy_cq(cq), "destroy the CQ");

	static const struct {
		const char *name;
		struct ibv_cq_init_attr_ex a;
	} x[] = {
		{ "plain", { .cqe = 16 } },
		{ "cqe.0", { .cqe = 0 } },
		{ "cqe.huge", { .cqe = UINT32_MAX } },
		{ "wc.std", { .cqe = 16, .wc_flags = IBV_WC_STANDARD_FLAGS } },
		{ "wc.ts", { .cqe = 16, .wc_flags = IBV_WC_EX_WITH_COMPLETION_TIMESTAMP } },
		{ "wc.cvlan", { .cqe = 16, .wc_flags = IBV_WC_EX_WITH_CVLAN } },
		{ "wc.flow_tag", { .cqe = 16, .wc_flags = IBV_WC_EX_WITH_FLOW_TAG } },
		{ "wc.tm", { .cqe = 16, .wc_flags = IBV_WC_EX_WITH_TM_INFO } },
		{ "wc.wallclock", { .cqe = 16, .wc_flags = IBV_WC_EX_WITH_COMPLETION_TIMESTAMP_WALLCLOCK } },
		{ "wc.unknown", { .cqe = 16, .wc_flags = 1ULL << 40 } },
		{ "comp_mask.unknown", { .cqe = 16, .comp_mask = 1U << 31 } },
		{ "flags.none", { .cqe = 16, .comp_mask = IBV_CQ_INIT_ATTR_MASK_FLAGS } },
		{ "flags.single_threaded", { .cqe = 16, .comp_mask = IBV_CQ_INIT_ATTR_MASK_FLAGS,
					     .flags = IBV_CREATE_CQ_ATTR_SINGLE_THREADED } },
		{ "flags.ignore_overrun", { .cqe = 16, .comp_mask = IBV_CQ_INIT_ATTR_MASK_FLAGS,
					    .flags = IBV_CREATE_CQ_ATTR_IGNORE_OVERRUN } },
		{ "flags.unknown", { .cqe = 16, .comp_mask = IBV_CQ_INIT_ATTR_MASK_FLAGS, .flags = 1U << 31 } },
		{ "vector", { .cqe = 16, .comp_vector = 100000 } },
	};
	for (size_t i = 0; i < ARRAY_SIZE(x); i++) {
		char name[64];
		struct ibv_cq_init_attr_ex a = x[i].a;
		errno = 0;
		struct ibv_cq_ex *cx = ibv_create_cq_ex(t->a->ctx, &a);
		snprintf(name, sizeof(name), "cq_ex.%s", x[i].name);
		say(name, "%s", cx ? "created" : errname(errno));
		if (cx)
			need(!ibv_destroy_cq(ibv_cq_ex_to_cq(cx)), "destroy the CQ");
	}
}

static void bad_srqs(struct topo *t)
{
	static const struct {
		const char *name;
		struct ibv_srq_attr a;
	} c[] = {
		{ "zero", { 0, 0, 0 } },	    { "one", { 1, 1, 0 } },	  { "wr.huge", { UINT32_MAX, 1, 0 } },
		{ "sge.huge", { 1, UINT32_MAX, 0 } }, { "sge.0", { 16, 0, 0 } },    { "sge.64", { 16, 64, 0 } },
		{ "limit.at_create", { 16, 1, 8 } },  { "limit.over", { 16, 1, 100 } },
	};
	for (size_t i = 0; i < ARRAY_SIZE(c); i++) {
		char name[64];
		struct ibv_srq_init_attr a = { .attr = c[i].a };
		errno = 0;
		struct ibv_srq *srq = ibv_create_srq(t->a->pd, &a);
		snprintf(name, sizeof(name), "srq.%s", c[i].name);
		if (srq)
			say(name, "created, %u x %u", a.attr.max_wr, a.attr.max_sge);
		else
			say(name, "%s", errname(errno));
		if (srq)
			need(!ibv_destroy_srq(srq), "destroy the SRQ");
	}
	struct ibv_srq_init_attr_ex x = { .attr = { 16, 1, 0 }, .comp_mask = IBV_SRQ_INIT_ATTR_PD | IBV_SRQ_INIT_ATTR_TYPE,
					  .pd = t->a->pd, .srq_type = IBV_SRQT_XRC };
	errno = 0;
	struct ibv_srq *srq = ibv_create_srq_ex(t->a->ctx, &x);
	say("srq_ex.xrc", "%s", srq ? "created" : errname(errno));
	if (srq)
		ibv_destroy_srq(srq);
	x.srq_type = IBV_SRQT_TM;
	errno = 0;
	srq = ibv_create_srq_ex(t->a->ctx, &x);
	say("srq_ex.tm", "%s", srq ? "created" : errname(errno));
	if (srq)
		ibv_destroy_srq(srq);
	struct ibv_xrcd_init_attr xa = { .comp_mask = IBV_XRCD_INIT_ATTR_FD | IBV_XRCD_INIT_ATTR_OFLAGS, .fd = -1,
					 .oflags = 0 };
	errno = 0;
	struct ibv_xrcd *xrcd = ibv_open_xrcd(t->a->ctx, &xa);
	say("xrcd", "%s", xrcd ? "opened" : errname(errno));
	if (xrcd)
		ibv_close_xrcd(xrcd);
}

void walk_bad_create(struct topo *t)
{
	bad_caps(t);
	bad_qp_ex(t);
	bad_cqs(t);
	bad_srqs(t);
}

/* ------------------------------------------------------------------ busy objects, wrong handles */

void walk_busy(struct topo *t)
{
	struct spec spec = { .type = IBV_QPT_RC, .srq = true, .channel = true };
	struct side s;
	struct ibv_pd *pd = ibv_alloc_pd(t->a->ctx);
	need(pd, "allocate a PD");
	struct dev d = *t->a;
	d.pd = pd;
	if (!want_errno("create", side_open(&s, &d, &spec), 0))
		return;
	want_errno("pd", ibv_dealloc_pd(pd), EBUSY);
	want_errno("send_cq", ibv_destroy_cq(s.scq), EBUSY);
	want_errno("recv_cq", ibv_destroy_cq(s.rcq), EBUSY);
	want_errno("srq", ibv_destroy_srq(s.srq), EBUSY);
	want_errno("channel", ibv_destroy_comp_channel(s.channel), EBUSY);
	/* All of it still works. */
	struct ibv_srq_attr sa;
	want_errno("srq.alive", ibv_query_srq(s.srq, &sa), 0);
	want_errno("cq.alive", ibv_req_notify_cq(s.scq, 0), 0);
	want_errno("qp.alive", to_init(&s, &spec), 0);
	side_close(&s);
	want_errno("pd.after", ibv_dealloc_pd(pd), 0);

	/* Handles that name nothing, or something of another kind. */
	need(!side_open(&s, t->a, &(struct spec){ .type = IBV_QPT_RC }), "create a QP");
	uint32_t real = s.qp->handle;
	struct ibv_qp_attr qa;
	struct ibv_qp_init_attr ia;
	s.qp->handle = 0xfffffff0;
	say("handle.qp.modify", "%s", errname(to_init(&s, &(struct spec){ .type = IBV_QPT_RC })));
	say("handle.qp.query", "%s", errname(ibv_query_qp(s.qp, &qa, IBV_QP_STATE, &ia)));
	struct ibv_sge sg = sge(&s, 0, 8);
	struct ibv_send_wr w = wr(IBV_WR_SEND, 1, &sg);
	int err = send_wr(&s, &w);
	say("handle.qp.post", "%s", errname(err));
	strict_check("handle.qp.post.refused", err != 0);
	s.qp->handle = real;
	real = s.scq->handle;
	s.scq->handle = 0xfffffff0;
	say("handle.cq.notify", "%s", errname(ibv_req_notify_cq(s.scq, 0)));
	s.scq->handle = real;
	side_close(&s);
}

/* ------------------------------------------------------------------ hazards */

static struct topo *the_topo;

/* A topology of the child's own: the parent's devices stay as they are. */
static void reopened(struct dev *a, struct dev *b, struct topo *t)
{
	dev_open(a, the_topo->a->name, the_topo->a->gid_index);
	if (the_topo->a == the_topo->b) {
		*t = (struct topo){ the_topo->name, a, a };
		return;
	}
	dev_open(b, the_topo->b->name, the_topo->b->gid_index);
	*t = (struct topo){ the_topo->name, a, b };
}

static void hazard_send(void *arg)
{
	int which = *(int *)arg;
	struct dev a, b;
	struct topo t;
	struct pair p;
	struct spec spec = { .type = IBV_QPT_RC, .inl = 32 };
	reopened(&a, &b, &t);
	need(!pair_open(&p, t.a, t.b, &spec), "connect");
	need(!recv_one(&p.b, 9, 0, 1024), "post a receive");
	struct ibv_sge sg[4];
	for (size_t i = 0; i < 4; i++)
		sg[i] = sge(&p.a, 64 * i, 16);
	struct ibv_send_wr w = wr(IBV_WR_SEND, 1, sg), *bad = NULL;
	switch (which) {
	case 0: w.num_sge = -1; break;
	case 1: w.num_sge = INT_MIN; break;
	case 2: w.num_sge = INT_MAX; break;
	case 3: w.sg_list = NULL; break;
	case 4: *(int *)&w.opcode = 12345; break;
	case 5: *(int *)&w.opcode = -1; break;
	case 6: *(int *)&w.opcode = 127; break;
	case 7: w.send_flags |= IBV_SEND_INLINE, w.num_sge = -1; break;
	case 8: /* lengths whose sum is small again in 32 bits */
		w.send_flags |= IBV_SEND_INLINE;
		w.num_sge = 2;
		sg[0].length = 0xfffffff8;
		sg[1].length = 16;
		break;
	case 9: w.opcode = IBV_WR_BIND_MW, w.num_sge = 0, w.sg_list = NULL; break;
	case 10: w.opcode = IBV_WR_DRIVER1; break;
	}
	strict_errno("send", ibv_post_send(p.a.qp, &w, &bad), EINVAL);
	strict_check("send.bad_wr", bad == &w);
	/* And the queue still works. */
	struct ibv_sge one = sge(&p.a, 0, 16);
	struct ibv_send_wr good = wr(IBV_WR_SEND, 2, &one);
	if (strict_errno("send.after", send_wr(&p.a, &good), 0)) {
		struct ibv_wc wc;
		strict_check("send.after.sent", wait_one(p.a.scq, &wc) && wc.wr_id == 2 && !wc.status);
	}
	pair_close(&p);
}

static void hazard_recv(void *arg)
{
	int which = *(int *)arg;
	struct dev a, b;
	struct topo t;
	struct side s;
	struct spec spec = { .type = IBV_QPT_RC, .srq = which >= 10 };
	reopened(&a, &b, &t);
	need(!side_open(&s, t.a, &spec) && !to_init(&s, &spec), "create a QP");
	struct ibv_sge sg = sge(&s, 0, 16);
	struct ibv_recv_wr r = { .wr_id = 1, .sg_list = &sg, .num_sge = 1 }, *bad = NULL;
	switch (which % 10) {
	case 0: r.num_sge = -1; break;
	case 1: r.num_sge = INT_MIN; break;
	case 2: r.num_sge = INT_MAX; break;
	case 3: r.sg_list = NULL; break;
	}
	strict_errno("recv", spec.srq ? ibv_post_srq_recv(s.srq, &r, &bad) : ibv_post_recv(s.qp, &r, &bad), EINVAL);
	strict_check("recv.bad_wr", bad == &r);
	if (which >= 10) {
		/* Nothing to post, and nobody to tell: the stock provider takes the first, and the second if it is good. */
		say("srq.null_list", "%s", errname(ibv_post_srq_recv(s.srq, NULL, &bad)));
		r.num_sge = 1, r.sg_list = &sg;
		say("srq.null_bad_wr", "%s", errname(ibv_post_srq_recv(s.srq, &r, NULL)));
		r.num_sge = 99;
		strict_errno("srq.null_bad_wr.too_many", ibv_post_srq_recv(s.srq, &r, NULL), EINVAL);
	}
	side_close(&s);
}

static void hazard_ud(void *arg)
{
	(void)arg;
	struct dev a, b;
	struct topo t;
	struct pair p;
	struct spec spec = { .type = IBV_QPT_UD };
	reopened(&a, &b, &t);
	need(!pair_open(&p, t.a, t.b, &spec), "connect");
	struct ibv_sge sg = sge(&p.a, 0, 16);
	struct ibv_send_wr w = wr(IBV_WR_SEND, 1, &sg), *bad = NULL;
	wr_ud(&w, &p.a, &p.b);
	w.wr.ud.ah = NULL;
	strict_errno("no_ah", ibv_post_send(p.a.qp, &w, &bad), EINVAL);
	strict_check("no_ah.bad_wr", bad == &w);
	pair_close(&p);
}

static void hazard_recv_on_srq_qp(void *arg)
{
	(void)arg;
	struct dev a, b;
	struct topo t;
	struct side s;
	struct spec spec = { .type = IBV_QPT_RC, .srq = true };
	reopened(&a, &b, &t);
	need(!side_open(&s, t.a, &spec) && !to_init(&s, &spec), "create a QP");
	struct ibv_sge sg = sge(&s, 0, 16);
	struct ibv_recv_wr r = { .wr_id = 1, .sg_list = &sg, .num_sge = 1 }, *bad = NULL;
	strict_errno("post_recv", ibv_post_recv(s.qp, &r, &bad), EINVAL);
	side_close(&s);
}

static void hazard_no_cq(void *arg)
{
	(void)arg;
	struct dev a, b;
	struct topo t;
	reopened(&a, &b, &t);
	struct ibv_qp_init_attr none = qp_init(IBV_QPT_RC, NULL, NULL, (struct ibv_qp_cap){ 1, 1, 1, 1, 0 });
	strict_errno("create_qp", ERR_OF_PTR(ibv_create_qp(t.a->pd, &none)), EINVAL);
}

void walk_hazard(struct topo *t)
{
	static const char *const sends[] = { "num_sge.minus_1", "num_sge.int_min", "num_sge.int_max", "sg_list.null",
					     "opcode.12345", "opcode.minus_1", "opcode.127", "inline.num_sge.minus_1",
					     "inline.sum_wraps", "bind_mw.null", "opcode.driver1" };
	static const char *const recvs[] = { "num_sge.minus_1", "num_sge.int_min", "num_sge.int_max", "sg_list.null" };
	char how[32], base[64];
	if (provider() != PROVIDER_HOLDFAST) {
		/* An opcode out of range takes the kernel (6.1) down with it. */
		say("refused", "only with holdfast");
		check("provider", false);
		return;
	}
	the_topo = t;
	snprintf(base, sizeof(base), "hazard.%s", t->name);
	for (int i = 0; i < (int)ARRAY_SIZE(sends); i++) {
		prefix("%s.send.%s", base, sends[i]);
		in_child(hazard_send, &i, how, sizeof(how));
		strict_check(how, !strcmp(how, "exit 0"));
	}
	for (int srq = 0; srq < 2; srq++) {
		for (int i = 0; i < (int)ARRAY_SIZE(recvs); i++) {
			int which = i + 10 * srq;
			prefix("%s.%s.%s", base, srq ? "srq_recv" : "recv", recvs[i]);
			in_child(hazard_recv, &which, how, sizeof(how));
			strict_check(how, !strcmp(how, "exit 0"));
		}
	}
	prefix("%s.ud", base);
	in_child(hazard_ud, NULL, how, sizeof(how));
	strict_check(how, !strcmp(how, "exit 0"));
	prefix("%s.recv_on_srq_qp", base);
	in_child(hazard_recv_on_srq_qp, NULL, how, sizeof(how));
	strict_check(how, !strcmp(how, "exit 0"));
	prefix("%s.no_cq", base);
	in_child(hazard_no_cq, NULL, how, sizeof(how));
	strict_check(how, !strcmp(how, "exit 0"));
}
