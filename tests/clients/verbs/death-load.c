/* SPDX-License-Identifier: MIT OR Apache-2.0
 *
 * The load of verbs-death: loads of several kinds on one device, each with queue pairs that are connected to each other,
 * a thread that posts and one that waits for completions.
 */
#include "death.h"

#include <stdarg.h>

const char *const load_names[] = { "write", "send", "srq", "ud", "xrc", "atomic", "idle" };

#define SGES 3
#define SGE_BYTES 256
#define INLINE 64
#define BURST 8
#define LATE 8 /* places kept for posts after the death */
#define BUF (1u << 20)

/* ------------------------------------------------------------------ objects */

#define DESTROYER(name, type) \
	static int destroy_##name(void *it) { return ibv_##name((type *)it); }
DESTROYER(destroy_qp, struct ibv_qp)
DESTROYER(destroy_cq, struct ibv_cq)
DESTROYER(destroy_srq, struct ibv_srq)
DESTROYER(destroy_ah, struct ibv_ah)
DESTROYER(dereg_mr, struct ibv_mr)
DESTROYER(dealloc_pd, struct ibv_pd)
DESTROYER(close_xrcd, struct ibv_xrcd)
DESTROYER(destroy_comp_channel, struct ibv_comp_channel)

/* `needs` ends with -1. */
static int object(struct device *dev, const char *what, void *it, int (*destroy)(void *), struct load *load, ...)
{
	struct object o = { .what = what, .it = it, .destroy = destroy, .load = load };
	va_list ap;
	int n;
	va_start(ap, load);
	while ((n = va_arg(ap, int)) >= 0) {
		need(o.n_needs < (int)ARRAY_SIZE(o.needs), "room for what an object needs");
		o.needs[o.n_needs++] = n;
		dev->object[n].users++;
	}
	va_end(ap);
	dev->object = realloc(dev->object, (size_t)(dev->objects + 1) * sizeof(o));
	need(dev->object, "allocate the list of objects");
	dev->object[dev->objects] = o;
	return dev->objects++;
}

/* The indices of what is common to a device's objects. */
struct common {
	int pd, mr, xrcd;
};

static int modify(struct device *dev, struct load *l, struct ibv_qp *qp, enum ibv_qp_state to, struct ibv_qp *peer)
{
	struct ibv_qp_attr a;
	int mask = IBV_QP_STATE;
	bool ud = l->kind == UD;
	memset(&a, 0, sizeof(a));
	a.qp_state = to;
	switch (to) {
	case IBV_QPS_INIT:
		a.port_num = 1;
		a.qkey = QKEY;
		a.qp_access_flags = ALL_ACCESS;
		mask |= IBV_QP_PKEY_INDEX | IBV_QP_PORT | (ud ? IBV_QP_QKEY : IBV_QP_ACCESS_FLAGS);
		break;
	case IBV_QPS_RTR:
		a.path_mtu = IBV_MTU_1024;
		a.dest_qp_num = peer->qp_num;
		a.max_dest_rd_atomic = 4;
		a.min_rnr_timer = 1;
		a.ah_attr = (struct ibv_ah_attr){ .dlid = dev->port.lid, .port_num = 1 };
		if (dev->port.link_layer == IBV_LINK_LAYER_ETHERNET) {
			a.ah_attr.is_global = 1;
			a.ah_attr.grh = (struct ibv_global_route){ .dgid = dev->gid, .hop_limit = 64,
								   .sgid_index = (uint8_t)set.gid_index };
		}
		if (!ud)
			mask |= IBV_QP_AV | IBV_QP_PATH_MTU | IBV_QP_DEST_QPN | IBV_QP_RQ_PSN;
		if (!ud && qp->qp_type != IBV_QPT_XRC_SEND)
			mask |= IBV_QP_MAX_DEST_RD_ATOMIC | IBV_QP_MIN_RNR_TIMER;
		break;
	case IBV_QPS_RTS:
		a.timeout = 18;
		a.retry_cnt = 7;
		a.rnr_retry = 7;
		a.max_rd_atomic = 4;
		mask |= IBV_QP_SQ_PSN;
		if (!ud)
			mask |= IBV_QP_TIMEOUT | IBV_QP_RETRY_CNT | IBV_QP_RNR_RETRY | IBV_QP_MAX_QP_RD_ATOMIC;
		break;
	default:
		break;
	}
	return ibv_modify_qp(qp, &a, mask);
}

