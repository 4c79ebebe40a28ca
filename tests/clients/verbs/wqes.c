/* SPDX-License-Identifier: MIT OR Apache-2.0
 *
 * Every opcode with every flag and every shape of data, by both interfaces, around the rings' ends; XRC; many queue
 * pairs, thread domains. One thing after the other, so that what a device is told does not depend on time: its
 * journals of two providers can be compared.
 */
#include "walk.h"

#include <fcntl.h>

/* Two ends of one transport. XRC receives into an SRQ of its own. */
struct lane {
	struct pair p;
	enum ibv_qp_type type;
	bool builders;
	struct ibv_xrcd *xrcd;
	uint32_t srqn;
};

#define RC 1
#define UC 2
#define UD 4
#define XRC 8

static const struct {
	const char *name;
	enum ibv_qp_type type;
	unsigned bit;
	uint64_t ops;
} transports[] = {
#define UD_OPS (IBV_QP_EX_WITH_SEND | IBV_QP_EX_WITH_SEND_WITH_IMM)
#define UC_OPS                                                                                                         \
	(UD_OPS | IBV_QP_EX_WITH_SEND_WITH_INV | IBV_QP_EX_WITH_RDMA_WRITE | IBV_QP_EX_WITH_RDMA_WRITE_WITH_IMM |      \
	 IBV_QP_EX_WITH_BIND_MW | IBV_QP_EX_WITH_LOCAL_INV)
#define RC_OPS                                                                                                         \
	(UC_OPS | IBV_QP_EX_WITH_RDMA_READ | IBV_QP_EX_WITH_ATOMIC_CMP_AND_SWP | IBV_QP_EX_WITH_ATOMIC_FETCH_AND_ADD)
	{ "rc", IBV_QPT_RC, RC, RC_OPS },
	{ "uc", IBV_QPT_UC, UC, UC_OPS },
	{ "ud", IBV_QPT_UD, UD, UD_OPS },
	{ "xrc", IBV_QPT_XRC_SEND, XRC, RC_OPS },
};

/* Another interface or a full ring need no more than this; the ring's end is passed all the more often. */
#define DEPTH 8
#define REMOTE 16384

static void xrc_open(struct lane *l, struct topo *t, const struct spec *spec)
{
	struct side *a = &l->p.a, *b = &l->p.b;
	struct ibv_xrcd_init_attr xa = { .comp_mask = IBV_XRCD_INIT_ATTR_FD | IBV_XRCD_INIT_ATTR_OFLAGS,
					 .fd = -1, .oflags = O_CREAT };
	l->xrcd = ibv_open_xrcd(t->b->ctx, &xa);
	need(l->xrcd, "open an XRC domain");
	struct spec plain = *spec;
	plain.type = IBV_QPT_RC;
	plain.ex = false;
	/* Buffers and CQs as everywhere; the QPs are others. */
	need(!side_open(a, t->a, &plain) && !side_open(b, t->b, &plain), "open both sides");
	need(!ibv_destroy_qp(a->qp) && !ibv_destroy_qp(b->qp), "replace the QPs");
	struct ibv_qp_init_attr_ex s = {
		.send_cq = a->scq, .recv_cq = a->rcq, .qp_type = IBV_QPT_XRC_SEND, .pd = t->a->pd,
		.sq_sig_all = spec->sq_sig_all,
		.cap = { .max_send_wr = spec->send_wr, .max_send_sge = 4, .max_inline_data = spec->inl },
		.comp_mask = IBV_QP_INIT_ATTR_PD | (spec->ex ? IBV_QP_INIT_ATTR_SEND_OPS_FLAGS : 0),
		.send_ops_flags = spec->send_ops,
	};
	a->qp = ibv_create_qp_ex(t->a->ctx, &s);
	need(a->qp, "create the XRC sender");
	a->qpx = spec->ex ? ibv_qp_to_qp_ex(a->qp) : NULL;
	a->cap = s.cap;
	struct ibv_qp_init_attr_ex r = { .qp_type = IBV_QPT_XRC_RECV, .comp_mask = IBV_QP_INIT_ATTR_XRCD, .xrcd = l->xrcd };
	b->qp = ibv_create_qp_ex(t->b->ctx, &r);
	need(b->qp, "create the XRC receiver");
	struct ibv_srq_init_attr_ex q = {
		.attr = { .max_wr = DEPTH, .max_sge = 4 }, .srq_type = IBV_SRQT_XRC, .pd = t->b->pd, .xrcd = l->xrcd, .cq = b->rcq,
		.comp_mask = IBV_SRQ_INIT_ATTR_TYPE | IBV_SRQ_INIT_ATTR_PD | IBV_SRQ_INIT_ATTR_XRCD | IBV_SRQ_INIT_ATTR_CQ,
	};
	b->srq = ibv_create_srq_ex(t->b->ctx, &q);
	need(b->srq && !ibv_get_srq_num(b->srq, &l->srqn), "create the XRC SRQ");
	need(!to_init(a, spec) && !to_init(b, spec) && !to_rtr(a, b, spec) && !to_rtr(b, a, spec) && !to_rts(a, spec) &&
		     !to_rts(b, spec),
	     "connect");
}

