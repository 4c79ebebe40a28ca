/* SPDX-License-Identifier: MIT OR Apache-2.0
 *
 * verbs-death: what a program with much in flight is owed when its device dies, and what it gets. In parts: the ledger
 * (death-ledger.c), the load (death-load.c), those who wait for completions (death-wait.c), the calls that a program may
 * make of a dead device (death-calls.c), and the order of it all (death.c, which has the manual).
 */
#ifndef HOLDFAST_CLIENTS_DEATH_H
#define HOLDFAST_CLIENTS_DEATH_H

#include "common.h"

#include <pthread.h>
#include <stdatomic.h>

/* ------------------------------------------------------------------ chance */

/* Each thread has its own, so that a seed means the same whatever the scheduler does. */
struct chance {
	uint64_t state;
};
struct chance chance_of(uint64_t seed, uint64_t what);
uint32_t pick(struct chance *r, uint32_t below);

/* ------------------------------------------------------------------ what is printed */

/* `SECONDS TEXT`, CLOCK_MONOTONIC: what happened when. */
void note(const char *fmt, ...) PRINTF(1, 2);
/* `fact NAME VALUE`: nothing in it varies between two runs. */
void fact(const char *fmt, ...) PRINTF(1, 2);
/* Appends to text that has `size` bytes, after a separator if it is not the first. */
void append(char *text, size_t size, const char *separator, const char *fmt, ...) PRINTF(4, 5);

/* ------------------------------------------------------------------ the ledger */

enum ending { OWED, ENDED_WELL, RETIRED, FLUSHED, ENDED_BADLY };

struct entry {
	uint8_t opcode; /* of its completion; sends */
	bool signalled;
	uint8_t ending;
};

/* One send queue, receive queue or SRQ: what was posted to it and how that ended. Entries are numbered from 0 in the order
 * of posting; those before `head` have all ended. A wr_id is the queue's number and the entry's. */
struct queue {
	struct device *dev;
	char name[24];
	uint32_t number; /* in the device's list, from 1 */
	uint32_t qp_num; /* 0: any */
	bool receives, shared;
	bool quiet; /* several threads poll it: their order says nothing */
	pthread_mutex_t lock;
	uint64_t head, tail;
	struct entry *ring;
	uint32_t size;
	bool flushing; /* one ended without success */
	uint64_t well, retired, flushed, badly;
};

struct queue *queue_new(struct device *dev, const char *name, uint32_t qp_num, bool receives, uint32_t size);
/* Both with the lock held: how many more may be posted; one is about to be. */
uint32_t queue_room(struct queue *q);
uint64_t queue_posting(struct queue *q, uint8_t opcode, bool signalled);
/* The last `n` were not posted after all. */
void queue_refused(struct queue *q, uint32_t n);
uint64_t queue_owed(struct queue *q);
/* A completion was polled. */
void ledger_ended(struct device *dev, const struct ibv_wc *wc);
/* Sums over queues: those whose name begins so. */
struct sums {
	uint64_t owed, well, retired, flushed, badly;
};
struct sums ledger_sums(struct device *dev, const char *begins);
/* What should never be: a list of names, or "none". */
void ledger_wrong(struct device *dev, char *text, size_t size);

/* ------------------------------------------------------------------ devices and loads */

enum load_kind { WRITE, SEND, SRQ, UD, XRC, ATOMIC, IDLE, LOAD_KINDS };
extern const char *const load_names[LOAD_KINDS];
enum wait_style { BUSY, START, BLOCK, POLL, EPOLL, EDGE, WAIT_STYLES };
extern const char *const wait_names[WAIT_STYLES];
static inline bool sleeps(enum wait_style w)
{
	return w >= BLOCK;
}

/* Two connected QPs: the first sends, the second receives. */
struct couple {
	struct ibv_qp *qp[2];
	struct ibv_qp_ex *ex; /* of the first, where the load posts by ibv_wr_* */
	struct ibv_ah *ah;
	struct queue *sends, *receives[2];
	uint32_t unsignalled; /* since the last that was not */
};