static struct ibv_qp *make_qp(struct device *dev, struct load *l, int side, struct ibv_qp_ex **ex)
{
	struct ibv_qp_init_attr_ex a;
	memset(&a, 0, sizeof(a));
	a.send_cq = l->cq[0];
	a.recv_cq = l->cq[l->cqs - 1];
	a.srq = l->kind == SRQ ? l->srq : NULL;
	a.cap = (struct ibv_qp_cap){ .max_send_wr = set.depth, .max_recv_wr = l->kind == SRQ ? 0 : set.depth,
				     .max_send_sge = SGES, .max_recv_sge = 1, .max_inline_data = INLINE };
	a.qp_type = l->kind == UD ? IBV_QPT_UD : l->kind != XRC ? IBV_QPT_RC : side ? IBV_QPT_XRC_RECV : IBV_QPT_XRC_SEND;
	a.pd = dev->pd;
	a.comp_mask = IBV_QP_INIT_ATTR_PD;
	if (a.qp_type == IBV_QPT_XRC_RECV) {
		a.comp_mask = IBV_QP_INIT_ATTR_XRCD;
		a.xrcd = dev->xrcd;
		/* It completes to the CQ of its SRQ. Stock would look into those named here when it goes, were they there or not. */
		a.send_cq = a.recv_cq = NULL;
		a.cap = (struct ibv_qp_cap){ 0 };
	} else if (a.qp_type == IBV_QPT_XRC_SEND) {
		a.cap.max_recv_wr = a.cap.max_recv_sge = 0;
	}
	if (l->by_wr && !side) {
		a.comp_mask |= IBV_QP_INIT_ATTR_SEND_OPS_FLAGS;
		a.send_ops_flags = IBV_QP_EX_WITH_SEND | IBV_QP_EX_WITH_SEND_WITH_IMM;
		if (l->kind != UD)
			a.send_ops_flags |= IBV_QP_EX_WITH_RDMA_WRITE | IBV_QP_EX_WITH_RDMA_READ;
		if (l->kind != UD && l->kind != XRC)
			a.send_ops_flags |= IBV_QP_EX_WITH_ATOMIC_FETCH_AND_ADD | IBV_QP_EX_WITH_ATOMIC_CMP_AND_SWP;
	}
	struct ibv_qp *qp = ibv_create_qp_ex(dev->ctx, &a);
	if (qp && l->by_wr && !side)
		*ex = ibv_qp_to_qp_ex(qp);
	return qp;
}

static const char *make_couple(struct device *dev, struct load *l, struct couple *c, const struct common *common,
			       const int cq[2], int srq)
{
	static const enum ibv_qp_state steps[] = { IBV_QPS_INIT, IBV_QPS_RTR, IBV_QPS_RTS };
	char name[64];
	for (int side = 0; side < 2; side++) {
		struct ibv_qp *qp = c->qp[side] = make_qp(dev, l, side, &c->ex);
		if (!qp)
			return "create_qp";
		bool xrc_receiver = l->kind == XRC && side;
		if (xrc_receiver)
			object(dev, "qp", qp, destroy_destroy_qp, NULL, common->xrcd, srq, -1);
		else if (srq >= 0 && l->kind == SRQ)
			object(dev, "qp", qp, destroy_destroy_qp, NULL, common->pd, cq[0], cq[l->cqs - 1], srq, -1);
		else
			object(dev, "qp", qp, destroy_destroy_qp, NULL, common->pd, cq[0], cq[l->cqs - 1], -1);
		if (l->kind != SRQ && l->kind != XRC) {
			snprintf(name, sizeof(name), "%s.receives", l->name);
			c->receives[side] = queue_new(dev, name, qp->qp_num, true, set.depth);
		}
	}
	snprintf(name, sizeof(name), "%s.sends", l->name);
	c->sends = queue_new(dev, name, c->qp[0]->qp_num, false, set.depth);
	for (size_t s = 0; s < ARRAY_SIZE(steps); s++)
		for (int side = 0; side < 2; side++)
			if (!(l->kind == XRC && side && steps[s] == IBV_QPS_RTS) &&
			    modify(dev, l, c->qp[side], steps[s], c->qp[!side]))
				return "modify_qp";
	if (l->kind == UD) {
		struct ibv_ah_attr a = { .dlid = dev->port.lid, .port_num = 1 };
		if (dev->port.link_layer == IBV_LINK_LAYER_ETHERNET) {
			a.is_global = 1;
			a.grh = (struct ibv_global_route){ .dgid = dev->gid, .hop_limit = 64, .sgid_index = (uint8_t)set.gid_index };
		}
		c->ah = ibv_create_ah(dev->pd, &a);
		if (!c->ah)
			return "create_ah";
		object(dev, "ah", c->ah, destroy_destroy_ah, NULL, common->pd, -1);
	}
	return NULL;
}