static void lane_open(struct lane *l, struct topo *t, size_t transport, bool builders, bool sig_all)
{
	struct spec spec = { .type = transports[transport].type, .inl = 100, .send_wr = DEPTH, .recv_wr = DEPTH,
			     .sq_sig_all = sig_all, .ex = builders, .send_ops = transports[transport].ops,
			     .access = ALL_ACCESS | IBV_ACCESS_MW_BIND };
	*l = (struct lane){ .type = spec.type, .builders = builders };
	if (spec.type == IBV_QPT_XRC_SEND)
		xrc_open(l, t, &spec);
	else
		need(!pair_open(&l->p, t->a, t->b, &spec), "connect");
	fill(l->p.a.buf, BUF_SIZE, 1);
	say("caps", "%u sends, %u SGEs, %u inline", l->p.a.cap.max_send_wr, l->p.a.cap.max_send_sge,
	    l->p.a.cap.max_inline_data);
}

static void lane_close(struct lane *l)
{
	/* The receiver first: stock gives it a doorbell register, which nobody rings, and it shall not be that of the next sender. */
	if (l->type == IBV_QPT_XRC_SEND)
		side_close(&l->p.b);
	pair_close(&l->p);
	if (l->xrcd)
		need(!ibv_close_xrcd(l->xrcd), "close the XRC domain");
}

/* Pieces of data; the last shapes of each kind are as much as the QP takes, and one too much. */
struct shape {
	const char *name;
	bool inl;
	uint32_t n, len[33];
};

static size_t shapes(struct shape *s, const struct ibv_qp_cap *cap)
{
	static const struct shape fixed[] = {
		{ "none", false, 0, { 0 } },   { "empty", false, 1, { 0 } },	    { "one", false, 1, { 1 } },
		{ "two", false, 2, { 16, 48 } }, { "gap", false, 3, { 5, 0, 7 } },
		{ "inline.empty", true, 1, { 0 } }, { "inline.one", true, 1, { 1 } }, { "inline.unit", true, 1, { 12 } },
		{ "inline.unit_and_1", true, 1, { 13 } }, { "inline.block", true, 1, { 44 } },
		{ "inline.list", true, 3, { 5, 0, 7 } },
	};
	size_t n = ARRAY_SIZE(fixed);
	memcpy(s, fixed, sizeof(fixed));
	for (uint32_t more = 0; more < 2; more++) {
		s[n] = (struct shape){ more ? "too_many" : "most", false, cap->max_send_sge + more, { 0 } };
		need(s[n].n <= ARRAY_SIZE(s[n].len), "room for the SGEs");
		for (uint32_t i = 0; i < s[n].n; i++)
			s[n].len[i] = 8;
		n++;
		s[n++] = (struct shape){ more ? "inline.too_much" : "inline.most", true, 1, { cap->max_inline_data + more } };
	}
	return n;
}
#define SHAPES 15

/* An operation: the sender's part of what the two interfaces want. */
struct op {
	const char *name;
	enum ibv_wr_opcode code;
	unsigned transports;
	bool receives, is_inline;
};

static const struct op ops[] = {
	{ "send", IBV_WR_SEND, RC | UC | UD | XRC, true, true },
	{ "send_imm", IBV_WR_SEND_WITH_IMM, RC | UC | UD | XRC, true, true },
	{ "write", IBV_WR_RDMA_WRITE, RC | UC | XRC, false, true },
	{ "write_imm", IBV_WR_RDMA_WRITE_WITH_IMM, RC | UC | XRC, true, true },
	{ "read", IBV_WR_RDMA_READ, RC | XRC, false, false },
	{ "cmp_swp", IBV_WR_ATOMIC_CMP_AND_SWP, RC | XRC, false, false },
	{ "fetch_add", IBV_WR_ATOMIC_FETCH_AND_ADD, RC | XRC, false, false },
};

