/* SPDX-License-Identifier: MIT OR Apache-2.0
 *
 * QP states: every legal transition with what a query then says, and illegal ones with their refusal; and what
 * happens to work requests when a connection breaks.
 */
#include "walk.h"

static void query(const char *name, struct side *s)
{
	struct ibv_qp_attr a;
	struct ibv_qp_init_attr i;
	memset(&a, 0xa5, sizeof(a));
	memset(&i, 0xa5, sizeof(i));
	int err = ibv_query_qp(s->qp, &a,
			       IBV_QP_STATE | IBV_QP_CUR_STATE | IBV_QP_ACCESS_FLAGS | IBV_QP_PORT | IBV_QP_AV |
				       IBV_QP_PATH_MTU | IBV_QP_CAP | IBV_QP_DEST_QPN,
			       &i);
	if (err) {
		say(name, "%s", errname(err));
		return;
	}
	bool rc = s->qp->qp_type == IBV_QPT_RC;
	say(name,
	    "state %d cur %d mtu %d mig %d qkey %#x rq_psn %#x sq_psn %#x access %#x pkey %u port %u drain %u "
	    "rd %u/%u rnr_timer %u timeout %u retry %u rnr %u rate %u cap %u %u %u %u %u",
	    a.qp_state, a.cur_qp_state, a.path_mtu, a.path_mig_state, a.qkey, a.rq_psn,
	    /* the send PSN moves on its own as packets go */
	    a.qp_state <= IBV_QPS_RTR ? a.sq_psn : 0, a.qp_access_flags, a.pkey_index, a.port_num,
	    a.sq_draining, rc ? a.max_rd_atomic : 0, rc ? a.max_dest_rd_atomic : 0, a.min_rnr_timer, a.timeout,
	    a.retry_cnt, a.rnr_retry, a.rate_limit, a.cap.max_send_wr, a.cap.max_recv_wr, a.cap.max_send_sge,
	    a.cap.max_recv_sge, a.cap.max_inline_data);
	char full[96];
	snprintf(full, sizeof(full), "%s.av", name);
	say(full, "global %u sl %u port %u hop %u index %u", a.ah_attr.is_global, a.ah_attr.sl, a.ah_attr.port_num,
	    a.ah_attr.grh.hop_limit, a.ah_attr.grh.sgid_index);
	snprintf(full, sizeof(full), "%s.init_attr", name);
	check(full, i.send_cq == s->scq && i.recv_cq == s->rcq && i.srq == s->srq && i.qp_type == s->qp->qp_type &&
			    i.qp_context == s);
	snprintf(full, sizeof(full), "%s.member", name);
	want_int(full, s->qp->state, a.qp_state);
}

