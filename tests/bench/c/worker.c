// worker: one provider's part of the benchmark. It does what its standard input says, a line at a time, so that several of
// them, each with another provider in front of the same null engine, take turns within the same seconds.
//
//   cases             a line for each case: its number, the rows that its two timed parts are, "-" for none, and its kind;
//                     then "."
//   run CASE BURSTS   one burst that is checked throughout, some to warm up, BURSTS that are timed; answers with the medians:
//                     cycles and nanoseconds per operation of the first part, and of the second
//   count CASE        built with -DCOUNT, under callgrind: dumps what each part's operations were, and answers how many
//   size              built with -DSIZE: a line for each kind of object, with its bytes; then "."
//
// A burst is OPS operations in the first part (posts, mostly); then the engine looks at each of them, untimed, and completes
// them; the second part polls the completions. Whatever is not as it has to be ends the worker: a failed post, a wrong number
// of completions, blocks or work requests, a wrong sum of what was polled.
#define _GNU_SOURCE
#include "clock.h"

#include <endian.h>
#include <errno.h>
#include <infiniband/verbs.h>
#include <limits.h>
#include <malloc.h>
#include <pthread.h>
#include <sched.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "../../native/clients/bed.h"

#define OPS 256
#define LIST 16
#define DEPTH 512
#define CQ_DEPTH 1023
#define WARM_UP 3
#define MOST_BURSTS 1000
#define NOINLINE __attribute__((noinline))

// Queue pairs by what they are for. With stock libmlx5 the first four of a context have a doorbell register each, those after
// them share some, under a lock; the first of them is FIFTH, and TWIN has its register.
enum { MAIN, PIECES, WITH_SRQ, FLOOR, FIFTH, TWIN = FIFTH + 12, QPS = FIFTH + 16, CROWD = 256 };

static const char *mode;
static int cpu, other_cpu = -1, forget;
static struct ibv_context *context;
static struct ibv_pd *pd, *domain;
static struct ibv_cq_ex *send_cq, *recv_cq, *floor_cq;
static struct ibv_srq *srq;
static struct ibv_qp *qps[QPS], *crowd[CROWD];
static struct ibv_mr *mr;
static char buffer[65536] __attribute__((aligned(4096)));

static struct ibv_send_wr sends[2][OPS];
static struct ibv_recv_wr recvs[OPS];
static struct ibv_sge pieces[OPS][2];
static struct ibv_wc wc[LIST];

// ---------------------------------------------------------------- cases

enum api { LEGACY, EXTENDED };

struct one {
	const char *first, *second;
	// The first part, the engine's work, which says how many completions there are, and the second part.
	void (*post)(const struct one *);
	int (*complete)(const struct one *);
	void (*poll)(const struct one *, int expected);
	void (*prepare)(const struct one *);
	int (*control)(const struct one *, struct took *first, struct took *second);
	int qp, count; // queue pairs: the first, and how many take turns (1)
	enum ibv_wr_opcode opcode;
	unsigned length, sges;
	bool is_inline, receives;
	int list, signal_each, batch;
};

static uint64_t expected_sum, polled_sum;

// ---------------------------------------------------------------- first parts

static NOINLINE void post_sends(const struct one *one)
{
	struct ibv_qp *qp = qps[one->qp];
	struct ibv_send_wr *bad;
	for (int i = 0; i < OPS - forget; i += one->list)
		CHECK(!ibv_post_send(qp, &sends[0][i], &bad));
}

static NOINLINE void post_in_turn(const struct one *one)
{
	struct ibv_qp **turn = one->count == CROWD ? crowd : qps + one->qp;
	struct ibv_send_wr *bad;
	for (int i = 0, mask = one->count - 1; i < OPS - forget; i++)
		CHECK(!ibv_post_send(turn[i & mask], &sends[0][i], &bad));
}

static NOINLINE void post_recvs(const struct one *one)
{
	struct ibv_qp *qp = qps[one->qp];
	struct ibv_recv_wr *bad;
	for (int i = 0; i < OPS - forget; i += one->list)
		CHECK(!ibv_post_recv(qp, &recvs[i], &bad));
}

static NOINLINE void post_srq(const struct one *one)
{
	struct ibv_recv_wr *bad;
	for (int i = 0; i < OPS - forget; i += one->list)
		CHECK(!ibv_post_srq_recv(srq, &recvs[i], &bad));
}

#define BUILDER(name, operation, data) \
	static NOINLINE void name(const struct one *one) \
	{ \
		struct ibv_qp_ex *qp = ibv_qp_to_qp_ex(qps[one->qp]); \
		for (int i = 0; i < OPS - forget; i += one->list) { \
			ibv_wr_start(qp); \
			for (int j = i; j < i + one->list; j++) { \
				qp->wr_id = (uint64_t)j; \
				qp->wr_flags = IBV_SEND_SIGNALED; \
				operation; \
				data; \
			} \
			CHECK(!ibv_wr_complete(qp)); \
		} \
	}
