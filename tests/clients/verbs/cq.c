/* SPDX-License-Identifier: MIT OR Apache-2.0
 *
 * Completion queues: polling in every way, resizing, arming, channels, overflow.
 */
#include "walk.h"

#include <fcntl.h>
#include <pthread.h>

/* Sends `n` empty messages and waits until all have arrived, so that 2n completions lie in the queues. */
static void stuff(struct pair *p, int n, uint64_t first)
{
	for (int i = 0; i < n; i++)
		need(!recv_one(&p->b, first + (uint64_t)i, (size_t)i * 64, 64), "post a receive");
	for (int i = 0; i < n; i++) {
		struct ibv_sge sg = sge(&p->a, 0, (uint32_t)i % 48);
		struct ibv_send_wr w = wr(IBV_WR_SEND_WITH_IMM, 1000 + first + (uint64_t)i, &sg);
		w.imm_data = htobe32((uint32_t)i);
		need(!send_wr(&p->a, &w), "send");
	}
}

static void polls(struct topo *t)
{
	static const int sizes[] = { 1, 3, 16, 64 };
	struct pair p;
	struct spec spec = { .type = IBV_QPT_RC, .send_wr = 64, .recv_wr = 64 };
	need(!pair_open(&p, t->a, t->b, &spec), "connect");
	for (size_t s = 0; s < ARRAY_SIZE(sizes); s++) {
		char name[64];
		struct ibv_wc wc[64];
		bool ok = true;
		int got = 0;
		stuff(&p, 40, 1);
		double end = now() + LIMIT_S;
		while (got < 40 && now() < end) {
			memset(wc, 0x5a, sizeof(wc));
			int r = ibv_poll_cq(p.b.rcq, sizes[s], wc);
			ok = ok && r >= 0 && r <= sizes[s];
			for (int i = 0; i < r; i++, got++)
				ok = ok && wc[i].wr_id == 1 + (uint64_t)got && wc[i].status == IBV_WC_SUCCESS &&
				     wc[i].byte_len == (uint32_t)got % 48 && wc[i].imm_data == htobe32((uint32_t)got);
			/* What was not returned was not written. */
			for (int i = r; i < 64; i++)
				ok = ok && all_bytes((uint8_t *)&wc[i], sizeof(wc[i]), 0x5a);
		}
		snprintf(name, sizeof(name), "poll.%d", sizes[s]);
		want_int(name, got, 40);
		snprintf(name, sizeof(name), "poll.%d.in_order", sizes[s]);
		check(name, ok);
		snprintf(name, sizeof(name), "poll.%d.sent", sizes[s]);
		want_int(name, wait_wc(p.a.scq, wc, 40), 40);
		snprintf(name, sizeof(name), "poll.%d.then_empty", sizes[s]);
		want_int(name, ibv_poll_cq(p.b.rcq, 16, wc), 0);
	}
	pair_close(&p);
}

/* With completions inside: nothing is lost, nothing comes twice, the order holds. */
static void resizes(struct topo *t)
{
	struct pair p;
	struct spec spec = { .type = IBV_QPT_RC, .send_wr = 64, .recv_wr = 64, .cqe = 64 };
	struct ibv_wc wc[128];
	need(!pair_open(&p, t->a, t->b, &spec), "connect");
	say("resize.cqe.before", "%d", p.b.rcq->cqe);
	stuff(&p, 30, 1);
	need(wait_wc(p.a.scq, wc, 30) == 30, "all sent");
	want_errno("resize.grow", ibv_resize_cq(p.b.rcq, 400), 0);
	say("resize.grow.cqe", "%d", p.b.rcq->cqe);
	int got = wait_wc(p.b.rcq, wc, 10);
	say("resize.below", "%s", errname(ibv_resize_cq(p.b.rcq, 3)));
	want_errno("resize.shrink", ibv_resize_cq(p.b.rcq, 40), 0);
	say("resize.shrink.cqe", "%d", p.b.rcq->cqe);
	got += wait_wc(p.b.rcq, wc + got, 30 - got);
	want_int("resize.all_there", got, 30);
	bool ok = true;
	for (int i = 0; i < got; i++)
		ok = ok && wc[i].wr_id == 1 + (uint64_t)i && wc[i].byte_len == (uint32_t)i % 48;
	check("resize.in_order", ok);
	for (int round = 0; round < 20; round++) {
		need(!ibv_resize_cq(p.b.rcq, 64 + round * 16), "resize");
		stuff(&p, 5, 1);
		ok = ok && wait_wc(p.a.scq, wc, 5) == 5 && wait_wc(p.b.rcq, wc, 5) == 5 && wc[4].wr_id == 5;
	}
	check("resize.again_and_again", ok);
	check("resize.empty", stays_empty(p.b.rcq));
	pair_close(&p);
}