static void walk_type(struct topo *t, enum ibv_qp_type type, const char *what)
{
	struct pair p;
	struct spec spec = { .type = type };
	char name[64];
	p = (struct pair){ .spec = spec };
	need(!side_open(&p.a, t->a, &spec) && !side_open(&p.b, t->b, &spec), "create QPs");
	need(!to_init(&p.b, &spec), "modify to INIT");
#define STEP(text, expr)                                                                                             \
	do {                                                                                                           \
		snprintf(name, sizeof(name), "%s." text, what);                                                        \
		want_errno(name, expr, 0);                                                                             \
		snprintf(name, sizeof(name), "%s." text ".query", what);                                               \
		query(name, &p.a);                                                                                     \
	} while (0)
	snprintf(name, sizeof(name), "%s.created.query", what);
	query(name, &p.a);
	STEP("init", to_init(&p.a, &spec));
	STEP("init_again", to_init(&p.a, &spec));
	STEP("rtr", to_rtr(&p.a, &p.b, &spec));
	STEP("rts", to_rts(&p.a, &spec));
	STEP("rts_again", to_state(p.a.qp, IBV_QPS_RTS));
	if (type != IBV_QPT_UC) {
		/* Asynchronous: SQD says "draining" or not by the moment, so only its outcome is looked at. */
		snprintf(name, sizeof(name), "%s.sqd", what);
		int err = to_state(p.a.qp, IBV_QPS_SQD);
		say(name, "%s", errname(err));
		if (!err) {
			struct ibv_async_event e;
			snprintf(name, sizeof(name), "%s.sqd_to_rts", what);
			/* Refused while it drains. */
			double end = now() + LIMIT_S;
			do
				err = to_state(p.a.qp, IBV_QPS_RTS);
			while (err == EINVAL && now() < end);
			say(name, "%s", errname(err));
			while (readable(t->a->ctx->async_fd, 100) && !ibv_get_async_event(t->a->ctx, &e))
				ibv_ack_async_event(&e);
		}
	}
	STEP("err", to_state(p.a.qp, IBV_QPS_ERR));
	STEP("reset", to_state(p.a.qp, IBV_QPS_RESET));
	STEP("init_after_reset", to_init(&p.a, &spec));
	STEP("rtr_after_reset", to_rtr(&p.a, &p.b, &spec));
	STEP("rts_after_reset", to_rts(&p.a, &spec));
	STEP("reset_from_rts", to_state(p.a.qp, IBV_QPS_RESET));
#undef STEP
	pair_close(&p);

	/* What is not allowed. */
	struct side s;
	need(!side_open(&s, t->a, &spec), "create a QP");
	static const struct {
		const char *name;
		enum ibv_qp_state state;
	} wrong[] = { { "rtr", IBV_QPS_RTR }, { "rts", IBV_QPS_RTS }, { "sqd", IBV_QPS_SQD }, { "sqe", IBV_QPS_SQE },
		      { "init_without_mask", IBV_QPS_INIT }, { "unknown", IBV_QPS_UNKNOWN } };
	for (size_t i = 0; i < ARRAY_SIZE(wrong); i++) {
		snprintf(name, sizeof(name), "%s.reset_to_%s", what, wrong[i].name);
		int err = to_state(s.qp, wrong[i].state);
		say(name, "%s", errname(err));
		snprintf(name, sizeof(name), "%s.reset_to_%s.refused", what, wrong[i].name);
		check(name, err != 0);
	}
	struct ibv_qp_attr a = { .qp_state = IBV_QPS_INIT, .port_num = 7, .qkey = QKEY };
	int mask = IBV_QP_STATE | IBV_QP_PKEY_INDEX | IBV_QP_PORT |
		   (type == IBV_QPT_UD ? IBV_QP_QKEY : IBV_QP_ACCESS_FLAGS);
	snprintf(name, sizeof(name), "%s.port_7", what);
	say(name, "%s", errname(ibv_modify_qp(s.qp, &a, mask)));
	a.port_num = 1;
	a.pkey_index = 100;
	snprintf(name, sizeof(name), "%s.pkey_100", what);
	say(name, "%s", errname(ibv_modify_qp(s.qp, &a, mask)));
	a.pkey_index = 0;
	snprintf(name, sizeof(name), "%s.mask_all", what);
	say(name, "%s", errname(ibv_modify_qp(s.qp, &a, 0x7fffffff)));
	snprintf(name, sizeof(name), "%s.mask_0", what);
	say(name, "%s", errname(ibv_modify_qp(s.qp, &a, 0)));
	snprintf(name, sizeof(name), "%s.state_99", what);
	*(int *)&a.qp_state = 99;
	say(name, "%s", errname(ibv_modify_qp(s.qp, &a, IBV_QP_STATE)));
	a.qp_state = IBV_QPS_INIT;
	a.cur_qp_state = IBV_QPS_RTS;
	snprintf(name, sizeof(name), "%s.wrong_cur_state", what);
	say(name, "%s", errname(ibv_modify_qp(s.qp, &a, mask | IBV_QP_CUR_STATE)));
	snprintf(name, sizeof(name), "%s.untouched.query", what);
	query(name, &s);
	if (type == IBV_QPT_RC) {
		need(!to_init(&s, &spec), "modify to INIT");
		struct ibv_qp_attr r = { .qp_state = IBV_QPS_RTR, .path_mtu = IBV_MTU_4096, .dest_qp_num = 17,
					 .max_dest_rd_atomic = 255,
					 .ah_attr = { .is_global = 1, .port_num = 1,
						      .grh = { .dgid = t->a->gid, .sgid_index = (uint8_t)t->a->gid_index } } };
		int rmask = IBV_QP_STATE | IBV_QP_AV | IBV_QP_PATH_MTU | IBV_QP_DEST_QPN | IBV_QP_RQ_PSN |
			    IBV_QP_MAX_DEST_RD_ATOMIC | IBV_QP_MIN_RNR_TIMER;
		say("rc.rtr.rd_atomic_255", "%s", errname(ibv_modify_qp(s.qp, &r, rmask)));
		r.max_dest_rd_atomic = 1;
		r.ah_attr.grh.sgid_index = 200;
		say("rc.rtr.sgid_200", "%s", errname(ibv_modify_qp(s.qp, &r, rmask)));
		r.ah_attr.grh.sgid_index = (uint8_t)t->a->gid_index;
		r.ah_attr.is_global = 0;
		say("rc.rtr.no_grh", "%s", errname(ibv_modify_qp(s.qp, &r, rmask)));
		r.ah_attr.is_global = 1;
		*(int *)&r.path_mtu = 9;
		say("rc.rtr.mtu_9", "%s", errname(ibv_modify_qp(s.qp, &r, rmask)));
	}
	side_close(&s);
}

