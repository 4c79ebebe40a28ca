/* SPDX-License-Identifier: MIT OR Apache-2.0
 *
 * What is not of one process's memory alone: memory of the device, and objects of a context that is opened twice.
 */
#include "walk.h"

#include <unistd.h>

/* ------------------------------------------------------------------ device memory */

#define DM_SIZE 4096
#define DM_ACCESS                                                                                              \
	(IBV_ACCESS_ZERO_BASED | IBV_ACCESS_LOCAL_WRITE | IBV_ACCESS_REMOTE_WRITE | IBV_ACCESS_REMOTE_READ |   \
	 IBV_ACCESS_REMOTE_ATOMIC)

static void dm_alloc(struct topo *t, uint64_t most)
{
	const struct {
		const char *name;
		struct ibv_alloc_dm_attr attr;
	} c[] = {
		{ "zero", { .length = 0 } },
		{ "one", { .length = 1 } },
		{ "aligned", { .length = 64, .log_align_req = 12 } },
		{ "too_aligned", { .length = 64, .log_align_req = 40 } },
		{ "most", { .length = most } },
		{ "more", { .length = most + 1 } },
		{ "comp_mask", { .length = 64, .comp_mask = 1 } },
	};
	for (size_t i = 0; i < ARRAY_SIZE(c); i++) {
		struct ibv_alloc_dm_attr attr = c[i].attr;
		char name[64];
		errno = 0;
		struct ibv_dm *dm = ibv_alloc_dm(t->a->ctx, &attr);
		snprintf(name, sizeof(name), "alloc.%s", c[i].name);
		say(name, "%s", dm ? "allocated" : errname(errno));
		if (!dm)
			continue;
		bool named = dm->context == t->a->ctx;
#if HAVE_IMPORT_DM
		named &= !!(dm->comp_mask & IBV_DM_MASK_HANDLE);
#endif
		check("alloc.context", named);
		snprintf(name, sizeof(name), "alloc.%s.free", c[i].name);
		want_errno(name, ibv_free_dm(dm), 0);
	}
}

/* What was stored is in the device, before anything that comes to it another way: a load waits for it. */
static void settle(struct ibv_dm *dm)
{
	uint32_t word;
	need(!ibv_memcpy_from_dm(&word, dm, 0, 4), "read from device memory");
}

static void dm_copy(struct ibv_dm *dm)
{
	uint8_t out[DM_SIZE + 8], in[DM_SIZE + 8];
	fill(out, sizeof(out), 3);
	want_errno("copy.to", ibv_memcpy_to_dm(dm, 0, out, DM_SIZE), 0);
	memset(in, 0, sizeof(in));
	want_errno("copy.from", ibv_memcpy_from_dm(in, dm, 0, DM_SIZE), 0);
	check("copy.data", !memcmp(in, out, DM_SIZE) && all_bytes(in + DM_SIZE, 8, 0));
	/* From and to an odd address of the process. */
	want_errno("copy.odd.to", ibv_memcpy_to_dm(dm, 16, out + 1, 64), 0);
	want_errno("copy.odd.from", ibv_memcpy_from_dm(in + 3, dm, 16, 64), 0);
	check("copy.odd.data", !memcmp(in + 3, out + 1, 64));
	want_errno("copy.nothing", ibv_memcpy_to_dm(dm, DM_SIZE, out, 0), 0);
	say("copy.beyond", "%s", errname(ibv_memcpy_to_dm(dm, DM_SIZE - 4, out, 8)));
	say("copy.from_beyond", "%s", errname(ibv_memcpy_from_dm(in, dm, DM_SIZE, 4)));
	say("copy.odd_offset", "%s", errname(ibv_memcpy_to_dm(dm, 2, out, 4)));
	say("copy.odd_length", "%s", errname(ibv_memcpy_to_dm(dm, 0, out, 3)));
}

