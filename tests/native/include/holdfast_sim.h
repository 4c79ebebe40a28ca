/* holdfast_sim.h: what a program can ask of the native bed that it runs on (libholdfast_sim.so, preloaded).
 *
 * Declared weak: a program that calls none of these runs without the bed, too, and one that does can see whether it is there
 * (holdfast_sim_control != NULL).
 *
 * The environment says what there is, before the first device is looked for:
 *
 *   HOLDFAST_SIM_ENGINE=live|null   live (the default): a thread executes work requests.
 *                                   null: nothing happens but by the calls of the first part below
 *   HOLDFAST_SIM_DEVICES=N          mlx5_0, mlx5_1, ... (1); they are on one wire
 *   HOLDFAST_SIM_NET=NAME           processes of one user with the same name are on one wire ("default"); "none": this one is alone
 *   HOLDFAST_SIM_JOURNAL=PATH       what the devices saw, one line each; %p stands for the process's number
 *   HOLDFAST_SIM_SCRIPT=PATH        commands to run first, one a line (see holdfast_sim_control)
 *   HOLDFAST_SIM_NETLINK=on|off     off: devices are found in sysfs alone, as where RDMA netlink is missing (on)
 *   HOLDFAST_SIM_PATIENCE=SECONDS   how long a command waits for a device that does not answer, before ETIMEDOUT (60)
 */
#ifndef HOLDFAST_SIM_H
#define HOLDFAST_SIM_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define HOLDFAST_SIM_API __attribute__((weak))

/* ------------------------------------------------------------------ the null engine
 *
 * For benchmarks: each call but the last walks a queue pair's queues once, on the caller's thread, between timed parts. Work
 * requests are checked (index, queue pair, length) and a wrong one ends the process; nothing is moved anywhere. Completions
 * are written as a ConnectX writes them, the ownership byte last.
 *
 * Queue pairs are named by their number (ibv_qp.qp_num). Calls for one queue pair, or for two that share a completion
 * queue, must not run at the same time as each other or as the posting of what they consume. With the live engine, a call
 * ends the process. */

/* Consumes the send queue up to its doorbell record. Returns how many completions were written (signaled work requests). */
HOLDFAST_SIM_API int holdfast_sim_sq(uint32_t qpn);

/* As holdfast_sim_sq(), but one work request at most. */
HOLDFAST_SIM_API int holdfast_sim_sq1(uint32_t qpn);

/* Completes all receives posted, to the queue pair or to its shared receive queue, each as a send of `bytes` bytes. Returns
 * how many there were. */
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

/* What the live engine's thread would do, here and now: work requests are executed, data moves, events are raised, until
 * there is nothing left to do. Not to be mixed with the calls above for the same queue pair. Returns how often it looked. */
HOLDFAST_SIM_API int holdfast_sim_step(void);

/* ------------------------------------------------------------------ faults
 *
 * Runs one command; both engines. Returns 0, or -1 if it was refused. `answer` (may be NULL; `room` bytes) gets what there is
 * to say, or why it was refused. When it returns, the command has taken effect in this process, but for a removal that waits
 * for a command which the device does not answer.
 *
 *   fatal [lost|twice]     the driver finds the device in error: DEVICE_FATAL with element 1; commands fail, or are faked
 *   remove [lost|twice]    the device is taken away: its node goes, objects are destroyed, DEVICE_FATAL with element 0,
 *                          completion channels give EIO and POLLERR, doorbell pages are swapped for a dummy page
 *   kill                   die, fatal, remove
 *   return [other]         the device, or another in its place, is found
 *   refuse async|channel [N | but N], allow
 *                          commands that make such an event file fail with EPROTONOSUPPORT: each, the next N, all but the next N;
 *                          and do not any more
 *   die [alive] | silence | clear | qp N error | cq N error | port down | wire cut | command hang | ...
 *                          what the virtual ConnectX knows (tests/vhca/src/fault.rs)
 *   at TRIGGER: COMMAND    later: doorbell N [of qp Q], wqe N [of qp Q], cqe N [of cq C], command N [of NAME], time SECONDS
 *   status | objects | findings
 *
 * dN before a command says which device (d0). */
HOLDFAST_SIM_API int holdfast_sim_control(const char *command, char *answer, size_t room);

#ifdef __cplusplus
}
#endif
#endif
