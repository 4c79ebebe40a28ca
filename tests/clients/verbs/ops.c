/* SPDX-License-Identifier: MIT OR Apache-2.0
 *
 * Every opcode by ibv_post_send, on RC, UC and UD: data, completion on both sides.
 */
#include "walk.h"

static void transfers(struct pair *p, enum ibv_wr_opcode opcode, const char *what)
{
	static const uint32_t sizes[] = { 0, 1, 256, 4096, 5000 };
	bool imm = opcode == IBV_WR_SEND_WITH_IMM || opcode == IBV_WR_RDMA_WRITE_WITH_IMM;
	bool is_send = opcode == IBV_WR_SEND || opcode == IBV_WR_SEND_WITH_IMM;
	bool is_read = opcode == IBV_WR_RDMA_READ;
	bool ud = p->spec.type == IBV_QPT_UD;
	size_t grh = ud ? 40 : 0;

	for (size_t i = 0; i < ARRAY_SIZE(sizes); i++) {
		uint32_t n = sizes[i];
		char name[64];
		struct ibv_wc wc;
		if (ud && n > 4096)
			continue;
		struct side *src = is_read ? &p->b : &p->a, *dst = is_read ? &p->a : &p->b;
		fill(src->buf, n, n + 1);
		memset(dst->buf + 16384, 0xee, n + 64);

		if (is_send || imm) {
			snprintf(name, sizeof(name), "%s.%u.post_recv", what, n);
			want_errno(name, recv_one(&p->b, 100 + n, 16384, is_send ? n + (uint32_t)grh + 8 : 0), 0);
		}
		struct ibv_sge sg = sge(&p->a, is_read ? 16384 : 0, n);
		struct ibv_send_wr w = wr(opcode, 200 + n, &sg);
		w.imm_data = imm ? htobe32(0xabcd0000 + n) : 0;
		if (ud)
			wr_ud(&w, &p->a, &p->b);
		else if (!is_send)
			wr_rdma(&w, &p->b, is_read ? 0 : 16384);
		snprintf(name, sizeof(name), "%s.%u.post", what, n);
		if (!want_errno(name, send_wr(&p->a, &w), 0))
			return;
		snprintf(name, sizeof(name), "%s.%u.sent", what, n);
		wc = want_wc(name, p->a.scq, 200 + n, IBV_WC_SUCCESS);
		if (wc.status)
			return;
		if (wc.qp_num != p->a.qp->qp_num)
			check("qp_num", false);
		if (is_send || imm) {
			snprintf(name, sizeof(name), "%s.%u.received", what, n);
			wc = want_wc(name, p->b.rcq, 100 + n, IBV_WC_SUCCESS);
			if (wc.qp_num != p->b.qp->qp_num)
				check("recv_qp_num", false);
			snprintf(name, sizeof(name), "%s.%u.byte_len", what, n);
			want_int(name, wc.byte_len, (long long)(n + grh));
			if (imm) {
				snprintf(name, sizeof(name), "%s.%u.imm", what, n);
				check(name, (wc.wc_flags & IBV_WC_WITH_IMM) &&
						    wc.imm_data == htobe32(0xabcd0000 + n));
			}
			if (ud) {
				snprintf(name, sizeof(name), "%s.%u.ud", what, n);
				check(name, (wc.wc_flags & IBV_WC_GRH) && wc.src_qp == p->a.qp->qp_num);
			}
		} else if (p->spec.type == IBV_QPT_UC) {
			/* An unreliable write says nothing about its arrival: wait for the last byte. */
			double end = now() + LIMIT_S;
			while (n && *(volatile uint8_t *)(dst->buf + 16384 + n - 1) == 0xee && now() < end)
				;
		}
		snprintf(name, sizeof(name), "%s.%u.data", what, n);
		check(name, same(dst->buf + 16384 + grh, n, n + 1) &&
				    (imm || all_bytes(dst->buf + 16384 + grh + n, 64 - grh, 0xee)));
	}
}