#define REMOTE qp, 0x1234, 0x100000 + (uint64_t)j * 64
#define DATA_SGE ibv_wr_set_sge(qp, pieces[j][0].lkey, pieces[j][0].addr, pieces[j][0].length)
#define DATA_SGES ibv_wr_set_sge_list(qp, 2, pieces[j])
#define DATA_INLINE ibv_wr_set_inline_data(qp, (void *)(uintptr_t)pieces[j][0].addr, pieces[j][0].length)
BUILDER(build_write_inline, ibv_wr_rdma_write(REMOTE), DATA_INLINE)
BUILDER(build_send_inline, ibv_wr_send(qp), DATA_INLINE)
BUILDER(build_write, ibv_wr_rdma_write(REMOTE), DATA_SGE)
BUILDER(build_write_pieces, ibv_wr_rdma_write(REMOTE), DATA_SGES)
BUILDER(build_read, ibv_wr_rdma_read(REMOTE), DATA_SGE)
BUILDER(build_fetch_add, ibv_wr_atomic_fetch_add(REMOTE, 1), DATA_SGE)

static NOINLINE void poll_nothing(const struct one *one)
{
	(void)one;
	struct ibv_cq *cq = ibv_cq_ex_to_cq(send_cq);
	for (int i = 0; i < OPS; i++)
		CHECK(ibv_poll_cq(cq, LIST, wc) == 0);
}

// ---------------------------------------------------------------- the engine

static int complete_sends(const struct one *one)
{
	return holdfast_sim_sq(qps[one->qp]->qp_num);
}

// One of each in turn, so that completions alternate between queue pairs.
static int complete_in_turn(const struct one *one)
{
	struct ibv_qp **turn = one->count == CROWD ? crowd : qps + one->qp;
	int all = 0;
	for (int i = 0; i < OPS; i++)
		all += holdfast_sim_sq1(turn[i & (one->count - 1)]->qp_num);
	return all;
}

static int complete_recvs(const struct one *one)
{
	return holdfast_sim_rq(qps[one->qp]->qp_num, 64);
}

static int complete_nothing(const struct one *one)
{
	(void)one;
	return 0;
}

// ---------------------------------------------------------------- second parts

static NOINLINE void poll_legacy(const struct one *one, int expected)
{
	struct ibv_cq *cq = ibv_cq_ex_to_cq(one->receives ? recv_cq : send_cq);
	uint64_t sum = 0;
	for (int got = 0; got < expected;) {
		int n = ibv_poll_cq(cq, one->batch, wc);
		CHECK(n > 0);
		for (int i = 0; i < n; i++) {
			CHECK(wc[i].status == IBV_WC_SUCCESS);
			sum += wc[i].wr_id;
		}
		got += n;
	}
	polled_sum = sum;
}

static NOINLINE void poll_extended(const struct one *one, int expected)
{
	struct ibv_cq_ex *cq = one->receives ? recv_cq : send_cq;
	struct ibv_poll_cq_attr attr = {};
	uint64_t sum = 0;
	for (int got = 0; got < expected;) {
		CHECK(!ibv_start_poll(cq, &attr));
		int n = 0;
		do {
			CHECK(cq->status == IBV_WC_SUCCESS);
			// An opcode of 0 is a send's; none is as much as this.
			sum += cq->wr_id + (ibv_wc_read_opcode(cq) >> 16);
			n++;
		} while (n < one->batch && got + n < expected && !ibv_next_poll(cq));
		ibv_end_poll(cq);
		got += n;
	}
	polled_sum = sum;
}

static NOINLINE void poll_nothing_extended(const struct one *one, int expected)
{
	(void)one, (void)expected;
	struct ibv_poll_cq_attr attr = {};
	for (int i = 0; i < OPS; i++)
		CHECK(ibv_start_poll(send_cq, &attr) == ENOENT);
}

// ---------------------------------------------------------------- work requests

static void prepare(const struct one *one)
{
	bool atomic = one->opcode == IBV_WR_ATOMIC_FETCH_AND_ADD;
	expected_sum = 0;
	for (int i = 0; i < OPS; i++) {
		bool last = i % one->list == one->list - 1, signaled = i % one->signal_each == one->signal_each - 1;
		for (unsigned j = 0; j < one->sges; j++)
			pieces[i][j] = (struct ibv_sge){ (uintptr_t)buffer + (uint64_t)(i % 32) * 128 + j * 64, one->length, mr->lkey };
		for (int t = 0; t < 2; t++) {
			struct ibv_send_wr *wr = &sends[t][i];
			*wr = (struct ibv_send_wr){
				.wr_id = (uint64_t)i, .next = last ? NULL : wr + 1, .sg_list = pieces[i], .num_sge = (int)one->sges,
				.opcode = one->opcode,
				.send_flags = (one->is_inline ? IBV_SEND_INLINE : 0) | (signaled ? IBV_SEND_SIGNALED : 0),
			};
			if (atomic) {
				wr->wr.atomic.remote_addr = 0x100000 + (uint64_t)i * 64;
				wr->wr.atomic.rkey = 0x1234;
				wr->wr.atomic.compare_add = 1;
			} else {
				wr->wr.rdma.remote_addr = 0x100000 + (uint64_t)i * 64;
				wr->wr.rdma.rkey = 0x1234;
			}
		}
		recvs[i] = (struct ibv_recv_wr){
			.wr_id = (uint64_t)i, .next = last ? NULL : &recvs[i + 1], .sg_list = pieces[i], .num_sge = (int)one->sges,
		};
		expected_sum += signaled ? (uint64_t)i : 0;
	}
}

