/* SPDX-License-Identifier: MIT OR Apache-2.0
 *
 * The ibv_wr_* interface: every builder, every setter, batches, abort, and errors, which void a batch as a whole.
 */
#include "walk.h"

#define UD_OPS (IBV_QP_EX_WITH_SEND | IBV_QP_EX_WITH_SEND_WITH_IMM)
#define UC_OPS                                                                                                       \
	(UD_OPS | IBV_QP_EX_WITH_RDMA_WRITE | IBV_QP_EX_WITH_RDMA_WRITE_WITH_IMM | IBV_QP_EX_WITH_BIND_MW |            \
	 IBV_QP_EX_WITH_SEND_WITH_INV)
#define RC_OPS                                                                                                       \
	(UC_OPS | IBV_QP_EX_WITH_RDMA_READ | IBV_QP_EX_WITH_ATOMIC_CMP_AND_SWP | IBV_QP_EX_WITH_ATOMIC_FETCH_AND_ADD | \
	 IBV_QP_EX_WITH_LOCAL_INV)

/*
 * The last is what the manual page describes: no flag says that the data is inline, the setter does. rdma-core's own rxe
 * sends such a request off without the data, unless wr_flags holds IBV_SEND_INLINE; hence the others with the flag.
 */
enum how { SGE, SGE_LIST, INLINE, INLINE_LIST, INLINE_NO_FLAG, HOWS };
static const char *const hows[] = { "sge", "sge_list", "inline", "inline_list", "inline_no_flag" };

/* Sets `n` bytes at offset 0 of the buffer (or 3 pieces of it). */
static void set_data(struct pair *p, enum how how, uint32_t n)
{
	struct ibv_qp_ex *q = p->a.qpx;
	uint8_t *b = p->a.buf;
	uint32_t first = n / 4;
	switch (how) {
	case SGE:
		ibv_wr_set_sge(q, p->a.mr->lkey, (uintptr_t)b, n);
		break;
	case SGE_LIST: {
		struct ibv_sge sg[3] = { sge(&p->a, 0, first), sge(&p->a, first, 0), sge(&p->a, first, n - first) };
		ibv_wr_set_sge_list(q, 3, sg);
		break;
	}
	case INLINE:
	case INLINE_NO_FLAG:
		ibv_wr_set_inline_data(q, b, n);
		break;
	case INLINE_LIST: {
		struct ibv_data_buf d[3] = { { b, first }, { b + first, 0 }, { b + first, n - first } };
		ibv_wr_set_inline_data_list(q, 3, d);
		break;
	}
	default:
		break;
	}
}

/* A pair in which nothing has gone wrong yet. */
static void fresh(struct pair *p)
{
	struct dev *a = p->a.dev, *b = p->b.dev;
	struct spec spec = p->spec;
	pair_close(p);
	need(!pair_open(p, a, b, &spec), "connect again");
}

static void start(struct pair *p, uint64_t id)
{
	ibv_wr_start(p->a.qpx);
	p->a.qpx->wr_id = id;
	p->a.qpx->wr_flags = IBV_SEND_SIGNALED;
}