static void atomics(struct pair *p)
{
	static const struct {
		const char *name;
		enum ibv_wr_opcode op;
		uint64_t before, compare_add, swap, after;
	} t[] = {
		{ "cmp_swp.equal", IBV_WR_ATOMIC_CMP_AND_SWP, 5, 5, 9, 9 },
		{ "cmp_swp.other", IBV_WR_ATOMIC_CMP_AND_SWP, 5, 6, 9, 5 },
		{ "fetch_add", IBV_WR_ATOMIC_FETCH_AND_ADD, 5, 37, 0, 42 },
		{ "fetch_add.wraps", IBV_WR_ATOMIC_FETCH_AND_ADD, UINT64_MAX, 2, 0, 1 },
	};
	for (size_t i = 0; i < ARRAY_SIZE(t); i++) {
		char name[64];
		volatile uint64_t *remote = (volatile uint64_t *)(p->b.buf + 512);
		volatile uint64_t *local = (volatile uint64_t *)(p->a.buf + 1024);
		*remote = t[i].before;
		*local = 0x5555;
		struct ibv_sge sg = sge(&p->a, 1024, 8);
		struct ibv_send_wr w = wr(t[i].op, 300 + i, &sg);
		w.wr.atomic.remote_addr = (uintptr_t)remote;
		w.wr.atomic.rkey = p->b.mr->rkey;
		w.wr.atomic.compare_add = t[i].compare_add;
		w.wr.atomic.swap = t[i].swap;
		snprintf(name, sizeof(name), "%s.post", t[i].name);
		if (!want_errno(name, send_wr(&p->a, &w), 0))
			continue;
		snprintf(name, sizeof(name), "%s.done", t[i].name);
		if (want_wc(name, p->a.scq, 300 + i, IBV_WC_SUCCESS).status)
			return;
		snprintf(name, sizeof(name), "%s.data", t[i].name);
		check(name, *remote == t[i].after && *local == t[i].before);
	}
}

static void inline_data(struct pair *p)
{
	uint32_t limit = p->a.cap.max_inline_data;
	bool ud = p->spec.type == IBV_QPT_UD;
	size_t grh = ud ? 40 : 0;
	say("inline.limit", "%u", limit);
	const uint32_t sizes[] = { 0, 1, limit, limit + 1 };
	for (size_t i = 0; i < ARRAY_SIZE(sizes); i++) {
		uint32_t n = sizes[i];
		char name[64];
		uint8_t *own = malloc(n + 1);
		need(own, "memory");
		fill(own, n, 77);
		memset(p->b.buf + 16384, 0xee, n + 64);
		/* Not registered, and changed right after the post: inline means copied. */
		struct ibv_sge sg = { .addr = (uintptr_t)own, .length = n, .lkey = 0xdead };
		struct ibv_send_wr w = wr(IBV_WR_SEND, 400 + i, &sg), *bad = NULL;
		w.send_flags |= IBV_SEND_INLINE;
		if (ud)
			wr_ud(&w, &p->a, &p->b);
		if (n <= limit)
			need(!recv_one(&p->b, 500 + i, 16384, n + 8 + (uint32_t)grh), "post a receive");
		snprintf(name, sizeof(name), "inline.%zu.post", i);
		int err = ibv_post_send(p->a.qp, &w, &bad);
		memset(own, 0, n + 1);
		free(own);
		if (n > limit) {
			strict_errno(name, err, EINVAL);
			check("inline.too_much.bad_wr", bad == &w);
			continue;
		}
		if (!want_errno(name, err, 0))
			return;
		snprintf(name, sizeof(name), "inline.%zu.sent", i);
		want_wc(name, p->a.scq, 400 + i, IBV_WC_SUCCESS);
		snprintf(name, sizeof(name), "inline.%zu.received", i);
		want_wc(name, p->b.rcq, 500 + i, IBV_WC_SUCCESS);
		snprintf(name, sizeof(name), "inline.%zu.data", i);
		check(name, same(p->b.buf + 16384 + grh, n, 77));
	}
	/* Gathered from several pieces, one of them empty. */
	if (limit < 12 || p->a.cap.max_send_sge < 4)
		return;
	uint8_t whole[12];
	fill(whole, sizeof(whole), 78);
	struct ibv_sge sg[4] = {
		{ .addr = (uintptr_t)whole, .length = 5 },
		{ .addr = (uintptr_t)whole + 5, .length = 0 },
		{ .addr = (uintptr_t)whole + 5, .length = 1 },
		{ .addr = (uintptr_t)whole + 6, .length = 6 },
	};
	struct ibv_send_wr w = wr(IBV_WR_SEND, 410, sg);
	w.num_sge = 4;
	w.send_flags |= IBV_SEND_INLINE;
	if (ud)
		wr_ud(&w, &p->a, &p->b);
	need(!recv_one(&p->b, 510, 16384, 64), "post a receive");
	want_errno("inline.list.post", send_wr(&p->a, &w), 0);
	want_wc("inline.list.sent", p->a.scq, 410, IBV_WC_SUCCESS);
	want_wc("inline.list.received", p->b.rcq, 510, IBV_WC_SUCCESS);
	check("inline.list.data", same(p->b.buf + 16384 + grh, sizeof(whole), 78));
}