static void overflow(struct topo *t)
{
	struct pair p;
	struct spec spec = { .type = IBV_QPT_RC, .cqe = 4 };
	struct ibv_async_event e;
	struct ibv_wc wc[64];
	need(!pair_open(&p, t->a, t->b, &spec), "connect");
	say("overflow.cqe", "%d", p.b.rcq->cqe);
	int n = p.b.rcq->cqe + 4;
	need(n < 60, "a small CQ");
	for (int i = 0; i < n; i++)
		need(!recv_one(&p.b, 1 + (uint64_t)i, 0, 64), "post a receive");
	for (int i = 0; i < n; i++) {
		struct ibv_sge sg = sge(&p.a, 0, 8);
		struct ibv_send_wr w = wr(IBV_WR_SEND, 100, &sg);
		struct ibv_wc one;
		if (send_wr(&p.a, &w) || !wait_one(p.a.scq, &one) || one.status)
			break;
	}
	struct ibv_context *ctx = p.b.dev->ctx;
	bool told = false;
	for (int i = 0; i < 8 && !told && readable(ctx->async_fd, (int)(LIMIT_S * 1000)); i++) {
		if (ibv_get_async_event(ctx, &e))
			break;
		told = e.event_type == IBV_EVENT_CQ_ERR && e.element.cq == p.b.rcq;
		ibv_ack_async_event(&e);
	}
	check("overflow.event", told);
	int got = ibv_poll_cq(p.b.rcq, 64, wc);
	say("overflow.polled", "%d", got);
	bool ok = got >= 0;
	for (int i = 0; i < got; i++)
		ok = ok && wc[i].wr_id == 1 + (uint64_t)i;
	check("overflow.in_order", ok);
	pair_close(&p);
}

static void *poller(void *arg)
{
	struct {
		struct ibv_cq *cq;
		int left;
		uint8_t *seen;
		uint64_t first;
	} *s = arg;
	struct ibv_wc wc[4];
	double end = now() + LIMIT_S;
	int left, before = 0;
	while ((left = __atomic_load_n(&s->left, __ATOMIC_RELAXED)) > 0 && now() < end) {
		/* Slow is no failure, as long as something comes. */
		if (left != before)
			end = now() + LIMIT_S;
		before = left;
		int r = ibv_poll_cq(s->cq, 4, wc);
		/* Who sends wants a processor too: under valgrind there is one for all. */
		if (!r)
			sched_yield();
		for (int i = 0; i < r; i++)
			__atomic_fetch_add(&s->seen[wc[i].wr_id - s->first], 1, __ATOMIC_RELAXED);
		__atomic_fetch_sub(&s->left, r, __ATOMIC_RELAXED);
	}
	return NULL;
}

static void shared(struct topo *t)
{
	struct pair p;
	struct spec spec = { .type = IBV_QPT_RC };
	uint8_t seen[40] = { 0 };
	struct {
		struct ibv_cq *cq;
		int left;
		uint8_t *seen;
		uint64_t first;
	} s;
	pthread_t th[4];
	need(!pair_open(&p, t->a, t->b, &spec), "connect");
	s.cq = p.b.rcq;
	s.left = 40;
	s.seen = seen;
	s.first = 1;
	for (size_t i = 0; i < ARRAY_SIZE(th); i++)
		need(!pthread_create(&th[i], NULL, poller, &s), "start a thread");
	stuff(&p, 40, 1);
	for (size_t i = 0; i < ARRAY_SIZE(th); i++)
		pthread_join(th[i], NULL);
	check("four_pollers.each_once", all_bytes(seen, sizeof(seen), 1));
	pair_close(&p);
}

void walk_cq(struct topo *t)
{
	polls(t);
	resizes(t);
	shared(t);
	overflow(t);
}

/* ------------------------------------------------------------------ ibv_start_poll */