// Blocks of 64 bytes that the engine consumed of the case's queue pairs.
static unsigned blocks(const struct one *one)
{
	unsigned sum = 0;
	for (int i = 0; i < one->count; i++) {
		struct holdfast_sim_info info;
		struct ibv_qp *qp = one->count == CROWD ? crowd[i] : qps[one->qp + i];
		CHECK(!holdfast_sim_info(qp->qp_num, &info));
		sum += info.sq_ci & 0xffff;
	}
	return sum;
}

// Blocks of the send queue that the case's work requests take.
static unsigned blocks_expected(const struct one *one)
{
	if (one->receives)
		return 0;
	unsigned units = 1;
	if (one->opcode != IBV_WR_SEND)
		units++;
	if (one->opcode == IBV_WR_ATOMIC_FETCH_AND_ADD)
		units++;
	units += one->is_inline ? (4 + one->length * one->sges + 15) / 16 : one->sges;
	return OPS * ((units + 3) / 4);
}

static const enum ibv_wc_opcode opcodes[] = {
	[IBV_WR_RDMA_WRITE] = IBV_WC_RDMA_WRITE, [IBV_WR_SEND] = IBV_WC_SEND, [IBV_WR_RDMA_READ] = IBV_WC_RDMA_READ,
	[IBV_WR_ATOMIC_FETCH_AND_ADD] = IBV_WC_FETCH_ADD,
};

// One burst of which everything is looked at.
static void check(const struct one *one)
{
	unsigned before = blocks(one);
	one->post(one);
	int completions = one->complete(one);
	CHECK(completions == OPS / one->signal_each);
	unsigned consumed = blocks(one) - before;
	CHECK(((consumed - blocks_expected(one)) & 0xffff) == 0);
	for (int i = 0; i < completions; i++) {
		CHECK(ibv_poll_cq(ibv_cq_ex_to_cq(one->receives ? recv_cq : send_cq), 1, wc) == 1);
		int wr_id = i * one->signal_each + one->signal_each - 1;
		struct ibv_qp *qp = one->count == CROWD ? crowd[wr_id] : qps[one->qp + (wr_id & (one->count - 1))];
		CHECK(wc->status == IBV_WC_SUCCESS && wc->wr_id == (uint64_t)wr_id && wc->qp_num == qp->qp_num);
		CHECK(wc->opcode == (one->receives ? IBV_WC_RECV : opcodes[one->opcode]));
		CHECK(!one->receives || wc->byte_len == 64);
	}
	CHECK(ibv_poll_cq(ibv_cq_ex_to_cq(one->receives ? recv_cq : send_cq), 1, wc) == 0);
}

// ---------------------------------------------------------------- the floor

// The least that a post, a receive or a poll can be on this machine: the stores that the device needs and the loads that the
// program needs, by hand, into the queues of a queue pair that the provider made and then does not touch. Nothing is asked of
// the work request, no lock is taken, nothing can fail.
static struct holdfast_sim_info bare;
static uint64_t bare_ids[DEPTH * 8];
static uint32_t bare_post, bare_recv, bare_polled, bare_rpolled, bare_register;
static struct ibv_wc bare_wc[LIST];

#define COMPILER_BARRIER() __asm__ volatile("" ::: "memory")

static void prepare_floor(const struct one *one)
{
	prepare(one);
	CHECK(!holdfast_sim_info(qps[FLOOR]->qp_num, &bare) && bare.sq_cnt <= DEPTH * 8 && bare.rq_cnt <= DEPTH * 8);
	bare_post = bare.sq_ci, bare_recv = bare.rq_ci, bare_polled = bare.cq_pi, bare_rpolled = bare.rcq_pi;
}

static inline uint64_t two(uint32_t first, uint32_t second)
{
	return (uint64_t)htobe32(second) << 32 | htobe32(first);
}

static inline void bare_wqe(volatile uint64_t *at, uint64_t a, uint64_t b, uint64_t c, uint64_t d, uint64_t e, uint64_t f)
{
	at[0] = a, at[1] = b, at[2] = c, at[3] = d, at[4] = e, at[5] = f;
}

