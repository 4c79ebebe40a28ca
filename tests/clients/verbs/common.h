/* SPDX-License-Identifier: MIT OR Apache-2.0
 *
 * What the verbs test programs share: result lines, devices, queue pairs that are connected to each
 * other inside one process, and waiting with a deadline.
 *
 * Every program prints one line for each thing it finds out:
 *
 *     CASE group.topology.name: what happened
 *
 * with nothing in it that may differ between two runs on the same kernel (no numbers of objects, no
 * keys, no times), so that the lines of two providers can be compared. A finding that is wrong by the
 * documents adds `FAIL name: got ..., wanted ...`, and the program ends with status 1.
 */
#ifndef HOLDFAST_CLIENTS_COMMON_H
#define HOLDFAST_CLIENTS_COMMON_H

#include <errno.h>
#include <infiniband/verbs.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define ARRAY_SIZE(a) (sizeof(a) / sizeof((a)[0]))
#define PRINTF(f, a) __attribute__((format(printf, f, a)))

/* ------------------------------------------------------------------ results */

/* Sets what stands before the name of every case that follows. */
void prefix(const char *fmt, ...) PRINTF(1, 2);
/* Reports what happened, without a judgement: the other provider's line is the judge. */
void say(const char *name, const char *fmt, ...) PRINTF(2, 3);
/* Reports `ok` or `not ok`; the second is a failure. */
bool check(const char *name, bool ok);
/* Reports a number, an errno; another than `want` is a failure. */
bool want_int(const char *name, long long got, long long want);
bool want_errno(const char *name, int got, int want);
/* As want_errno, but on soft-RoCE only, and a failure only of a provider other than the stock one, which is known to
 * differ. */
bool strict_errno(const char *name, int got, int want);
bool strict_check(const char *name, bool ok);
bool strict_int(const char *name, long long got, long long want);
/* A step that the case needs and that is not its subject: the program ends if it failed. */
void need(bool ok, const char *what);
/* The status to end with: 0 if nothing failed. finish() says so besides, and that there were cases at all. */
int finish(void);
int failed(void);

const char *errname(int err);
/* A verb that returns a pointer: the errno, or 0 if it succeeded. */
#define ERR_OF_PTR(expr) (errno = 0, (expr) ? 0 : errno)

enum provider { PROVIDER_UNKNOWN, PROVIDER_STOCK, PROVIDER_HOLDFAST };
/* The provider that serves devices in this process, by /proc/self/maps. */
enum provider provider(void);
/* Whether the devices are soft-RoCE. Of others stock is the only judge. */
bool soft_roce(void);

/* For what is a kernel's doing, with any provider. */
bool kernel_before(int major, int minor);

/* Options common to all programs: fills names[] and wanted groups, see usage. */
struct options {
	const char *device[2];
	int gid_index;
	const char *expect; /* provider that must have been used, or NULL */
	int argc;           /* what is left */
	char **argv;
};
void parse_options(struct options *o, int argc, char **argv, const char *usage);
void check_provider(const struct options *o);

/* ------------------------------------------------------------------ devices */

/* Opens a device by name; NULL and errno if there is none. */
struct ibv_context *open_device(const char *name);

struct dev {
	const char *name;
	struct ibv_context *ctx;
	struct ibv_pd *pd;
	struct ibv_device_attr attr;
	struct ibv_port_attr port;
	union ibv_gid gid;
	int gid_index;
};

void dev_open(struct dev *d, const char *name, int gid_index);
void dev_close(struct dev *d);

/* ------------------------------------------------------------ pairs of QPs */

#define BUF_SIZE 65536
#define ALL_ACCESS                                                                                           \
	(IBV_ACCESS_LOCAL_WRITE | IBV_ACCESS_REMOTE_WRITE | IBV_ACCESS_REMOTE_READ | IBV_ACCESS_REMOTE_ATOMIC)