static struct ibv_cq_ex *extended(struct dev *d, uint64_t flags)
{
	struct ibv_cq_init_attr_ex a = { .cqe = 64, .wc_flags = flags };
	return ibv_create_cq_ex(d->ctx, &a);
}

static int start_wait(struct ibv_cq_ex *cq)
{
	struct ibv_poll_cq_attr a = { 0 };
	double end = now() + LIMIT_S;
	int r;
	while ((r = ibv_start_poll(cq, &a)) == ENOENT && now() < end)
		;
	return r;
}

void walk_cqx(struct topo *t)
{
	const uint64_t std = IBV_WC_EX_WITH_BYTE_LEN | IBV_WC_EX_WITH_IMM | IBV_WC_EX_WITH_QP_NUM |
			     IBV_WC_EX_WITH_SRC_QP | IBV_WC_EX_WITH_SLID | IBV_WC_EX_WITH_SL |
			     IBV_WC_EX_WITH_DLID_PATH_BITS;
	errno = 0;
	struct ibv_cq_ex *x = extended(t->b, std);
	say("create", "%s", x ? "0" : errname(errno));
	if (!x)
		return;
	struct ibv_poll_cq_attr none = { 0 };
	want_errno("start.empty", ibv_start_poll(x, &none), ENOENT);

	/* A receiver of our own whose receive CQ is the extended one. */
	struct spec spec = { .type = IBV_QPT_UD };
	struct pair p;
	need(!pair_open(&p, t->a, t->b, &spec), "connect");
	need(!ibv_destroy_qp(p.b.qp), "replace the QP");
	struct ibv_qp_init_attr a = qp_init(IBV_QPT_UD, p.b.scq, ibv_cq_ex_to_cq(x), (struct ibv_qp_cap){ 64, 64, 4, 4, 0 });
	p.b.qp = ibv_create_qp(t->b->pd, &a);
	need(p.b.qp, "create a QP");
	need(!to_init(&p.b, &spec) && !to_rtr(&p.b, &p.a, &spec) && !to_rts(&p.b, &spec), "connect");
	const int n = 12;
	for (int i = 0; i < n; i++)
		need(!recv_one(&p.b, 1 + (uint64_t)i, (size_t)i * 256, 256), "post a receive");
	for (int i = 0; i < n; i++) {
		struct ibv_sge one = sge(&p.a, 0, 8 + (uint32_t)i);
		struct ibv_send_wr s = wr(i & 1 ? IBV_WR_SEND_WITH_IMM : IBV_WR_SEND, 100, &one);
		struct ibv_wc done;
		wr_ud(&s, &p.a, &p.b);
		s.imm_data = i & 1 ? htobe32(0x1000 + (uint32_t)i) : 0;
		need(!send_wr(&p.a, &s) && wait_one(p.a.scq, &done) && !done.status, "send");
	}
	/* In batches of 1, 2, 3, ... : what one end_poll leaves the next start_poll finds. */
	int got = 0, batch = 1;
	while (got < n) {
		char name[64];
		snprintf(name, sizeof(name), "start.%d", got);
		if (!want_errno(name, start_wait(x), 0))
			break;
		for (int k = 0;; k++) {
			int i = got++;
			snprintf(name, sizeof(name), "entry.%d", i);
			say(name, "id %llu status %d opcode %d flags %#x vendor_err %u byte_len %u imm %#x slid %u sl %u dlid %u",
			    (unsigned long long)x->wr_id, x->status, ibv_wc_read_opcode(x), ibv_wc_read_wc_flags(x),
			    ibv_wc_read_vendor_err(x), ibv_wc_read_byte_len(x),
			    i & 1 ? be32toh(ibv_wc_read_imm_data(x)) : 0, ibv_wc_read_slid(x), ibv_wc_read_sl(x),
			    ibv_wc_read_dlid_path_bits(x));
			snprintf(name, sizeof(name), "entry.%d.numbers", i);
			check(name, x->wr_id == 1 + (uint64_t)i && ibv_wc_read_qp_num(x) == p.b.qp->qp_num &&
					    ibv_wc_read_src_qp(x) == p.a.qp->qp_num &&
					    ibv_wc_read_byte_len(x) == 48 + (uint32_t)i);
			if (k + 1 == batch || got == n)
				break;
			double end = now() + LIMIT_S;
			int r;
			while ((r = ibv_next_poll(x)) == ENOENT && now() < end)
				;
			snprintf(name, sizeof(name), "next.%d", got);
			if (!want_errno(name, r, 0)) {
				got = n;
				break;
			}
		}
		ibv_end_poll(x);
		batch++;
	}
	want_errno("start.then_empty", ibv_start_poll(x, &none), ENOENT);

	/* The plain interface on the same CQ, and a resize. */
	struct ibv_sge sg = sge(&p.a, 0, 8);
	struct ibv_send_wr w = wr(IBV_WR_SEND, 100, &sg);
	struct ibv_wc wc;
	wr_ud(&w, &p.a, &p.b);
	need(!recv_one(&p.b, 50, 0, 256), "post a receive");
	need(!send_wr(&p.a, &w) && wait_one(p.a.scq, &wc), "send");
	want_wc("plain_poll", ibv_cq_ex_to_cq(x), 50, IBV_WC_SUCCESS);
	want_errno("resize", ibv_resize_cq(ibv_cq_ex_to_cq(x), 200), 0);
	want_errno("start.after_resize", ibv_start_poll(x, &none), ENOENT);
	/* An error completion. */
	need(!recv_one(&p.b, 60, 0, 256) && !to_state(p.b.qp, IBV_QPS_ERR), "flush a receive");
	if (want_errno("flush.start", start_wait(x), 0)) {
		say("flush.entry", "id %llu status %s", (unsigned long long)x->wr_id, ibv_wc_status_str(x->status));
		ibv_end_poll(x);
	}
	/* next_poll finds no more. rdma-core 44 then consumes one entry too many, and its CQ is of no use any more. */
	need(!to_state(p.b.qp, IBV_QPS_RESET) && !to_init(&p.b, &spec) && !to_rtr(&p.b, &p.a, &spec), "reset the QP");
	for (int i = 0; i < 3; i++) {
		need(!recv_one(&p.b, 70 + (uint64_t)i, 0, 256), "post a receive");
		need(!send_wr(&p.a, &w) && wait_one(p.a.scq, &wc), "send");
		want_errno("last.start", start_wait(x), 0);
		say("last.id", "%llu", (unsigned long long)x->wr_id);
		want_errno("last.next", ibv_next_poll(x), ENOENT);
		ibv_end_poll(x);
		int r = ibv_start_poll(x, &none);
		if (!strict_errno("last.gone", r, ENOENT)) {
			ibv_end_poll(x);
			break;
		}
	}
	need(!ibv_destroy_qp(p.b.qp), "destroy the QP");
	p.b.qp = NULL;
	want_errno("destroy", ibv_destroy_cq(ibv_cq_ex_to_cq(x)), 0);
	pair_close(&p);
}

