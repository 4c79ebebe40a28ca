/* SPDX-License-Identifier: MIT OR Apache-2.0 */
#include "common.h"

#include <fcntl.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdarg.h>
#include <sys/mman.h>
#include <sys/utsname.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

/* ------------------------------------------------------------------ results */

static char the_prefix[128];
static char last_case[256] = "start";
static unsigned cases, failures;

void prefix(const char *fmt, ...)
{
	va_list ap;
	va_start(ap, fmt);
	vsnprintf(the_prefix, sizeof(the_prefix), fmt, ap);
	va_end(ap);
}

static void line(const char *name, const char *text)
{
	snprintf(last_case, sizeof(last_case), "%s.%s", the_prefix, name);
	printf("CASE %s: %s\n", last_case, text);
	fflush(stdout);
	cases++;
}

static void fail(const char *got, const char *want)
{
	printf("FAIL %s: got %s, wanted %s\n", last_case, got, want);
	fflush(stdout);
	failures++;
}

void say(const char *name, const char *fmt, ...)
{
	char text[1024];
	va_list ap;
	va_start(ap, fmt);
	vsnprintf(text, sizeof(text), fmt, ap);
	va_end(ap);
	line(name, text);
}

bool check(const char *name, bool ok)
{
	line(name, ok ? "ok" : "not ok");
	if (!ok)
		fail("not ok", "ok");
	return ok;
}

bool want_int(const char *name, long long got, long long want)
{
	char g[32], w[32];
	snprintf(g, sizeof(g), "%lld", got);
	snprintf(w, sizeof(w), "%lld", want);
	line(name, g);
	if (got != want)
		fail(g, w);
	return got == want;
}

bool want_errno(const char *name, int got, int want)
{
	line(name, errname(got));
	if (got != want)
		fail(errname(got), errname(want));
	return got == want;
}

static bool is_soft_roce = true;

bool soft_roce(void)
{
	return is_soft_roce;
}

static bool lenient(void)
{
	return !is_soft_roce || provider() == PROVIDER_STOCK;
}

bool strict_errno(const char *name, int got, int want)
{
	line(name, errname(got));
	if (got != want && !lenient())
		fail(errname(got), errname(want));
	return got == want;
}

bool strict_check(const char *name, bool ok)
{
	line(name, ok ? "ok" : "not ok");
	if (!ok && !lenient())
		fail("not ok", "ok");
	return ok;
}

bool strict_int(const char *name, long long got, long long want)
{
	char g[32], w[32];
	snprintf(g, sizeof(g), "%lld", got);
	snprintf(w, sizeof(w), "%lld", want);
	line(name, g);
	if (got != want && !lenient())
		fail(g, w);
	return got == want;
}

void need(bool ok, const char *what)
{
	if (ok)
		return;
	printf("FAIL after %s: cannot go on: %s: %s\n", last_case, what, strerror(errno));
	fflush(stdout);
	_exit(1);
}

int failed(void)
{
	return failures != 0;
}

int finish(void)
{
	printf("DONE cases=%u failures=%u\n", cases, failures);
	return failures || !cases;
}

const char *errname(int err)
{
	static const struct {
		int err;
		const char *name;
	} names[] = {
#define E(e) { e, #e }
		E(EPERM), E(ENOENT), E(EINTR), E(EIO), E(ENXIO), E(E2BIG), E(EBADF), E(EAGAIN), E(ENOMEM),
		E(EACCES), E(EFAULT), E(EBUSY), E(EEXIST), E(ENODEV), E(EINVAL), E(ENFILE), E(EMFILE),
		E(ENOTTY), E(ENOSPC), E(EPIPE), E(ERANGE), E(ENOSYS), E(EPROTONOSUPPORT), E(EOPNOTSUPP),
		E(ENETUNREACH), E(ETIMEDOUT), E(EHOSTUNREACH), E(EDEADLK), E(EOVERFLOW), E(EMSGSIZE),
		E(EPROTO), E(ENOLINK), E(ENODATA), E(EDESTADDRREQ), E(EADDRNOTAVAIL), E(ESTALE), E(ECANCELED),
#undef E
	};
	static char other[4][24];
	static unsigned n;
	if (!err)
		return "0";
	for (size_t i = 0; i < ARRAY_SIZE(names); i++)
		if (names[i].err == err)
			return names[i].name;
	char *o = other[n++ % 4];
	snprintf(o, sizeof(other[0]), "errno %d", err);
	return o;
}