struct spec {
	enum ibv_qp_type type;
	uint32_t send_wr, recv_wr, send_sge, recv_sge, inl;
	int sq_sig_all;
	bool ex;           /* extended QP, for the ibv_wr_* builders */
	uint64_t send_ops; /* their operations */
	bool srq;          /* receives come from a shared receive queue */
	uint32_t cqe;
	bool channel; /* the CQs report to a completion channel */
	int access;   /* remote access of QP and MR; 0 = ALL_ACCESS */
	uint8_t retry_cnt, rnr_retry, timeout; /* 0 = 7, 7, 14; 0xff = 0 */
	enum ibv_mtu mtu;                      /* 0 = 1024 */
};

struct side {
	struct dev *dev;
	struct ibv_comp_channel *channel;
	struct ibv_cq *scq, *rcq;
	struct ibv_srq *srq;
	struct ibv_qp *qp;
	struct ibv_qp_ex *qpx;
	struct ibv_qp_cap cap;
	struct ibv_ah *ah; /* UD: towards the other side */
	struct ibv_mr *mr;
	uint8_t *buf;
};

struct pair {
	struct spec spec;
	struct side a, b;
};

#define QKEY 0x11111111

/* Zeroed with its padding, and these members. */
struct ibv_qp_init_attr qp_init(enum ibv_qp_type type, struct ibv_cq *scq, struct ibv_cq *rcq, struct ibv_qp_cap cap);
/* Creates both sides, connected and in RTS. Returns 0, or the errno of the first create or modify refused. */
int pair_open(struct pair *p, struct dev *da, struct dev *db, const struct spec *spec);
/* Destroys all; a refusal is a failure. */
void pair_close(struct pair *p);
/* Creates the QP of one side only (in RESET). */
int side_open(struct side *s, struct dev *d, const struct spec *spec);
void side_close(struct side *s);
/* The steps of connecting; each returns what ibv_modify_qp returned. */
int to_init(struct side *s, const struct spec *spec);
int to_rtr(struct side *s, struct side *peer, const struct spec *spec);
int to_rts(struct side *s, const struct spec *spec);
int to_state(struct ibv_qp *qp, enum ibv_qp_state state);

/* ------------------------------------------------------------------ traffic */

struct ibv_sge sge(struct side *s, size_t offset, uint32_t length);
/* Receives into [offset, offset + length). */
int recv_one(struct side *s, uint64_t wr_id, size_t offset, uint32_t length);
int send_wr(struct side *s, struct ibv_send_wr *wr);
/* Zeroed, SIGNALED, with one SGE if sg is not NULL. */
struct ibv_send_wr wr(enum ibv_wr_opcode opcode, uint64_t wr_id, struct ibv_sge *sg);
/* Towards the peer's buffer at offset. */
void wr_rdma(struct ibv_send_wr *w, struct side *peer, size_t offset);
void wr_ud(struct ibv_send_wr *w, struct side *from, struct side *to);

/* Polls until `n` completions came or the time is over; returns how many came. */
int wait_wc(struct ibv_cq *cq, struct ibv_wc *wc, int n);
/* One completion; false when none came in time (and wc is zeroed). */
bool wait_one(struct ibv_cq *cq, struct ibv_wc *wc);
/* Reports a completion's fields that are defined for it. */
void say_wc(const char *name, const struct ibv_wc *wc);
/* Waits for one completion and reports it; a status other than `status` is a failure. */
struct ibv_wc want_wc(const char *name, struct ibv_cq *cq, uint64_t wr_id, enum ibv_wc_status status);
struct ibv_wc strict_wc(const char *name, struct ibv_cq *cq, uint64_t wr_id, enum ibv_wc_status status);
/* True if no completion is there, and none comes in a short while. */
bool stays_empty(struct ibv_cq *cq);

void fill(uint8_t *p, size_t n, unsigned seed);
bool same(const uint8_t *p, size_t n, unsigned seed);
bool all_bytes(const uint8_t *p, size_t n, uint8_t value);

double now(void);
/* True once fd is readable; false after `ms`. */
bool readable(int fd, int ms);

/* Runs f in a child and reports `exit N` or `SIGNAL`: what may crash must not take the others along. */
int in_child(void (*f)(void *), void *arg, char *how, size_t size);

#define LIMIT_S 30.0 /* no single wait is longer, and none is ever reached when all is well */

#endif