static bool is_atomic(enum ibv_wr_opcode code)
{
	return code == IBV_WR_ATOMIC_CMP_AND_SWP || code == IBV_WR_ATOMIC_FETCH_AND_ADD;
}

static int by_post(struct lane *l, const struct op *op, struct ibv_sge *sg, const struct shape *s, unsigned flags, int count)
{
	struct ibv_send_wr w[2], *bad;
	for (int i = 0; i < count; i++) {
		w[i] = wr(op->code, (uint64_t)i, sg);
		w[i].num_sge = (int)s->n;
		w[i].send_flags = flags | (s->inl ? IBV_SEND_INLINE : 0) | (i + 1 == count ? IBV_SEND_SIGNALED : 0);
		w[i].next = i + 1 < count ? &w[i + 1] : NULL;
		w[i].imm_data = htobe32(0xbeef0000 + s->n);
		if (l->type == IBV_QPT_UD) {
			wr_ud(&w[i], &l->p.a, &l->p.b);
		} else if (is_atomic(op->code)) {
			w[i].wr.atomic.remote_addr = (uintptr_t)(l->p.b.buf + REMOTE);
			w[i].wr.atomic.rkey = l->p.b.mr->rkey;
			w[i].wr.atomic.compare_add = 0x0102030405060708ull;
			w[i].wr.atomic.swap = 0x1112131415161718ull;
		} else {
			wr_rdma(&w[i], &l->p.b, REMOTE);
		}
		w[i].qp_type.xrc.remote_srqn = l->srqn;
	}
	return ibv_post_send(l->p.a.qp, w, &bad);
}

static int by_builders(struct lane *l, const struct op *op, struct ibv_sge *sg, const struct shape *s, unsigned flags, int count)
{
	struct ibv_qp_ex *q = l->p.a.qpx;
	struct ibv_data_buf list[33];
	uint64_t remote = (uintptr_t)(l->p.b.buf + REMOTE);
	uint32_t rkey = l->p.b.mr->rkey;
	for (uint32_t i = 0; i < s->n; i++)
		list[i] = (struct ibv_data_buf){ .addr = (void *)(uintptr_t)sg[i].addr, .length = sg[i].length };
	ibv_wr_start(q);
	for (int i = 0; i < count; i++) {
		q->wr_id = (uint64_t)i;
		q->wr_flags = flags | (s->inl ? IBV_SEND_INLINE : 0) | (i + 1 == count ? IBV_SEND_SIGNALED : 0);
		switch (op->code) {
		case IBV_WR_SEND: ibv_wr_send(q); break;
		case IBV_WR_SEND_WITH_IMM: ibv_wr_send_imm(q, htobe32(0xbeef0000 + s->n)); break;
		case IBV_WR_RDMA_WRITE: ibv_wr_rdma_write(q, rkey, remote); break;
		case IBV_WR_RDMA_WRITE_WITH_IMM: ibv_wr_rdma_write_imm(q, rkey, remote, htobe32(0xbeef0000 + s->n)); break;
		case IBV_WR_RDMA_READ: ibv_wr_rdma_read(q, rkey, remote); break;
		case IBV_WR_ATOMIC_CMP_AND_SWP:
			ibv_wr_atomic_cmp_swp(q, rkey, remote, 0x0102030405060708ull, 0x1112131415161718ull);
			break;
		default: ibv_wr_atomic_fetch_add(q, rkey, remote, 0x0102030405060708ull); break;
		}
		if (l->type == IBV_QPT_UD)
			ibv_wr_set_ud_addr(q, l->p.a.ah, l->p.b.qp->qp_num, QKEY);
		if (l->type == IBV_QPT_XRC_SEND)
			ibv_wr_set_xrc_srqn(q, l->srqn);
		if (s->inl && s->n == 1)
			ibv_wr_set_inline_data(q, list[0].addr, list[0].length);
		else if (s->inl)
			ibv_wr_set_inline_data_list(q, s->n, list);
		else if (s->n == 1)
			ibv_wr_set_sge(q, sg[0].lkey, sg[0].addr, sg[0].length);
		else
			ibv_wr_set_sge_list(q, s->n, sg);
	}
	return ibv_wr_complete(q);
}