/* The device reads and writes its own memory, for its own queue pair and for a peer's. */
static void dm_traffic(struct topo *t, struct ibv_dm *dm)
{
	struct pair p;
	struct spec spec = { .type = IBV_QPT_RC };
	uint8_t bytes[256];
	struct ibv_mr *mr = ibv_reg_dm_mr(t->b->pd, dm, 512, 1024, DM_ACCESS);
	if (!check("mr", mr != NULL))
		return;
	check("mr.members", mr->length == 1024 && !mr->addr && mr->pd == t->b->pd && mr->context == t->b->ctx);
	need(!pair_open(&p, t->a, t->b, &spec), "connect");
	struct ibv_sge sg = sge(&p.a, 0, 256);
	struct ibv_send_wr w = wr(IBV_WR_RDMA_WRITE, 1, &sg);
	fill(p.a.buf, 256, 9);
	w.wr.rdma.remote_addr = 128;
	w.wr.rdma.rkey = mr->rkey;
	want_errno("write.post", send_wr(&p.a, &w), 0);
	want_wc("write", p.a.scq, 1, IBV_WC_SUCCESS);
	want_errno("write.copy", ibv_memcpy_from_dm(bytes, dm, 512 + 128, 256), 0);
	check("write.data", same(bytes, 256, 9));
	fill(bytes, 256, 10);
	want_errno("read.copy", ibv_memcpy_to_dm(dm, 512, bytes, 256), 0);
	settle(dm);
	w.opcode = IBV_WR_RDMA_READ;
	w.wr.rdma.remote_addr = 0;
	want_errno("read.post", send_wr(&p.a, &w), 0);
	want_wc("read", p.a.scq, 1, IBV_WC_SUCCESS);
	check("read.data", same(p.a.buf, 256, 10));
	uint64_t word = 40;
	want_errno("fetch_add.copy", ibv_memcpy_to_dm(dm, 512, &word, 8), 0);
	settle(dm);
	sg.length = 8;
	w.opcode = IBV_WR_ATOMIC_FETCH_AND_ADD;
	w.wr.atomic.remote_addr = 0;
	w.wr.atomic.rkey = mr->rkey;
	w.wr.atomic.compare_add = 2;
	want_errno("fetch_add.post", send_wr(&p.a, &w), 0);
	want_wc("fetch_add", p.a.scq, 1, IBV_WC_SUCCESS);
	want_errno("fetch_add.after", ibv_memcpy_from_dm(&word, dm, 512, 8), 0);
	check("fetch_add.data", word == 42 && *(uint64_t *)p.a.buf == 40);
	/* A send out of it, and a receive into it. */
	struct ibv_sge own = { .addr = 0, .length = 64, .lkey = mr->lkey };
	struct ibv_recv_wr r = { .wr_id = 2, .sg_list = &own, .num_sge = 1 }, *bad;
	fill(p.a.buf, 64, 11);
	sg.length = 64;
	w = wr(IBV_WR_SEND, 3, &sg);
	need(!ibv_post_recv(p.b.qp, &r, &bad) && !send_wr(&p.a, &w), "send into device memory");
	want_wc("receive.sent", p.a.scq, 3, IBV_WC_SUCCESS);
	want_wc("receive", p.b.rcq, 2, IBV_WC_SUCCESS);
	want_errno("receive.copy", ibv_memcpy_from_dm(bytes, dm, 512, 64), 0);
	check("receive.data", same(bytes, 64, 11));
	need(!recv_one(&p.a, 4, 4096, 64), "post a receive");
	w = wr(IBV_WR_SEND, 5, &own);
	need(!send_wr(&p.b, &w), "send out of device memory");
	want_wc("send.sent", p.b.scq, 5, IBV_WC_SUCCESS);
	want_wc("send.received", p.a.rcq, 4, IBV_WC_SUCCESS);
	check("send.data", same(p.a.buf + 4096, 64, 11));
	/* Beyond its end. */
	sg.length = 64;
	w = wr(IBV_WR_RDMA_WRITE, 6, &sg);
	w.wr.rdma.remote_addr = 1000;
	w.wr.rdma.rkey = mr->rkey;
	want_errno("beyond.post", send_wr(&p.a, &w), 0);
	want_wc("beyond", p.a.scq, 6, IBV_WC_REM_ACCESS_ERR);
	pair_close(&p);
	say("busy", "%s", errname(ibv_free_dm(dm)));
	want_errno("mr.dereg", ibv_dereg_mr(mr), 0);
}

