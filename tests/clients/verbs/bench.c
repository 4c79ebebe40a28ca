/* SPDX-License-Identifier: MIT OR Apache-2.0
 *
 * verbs-bench: message rates, latencies, and what the calls that stay in user space cost. One number a line:
 *
 *     NAME VALUE UNIT
 *
 * UNIT is msg/s (more is better), us or ns (less is better). `count` makes a given number of calls of one kind, to be counted
 * from outside.
 */
#include "common.h"

#include <sched.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

static struct options o;
static double seconds = 0.3; /* that each number is measured for, at least */

static void report(const char *name, double value, const char *unit)
{
	printf("%s %.3f %s\n", name, value, unit);
}

/* ------------------------------------------------------------------ message rate */

#define DEPTH 64

struct rate {
	const char *name;
	enum ibv_wr_opcode op;
	int batch;
	bool wire, builders, inl;
};

static int post_batch(struct pair *p, const struct rate *r, uint64_t id)
{
	struct ibv_sge sg = sge(&p->a, 0, 8);
	uint64_t remote = (uintptr_t)(p->b.buf + 4096);
	if (r->builders) {
		ibv_wr_start(p->a.qpx);
		for (int i = 0; i < r->batch; i++) {
			p->a.qpx->wr_id = id + (uint64_t)i;
			p->a.qpx->wr_flags = i + 1 == r->batch ? IBV_SEND_SIGNALED : 0;
			if (r->op == IBV_WR_SEND)
				ibv_wr_send(p->a.qpx);
			else
				ibv_wr_rdma_write(p->a.qpx, p->b.mr->rkey, remote);
			ibv_wr_set_sge(p->a.qpx, sg.lkey, sg.addr, sg.length);
		}
		return ibv_wr_complete(p->a.qpx);
	}
	struct ibv_send_wr w[16], *bad;
	for (int i = 0; i < r->batch; i++) {
		w[i] = wr(r->op, id + (uint64_t)i, &sg);
		w[i].next = i + 1 < r->batch ? &w[i + 1] : NULL;
		w[i].send_flags = (i + 1 == r->batch ? IBV_SEND_SIGNALED : 0) | (r->inl ? IBV_SEND_INLINE : 0);
		w[i].wr.rdma.remote_addr = remote;
		w[i].wr.rdma.rkey = p->b.mr->rkey;
	}
	return ibv_post_send(p->a.qp, w, &bad);
}

static bool measure_rate(struct dev *da, struct dev *db, const struct rate *r)
{
	struct pair p;
	struct spec spec = { .type = IBV_QPT_RC, .send_wr = 2 * DEPTH, .recv_wr = 2 * DEPTH, .cqe = 4 * DEPTH, .inl = 16,
			     .ex = r->builders, .send_ops = IBV_QP_EX_WITH_SEND | IBV_QP_EX_WITH_RDMA_WRITE };
	if (pair_open(&p, da, db, &spec))
		return false; /* no extended QP in this libibverbs */
	struct ibv_recv_wr rr[16], *rbad;
	struct ibv_sge rsg = sge(&p.b, 0, 64);
	for (int i = 0; i < 16; i++)
		rr[i] = (struct ibv_recv_wr){ .sg_list = &rsg, .num_sge = 1 };
	bool receives = r->op == IBV_WR_SEND;
	for (int i = 0; receives && i < DEPTH; i++)
		need(!recv_one(&p.b, 0, 0, 64), "post a receive");
	int batch = r->batch, in_flight = 0, received = 0;
	long done = 0, posted = 0;
	struct ibv_wc wc[16];
	double start = now(), end = start + seconds, t = start, dead = start + 60;
	/* The clock is read once a round of the loop below, in both providers alike. */
	while (in_flight || t < end) {
		if (t < end && in_flight + batch <= DEPTH && (!receives || posted - received + batch <= DEPTH)) {
			need(!(errno = post_batch(&p, r, (uint64_t)posted)), "post");
			in_flight += batch;
			posted += batch;
		}
		int n = ibv_poll_cq(p.a.scq, 16, wc);
		for (int i = 0; i < n; i++) {
			need(!wc[i].status, ibv_wc_status_str(wc[i].status));
			in_flight -= batch;
			done += batch;
		}
		if (receives) {
			int m = ibv_poll_cq(p.b.rcq, 16, wc);
			for (int i = 0; i < m; i++) {
				need(!wc[i].status, ibv_wc_status_str(wc[i].status));
				rr[i].next = i + 1 < m ? &rr[i + 1] : NULL;
			}
			if (m > 0)
				need(!ibv_post_recv(p.b.qp, rr, &rbad), "post receives");
			received += m;
			n += m;
		}
		if (!n)
			sched_yield();
		t = now();
		need(t < dead, "completions");
	}
	report(r->name, (double)done / (t - start), "msg/s");
	/* The last receives of a send may still be on their way. */
	pair_close(&p);
	return true;
}