static void sge_lists(struct pair *p)
{
	uint32_t max = p->a.cap.max_send_sge, rmax = p->b.cap.max_recv_sge;
	bool ud = p->spec.type == IBV_QPT_UD;
	size_t grh = ud ? 40 : 0;
	say("sge.max", "%u %u", max, rmax);
	struct ibv_sge sg[40], rsg[40];
	need(max < ARRAY_SIZE(sg) && rmax < ARRAY_SIZE(rsg), "room for the SGEs");
	for (uint32_t n = 0; n <= max + 1; n++) {
		char name[64];
		uint8_t expect[40 * 7];
		size_t total = 0;
		for (uint32_t i = 0; i < n; i++) {
			uint32_t len = 3 + i % 5;
			fill(p->a.buf + i * 64, len, i);
			memcpy(expect + total, p->a.buf + i * 64, len);
			sg[i] = sge(&p->a, i * 64, len);
			total += len;
		}
		memset(p->b.buf, 0xee, 2048);
		/* Scattered in pieces of 11 bytes, which fit no boundary of the sender's. */
		uint32_t rn = 0;
		size_t room = 0;
		while (rn < rmax && room < total + grh) {
			uint32_t piece = rn + 1 == rmax ? 512 : ud && !rn ? 40 : 11;
			rsg[rn] = sge(&p->b, rn * 512, piece);
			room += piece;
			rn++;
		}
		struct ibv_recv_wr r = { .wr_id = 600 + n, .sg_list = rsg, .num_sge = (int)rn }, *rbad;
		if (n <= max)
			need(!ibv_post_recv(p->b.qp, &r, &rbad), "post a receive");
		struct ibv_send_wr w = wr(IBV_WR_SEND, 700 + n, sg), *bad = NULL;
		w.num_sge = (int)n;
		if (ud)
			wr_ud(&w, &p->a, &p->b);
		snprintf(name, sizeof(name), "sge.%s%u.post", n > max ? "too_many." : "", n);
		int err = ibv_post_send(p->a.qp, &w, &bad);
		if (n > max) {
			strict_errno(name, err, EINVAL);
			check("sge.too_many.bad_wr", bad == &w);
			break;
		}
		if (!want_errno(name, err, 0))
			return;
		snprintf(name, sizeof(name), "sge.%u.sent", n);
		want_wc(name, p->a.scq, 700 + n, IBV_WC_SUCCESS);
		snprintf(name, sizeof(name), "sge.%u.received", n);
		struct ibv_wc wc = want_wc(name, p->b.rcq, 600 + n, IBV_WC_SUCCESS);
		size_t at = 0;
		bool ok = wc.byte_len == total + grh;
		for (uint32_t i = ud ? 1 : 0; i < rn && at < total; i++) {
			size_t k = rsg[i].length < total - at ? rsg[i].length : total - at;
			ok = ok && !memcmp(p->b.buf + i * 512, expect + at, k);
			at += k;
		}
		snprintf(name, sizeof(name), "sge.%u.data", n);
		check(name, ok && at == total);
	}
	/* Receives. */
	for (uint32_t i = 0; i <= rmax; i++)
		rsg[i] = sge(&p->b, i * 64, 16);
	struct ibv_recv_wr r = { .wr_id = 1, .sg_list = rsg, .num_sge = (int)rmax + 1 }, *rbad = NULL;
	strict_errno("sge.recv.too_many", ibv_post_recv(p->b.qp, &r, &rbad), EINVAL);
	check("sge.recv.too_many.bad_wr", rbad == &r);
}