static const char *make_cq(struct device *dev, struct load *l, unsigned i, int cqe)
{
	if (l->wait != START) {
		l->cq[i] = ibv_create_cq(dev->ctx, cqe, l, l->channel, 0);
		return l->cq[i] ? NULL : "create_cq";
	}
	struct ibv_cq_init_attr_ex a = { .cqe = (unsigned)cqe, .cq_context = l, .channel = l->channel,
					 .wc_flags = IBV_WC_STANDARD_FLAGS };
	l->cqx[i] = ibv_create_cq_ex(dev->ctx, &a);
	if (!l->cqx[i])
		return "create_cq_ex";
	l->cq[i] = ibv_cq_ex_to_cq(l->cqx[i]);
	return NULL;
}

static const char *make_srq(struct device *dev, struct load *l)
{
	uint32_t n = set.depth * 2;
	if (l->kind == SRQ) {
		struct ibv_srq_init_attr a = { .attr = { .max_wr = n, .max_sge = 1 } };
		l->srq = ibv_create_srq(dev->pd, &a);
	} else {
		struct ibv_srq_init_attr_ex a = { .attr = { .max_wr = n, .max_sge = 1 },
			.comp_mask = IBV_SRQ_INIT_ATTR_TYPE | IBV_SRQ_INIT_ATTR_PD | IBV_SRQ_INIT_ATTR_XRCD | IBV_SRQ_INIT_ATTR_CQ,
			.srq_type = IBV_SRQT_XRC, .pd = dev->pd, .xrcd = dev->xrcd, .cq = l->cq[l->cqs - 1] };
		l->srq = ibv_create_srq_ex(dev->ctx, &a);
		if (l->srq && ibv_get_srq_num(l->srq, &l->srqn))
			return "get_srq_num";
	}
	if (!l->srq)
		return "create_srq";
	char name[64];
	snprintf(name, sizeof(name), "%s.shared", l->name);
	l->shared = queue_new(dev, name, 0, true, n);
	l->shared->shared = true;
	return NULL;
}

static const char *make_load(struct device *dev, struct load *l, const struct common *common)
{
	const char *what;
	int channel = -1, cq[2], srq = -1;
	if (sleeps(l->wait)) {
		l->channel = ibv_create_comp_channel(dev->ctx);
		if (!l->channel)
			return "create_comp_channel";
		channel = object(dev, "channel", l->channel, destroy_destroy_comp_channel, NULL, -1);
	}
	/* Sends and receives in one queue, or each in its own. */
	l->cqs = 1 + pick(&l->chance, 2);
	int per_couple = (int)(3 * set.depth);
	for (unsigned i = 0; i < l->cqs; i++) {
		what = make_cq(dev, l, i, per_couple * (int)l->couples + (int)(2 * set.depth));
		if (what)
			return what;
		if (channel >= 0)
			cq[i] = object(dev, "cq", l->cq[i], destroy_destroy_cq, l, channel, -1);
		else
			cq[i] = object(dev, "cq", l->cq[i], destroy_destroy_cq, l, -1);
	}
	if (l->kind == SRQ || l->kind == XRC) {
		if ((what = make_srq(dev, l)))
			return what;
		if (l->kind == XRC)
			srq = object(dev, "srq", l->srq, destroy_destroy_srq, NULL, common->pd, common->xrcd, cq[l->cqs - 1], -1);
		else
			srq = object(dev, "srq", l->srq, destroy_destroy_srq, NULL, common->pd, -1);
	}
	l->couple = calloc(l->couples, sizeof(*l->couple));
	need(l->couple, "allocate QPs");
	for (unsigned i = 0; i < l->couples; i++)
		if ((what = make_couple(dev, l, &l->couple[i], common, cq, srq)))
			return what;
	return NULL;
}