/* ------------------------------------------------------------------ latency */

static void expect(struct ibv_cq *cq)
{
	struct ibv_wc wc;
	double dead = 0;
	for (unsigned i = 0;; i++) {
		int n = ibv_poll_cq(cq, 1, &wc);
		if (n) {
			need(n == 1 && !wc.status, "a good completion");
			return;
		}
		sched_yield(); /* two processors, and the kernel's own work to be done on them */
		if (i % 65536 == 65535) {
			dead = dead ? dead : now() + 60;
			need(now() < dead, "a completion");
		}
	}
}

static void ping(struct side *s)
{
	struct ibv_sge sg = sge(s, 0, 8);
	struct ibv_send_wr w = wr(IBV_WR_SEND, 1, &sg);
	need(!send_wr(s, &w), "send");
}

static int by_value(const void *a, const void *b)
{
	double x = *(const double *)a, y = *(const double *)b;
	return x < y ? -1 : x > y;
}

#define SAMPLES 20000

static void report_latency(const char *name, double *us, int n)
{
	char full[64];
	qsort(us, (size_t)n, sizeof(*us), by_value);
	snprintf(full, sizeof(full), "%s.median", name);
	report(full, us[n / 2], "us");
	snprintf(full, sizeof(full), "%s.p99", name);
	report(full, us[n - 1 - n / 100], "us");
}

static void latency_one_process(struct dev *da, struct dev *db, const char *name)
{
	static double us[SAMPLES];
	struct pair p;
	struct spec spec = { .type = IBV_QPT_RC };
	int n = 0;
	need(!pair_open(&p, da, db, &spec), "connect");
	double end = now() + seconds;
	need(!recv_one(&p.a, 0, 0, 64) && !recv_one(&p.b, 0, 64, 64), "post receives");
	while (n < SAMPLES && (n < 20 || now() < end)) {
		double start = now();
		ping(&p.a);
		expect(p.b.rcq);
		need(!recv_one(&p.b, 0, 64, 64), "post a receive");
		ping(&p.b);
		expect(p.a.rcq);
		us[n++] = (now() - start) * 1e6 / 2;
		need(!recv_one(&p.a, 0, 0, 64), "post a receive");
		expect(p.a.scq);
		expect(p.b.scq);
	}
	report_latency(name, us, n);
	pair_close(&p);
}

/* Two processes: what they need of each other goes through two pipes. */
struct hello {
	uint32_t qpn;
	uint16_t lid;
	union ibv_gid gid;
};

static void one_end(const char *device, int in, int out, bool first, const char *name)
{
	static double us[SAMPLES];
	struct dev d, other_dev;
	struct side s;
	struct spec spec = { .type = IBV_QPT_RC };
	struct hello mine, theirs;
	dev_open(&d, device, o.gid_index);
	need(!side_open(&s, &d, &spec), "create a QP");
	mine = (struct hello){ s.qp->qp_num, d.port.lid, d.gid };
	need(write(out, &mine, sizeof(mine)) == sizeof(mine) && read(in, &theirs, sizeof(theirs)) == sizeof(theirs), "say hello");
	other_dev = (struct dev){ .gid = theirs.gid, .port.lid = theirs.lid };
	struct ibv_qp other_qp = { .qp_num = theirs.qpn };
	struct side other = { .dev = &other_dev, .qp = &other_qp };
	need(!to_init(&s, &spec) && !to_rtr(&s, &other, &spec) && !to_rts(&s, &spec), "connect");
	need(!recv_one(&s, 0, 0, 64), "post a receive");
	char ready = 1;
	need(write(out, &ready, 1) == 1 && read(in, &ready, 1) == 1, "be ready");
	int n = 0;
	double end = now() + seconds;
	/* The first says in its message when it was the last one. */
	for (bool more = true; more;) {
		if (first) {
			more = n < SAMPLES - 1 && (n < 20 || now() < end);
			s.buf[128] = (uint8_t)more;
			double start = now();
			struct ibv_sge sg = sge(&s, 128, 8);
			struct ibv_send_wr w = wr(IBV_WR_SEND, 1, &sg);
			need(!send_wr(&s, &w), "send");
			expect(s.rcq);
			us[n++] = (now() - start) * 1e6 / 2;
			need(!recv_one(&s, 0, 0, 64), "post a receive");
			expect(s.scq);
		} else {
			expect(s.rcq);
			more = s.buf[0];
			need(!recv_one(&s, 0, 0, 64), "post a receive");
			ping(&s);
			expect(s.scq);
		}
	}
	if (first)
		report_latency(name, us, n);
	/* Neither goes before the other has got its last acknowledgement. */
	need(write(out, &ready, 1) == 1 && read(in, &ready, 1) == 1, "be done");
	side_close(&s);
	dev_close(&d);
}

