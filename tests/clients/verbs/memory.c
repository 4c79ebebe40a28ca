/* SPDX-License-Identifier: MIT OR Apache-2.0
 *
 * Memory regions and memory windows.
 */
#include "walk.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

static uint8_t *pages(size_t n, int prot)
{
	uint8_t *p = mmap(NULL, n * 4096, prot, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	need(p != MAP_FAILED, "map memory");
	return p;
}

static void reg(struct topo *t, const char *name, void *addr, size_t length, unsigned access)
{
	errno = 0;
	struct ibv_mr *mr = ibv_reg_mr(t->a->pd, addr, length, access);
	say(name, "%s", mr ? "0" : errname(errno));
	if (!mr)
		return;
	char full[64];
	snprintf(full, sizeof(full), "%s.members", name);
	check(full, mr->addr == addr && mr->length == length && mr->pd == t->a->pd && mr->context == t->a->ctx);
	snprintf(full, sizeof(full), "%s.dereg", name);
	want_errno(full, ibv_dereg_mr(mr), 0);
}

static void registering(struct topo *t)
{
	static const struct {
		const char *name;
		unsigned access;
	} flags[] = {
		{ "none", 0 },
		{ "local", IBV_ACCESS_LOCAL_WRITE },
		{ "remote_read", IBV_ACCESS_REMOTE_READ },
		{ "remote_write.without_local", IBV_ACCESS_REMOTE_WRITE },
		{ "remote_atomic.without_local", IBV_ACCESS_REMOTE_ATOMIC },
		{ "all", IBV_ACCESS_LOCAL_WRITE | IBV_ACCESS_REMOTE_WRITE | IBV_ACCESS_REMOTE_READ | IBV_ACCESS_REMOTE_ATOMIC },
		{ "mw_bind", IBV_ACCESS_LOCAL_WRITE | IBV_ACCESS_MW_BIND },
		{ "zero_based", IBV_ACCESS_LOCAL_WRITE | IBV_ACCESS_ZERO_BASED },
		{ "on_demand", IBV_ACCESS_LOCAL_WRITE | IBV_ACCESS_ON_DEMAND },
		{ "hugetlb", IBV_ACCESS_LOCAL_WRITE | IBV_ACCESS_HUGETLB },
		{ "flush_global", IBV_ACCESS_LOCAL_WRITE | 1u << 8 },
		{ "flush_persistent", IBV_ACCESS_LOCAL_WRITE | 1u << 9 },
		{ "relaxed_ordering", IBV_ACCESS_LOCAL_WRITE | IBV_ACCESS_RELAXED_ORDERING },
		{ "optional_unknown", IBV_ACCESS_LOCAL_WRITE | 1u << 29 },
		{ "bit_10", IBV_ACCESS_LOCAL_WRITE | 1u << 10 },
		{ "bit_19", IBV_ACCESS_LOCAL_WRITE | 1u << 19 },
		{ "bit_30", IBV_ACCESS_LOCAL_WRITE | 1u << 30 },
		{ "bit_31", IBV_ACCESS_LOCAL_WRITE | 1u << 31 },
	};
	char name[64];
	uint8_t *m = pages(4, PROT_READ | PROT_WRITE), *ro = pages(1, PROT_READ), *hole = pages(3, PROT_READ | PROT_WRITE);
	for (size_t i = 0; i < ARRAY_SIZE(flags); i++) {
		snprintf(name, sizeof(name), "access.%s", flags[i].name);
		reg(t, name, m, 8192, flags[i].access);
	}
	reg(t, "unaligned", m + 123, 4567, IBV_ACCESS_LOCAL_WRITE);
	reg(t, "one_byte", m + 1, 1, IBV_ACCESS_LOCAL_WRITE);
	reg(t, "zero_length", m, 0, IBV_ACCESS_LOCAL_WRITE);
	reg(t, "null", NULL, 4096, IBV_ACCESS_LOCAL_WRITE);
	reg(t, "null.zero_length", NULL, 0, IBV_ACCESS_LOCAL_WRITE);
	reg(t, "null.implicit", NULL, SIZE_MAX, IBV_ACCESS_LOCAL_WRITE | IBV_ACCESS_ON_DEMAND);
	reg(t, "wraps", m, SIZE_MAX, IBV_ACCESS_LOCAL_WRITE);
	reg(t, "read_only.local_write", ro, 4096, IBV_ACCESS_LOCAL_WRITE);
	reg(t, "read_only.read", ro, 4096, IBV_ACCESS_REMOTE_READ);
	munmap(hole + 4096, 4096);
	reg(t, "hole", hole, 3 * 4096, IBV_ACCESS_LOCAL_WRITE);
	reg(t, "unmapped", hole + 4096, 4096, IBV_ACCESS_LOCAL_WRITE);

	/* The same pages several times, more regions than one page of handles. */
	struct ibv_mr *mr[100];
	bool ok = true;
	for (size_t i = 0; i < ARRAY_SIZE(mr); i++) {
		mr[i] = ibv_reg_mr(t->a->pd, m, 4096, IBV_ACCESS_LOCAL_WRITE);
		ok = ok && mr[i];
		for (size_t j = 0; ok && j < i; j++)
			ok = mr[j]->lkey != mr[i]->lkey;
	}
	for (size_t i = 0; i < ARRAY_SIZE(mr); i++)
		ok = ok && !ibv_dereg_mr(mr[i]);
	check("hundred", ok);

	struct ibv_mr *one = ibv_reg_mr(t->a->pd, m, 8192, IBV_ACCESS_LOCAL_WRITE);
	need(one, "register memory");
	struct ibv_sge sg = { .addr = (uintptr_t)m, .length = 4096, .lkey = one->lkey };
	/* With ODP the kernel takes any region for one on demand, and follows what is not a pointer. */
	say("advise.prefetch", "%s", !kernel_before(6, 13) ? "left out" :
	    errname(ibv_advise_mr(t->a->pd, IBV_ADVISE_MR_ADVICE_PREFETCH, IBV_ADVISE_MR_FLAG_FLUSH, &sg, 1)));
	want_errno("advise.dereg", ibv_dereg_mr(one), 0);
	one = ibv_reg_mr(t->a->pd, m, 8192, IBV_ACCESS_LOCAL_WRITE | IBV_ACCESS_ON_DEMAND);
	if (one) {
		sg.lkey = one->lkey;
		static const struct {
			const char *name;
			enum ib_uverbs_advise_mr_advice a;
		} advice[] = { { "prefetch", IBV_ADVISE_MR_ADVICE_PREFETCH },
			       { "prefetch_write", IBV_ADVISE_MR_ADVICE_PREFETCH_WRITE },
			       { "prefetch_no_fault", IBV_ADVISE_MR_ADVICE_PREFETCH_NO_FAULT } };
		for (size_t i = 0; i < ARRAY_SIZE(advice); i++) {
			for (uint32_t f = 0; f < 2; f++) {
				snprintf(name, sizeof(name), "odp.advise.%s%s", advice[i].name, f ? ".flush" : "");
				say(name, "%s", errname(ibv_advise_mr(t->a->pd, advice[i].a, f, &sg, 1)));
			}
		}
		say("odp.advise.none", "%s", errname(ibv_advise_mr(t->a->pd, advice[0].a, 0, NULL, 0)));
		say("odp.advise.unknown", "%s",
		    errname(ibv_advise_mr(t->a->pd, (enum ib_uverbs_advise_mr_advice)77, 0, &sg, 1)));
		say("odp.advise.flags", "%s", errname(ibv_advise_mr(t->a->pd, advice[0].a, 0x80, &sg, 1)));
		sg.lkey ^= 0x100;
		say("odp.advise.lkey", "%s",
		    errname(ibv_advise_mr(t->a->pd, advice[0].a, IBV_ADVISE_MR_FLAG_FLUSH, &sg, 1)));
		want_errno("odp.dereg", ibv_dereg_mr(one), 0);
	}
#if HAVE_REG_DMABUF
	int fds[2];
	need(!pipe(fds), "make a pipe");
	static const char *const what[] = { "minus_1", "pipe", "closed" };
	int bad[] = { -1, fds[0], 9999 };
	for (size_t i = 0; i < ARRAY_SIZE(bad); i++) {
		errno = 0;
		struct ibv_mr *d = ibv_reg_dmabuf_mr(t->a->pd, 0, 4096, 0, bad[i], IBV_ACCESS_LOCAL_WRITE);
		snprintf(name, sizeof(name), "dmabuf.%s", what[i]);
		say(name, "%s", d ? "registered" : errname(errno));
		if (d)
			ibv_dereg_mr(d);
	}
	close(fds[0]);
	close(fds[1]);
#endif
#if HAVE_REG_MR_EX
	struct ibv_mr_init_attr x = { .length = 4096, .access = IBV_ACCESS_LOCAL_WRITE, .comp_mask = IBV_REG_MR_MASK_ADDR,
				      .addr = m };
	static const struct {
		const char *name;
		uint64_t mask;
	} masks[] = { { "addr", IBV_REG_MR_MASK_ADDR }, { "addr_iova", IBV_REG_MR_MASK_ADDR | IBV_REG_MR_MASK_IOVA },
		      { "none", 0 }, { "iova", IBV_REG_MR_MASK_IOVA }, { "fd", IBV_REG_MR_MASK_FD },
		      { "fd_offset", IBV_REG_MR_MASK_FD | IBV_REG_MR_MASK_FD_OFFSET | IBV_REG_MR_MASK_IOVA },
		      { "dmah", IBV_REG_MR_MASK_ADDR | IBV_REG_MR_MASK_DMAH }, { "unknown", IBV_REG_MR_MASK_ADDR | 1ull << 40 } };
	for (size_t i = 0; i < ARRAY_SIZE(masks); i++) {
		x.comp_mask = masks[i].mask;
		x.fd = -1;
		x.iova = 0x10000;
		if (x.comp_mask & IBV_REG_MR_MASK_DMAH && !soft_roce() && provider() == PROVIDER_STOCK) {
			say("reg_mr_ex.dmah", "left out: stock mlx5 follows the pointer, which is NULL");
			continue;
		}
		errno = 0;
		struct ibv_mr *e = ibv_reg_mr_ex(t->a->pd, &x);
		snprintf(name, sizeof(name), "reg_mr_ex.%s", masks[i].name);
		say(name, "%s", e ? "registered" : errname(errno));
		if (e)
			want_errno("reg_mr_ex.dereg", ibv_dereg_mr(e), 0);
	}
#endif
	munmap(m, 4 * 4096);
	munmap(ro, 4096);
	munmap(hole, 3 * 4096);
}

/* A region whose addresses on the wire are others than in the process. */
static void iova(struct topo *t)
{
	static const struct {
		const char *name;
		uint64_t iova;
	} c[] = { { "zero", 0 }, { "page", 0x7000 }, { "high", 0x1234567000ull }, { "top", 0xfffffffffffe0000ull } };
	for (size_t i = 0; i < ARRAY_SIZE(c); i++) {
		char name[64];
		struct pair p;
		struct spec spec = { .type = IBV_QPT_RC };
		need(!pair_open(&p, t->a, t->b, &spec), "connect");
		errno = 0;
		struct ibv_mr *mr = ibv_reg_mr_iova(t->b->pd, p.b.buf + 4096, 8192, c[i].iova, ALL_ACCESS);
		snprintf(name, sizeof(name), "iova.%s", c[i].name);
		say(name, "%s", mr ? "0" : errname(errno));
		if (mr) {
			fill(p.a.buf, 5000, 9);
			memset(p.b.buf, 0xee, BUF_SIZE);
			struct ibv_sge sg = sge(&p.a, 0, 5000);
			struct ibv_send_wr w = wr(IBV_WR_RDMA_WRITE, 1, &sg);
			w.wr.rdma.remote_addr = c[i].iova + 100;
			w.wr.rdma.rkey = mr->rkey;
			need(!send_wr(&p.a, &w), "send");
			snprintf(name, sizeof(name), "iova.%s.written", c[i].name);
			struct ibv_wc wc;
			if (wait_one(p.a.scq, &wc))
				say_wc(name, &wc);
			snprintf(name, sizeof(name), "iova.%s.data", c[i].name);
			say(name, "%s", same(p.b.buf + 4096 + 100, 5000, 9) ? "there" : "not there");
			snprintf(name, sizeof(name), "iova.%s.dereg", c[i].name);
			want_errno(name, ibv_dereg_mr(mr), 0);
		}
		pair_close(&p);
	}
}

static void reregistering(struct topo *t)
{
	uint8_t *m = pages(8, PROT_READ | PROT_WRITE);
	struct ibv_pd *other = ibv_alloc_pd(t->a->ctx);
	need(other, "allocate a PD");
	static const struct {
		const char *name;
		int flags;
		bool pd, addr;
		int access;
	} c[] = {
		{ "access", IBV_REREG_MR_CHANGE_ACCESS, false, false, ALL_ACCESS },
		{ "pd", IBV_REREG_MR_CHANGE_PD, true, false, 0 },
		{ "translation", IBV_REREG_MR_CHANGE_TRANSLATION, false, true, 0 },
		{ "pd_access", IBV_REREG_MR_CHANGE_PD | IBV_REREG_MR_CHANGE_ACCESS, true, false, ALL_ACCESS },
		{ "all", IBV_REREG_MR_CHANGE_PD | IBV_REREG_MR_CHANGE_ACCESS | IBV_REREG_MR_CHANGE_TRANSLATION, true, true,
		  ALL_ACCESS },
		{ "none", 0, false, false, 0 },
		{ "unknown", 1 << 10, false, false, 0 },
		{ "pd_null", IBV_REREG_MR_CHANGE_PD, false, false, 0 },
		{ "translation_null", IBV_REREG_MR_CHANGE_TRANSLATION, false, false, 0 },
		{ "access_odd", IBV_REREG_MR_CHANGE_ACCESS, false, false, IBV_ACCESS_REMOTE_WRITE },
	};
	for (size_t i = 0; i < ARRAY_SIZE(c); i++) {
		char name[64];
		if (c[i].flags == IBV_REREG_MR_CHANGE_PD && !c[i].pd && !soft_roce() && provider() == PROVIDER_STOCK) {
			say("rereg.pd_null", "left out: stock mlx5 follows the pointer");
			continue;
		}
		struct ibv_mr *mr = ibv_reg_mr(t->a->pd, m, 4096, IBV_ACCESS_LOCAL_WRITE);
		need(mr, "register memory");
		errno = 0;
		int r = ibv_rereg_mr(mr, c[i].flags, c[i].pd ? other : NULL, c[i].addr ? m + 8192 : NULL,
				     c[i].addr ? 8192 : 0, c[i].access);
		snprintf(name, sizeof(name), "rereg.%s", c[i].name);
		say(name, "%d %s", r, r ? errname(errno) : "0");
		if (!r && c[i].flags) {
			snprintf(name, sizeof(name), "rereg.%s.members", c[i].name);
			check(name, mr->pd == (c[i].pd ? other : t->a->pd) && mr->addr == (c[i].addr ? m + 8192 : m) &&
					    mr->length == (c[i].addr ? 8192 : 4096));
		}
		snprintf(name, sizeof(name), "rereg.%s.dereg", c[i].name);
		want_errno(name, ibv_dereg_mr(mr), 0);
	}
	want_errno("rereg.pd.dealloc", ibv_dealloc_pd(other), 0);
	munmap(m, 8 * 4096);
}

/* Traffic through pages that are not there yet, where the device faults them in. */
static void odp(struct topo *t)
{
	struct ibv_device_attr_ex x;
	if (ibv_query_device_ex(t->a->ctx, NULL, &x) || !(x.odp_caps.general_caps & IBV_ODP_SUPPORT)) {
		say("odp", "not supported");
		return;
	}
	struct pair p;
	struct spec spec = { .type = IBV_QPT_RC };
	need(!pair_open(&p, t->a, t->b, &spec), "connect");
	uint8_t *m = pages(16, PROT_READ | PROT_WRITE);
	struct ibv_mr *mr = ibv_reg_mr(t->b->pd, m, 16 * 4096, ALL_ACCESS | IBV_ACCESS_ON_DEMAND);
	if (check("odp.reg", mr != NULL)) {
		fill(p.a.buf, 20000, 4);
		struct ibv_sge sg = sge(&p.a, 0, 1000);
		struct ibv_send_wr w = wr(IBV_WR_RDMA_WRITE, 1, &sg);
		w.wr.rdma.remote_addr = (uintptr_t)m + 8192;
		w.wr.rdma.rkey = mr->rkey;
		want_errno("odp.write.post", send_wr(&p.a, &w), 0);
		want_wc("odp.write", p.a.scq, 1, IBV_WC_SUCCESS);
		check("odp.write.data", same(m + 8192, 1000, 4));
		/* The kernel (7.2) puts each packet of a longer one at the beginning of its page. */
		sg.length = 20000;
		want_errno("odp.long_write.post", send_wr(&p.a, &w), 0);
		want_wc("odp.long_write", p.a.scq, 1, IBV_WC_SUCCESS);
		say("odp.long_write.data", "%s", same(m + 8192, 20000, 4) ? "there" : "elsewhere");
		need(!madvise(m, 16 * 4096, MADV_DONTNEED), "drop the pages");
		memset(m + 40960, 0x77, 100);
		w.opcode = IBV_WR_RDMA_READ;
		w.wr.rdma.remote_addr = (uintptr_t)m + 40960;
		sg.length = 200;
		want_errno("odp.read.post", send_wr(&p.a, &w), 0);
		want_wc("odp.read", p.a.scq, 1, IBV_WC_SUCCESS);
		check("odp.read.data", all_bytes(p.a.buf, 100, 0x77) && all_bytes(p.a.buf + 100, 100, 0));
		want_errno("odp.dereg", ibv_dereg_mr(mr), 0);
	}
	munmap(m, 16 * 4096);
	pair_close(&p);
}

void walk_mr(struct topo *t)
{
	registering(t);
	reregistering(t);
	iova(t);
	odp(t);
}

/* ------------------------------------------------------------------ memory windows */

/* Writes 32 bytes at `offset` of B's buffer with `rkey`, and says what became of it. */
static enum ibv_wc_status through(struct pair *p, const char *name, uint32_t rkey, size_t offset)
{
	struct ibv_wc wc;
	char full[64];
	memset(p->b.buf + offset, 0xee, 32);
	fill(p->a.buf, 32, 5);
	struct ibv_sge sg = sge(&p->a, 0, 32);
	struct ibv_send_wr w = wr(IBV_WR_RDMA_WRITE, 70, &sg);
	w.wr.rdma.remote_addr = (uintptr_t)(p->b.buf + offset);
	w.wr.rdma.rkey = rkey;
	need(!send_wr(&p->a, &w), "send");
	if (!wait_one(p->a.scq, &wc)) {
		check(name, false);
		return IBV_WC_GENERAL_ERR;
	}
	say_wc(name, &wc);
	snprintf(full, sizeof(full), "%s.data", name);
	say(full, "%s", same(p->b.buf + offset, 32, 5) ? "written" : "not written");
	return wc.status;
}

static void again(struct pair *p)
{
	struct spec *s = &p->spec;
	need(!to_state(p->a.qp, IBV_QPS_RESET) && !to_state(p->b.qp, IBV_QPS_RESET) && !to_init(&p->a, s) &&
		     !to_init(&p->b, s) && !to_rtr(&p->a, &p->b, s) && !to_rtr(&p->b, &p->a, s) && !to_rts(&p->a, s) &&
		     !to_rts(&p->b, s),
	     "connect again");
}

static struct ibv_send_wr bind_wr(struct ibv_mw *mw, uint32_t rkey, struct ibv_mr *mr, void *addr, uint64_t length,
				  unsigned access)
{
	struct ibv_send_wr w = wr(IBV_WR_BIND_MW, 60, NULL);
	w.bind_mw.mw = mw;
	w.bind_mw.rkey = rkey;
	w.bind_mw.bind_info = (struct ibv_mw_bind_info){ .mr = mr, .addr = (uintptr_t)addr, .length = length,
							 .mw_access_flags = access };
	return w;
}

static void next(const char *name, struct ibv_cq *cq)
{
	struct ibv_wc wc;
	if (wait_one(cq, &wc))
		say_wc(name, &wc);
	else
		say(name, "no completion");
}

void walk_mw(struct topo *t)
{
	for (int type = 0; type <= 3; type++) {
		char name[64];
		errno = 0;
		struct ibv_mw *mw = ibv_alloc_mw(t->b->pd, (enum ibv_mw_type)type);
		snprintf(name, sizeof(name), "alloc.%d", type);
		say(name, "%s", mw ? "0" : errname(errno));
		if (mw) {
			snprintf(name, sizeof(name), "alloc.%d.members", type);
			check(name, mw->pd == t->b->pd && mw->context == t->b->ctx && (int)mw->type == type);
			snprintf(name, sizeof(name), "alloc.%d.dealloc", type);
			want_errno(name, ibv_dealloc_mw(mw), 0);
		}
	}
	struct ibv_mw *mw2 = ibv_alloc_mw(t->b->pd, IBV_MW_TYPE_2), *mw1 = ibv_alloc_mw(t->b->pd, IBV_MW_TYPE_1);
	if (!mw1 || !mw2) {
		say("windows", "none");
		return;
	}
	struct pair p;
	struct spec spec = { .type = IBV_QPT_RC, .access = ALL_ACCESS | IBV_ACCESS_MW_BIND };
	need(!pair_open(&p, t->a, t->b, &spec), "connect");

	/* Type 2, bound by a work request of its owner. */
	uint32_t rkey = (mw2->rkey & ~0xffu) | 0x42;
	struct ibv_send_wr w = bind_wr(mw2, rkey, p.b.mr, p.b.buf + 4096, 1024, IBV_ACCESS_REMOTE_WRITE);
	want_errno("type2.bind.post", send_wr(&p.b, &w), 0);
	next("type2.bind", p.b.scq);
	mw2->rkey = rkey; /* the library leaves that to us */
	through(&p, "type2.inside", rkey, 4096 + 100);
	if (through(&p, "type2.beyond", rkey, 4096 + 1000))
		again(&p);
	if (through(&p, "type2.before", rkey, 4096 - 16))
		again(&p);
	if (through(&p, "type2.stale_key", rkey - 1, 4096))
		again(&p);
	/* Invalidated by its owner. */
	w = wr(IBV_WR_LOCAL_INV, 61, NULL);
	w.invalidate_rkey = rkey;
	want_errno("type2.local_inv.post", send_wr(&p.b, &w), 0);
	next("type2.local_inv", p.b.scq);
	if (through(&p, "type2.after_local_inv", rkey, 4096))
		again(&p);
	/* Bound anew, invalidated by the peer. */
	rkey++;
	w = bind_wr(mw2, rkey, p.b.mr, p.b.buf + 4096, 1024, IBV_ACCESS_REMOTE_WRITE | IBV_ACCESS_REMOTE_READ);
	want_errno("type2.rebind.post", send_wr(&p.b, &w), 0);
	next("type2.rebind", p.b.scq);
	mw2->rkey = rkey;
	through(&p, "type2.rebound", rkey, 4096);
	need(!recv_one(&p.b, 62, 0, 64), "post a receive");
	struct ibv_sge sg = sge(&p.a, 0, 16);
	w = wr(IBV_WR_SEND_WITH_INV, 63, &sg);
	w.invalidate_rkey = rkey;
	want_errno("type2.send_inv.post", send_wr(&p.a, &w), 0);
	next("type2.send_inv.sent", p.a.scq);
	struct ibv_wc wc;
	if (check("type2.send_inv.arrived", wait_one(p.b.rcq, &wc))) {
		say_wc("type2.send_inv.received", &wc);
		say("type2.send_inv.names_the_key", "%s",
		    wc.wc_flags & IBV_WC_WITH_INV ? wc.invalidated_rkey == rkey ? "yes" : "another" : "no");
	}
	if (through(&p, "type2.after_send_inv", rkey, 4096))
		again(&p);
	/* Binds that make no sense. */
	static const struct {
		const char *name;
		size_t offset;
		uint64_t length;
		unsigned access;
		bool sges;
	} bad[] = { { "too_long", 0, BUF_SIZE + 1, IBV_ACCESS_REMOTE_WRITE, false },
		    { "zero_based", 0, 1024, IBV_ACCESS_REMOTE_WRITE | IBV_ACCESS_ZERO_BASED, false },
		    { "zero_length", 0, 0, IBV_ACCESS_REMOTE_WRITE, false },
		    { "with_sge", 0, 1024, IBV_ACCESS_REMOTE_WRITE, true } };
	for (size_t i = 0; i < ARRAY_SIZE(bad); i++) {
		char name[64];
		again(&p);
		w = bind_wr(mw2, ++rkey, p.b.mr, p.b.buf + bad[i].offset, bad[i].length, bad[i].access);
		struct ibv_sge one = sge(&p.b, 0, 8);
		if (bad[i].sges)
			w.sg_list = &one, w.num_sge = 1;
		snprintf(name, sizeof(name), "type2.bind.%s.post", bad[i].name);
		int err = send_wr(&p.b, &w);
		say(name, "%s", errname(err));
		snprintf(name, sizeof(name), "type2.bind.%s", bad[i].name);
		struct ibv_wc bound;
		if (!err && wait_one(p.b.scq, &bound)) {
			say_wc(name, &bound);
			if (!bound.status)
				mw2->rkey = rkey;
		}
		/* A window that got bound is let go, by its owner. */
		if (!err && !bound.status) {
			w = wr(IBV_WR_LOCAL_INV, 61, NULL);
			w.invalidate_rkey = rkey;
			need(!send_wr(&p.b, &w), "invalidate");
			snprintf(name, sizeof(name), "type2.bind.%s.let_go", bad[i].name);
			next(name, p.b.scq);
		}
	}
	again(&p);

	/* Type 1, bound by ibv_bind_mw: the key changes by itself. */
	uint32_t before = mw1->rkey;
	struct ibv_mw_bind b = { .wr_id = 64, .send_flags = IBV_SEND_SIGNALED,
				 .bind_info = { .mr = p.b.mr, .addr = (uintptr_t)p.b.buf + 8192, .length = 512,
						.mw_access_flags = IBV_ACCESS_REMOTE_WRITE } };
	want_errno("type1.bind.post", ibv_bind_mw(p.b.qp, mw1, &b), 0);
	next("type1.bind", p.b.scq);
	check("type1.new_key", mw1->rkey != before && (mw1->rkey >> 8) == (before >> 8));
	through(&p, "type1.inside", mw1->rkey, 8192);
	if (through(&p, "type1.old_key", before, 8192))
		again(&p);
	b.bind_info.mw_access_flags = IBV_ACCESS_REMOTE_WRITE | IBV_ACCESS_ZERO_BASED;
	say("type1.zero_based", "%s", errname(ibv_bind_mw(p.b.qp, mw1, &b)));
	b.bind_info.mw_access_flags = IBV_ACCESS_REMOTE_WRITE;
	say("type1.bind_type2", "%s", errname(ibv_bind_mw(p.b.qp, mw2, &b)));
	struct ibv_pd *other = ibv_alloc_pd(t->b->ctx);
	struct ibv_mr *omr = other ? ibv_reg_mr(other, p.b.buf, 4096, ALL_ACCESS | IBV_ACCESS_MW_BIND) : NULL;
	if (omr) {
		b.bind_info.mr = omr;
		b.bind_info.addr = (uintptr_t)p.b.buf;
		say("type1.other_pd", "%s", kernel_before(5, 11) ? "left out" : errname(ibv_bind_mw(p.b.qp, mw1, &b)));
		ibv_dereg_mr(omr);
	}
	if (other)
		ibv_dealloc_pd(other);
	again(&p);
	/* Unbound by a length of zero, then freed while bound. */
	b.bind_info = (struct ibv_mw_bind_info){ .mr = p.b.mr, .addr = (uintptr_t)p.b.buf, .length = 0 };
	say("type1.unbind.post", "%s", errname(ibv_bind_mw(p.b.qp, mw1, &b)));
	struct ibv_wc unbound;
	if (wait_one(p.b.scq, &unbound))
		say_wc("type1.unbind", &unbound);
	again(&p);
	rkey++;
	w = bind_wr(mw2, rkey, p.b.mr, p.b.buf, 1024, IBV_ACCESS_REMOTE_WRITE);
	need(!send_wr(&p.b, &w), "bind");
	next("type2.last_bind", p.b.scq);
	int err = ibv_dereg_mr(p.b.mr);
	say("type2.mr_busy", "%s", errname(err));
	if (!err)
		p.b.mr = NULL;
	want_errno("type2.dealloc_bound", ibv_dealloc_mw(mw2), 0);
	want_errno("type1.dealloc", ibv_dealloc_mw(mw1), 0);
	pair_close(&p);
}