/* ------------------------------------------------------------------ posts */

/* As many as there is room for but for `spare` places; 0 or the errno of a refusal. */
static int post_receives(struct load *l, struct queue *q, struct ibv_qp *qp, uint32_t spare, uint32_t most)
{
	struct device *dev = l->dev;
	struct ibv_recv_wr w[16], *bad = NULL;
	struct ibv_sge sg[16];
	int err = 0;
	pthread_mutex_lock(&q->lock);
	while (!err && most && queue_room(q) > spare) {
		uint32_t n = 0;
		while (n < ARRAY_SIZE(w) && most && queue_room(q) > spare) {
			sg[n] = (struct ibv_sge){ .addr = (uintptr_t)(dev->buf + BUF / 2 + 1024 * n), .length = 1024, .lkey = dev->mr->lkey };
			w[n] = (struct ibv_recv_wr){ .wr_id = queue_posting(q, 0, true), .sg_list = &sg[n], .num_sge = 1 };
			if (n)
				w[n - 1].next = &w[n];
			n++;
			most--;
		}
		err = q->shared ? ibv_post_srq_recv(l->srq, w, &bad) : ibv_post_recv(qp, w, &bad);
		if (err)
			queue_refused(q, n - (uint32_t)(bad - w));
	}
	pthread_mutex_unlock(&q->lock);
	return err;
}

static void receive_again(struct load *l)
{
	int err = 0;
	for (unsigned i = 0; i < l->couples; i++)
		for (int side = 0; side < 2; side++)
			if (l->couple[i].receives[side])
				err |= post_receives(l, l->couple[i].receives[side], l->couple[i].qp[side], LATE, UINT32_MAX);
	if (l->shared)
		err |= post_receives(l, l->shared, NULL, LATE, UINT32_MAX);
	if (err)
		device_wrong(l->dev, "post_recv", "%s: %s", l->name, errname(err));
}

struct request {
	enum ibv_wr_opcode opcode;
	uint64_t wr_id;
	bool signalled, inl;
	int sges;
	struct ibv_sge sg[SGES];
};

static uint8_t completes_as(enum ibv_wr_opcode o)
{
	switch (o) {
	case IBV_WR_RDMA_WRITE: return IBV_WC_RDMA_WRITE;
	case IBV_WR_RDMA_READ: return IBV_WC_RDMA_READ;
	case IBV_WR_ATOMIC_FETCH_AND_ADD: return IBV_WC_FETCH_ADD;
	case IBV_WR_ATOMIC_CMP_AND_SWP: return IBV_WC_COMP_SWAP;
	default: return IBV_WC_SEND;
	}
}

static void choose(struct load *l, struct request *r)
{
	static const enum ibv_wr_opcode atomics[] = { IBV_WR_ATOMIC_FETCH_AND_ADD, IBV_WR_ATOMIC_CMP_AND_SWP, IBV_WR_RDMA_READ };
	struct device *dev = l->dev;
	*r = (struct request){ 0 };
	switch (l->kind) {
	case WRITE: case IDLE: r->opcode = IBV_WR_RDMA_WRITE; break;
	case ATOMIC: r->opcode = atomics[pick(&l->chance, ARRAY_SIZE(atomics))]; break;
	default: r->opcode = pick(&l->chance, 4) ? IBV_WR_SEND : IBV_WR_SEND_WITH_IMM; break;
	}
	bool atomic = r->opcode == IBV_WR_ATOMIC_FETCH_AND_ADD || r->opcode == IBV_WR_ATOMIC_CMP_AND_SWP;
	r->inl = !atomic && r->opcode != IBV_WR_RDMA_READ && !pick(&l->chance, 3);
	r->sges = atomic ? 1 : 1 + (int)pick(&l->chance, SGES);
	for (int i = 0; i < r->sges; i++)
		r->sg[i] = (struct ibv_sge){ .addr = (uintptr_t)dev->buf + 8 * pick(&l->chance, 1024), .lkey = dev->mr->lkey,
					     .length = atomic ? 8 : 1 + pick(&l->chance, r->inl ? INLINE / SGES : SGE_BYTES) };
}

