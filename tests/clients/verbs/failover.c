/* SPDX-License-Identifier: MIT OR Apache-2.0
 *
 * verbs-failover: an example of include/holdfast.h. Writes through one device until that dies, asks which of the work
 * requests were certainly not executed, polls all of them, and posts those again through the other device.
 *
 * A program that shall also run with other providers asks for the functions where holdfast is loaded, as here; one that
 * wants holdfast always links with -lholdfast. "kill": it does not wait for a death, but lets the first device die itself.
 */
#include "common.h"

#include <dlfcn.h>
#include <poll.h>
#include <unistd.h>

#include "../../../include/holdfast.h"

enum { TRAFFIC = 100, DEPTH = 64, LATE = 4, LENGTH = 64 };

static struct {
	__typeof__(holdfast_context_change_fd) *change_fd;
	__typeof__(holdfast_context_status) *status;
	__typeof__(holdfast_context_kill) *kill;
	__typeof__(holdfast_qp_outstanding) *outstanding;
} api;

/* libibverbs has loaded holdfast, if at all, by the time that a device is open. */
static void find_api(void)
{
	void *holdfast = dlopen("libholdfast.so", RTLD_LAZY | RTLD_NOLOAD);
	need(holdfast != NULL, "find holdfast in this process");
	api.change_fd = dlsym(holdfast, "holdfast_context_change_fd");
	api.status = dlsym(holdfast, "holdfast_context_status");
	api.kill = dlsym(holdfast, "holdfast_context_kill");
	api.outstanding = dlsym(holdfast, "holdfast_qp_outstanding");
	need(api.change_fd && api.status && api.kill && api.outstanding, "find the functions of holdfast.h");
}

static int write_one(struct pair *p, uint64_t wr_id)
{
	struct ibv_sge from = sge(&p->a, 0, LENGTH);
	struct ibv_send_wr w = wr(IBV_WR_RDMA_WRITE, wr_id, &from);
	w.wr.rdma.remote_addr = (uintptr_t)p->b.buf;
	w.wr.rdma.rkey = p->b.mr->rkey;
	return send_wr(&p->a, &w);
}

static uint32_t state_of(struct ibv_context *ctx)
{
	struct holdfast_status status;
	need(!api.status(ctx, &status, sizeof(status)), "ask for the state");
	return status.state;
}

int main(int argc, char **argv)
{
	struct options o;
	struct dev first = { 0 }, second = { 0 };
	struct pair p, q;
	struct spec spec = { .type = IBV_QPT_RC, .send_wr = DEPTH, .recv_wr = 1, .send_sge = 1, .recv_sge = 1, .cqe = 2 * DEPTH };
	struct holdfast_wr list[DEPTH + LATE];
	struct ibv_wc wc;
	uint64_t posted = 0, polled = 0, drained = 0, again = 0, count[3] = { 0 };

	parse_options(&o, argc, argv, "[kill]");
	dev_open(&first, o.device[0], o.gid_index);
	dev_open(&second, o.device[1], o.gid_index);
	find_api();
	need(!pair_open(&p, &first, &first, &spec), "connect on the first device");
	need(!pair_open(&q, &second, &second, &spec), "connect on the second device");
	struct pollfd change = { .fd = api.change_fd(first.ctx), .events = POLLIN };
	need(change.fd >= 0, "have a descriptor for changes");

	/* Traffic, until the descriptor tells of a change: that comes before the first completion that is flushed. */
	while (!poll(&change, 1, 0)) {
		while (posted - polled < DEPTH - LATE && !write_one(&p, posted))
			posted++;
		if (ibv_poll_cq(p.a.scq, 1, &wc) != 1)
			continue;
		if (wc.status != IBV_WC_SUCCESS) {
			polled++;
			want_int("flushed by a death", wc.status == IBV_WC_WR_FLUSH_ERR && poll(&change, 1, 0), 1);
			break;
		}
		need(wc.wr_id == polled, "have completions in order");
		if (++polled == TRAFFIC) {
			printf("traffic flows\n");
			need(!o.argc || !api.kill(first.ctx), "let the device die");
		}
	}
	check("dying or gone", state_of(first.ctx) != HOLDFAST_ALIVE);
	/* What another thread would have posted before it heard of it: taken, and the device is not told. */
	for (int i = 0; i < LATE; i++, posted++)
		check("post after death", !write_one(&p, posted));

	/* All changes are told by the same descriptor: the second one is that the context is gone. */
	while (state_of(first.ctx) != HOLDFAST_GONE) {
		uint64_t changes;
		need(poll(&change, 1, -1) == 1 && read(change.fd, &changes, sizeof(changes)) == sizeof(changes), "wait");
	}
	int n = api.outstanding(p.a.qp, list, ARRAY_SIZE(list));
	want_int("outstanding", n, (long long)(posted - polled));
	for (int i = 0; i < n; i++)
		count[list[i].fate]++;
	check("what came late was not executed", count[HOLDFAST_FATE_NOT_EXECUTED] >= LATE);

	/* Each ends once, in order; then its buffer is ours again, and it may be posted elsewhere. */
	for (; drained < (uint64_t)n && ibv_poll_cq(p.a.scq, 1, &wc) == 1; drained++) {
		const struct holdfast_wr *w = &list[drained];
		bool executed = w->fate == HOLDFAST_FATE_EXECUTED;
		if (wc.wr_id != w->wr_id || wc.status != (executed ? IBV_WC_SUCCESS : IBV_WC_WR_FLUSH_ERR))
			check("completion after death", false);
		if (w->fate == HOLDFAST_FATE_NOT_EXECUTED && !write_one(&q, w->wr_id))
			again++;
	}
	want_int("drained", (long long)drained, n);
	want_int("nothing more", ibv_poll_cq(p.a.scq, 1, &wc), 0);
	want_int("posted again", (long long)again, (long long)count[HOLDFAST_FATE_NOT_EXECUTED]);
	for (uint64_t i = 0; i < again; i++) {
		need(wait_one(q.a.scq, &wc), "have a completion of the second device");
		check("on the second device", wc.status == IBV_WC_SUCCESS && wc.wr_id == list[n - again + i].wr_id);
	}
	printf("outstanding: %llu executed, %llu unknown, %llu not executed and posted again\n",
	       (unsigned long long)count[HOLDFAST_FATE_EXECUTED], (unsigned long long)count[HOLDFAST_FATE_UNKNOWN],
	       (unsigned long long)again);

	pair_close(&p);
	dev_close(&first);
	pair_close(&q);
	dev_close(&second);
	check_provider(&o);
	return finish();
}