static void transfers(struct pair *p)
{
	static const enum ibv_wr_opcode ops[] = { IBV_WR_SEND, IBV_WR_SEND_WITH_IMM, IBV_WR_RDMA_WRITE,
						  IBV_WR_RDMA_WRITE_WITH_IMM, IBV_WR_RDMA_READ };
	static const char *const names[] = { "send", "send_imm", "write", "write_imm", "read" };
	bool ud = p->spec.type == IBV_QPT_UD, rc = p->spec.type == IBV_QPT_RC;
	size_t grh = ud ? 40 : 0;
	for (size_t o = 0; o < ARRAY_SIZE(ops); o++) {
		if ((ud && o > 1) || (!rc && o > 3))
			break;
		bool is_read = ops[o] == IBV_WR_RDMA_READ, receives = o < 2 || o == 3;
		for (int h = 0; h < (is_read ? INLINE : HOWS); h++) {
			uint32_t n = h < INLINE ? 3000 : p->a.cap.max_inline_data;
			uint64_t id = 100 * (o + 1) + (uint64_t)h;
			char name[64];
			struct ibv_wc wc;
			struct side *src = is_read ? &p->b : &p->a, *dst = is_read ? &p->a : &p->b;
			size_t to = is_read ? 0 : 16384, from = is_read ? 16384 : 0;
			memset(dst->buf + to, 0xee, n + 64);
			fill(src->buf + from, n, (unsigned)id);
			if (receives)
				need(!recv_one(&p->b, id, 16384, ud || o < 2 ? 4096 : 0), "post a receive");
			start(p, id);
			if (h == INLINE || h == INLINE_LIST)
				p->a.qpx->wr_flags |= IBV_SEND_INLINE;
			uint64_t remote = (uintptr_t)(p->b.buf + 16384);
			uint32_t rkey = p->b.mr->rkey;
			switch (ops[o]) {
			case IBV_WR_SEND: ibv_wr_send(p->a.qpx); break;
			case IBV_WR_SEND_WITH_IMM: ibv_wr_send_imm(p->a.qpx, htobe32(0xfeed0000 + (uint32_t)id)); break;
			case IBV_WR_RDMA_WRITE: ibv_wr_rdma_write(p->a.qpx, rkey, remote); break;
			case IBV_WR_RDMA_WRITE_WITH_IMM:
				ibv_wr_rdma_write_imm(p->a.qpx, rkey, remote, htobe32(0xfeed0000 + (uint32_t)id));
				break;
			default: ibv_wr_rdma_read(p->a.qpx, rkey, remote); break;
			}
			if (ud)
				ibv_wr_set_ud_addr(p->a.qpx, p->a.ah, p->b.qp->qp_num, QKEY);
			set_data(p, (enum how)h, n);
			snprintf(name, sizeof(name), "%s.%s.complete", names[o], hows[h]);
			if (!want_errno(name, ibv_wr_complete(p->a.qpx), 0))
				return;
			snprintf(name, sizeof(name), "%s.%s.sent", names[o], hows[h]);
			if (strict_wc(name, p->a.scq, id, IBV_WC_SUCCESS).status) {
				fresh(p);
				continue;
			}
			if (receives) {
				snprintf(name, sizeof(name), "%s.%s.received", names[o], hows[h]);
				wc = strict_wc(name, p->b.rcq, id, IBV_WC_SUCCESS);
				if (wc.status) {
					fresh(p);
					continue;
				}
				if (o & 1) {
					snprintf(name, sizeof(name), "%s.%s.imm", names[o], hows[h]);
					check(name, wc.imm_data == htobe32(0xfeed0000 + (uint32_t)id));
				}
			} else if (!rc) {
				double end = now() + 2;
				while (*(volatile uint8_t *)(dst->buf + to + n - 1) == 0xee && now() < end)
					;
			}
			snprintf(name, sizeof(name), "%s.%s.data", names[o], hows[h]);
			strict_check(name, same(dst->buf + to + grh, n, (unsigned)id));
		}
	}
}

static void atomics(struct pair *p)
{
	volatile uint64_t *remote = (volatile uint64_t *)(p->b.buf + 512), *local = (volatile uint64_t *)(p->a.buf + 1024);
	*remote = 5;
	start(p, 1);
	ibv_wr_atomic_cmp_swp(p->a.qpx, p->b.mr->rkey, (uintptr_t)remote, 5, 9);
	ibv_wr_set_sge(p->a.qpx, p->a.mr->lkey, (uintptr_t)local, 8);
	want_errno("cmp_swp.complete", ibv_wr_complete(p->a.qpx), 0);
	want_wc("cmp_swp.done", p->a.scq, 1, IBV_WC_SUCCESS);
	check("cmp_swp.data", *remote == 9 && *local == 5);
	start(p, 2);
	ibv_wr_atomic_fetch_add(p->a.qpx, p->b.mr->rkey, (uintptr_t)remote, 33);
	ibv_wr_set_sge(p->a.qpx, p->a.mr->lkey, (uintptr_t)local, 8);
	want_errno("fetch_add.complete", ibv_wr_complete(p->a.qpx), 0);
	want_wc("fetch_add.done", p->a.scq, 2, IBV_WC_SUCCESS);
	check("fetch_add.data", *remote == 42 && *local == 9);
}

