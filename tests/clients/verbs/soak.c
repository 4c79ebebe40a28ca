/* SPDX-License-Identifier: MIT OR Apache-2.0
 *
 * verbs-soak: threads, each with many pairs of queue pairs on which everything is under way at once, for a given time; every
 * byte is looked at, and everything completes once.
 *
 * Which thread posts to which queue pair, and which doorbell registers they share, is the mode:
 *
 *     shared   each queue pair is posted to by two threads (stock and holdfast share registers beyond the first few)
 *     own      each by one; with MLX5_TOTAL_UUARS and MLX5_NUM_LOW_LAT_UUARS set high, by a register of its own
 *     domains  each by one, the thread of its thread domain: nothing is locked
 *
 * In all of them one completion queue has the completions of all queue pairs of a device, and all threads poll it.
 */
#include "common.h"

#include <pthread.h>
#include <sched.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <time.h>

#define THREADS 8
#define QPS 16
#define SLOTS 4
#define SLOT_SIZE 512
#define SIDE_SIZE (SLOTS * SLOT_SIZE)

enum mode { SHARED, OWN, DOMAINS };

/* What a place in a queue is doing. The one who posts moves it from FREE to BUSY, the one who polls to DONE. */
enum { FREE, BUSY, DONE };

struct slot {
	atomic_uint state;
	enum ibv_wr_opcode op;
	unsigned seed;
	uint32_t length;
};

/*
 * Two ends of a connection. The first end sends; each of its slots is a region of its buffer and the region of the peer's at
 * the same place, so that no two operations under way touch the same byte. Receives are posted in the order of their slots,
 * and sends arrive in the order in which they were posted, which `order` is kept for.
 */
struct conn {
	pthread_mutex_t lock; /* of what follows, where two threads use it */
	struct ibv_qp *qp, *peer;
	uint8_t *buf, *peer_buf;
	struct ibv_mr *mr, *peer_mr;
	struct slot slots[SLOTS];
	struct slot receives[SLOTS];
	unsigned order[SLOTS]; /* the slots whose sends are under way, oldest first */
	unsigned sends, next_receive;
	uint64_t added;
	uint64_t done;
};

struct worker {
	pthread_t thread;
	unsigned index;
	struct ibv_pd *pd, *peer_pd;
	struct ibv_td *td, *peer_td;
	uint8_t *memory, *peer_memory;
	struct ibv_mr *mr, *peer_mr;
	unsigned random;
};

static struct options o;
static enum mode mode = SHARED;
static double seconds = 5;
static struct dev a, b;
static struct ibv_cq *cq, *peer_cq;
static struct conn conns[THREADS * QPS];
static struct worker workers[THREADS];
static atomic_bool stop;
static atomic_ullong completed; /* by anybody's polls */

/* A failure ends the run: what follows it would say nothing. */
static void wrong(const char *fmt, ...) PRINTF(1, 2);
static void wrong(const char *fmt, ...)
{
	static atomic_flag told = ATOMIC_FLAG_INIT;
	va_list ap;
	if (atomic_flag_test_and_set(&told))
		for (;;)
			sched_yield();
	printf("FAIL soak: ");
	va_start(ap, fmt);
	vprintf(fmt, ap);
	va_end(ap);
	printf("\n");
	fflush(stdout);
	_Exit(1);
}

static unsigned any(struct worker *w, unsigned below)
{
	w->random = w->random * 1664525 + 1013904223;
	return (w->random >> 8) % below;
}

/* ------------------------------------------------------------------ one slot */

static uint64_t id(unsigned conn, unsigned slot, bool receive)
{
	return (uint64_t)receive << 32 | conn << 8 | slot;
}

static void post_receive(struct conn *c, unsigned n, unsigned slot)
{
	struct ibv_sge sg = { .addr = (uintptr_t)(c->peer_buf + SIDE_SIZE + slot * SLOT_SIZE), .length = SLOT_SIZE, .lkey = c->peer_mr->lkey };
	struct ibv_recv_wr r = { .wr_id = id(n, slot, true), .sg_list = &sg, .num_sge = 1 }, *bad;
	atomic_store_explicit(&c->receives[slot].state, BUSY, memory_order_release);
	int err = ibv_post_recv(c->peer, &r, &bad);
	if (err)
		wrong("post a receive: %s", errname(err));
}