void walk_dm(struct topo *t)
{
	struct ibv_device_attr_ex x;
	need(!ibv_query_device_ex(t->b->ctx, NULL, &x), "query the device");
	say("most", "%llu", (unsigned long long)x.max_dm_size);
	dm_alloc(t, x.max_dm_size);
	struct ibv_alloc_dm_attr attr = { .length = DM_SIZE };
	errno = 0;
	struct ibv_dm *dm = ibv_alloc_dm(t->b->ctx, &attr);
	say("alloc", "%s", dm ? "allocated" : errname(errno));
	if (!dm)
		return;
	dm_copy(dm);
	static const struct {
		const char *name;
		unsigned access;
		uint64_t offset;
		size_t length;
	} bad[] = {
		{ "not_zero_based", IBV_ACCESS_LOCAL_WRITE, 0, 64 },
		{ "mw_bind", DM_ACCESS | IBV_ACCESS_MW_BIND, 0, 64 },
		{ "on_demand", DM_ACCESS | IBV_ACCESS_ON_DEMAND, 0, 64 },
		{ "beyond", DM_ACCESS, DM_SIZE, 64 },
		{ "too_long", DM_ACCESS, 0, DM_SIZE + 64 },
		{ "wraps", DM_ACCESS, 64, SIZE_MAX },
		{ "remote_write_only", IBV_ACCESS_ZERO_BASED | IBV_ACCESS_REMOTE_WRITE, 0, 64 },
	};
	for (size_t i = 0; i < ARRAY_SIZE(bad); i++) {
		char name[64];
		errno = 0;
		struct ibv_mr *mr = ibv_reg_dm_mr(t->b->pd, dm, bad[i].offset, bad[i].length, bad[i].access);
		snprintf(name, sizeof(name), "mr.%s", bad[i].name);
		say(name, "%s", mr ? "registered" : errname(errno));
		if (mr)
			need(!ibv_dereg_mr(mr), "deregister");
	}
	dm_traffic(t, dm);
	want_errno("free", ibv_free_dm(dm), 0);
}

/* ------------------------------------------------------------------ a context that is opened twice */

/*
 * One context through two libraries' eyes: the second imports PD and regions, makes queues of its own, and talks to a queue
 * pair of the first. (Two processes would hand the file over by a socket; to the kernel and the provider it is the same.)
 */