static void latency_two_processes(const char *name)
{
	int there[2], back[2];
	need(!pipe(there) && !pipe(back), "make pipes");
	fflush(stdout);
	pid_t pid = fork();
	need(pid >= 0, "fork");
	if (!pid) {
		one_end(o.device[1], there[0], back[1], false, name);
		_exit(0);
	}
	one_end(o.device[0], back[0], there[1], true, name);
	int st;
	need(waitpid(pid, &st, 0) == pid && !st, "the other process ends well");
	close(there[0]), close(there[1]), close(back[0]), close(back[1]);
}

/* ------------------------------------------------------------------ what stays in user space */

/* Each costs far more to prepare than it is measured for. */
#define ROUNDS 40

static void user_space(struct dev *d)
{
	struct spec spec = { .type = IBV_QPT_RC, .recv_wr = 1000, .cqe = 1000, .srq = false };
	struct side s;
	double spent = 0, t;
	long n = 0;
	need(!side_open(&s, d, &spec), "create a QP");
	/* Receives into a QP that is reset whenever it is full. */
	struct ibv_sge sg = sge(&s, 0, 64);
	struct ibv_recv_wr r[16], *bad;
	for (int i = 0; i < 16; i++)
		r[i] = (struct ibv_recv_wr){ .wr_id = 1, .sg_list = &sg, .num_sge = 1, .next = i < 15 ? &r[i + 1] : NULL };
	struct ibv_recv_wr one = r[15];
	for (int batch = 1; batch <= 16; batch += 15) {
		char name[64];
		spent = 0;
		n = 0;
		for (int round = 0; round < ROUNDS && spent < seconds / 3; round++) {
			need(!to_state(s.qp, IBV_QPS_RESET) && !to_init(&s, &spec), "reset the QP");
			t = now();
			for (int i = 0; i < 960 / batch; i++)
				if (ibv_post_recv(s.qp, batch == 1 ? &one : r, &bad))
					need(false, "post receives");
			spent += now() - t;
			n += 960 / batch * batch;
		}
		snprintf(name, sizeof(name), "post_recv.batch%d", batch);
		report(name, spent * 1e9 / (double)n, "ns");
	}
	/* Polling what is empty, then what is full of flushed receives. */
	struct ibv_wc wc[16];
	spent = 0;
	n = 0;
	need(!to_state(s.qp, IBV_QPS_RESET), "reset the QP");
	while (ibv_poll_cq(s.rcq, 16, wc) > 0)
		;
	for (int round = 0; round < ROUNDS && spent < seconds / 3; round++) {
		t = now();
		for (int i = 0; i < 10000; i++)
			if (ibv_poll_cq(s.rcq, 16, wc))
				need(false, "an empty CQ");
		spent += now() - t;
		n += 10000;
	}
	report("poll_cq.empty", spent * 1e9 / (double)n, "ns");
	for (int batch = 1; batch <= 16; batch += 15) {
		char name[64];
		spent = 0;
		n = 0;
		for (int round = 0; round < ROUNDS && spent < seconds / 3; round++) {
			need(!to_state(s.qp, IBV_QPS_RESET) && !to_init(&s, &spec), "reset the QP");
			for (int i = 0; i < 60; i++)
				need(!ibv_post_recv(s.qp, r, &bad), "post receives");
			need(!to_state(s.qp, IBV_QPS_ERR), "flush");
			/* All 960 are there once the last is; only then does the clock run. */
			double dead = now() + 60;
			struct ibv_wc first[1];
			int got = 0;
			while (!got && now() < dead)
				got = ibv_poll_cq(s.rcq, 1, first);
			usleep(20000);
			t = now();
			int k;
			while ((k = ibv_poll_cq(s.rcq, batch, wc)) > 0)
				got += k;
			spent += now() - t;
			n += got - 1;
			while (got < 960 && now() < dead)
				if (ibv_poll_cq(s.rcq, 1, wc) > 0)
					got++;
		}
		snprintf(name, sizeof(name), "poll_cq.batch%d", batch);
		report(name, spent * 1e9 / (double)n, "ns");
	}
	side_close(&s);
}

