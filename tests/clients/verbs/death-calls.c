/* SPDX-License-Identifier: MIT OR Apache-2.0
 *
 * What a program may still ask of a device that has died, and how it gives everything back.
 */
#include "death.h"

#include <unistd.h>

/* ------------------------------------------------------------------ calls */

static double slowest;
static char slowest_name[32];

static const char *timed(const char *name, double began, int err)
{
	double took = now() - began;
	if (took > slowest) {
		slowest = took;
		snprintf(slowest_name, sizeof(slowest_name), "%s", name);
	}
	return errname(err);
}

static const char *state_name(enum ibv_qp_state s)
{
	static const char *const names[] = { "RESET", "INIT", "RTR", "RTS", "SQD", "SQE", "ERR", "UNKNOWN" };
	return (unsigned)s < ARRAY_SIZE(names) ? names[s] : "?";
}

static int set_state(struct ibv_qp *qp, enum ibv_qp_state state)
{
	struct ibv_qp_attr a;
	int mask = IBV_QP_STATE;
	memset(&a, 0, sizeof(a));
	a.qp_state = state;
	if (state == IBV_QPS_INIT) {
		a.port_num = 1;
		a.qp_access_flags = ALL_ACCESS;
		a.qkey = QKEY;
		mask |= IBV_QP_PKEY_INDEX | IBV_QP_PORT | (qp->qp_type == IBV_QPT_UD ? IBV_QP_QKEY : IBV_QP_ACCESS_FLAGS);
	}
	return ibv_modify_qp(qp, &a, mask);
}

/* A list of answers without repetition: one, if all gave the same. */
static void answer(char *text, size_t size, const char *a)
{
	size_t n = strlen(a);
	for (const char *p = text; (p = strstr(p, a)); p += n)
		if ((p == text || p[-1] == '/') && (!p[n] || p[n] == '/'))
			return;
	append(text, size, "/", "%s", a);
}

static void try_qps(struct device *dev, char *text, size_t size)
{
	char query[64] = "", err[64] = "", rts[64] = "", reset[64] = "", init[64] = "";
	for (unsigned i = 0; i < dev->loads; i++)
		for (unsigned c = 0; c < dev->load[i].couples; c++)
			for (int side = 0; side < 2; side++) {
				struct ibv_qp *qp = dev->load[i].couple[c].qp[side];
				struct ibv_qp_attr a;
				struct ibv_qp_init_attr ia;
				double t = now();
				int e = ibv_query_qp(qp, &a, IBV_QP_STATE, &ia);
				timed("query_qp", t, e);
				answer(query, sizeof(query), e ? errname(e) : state_name(a.qp_state));
				t = now();
				answer(rts, sizeof(rts), timed("modify_qp", t, set_state(qp, IBV_QPS_RTS)));
				t = now();
				answer(err, sizeof(err), timed("modify_qp", t, set_state(qp, IBV_QPS_ERR)));
				if (!side)
					continue;
				t = now();
				answer(reset, sizeof(reset), timed("modify_qp", t, set_state(qp, IBV_QPS_RESET)));
				t = now();
				answer(init, sizeof(init), timed("modify_qp", t, set_state(qp, IBV_QPS_INIT)));
			}
	append(text, size, " ", "query_qp=%s to_rts=%s to_err=%s to_reset=%s to_init=%s", query, rts, err, reset, init);
}

void device_try_calls(struct device *dev)
{
	char text[1024] = "";
	struct ibv_cq *cq = NULL, *a_cq = dev->load[0].cq[0];
	struct ibv_qp *qp = NULL;
	struct ibv_mr *mr = NULL;
	struct ibv_pd *pd = NULL;
	struct ibv_srq *srq = NULL;
	struct ibv_comp_channel *channel = NULL;
	struct ibv_context *again = NULL;
	struct ibv_qp_init_attr qa = qp_init(IBV_QPT_RC, a_cq, a_cq, (struct ibv_qp_cap){ 1, 1, 1, 1, 0 });
	struct ibv_srq_init_attr sa = { .attr = { .max_wr = 1, .max_sge = 1 } };
	double t;
	slowest = 0;
	try_qps(dev, text, sizeof(text));
	fact("qps %s", text);
	*text = 0;
#define TRY(name, err) (t = now(), append(text, sizeof(text), " ", "%s=%s", name, timed(name, t, err)))
	TRY("create_cq", ERR_OF_PTR(cq = ibv_create_cq(dev->ctx, 1, NULL, NULL, 0)));
	TRY("create_qp", ERR_OF_PTR(qp = ibv_create_qp(dev->pd, &qa)));
	TRY("create_srq", ERR_OF_PTR(srq = ibv_create_srq(dev->pd, &sa)));
	TRY("reg_mr", ERR_OF_PTR(mr = ibv_reg_mr(dev->pd, dev->buf, 64, 0)));
	TRY("alloc_pd", ERR_OF_PTR(pd = ibv_alloc_pd(dev->ctx)));
	TRY("create_comp_channel", ERR_OF_PTR(channel = ibv_create_comp_channel(dev->ctx)));
	TRY("resize_cq", ibv_resize_cq(a_cq, 2 * a_cq->cqe));
#undef TRY
	fact("calls %s", text);
	note("the slowest call took %.3f s: %s", slowest, slowest_name);
	again = ibv_open_device(dev->ctx->device);
	note("to open the dead device: %s", errname(again ? 0 : errno));
	if (again)
		ibv_close_device(again);
	if (qp)
		ibv_destroy_qp(qp);
	if (srq)
		ibv_destroy_srq(srq);
	if (mr)
		ibv_dereg_mr(mr);
	if (pd)
		ibv_dealloc_pd(pd);
	if (channel)
		ibv_destroy_comp_channel(channel);
	if (cq)
		ibv_destroy_cq(cq);
}