/* Posts into the slots that are free, in one list. */
static void post(struct worker *w, struct conn *c, unsigned n)
{
	static const enum ibv_wr_opcode ops[] = { IBV_WR_RDMA_WRITE, IBV_WR_RDMA_READ, IBV_WR_SEND, IBV_WR_ATOMIC_FETCH_AND_ADD };
	struct ibv_send_wr wrs[SLOTS], *bad;
	struct ibv_sge sg[SLOTS];
	unsigned count = 0, most = 1 + any(w, SLOTS);
	for (unsigned i = 0; i < SLOTS && count < most; i++) {
		struct slot *s = &c->slots[i];
		if (atomic_load_explicit(&s->state, memory_order_acquire) != FREE)
			continue;
		uint8_t *own = c->buf + i * SLOT_SIZE, *remote = c->peer_buf + i * SLOT_SIZE;
		s->op = ops[any(w, 4)];
		/* A send needs a receive that waits: one slot each. */
		if (s->op == IBV_WR_SEND && c->sends == SLOTS)
			s->op = IBV_WR_RDMA_WRITE;
		s->seed = any(w, 1 << 20);
		s->length = 1 + any(w, SLOT_SIZE);
		sg[count] = (struct ibv_sge){ .addr = (uintptr_t)own, .length = s->length, .lkey = c->mr->lkey };
		wrs[count] = wr(s->op, id(n, i, false), &sg[count]);
		switch (s->op) {
		case IBV_WR_RDMA_READ:
			fill(remote, s->length, s->seed);
			memset(own, 0, s->length);
			break;
		case IBV_WR_ATOMIC_FETCH_AND_ADD:
			sg[count].length = 8;
			memset(own, 0xff, 8);
			wrs[count].wr.atomic.remote_addr = (uintptr_t)(c->peer_buf + 2 * SIDE_SIZE);
			wrs[count].wr.atomic.rkey = c->peer_mr->rkey;
			wrs[count].wr.atomic.compare_add = 1;
			c->added++;
			break;
		default:
			fill(own, s->length, s->seed);
			if (s->length <= 64 && any(w, 2))
				wrs[count].send_flags |= IBV_SEND_INLINE;
			if (s->op == IBV_WR_SEND)
				c->order[c->sends++] = i;
			else
				memset(remote, 0, s->length);
		}
		if (s->op != IBV_WR_SEND && s->op != IBV_WR_ATOMIC_FETCH_AND_ADD) {
			wrs[count].wr.rdma.remote_addr = (uintptr_t)remote;
			wrs[count].wr.rdma.rkey = c->peer_mr->rkey;
		}
		if (count)
			wrs[count - 1].next = &wrs[count];
		atomic_store_explicit(&s->state, BUSY, memory_order_release);
		count++;
	}
	if (!count)
		return;
	int err = ibv_post_send(c->qp, wrs, &bad);
	if (err)
		wrong("post %u sends: %s", count, errname(err));
}

/* Looks at what is done, and frees it. */
static void reap(struct conn *c, unsigned n)
{
	for (unsigned i = 0; i < SLOTS; i++) {
		struct slot *s = &c->slots[i];
		if (atomic_load_explicit(&s->state, memory_order_acquire) != DONE)
			continue;
		uint8_t *own = c->buf + i * SLOT_SIZE, *remote = c->peer_buf + i * SLOT_SIZE;
		bool ok = true;
		uint64_t word;
		switch (s->op) {
		case IBV_WR_RDMA_WRITE: ok = same(remote, s->length, s->seed); break;
		case IBV_WR_RDMA_READ: ok = same(own, s->length, s->seed); break;
		case IBV_WR_ATOMIC_FETCH_AND_ADD:
			memcpy(&word, own, 8);
			ok = word < c->added;
			break;
		default: break;
		}
		if (!ok)
			wrong("connection %u slot %u, operation %d of %u bytes: other data", n, i, (int)s->op, s->length);
		/* What a send sent is looked at where it arrives: its slot is kept until then. */
		if (s->op != IBV_WR_SEND) {
			c->done++;
			atomic_store_explicit(&s->state, FREE, memory_order_release);
		}
	}
	/* Receives are filled in the order in which they were posted. */
	while (c->sends) {
		struct slot *r = &c->receives[c->next_receive], *s = &c->slots[c->order[0]];
		if (atomic_load_explicit(&r->state, memory_order_acquire) != DONE ||
		    atomic_load_explicit(&s->state, memory_order_acquire) != DONE)
			break;
		if (r->length != s->length || !same(c->peer_buf + SIDE_SIZE + c->next_receive * SLOT_SIZE, s->length, s->seed))
			wrong("connection %u: another message of %u bytes than was sent, of %u", n, r->length, s->length);
		memmove(c->order, c->order + 1, sizeof(c->order) - sizeof(c->order[0]));
		c->sends--;
		c->done++;
		atomic_store_explicit(&s->state, FREE, memory_order_release);
		post_receive(c, n, c->next_receive);
		c->next_receive = (c->next_receive + 1) % SLOTS;
	}
}