static void signalling(struct topo *t, enum ibv_qp_type type)
{
	struct pair p;
	for (int all = 0; all < 2; all++) {
		struct spec spec = { .type = type, .sq_sig_all = all };
		char name[64];
		if (!want_errno(all ? "signal.all.open" : "signal.some.open", pair_open(&p, t->a, t->b, &spec), 0))
			return;
		for (int i = 0; i < 6; i++) {
			need(!recv_one(&p.b, 10 + (uint64_t)i, (size_t)i * 256, 128), "post a receive");
			struct ibv_sge sg = sge(&p.a, 0, 16);
			struct ibv_send_wr w = wr(IBV_WR_SEND, 20 + (uint64_t)i, &sg);
			w.send_flags = i % 3 == 2 ? IBV_SEND_SIGNALED : 0;
			if (type == IBV_QPT_UD)
				wr_ud(&w, &p.a, &p.b);
			snprintf(name, sizeof(name), "signal.%s.post.%d", all ? "all" : "some", i);
			want_errno(name, send_wr(&p.a, &w), 0);
		}
		for (int i = 0; i < 6; i++) {
			snprintf(name, sizeof(name), "signal.%s.sent.%d", all ? "all" : "some", i);
			if (all || i % 3 == 2)
				want_wc(name, p.a.scq, 20 + (uint64_t)i, IBV_WC_SUCCESS);
		}
		for (int i = 0; i < 6; i++) {
			snprintf(name, sizeof(name), "signal.%s.received.%d", all ? "all" : "some", i);
			want_wc(name, p.b.rcq, 10 + (uint64_t)i, IBV_WC_SUCCESS);
		}
		snprintf(name, sizeof(name), "signal.%s.no_more", all ? "all" : "some");
		check(name, stays_empty(p.a.scq));
		pair_close(&p);
	}
}

/* A read with a fenced send behind it: the send carries what the read brought. */
static void fence(struct pair *p)
{
	fill(p->b.buf, 4096, 3);
	memset(p->a.buf + 8192, 0xee, 4096);
	memset(p->b.buf + 16384, 0xee, 4096);
	need(!recv_one(&p->b, 31, 16384, 4096), "post a receive");
	struct ibv_sge sg = sge(&p->a, 8192, 4096);
	struct ibv_send_wr send = wr(IBV_WR_SEND, 33, &sg), read = wr(IBV_WR_RDMA_READ, 32, &sg), *bad;
	wr_rdma(&read, &p->b, 0);
	send.send_flags |= IBV_SEND_FENCE;
	read.next = &send;
	want_errno("fence.post", ibv_post_send(p->a.qp, &read, &bad), 0);
	want_wc("fence.read", p->a.scq, 32, IBV_WC_SUCCESS);
	want_wc("fence.sent", p->a.scq, 33, IBV_WC_SUCCESS);
	want_wc("fence.received", p->b.rcq, 31, IBV_WC_SUCCESS);
	check("fence.data", same(p->b.buf + 16384, 4096, 3));
}

void walk_rc(struct topo *t)
{
	struct pair p;
	struct spec spec = { .type = IBV_QPT_RC, .inl = 64 };
	if (!want_errno("open", pair_open(&p, t->a, t->b, &spec), 0))
		return;
	transfers(&p, IBV_WR_SEND, "send");
	transfers(&p, IBV_WR_SEND_WITH_IMM, "send_imm");
	transfers(&p, IBV_WR_RDMA_WRITE, "write");
	transfers(&p, IBV_WR_RDMA_WRITE_WITH_IMM, "write_imm");
	transfers(&p, IBV_WR_RDMA_READ, "read");
	if (t->a->attr.atomic_cap == IBV_ATOMIC_NONE)
		say("atomics", "none");
	else if (t->a != t->b && kernel_before(5, 11))
		say("atomics", "left out: this kernel never answers them across two devices");
	else
		atomics(&p);
	inline_data(&p);
	sge_lists(&p);
	fence(&p);
	check("send_cq.empty", stays_empty(p.a.scq));
	check("recv_cq.empty", stays_empty(p.b.rcq));
	pair_close(&p);
	signalling(t, IBV_QPT_RC);
}

void walk_uc(struct topo *t)
{
	struct pair p;
	struct spec spec = { .type = IBV_QPT_UC, .inl = 64 };
	if (!want_errno("open", pair_open(&p, t->a, t->b, &spec), 0))
		return;
	transfers(&p, IBV_WR_SEND, "send");
	transfers(&p, IBV_WR_SEND_WITH_IMM, "send_imm");
	transfers(&p, IBV_WR_RDMA_WRITE, "write");
	transfers(&p, IBV_WR_RDMA_WRITE_WITH_IMM, "write_imm");
	inline_data(&p);
	sge_lists(&p);
	pair_close(&p);
	signalling(t, IBV_QPT_UC);
}

void walk_ud(struct topo *t)
{
	struct pair p;
	struct spec spec = { .type = IBV_QPT_UD, .inl = 64 };
	if (!want_errno("open", pair_open(&p, t->a, t->b, &spec), 0))
		return;
	transfers(&p, IBV_WR_SEND, "send");
	transfers(&p, IBV_WR_SEND_WITH_IMM, "send_imm");
	inline_data(&p);
	sge_lists(&p);
	pair_close(&p);
	signalling(t, IBV_QPT_UD);
}