/* ------------------------------------------------------------------ the end of all objects */

struct destruction {
	struct object *o;
	int err;
	double took;
	_Atomic bool begun, ended;
};

static void *destroy_aside(void *arg)
{
	struct destruction *d = arg;
	double t = now();
	d->begun = true;
	d->err = d->o->destroy(d->o->it);
	d->took = now() - t;
	d->ended = true;
	return NULL;
}

/* Whoever holds an event of a CQ unacknowledged keeps those waiting who destroy it, and only as long. */
static int destroy_held(struct object *o, bool tell)
{
	struct destruction d = { .o = o };
	pthread_t t;
	start_thread(&t, destroy_aside, &d);
	while (!d.begun)
		rest(1000);
	rest(100000);
	bool waits = !d.ended;
	o->load->release = true;
	pthread_join(t, NULL);
	waiter_stop(o->load);
	note("to destroy a CQ with an event that nobody acknowledged took %.3f s%s", d.took, waits ? "" : ", by itself");
	/* Half a second is as long as it need wait. */
	if (tell)
		fact("destroy_waits_for_acknowledgement %s", waits || d.took > 0.3 ? "yes" : "no");
	return d.err;
}

static int destroy_one(struct object *o, bool tell)
{
	/* A CQ whose waiter still polls must not go; QPs may, whoever polls. */
	struct load *l = o->load;
	if (l && l->has_event && !l->release) {
		l->no_polls = true;
		while (!l->polls_no_more)
			rest(1000);
		if (o->it == l->held)
			return destroy_held(o, tell);
	} else if (l && l->waiting) {
		waiter_stop(l);
		if (tell && l->keeps_event && !l->has_event)
			fact("destroy_waits_for_acknowledgement nothing to acknowledge");
	}
	return o->destroy(o->it);
}

static struct object *choose(struct device *dev, struct chance *r, bool any_order)
{
	int n = 0;
	struct object *chosen = NULL;
	for (int i = 0; i < dev->objects; i++) {
		struct object *o = &dev->object[i];
		/* libibverbs itself keeps a channel that has CQs. */
		bool free_ = !o->users || (any_order && strcmp(o->what, "channel"));
		if (!o->gone && free_ && !pick(r, (uint32_t)++n))
			chosen = o;
	}
	return chosen;
}

static void free_all(struct device *dev)
{
	for (uint32_t i = 0; i < dev->queues; i++) {
		pthread_mutex_destroy(&dev->queue[i]->lock);
		free(dev->queue[i]->ring);
		free(dev->queue[i]);
	}
	for (unsigned i = 0; i < dev->loads; i++)
		free(dev->load[i].couple);
	pthread_mutex_destroy(&dev->lock);
	free(dev->queue);
	free(dev->load);
	free(dev->object);
	free(dev->buf);
	free(dev);
}

void device_destroy(struct device *dev, bool tell)
{
	struct chance r = chance_of(set.seed, 7);
	struct {
		const char *what;
		char answers[64];
	} kinds[12] = { 0 };
	char text[512] = "";
	struct object *o;
	double t = now();
	device_stop_posting(dev);
	/* A device that lives has its kernel to refuse those that are used. */
	while ((o = choose(dev, &r, tell && set.any_order))) {
		int err = destroy_one(o, tell);
		o->gone = true;
		for (int i = 0; i < o->n_needs; i++)
			dev->object[o->needs[i]].users--;
		for (size_t k = 0; k < ARRAY_SIZE(kinds); k++) {
			if (kinds[k].what && strcmp(kinds[k].what, o->what))
				continue;
			kinds[k].what = o->what;
			answer(kinds[k].answers, sizeof(kinds[k].answers), errname(err));
			break;
		}
	}
	double took = now() - t;
	reader_stop(dev);
	t = now();
	errno = 0;
	int closed = dev->ctx && ibv_close_device(dev->ctx) ? errno ? errno : EPROTO : 0;
	if (tell) {
		static const char *const order[] = { "qp", "ah", "srq", "cq", "channel", "xrcd", "mr", "pd" };
		for (size_t i = 0; i < ARRAY_SIZE(order); i++)
			for (size_t k = 0; k < ARRAY_SIZE(kinds); k++)
				if (kinds[k].what && !strcmp(kinds[k].what, order[i]))
					append(text, sizeof(text), " ", "%s=%s", order[i], kinds[k].answers);
		fact("destroy %s close=%s", text, errname(closed));
		note("time destroy_all %.6f", took);
		note("time close %.6f", now() - t);
	}
	free_all(dev);
}