static NOINLINE void bare_sends(const struct one *one)
{
	uint32_t post = bare_post, qpn = bare.qpn << 8 | 3, mask = bare.sq_cnt - 1, reg = bare_register;
	uint64_t flags = two(8, 0), key = two(0x1234, 0);
	for (int i = 0; i < OPS - forget; i += one->list) {
		uint64_t place = 0, address = 0, low = 0, high = 0;
		for (int j = i; j < i + one->list; j++, post++) {
			uint64_t data = *(uint64_t *)(uintptr_t)pieces[j][0].addr;
			place = two((post & 0xffff) << 8 | 8, qpn);
			address = htobe64(0x100000 + (uint64_t)j * 64);
			low = data << 32 | htobe32(0x80000008);
			high = data >> 32;
			bare_wqe((uint64_t *)bare.sq + (size_t)(post & mask) * 8, place, flags, address, key, low, high);
		}
		COMPILER_BARRIER();
		*(volatile uint32_t *)&bare.db[1] = htobe32(post & 0xffff);
		_mm_sfence();
		volatile uint64_t *bell = (uint64_t *)((char *)bare.uar + 0x800 + reg);
		bare_wqe(bell, place, flags, address, key, low, high);
		bell[6] = 0, bell[7] = 0;
		_mm_sfence();
		reg ^= 256;
	}
	bare_post = post, bare_register = reg;
}

static NOINLINE void bare_recvs(const struct one *one)
{
	uint32_t recv = bare_recv, mask = bare.rq_cnt - 1;
	for (int i = 0; i < OPS - forget; i += one->list) {
		for (int j = i; j < i + one->list; j++, recv++) {
			volatile uint64_t *at = (uint64_t *)((char *)bare.rq + ((size_t)(recv & mask) << bare.rq_shift));
			at[0] = two(pieces[j][0].length, pieces[j][0].lkey);
			at[1] = htobe64(pieces[j][0].addr);
		}
		COMPILER_BARRIER();
		*(volatile uint32_t *)&bare.db[0] = htobe32(recv & 0xffff);
	}
	bare_recv = recv;
}

// The application's words, which the floor of a poll reads: no floor of a post writes them.
static int complete_bare(const struct one *one)
{
	uint32_t end = one->receives ? bare_recv : bare_post, mask = (one->receives ? bare.rq_cnt : bare.sq_cnt) - 1;
	for (int i = 0; i < OPS; i++)
		bare_ids[(end - OPS + (uint32_t)i) & mask] = (uint64_t)i;
	return one->receives ? holdfast_sim_rq(bare.qpn, 64) : holdfast_sim_sq(bare.qpn);
}

static NOINLINE void bare_poll(const struct one *one, int expected)
{
	char *ring = one->receives ? bare.rcq : bare.cq;
	uint32_t *record = one->receives ? bare.rcdb : bare.cdb, size = one->receives ? bare.rcq_size : bare.cq_size;
	uint32_t index = one->receives ? bare_rpolled : bare_polled, mask = (one->receives ? bare.rq_cnt : bare.sq_cnt) - 1;
	uint64_t sum = 0;
	for (int got = 0; got < expected;) {
		int n = 0;
		for (; n < one->batch; n++, index++) {
			char *cqe = ring + (size_t)(index & (size - 1)) * 64;
			uint8_t last = *(volatile uint8_t *)(cqe + 63);
			if ((last & 1) != !!(index & size) || last >> 4 == 15)
				break;
			COMPILER_BARRIER();
			uint32_t code = be32toh(*(uint32_t *)(cqe + 56));
			bare_wc[n].wr_id = bare_ids[be16toh(*(uint16_t *)(cqe + 60)) & mask];
			bare_wc[n].status = IBV_WC_SUCCESS;
			bare_wc[n].opcode = one->receives ? IBV_WC_RECV : IBV_WC_RDMA_WRITE;
			bare_wc[n].byte_len = be32toh(*(uint32_t *)(cqe + 44));
			bare_wc[n].qp_num = code & 0xffffff;
			bare_wc[n].wc_flags = 0;
		}
		CHECK(n > 0);
		COMPILER_BARRIER();
		*(volatile uint32_t *)record = htobe32(index & 0xffffff);
		for (int i = 0; i < n; i++) {
			CHECK(bare_wc[i].status == IBV_WC_SUCCESS && bare_wc[i].qp_num == bare.qpn);
			sum += bare_wc[i].wr_id;
		}
		got += n;
	}
	*(one->receives ? &bare_rpolled : &bare_polled) = index;
	polled_sum = sum;
}

// ---------------------------------------------------------------- two threads

// The second thread waits, awake, on a CPU of its own for bursts to do. Both begin at the same tick.
static pthread_t second;
static _Atomic int asked, done;
static _Atomic uint64_t begin;
static struct ibv_qp *_Atomic second_qp;
static struct took second_took;

static NOINLINE void post_alone(struct ibv_qp *qp, struct ibv_send_wr *wr)
{
	struct ibv_send_wr *bad;
	for (int i = 0; i < OPS; i++)
		CHECK(!ibv_post_send(qp, &wr[i], &bad));
}

static void pin(int to)
{
	cpu_set_t set;
	CPU_ZERO(&set);
	CPU_SET(to, &set);
	CHECK(!sched_setaffinity(0, sizeof set, &set));
}

// The processor that was asked for, or else the last of those that this process may have; and another one for a second thread.
static void choose_cpus(int asked_for)
{
	cpu_set_t set;
	CHECK(!sched_getaffinity(0, sizeof set, &set));
	cpu = asked_for;
	for (int i = 0; i < CPU_SETSIZE; i++)
		if (asked_for < 0 && CPU_ISSET(i, &set))
			cpu = i;
	for (int i = 0; i < CPU_SETSIZE; i++)
		if (i != cpu && CPU_ISSET(i, &set))
			other_cpu = i;
	pin(cpu);
}