/* ------------------------------------------------------------------ to be counted from outside */

struct call {
	enum { POST_SEND, POST_INLINE, POST_BUILDER, POST_RECV, POLL_CQ, REQ_NOTIFY } kind;
	struct pair *p;
	struct ibv_send_wr *send;
	struct ibv_recv_wr *recv;
	struct ibv_sge *sg;
	struct ibv_wc *wc;
	int n;
};

/* What a tool like callgrind is told to count, and nothing besides. */
__attribute__((noinline)) int measured(const struct call *c)
{
	struct ibv_send_wr *sbad;
	struct ibv_recv_wr *rbad;
	struct ibv_qp_ex *x;
	switch (c->kind) {
	case POST_SEND:
	case POST_INLINE:
		return ibv_post_send(c->p->a.qp, c->send, &sbad);
	case POST_BUILDER:
		x = c->p->a.qpx;
		ibv_wr_start(x);
		for (int i = 0; i < c->n; i++) {
			x->wr_id = 1;
			x->wr_flags = c->send[i].send_flags;
			ibv_wr_rdma_write(x, c->send[i].wr.rdma.rkey, c->send[i].wr.rdma.remote_addr);
			ibv_wr_set_sge(x, c->sg->lkey, c->sg->addr, c->sg->length);
		}
		return ibv_wr_complete(x);
	case POST_RECV:
		return ibv_post_recv(c->p->b.qp, c->recv, &rbad);
	case POLL_CQ:
		return ibv_poll_cq(c->p->a.scq, c->n, c->wc);
	case REQ_NOTIFY:
		return ibv_req_notify_cq(c->p->a.scq, 0);
	}
	return -1;
}

/* `times` calls of one kind, the same for every provider: no measured call has to wait, or finds anything else than the last. */
static void counted(struct dev *d, const char *what, int times)
{
	static const struct {
		const char *name;
		int kind, n;
		bool full;
	} all[] = {
		{ "post_send", POST_SEND, 1, false },	   { "post_send_list", POST_SEND, 16, false },
		{ "post_inline", POST_INLINE, 1, false },  { "post_builder", POST_BUILDER, 1, false },
		{ "post_builder_list", POST_BUILDER, 16, false },
		{ "post_recv", POST_RECV, 1, false },	   { "post_recv_list", POST_RECV, 16, false },
		{ "poll_empty", POLL_CQ, 16, false },	   { "poll_one", POLL_CQ, 1, true },
		{ "poll_list", POLL_CQ, 16, true },	   { "req_notify", REQ_NOTIFY, 1, false },
	};
	struct pair p;
	struct ibv_sge sg, rsg;
	struct ibv_send_wr w[16];
	struct ibv_recv_wr r[16];
	struct ibv_wc wc[16];
	size_t k = 0;
	while (k < ARRAY_SIZE(all) && strcmp(all[k].name, what))
		k++;
	need(k < ARRAY_SIZE(all), "no such call");
	bool builder = all[k].kind == POST_BUILDER, full = all[k].full;
	int n = all[k].n, sends = full ? 16 : n;
	struct spec spec = { .type = IBV_QPT_RC, .cqe = 64, .send_wr = 32, .recv_wr = 32, .inl = 64, .ex = builder,
			     .send_ops = IBV_QP_EX_WITH_RDMA_WRITE };
	need(!pair_open(&p, d, d, &spec), "connect");
	sg = sge(&p.a, 0, 8);
	rsg = sge(&p.b, 0, 64);
	for (int i = 0; i < 16; i++) {
		w[i] = wr(IBV_WR_RDMA_WRITE, (uint64_t)i, &sg);
		w[i].next = i + 1 < sends ? &w[i + 1] : NULL;
		w[i].send_flags = (full || i + 1 == sends ? IBV_SEND_SIGNALED : 0) | (all[k].kind == POST_INLINE ? IBV_SEND_INLINE : 0);
		w[i].wr.rdma.remote_addr = (uintptr_t)p.b.buf + 4096;
		w[i].wr.rdma.rkey = p.b.mr->rkey;
		r[i] = (struct ibv_recv_wr){ .wr_id = 1, .sg_list = &rsg, .num_sge = 1, .next = i + 1 < n ? &r[i + 1] : NULL };
	}
	/* After what is to complete: its data say when it has. */
	struct ibv_sge mark = sge(&p.a, 64, 8);
	struct ibv_send_wr last = w[0], *bad;
	last.next = NULL;
	last.sg_list = &mark;
	last.send_flags = 0;
	last.wr.rdma.remote_addr += 64;
	volatile uint64_t *mine = (volatile uint64_t *)(p.a.buf + 64), *theirs = (volatile uint64_t *)(p.b.buf + 4096 + 64);
	struct call call = { all[k].kind, &p, w, r, &sg, wc, n };
	for (int i = 1; i <= times; i++) {
		double dead = now() + 60;
		if (full) {
			*mine = (uint64_t)i;
			need(!ibv_post_send(p.a.qp, w, &bad) && !ibv_post_send(p.a.qp, &last, &bad), "post");
			while (*theirs != (uint64_t)i)
				need(now() < dead, "the data");
			usleep(20000); /* for the acknowledgement to come back */
			for (int left = 16; left > 0; left -= n)
				need(measured(&call) == n, "as many completions as asked for");
			continue;
		}
		need(!measured(&call), "the call");
		if (all[k].kind < POST_RECV) {
			while (!ibv_poll_cq(p.a.scq, 16, wc))
				need(now() < dead, "a completion");
			need(!wc[0].status, "a good completion");
		}
		if (all[k].kind == POST_RECV)
			need(!to_state(p.b.qp, IBV_QPS_RESET) && !to_init(&p.b, &spec), "empty the queue");
	}
	pair_close(&p);
}