static void batch(struct pair *p)
{
	bool ud = p->spec.type == IBV_QPT_UD;
	size_t grh = ud ? 40 : 0;
	char name[64];
	/* One region, eight sends of different kinds of data, some unsignalled. */
	for (int i = 0; i < 8; i++)
		need(!recv_one(&p->b, 200 + (uint64_t)i, 16384 + (size_t)i * 1024, 1024), "post a receive");
	ibv_wr_start(p->a.qpx);
	for (unsigned i = 0; i < 8; i++) {
		fill(p->a.buf + i * 512, 20, i);
		p->a.qpx->wr_id = 300 + i;
		p->a.qpx->wr_flags = i % 4 == 3 ? IBV_SEND_SIGNALED : 0;
		if (i & 1)
			p->a.qpx->wr_flags |= IBV_SEND_INLINE;
		ibv_wr_send(p->a.qpx);
		if (ud)
			ibv_wr_set_ud_addr(p->a.qpx, p->a.ah, p->b.qp->qp_num, QKEY);
		if (i & 1)
			ibv_wr_set_inline_data(p->a.qpx, p->a.buf + i * 512, 20);
		else
			ibv_wr_set_sge(p->a.qpx, p->a.mr->lkey, (uintptr_t)(p->a.buf + i * 512), 20);
	}
	check("batch.not_yet", stays_empty(p->b.rcq));
	want_errno("batch.complete", ibv_wr_complete(p->a.qpx), 0);
	want_wc("batch.sent.3", p->a.scq, 303, IBV_WC_SUCCESS);
	want_wc("batch.sent.7", p->a.scq, 307, IBV_WC_SUCCESS);
	for (unsigned i = 0; i < 8; i++) {
		snprintf(name, sizeof(name), "batch.received.%u", i);
		want_wc(name, p->b.rcq, 200 + i, IBV_WC_SUCCESS);
		snprintf(name, sizeof(name), "batch.data.%u", i);
		check(name, same(p->b.buf + 16384 + i * 1024 + grh, 20, i));
	}
	check("batch.no_more", stays_empty(p->a.scq));

	/* Empty region, aborted region, and after it all is as before. */
	ibv_wr_start(p->a.qpx);
	want_errno("empty.complete", ibv_wr_complete(p->a.qpx), 0);
	need(!recv_one(&p->b, 400, 16384, 1024), "post a receive");
	start(p, 401);
	for (int i = 0; i < 3; i++) {
		ibv_wr_send(p->a.qpx);
		if (ud)
			ibv_wr_set_ud_addr(p->a.qpx, p->a.ah, p->b.qp->qp_num, QKEY);
		set_data(p, SGE, 16);
	}
	ibv_wr_abort(p->a.qpx);
	check("abort.nothing_sent", stays_empty(p->a.scq) && stays_empty(p->b.rcq));
	start(p, 402);
	ibv_wr_send(p->a.qpx);
	if (ud)
		ibv_wr_set_ud_addr(p->a.qpx, p->a.ah, p->b.qp->qp_num, QKEY);
	set_data(p, SGE, 16);
	want_errno("after_abort.complete", ibv_wr_complete(p->a.qpx), 0);
	want_wc("after_abort.sent", p->a.scq, 402, IBV_WC_SUCCESS);
	want_wc("after_abort.received", p->b.rcq, 400, IBV_WC_SUCCESS);
}

