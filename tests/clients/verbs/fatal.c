/* SPDX-License-Identifier: MIT OR Apache-2.0
 *
 * verbs-fatal DEVICE [PEER]: what a program sees while its device dies under it. Opens an IB device, connects two RC QPs of
 * it to each other (or one to one of the device PEER), keeps 16 RDMA writes in flight, prints each asynchronous event when
 * it comes, and does what stdin says:
 *
 *     verbs PHASE    tries the calls a program may make now, and reports what they return and what completed
 *     fill PHASE     posts until a post is refused
 *     stores N       arms the CQ and posts N times: stores to the doorbell page, whatever lies there by now
 *     forget         of what completed so far: it is reported no more
 *     close          destroys everything, reports which events came in all
 *     open NAME      waits until a device of that name can be opened and its port is active, writes to itself
 *     end
 *
 * Lines are `SECONDS TEXT` (CLOCK_MONOTONIC), but for `fact NAME VALUE`, in which nothing varies between two runs.
 */
#include "common.h"

#include <fcntl.h>
#include <poll.h>
#include <stdarg.h>
#include <time.h>
#include <unistd.h>

#define WINDOW 16
#define DEPTH 64
#define SPARES 4 /* QPs to try modify_qp on, one each time */

/* What a QP needs of its device. */
struct end {
	struct ibv_context *ctx;
	struct ibv_pd *pd;
	struct ibv_mr *mr;
	struct ibv_cq *cq;
	uint16_t lid;
};

static const char *peer_name;

static struct client {
	struct ibv_context *ctx;
	struct ibv_pd *pd;
	struct ibv_mr *mr;
	struct ibv_comp_channel *channel;
	struct ibv_cq *cq;
	struct end far; /* of the peer, where there is one */
	uint32_t rkey;
	struct ibv_qp *a, *b, *spare[SPARES];
	int spares_used;
	uint64_t guid;
	uint8_t *buf;
	uint64_t posted, completed;
	double last; /* when something completed */
	bool flowing, stalled;
	unsigned seen; /* statuses of completions since the last event, one bit each */
	char events[1024];
} c;