static struct took at_the_same_time(struct ibv_qp *qp, struct ibv_send_wr *wr)
{
	double rate = cycles_per_tick();
	while (__rdtsc() < begin)
		_mm_pause();
	uint64_t start = ticks_before();
	post_alone(qp, wr);
	double ticks = (double)(ticks_after() - start - clock_overhead);
	return (struct took){ ticks * rate, ticks * ns_per_tick };
}

static void *second_thread(void *unused)
{
	(void)unused;
	pin(other_cpu);
	for (int seen = 0;; seen++) {
		while (asked == seen)
			_mm_pause();
		if (asked < 0)
			return NULL;
		second_took = at_the_same_time(second_qp, sends[1]);
		done = seen + 1;
	}
}

// `count` is how many queue pairs there are: the threads' own, or one.
static int both_post(const struct one *one, struct took *first, struct took *poll)
{
	struct ibv_qp *own = qps[one->qp], *other = one->count == 2 ? qps[one->batch] : own;
	if (!asked) {
		done = 0;
		CHECK(!pthread_create(&second, NULL, second_thread, NULL));
	}
	second_qp = other;
	int number = ++asked;
	begin = __rdtsc() + 20000;
	*first = at_the_same_time(own, sends[0]);
	while (done != number)
		_mm_pause();
	first->cycles = (first->cycles + second_took.cycles) / 2;
	first->ns = (first->ns + second_took.ns) / 2;
	int completions = holdfast_sim_sq(own->qp_num) + (other == own ? 0 : holdfast_sim_sq(other->qp_num));
	CHECK(completions == 2 * OPS);
	(void)poll;
	uint64_t all = 2 * expected_sum;
	for (int i = 0; i < 2; i++) {
		poll_legacy(one, OPS);
		all -= polled_sum;
	}
	CHECK(all == 0);
	return OPS;
}

static void end_second_thread(void)
{
	if (asked) {
		asked = -1;
		CHECK(!pthread_join(second, NULL));
		asked = 0;
	}
}

// ---------------------------------------------------------------- making and unmaking

#define OBJECTS 16

static int make_qps(const struct one *one, struct took *make, struct took *unmake)
{
	(void)one;
	static struct ibv_qp *made[OBJECTS];
	struct ibv_qp_init_attr attr = {
		.send_cq = ibv_cq_ex_to_cq(send_cq), .recv_cq = ibv_cq_ex_to_cq(recv_cq), .qp_type = IBV_QPT_RC,
		.cap = { .max_send_wr = 128, .max_recv_wr = 128, .max_send_sge = 1, .max_recv_sge = 1, .max_inline_data = 64 },
	};
	*make = TIMED(for (int i = 0; i < OBJECTS; i++) CHECK(made[i] = ibv_create_qp(pd, &attr)));
	*unmake = TIMED(for (int i = 0; i < OBJECTS; i++) CHECK(!ibv_destroy_qp(made[i])));
	return OBJECTS;
}

static int make_cqs(const struct one *one, struct took *make, struct took *unmake)
{
	(void)one;
	static struct ibv_cq *made[OBJECTS];
	*make = TIMED(for (int i = 0; i < OBJECTS; i++) CHECK(made[i] = ibv_create_cq(context, 255, NULL, NULL, 0)));
	*unmake = TIMED(for (int i = 0; i < OBJECTS; i++) CHECK(!ibv_destroy_cq(made[i])));
	return OBJECTS;
}

static int make_mrs(const struct one *one, struct took *make, struct took *unmake)
{
	(void)one;
	static struct ibv_mr *made[OBJECTS];
	*make = TIMED(for (int i = 0; i < OBJECTS; i++) CHECK(made[i] = ibv_reg_mr(pd, buffer, 4096, IBV_ACCESS_LOCAL_WRITE)));
	*unmake = TIMED(for (int i = 0; i < OBJECTS; i++) CHECK(!ibv_dereg_mr(made[i])));
	return OBJECTS;
}

static int open_contexts(const struct one *one, struct took *open, struct took *close)
{
	(void)one;
	struct ibv_context *opened;
	*open = TIMED(CHECK(opened = ibv_open_device(context->device)));
	*close = TIMED(CHECK(!ibv_close_device(opened)));
	return 1;
}

// ---------------------------------------------------------------- what there is