/* Zero-length, by each setter and by none. */
static void zero(struct pair *p)
{
	bool ud = p->spec.type == IBV_QPT_UD;
	static const char *const names[] = { "sge", "sge_list", "inline", "inline_list", "none" };
	for (int h = 0; h < 5; h++) {
		char name[64];
		if (h == 4 && !soft_roce() && provider() == PROVIDER_STOCK) {
			say("zero.none", "left out: stock mlx5 loses an operation without a setter, and what comes after it");
			continue;
		}
		need(!recv_one(&p->b, 410, 16384, 1024), "post a receive");
		start(p, 411);
		if (h == 2 || h == 3)
			p->a.qpx->wr_flags |= IBV_SEND_INLINE;
		ibv_wr_send(p->a.qpx);
		if (ud)
			ibv_wr_set_ud_addr(p->a.qpx, p->a.ah, p->b.qp->qp_num, QKEY);
		if (h == 1)
			ibv_wr_set_sge_list(p->a.qpx, 0, NULL);
		else if (h == 3)
			ibv_wr_set_inline_data_list(p->a.qpx, 0, NULL);
		else if (h < 4)
			set_data(p, (enum how)h, 0);
		snprintf(name, sizeof(name), "zero.%s.complete", names[h]);
		want_errno(name, ibv_wr_complete(p->a.qpx), 0);
		snprintf(name, sizeof(name), "zero.%s.sent", names[h]);
		want_wc(name, p->a.scq, 411, IBV_WC_SUCCESS);
		snprintf(name, sizeof(name), "zero.%s.received", names[h]);
		struct ibv_wc wc = want_wc(name, p->b.rcq, 410, IBV_WC_SUCCESS);
		snprintf(name, sizeof(name), "zero.%s.byte_len", names[h]);
		want_int(name, wc.byte_len, ud ? 40 : 0);
	}
}

/* A mistake in the middle: complete() reports it, nothing of the region is done, the queue stays usable. */
static void mistakes(struct pair *p)
{
	bool ud = p->spec.type == IBV_QPT_UD;
	static const char *const names[] = { "sge_list", "inline", "inline_list", "ring_full" };
	uint8_t *big = calloc(1, p->a.cap.max_inline_data + 16);
	need(big, "memory");
	for (int m = 0; m < 4; m++) {
		char name[64];
		struct ibv_sge sg[64];
		for (size_t i = 0; i < ARRAY_SIZE(sg); i++)
			sg[i] = sge(&p->a, i, 1);
		start(p, 500);
		int n = m == 3 ? 1000 : 3;
		for (int i = 0; i < n; i++) {
			p->a.qpx->wr_flags = IBV_SEND_SIGNALED | (i == 1 && (m == 1 || m == 2) ? IBV_SEND_INLINE : 0);
			ibv_wr_send(p->a.qpx);
			if (ud)
				ibv_wr_set_ud_addr(p->a.qpx, p->a.ah, p->b.qp->qp_num, QKEY);
			struct ibv_data_buf d[2] = { { big, p->a.cap.max_inline_data }, { big, 1 } };
			if (i != 1 || m == 3)
				set_data(p, SGE, 16);
			else if (m == 0)
				ibv_wr_set_sge_list(p->a.qpx, p->a.cap.max_send_sge + 1, sg);
			else if (m == 1)
				ibv_wr_set_inline_data(p->a.qpx, big, p->a.cap.max_inline_data + 1);
			else
				ibv_wr_set_inline_data_list(p->a.qpx, 2, d);
		}
		int err = ibv_wr_complete(p->a.qpx);
		snprintf(name, sizeof(name), "mistake.%s.complete", names[m]);
		say(name, "%s", errname(err));
		snprintf(name, sizeof(name), "mistake.%s.refused", names[m]);
		strict_check(name, err != 0);
		if (!err) {
			fresh(p);
			continue;
		}
		snprintf(name, sizeof(name), "mistake.%s.nothing_sent", names[m]);
		check(name, stays_empty(p->a.scq));
		need(!recv_one(&p->b, 501, 16384, 1024), "post a receive");
		start(p, 502);
		ibv_wr_send(p->a.qpx);
		if (ud)
			ibv_wr_set_ud_addr(p->a.qpx, p->a.ah, p->b.qp->qp_num, QKEY);
		set_data(p, SGE, 16);
		snprintf(name, sizeof(name), "mistake.%s.after", names[m]);
		want_errno(name, ibv_wr_complete(p->a.qpx), 0);
		snprintf(name, sizeof(name), "mistake.%s.after.sent", names[m]);
		want_wc(name, p->a.scq, 502, IBV_WC_SUCCESS);
		snprintf(name, sizeof(name), "mistake.%s.after.received", names[m]);
		want_wc(name, p->b.rcq, 501, IBV_WC_SUCCESS);
	}
	free(big);
}