int main(int argc, char **argv)
{
	static const struct rate rates[] = {
		{ "rate.send.8.batch1", IBV_WR_SEND, 1, false, false, false },
		{ "rate.send.8.batch16", IBV_WR_SEND, 16, false, false, false },
		{ "rate.send_inline.8.batch16", IBV_WR_SEND, 16, false, false, true },
		{ "rate.write.8.batch1", IBV_WR_RDMA_WRITE, 1, false, false, false },
		{ "rate.write.8.batch16", IBV_WR_RDMA_WRITE, 16, false, false, false },
		{ "rate.wr_write.8.batch1", IBV_WR_RDMA_WRITE, 1, false, true, false },
		{ "rate.wr_write.8.batch16", IBV_WR_RDMA_WRITE, 16, false, true, false },
		{ "rate.write.8.batch16.wire", IBV_WR_RDMA_WRITE, 16, true, false, false },
	};
	struct dev a, b;
	parse_options(&o, argc, argv, "[rates] [latency] [processes] [user] | count WHAT TIMES    (BENCH_SECONDS=0.3)");
	if (getenv("BENCH_SECONDS"))
		seconds = atof(getenv("BENCH_SECONDS"));
	bool all = !o.argc, some[4] = { all, all, all, all };
	static const char *const names[] = { "rates", "latency", "processes", "user" };
	for (int i = 0; i < o.argc; i++)
		for (int k = 0; k < 4; k++)
			some[k] = some[k] || !strcmp(o.argv[i], names[k]);
	/* Before this process opens a device, so that each of the two opens its own. */
	if (some[2])
		latency_two_processes("latency.two_processes");
	dev_open(&a, o.device[0], o.gid_index);
	dev_open(&b, o.device[1], o.gid_index);
	check_provider(&o);
	if (o.argc == 3 && !strcmp(o.argv[0], "count")) {
		counted(&a, o.argv[1], atoi(o.argv[2]));
		dev_close(&a);
		dev_close(&b);
		return failed();
	}
	for (size_t i = 0; some[0] && i < ARRAY_SIZE(rates); i++)
		measure_rate(&a, rates[i].wire ? &b : &a, &rates[i]);
	if (some[1]) {
		latency_one_process(&a, &a, "latency.loop");
		latency_one_process(&a, &b, "latency.wire");
	}
	if (some[3])
		user_space(&a);
	dev_close(&a);
	dev_close(&b);
	return failed();
}