/* Receives of several shapes, in turn. */
static void receive(struct lane *l, bool has_data)
{
	static unsigned turn;
	struct side *b = &l->p.b;
	struct ibv_sge sg[3] = { sge(b, 4096, l->type == IBV_QPT_UD ? 40 : 1), sge(b, 6000, 0), sge(b, 8192, 4096) };
	struct ibv_sge whole = sge(b, 4096, 8192);
	bool split = has_data && turn++ % 2;
	struct ibv_recv_wr r = { .wr_id = 7, .sg_list = split ? sg : &whole, .num_sge = !has_data ? 0 : split ? 3 : 1 }, *bad;
	/* An entry of no bytes is one of 2 GiB to an SRQ of this kind. */
	if (split && b->srq)
		sg[1] = sg[2], r.num_sge = 2;
	need(!(b->srq ? ibv_post_srq_recv(b->srq, &r, &bad) : ibv_post_recv(b->qp, &r, &bad)), "post a receive");
}

static void operation(struct lane *l, const struct op *op, const struct shape *s)
{
	/* What is not signalled comes with a second one that is, in one list. */
	static const unsigned flags[] = { 0, IBV_SEND_SOLICITED, IBV_SEND_FENCE, IBV_SEND_SOLICITED | IBV_SEND_FENCE };
	struct ibv_sge sg[33];
	char name[64], text[64] = "";
	for (uint32_t i = 0; i < s->n; i++)
		sg[i] = sge(&l->p.a, 512 * i, is_atomic(op->code) ? 8 : s->len[i]);
	for (size_t f = 0; f < 2 * ARRAY_SIZE(flags); f++) {
		int count = f < ARRAY_SIZE(flags) ? 1 : 2, err;
		unsigned which = flags[f % ARRAY_SIZE(flags)];
		bool refused = strstr(s->name, "too_") != NULL;
		struct ibv_wc wc;
		for (int i = 0; op->receives && !refused && i < count; i++)
			receive(l, op->code != IBV_WR_RDMA_WRITE_WITH_IMM);
		err = (l->builders ? by_builders : by_post)(l, op, sg, s, which, count);
		if (err) {
			snprintf(text + strlen(text), sizeof(text) - strlen(text), " %s", errname(err));
			break;
		}
		need(wait_one(l->p.a.scq, &wc), "a completion");
		snprintf(text + strlen(text), sizeof(text) - strlen(text), " %d", (int)wc.status);
		need(!wc.status, "success");
		for (int i = 0; op->receives && i < count; i++)
			need(wait_one(l->p.b.rcq, &wc) && !wc.status, "the receive's completion");
	}
	snprintf(name, sizeof(name), "%s.%s", op->name, s->name);
	say(name, "%s", text);
}

static uint32_t next_key(uint32_t key)
{
	uint8_t low = (uint8_t)(key + 1);
	return (key & ~0xffu) | (low ? low : 1);
}