/* The two ways to post, one after the other on one QP. */
static void mixed(struct pair *p)
{
	bool ud = p->spec.type == IBV_QPT_UD;
	for (int i = 0; i < 4; i++)
		need(!recv_one(&p->b, 600 + (uint64_t)i, 16384, 1024), "post a receive");
	for (unsigned i = 0; i < 4; i++) {
		char name[64];
		snprintf(name, sizeof(name), "mixed.%u.post", i);
		if (i & 1) {
			start(p, 610 + i);
			ibv_wr_send(p->a.qpx);
			if (ud)
				ibv_wr_set_ud_addr(p->a.qpx, p->a.ah, p->b.qp->qp_num, QKEY);
			set_data(p, SGE, 16);
			want_errno(name, ibv_wr_complete(p->a.qpx), 0);
		} else {
			struct ibv_sge sg = sge(&p->a, 0, 16);
			struct ibv_send_wr w = wr(IBV_WR_SEND, 610 + i, &sg);
			if (ud)
				wr_ud(&w, &p->a, &p->b);
			want_errno(name, send_wr(&p->a, &w), 0);
		}
	}
	for (unsigned i = 0; i < 4; i++) {
		want_wc("mixed.sent", p->a.scq, 610 + i, IBV_WC_SUCCESS);
		want_wc("mixed.received", p->b.rcq, 600 + i, IBV_WC_SUCCESS);
	}
}