void walk_import(struct topo *t)
{
	int fd = dup(t->a->ctx->cmd_fd);
	errno = 0;
	struct ibv_context *ctx = ibv_import_device(fd);
	say("device", "%s", ctx ? "imported" : errname(errno));
	if (!ctx) {
		close(fd);
		return;
	}
	struct dev d = *t->a;
	d.ctx = ctx;
	check("device.async_fd", ctx->async_fd >= 0 && ctx->async_fd != t->a->ctx->async_fd);
	say("device.vectors", "%d", ctx->num_comp_vectors - t->a->ctx->num_comp_vectors);
	errno = 0;
	d.pd = ibv_import_pd(ctx, t->a->pd->handle);
	if (!check("pd", d.pd != NULL))
		return;
	check("pd.members", d.pd->context == ctx && d.pd->handle == t->a->pd->handle);
	errno = 0;
	struct ibv_pd *none = ibv_import_pd(ctx, 0xfffffff0);
	say("pd.none", "%s", none ? "imported" : errname(errno));

	/* Traffic between the two, both ways. */
	struct pair p;
	struct spec spec = { .type = IBV_QPT_RC, .channel = true };
	want_errno("connect", pair_open(&p, t->a, &d, &spec), 0);
	for (int i = 0; i < 2; i++) {
		struct side *from = i ? &p.b : &p.a, *to = i ? &p.a : &p.b;
		struct ibv_cq *cq;
		void *context;
		char name[64];
		fill(from->buf, 1000, 20 + (unsigned)i);
		need(!recv_one(to, 1, 8192, 1000) && !ibv_req_notify_cq(to->rcq, 0), "post a receive");
		struct ibv_sge sg = sge(from, 0, 1000);
		struct ibv_send_wr w = wr(IBV_WR_SEND, 2, &sg);
		need(!send_wr(from, &w), "send");
		snprintf(name, sizeof(name), "traffic.%d.sent", i);
		want_wc(name, from->scq, 2, IBV_WC_SUCCESS);
		snprintf(name, sizeof(name), "traffic.%d.event", i);
		check(name, readable(to->channel->fd, (int)(LIMIT_S * 1000)) &&
				    !ibv_get_cq_event(to->channel, &cq, &context) && cq == to->rcq);
		ibv_ack_cq_events(to->rcq, 1);
		snprintf(name, sizeof(name), "traffic.%d.received", i);
		want_wc(name, to->rcq, 1, IBV_WC_SUCCESS);
		snprintf(name, sizeof(name), "traffic.%d.data", i);
		check(name, same(to->buf + 8192, 1000, 20 + (unsigned)i));
	}
	/* A region of the one, in work requests of the other. */
	errno = 0;
	struct ibv_mr *mr = ibv_import_mr(d.pd, p.a.mr->handle);
	say("mr", "%s", mr ? "imported" : errname(errno));
	if (mr) {
		check("mr.members", mr->lkey == p.a.mr->lkey && mr->rkey == p.a.mr->rkey && !mr->addr &&
					    mr->length == BUF_SIZE && mr->pd == d.pd && mr->context == ctx);
		fill(p.a.buf, 64, 30);
		struct ibv_sge sg = { .addr = (uintptr_t)p.a.buf, .length = 64, .lkey = mr->lkey };
		struct ibv_send_wr w = wr(IBV_WR_RDMA_WRITE, 3, &sg);
		wr_rdma(&w, &p.a, 4096);
		need(!send_wr(&p.b, &w), "write");
		want_wc("mr.write", p.b.scq, 3, IBV_WC_SUCCESS);
		check("mr.write.data", same(p.a.buf + 4096, 64, 30));
		ibv_unimport_mr(mr);
	}
	errno = 0;
	mr = ibv_import_mr(d.pd, 0xfffffff0);
	say("mr.none", "%s", mr ? "imported" : errname(errno));
	/* Events of a queue pair go to the library that made it. */
	need(!to_state(p.a.qp, IBV_QPS_ERR) && !to_state(p.b.qp, IBV_QPS_ERR), "modify to ERR");
	pair_close(&p);
#if HAVE_IMPORT_DM
	struct ibv_alloc_dm_attr attr = { .length = 256 };
	struct ibv_dm *dm = ibv_alloc_dm(t->a->ctx, &attr);
	if (dm) {
		uint32_t word = 0x12345678, found = 0;
		errno = 0;
		struct ibv_dm *same_dm = ibv_import_dm(ctx, dm->handle);
		say("dm", "%s", same_dm ? "imported" : errname(errno));
		need(!ibv_memcpy_to_dm(dm, 64, &word, 4), "copy to device memory");
		if (same_dm) {
			want_errno("dm.from", ibv_memcpy_from_dm(&found, same_dm, 64, 4), 0);
			check("dm.data", found == word && same_dm->handle == dm->handle);
			say("dm.beyond", "%s", errname(ibv_memcpy_from_dm(&found, same_dm, 256, 4)));
			ibv_unimport_dm(same_dm);
		}
		want_errno("dm.free", ibv_free_dm(dm), 0);
		errno = 0;
		same_dm = ibv_import_dm(ctx, 0xfffffff0);
		say("dm.none", "%s", same_dm ? "imported" : errname(errno));
	}
#endif
	ibv_unimport_pd(d.pd);
	want_int("device.close", ibv_close_device(ctx), 0);
	/* The first is as good as before. */
	struct ibv_device_attr a;
	want_errno("after", ibv_query_device(t->a->ctx, &a), 0);
	struct ibv_cq *cq = ibv_create_cq(t->a->ctx, 4, NULL, NULL, 0);
	check("after.cq", cq && !ibv_destroy_cq(cq));
}