/* Binds and invalidations, each with every flag; the last by the peer. */
static void windows(struct lane *l)
{
	struct side *a = &l->p.a, *b = &l->p.b;
	struct ibv_mw *own = ibv_alloc_mw(a->dev->pd, IBV_MW_TYPE_2), *peer = ibv_alloc_mw(b->dev->pd, IBV_MW_TYPE_2);
	struct ibv_wc wc;
	need(own && peer, "allocate memory windows");
	/* The low byte of the key is ours to choose: another one each time, and never 0. */
	uint32_t key = own->rkey, peer_key = peer->rkey;
	for (unsigned f = 0; f < 8; f++) {
		unsigned flags = (f & 1 ? IBV_SEND_SOLICITED : 0) | (f & 2 ? IBV_SEND_FENCE : 0);
		struct ibv_mw_bind_info info = { .mr = a->mr, .addr = (uintptr_t)a->buf + 4096 + f * 8, .length = 1000 + f,
						 .mw_access_flags = IBV_ACCESS_REMOTE_WRITE |
								    (f & 4 ? IBV_ACCESS_REMOTE_READ | IBV_ACCESS_REMOTE_ATOMIC : 0) };
		key = next_key(key);
		if (l->builders) {
			ibv_wr_start(a->qpx);
			a->qpx->wr_id = 1, a->qpx->wr_flags = flags;
			ibv_wr_bind_mw(a->qpx, own, key, &info);
			a->qpx->wr_id = 2, a->qpx->wr_flags = flags | IBV_SEND_SIGNALED;
			ibv_wr_local_inv(a->qpx, key);
			need(!ibv_wr_complete(a->qpx), "bind and invalidate");
		} else {
			struct ibv_send_wr bind = wr(IBV_WR_BIND_MW, 1, NULL), inv = wr(IBV_WR_LOCAL_INV, 2, NULL), *bad;
			bind.bind_mw.mw = own, bind.bind_mw.rkey = key, bind.bind_mw.bind_info = info;
			bind.send_flags = flags, bind.next = &inv;
			inv.invalidate_rkey = key, inv.send_flags = flags | IBV_SEND_SIGNALED;
			need(!ibv_post_send(a->qp, &bind, &bad), "bind and invalidate");
		}
		need(wait_one(a->scq, &wc), "a completion");
		say_wc("local_inv", &wc);
		/* The stock provider has the device clear the low byte with it. */
		own->rkey = key & ~0xffu;
		if (l->type == IBV_QPT_XRC_SEND)
			continue;
		peer_key = next_key(peer_key);
		info.mr = b->mr, info.addr = (uintptr_t)b->buf;
		struct ibv_send_wr bind = wr(IBV_WR_BIND_MW, 3, NULL);
		bind.bind_mw.mw = peer, bind.bind_mw.rkey = peer_key, bind.bind_mw.bind_info = info;
		need(!send_wr(b, &bind) && wait_one(b->scq, &wc), "bind the peer's window");
		say_wc("bind", &wc);
		peer->rkey = peer_key;
		receive(l, true);
		struct ibv_sge sg = sge(a, 0, 16);
		if (l->builders) {
			ibv_wr_start(a->qpx);
			a->qpx->wr_id = 4, a->qpx->wr_flags = flags | IBV_SEND_SIGNALED;
			ibv_wr_send_inv(a->qpx, peer_key);
			ibv_wr_set_sge(a->qpx, sg.lkey, sg.addr, sg.length);
			need(!ibv_wr_complete(a->qpx), "send with invalidate");
		} else {
			struct ibv_send_wr w = wr(IBV_WR_SEND_WITH_INV, 4, &sg);
			w.invalidate_rkey = peer_key, w.send_flags |= flags;
			need(!send_wr(a, &w), "send with invalidate");
		}
		need(wait_one(a->scq, &wc), "a completion");
		say_wc("send_inv", &wc);
		need(wait_one(b->rcq, &wc), "a completion");
		say_wc("send_inv.received", &wc);
	}
	if (!l->builders && l->type != IBV_QPT_XRC_SEND) {
		struct ibv_mw *first = ibv_alloc_mw(a->dev->pd, IBV_MW_TYPE_1);
		need(first, "allocate a window of type 1");
		for (int i = 0; i < 3; i++) {
			struct ibv_mw_bind bind = { .wr_id = 5, .send_flags = IBV_SEND_SIGNALED,
						    .bind_info = { .mr = a->mr, .addr = (uintptr_t)a->buf, .length = i < 2 ? 4096 : 0,
								   .mw_access_flags = i < 2 ? IBV_ACCESS_REMOTE_READ : 0 } };
			say("type1.bind", "%s", errname(ibv_bind_mw(a->qp, first, &bind)));
			need(wait_one(a->scq, &wc), "a completion");
			say_wc("type1.bound", &wc);
		}
		need(!ibv_dealloc_mw(first), "free the window");
	}
	need(!ibv_dealloc_mw(own) && !ibv_dealloc_mw(peer), "free the windows");
}