/* Where it goes: for atomics the lower part, which nothing else is written to. */
static uint64_t target(struct load *l, const struct request *r)
{
	bool atomic = r->opcode == IBV_WR_ATOMIC_FETCH_AND_ADD || r->opcode == IBV_WR_ATOMIC_CMP_AND_SWP;
	return (uintptr_t)(l->dev->buf + (atomic ? BUF / 4 : BUF / 4 + 4096));
}

static unsigned send_flags(const struct request *r)
{
	return (r->signalled ? IBV_SEND_SIGNALED : 0u) | (r->inl ? IBV_SEND_INLINE : 0u);
}

/* Returns the errno; `accepted`: how many were posted. */
static int post_list(struct load *l, struct couple *c, struct request *r, uint32_t n, uint32_t *accepted)
{
	struct ibv_send_wr w[BURST], *bad = NULL;
	memset(w, 0, sizeof(w));
	for (uint32_t i = 0; i < n; i++) {
		w[i] = (struct ibv_send_wr){ .wr_id = r[i].wr_id, .opcode = r[i].opcode, .send_flags = send_flags(&r[i]),
					     .sg_list = r[i].sg, .num_sge = r[i].sges, .next = i + 1 < n ? &w[i + 1] : NULL };
		if (r[i].opcode == IBV_WR_ATOMIC_FETCH_AND_ADD || r[i].opcode == IBV_WR_ATOMIC_CMP_AND_SWP) {
			w[i].wr.atomic.remote_addr = target(l, &r[i]);
			w[i].wr.atomic.rkey = l->dev->mr->rkey;
			w[i].wr.atomic.compare_add = 1;
		} else if (l->kind == UD) {
			w[i].wr.ud.ah = c->ah;
			w[i].wr.ud.remote_qpn = c->qp[1]->qp_num;
			w[i].wr.ud.remote_qkey = QKEY;
		} else {
			w[i].wr.rdma.remote_addr = target(l, &r[i]);
			w[i].wr.rdma.rkey = l->dev->mr->rkey;
		}
		if (l->kind == XRC)
			w[i].qp_type.xrc.remote_srqn = l->srqn;
	}
	int err = ibv_post_send(c->qp[0], w, &bad);
	*accepted = err ? (uint32_t)(bad - w) : n;
	return err;
}

static int post_by_wr(struct load *l, struct couple *c, struct request *r, uint32_t n, uint32_t *accepted)
{
	struct ibv_qp_ex *q = c->ex;
	uint32_t rkey = l->dev->mr->rkey;
	ibv_wr_start(q);
	for (uint32_t i = 0; i < n; i++) {
		q->wr_id = r[i].wr_id;
		q->wr_flags = send_flags(&r[i]);
		switch (r[i].opcode) {
		case IBV_WR_RDMA_WRITE: ibv_wr_rdma_write(q, rkey, target(l, &r[i])); break;
		case IBV_WR_RDMA_READ: ibv_wr_rdma_read(q, rkey, target(l, &r[i])); break;
		case IBV_WR_ATOMIC_FETCH_AND_ADD: ibv_wr_atomic_fetch_add(q, rkey, target(l, &r[i]), 1); break;
		case IBV_WR_ATOMIC_CMP_AND_SWP: ibv_wr_atomic_cmp_swp(q, rkey, target(l, &r[i]), 1, 0); break;
		case IBV_WR_SEND_WITH_IMM: ibv_wr_send_imm(q, 0); break;
		default: ibv_wr_send(q); break;
		}
		if (l->kind == XRC)
			ibv_wr_set_xrc_srqn(q, l->srqn);
		if (l->kind == UD)
			ibv_wr_set_ud_addr(q, c->ah, c->qp[1]->qp_num, QKEY);
		if (r[i].inl) {
			struct ibv_data_buf b[SGES];
			for (int s = 0; s < r[i].sges; s++)
				b[s] = (struct ibv_data_buf){ .addr = (void *)(uintptr_t)r[i].sg[s].addr, .length = r[i].sg[s].length };
			ibv_wr_set_inline_data_list(q, (size_t)r[i].sges, b);
		} else {
			ibv_wr_set_sge_list(q, (size_t)r[i].sges, r[i].sg);
		}
	}
	int err = ibv_wr_complete(q);
	*accepted = err ? 0 : n;
	return err;
}