static struct ibv_qp *make_qp(struct ibv_cq_ex *send, struct ibv_cq_ex *recv, struct ibv_srq *shared, int depth, int sges)
{
	struct ibv_qp_init_attr_ex attr = {
		.send_cq = ibv_cq_ex_to_cq(send), .recv_cq = ibv_cq_ex_to_cq(recv), .srq = shared, .qp_type = IBV_QPT_RC, .pd = domain,
		.cap = { .max_send_wr = (uint32_t)depth, .max_recv_wr = shared ? 0 : (uint32_t)depth, .max_send_sge = (uint32_t)sges,
			 .max_recv_sge = shared ? 0 : (uint32_t)sges, .max_inline_data = 64 },
		.comp_mask = IBV_QP_INIT_ATTR_PD | IBV_QP_INIT_ATTR_SEND_OPS_FLAGS,
		.send_ops_flags = IBV_QP_EX_WITH_RDMA_WRITE | IBV_QP_EX_WITH_SEND | IBV_QP_EX_WITH_RDMA_READ |
				  IBV_QP_EX_WITH_ATOMIC_FETCH_AND_ADD,
	};
	struct ibv_qp *qp = ibv_create_qp_ex(context, &attr);
	CHECK(qp);
	connect_to(qp, qp->qp_num, 1);
	return qp;
}

static struct ibv_cq_ex *make_cq(void)
{
	struct ibv_cq_init_attr_ex attr = {
		.cqe = CQ_DEPTH, .wc_flags = IBV_WC_EX_WITH_BYTE_LEN | IBV_WC_EX_WITH_QP_NUM,
		.comp_mask = IBV_CQ_INIT_ATTR_MASK_FLAGS, .flags = !strcmp(mode, "td") ? IBV_CREATE_CQ_ATTR_SINGLE_THREADED : 0,
	};
	if (!attr.flags)
		attr.comp_mask = 0;
	struct ibv_cq_ex *cq = ibv_create_cq_ex(context, &attr);
	CHECK(cq);
	return cq;
}

static void make_all(void)
{
	CHECK(context = open_device("mlx5_0"));
	CHECK(pd = domain = ibv_alloc_pd(context));
	if (!strcmp(mode, "td")) {
		struct ibv_td_init_attr attr = {};
		struct ibv_td *td = ibv_alloc_td(context, &attr);
		CHECK(td);
		struct ibv_parent_domain_init_attr parent = { .pd = pd, .td = td };
		CHECK(domain = ibv_alloc_parent_domain(context, &parent));
	}
	memset(buffer, 7, sizeof buffer);
	CHECK(mr = ibv_reg_mr(pd, buffer, sizeof buffer, IBV_ACCESS_LOCAL_WRITE | IBV_ACCESS_REMOTE_WRITE));
	send_cq = make_cq(), recv_cq = make_cq(), floor_cq = make_cq();
	struct ibv_srq_init_attr shape = { .attr = { .max_wr = DEPTH - 1, .max_sge = 1 } };
	CHECK(srq = ibv_create_srq(domain, &shape));
	for (int i = 0; i < QPS; i++) {
		bool floor = i == FLOOR;
		qps[i] = make_qp(floor ? floor_cq : send_cq, floor ? floor_cq : recv_cq, i == WITH_SRQ ? srq : NULL, DEPTH,
				 i == PIECES ? 2 : 1);
	}
}

// Made when it is first asked for: so many objects make the engine slower.
static void prepare_crowd(const struct one *one)
{
	for (int i = 0; i < CROWD && !crowd[i]; i++)
		crowd[i] = make_qp(send_cq, recv_cq, NULL, 16, 1);
	prepare(one);
}

#define WRITE8 .opcode = IBV_WR_RDMA_WRITE, .length = 8, .sges = 1, .is_inline = true
#define WRITE64 .opcode = IBV_WR_RDMA_WRITE, .length = 64, .sges = 1
#define SEND64 .opcode = IBV_WR_SEND, .length = 64, .sges = 1, .is_inline = true
#define TWO_SGES .opcode = IBV_WR_RDMA_WRITE, .length = 32, .sges = 2, .qp = PIECES
#define READ64 .opcode = IBV_WR_RDMA_READ, .length = 64, .sges = 1
#define FETCH_ADD .opcode = IBV_WR_ATOMIC_FETCH_AND_ADD, .length = 8, .sges = 1
#define FLOOR_SENDS .post = bare_sends, .complete = complete_bare, .poll = bare_poll
#define FLOOR_RECVS .post = bare_recvs, .complete = complete_bare, .poll = bare_poll
#define RECEIVE_POSTED .length = 64, .sges = 1, .receives = true
#define RECEIVE RECEIVE_POSTED, .complete = complete_recvs