/* Where every send is signalled the device may put the answer of a small read or of an atomic into the completion. */
static void answers(struct lane *l)
{
	static const uint32_t sizes[] = { 2, 8, 31, 32, 33, 64, 65 };
	struct side *a = &l->p.a, *b = &l->p.b;
	for (size_t i = 0; i < ARRAY_SIZE(sizes) + 2; i++) {
		bool atomic = i >= ARRAY_SIZE(sizes);
		uint32_t size = atomic ? 8 : sizes[i];
		/* Two pieces with room between them; of an atomic each piece would be taken for the whole. */
		uint32_t first = atomic ? size : size / 2;
		struct ibv_sge sg[2] = { sge(a, 4096, first), sge(a, 5000, size - first) };
		struct ibv_send_wr w = wr(!atomic ? IBV_WR_RDMA_READ : i % 2 ? IBV_WR_ATOMIC_CMP_AND_SWP : IBV_WR_ATOMIC_FETCH_AND_ADD,
					  i, sg);
		uint8_t want[65];
		struct ibv_wc wc;
		w.num_sge = atomic ? 1 : 2;
		w.send_flags = 0;
		w.qp_type.xrc.remote_srqn = l->srqn;
		fill(b->buf + REMOTE, sizeof(want), (unsigned)i);
		memcpy(want, b->buf + REMOTE, sizeof(want));
		memset(a->buf + 4096, 0xee, 2048);
		if (atomic) {
			w.wr.atomic.remote_addr = (uintptr_t)(b->buf + REMOTE);
			w.wr.atomic.rkey = b->mr->rkey;
		} else {
			wr_rdma(&w, b, REMOTE);
		}
		need(!send_wr(a, &w) && wait_one(a->scq, &wc), "a completion");
		say_wc(atomic ? "answer.atomic" : "answer.read", &wc);
		check("answer.data", !memcmp(a->buf + 4096, want, first) && !memcmp(a->buf + 5000, want + first, size - first) &&
					    a->buf[4096 + first] == 0xee && a->buf[5000 + size - first] == 0xee);
	}
}

/* The key names nothing: the QP ends with it, and what is behind it is flushed. */
static void last(struct lane *l)
{
	struct ibv_wc wc;
	struct ibv_send_wr w[2] = { wr(IBV_WR_SEND_WITH_INV, 8, NULL), wr(IBV_WR_SEND, 9, NULL) }, *bad;
	for (int i = 0; i < 2; i++) {
		receive(l, true);
		w[i].qp_type.xrc.remote_srqn = l->srqn;
	}
	w[0].invalidate_rkey = 0xdead00;
	w[0].next = &w[1];
	if (l->builders) {
		ibv_wr_start(l->p.a.qpx);
		for (int i = 0; i < 2; i++) {
			l->p.a.qpx->wr_id = w[i].wr_id, l->p.a.qpx->wr_flags = IBV_SEND_SIGNALED;
			if (i)
				ibv_wr_send(l->p.a.qpx);
			else
				ibv_wr_send_inv(l->p.a.qpx, w[0].invalidate_rkey);
			if (l->type == IBV_QPT_XRC_SEND)
				ibv_wr_set_xrc_srqn(l->p.a.qpx, l->srqn);
			ibv_wr_set_sge_list(l->p.a.qpx, 0, NULL);
		}
		want_errno("last.post", ibv_wr_complete(l->p.a.qpx), 0);
	} else {
		want_errno("last.post", ibv_post_send(l->p.a.qp, w, &bad), 0);
	}
	for (int i = 0; i < 2; i++) {
		need(wait_one(l->p.a.scq, &wc), "a completion");
		say_wc("last", &wc);
	}
}

void walk_wqes(struct topo *t)
{
	for (size_t i = 0; i < ARRAY_SIZE(transports); i++) {
		for (int builders = 0; builders < 2; builders++) {
			struct lane l;
			struct shape all[SHAPES];
			prefix("wqes.%s.%s", transports[i].name, builders ? "builders" : "post");
			lane_open(&l, t, i, builders, false);
			size_t n = shapes(all, &l.p.a.cap);
			for (size_t o = 0; o < ARRAY_SIZE(ops); o++) {
				for (size_t s = 0; ops[o].transports & transports[i].bit && s < n; s++) {
					bool fits = !is_atomic(ops[o].code) || (all[s].n == 1 && all[s].len[0] == 1);
					if (fits && (ops[o].is_inline || !all[s].inl))
						operation(&l, &ops[o], &all[s]);
				}
			}
			if (transports[i].type != IBV_QPT_UD)
				windows(&l);
			if (transports[i].bit & (RC | XRC))
				last(&l);
			lane_close(&l);
		}
		if (transports[i].bit & (RC | XRC)) {
			struct lane l;
			prefix("wqes.%s.answers", transports[i].name);
			lane_open(&l, t, i, false, true);
			answers(&l);
			lane_close(&l);
		}
	}
}