/* Anybody's completions. */
static int poll_some(struct ibv_cq *from)
{
	struct ibv_wc wc[16];
	int got = ibv_poll_cq(from, 16, wc);
	if (got < 0)
		wrong("poll: %d", got);
	for (int i = 0; i < got; i++) {
		unsigned n = (unsigned)wc[i].wr_id >> 8, slot = wc[i].wr_id & 0xff;
		if (wc[i].status || n >= ARRAY_SIZE(conns) || slot >= SLOTS)
			wrong("wr_id %#llx: %s", (unsigned long long)wc[i].wr_id, ibv_wc_status_str(wc[i].status));
		bool receive = wc[i].wr_id >> 32;
		struct slot *s = receive ? &conns[n].receives[slot] : &conns[n].slots[slot];
		if (wc[i].qp_num != (receive ? conns[n].peer : conns[n].qp)->qp_num)
			wrong("connection %u slot %u: completed by another queue pair", n, slot);
		/* Acquire, for who posted it has read the last one's length. */
		unsigned was = atomic_load_explicit(&s->state, memory_order_acquire);
		if (receive && was == BUSY)
			s->length = wc[i].byte_len;
		was = BUSY;
		if (!atomic_compare_exchange_strong_explicit(&s->state, &was, DONE, memory_order_acq_rel, memory_order_relaxed))
			wrong("connection %u slot %u: completed in state %u", n, slot, was);
	}
	return got;
}

/* ------------------------------------------------------------------ threads */

static bool idle(struct conn *c)
{
	for (unsigned i = 0; i < SLOTS; i++)
		if (atomic_load_explicit(&c->slots[i].state, memory_order_acquire) != FREE)
			return false;
	return true;
}

/* A step of connection `n`; true where it is idle. */
static bool step(struct worker *w, unsigned n, bool posts)
{
	struct conn *c = &conns[n];
	if (mode == SHARED && pthread_mutex_trylock(&c->lock))
		return false;
	reap(c, n);
	if (posts)
		post(w, c, n);
	bool is_idle = idle(c);
	if (mode == SHARED)
		pthread_mutex_unlock(&c->lock);
	return is_idle;
}

static void *work(void *arg)
{
	struct worker *w = arg;
	bool all_idle = false;
	double quiet = now();
	unsigned long long seen = 0;
	while (!all_idle) {
		bool posts = !atomic_load_explicit(&stop, memory_order_relaxed);
		all_idle = !posts;
		for (unsigned i = 0; i < QPS; i++) {
			all_idle &= step(w, w->index * QPS + i, posts);
			/* The neighbour's too, so that two threads post to each. */
			if (mode == SHARED)
				step(w, (w->index + 1) % THREADS * QPS + i, posts && any(w, 2));
		}
		int got = poll_some(cq) + (peer_cq != cq ? poll_some(peer_cq) : 0);
		unsigned long long all = atomic_fetch_add_explicit(&completed, (unsigned)got, memory_order_relaxed) + (unsigned)got;
		/* All may be somebody else's, for a long time; and with thirty others a thread seldom runs. */
		if (all != seen) {
			seen = all;
			quiet = now();
		} else if (now() > quiet + 4 * LIMIT_S) {
			wrong("thread %u: nothing completes any more, after %llu completions", w->index, all);
		}
		if (!got)
			sched_yield();
	}
	return NULL;
}

/* ------------------------------------------------------------------ set up and down */

static struct ibv_pd *domain(struct dev *d, struct ibv_td **td)
{
	if (mode != DOMAINS)
		return d->pd;
	struct ibv_td_init_attr ta = { 0 };
	*td = ibv_alloc_td(d->ctx, &ta);
	need(*td, "allocate a thread domain");
	struct ibv_parent_domain_init_attr pa = { .pd = d->pd, .td = *td };
	struct ibv_pd *pd = ibv_alloc_parent_domain(d->ctx, &pa);
	need(pd, "allocate a parent domain");
	return pd;
}

#define CONN_SIZE (3 * SIDE_SIZE)