// What is not said: posts by ibv_post_send, one a call, each signaled, on MAIN, polled by ibv_poll_cq, LIST a call.
static struct one cases[] = {
	{ "post-write8-inline", "poll-send", WRITE8, .batch = 1 },
	{ "post-write64", "poll-send-16", WRITE64 },
	{ "post-send64-inline", "ex-poll-send", SEND64, .poll = poll_extended, .batch = 1 },
	{ "post-write-2sge", NULL, TWO_SGES },
	{ "post-read64", NULL, READ64 },
	{ "post-fetch-add", NULL, FETCH_ADD },
	{ "post-write8-inline-signal16", NULL, WRITE8, .signal_each = 16 },
	{ "list-write8-inline", "ex-poll-send-16", WRITE8, .list = LIST, .poll = poll_extended },
	{ "list-write64", NULL, WRITE64, .list = LIST },
	{ "list-send64-inline", NULL, SEND64, .list = LIST },
	{ "list-write-2sge", NULL, TWO_SGES, .list = LIST },
	{ "list-read64", NULL, READ64, .list = LIST },
	{ "list-fetch-add", NULL, FETCH_ADD, .list = LIST },
	{ "list-write8-inline-signal16", NULL, WRITE8, .list = LIST, .signal_each = 16 },
	{ "wr-write8-inline", NULL, WRITE8, .post = build_write_inline },
	{ "wr-write64", NULL, WRITE64, .post = build_write },
	{ "wr-send64-inline", NULL, SEND64, .post = build_send_inline },
	{ "wr-write-2sge", NULL, TWO_SGES, .post = build_write_pieces },
	{ "wr-read64", NULL, READ64, .post = build_read },
	{ "wr-fetch-add", NULL, FETCH_ADD, .post = build_fetch_add },
	{ "wr-write8-inline-16", NULL, WRITE8, .list = LIST, .post = build_write_inline },
	{ "wr-write64-16", NULL, WRITE64, .list = LIST, .post = build_write },
	{ "wr-send64-inline-16", NULL, SEND64, .list = LIST, .post = build_send_inline },
	{ "wr-read64-16", NULL, READ64, .list = LIST, .post = build_read },
	{ "qp5-post-write8-inline", NULL, WRITE8, .qp = FIFTH },
	{ "qp5-post-write64", NULL, WRITE64, .qp = FIFTH },
	{ "qp5-post-send64-inline", NULL, SEND64, .qp = FIFTH },
	{ "qp5-wr-write8-inline", NULL, WRITE8, .qp = FIFTH, .post = build_write_inline },
	{ "recv", "poll-recv", RECEIVE, .post = post_recvs, .batch = 1 },
	{ "recv-16", "poll-recv-16", RECEIVE, .post = post_recvs, .list = LIST },
	{ NULL, "ex-poll-recv", RECEIVE, .post = post_recvs, .poll = poll_extended, .batch = 1 },
	{ NULL, "ex-poll-recv-16", RECEIVE, .post = post_recvs, .poll = poll_extended },
	{ "srq", "poll-srq", RECEIVE, .post = post_srq, .qp = WITH_SRQ, .batch = 1 },
	{ "srq-16", "poll-srq-16", RECEIVE, .post = post_srq, .qp = WITH_SRQ, .list = LIST },
	{ "poll-empty", "ex-poll-empty", WRITE8, .post = poll_nothing, .complete = complete_nothing, .poll = poll_nothing_extended },
	{ "qps16-post-write8-inline", "qps16-poll-send-16", WRITE8, .post = post_in_turn, .complete = complete_in_turn,
	  .qp = FIFTH, .count = 16 },
	{ "qps256-post-write8-inline", "qps256-poll-send-16", WRITE8, .post = post_in_turn, .complete = complete_in_turn,
	  .count = CROWD, .prepare = prepare_crowd },
	{ "floor-post", "floor-poll", WRITE8, FLOOR_SENDS, .qp = FLOOR, .batch = 1, .prepare = prepare_floor },
	{ "floor-list", "floor-poll-16", WRITE8, FLOOR_SENDS, .qp = FLOOR, .list = LIST,
	  .prepare = prepare_floor },
	{ "floor-recv", NULL, RECEIVE_POSTED, FLOOR_RECVS, .qp = FLOOR, .prepare = prepare_floor },
	{ "floor-recv-16", NULL, RECEIVE_POSTED, FLOOR_RECVS, .qp = FLOOR, .list = LIST, .prepare = prepare_floor },
	// The other queue pair of two stands where the batch does.
	{ "threads2-own-qps", NULL, WRITE8, .control = both_post, .count = 2, .batch = PIECES },
	{ "threads2-qps-5-17", NULL, WRITE8, .control = both_post, .qp = FIFTH, .count = 2, .batch = TWIN },
	{ "threads2-one-qp", NULL, WRITE8, .control = both_post },
	{ "create-qp", "destroy-qp", .control = make_qps },
	{ "create-cq", "destroy-cq", .control = make_cqs },
	{ "reg-mr", "dereg-mr", .control = make_mrs },
	{ "open-device", "close-device", .control = open_contexts },
};
#define CASES ((int)(sizeof cases / sizeof *cases))

static void fill_in(void)
{
	for (int i = 0; i < CASES; i++) {
		struct one *one = &cases[i];
#define DEFAULT(field, value) (one->field = one->field ? one->field : (value))
		DEFAULT(post, post_sends);
		DEFAULT(complete, complete_sends);
		DEFAULT(poll, poll_legacy);
		DEFAULT(prepare, prepare);
		DEFAULT(count, 1);
		DEFAULT(list, 1);
		DEFAULT(signal_each, 1);
		DEFAULT(batch, LIST);
	}
}

// ---------------------------------------------------------------- bursts

static int compare(const void *a, const void *b)
{
	double x = *(const double *)a, y = *(const double *)b;
	return (x > y) - (x < y);
}

static double median(double *values, int count)
{
	qsort(values, (size_t)count, sizeof *values, compare);
	return (values[(count - 1) / 2] + values[count / 2]) / 2;
}