/* ------------------------------------------------------------------ many QPs */

/* A UD QP in RTS; what it sends arrives nowhere, which is no error. */
static struct ibv_qp *sender(struct dev *d, struct ibv_pd *pd, struct ibv_cq *cq)
{
	struct ibv_qp_init_attr a = qp_init(IBV_QPT_UD, cq, cq, (struct ibv_qp_cap){ 8, 1, 1, 1, 32 });
	struct side s = { .dev = d, .qp = ibv_create_qp(pd, &a) };
	struct spec spec = { .type = IBV_QPT_UD };
	need(s.qp, "create a QP");
	need(!to_init(&s, &spec) && !to_rtr(&s, &s, &spec) && !to_rts(&s, &spec), "modify to RTS");
	return s.qp;
}

/* By itself with data inside, by itself without, and two at once. */
static void three(struct ibv_qp *qp, struct ibv_ah *ah, struct ibv_cq *cq)
{
	struct ibv_sge sg = { .addr = (uintptr_t)"0123456789abcdef", .length = 16 };
	struct ibv_wc wc;
	for (int i = 0; i < 3; i++) {
		struct ibv_send_wr w[2], *bad;
		for (int k = 0; k < 2; k++) {
			w[k] = wr(IBV_WR_SEND, 1, i == 1 ? NULL : &sg);
			w[k].send_flags |= i == 1 ? 0 : IBV_SEND_INLINE;
			w[k].wr.ud.ah = ah;
			w[k].wr.ud.remote_qpn = qp->qp_num;
			w[k].wr.ud.remote_qkey = QKEY;
		}
		w[0].next = i == 2 ? &w[1] : NULL;
		need(!ibv_post_send(qp, w, &bad), "send");
		need(wait_one(cq, &wc) && !wc.status && (i < 2 || (wait_one(cq, &wc) && !wc.status)), "a completion");
	}
}

void walk_registers(struct topo *t)
{
	struct dev *d = t->a;
	struct ibv_cq *cq = ibv_create_cq(d->ctx, 64, NULL, NULL, 0);
	struct ibv_ah_attr aa = { .is_global = 1, .port_num = 1, .dlid = d->port.lid,
				  .grh = { .dgid = d->gid, .hop_limit = 1, .sgid_index = (uint8_t)d->gid_index } };
	struct ibv_ah *ah = ibv_create_ah(d->pd, &aa);
	struct ibv_qp *qp[24], *own[6];
	struct ibv_td *td[3];
	struct ibv_pd *domain[3];
	need(cq && ah, "create a CQ and an AH");
	for (size_t i = 0; i < ARRAY_SIZE(qp); i++)
		three(qp[i] = sender(d, d->pd, cq), ah, cq);
	/* Of those that go, the registers are given again. */
	for (size_t i = 0; i < ARRAY_SIZE(qp); i += 3)
		need(!ibv_destroy_qp(qp[i]), "destroy a QP");
	for (size_t i = 0; i < ARRAY_SIZE(qp); i += 3)
		three(qp[i] = sender(d, d->pd, cq), ah, cq);
	for (size_t i = 0; i < ARRAY_SIZE(td); i++) {
		struct ibv_td_init_attr ta = { 0 };
		td[i] = ibv_alloc_td(d->ctx, &ta);
		need(td[i], "allocate a thread domain");
		struct ibv_parent_domain_init_attr pa = { .pd = d->pd, .td = td[i] };
		domain[i] = ibv_alloc_parent_domain(d->ctx, &pa);
		need(domain[i], "allocate a parent domain");
		for (size_t k = 0; k < 2; k++)
			three(own[2 * i + k] = sender(d, domain[i], cq), ah, cq);
	}
	for (size_t i = 0; i < ARRAY_SIZE(own); i++)
		need(!ibv_destroy_qp(own[i]), "destroy a QP");
	for (size_t i = 0; i < ARRAY_SIZE(td); i++)
		need(!ibv_dealloc_pd(domain[i]) && !ibv_dealloc_td(td[i]), "free a thread domain");
	for (size_t i = 0; i < ARRAY_SIZE(qp); i++)
		need(!ibv_destroy_qp(qp[i]), "destroy a QP");
	need(!ibv_destroy_ah(ah) && !ibv_destroy_cq(cq), "destroy");
	check("done", true);
}