enum provider provider(void)
{
	static enum provider found;
	if (found)
		return found;
	FILE *f = fopen("/proc/self/maps", "r");
	char *l = NULL;
	size_t n = 0;
	enum provider p = PROVIDER_UNKNOWN;
	while (f && getline(&l, &n, f) > 0) {
		if (strstr(l, "libholdfast") && !strstr(l, "libholdfast_sim"))
			p = PROVIDER_HOLDFAST;
		else if ((strstr(l, "librxe") || strstr(l, "libmlx5")) && p == PROVIDER_UNKNOWN)
			p = PROVIDER_STOCK;
	}
	free(l);
	if (f)
		fclose(f);
	return found = p;
}

static const char *provider_name(enum provider p)
{
	return p == PROVIDER_HOLDFAST ? "holdfast" : p == PROVIDER_STOCK ? "stock" : "unknown";
}

static void on_alarm(int sig)
{
	(void)sig;
	static const char text[] = "FAIL watchdog: hangs after ";
	if (write(1, text, sizeof(text) - 1) < 0 || write(1, last_case, strlen(last_case)) < 0 ||
	    write(1, "\n", 1) < 0)
		_exit(4);
	_exit(3);
}

void parse_options(struct options *o, int argc, char **argv, const char *usage)
{
	int c;
	unsigned limit = 600;
	*o = (struct options){ .device = { "rxe0", "rxe1" }, .gid_index = 1 };
	while ((c = getopt(argc, argv, "+d:e:g:p:t:h")) != -1) {
		switch (c) {
		case 'd': o->device[0] = optarg; break;
		case 'e': o->device[1] = optarg; break;
		case 'g': o->gid_index = atoi(optarg); break;
		case 'p': o->expect = optarg; break;
		case 't': limit = (unsigned)atoi(optarg); break;
		default:
			fprintf(stderr,
				"usage: %s [-d DEVICE] [-e PEER] [-g GID_INDEX] [-p stock|holdfast] [-t SECONDS] %s\n"
				"  -d, -e  the two devices (rxe0, rxe1)    -g  index of the GIDs to use (1)\n"
				"  -p      fail if another provider serves them    -t  end after that time (600)\n",
				argv[0], usage);
			exit(c == 'h' ? 0 : 2);
		}
	}
	is_soft_roce = !strncmp(o->device[0], "rxe", 3);
	o->argc = argc - optind;
	o->argv = argv + optind;
	signal(SIGALRM, on_alarm);
	alarm(limit);
	setvbuf(stdout, NULL, _IOLBF, 0);
}

void check_provider(const struct options *o)
{
	fprintf(stderr, "provider: %s\n", provider_name(provider()));
	if (o->expect && strcmp(o->expect, provider_name(provider()))) {
		printf("FAIL provider: got %s, wanted %s\n", provider_name(provider()), o->expect);
		failures++;
	}
}

bool kernel_before(int major, int minor)
{
	struct utsname u;
	int a = 0, b = 0;
	uname(&u);
	sscanf(u.release, "%d.%d", &a, &b);
	return a < major || (a == major && b < minor);
}

/* ------------------------------------------------------------------ devices */

struct ibv_context *open_device(const char *name)
{
	int n = 0;
	struct ibv_device **list = ibv_get_device_list(&n);
	struct ibv_context *ctx = NULL;
	int err = ENODEV;
	for (int i = 0; list && i < n; i++) {
		if (strcmp(ibv_get_device_name(list[i]), name))
			continue;
		errno = 0;
		ctx = ibv_open_device(list[i]);
		err = errno;
	}
	if (list)
		ibv_free_device_list(list);
	errno = ctx ? 0 : err;
	return ctx;
}

void dev_open(struct dev *d, const char *name, int gid_index)
{
	*d = (struct dev){ .name = name, .gid_index = gid_index };
	d->ctx = open_device(name);
	need(d->ctx, "open device");
	d->pd = ibv_alloc_pd(d->ctx);
	need(d->pd, "allocate PD");
	need(!(errno = ibv_query_device(d->ctx, &d->attr)), "query device");
	need(!(errno = ibv_query_port(d->ctx, 1, &d->port)), "query port");
	need(!ibv_query_gid(d->ctx, 1, gid_index, &d->gid), "query GID");
}