static void newer(struct topo *t)
{
#if HAVE_ATOMIC_WRITE
	struct pair p;
	struct spec spec = { .type = IBV_QPT_RC, .ex = true, .send_ops = IBV_QP_EX_WITH_ATOMIC_WRITE };
	int err = pair_open(&p, t->a, t->b, &spec);
	say("atomic_write.open", "%s", errname(err));
	if (!err) {
		uint64_t value = 0x1122334455667788ull;
		volatile uint64_t *remote = (volatile uint64_t *)(p.b.buf + 512);
		struct ibv_wc wc;
		*remote = 0;
		start(&p, 1);
		ibv_wr_atomic_write(p.a.qpx, p.b.mr->rkey, (uintptr_t)remote, &value);
		want_errno("atomic_write.complete", ibv_wr_complete(p.a.qpx), 0);
		if (wait_one(p.a.scq, &wc)) {
			say_wc("atomic_write.done", &wc);
			check("atomic_write.data", wc.status || *remote == value);
		} else {
			check("atomic_write.done", false);
		}
		pair_close(&p);
	}
#endif
#if HAVE_FLUSH
	static const struct {
		const char *name;
		uint8_t type, level;
	} f[] = { { "global_range", IBV_FLUSH_GLOBAL, IBV_FLUSH_RANGE }, { "global_mr", IBV_FLUSH_GLOBAL, IBV_FLUSH_MR },
		  { "persistent_range", IBV_FLUSH_PERSISTENT, IBV_FLUSH_RANGE } };
	for (size_t i = 0; i < ARRAY_SIZE(f); i++) {
		char name[64];
		struct pair q;
		struct spec fs = { .type = IBV_QPT_RC, .ex = true, .send_ops = IBV_QP_EX_WITH_FLUSH | IBV_QP_EX_WITH_RDMA_WRITE,
				   .access = ALL_ACCESS | IBV_ACCESS_FLUSH_GLOBAL };
		if (t->a->attr.device_cap_flags == 0 || kernel_before(6, 3)) {
			say("flush", "left out: not in this kernel");
			break;
		}
		static char page[4096] __attribute__((aligned(4096)));
		struct ibv_mr *mr = ibv_reg_mr(t->a->pd, page, sizeof(page), fs.access);
		if (!mr) {
			say("flush.register", "%s", errname(errno));
			break;
		}
		ibv_dereg_mr(mr);
		int e = pair_open(&q, t->a, t->b, &fs);
		snprintf(name, sizeof(name), "flush.%s.open", f[i].name);
		say(name, "%s", errname(e));
		if (e)
			continue;
		start(&q, 1);
		ibv_wr_rdma_write(q.a.qpx, q.b.mr->rkey, (uintptr_t)(q.b.buf + 16384));
		set_data(&q, SGE, 512);
		q.a.qpx->wr_id = 2;
		ibv_wr_flush(q.a.qpx, q.b.mr->rkey, (uintptr_t)(q.b.buf + 16384), 512, f[i].type, f[i].level);
		snprintf(name, sizeof(name), "flush.%s.complete", f[i].name);
		want_errno(name, ibv_wr_complete(q.a.qpx), 0);
		snprintf(name, sizeof(name), "flush.%s.written", f[i].name);
		want_wc(name, q.a.scq, 1, IBV_WC_SUCCESS);
		snprintf(name, sizeof(name), "flush.%s.done", f[i].name);
		struct ibv_wc wc;
		if (wait_one(q.a.scq, &wc))
			say_wc(name, &wc);
		else
			say(name, "no completion");
		pair_close(&q);
	}
#endif
	(void)t;
}

void walk_builders(struct topo *t)
{
	static const struct {
		const char *name;
		enum ibv_qp_type type;
		uint64_t ops;
	} types[] = { { "rc", IBV_QPT_RC, RC_OPS }, { "uc", IBV_QPT_UC, UC_OPS }, { "ud", IBV_QPT_UD, UD_OPS } };
	for (size_t i = 0; i < ARRAY_SIZE(types); i++) {
		struct pair p;
		struct spec spec = { .type = types[i].type, .ex = true, .send_ops = types[i].ops, .inl = 48 };
		prefix("builders.%s.%s", t->name, types[i].name);
		int err = pair_open(&p, t->a, t->b, &spec);
		say("open", "%s", errname(err));
		if (err)
			continue;
		check("extended", p.a.qpx != NULL);
		if (p.a.qpx) {
			transfers(&p);
			if (types[i].type == IBV_QPT_RC && t->a != t->b && kernel_before(5, 11))
				say("atomics", "left out: this kernel never answers them across two devices");
			else if (types[i].type == IBV_QPT_RC)
				atomics(&p);
			batch(&p);
			zero(&p);
			mistakes(&p);
			mixed(&p);
		}
		pair_close(&p);
	}
	prefix("builders.%s", t->name);
	newer(t);

	/* complete() on a QP that is not ready to send. */
	struct side s;
	struct spec spec = { .type = IBV_QPT_RC, .ex = true, .send_ops = IBV_QP_EX_WITH_SEND };
	int err = side_open(&s, t->a, &spec);
	say("reset.open", "%s", errname(err));
	if (!err && s.qpx) {
		ibv_wr_start(s.qpx);
		s.qpx->wr_id = 1;
		s.qpx->wr_flags = IBV_SEND_SIGNALED;
		ibv_wr_send(s.qpx);
		ibv_wr_set_sge(s.qpx, s.mr->lkey, (uintptr_t)s.buf, 8);
		strict_errno("reset.complete", ibv_wr_complete(s.qpx), EINVAL);
	}
	side_close(&s);
}