// One burst, timed; says how many operations the two parts were.
static void burst(const struct one *one, struct took parts[2], int operations[2])
{
	if (one->control) {
		operations[0] = operations[1] = one->control(one, &parts[0], &parts[1]);
		return;
	}
	parts[0] = TIMED(one->post(one));
	int completions = one->complete(one);
	bool polls_nothing = one->post == poll_nothing;
	CHECK(completions == (polls_nothing ? 0 : OPS / one->signal_each));
	parts[1] = TIMED(one->poll(one, completions));
	CHECK(polls_nothing || polled_sum == expected_sum);
	operations[0] = OPS;
	operations[1] = polls_nothing ? OPS : completions;
}

// Cases that make the engine slower for all that follow, and such as need the machine to themselves, come after the others.
static const char *kind(const struct one *one)
{
	return one->control == both_post ? "threads" : one->control ? "objects" : one->prepare == prepare_crowd ? "crowd" : "queues";
}

static void begin_case(struct one *one)
{
	if (one->opcode || one->length)
		one->prepare(one);
	if (!one->control && one->post != poll_nothing && one->prepare != prepare_floor)
		check(one);
}

static void run(struct one *one, int bursts)
{
	static double cycles[2][MOST_BURSTS], ns[2][MOST_BURSTS];
	begin_case(one);
	// Two threads need more to say the same; those that make objects take longer.
	if (one->control == both_post)
		bursts = bursts * 2 < MOST_BURSTS ? bursts * 2 : MOST_BURSTS;
	else if (one->control)
		bursts = (bursts + 1) / 2;
	for (int i = -WARM_UP; i < bursts; i++) {
		struct took parts[2] = {};
		int operations[2];
		burst(one, parts, operations);
		for (int part = 0; part < 2 && i >= 0; part++) {
			cycles[part][i] = parts[part].cycles / operations[part];
			ns[part][i] = parts[part].ns / operations[part];
		}
	}
	end_second_thread();
	printf("%.3f %.3f %.3f %.3f\n", median(cycles[0], bursts), median(ns[0], bursts), median(cycles[1], bursts),
	       median(ns[1], bursts));
}

#ifdef COUNT
#include <valgrind/callgrind.h>

#define COUNTED_BURSTS 8

// Two passes, so that each part has a dump of its own.
static void count(struct one *one)
{
	int operations[2] = {};
	begin_case(one);
	for (int part = 0; part < 2; part++) {
		for (int i = -1; i < COUNTED_BURSTS; i++) {
			if (i == 0)
				CALLGRIND_ZERO_STATS;
			if (i >= 0 && part == 0)
				CALLGRIND_TOGGLE_COLLECT;
			one->post(one);
			if (i >= 0 && part == 0)
				CALLGRIND_TOGGLE_COLLECT;
			int completions = one->complete(one);
			if (i >= 0 && part == 1)
				CALLGRIND_TOGGLE_COLLECT;
			one->poll(one, completions);
			if (i >= 0 && part == 1)
				CALLGRIND_TOGGLE_COLLECT;
			if (i >= 0)
				operations[part] += part && completions ? completions : OPS;
		}
		CALLGRIND_DUMP_STATS;
	}
	printf("%d %d\n", operations[0], operations[1]);
}
#endif

#ifdef SIZE
#include "memory.h"
#endif

int main(int argc, char **argv)
{
	if (argc < 3) {
		fprintf(stderr, "usage: worker CPU|-1 shared|td [forget]\n");
		return 2;
	}
	mode = argv[2];
	// A worker that leaves one work request out: what looks at it has to notice.
	forget = argc > 3 && !strcmp(argv[3], "forget");
	choose_cpus(atoi(argv[1]));
	// Stock's queues lie in the heap, whose end would go back to the system with the last of them, and be asked for anew with the first:
	// half of what they take. A program has other things there.
	CHECK(mallopt(M_TRIM_THRESHOLD, INT_MAX));
	CHECK(holdfast_sim_sq);
	clock_init();
	fill_in();
	make_all();
	char line[64];
	while (fgets(line, sizeof line, stdin)) {
		int index, bursts;
		if (!strcmp(line, "cases\n")) {
			for (int i = 0; i < CASES; i++)
				if (cases[i].control != both_post || other_cpu >= 0)
					printf("%d %s %s %s\n", i, cases[i].first ?: "-", cases[i].second ?: "-", kind(&cases[i]));
			puts(".");
		} else if (sscanf(line, "run %d %d", &index, &bursts) == 2 && index >= 0 && index < CASES && bursts > 0 &&
			   bursts <= MOST_BURSTS) {
			run(&cases[index], bursts);
#ifdef COUNT
		} else if (sscanf(line, "count %d", &index) == 1 && index >= 0 && index < CASES && !cases[index].control) {
			count(&cases[index]);
#endif
#ifdef SIZE
		} else if (!strcmp(line, "size\n")) {
			size();
#endif
		} else {
			fprintf(stderr, "worker: what is '%s'?\n", line);
			return 1;
		}
		fflush(stdout);
	}
	return 0;
}