void dev_close(struct dev *d)
{
	need(!(errno = ibv_dealloc_pd(d->pd)), "deallocate PD");
	need(!ibv_close_device(d->ctx), "close device");
	d->ctx = NULL;
}

/* ------------------------------------------------------------ pairs of QPs */

struct ibv_qp_init_attr qp_init(enum ibv_qp_type type, struct ibv_cq *scq, struct ibv_cq *rcq, struct ibv_qp_cap cap)
{
	struct ibv_qp_init_attr a;
	memset(&a, 0, sizeof(a)); /* padding too: libibverbs 33 takes it for a comp_mask */
	a.send_cq = scq;
	a.recv_cq = rcq;
	a.cap = cap;
	a.qp_type = type;
	return a;
}

int side_open(struct side *s, struct dev *d, const struct spec *spec)
{
	*s = (struct side){ .dev = d };
	int access = spec->access ? spec->access : ALL_ACCESS;
	int cqe = spec->cqe ? (int)spec->cqe : 256;

	s->buf = mmap(NULL, BUF_SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	need(s->buf != MAP_FAILED, "map a buffer");
	s->mr = ibv_reg_mr(d->pd, s->buf, BUF_SIZE, access);
	need(s->mr, "register the buffer");
	if (spec->channel) {
		s->channel = ibv_create_comp_channel(d->ctx);
		need(s->channel, "create a completion channel");
	}
	s->scq = ibv_create_cq(d->ctx, cqe, s, s->channel, 0);
	need(s->scq, "create the send CQ");
	s->rcq = ibv_create_cq(d->ctx, cqe, s, s->channel, 0);
	need(s->rcq, "create the receive CQ");
	if (spec->srq) {
		struct ibv_srq_init_attr a = { .attr = { .max_wr = 64, .max_sge = 4 } };
		s->srq = ibv_create_srq(d->pd, &a);
		need(s->srq, "create the SRQ");
	}
	struct ibv_qp_cap cap = {
		.max_send_wr = spec->send_wr ? spec->send_wr : 64,
		.max_recv_wr = spec->recv_wr ? spec->recv_wr : 64,
		.max_send_sge = spec->send_sge ? spec->send_sge : 4,
		.max_recv_sge = spec->recv_sge ? spec->recv_sge : 4,
		.max_inline_data = spec->inl,
	};
	errno = 0;
	if (spec->ex) {
		struct ibv_qp_init_attr_ex a = {
			.qp_context = s, .send_cq = s->scq, .recv_cq = s->rcq, .srq = s->srq, .cap = cap,
			.qp_type = spec->type, .sq_sig_all = spec->sq_sig_all, .pd = d->pd,
			.comp_mask = IBV_QP_INIT_ATTR_PD | IBV_QP_INIT_ATTR_SEND_OPS_FLAGS,
			.send_ops_flags = spec->send_ops,
		};
		s->qp = ibv_create_qp_ex(d->ctx, &a);
		s->cap = a.cap;
		s->qpx = s->qp ? ibv_qp_to_qp_ex(s->qp) : NULL;
	} else {
		struct ibv_qp_init_attr a = qp_init(spec->type, s->scq, s->rcq, cap);
		a.qp_context = s;
		a.srq = s->srq;
		a.sq_sig_all = spec->sq_sig_all;
		s->qp = ibv_create_qp(d->pd, &a);
		s->cap = a.cap;
	}
	return s->qp ? 0 : errno ? errno : EPROTO;
}

static void gone(const char *what, int err)
{
	if (!err)
		return;
	snprintf(last_case, sizeof(last_case), "%s.cleanup.%s", the_prefix, what);
	fail(errname(err), "0");
}

void side_close(struct side *s)
{
	if (s->ah)
		gone("ah", ibv_destroy_ah(s->ah));
	if (s->qp)
		gone("qp", ibv_destroy_qp(s->qp));
	if (s->srq)
		gone("srq", ibv_destroy_srq(s->srq));
	if (s->scq)
		gone("scq", ibv_destroy_cq(s->scq));
	if (s->rcq)
		gone("rcq", ibv_destroy_cq(s->rcq));
	if (s->channel)
		gone("channel", ibv_destroy_comp_channel(s->channel));
	if (s->mr)
		gone("mr", ibv_dereg_mr(s->mr));
	if (s->buf)
		munmap(s->buf, BUF_SIZE);
	*s = (struct side){ 0 };
}

int to_init(struct side *s, const struct spec *spec)
{
	struct ibv_qp_attr a = { .qp_state = IBV_QPS_INIT, .port_num = 1 };
	enum ibv_qp_type type = s->qp->qp_type;
	int mask = IBV_QP_STATE | IBV_QP_PKEY_INDEX | IBV_QP_PORT;
	if (type == IBV_QPT_UD) {
		a.qkey = QKEY;
		mask |= IBV_QP_QKEY;
	} else {
		a.qp_access_flags = (unsigned)(spec->access ? spec->access : ALL_ACCESS);
		if (type == IBV_QPT_UC)
			a.qp_access_flags &= IBV_ACCESS_LOCAL_WRITE | IBV_ACCESS_REMOTE_WRITE;
		mask |= IBV_QP_ACCESS_FLAGS;
	}
	return ibv_modify_qp(s->qp, &a, mask);
}

int to_rtr(struct side *s, struct side *peer, const struct spec *spec)
{
	struct ibv_qp_attr a = {
		.qp_state = IBV_QPS_RTR,
		.path_mtu = spec->mtu ? spec->mtu : IBV_MTU_1024,
		.dest_qp_num = peer->qp->qp_num,
		.rq_psn = 0x1234,
		.max_dest_rd_atomic = 4,
		.min_rnr_timer = 1,
		/* The LID is 0 on Ethernet, where nobody looks at it. */
		.ah_attr = { .is_global = 1, .port_num = 1, .dlid = peer->dev->port.lid,
			     .grh = { .dgid = peer->dev->gid, .sgid_index = (uint8_t)s->dev->gid_index,
				      .hop_limit = 64 } },
	};
	enum ibv_qp_type type = s->qp->qp_type;
	int mask = IBV_QP_STATE;
	if (type != IBV_QPT_UD)
		mask |= IBV_QP_AV | IBV_QP_PATH_MTU | IBV_QP_DEST_QPN | IBV_QP_RQ_PSN;
	if (type == IBV_QPT_RC || type == IBV_QPT_XRC_RECV)
		mask |= IBV_QP_MAX_DEST_RD_ATOMIC | IBV_QP_MIN_RNR_TIMER;
	return ibv_modify_qp(s->qp, &a, mask);
}

static uint8_t or_default(uint8_t given, uint8_t otherwise)
{
	return given == 0xff ? 0 : given ? given : otherwise;
}

int to_rts(struct side *s, const struct spec *spec)
{
	struct ibv_qp_attr a = {
		.qp_state = IBV_QPS_RTS,
		.sq_psn = 0x1234,
		.timeout = or_default(spec->timeout, 14),
		.retry_cnt = or_default(spec->retry_cnt, 7),
		.rnr_retry = or_default(spec->rnr_retry, 7),
		.max_rd_atomic = 4,
	};
	enum ibv_qp_type type = s->qp->qp_type;
	int mask = IBV_QP_STATE | IBV_QP_SQ_PSN;
	if (type == IBV_QPT_RC || type == IBV_QPT_XRC_SEND)
		mask |= IBV_QP_TIMEOUT | IBV_QP_RETRY_CNT | IBV_QP_RNR_RETRY | IBV_QP_MAX_QP_RD_ATOMIC;
	else if (type == IBV_QPT_XRC_RECV)
		mask |= IBV_QP_TIMEOUT;
	return ibv_modify_qp(s->qp, &a, mask);
}

int to_state(struct ibv_qp *qp, enum ibv_qp_state state)
{
	struct ibv_qp_attr a = { .qp_state = state };
	return ibv_modify_qp(qp, &a, IBV_QP_STATE);
}

int pair_open(struct pair *p, struct dev *da, struct dev *db, const struct spec *spec)
{
	struct side *sides[2] = { &p->a, &p->b };
	int err;
	*p = (struct pair){ .spec = *spec };
	err = side_open(&p->a, da, spec);
	if (!err)
		err = side_open(&p->b, db, spec);
	for (int i = 0; i < 2 && !err; i++)
		err = to_init(sides[i], spec);
	for (int i = 0; i < 2 && !err; i++)
		err = to_rtr(sides[i], sides[!i], spec);
	for (int i = 0; i < 2 && !err; i++)
		err = to_rts(sides[i], spec);
	for (int i = 0; i < 2 && !err && spec->type == IBV_QPT_UD; i++) {
		struct ibv_ah_attr a = {
			.is_global = 1, .port_num = 1, .dlid = sides[!i]->dev->port.lid,
			.grh = { .dgid = sides[!i]->dev->gid, .hop_limit = 64,
				 .sgid_index = (uint8_t)sides[i]->dev->gid_index },
		};
		sides[i]->ah = ibv_create_ah(sides[i]->dev->pd, &a);
		if (!sides[i]->ah)
			err = errno ? errno : EPROTO;
	}
	if (err)
		pair_close(p);
	return err;
}

void pair_close(struct pair *p)
{
	side_close(&p->a);
	side_close(&p->b);
}

/* ------------------------------------------------------------------ traffic */

struct ibv_sge sge(struct side *s, size_t offset, uint32_t length)
{
	return (struct ibv_sge){ .addr = (uintptr_t)(s->buf + offset), .length = length, .lkey = s->mr->lkey };
}

int recv_one(struct side *s, uint64_t wr_id, size_t offset, uint32_t length)
{
	struct ibv_sge sg = sge(s, offset, length);
	struct ibv_recv_wr w = { .wr_id = wr_id, .sg_list = &sg, .num_sge = length ? 1 : 0 }, *bad;
	return s->srq ? ibv_post_srq_recv(s->srq, &w, &bad) : ibv_post_recv(s->qp, &w, &bad);
}

int send_wr(struct side *s, struct ibv_send_wr *w)
{
	struct ibv_send_wr *bad;
	return ibv_post_send(s->qp, w, &bad);
}

struct ibv_send_wr wr(enum ibv_wr_opcode opcode, uint64_t wr_id, struct ibv_sge *sg)
{
	struct ibv_send_wr w;
	memset(&w, 0, sizeof(w));
	w.opcode = opcode;
	w.wr_id = wr_id;
	w.send_flags = IBV_SEND_SIGNALED;
	w.sg_list = sg;
	w.num_sge = sg ? 1 : 0;
	return w;
}

void wr_rdma(struct ibv_send_wr *w, struct side *peer, size_t offset)
{
	w->wr.rdma.remote_addr = (uintptr_t)(peer->buf + offset);
	w->wr.rdma.rkey = peer->mr->rkey;
}

void wr_ud(struct ibv_send_wr *w, struct side *from, struct side *to)
{
	w->wr.ud.ah = from->ah;
	w->wr.ud.remote_qpn = to->qp->qp_num;
	w->wr.ud.remote_qkey = QKEY;
}

/* Once something never came, what follows is not waited for as long: the run has failed, and shall end. */
static double limit = LIMIT_S;

int wait_wc(struct ibv_cq *cq, struct ibv_wc *wc, int n)
{
	double end = now() + limit;
	int got = 0;
	while (got < n) {
		int r = ibv_poll_cq(cq, n - got, wc + got);
		if (r < 0)
			return r;
		got += r;
		if (!r) {
			if (now() > end) {
				limit = limit > 4 ? limit / 3 : limit > 0.5 ? limit / 2 : limit;
				break;
			}
			sched_yield();
		}
	}
	return got;
}

bool wait_one(struct ibv_cq *cq, struct ibv_wc *wc)
{
	memset(wc, 0, sizeof(*wc));
	return wait_wc(cq, wc, 1) == 1;
}

static const char *opcode_name(int op)
{
	switch (op) {
	case IBV_WC_SEND: return "SEND";
	case IBV_WC_RDMA_WRITE: return "RDMA_WRITE";
	case IBV_WC_RDMA_READ: return "RDMA_READ";
	case IBV_WC_COMP_SWAP: return "COMP_SWAP";
	case IBV_WC_FETCH_ADD: return "FETCH_ADD";
	case IBV_WC_BIND_MW: return "BIND_MW";
	case IBV_WC_LOCAL_INV: return "LOCAL_INV";
	case IBV_WC_RECV: return "RECV";
	case IBV_WC_RECV_RDMA_WITH_IMM: return "RECV_RDMA_WITH_IMM";
	case 8: return "FLUSH";
	case 9: return "ATOMIC_WRITE";
	default: {
		static char other[16];
		snprintf(other, sizeof(other), "%d", op);
		return other;
	}
	}
}

static void show_wc(char *text, size_t size, const struct ibv_wc *wc)
{
	int n = snprintf(text, size, "id %llu %s", (unsigned long long)wc->wr_id, ibv_wc_status_str(wc->status));
	if (wc->status == IBV_WC_SUCCESS && n > 0) {
		n += snprintf(text + n, size - (size_t)n, ", %s", opcode_name((int)wc->opcode));
		if (wc->opcode & IBV_WC_RECV || wc->opcode == IBV_WC_RDMA_READ)
			n += snprintf(text + n, size - (size_t)n, " %u bytes", wc->byte_len);
		if (wc->wc_flags & IBV_WC_WITH_IMM)
			n += snprintf(text + n, size - (size_t)n, ", imm %#x", be32toh(wc->imm_data));
		snprintf(text + n, size - (size_t)n, ", flags %#x", (unsigned)wc->wc_flags);
	} else if (n > 0 && wc->vendor_err) {
		snprintf(text + n, size - (size_t)n, ", vendor_err %u", wc->vendor_err);
	}
}

void say_wc(const char *name, const struct ibv_wc *wc)
{
	char text[256];
	show_wc(text, sizeof(text), wc);
	line(name, text);
}

static struct ibv_wc expect_wc(const char *name, struct ibv_cq *cq, uint64_t wr_id, enum ibv_wc_status status,
			       bool excused)
{
	struct ibv_wc wc;
	char text[256], want[64];
	snprintf(want, sizeof(want), "id %llu %s", (unsigned long long)wr_id, ibv_wc_status_str(status));
	if (!wait_one(cq, &wc)) {
		line(name, "no completion");
		if (!excused)
			fail("no completion", want);
		wc.status = IBV_WC_GENERAL_ERR;
		return wc;
	}
	show_wc(text, sizeof(text), &wc);
	line(name, text);
	if ((wc.wr_id != wr_id || wc.status != status) && !excused)
		fail(text, want);
	return wc;
}

struct ibv_wc want_wc(const char *name, struct ibv_cq *cq, uint64_t wr_id, enum ibv_wc_status status)
{
	return expect_wc(name, cq, wr_id, status, false);
}

struct ibv_wc strict_wc(const char *name, struct ibv_cq *cq, uint64_t wr_id, enum ibv_wc_status status)
{
	return expect_wc(name, cq, wr_id, status, lenient());
}

bool stays_empty(struct ibv_cq *cq)
{
	struct ibv_wc wc;
	double end = now() + 0.05;
	do {
		if (ibv_poll_cq(cq, 1, &wc))
			return false;
		sched_yield();
	} while (now() < end);
	return true;
}

static uint8_t pattern(size_t i, unsigned seed)
{
	return (uint8_t)((i * 131 + (i >> 8) * 7 + seed * 29 + 1) & 0xff);
}

void fill(uint8_t *p, size_t n, unsigned seed)
{
	for (size_t i = 0; i < n; i++)
		p[i] = pattern(i, seed);
}

bool same(const uint8_t *p, size_t n, unsigned seed)
{
	for (size_t i = 0; i < n; i++)
		if (p[i] != pattern(i, seed))
			return false;
	return true;
}

bool all_bytes(const uint8_t *p, size_t n, uint8_t value)
{
	for (size_t i = 0; i < n; i++)
		if (p[i] != value)
			return false;
	return true;
}

double now(void)
{
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

bool readable(int fd, int ms)
{
	struct pollfd p = { .fd = fd, .events = POLLIN };
	return poll(&p, 1, ms) == 1 && (p.revents & POLLIN);
}

int in_child(void (*f)(void *), void *arg, char *how, size_t size)
{
	fflush(stdout);
	pid_t pid = fork();
	need(pid >= 0, "fork");
	if (!pid) {
		signal(SIGALRM, SIG_DFL);
		alarm((unsigned)LIMIT_S);
		failures = 0;
		f(arg);
		fflush(stdout);
		_exit(failures ? 9 : 0);
	}
	int st;
	while (waitpid(pid, &st, 0) < 0 && errno == EINTR)
		;
	if (WIFEXITED(st) && WEXITSTATUS(st))
		failures++;
	if (WIFSIGNALED(st))
		snprintf(how, size, "%s",
			 WTERMSIG(st) == SIGSEGV   ? "SIGSEGV" :
			 WTERMSIG(st) == SIGBUS    ? "SIGBUS" :
			 WTERMSIG(st) == SIGABRT   ? "SIGABRT" :
			 WTERMSIG(st) == SIGALRM   ? "hangs" :
			 WTERMSIG(st) == SIGFPE    ? "SIGFPE" :
						     "killed");
	else
		snprintf(how, size, "exit %d", WEXITSTATUS(st));
	return st;
}