struct load {
	struct device *dev;
	enum load_kind kind;
	enum wait_style wait;
	bool by_wr; /* ibv_wr_*, not lists */
	char name[24];
	unsigned couples;
	struct couple *couple;
	struct ibv_srq *srq;
	uint32_t srqn;
	struct queue *shared;
	struct ibv_comp_channel *channel;
	unsigned cqs;
	struct ibv_cq *cq[2];
	struct ibv_cq_ex *cqx[2];
	struct chance chance;
	pthread_t poster, waiter;
	bool posting, waiting; /* the threads are there */
	_Atomic bool stop_waiting, waiter_ended;
	/* Idle loads: keeps what it got unacknowledged until `release`; polls on until `no_polls`, and then says `polls_no_more`. */
	bool keeps_event;
	struct ibv_cq *held; /* whose event that is */
	_Atomic bool has_event, no_polls, polls_no_more, release;
	int epoll_fd;
	/* How the sleeper woke after the death: "event", an errno; set once. */
	_Atomic bool woken;
	char wake[64];
	_Atomic unsigned strange_events; /* of a CQ that is none of ours */
};

struct object {
	const char *what;
	void *it;
	int (*destroy)(void *);
	int needs[8]; /* those that must outlive it */
	int n_needs, users;
	struct load *load; /* whose waiter must have ended before: CQs */
	bool gone;
};

struct settings {
	const char *name, *neighbour;
	int gid_index;
	bool kind[LOAD_KINDS], style[WAIT_STYLES];
	int by_wr; /* 0, 1, or -1: chance decides */
	unsigned couples, depth;
	long rest_us; /* of the busy, between two windows or empty polls */
	uint64_t seed;
	bool any_order;
	double limit; /* seconds that a completion may take after the last sign */
};
extern struct settings set;

#define WRONGS 16
struct device {
	struct ibv_context *ctx;
	struct ibv_pd *pd;
	struct ibv_mr *mr;
	struct ibv_xrcd *xrcd;
	struct ibv_port_attr port;
	union ibv_gid gid;
	uint64_t guid;
	uint8_t *buf;
	struct load *load;
	unsigned loads;
	struct queue **queue;
	uint32_t queues;
	struct object *object;
	int objects;
	_Atomic bool stop_posting;

	/* What the event thread saw. */
	pthread_t reader;
	bool reading;
	_Atomic bool stop_reading, reader_ended;
	pthread_mutex_t lock; /* of what follows */
	char events[16384]; /* a kernel that stops queue pairs may tell of each receive of a shared queue first */
	_Atomic bool told; /* of its death: by an event, or by a completion without success */
	_Atomic double early, final; /* when the events came; 0: they did not */
	double first_flush, last_flush;
	double all_flushed; /* the last of what was owed before `final` was ordered */
	_Atomic uint64_t completions;
	double last_completion, longest_gap;
	struct {
		const char *what;
		unsigned count;
	} wrong[WRONGS];
	char statuses[128]; /* other than success and flush */
};

/* Opens the device and makes all that the settings say; NULL or what stands in the way. `small`: one couple, RC writes. */
const char *device_open(struct device **dev, const char *name, uint64_t seed, bool small);
void device_start(struct device *dev);
/* How many completions came in all; every load has had some. */
bool device_flows(struct device *dev, uint64_t each);
void device_stop_posting(struct device *dev);
void device_wrong(struct device *dev, const char *what, const char *fmt, ...) PRINTF(3, 4);
/* Some more of everything, as of a program that does not know yet. */
void device_post_late(struct device *dev, char *text, size_t size);
void reader_start(struct device *dev);
void reader_stop(struct device *dev);
void waiter_start(struct load *l);
void waiter_stop(struct load *l);
int load_drain(struct load *l);
/* Posts receives in place of those that completed, while all is well. */
void load_replenish(struct load *l);
/* In an order of chance; `tell`: it is dead, and how that went is reported. All threads have ended then; `dev` is freed. */
void device_destroy(struct device *dev, bool tell);
/* The calls that a program may try on a dead device. */
void device_try_calls(struct device *dev);

/* ------------------------------------------------------------------ the process */

void start_thread(pthread_t *t, void *(*f)(void *), void *arg);
/* Interrupts what the thread sleeps in until it has ended, and joins it. */
void end_thread(pthread_t t, _Atomic bool *ended);
void rest(long us);

struct holdings {
	int fds, maps, threads;
	long resident_kb;
};
struct holdings holdings(void);

#endif
