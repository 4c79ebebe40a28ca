/* holdfast_sim.h: what a program can ask of the native bed that it runs on (libholdfast_sim.so, preloaded).
 *
 * Declared weak: a program that calls none of these runs without the bed, too, and one that does can see whether it is there
 * (holdfast_sim_sq != NULL).
 *
 * The null engine. It does nothing by itself: each call below walks a queue pair's queues once, on the caller's thread,
 * between timed parts. Work requests are checked (index, queue pair, length) and a wrong one ends the process; nothing is
 * moved anywhere. Completions are written as a ConnectX writes them, the ownership byte last.
 *
 * Queue pairs are named by their number (ibv_qp.qp_num). Calls for one queue pair, or for two that share a completion
 * queue, must not run at the same time as each other or as the posting of what they consume. */
#ifndef HOLDFAST_SIM_H
#define HOLDFAST_SIM_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define HOLDFAST_SIM_API __attribute__((weak))

/* Consumes the send queue up to its doorbell record. Returns how many completions were written (signaled work requests). */
HOLDFAST_SIM_API int holdfast_sim_sq(uint32_t qpn);

/* As holdfast_sim_sq(), but one work request at most. */
HOLDFAST_SIM_API int holdfast_sim_sq1(uint32_t qpn);

/* Completes all receives posted, each as a send of `bytes` bytes. Returns how many there were. */
HOLDFAST_SIM_API int holdfast_sim_rq(uint32_t qpn, uint32_t bytes);

#define HOLDFAST_SIM_FLUSH_CQ 1   /* clflush the lines of the send completion queue */
#define HOLDFAST_SIM_FLUSH_SQ 2   /* clflush the lines of the send queue */
#define HOLDFAST_SIM_DEMOTE_CQ 4  /* cldemote the lines of the send completion queue, then wait for it to happen */

/* Makes lines cold, as a real device leaves them. `what`: HOLDFAST_SIM_FLUSH_*, HOLDFAST_SIM_DEMOTE_CQ, combined. */
HOLDFAST_SIM_API void holdfast_sim_flush(uint32_t qpn, int what);

struct holdfast_sim_info {
	void *sq, *rq;            /* the queues */
	void *cq, *rcq;           /* send and receive completion queue */
	uint32_t *db;             /* doorbell record: receive word, send word */
	uint32_t *cdb, *rcdb;     /* those of the completion queues: consumer word, arm word */
	void *uar;                /* the doorbell page */
	uint32_t sq_cnt;          /* 64-byte blocks */
	uint32_t rq_cnt, rq_shift;
	uint32_t cq_size, rcq_size;
	uint32_t uidx, qpn;
	uint32_t cq_pi, rcq_pi;   /* completions written so far */
	uint32_t sq_ci, rq_ci;    /* blocks and receives consumed so far (16 bits count) */
};

/* What the queue pair is made of. 0, or -1 if there is none of that number. */
HOLDFAST_SIM_API int holdfast_sim_info(uint32_t qpn, struct holdfast_sim_info *info);

#ifdef __cplusplus
}
#endif
#endif