void walk_states(struct topo *t)
{
	walk_type(t, IBV_QPT_RC, "rc");
	walk_type(t, IBV_QPT_UC, "uc");
	walk_type(t, IBV_QPT_UD, "ud");
}

/* ------------------------------------------------------------------ broken connections */

static void next(const char *name, struct ibv_cq *cq)
{
	struct ibv_wc wc;
	if (wait_one(cq, &wc))
		say_wc(name, &wc);
	else
		say(name, "no completion");
}

static int state_of(struct side *s)
{
	struct ibv_qp_attr a;
	struct ibv_qp_init_attr i;
	return ibv_query_qp(s->qp, &a, IBV_QP_STATE, &i) ? -1 : (int)a.qp_state;
}

/* After the first error: the QP is in ERR, and what is posted then is flushed. */
static void flushed(struct pair *p, const char *what)
{
	char name[64];
	if (kernel_before(5, 11)) {
		/* The requester of 5.10 leaves its QP as it is and does not look at it again. */
		snprintf(name, sizeof(name), "%s.state", what);
		say(name, "%d", state_of(&p->a));
		return;
	}
	snprintf(name, sizeof(name), "%s.state", what);
	want_int(name, state_of(&p->a), IBV_QPS_ERR);
	struct ibv_sge sg = sge(&p->a, 0, 8);
	struct ibv_send_wr w = wr(IBV_WR_SEND, 77, &sg);
	snprintf(name, sizeof(name), "%s.post_after", what);
	want_errno(name, send_wr(&p->a, &w), 0);
	snprintf(name, sizeof(name), "%s.flushed", what);
	want_wc(name, p->a.scq, 77, IBV_WC_WR_FLUSH_ERR);
}

static void requests(struct topo *t)
{
	static const struct {
		const char *name;
		enum ibv_wr_opcode op;
		int rkey_off, lkey_off;
		size_t remote_off;
		uint32_t len;
		int access;
	} c[] = {
		{ "write.rkey", IBV_WR_RDMA_WRITE, 0x100, 0, 0, 64, 0 },
		{ "read.rkey", IBV_WR_RDMA_READ, 0x100, 0, 0, 64, 0 },
		{ "fetch_add.rkey", IBV_WR_ATOMIC_FETCH_AND_ADD, 0x100, 0, 0, 8, 0 },
		{ "write.beyond", IBV_WR_RDMA_WRITE, 0, 0, BUF_SIZE - 8, 64, 0 },
		{ "read.beyond", IBV_WR_RDMA_READ, 0, 0, BUF_SIZE - 8, 64, 0 },
		{ "write.not_allowed", IBV_WR_RDMA_WRITE, 0, 0, 0, 64, IBV_ACCESS_LOCAL_WRITE },
		{ "read.not_allowed", IBV_WR_RDMA_READ, 0, 0, 0, 64, IBV_ACCESS_LOCAL_WRITE },
		{ "fetch_add.not_allowed", IBV_WR_ATOMIC_FETCH_AND_ADD, 0, 0, 0, 8, IBV_ACCESS_LOCAL_WRITE },
		{ "write.lkey", IBV_WR_RDMA_WRITE, 0, 0x100, 0, 64, 0 },
		{ "send.lkey", IBV_WR_SEND, 0, 0x100, 0, 64, 0 },
	};
	for (size_t i = 0; i < ARRAY_SIZE(c); i++) {
		struct pair p;
		struct spec spec = { .type = IBV_QPT_RC, .access = c[i].access };
		char name[64];
		need(!pair_open(&p, t->a, t->b, &spec), "connect");
		need(!recv_one(&p.b, 1, 0, 4096), "post a receive");
		struct ibv_sge sg = sge(&p.a, 0, c[i].len);
		sg.lkey ^= (uint32_t)c[i].lkey_off;
		struct ibv_send_wr w = wr(c[i].op, 2, &sg);
		if (c[i].op == IBV_WR_ATOMIC_FETCH_AND_ADD) {
			w.wr.atomic.remote_addr = (uintptr_t)(p.b.buf + c[i].remote_off);
			w.wr.atomic.rkey = p.b.mr->rkey ^ (uint32_t)c[i].rkey_off;
		} else {
			wr_rdma(&w, &p.b, c[i].remote_off);
			w.wr.rdma.rkey ^= (uint32_t)c[i].rkey_off;
		}
		if (c[i].op == IBV_WR_ATOMIC_FETCH_AND_ADD && kernel_before(5, 11) && t->a != t->b) {
			say(c[i].name, "left out: this kernel never answers it across two devices");
		} else {
			snprintf(name, sizeof(name), "%s.post", c[i].name);
			want_errno(name, send_wr(&p.a, &w), 0);
			next(c[i].name, p.a.scq);
			flushed(&p, c[i].name);
		}
		pair_close(&p);
	}
}

