/* SPDX-License-Identifier: MIT OR Apache-2.0
 *
 * verbs-garbage: finds the queues that the provider shares with the kernel among this process's mappings, writes
 * nonsense into them, and goes on polling and posting. Nothing may crash, read out of bounds or fail to end. (The
 * stock provider believes what it reads: it runs with it only when told -p stock, and is not judged.)
 *
 * The layout is the kernel's: indices at 0 (log2 of the element size), 4 (mask), 128 (producer), 256 (consumer), the
 * elements from 384 on.
 */
#include "common.h"

#include <signal.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

struct queue {
	uint8_t *at;
	size_t size;
};

#define LOG2_ELEM_SIZE 0
#define INDEX_MASK 4
#define PRODUCER 128
#define CONSUMER 256
#define ELEMENTS 384

static int queues(struct queue *q, int max)
{
	FILE *f = fopen("/proc/self/maps", "r");
	char *l = NULL;
	size_t size = 0;
	int n = 0;
	need(f, "open /proc/self/maps");
	while (getline(&l, &size, f) > 0) {
		unsigned long a, b;
		if (strstr(l, "/uverbs") && sscanf(l, "%lx-%lx", &a, &b) == 2 && n < max)
			q[n++] = (struct queue){ (uint8_t *)a, b - a };
	}
	free(l);
	fclose(f);
	return n;
}

/* The one that came since `before` was taken. */
static struct queue newcomer(const struct queue *before, int n)
{
	struct queue now_[64];
	int m = queues(now_, 64);
	for (int i = 0; i < m; i++) {
		bool old = false;
		for (int k = 0; k < n; k++)
			old = old || before[k].at == now_[i].at;
		if (!old)
			return now_[i];
	}
	/* Adjacent mappings of one file may be shown as one: then what is new is what is longer. */
	for (int i = 0; i < m; i++)
		for (int k = 0; k < n; k++)
			if (before[k].at == now_[i].at && before[k].size < now_[i].size)
				return (struct queue){ now_[i].at + before[k].size, now_[i].size - before[k].size };
	for (int i = 0; i < m; i++)
		for (int k = 0; k < n; k++)
			if (before[k].at + before[k].size == now_[i].at + now_[i].size && before[k].size < now_[i].size)
				return (struct queue){ now_[i].at, now_[i].size - before[k].size };
	return (struct queue){ 0 };
}

static void put32(struct queue *q, size_t offset, uint32_t v)
{
	*(volatile uint32_t *)(q->at + offset) = v;
}

static uint32_t get32(struct queue *q, size_t offset)
{
	return *(volatile uint32_t *)(q->at + offset);
}

static struct options o;

struct bed {
	struct dev d;
	struct ibv_cq *cq;
	struct ibv_cq_ex *cqx;
	struct ibv_srq *srq;
	struct ibv_qp *qp;
	struct ibv_qp_ex *qpx;
	struct ibv_mr *mr;
	uint8_t *buf;
	struct queue cq_q, cqx_q, srq_q, rq_q, sq_q;
};