/* Posts up to `n`, but for `spare` places; returns the errno of a refusal. */
static int post_sends(struct load *l, struct couple *c, uint32_t n, uint32_t spare, uint32_t *posted)
{
	struct request r[BURST];
	struct queue *q = c->sends;
	uint32_t made = 0, accepted = 0;
	int err = 0;
	pthread_mutex_lock(&q->lock);
	while (made < n && queue_room(q) > spare) {
		choose(l, &r[made]);
		/* Some go without a completion, but never so many that the queue is full of those. */
		r[made].signalled = !pick(&l->chance, 3) || ++c->unsignalled >= set.depth / 4;
		if (r[made].signalled)
			c->unsignalled = 0;
		r[made].wr_id = queue_posting(q, completes_as(r[made].opcode), r[made].signalled);
		made++;
	}
	if (made)
		err = (l->by_wr ? post_by_wr : post_list)(l, c, r, made, &accepted);
	if (err)
		queue_refused(q, made - accepted);
	pthread_mutex_unlock(&q->lock);
	*posted = accepted;
	return err;
}

static void *poster(void *arg)
{
	struct load *l = arg;
	while (!l->dev->stop_posting) {
		for (unsigned i = 0; i < l->couples && !l->dev->stop_posting; i++) {
			uint32_t posted;
			int err = post_sends(l, &l->couple[i], 1 + pick(&l->chance, BURST), LATE, &posted);
			if (err)
				device_wrong(l->dev, "post_send", "%s: %s", l->name, errname(err));
		}
		/* With a rest: a processor that does nothing but store to a trapped page leaves an emulator no time for others. */
		rest(set.rest_us);
	}
	return NULL;
}

void device_post_late(struct device *dev, char *text, size_t size)
{
	int send = 0, receive = 0, srq = 0, arm = 0, err;
	for (unsigned i = 0; i < dev->loads; i++) {
		struct load *l = &dev->load[i];
		for (unsigned c = 0; c < l->couples; c++) {
			uint32_t posted;
			if ((err = post_sends(l, &l->couple[c], 2, 0, &posted)))
				send = err;
			for (int side = 0; side < 2; side++)
				if (l->couple[c].receives[side] &&
				    (err = post_receives(l, l->couple[c].receives[side], l->couple[c].qp[side], 0, 2)))
					receive = err;
		}
		if (l->shared && (err = post_receives(l, l->shared, NULL, 0, 2)))
			srq = err;
		for (unsigned c = 0; c < l->cqs; c++)
			if ((err = ibv_req_notify_cq(l->cq[c], 0)))
				arm = err;
	}
	*text = 0;
	append(text, size, "", "post_send=%s post_recv=%s post_srq_recv=%s arm=%s", errname(send), errname(receive), errname(srq),
	       errname(arm));
}

/* ------------------------------------------------------------------ devices */

static void plan(struct device *dev, uint64_t seed, bool small)
{
	struct chance chance = chance_of(seed, 1);
	enum wait_style traffic[WAIT_STYLES], asleep[WAIT_STYLES];
	unsigned n_traffic = 0, n_asleep = 0;
	for (int w = 0; w < WAIT_STYLES; w++) {
		if (!set.style[w])
			continue;
		traffic[n_traffic++] = (enum wait_style)w;
		if (sleeps((enum wait_style)w))
			asleep[n_asleep++] = (enum wait_style)w;
	}
	/* From one seed to the next, each load waits in the next way. */
	unsigned first = (unsigned)(seed % n_traffic);
	dev->load = calloc(LOAD_KINDS + WAIT_STYLES, sizeof(*dev->load));
	need(dev->load, "allocate loads");
	for (int k = 0; k < LOAD_KINDS; k++) {
		if (small ? k != WRITE : !set.kind[k])
			continue;
		for (unsigned i = 0; i < (k == IDLE ? n_asleep : 1); i++) {
			struct load *l = &dev->load[dev->loads++];
			*l = (struct load){ .dev = dev, .kind = (enum load_kind)k, .couples = small || k == IDLE ? 1 : set.couples,
					    .wait = small ? BUSY : k == IDLE ? asleep[i] : traffic[(first + (unsigned)k) % n_traffic],
					    .by_wr = set.by_wr < 0 ? pick(&chance, 2) == 1 : set.by_wr == 1, .epoll_fd = -1,
					    .keeps_event = k == IDLE && asleep[i] == BLOCK,
					    .chance = chance_of(seed, 100 + (unsigned)k * 10 + i) };
			snprintf(l->name, sizeof(l->name), k == IDLE ? "%s-%s" : "%s", load_names[k], wait_names[l->wait]);
		}
	}
}