static void receives(struct topo *t)
{
	struct pair p;
	struct spec spec = { .type = IBV_QPT_RC };
	struct ibv_sge sg;
	struct ibv_send_wr w;

	need(!pair_open(&p, t->a, t->b, &spec), "connect");
	need(!recv_one(&p.b, 1, 0, 16), "post a receive");
	sg = sge(&p.a, 0, 64);
	w = wr(IBV_WR_SEND, 2, &sg);
	want_errno("recv.too_small.post", send_wr(&p.a, &w), 0);
	next("recv.too_small.sender", p.a.scq);
	next("recv.too_small.receiver", p.b.rcq);
	flushed(&p, "recv.too_small");
	pair_close(&p);

	need(!pair_open(&p, t->a, t->b, &spec), "connect");
	struct ibv_sge rsg = sge(&p.b, 0, 4096);
	rsg.lkey ^= 0x100;
	struct ibv_recv_wr r = { .wr_id = 1, .sg_list = &rsg, .num_sge = 1 }, *rbad;
	want_errno("recv.lkey.post", ibv_post_recv(p.b.qp, &r, &rbad), 0);
	sg = sge(&p.a, 0, 64);
	w = wr(IBV_WR_SEND, 2, &sg);
	want_errno("recv.lkey.send", send_wr(&p.a, &w), 0);
	next("recv.lkey.sender", p.a.scq);
	next("recv.lkey.receiver", p.b.rcq);
	pair_close(&p);

	/* No receive posted, and no patience. */
	spec.rnr_retry = 0xff;
	need(!pair_open(&p, t->a, t->b, &spec), "connect");
	sg = sge(&p.a, 0, 64);
	w = wr(IBV_WR_SEND, 2, &sg);
	want_errno("rnr.post", send_wr(&p.a, &w), 0);
	want_wc("rnr", p.a.scq, 2, IBV_WC_RNR_RETRY_EXC_ERR);
	flushed(&p, "rnr");
	pair_close(&p);

	/* Nobody answers. */
	spec = (struct spec){ .type = IBV_QPT_RC, .retry_cnt = 1, .timeout = 10 };
	need(!pair_open(&p, t->a, t->b, &spec), "connect");
	want_errno("silent.peer", ibv_destroy_qp(p.b.qp), 0);
	p.b.qp = NULL;
	sg = sge(&p.a, 0, 64);
	w = wr(IBV_WR_SEND, 2, &sg);
	want_errno("silent.post", send_wr(&p.a, &w), 0);
	want_wc("silent", p.a.scq, 2, IBV_WC_RETRY_EXC_ERR);
	flushed(&p, "silent");
	pair_close(&p);
}