static double monotonic(void)
{
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

static void note(const char *fmt, ...) PRINTF(1, 2);
static void note(const char *fmt, ...)
{
	va_list ap;
	va_start(ap, fmt);
	printf("%.6f ", monotonic());
	vprintf(fmt, ap);
	putchar('\n');
	va_end(ap);
}

static void fact(const char *fmt, ...) PRINTF(1, 2);
static void fact(const char *fmt, ...)
{
	va_list ap;
	va_start(ap, fmt);
	printf("fact ");
	vprintf(fmt, ap);
	putchar('\n');
	va_end(ap);
}

/* ------------------------------------------------------------------ objects */

static struct ibv_qp *make_qp(struct ibv_pd *pd, struct ibv_cq *cq)
{
	struct ibv_qp_cap cap = { .max_send_wr = DEPTH, .max_recv_wr = 1, .max_send_sge = 1, .max_recv_sge = 1 };
	struct ibv_qp_init_attr a = qp_init(IBV_QPT_RC, cq, cq, cap);
	return ibv_create_qp(pd, &a);
}

static int modify(struct ibv_qp *qp, enum ibv_qp_state to, struct ibv_qp *peer, uint16_t lid)
{
	struct ibv_qp_attr a;
	memset(&a, 0, sizeof(a));
	a.qp_state = to;
	int mask = IBV_QP_STATE;
	switch (to) {
	case IBV_QPS_INIT:
		a.port_num = 1;
		a.qp_access_flags = IBV_ACCESS_REMOTE_WRITE;
		mask |= IBV_QP_PKEY_INDEX | IBV_QP_PORT | IBV_QP_ACCESS_FLAGS;
		break;
	case IBV_QPS_RTR:
		a.path_mtu = IBV_MTU_1024;
		a.dest_qp_num = peer->qp_num;
		a.max_dest_rd_atomic = 1;
		a.min_rnr_timer = 12;
		a.ah_attr = (struct ibv_ah_attr){ .dlid = lid, .port_num = 1 };
		mask |= IBV_QP_AV | IBV_QP_PATH_MTU | IBV_QP_DEST_QPN | IBV_QP_RQ_PSN | IBV_QP_MAX_DEST_RD_ATOMIC |
			IBV_QP_MIN_RNR_TIMER;
		break;
	case IBV_QPS_RTS:
		a.timeout = 14;
		a.retry_cnt = 7;
		a.rnr_retry = 7;
		a.max_rd_atomic = 1;
		mask |= IBV_QP_TIMEOUT | IBV_QP_RETRY_CNT | IBV_QP_RNR_RETRY | IBV_QP_SQ_PSN | IBV_QP_MAX_QP_RD_ATOMIC;
		break;
	default:
		break;
	}
	return ibv_modify_qp(qp, &a, mask);
}

static bool active(struct ibv_context *ctx, uint16_t *lid)
{
	struct ibv_port_attr port;
	if (ibv_query_port(ctx, 1, &port) || port.state != IBV_PORT_ACTIVE)
		return false;
	*lid = port.lid;
	return true;
}

static struct ibv_mr *register_buffer(struct ibv_pd *pd)
{
	return ibv_reg_mr(pd, c.buf, BUF_SIZE, IBV_ACCESS_LOCAL_WRITE | IBV_ACCESS_REMOTE_WRITE);
}

/* Returns what stands in the way, or NULL; then `c` is complete. */
static const char *set_up(const char *name)
{
	uint16_t lid;
	c = (struct client){ .ctx = open_device(name), .buf = c.buf, .guid = c.guid };
	if (!c.ctx)
		return "open";
	if (!active(c.ctx, &lid))
		return "port";
	c.pd = ibv_alloc_pd(c.ctx);
	c.channel = ibv_create_comp_channel(c.ctx);
	if (!c.pd || !c.channel)
		return "PD, channel";
	c.mr = register_buffer(c.pd);
	c.cq = ibv_create_cq(c.ctx, 4 * DEPTH, NULL, c.channel, 0);
	if (!c.mr || !c.cq)
		return "MR, CQ";
	struct end to = { c.ctx, c.pd, c.mr, c.cq, lid };
	if (peer_name) {
		if (!(c.far.ctx = open_device(peer_name)) || !active(c.far.ctx, &c.far.lid) ||
		    !(c.far.pd = ibv_alloc_pd(c.far.ctx)) || !(c.far.mr = register_buffer(c.far.pd)) ||
		    !(c.far.cq = ibv_create_cq(c.far.ctx, 1, NULL, NULL, 0)))
			return "the peer";
		to = c.far;
	}
	c.rkey = to.mr->rkey;
	c.a = make_qp(c.pd, c.cq);
	c.b = make_qp(to.pd, to.cq);
	if (!c.a || !c.b)
		return "QPs";
	struct ibv_qp *qp[2] = { c.a, c.b };
	uint16_t lids[2] = { lid, to.lid };
	static const enum ibv_qp_state steps[] = { IBV_QPS_INIT, IBV_QPS_RTR, IBV_QPS_RTS };
	for (size_t s = 0; s < ARRAY_SIZE(steps); s++)
		for (int i = 0; i < 2; i++)
			if (modify(qp[i], steps[s], qp[!i], lids[!i]))
				return "modify_qp";
	for (int i = 0; i < SPARES; i++)
		if (!(c.spare[i] = make_qp(c.pd, c.cq)) || modify(c.spare[i], IBV_QPS_INIT, NULL, 0))
			return "spare QPs";
	int fds[] = { c.ctx->async_fd, c.channel->fd };
	for (int i = 0; i < 2; i++)
		if (fcntl(fds[i], F_SETFL, fcntl(fds[i], F_GETFL) | O_NONBLOCK))
			return "fcntl";
	return NULL;
}

static int destroy_qp(struct ibv_qp **qp)
{
	int err = *qp ? ibv_destroy_qp(*qp) : 0;
	*qp = NULL;
	return err;
}

static void tear_down(bool tell)
{
	int qp = 0, err;
	for (int i = 0; i < SPARES; i++)
		if ((err = destroy_qp(&c.spare[i])))
			qp = err;
	if ((err = destroy_qp(&c.a)))
		qp = err;
	if ((err = destroy_qp(&c.b)))
		qp = err;
	if (c.far.cq)
		ibv_destroy_cq(c.far.cq);
	if (c.far.mr)
		ibv_dereg_mr(c.far.mr);
	if (c.far.pd)
		ibv_dealloc_pd(c.far.pd);
	if (c.far.ctx)
		ibv_close_device(c.far.ctx);
	int cq = c.cq ? ibv_destroy_cq(c.cq) : 0;
	int mr = c.mr ? ibv_dereg_mr(c.mr) : 0;
	int channel = c.channel ? ibv_destroy_comp_channel(c.channel) : 0;
	int pd = c.pd ? ibv_dealloc_pd(c.pd) : 0;
	errno = 0;
	int device = c.ctx && ibv_close_device(c.ctx) ? errno : 0;
	if (tell)
		fact("close destroy_qp=%s destroy_cq=%s dereg_mr=%s dealloc_pd=%s destroy_channel=%s close_device=%s",
		     errname(qp), errname(cq), errname(mr), errname(pd), errname(channel), errname(device));
	c = (struct client){ .buf = c.buf, .guid = c.guid };
}

/* ------------------------------------------------------------------ traffic */

static int post(void)
{
	struct ibv_sge sg = { .addr = (uintptr_t)c.buf, .length = 64, .lkey = c.mr->lkey };
	struct ibv_send_wr w = { .wr_id = c.posted, .sg_list = &sg, .num_sge = 1, .opcode = IBV_WR_RDMA_WRITE,
				 .send_flags = IBV_SEND_SIGNALED }, *bad;
	w.wr.rdma.remote_addr = (uintptr_t)(c.buf + 4096);
	w.wr.rdma.rkey = c.rkey;
	int err = ibv_post_send(c.a, &w, &bad);
	if (!err)
		c.posted++;
	return err;
}

static bool broken; /* a completion in error: this QP sends no more */

static int poll_cq(void)
{
	struct ibv_wc wc[WINDOW];
	int n = ibv_poll_cq(c.cq, WINDOW, wc);
	for (int i = 0; i < n; i++) {
		c.completed++;
		if (wc[i].status != IBV_WC_SUCCESS && !broken) {
			note("the first completion in error: %s", ibv_wc_status_str(wc[i].status));
			fact("first_error %s", ibv_wc_status_str(wc[i].status));
			broken = true;
		}
		c.seen |= 1u << wc[i].status;
	}
	if (n > 0) {
		c.last = monotonic();
		if (c.stalled)
			note("completions come again");
		c.stalled = false;
		if (!c.flowing && c.completed >= 100) {
			note("traffic flows from qp %u to qp %u", c.a->qp_num, c.b->qp_num);
			c.flowing = true;
		}
	} else if (!c.stalled && c.flowing && c.posted > c.completed && monotonic() - c.last > 0.5) {
		note("no completion since %.6f, %d outstanding", c.last, (int)(c.posted - c.completed));
		c.stalled = true;
	}
	return n;
}

static void events(void)
{
	struct ibv_async_event e;
	while (!ibv_get_async_event(c.ctx, &e)) {
		char text[64];
		snprintf(text, sizeof(text), "%d", (int)e.event_type);
		static const struct {
			enum ibv_event_type type;
			const char *name;
		} names[] = {
#define E(e) { IBV_EVENT_##e, #e }
			E(CQ_ERR), E(QP_FATAL), E(QP_REQ_ERR), E(QP_ACCESS_ERR), E(COMM_EST), E(SQ_DRAINED), E(PATH_MIG),
			E(PATH_MIG_ERR), E(DEVICE_FATAL), E(PORT_ACTIVE), E(PORT_ERR), E(LID_CHANGE), E(PKEY_CHANGE),
			E(SM_CHANGE), E(SRQ_ERR), E(SRQ_LIMIT_REACHED), E(QP_LAST_WQE_REACHED), E(CLIENT_REREGISTER),
			E(GID_CHANGE), E(WQ_FATAL),
#undef E
			{ (enum ibv_event_type)20, "DEVICE_SPEED_CHANGE" }, /* newer than some of the headers */
		};
		for (size_t i = 0; i < ARRAY_SIZE(names); i++)
			if (names[i].type == e.event_type)
				snprintf(text, sizeof(text), "%s", names[i].name);
		size_t n = strlen(text);
		switch (e.event_type) {
		case IBV_EVENT_CQ_ERR:
			snprintf(text + n, sizeof(text) - n, "/%s", e.element.cq == c.cq ? "cq" : "unknown");
			break;
		case IBV_EVENT_QP_FATAL: case IBV_EVENT_QP_REQ_ERR: case IBV_EVENT_QP_ACCESS_ERR: case IBV_EVENT_COMM_EST:
		case IBV_EVENT_SQ_DRAINED: case IBV_EVENT_PATH_MIG: case IBV_EVENT_PATH_MIG_ERR:
		case IBV_EVENT_QP_LAST_WQE_REACHED:
			snprintf(text + n, sizeof(text) - n, "/%s",
				 e.element.qp == c.a ? "sender" : e.element.qp == c.b ? "receiver" : "unknown");
			break;
		default:
			/* 1 of a fatal event is the port: the driver's own. 0 is that of uverbs, when the device is taken away. */
			snprintf(text + n, sizeof(text) - n, "/%d", e.element.port_num);
		}
		while (poll_cq() > 0)
			; /* what came before the event is not of after it */
		note("event %s after %llu completions, %d outstanding", text, (unsigned long long)c.completed,
		     (int)(c.posted - c.completed));
		n = strlen(c.events);
		snprintf(c.events + n, sizeof(c.events) - n, "%s%s", n ? "," : "", text);
		c.seen = 0;
		ibv_ack_async_event(&e);
	}
}

/* ------------------------------------------------------------------ orders */

static const char *completions(void)
{
	static char text[512];
	static const char *const names[] = {
		[IBV_WC_SUCCESS] = "SUCCESS", [IBV_WC_LOC_QP_OP_ERR] = "LOC_QP_OP_ERR", [IBV_WC_WR_FLUSH_ERR] = "WR_FLUSH_ERR",
		[IBV_WC_REM_ACCESS_ERR] = "REM_ACCESS_ERR", [IBV_WC_REM_OP_ERR] = "REM_OP_ERR",
		[IBV_WC_RETRY_EXC_ERR] = "RETRY_EXC_ERR", [IBV_WC_RNR_RETRY_EXC_ERR] = "RNR_RETRY_EXC_ERR",
		[IBV_WC_FATAL_ERR] = "FATAL_ERR", [IBV_WC_GENERAL_ERR] = "GENERAL_ERR",
	};
	*text = 0;
	for (unsigned i = 0; i < 32; i++) {
		if (!(c.seen & (1u << i)))
			continue;
		size_t n = strlen(text);
		const char *name = i < ARRAY_SIZE(names) && names[i] ? names[i] : NULL;
		if (name)
			snprintf(text + n, sizeof(text) - n, "%s%s", n ? "," : "", name);
		else
			snprintf(text + n, sizeof(text) - n, "%sstatus %u", n ? "," : "", i);
	}
	return *text ? text : "none";
}

/* Long enough for whatever still completes to do so, and for a stall to be one. */
static void let_run(double seconds)
{
	double end = monotonic() + seconds;
	while (monotonic() < end) {
		events();
		if (poll_cq() <= 0)
			poll(NULL, 0, 1);
		while (!broken && c.posted - c.completed < WINDOW && !post())
			;
	}
}

static void try_verbs(const char *phase)
{
	char text[512];
	size_t n = 0;
	struct ibv_port_attr port;
	struct ibv_qp *spare = c.spares_used < SPARES ? c.spare[c.spares_used++] : NULL;
	let_run(1);
#define TRY(name, err) (n += (size_t)snprintf(text + n, sizeof(text) - n, "%s" name "=%s", n ? " " : "", errname(err)))
	double began = monotonic();
	TRY("query_port", ibv_query_port(c.ctx, 1, &port));
	struct ibv_cq *cq = NULL;
	TRY("create_cq", ERR_OF_PTR(cq = ibv_create_cq(c.ctx, 1, NULL, NULL, 0)));
	struct ibv_mr *mr = NULL;
	TRY("reg_mr", ERR_OF_PTR(mr = ibv_reg_mr(c.pd, c.buf, 64, 0)));
	if (spare)
		TRY("modify_to_err", modify(spare, IBV_QPS_ERR, NULL, 0));
	TRY("post_send", broken ? ibv_req_notify_cq(c.cq, 0) : post());
	TRY("arm", ibv_req_notify_cq(c.cq, 0));
	struct ibv_cq *of;
	void *context;
	errno = 0;
	int got = ibv_get_cq_event(c.channel, &of, &context);
	if (!got)
		ibv_ack_cq_events(of, 1);
	TRY("cq_event", got && errno != EAGAIN ? errno : 0);
	struct ibv_context *again = NULL;
	TRY("open", ERR_OF_PTR(again = ibv_open_device(c.ctx->device)));
#undef TRY
	note("%s: the calls took %.1f s", phase, monotonic() - began);
	if (again)
		ibv_close_device(again);
	if (mr)
		ibv_dereg_mr(mr);
	if (cq)
		ibv_destroy_cq(cq);
	fact("%s.verbs %s", phase, text);
	fact("%s.completions %s", phase, completions());
	c.seen = 0;
}

static void fill_queue(const char *phase)
{
	int err = 0;
	for (int i = 0; i < 100 * DEPTH && !(err = post()); i++)
		poll_cq();
	fact("%s.fill %s", phase, err ? errname(err) : "never refused");
}

static void stores(long n)
{
	int arm = 0, send = 0, err;
	for (long i = 0; i < n; i++) {
		if ((err = ibv_req_notify_cq(c.cq, 0)))
			arm = err;
		if (!broken && (err = post()))
			send = err;
		poll_cq();
	}
	note("stores %ld: arm %s, post %s", n, errname(arm), errname(send));
}

static void close_all(void)
{
	events();
	/* No more posts: what is still to complete does. */
	double end = monotonic() + 1;
	while (c.posted > c.completed && monotonic() < end)
		if (poll_cq() > 0)
			end = monotonic() + 1;
	fact("events %s", *c.events ? c.events : "none");
	fact("never_completed %s", c.posted > c.completed ? "some" : "none");
	tear_down(true);
}

static void open_again(const char *name)
{
	const char *what = "";
	double end = monotonic() + 240;
	uint64_t guid = c.guid;
	while ((what = set_up(name))) {
		if (monotonic() > end) {
			fact("reopened no, at: %s", what);
			return;
		}
		tear_down(false);
		poll(NULL, 0, 50);
	}
	note("opened %s", name);
	broken = false;
	bool same = ibv_get_device_guid(c.ctx->device) == guid;
	while (c.completed < 100 && !broken && monotonic() < end) {
		while (c.posted - c.completed < WINDOW && !post())
			;
		poll_cq();
	}
	fact("reopened %s, guid=%s", c.completed >= 100 && !broken ? "ok" : "but writes fail", same ? "same" : "other");
}

static bool order(char *line)
{
	char *argument = strchr(line, ' ');
	if (argument)
		*argument++ = 0;
	if (!strcmp(line, "end"))
		return false;
	need(argument || !strcmp(line, "close") || !strcmp(line, "forget"), "an order with an argument");
	if (!strcmp(line, "open"))
		open_again(argument);
	else if (!c.ctx)
		need(false, "an order for a device that is closed");
	else if (!strcmp(line, "verbs"))
		try_verbs(argument);
	else if (!strcmp(line, "fill"))
		fill_queue(argument);
	else if (!strcmp(line, "stores"))
		stores(atol(argument));
	else if (!strcmp(line, "forget"))
		c.seen = 0;
	else if (!strcmp(line, "close"))
		close_all();
	else
		need(false, line);
	note("done: %s", line);
	return true;
}

int main(int argc, char **argv)
{
	struct options o;
	parse_options(&o, argc, argv, "DEVICE [PEER] < ORDERS");
	if (o.argc != 1 && o.argc != 2) {
		fprintf(stderr, "usage: %s DEVICE [PEER] < ORDERS\n", argv[0]);
		return 2;
	}
	peer_name = o.argc == 2 ? o.argv[1] : NULL;
	c.buf = aligned_alloc(4096, BUF_SIZE);
	need(c.buf, "allocate the buffer");
	const char *what = set_up(o.argv[0]);
	need(!what, what);
	c.guid = ibv_get_device_guid(c.ctx->device);
	check_provider(&o);

	char line[128];
	size_t have = 0;
	for (;;) {
		struct pollfd in = { .fd = 0, .events = POLLIN };
		if (c.ctx) {
			events();
			poll_cq();
			while (!broken && c.posted - c.completed < WINDOW && !post())
				;
		}
		/* With a rest after each window: a processor that does nothing but store to a trapped page leaves QEMU no time for
		 * the guest's files and interrupts. */
		if (poll(&in, 1, c.ctx ? 1 : -1) <= 0)
			continue;
		ssize_t n = read(0, line + have, 1);
		if (n <= 0)
			break;
		if (line[have] != '\n') {
			need(++have < sizeof(line), "a line that is not too long");
			continue;
		}
		line[have] = 0;
		have = 0;
		if (!order(line))
			break;
	}
	tear_down(false);
	return failed();
}