static void open_worker(struct worker *w)
{
	w->random = w->index * 7919 + 1;
	w->pd = domain(&a, &w->td);
	w->peer_pd = domain(&b, &w->peer_td);
	w->memory = calloc(QPS, CONN_SIZE);
	w->peer_memory = calloc(QPS, CONN_SIZE);
	need(w->memory && w->peer_memory, "memory");
	w->mr = ibv_reg_mr(a.pd, w->memory, QPS * CONN_SIZE, ALL_ACCESS);
	w->peer_mr = ibv_reg_mr(b.pd, w->peer_memory, QPS * CONN_SIZE, ALL_ACCESS);
	need(w->mr && w->peer_mr, "register memory");
	for (unsigned i = 0; i < QPS; i++) {
		unsigned n = w->index * QPS + i;
		struct conn *c = &conns[n];
		struct ibv_qp_cap cap = { .max_send_wr = SLOTS, .max_recv_wr = SLOTS, .max_send_sge = 1, .max_recv_sge = 1, .max_inline_data = 64 };
		struct ibv_qp_init_attr ia = qp_init(IBV_QPT_RC, cq, cq, cap), peer_ia = qp_init(IBV_QPT_RC, peer_cq, peer_cq, cap);
		struct spec spec = { .type = IBV_QPT_RC };
		pthread_mutex_init(&c->lock, NULL);
		c->qp = ibv_create_qp(w->pd, &ia);
		c->peer = ibv_create_qp(w->peer_pd, &peer_ia);
		need(c->qp && c->peer, "create queue pairs");
		c->buf = w->memory + i * CONN_SIZE;
		c->peer_buf = w->peer_memory + i * CONN_SIZE;
		c->mr = w->mr;
		c->peer_mr = w->peer_mr;
		struct side own = { .dev = &a, .qp = c->qp }, peer = { .dev = &b, .qp = c->peer };
		need(!to_init(&own, &spec) && !to_init(&peer, &spec), "modify to INIT");
		for (unsigned k = 0; k < SLOTS; k++)
			post_receive(c, n, k);
		need(!to_rtr(&own, &peer, &spec) && !to_rtr(&peer, &own, &spec) && !to_rts(&own, &spec) && !to_rts(&peer, &spec), "connect");
	}
}

static void close_worker(struct worker *w)
{
	for (unsigned i = 0; i < QPS; i++) {
		struct conn *c = &conns[w->index * QPS + i];
		uint64_t word;
		memcpy(&word, c->peer_buf + 2 * SIDE_SIZE, 8);
		if (word != c->added)
			wrong("connection %u: %llu added, of %llu", w->index * QPS + i, (unsigned long long)word, (unsigned long long)c->added);
		need(!ibv_destroy_qp(c->qp) && !ibv_destroy_qp(c->peer), "destroy queue pairs");
	}
	need(!ibv_dereg_mr(w->mr) && !ibv_dereg_mr(w->peer_mr), "deregister memory");
	free(w->memory);
	free(w->peer_memory);
	if (mode == DOMAINS)
		need(!ibv_dealloc_pd(w->pd) && !ibv_dealloc_pd(w->peer_pd) && !ibv_dealloc_td(w->td) && !ibv_dealloc_td(w->peer_td),
		     "free domains");
}

int main(int argc, char **argv)
{
	parse_options(&o, argc, argv, "shared|own|domains SECONDS");
	need(o.argc == 2, "shared, own or domains, and a number of seconds");
	mode = !strcmp(o.argv[0], "domains") ? DOMAINS : !strcmp(o.argv[0], "own") ? OWN : SHARED;
	seconds = atof(o.argv[1]);
	dev_open(&a, o.device[0], o.gid_index);
	dev_open(&b, o.device[1], o.gid_index);
	check_provider(&o);
	prefix("soak.%s.%s", o.argv[0], strcmp(a.name, b.name) ? "wire" : "loop");
	/* Both ends on one device: then one CQ has all there is. */
	bool loop = !strcmp(a.name, b.name);
	struct dev *peer = loop ? &a : &b;
	int cqe = THREADS * QPS * SLOTS * 2 * (loop ? 2 : 1);
	cq = ibv_create_cq(a.ctx, cqe, NULL, NULL, 0);
	peer_cq = loop ? cq : ibv_create_cq(peer->ctx, cqe, NULL, NULL, 0);
	need(cq && peer_cq, "create the CQs");
	if (loop) {
		dev_close(&b);
		b = a;
	}
	for (unsigned i = 0; i < THREADS; i++) {
		workers[i].index = i;
		open_worker(&workers[i]);
	}
	for (unsigned i = 0; i < THREADS; i++)
		need(!pthread_create(&workers[i].thread, NULL, work, &workers[i]), "start a thread");
	double end = now() + seconds;
	while (now() < end) {
		struct timespec t = { .tv_nsec = 20000000 };
		nanosleep(&t, NULL);
	}
	atomic_store(&stop, true);
	for (unsigned i = 0; i < THREADS; i++)
		pthread_join(workers[i].thread, NULL);
	uint64_t done = 0, least = UINT64_MAX;
	for (size_t i = 0; i < ARRAY_SIZE(conns); i++) {
		done += conns[i].done;
		least = conns[i].done < least ? conns[i].done : least;
	}
	check("each_connection_did_something", least > 0);
	for (unsigned i = 0; i < THREADS; i++)
		close_worker(&workers[i]);
	need(!ibv_destroy_cq(cq) && (loop || !ibv_destroy_cq(peer_cq)), "destroy the CQs");
	if (!loop)
		dev_close(&b);
	dev_close(&a);
	printf("soak: %llu operations, %.0f each second\n", (unsigned long long)done, (double)done / seconds);
	return finish();
}