const char *device_open(struct device **out, const char *name, uint64_t seed, bool small)
{
	struct device *dev = calloc(1, sizeof(*dev));
	struct common common = { .xrcd = -1 };
	const char *what;
	need(dev, "allocate a device");
	*out = dev;
	pthread_mutex_init(&dev->lock, NULL);
	dev->buf = aligned_alloc(4096, BUF);
	need(dev->buf, "allocate the buffer");
	memset(dev->buf, 0, BUF);
	dev->ctx = open_device(name);
	if (!dev->ctx)
		return "open";
	if (ibv_query_port(dev->ctx, 1, &dev->port) || dev->port.state != IBV_PORT_ACTIVE)
		return "port";
	if (dev->port.link_layer == IBV_LINK_LAYER_ETHERNET && ibv_query_gid(dev->ctx, 1, set.gid_index, &dev->gid))
		return "gid";
	dev->guid = ibv_get_device_guid(dev->ctx->device);
	dev->pd = ibv_alloc_pd(dev->ctx);
	if (!dev->pd)
		return "alloc_pd";
	common.pd = object(dev, "pd", dev->pd, destroy_dealloc_pd, NULL, -1);
	dev->mr = ibv_reg_mr(dev->pd, dev->buf, BUF, ALL_ACCESS);
	if (!dev->mr)
		return "reg_mr";
	common.mr = object(dev, "mr", dev->mr, destroy_dereg_mr, NULL, common.pd, -1);
	if (!small && set.kind[XRC]) {
		struct ibv_xrcd_init_attr a = { .comp_mask = IBV_XRCD_INIT_ATTR_FD | IBV_XRCD_INIT_ATTR_OFLAGS, .fd = -1, .oflags = 64 /* O_CREAT */ };
		dev->xrcd = ibv_open_xrcd(dev->ctx, &a);
		if (!dev->xrcd)
			return "open_xrcd";
		common.xrcd = object(dev, "xrcd", dev->xrcd, destroy_close_xrcd, NULL, -1);
	}
	plan(dev, seed, small);
	for (unsigned i = 0; i < dev->loads; i++)
		if ((what = make_load(dev, &dev->load[i], &common)))
			return what;
	return NULL;
}

void device_start(struct device *dev)
{
	reader_start(dev);
	for (unsigned i = 0; i < dev->loads; i++) {
		struct load *l = &dev->load[i];
		receive_again(l);
		waiter_start(l);
		if (l->kind != IDLE) {
			start_thread(&l->poster, poster, l);
			l->posting = true;
		}
	}
}

void device_stop_posting(struct device *dev)
{
	dev->stop_posting = true;
	for (unsigned i = 0; i < dev->loads; i++) {
		if (dev->load[i].posting)
			pthread_join(dev->load[i].poster, NULL);
		dev->load[i].posting = false;
	}
}

bool device_flows(struct device *dev, uint64_t each)
{
	for (unsigned i = 0; i < dev->loads; i++) {
		if (dev->load[i].kind == IDLE)
			continue;
		char name[32];
		snprintf(name, sizeof(name), "%s.", dev->load[i].name);
		struct sums s = ledger_sums(dev, name);
		if (s.well < each)
			return false;
	}
	return true;
}

void load_replenish(struct load *l)
{
	if (l->kind != IDLE && !l->dev->told && !l->dev->stop_posting)
		receive_again(l);
}