static void flush_all(struct topo *t)
{
	struct pair p;
	struct spec spec = { .type = IBV_QPT_RC };
	char name[64];
	need(!pair_open(&p, t->a, t->b, &spec), "connect");
	/* Sends that wait for a receive, receives that wait for a send. */
	for (int i = 0; i < 4; i++)
		need(!recv_one(&p.a, 10 + (uint64_t)i, 0, 64), "post a receive");
	need(!to_state(p.a.qp, IBV_QPS_ERR), "modify to ERR");
	for (int i = 0; i < 4; i++) {
		snprintf(name, sizeof(name), "flush.recv.%d", i);
		want_wc(name, p.a.rcq, 10 + (uint64_t)i, IBV_WC_WR_FLUSH_ERR);
	}
	for (int i = 0; i < 3; i++) {
		struct ibv_sge sg = sge(&p.a, 0, 8);
		struct ibv_send_wr w = wr(IBV_WR_SEND, 20 + (uint64_t)i, &sg);
		w.send_flags = i == 1 ? 0 : IBV_SEND_SIGNALED; /* an error is reported signalled or not */
		snprintf(name, sizeof(name), "flush.send.%d.post", i);
		want_errno(name, send_wr(&p.a, &w), 0);
		snprintf(name, sizeof(name), "flush.send.%d", i);
		if (kernel_before(5, 11))
			say(name, "%s", stays_empty(p.a.scq) ? "not flushed" : "flushed");
		else
			want_wc(name, p.a.scq, 20 + (uint64_t)i, IBV_WC_WR_FLUSH_ERR);
	}
	/* A receive posted in ERR: the kernel does not notice it. */
	want_errno("flush.late_recv.post", recv_one(&p.a, 30, 0, 64), 0);
	say("flush.late_recv", "%s", stays_empty(p.a.rcq) ? "not flushed" : "flushed");
	/* RESET throws away what is left, and the QP can be used again. */
	want_errno("flush.reset", to_state(p.a.qp, IBV_QPS_RESET), 0);
	want_errno("flush.reset.peer", to_state(p.b.qp, IBV_QPS_RESET), 0);
	need(!to_init(&p.a, &spec) && !to_init(&p.b, &spec) && !to_rtr(&p.a, &p.b, &spec) &&
		     !to_rtr(&p.b, &p.a, &spec) && !to_rts(&p.a, &spec) && !to_rts(&p.b, &spec),
	     "connect again");
	need(!recv_one(&p.b, 40, 0, 64), "post a receive");
	struct ibv_sge sg = sge(&p.a, 0, 8);
	struct ibv_send_wr w = wr(IBV_WR_SEND, 41, &sg);
	want_errno("flush.again.post", send_wr(&p.a, &w), 0);
	want_wc("flush.again.sent", p.a.scq, 41, IBV_WC_SUCCESS);
	next("flush.again.received", p.b.rcq);
	pair_close(&p);
}

static void unreliable(struct topo *t)
{
	struct pair p;
	struct spec spec = { .type = IBV_QPT_UD };
	need(!pair_open(&p, t->a, t->b, &spec), "connect");
	need(!recv_one(&p.b, 1, 0, 4096), "post a receive");
	struct ibv_sge sg = sge(&p.a, 0, 64);
	struct ibv_send_wr w = wr(IBV_WR_SEND, 2, &sg);
	wr_ud(&w, &p.a, &p.b);
	w.wr.ud.remote_qkey = QKEY + 1;
	want_errno("ud.wrong_qkey.post", send_wr(&p.a, &w), 0);
	next("ud.wrong_qkey.sent", p.a.scq);
	check("ud.wrong_qkey.dropped", stays_empty(p.b.rcq));
	w.wr.ud.remote_qkey = QKEY;
	w.wr.ud.remote_qpn = 0xfffffe;
	w.wr_id = 3;
	want_errno("ud.no_such_qp.post", send_wr(&p.a, &w), 0);
	next("ud.no_such_qp.sent", p.a.scq);
	/* The QP is as good as before. */
	wr_ud(&w, &p.a, &p.b);
	w.wr_id = 4;
	want_errno("ud.good.post", send_wr(&p.a, &w), 0);
	want_wc("ud.good.sent", p.a.scq, 4, IBV_WC_SUCCESS);
	want_wc("ud.good.received", p.b.rcq, 1, IBV_WC_SUCCESS);
	pair_close(&p);

	spec.type = IBV_QPT_UC;
	need(!pair_open(&p, t->a, t->b, &spec), "connect");
	memset(p.b.buf, 0xee, 256);
	sg = sge(&p.a, 0, 64);
	w = wr(IBV_WR_RDMA_WRITE, 2, &sg);
	wr_rdma(&w, &p.b, 0);
	w.wr.rdma.rkey ^= 0x100;
	want_errno("uc.rkey.post", send_wr(&p.a, &w), 0);
	next("uc.rkey.sent", p.a.scq);
	stays_empty(p.a.scq);
	check("uc.rkey.nothing_written", all_bytes(p.b.buf, 256, 0xee));
	pair_close(&p);
}

void walk_errors(struct topo *t)
{
	requests(t);
	receives(t);
	flush_all(t);
	unreliable(t);
}