/* Creates each object with its queues looked up as they appear. */
static void open_bed(struct bed *b)
{
	struct queue q[64];
	int n;
	memset(b, 0, sizeof(*b));
	dev_open(&b->d, o.device[0], o.gid_index);
	b->buf = mmap(NULL, BUF_SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	need(b->buf != MAP_FAILED, "map a buffer");
	b->mr = ibv_reg_mr(b->d.pd, b->buf, BUF_SIZE, ALL_ACCESS);
	need(b->mr, "register memory");
	n = queues(q, 64);
	b->cq = ibv_create_cq(b->d.ctx, 31, NULL, NULL, 0);
	need(b->cq, "create a CQ");
	b->cq_q = newcomer(q, n);
	n = queues(q, 64);
	struct ibv_cq_init_attr_ex xa = { .cqe = 31, .wc_flags = IBV_WC_EX_WITH_BYTE_LEN | IBV_WC_EX_WITH_IMM |
							       IBV_WC_EX_WITH_QP_NUM | IBV_WC_EX_WITH_SRC_QP };
	b->cqx = ibv_create_cq_ex(b->d.ctx, &xa);
	need(b->cqx, "create an extended CQ");
	b->cqx_q = newcomer(q, n);
	n = queues(q, 64);
	struct ibv_srq_init_attr sa = { .attr = { 15, 2, 0 } };
	b->srq = ibv_create_srq(b->d.pd, &sa);
	need(b->srq, "create an SRQ");
	b->srq_q = newcomer(q, n);
	n = queues(q, 64);
	struct ibv_qp_init_attr_ex a;
	memset(&a, 0, sizeof(a));
	a.send_cq = a.recv_cq = b->cq;
	a.cap = (struct ibv_qp_cap){ 15, 15, 2, 2, 64 };
	a.qp_type = IBV_QPT_RC;
	a.pd = b->d.pd;
	a.comp_mask = IBV_QP_INIT_ATTR_PD | IBV_QP_INIT_ATTR_SEND_OPS_FLAGS;
	a.send_ops_flags = IBV_QP_EX_WITH_SEND | IBV_QP_EX_WITH_RDMA_WRITE;
	b->qp = ibv_create_qp_ex(b->d.ctx, &a);
	if (b->qp) {
		b->qpx = ibv_qp_to_qp_ex(b->qp);
	} else {
		struct ibv_qp_init_attr p = qp_init(IBV_QPT_RC, b->cq, b->cq, (struct ibv_qp_cap){ 15, 15, 2, 2, 64 });
		b->qp = ibv_create_qp(b->d.pd, &p);
	}
	need(b->qp, "create a QP");
	/* Two queues at once, perhaps shown as one mapping: told apart by what they look like. */
	struct queue now_[64];
	int m = queues(now_, 64);
	struct queue fresh[4];
	int k = 0;
	for (int i = 0; i < m && k < 4; i++) {
		uint8_t *at = now_[i].at, *end = at + now_[i].size;
		for (int j = 0; j < n; j++) {
			if (q[j].at >= at && q[j].at < end) {
				if (q[j].at > at)
					fresh[k++] = (struct queue){ at, (size_t)(q[j].at - at) };
				at = q[j].at + q[j].size;
			}
		}
		if (at < end && k < 4)
			fresh[k++] = (struct queue){ at, (size_t)(end - at) };
	}
	/* A queue's own size follows from its header. */
	struct queue found[2];
	int f = 0;
	for (int i = 0; i < k && f < 2; i++) {
		while (fresh[i].size && f < 2) {
			size_t len = ELEMENTS + ((size_t)(get32(&fresh[i], INDEX_MASK) + 1) << get32(&fresh[i], LOG2_ELEM_SIZE));
			len = (len + 4095) & ~(size_t)4095;
			if (len > fresh[i].size)
				break;
			found[f++] = (struct queue){ fresh[i].at, len };
			fresh[i].at += len;
			fresh[i].size -= len;
		}
	}
	need(f == 2, "find the queues of the QP among the mappings");
	/* Send elements hold the inline data and are the larger ones. */
	bool first = get32(&found[0], LOG2_ELEM_SIZE) >= get32(&found[1], LOG2_ELEM_SIZE);
	b->sq_q = found[first ? 0 : 1];
	b->rq_q = found[first ? 1 : 0];
	need(b->cq_q.at && b->cqx_q.at && b->srq_q.at, "find the queues among the mappings");

	/* To itself; but 5.10 does not come to an end with what then goes round, and there its peer is nobody. */
	struct ibv_qp nobody = { .qp_num = 0xfffff0 };
	struct side me = { .dev = &b->d, .qp = b->qp }, peer = { .dev = &b->d, .qp = kernel_before(5, 11) ? &nobody : b->qp };
	struct spec spec = { .type = IBV_QPT_RC };
	need(!to_init(&me, &spec) && !to_rtr(&me, &peer, &spec) && !to_rts(&me, &spec), "connect the QP");
}

static void post_all(struct bed *b)
{
	struct ibv_sge sg[2] = { { (uintptr_t)b->buf, 16, b->mr->lkey }, { (uintptr_t)b->buf + 64, 16, b->mr->lkey } };
	struct ibv_recv_wr r[3], *rbad;
	struct ibv_send_wr w[3], *bad;
	for (int i = 0; i < 3; i++) {
		r[i] = (struct ibv_recv_wr){ .wr_id = (uint64_t)i, .sg_list = sg, .num_sge = 2, .next = i < 2 ? &r[i + 1] : NULL };
		w[i] = wr(i == 1 ? IBV_WR_RDMA_WRITE : IBV_WR_SEND, (uint64_t)i, sg);
		w[i].next = i < 2 ? &w[i + 1] : NULL;
		w[i].num_sge = 2;
		w[i].wr.rdma.remote_addr = (uintptr_t)b->buf + 4096;
		w[i].wr.rdma.rkey = b->mr->rkey;
		w[i].send_flags |= i == 2 ? IBV_SEND_INLINE : 0;
	}
	for (int k = 0; k < 40; k++) {
		ibv_post_recv(b->qp, r, &rbad);
		ibv_post_srq_recv(b->srq, r, &rbad);
		ibv_post_send(b->qp, w, &bad);
		if (!b->qpx)
			continue;
		ibv_wr_start(b->qpx);
		for (int i = 0; i < 3; i++) {
			b->qpx->wr_id = (uint64_t)i;
			b->qpx->wr_flags = IBV_SEND_SIGNALED | (i == 2 ? IBV_SEND_INLINE : 0);
			ibv_wr_send(b->qpx);
			if (i == 0)
				ibv_wr_set_sge(b->qpx, b->mr->lkey, (uintptr_t)b->buf, 8);
			else if (i == 1)
				ibv_wr_set_sge_list(b->qpx, 2, sg);
			else
				ibv_wr_set_inline_data(b->qpx, b->buf, 64);
		}
		if (k & 1)
			ibv_wr_abort(b->qpx);
		else
			(void)ibv_wr_complete(b->qpx);
	}
}

/* The numbers themselves mean nothing here; that the calls come back, and hand out no more than asked for, does. */
static bool poll_all(struct bed *b)
{
	struct ibv_wc wc[17];
	bool ok = true;
	for (int k = 0; k < 400; k++) {
		memset(&wc[16], 0x5a, sizeof(wc[16]));
		int n = ibv_poll_cq(b->cq, 16, wc);
		ok = ok && n <= 16 && all_bytes((uint8_t *)&wc[16], sizeof(wc[16]), 0x5a);
		for (int i = 0; i < n; i++)
			ok = ibv_wc_status_str(wc[i].status) && ok;
		n = ibv_poll_cq(ibv_cq_ex_to_cq(b->cqx), 16, wc);
		ok = ok && n <= 16;
		struct ibv_poll_cq_attr a = { 0 };
		if (!ibv_start_poll(b->cqx, &a)) {
			int steps = 0;
			do {
				ibv_wc_read_opcode(b->cqx);
				ibv_wc_read_wc_flags(b->cqx);
				ibv_wc_read_byte_len(b->cqx);
				ibv_wc_read_imm_data(b->cqx);
				ibv_wc_read_qp_num(b->cqx);
				ibv_wc_read_src_qp(b->cqx);
				ibv_wc_read_vendor_err(b->cqx);
			} while (++steps < 1000 && !ibv_next_poll(b->cqx));
			ibv_end_poll(b->cqx);
		}
	}
	return ok;
}

static void exercise(struct bed *b)
{
	post_all(b);
	check("polled", poll_all(b));
	/* Resizing copies from the old queue to the new one. */
	ibv_resize_cq(b->cq, 63);
	struct ibv_srq_attr sa = { .max_wr = 31 };
	ibv_modify_srq(b->srq, &sa, IBV_SRQ_MAX_WR);
	post_all(b);
	check("polled_after_resize", poll_all(b));
}

struct nonsense {
	const char *name;
	size_t offset;
	uint32_t value;
};

static const struct nonsense headers[] = {
	{ "producer.max", PRODUCER, UINT32_MAX },
	{ "producer.int_min", PRODUCER, 0x80000000u },
	{ "producer.mask_and_1", PRODUCER, 32 },
	{ "producer.large", PRODUCER, 0x00ffffff },
	{ "consumer.max", CONSUMER, UINT32_MAX },
	{ "consumer.int_min", CONSUMER, 0x80000000u },
	{ "consumer.mask_and_1", CONSUMER, 32 },
	{ "consumer.large", CONSUMER, 0x00ffffff },
	{ "log2.0", LOG2_ELEM_SIZE, 0 },
	{ "log2.31", LOG2_ELEM_SIZE, 31 },
	{ "log2.32", LOG2_ELEM_SIZE, 32 },
	{ "log2.max", LOG2_ELEM_SIZE, UINT32_MAX },
	{ "mask.0", INDEX_MASK, 0 },
	{ "mask.6", INDEX_MASK, 6 },
	{ "mask.large", INDEX_MASK, 0x00ffffff },
	{ "mask.max", INDEX_MASK, UINT32_MAX },
};

enum { CQ, CQX, SRQ, RQ, SQ };
static int which_queue;
static int which_nonsense;

static struct queue *chosen(struct bed *b)
{
	struct queue *all[] = { &b->cq_q, &b->cqx_q, &b->srq_q, &b->rq_q, &b->sq_q };
	return all[which_queue];
}

/* The requester of later kernels runs towards the producer index of a send queue, whatever it is, and never gets there. */
static bool kernel_believes(int queue, const struct nonsense *n)
{
	return queue == SQ && n->offset == PRODUCER && !kernel_before(6, 2);
}

static void one_header(void *arg)
{
	(void)arg;
	struct bed b;
	const struct nonsense *n = &headers[which_nonsense];
	open_bed(&b);
	struct queue *q = chosen(&b);
	post_all(&b);
	put32(q, n->offset, n->value);
	exercise(&b);
	/* No cleaning up: closing does it, with the queues as they are. */
	want_int("close", ibv_close_device(b.d.ctx), 0);
}

/* Elements of nonsense, indices that say they are all there. */
static void elements(void *arg)
{
	(void)arg;
	struct bed b;
	open_bed(&b);
	unsigned seed = (unsigned)which_nonsense * 7919u + 17;
	struct queue *q = chosen(&b);
	for (int round = 0; round < 20; round++) {
		uint32_t mask = get32(q, INDEX_MASK);
		for (size_t i = ELEMENTS; i < q->size; i += 4) {
			seed = seed * 1103515245u + 12345u;
			put32(q, i, which_nonsense == 0 ? UINT32_MAX : which_nonsense == 1 ? 0x80000000u : seed);
		}
		if (which_queue <= CQX)
			put32(q, PRODUCER, (get32(q, CONSUMER) + mask) & mask);
		check("polled", poll_all(&b));
	}
	exercise(&b);
	want_int("close", ibv_close_device(b.d.ctx), 0);
}

/* Another thread's worth of change: the header changes while polling goes on. */
static void flicker(void *arg)
{
	(void)arg;
	struct bed b;
	open_bed(&b);
	fflush(stdout);
	struct queue *q = chosen(&b);
	pid_t pid = fork(); /* shares the queue, and only that */
	need(pid >= 0, "fork");
	if (!pid) {
		unsigned seed = 99;
		for (;;) {
			seed = seed * 1103515245u + 12345u;
			const struct nonsense *n = &headers[(seed >> 8) % ARRAY_SIZE(headers)];
			if (!kernel_believes(which_queue, n))
				put32(q, n->offset, n->value);
			if (getppid() == 1)
				_exit(0);
		}
	}
	for (int i = 0; i < 10; i++) {
		poll_all(&b);
		post_all(&b);
	}
	check("survived", true);
	kill(pid, 9);
	waitpid(pid, NULL, 0);
	want_int("close", ibv_close_device(b.d.ctx), 0);
}

int main(int argc, char **argv)
{
	static const char *const names[] = { [CQ] = "cq", [CQX] = "cqx", [SRQ] = "srq", [RQ] = "rq", [SQ] = "sq" };
	static const char *const fills[] = { "ones", "top_bit", "random.1", "random.2", "random.3" };
	char how[32];
	parse_options(&o, argc, argv, "[QUEUE...]    (of: cq cqx srq rq sq)");
	struct ibv_context *c = open_device(o.device[0]);
	need(c, "open the device");
	check_provider(&o);
	bool stock = provider() != PROVIDER_HOLDFAST;
	ibv_close_device(c);
	if (stock && !(o.expect && !strcmp(o.expect, "stock"))) {
		printf("FAIL provider: the stock provider believes its queues; say -p stock to see it do so\n");
		return 1;
	}
	for (which_queue = 0; which_queue < (int)ARRAY_SIZE(names); which_queue++) {
		bool wanted = !o.argc;
		for (int i = 0; i < o.argc; i++)
			wanted = wanted || !strcmp(o.argv[i], names[which_queue]);
		if (!wanted)
			continue;
		for (which_nonsense = 0; which_nonsense < (int)ARRAY_SIZE(headers); which_nonsense++) {
			prefix("garbage.%s.%s", names[which_queue], headers[which_nonsense].name);
			if (kernel_believes(which_queue, &headers[which_nonsense])) {
				say("how", "left out: the kernel believes it, and hangs");
				continue;
			}
			in_child(one_header, NULL, how, sizeof(how));
			say("how", "%s", how);
			strict_check("survived", !strcmp(how, "exit 0"));
		}
		for (which_nonsense = 0; which_nonsense < (int)ARRAY_SIZE(fills); which_nonsense++) {
			prefix("garbage.%s.elements.%s", names[which_queue], fills[which_nonsense]);
			in_child(elements, NULL, how, sizeof(how));
			say("how", "%s", how);
			strict_check("survived", !strcmp(how, "exit 0"));
		}
		prefix("garbage.%s.flicker", names[which_queue]);
		in_child(flicker, NULL, how, sizeof(how));
		say("how", "%s", how);
		strict_check("survived", !strcmp(how, "exit 0"));
	}
	return finish();
}