/* ------------------------------------------------------------------ events */

static void one_message(struct pair *p, bool solicited, bool imm)
{
	struct ibv_sge sg = sge(&p->a, 0, 16);
	struct ibv_send_wr w = wr(imm ? IBV_WR_SEND_WITH_IMM : IBV_WR_SEND, 9, &sg);
	struct ibv_wc wc;
	need(!recv_one(&p->b, 8, 0, 64), "post a receive");
	w.send_flags |= solicited ? IBV_SEND_SOLICITED : 0;
	need(!send_wr(&p->a, &w) && wait_one(p->a.scq, &wc) && !wc.status, "send");
}

static void want_event(const char *name, struct side *s, struct ibv_cq *cq)
{
	struct ibv_cq *which = NULL;
	void *context = NULL;
	char full[64];
	if (!readable(s->channel->fd, (int)(LIMIT_S * 1000))) {
		check(name, false);
		return;
	}
	snprintf(full, sizeof(full), "%s.get", name);
	want_int(full, ibv_get_cq_event(s->channel, &which, &context), 0);
	check(name, which == cq && context == s);
	if (which)
		ibv_ack_cq_events(which, 1);
}

void walk_events(struct topo *t)
{
	struct pair p;
	struct spec spec = { .type = IBV_QPT_RC, .channel = true };
	struct ibv_wc wc[16];
	need(!pair_open(&p, t->a, t->b, &spec), "connect");
	int fd = p.b.channel->fd;
	need(!fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) | O_NONBLOCK), "make the channel non-blocking");
	struct ibv_cq *which;
	void *context;
	want_int("nothing_yet", ibv_get_cq_event(p.b.channel, &which, &context), -1);
	want_errno("nothing_yet.errno", errno, EAGAIN);

	one_message(&p, false, false);
	check("not_armed.no_event", !readable(fd, 50));
	want_wc("not_armed", p.b.rcq, 8, IBV_WC_SUCCESS);

	want_errno("arm", ibv_req_notify_cq(p.b.rcq, 0), 0);
	one_message(&p, false, false);
	want_event("arm.event", &p.b, p.b.rcq);
	one_message(&p, false, false);
	check("arm.once", !readable(fd, 50));
	want_int("arm.completions", wait_wc(p.b.rcq, wc, 2), 2);

	want_errno("solicited", ibv_req_notify_cq(p.b.rcq, 1), 0);
	one_message(&p, false, false);
	check("solicited.not_by_plain", !readable(fd, 50));
	one_message(&p, true, false);
	want_event("solicited.event", &p.b, p.b.rcq);
	want_int("solicited.completions", wait_wc(p.b.rcq, wc, 2), 2);
	want_errno("solicited.imm", ibv_req_notify_cq(p.b.rcq, 1), 0);
	one_message(&p, true, true);
	want_event("solicited.imm.event", &p.b, p.b.rcq);
	want_int("solicited.imm.completions", wait_wc(p.b.rcq, wc, 1), 1);
	/* An error counts as solicited. */
	want_errno("solicited.error", ibv_req_notify_cq(p.b.rcq, 1), 0);
	need(!recv_one(&p.b, 20, 0, 64) && !to_state(p.b.qp, IBV_QPS_ERR), "flush a receive");
	struct ibv_cq *cq = p.b.rcq;
	bool told = readable(fd, 1000);
	say("solicited.error.event", "%s", told ? "yes" : "no");
	if (told) {
		want_int("solicited.error.get", ibv_get_cq_event(p.b.channel, &which, &context), 0);
		check("solicited.error.cq", which == cq);
		ibv_ack_cq_events(which, 1);
	}
	want_wc("solicited.error.flushed", p.b.rcq, 20, IBV_WC_WR_FLUSH_ERR);
	pair_close(&p);

	/* Two CQs on a channel, several events acked at once, armed twice. */
	need(!pair_open(&p, t->a, t->b, &spec), "connect");
	want_errno("two.arm.recv", ibv_req_notify_cq(p.b.rcq, 0), 0);
	want_errno("two.arm.send", ibv_req_notify_cq(p.b.scq, 0), 0);
	want_errno("two.arm.recv_again", ibv_req_notify_cq(p.b.rcq, 1), 0);
	one_message(&p, true, false);
	need(!recv_one(&p.a, 30, 0, 64), "post a receive");
	struct ibv_sge sg = sge(&p.b, 0, 16);
	struct ibv_send_wr w = wr(IBV_WR_SEND, 31, &sg);
	need(!send_wr(&p.b, &w), "send");
	int seen_r = 0, seen_s = 0;
	for (int i = 0; i < 2 && readable(p.b.channel->fd, (int)(LIMIT_S * 1000)); i++) {
		if (ibv_get_cq_event(p.b.channel, &which, &context))
			break;
		seen_r += which == p.b.rcq;
		seen_s += which == p.b.scq;
	}
	say("two.events", "recv %d send %d", seen_r, seen_s);
	check("two.no_more", !readable(p.b.channel->fd, 50));
	ibv_ack_cq_events(p.b.rcq, (unsigned)seen_r);
	ibv_ack_cq_events(p.b.scq, (unsigned)seen_s);
	want_int("two.completions.recv", wait_wc(p.b.rcq, wc, 1), 1);
	want_int("two.completions.send", wait_wc(p.b.scq, wc, 1), 1);
	for (int round = 0; round < 10; round++) {
		need(!ibv_req_notify_cq(p.b.rcq, 0), "arm");
		one_message(&p, false, false);
		need(readable(p.b.channel->fd, (int)(LIMIT_S * 1000)) &&
			     !ibv_get_cq_event(p.b.channel, &which, &context) && which == p.b.rcq &&
			     wait_wc(p.b.rcq, wc, 1) == 1,
		     "an event a round");
	}
	ibv_ack_cq_events(p.b.rcq, 10);
	check("ten_at_once", true);
	/* Destroyed while armed, with completions and an unread event inside. */
	need(!ibv_req_notify_cq(p.b.rcq, 0), "arm");
	one_message(&p, false, false);
	pair_close(&p);
	check("destroyed_armed", true);
}
