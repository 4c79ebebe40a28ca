// Two queue pairs of a device that are connected with each other, and writes from the first to the second: each ends once, in
// order, and none well after one that is flushed.
#include "bed.h"
#include <unistd.h>

struct pair {
	struct ibv_context *context;
	struct ibv_pd *pd;
	struct ibv_mr *mr;
	struct ibv_comp_channel *channel;
	struct ibv_cq *cq;
	struct ibv_qp *qp[2];
	char buffer[8192];
	uint64_t depth, posted, ended, flushed;
};

static inline void pair_open_device(struct pair *p, const char *name)
{
	*p = (struct pair){ .context = open_device(name) };
	CHECK(p->context);
}

static inline void pair_open_channel(struct pair *p)
{
	p->channel = ibv_create_comp_channel(p->context);
	CHECK(p->channel);
}

static inline void pair_open_queues(struct pair *p, uint32_t depth)
{
	struct ibv_port_attr port;
	p->depth = depth;
	CHECK(!ibv_query_port(p->context, 1, &port));
	p->pd = ibv_alloc_pd(p->context);
	CHECK(p->pd);
	p->mr = ibv_reg_mr(p->pd, p->buffer, sizeof p->buffer, IBV_ACCESS_LOCAL_WRITE | IBV_ACCESS_REMOTE_WRITE);
	CHECK(p->mr);
	p->cq = ibv_create_cq(p->context, (int)(2 * depth - 1), NULL, p->channel, 0);
	CHECK(p->cq);
	struct ibv_qp_init_attr init = { .send_cq = p->cq, .recv_cq = p->cq, .qp_type = IBV_QPT_RC,
					 .cap = { .max_send_wr = depth, .max_recv_wr = 1, .max_send_sge = 1, .max_recv_sge = 1 } };
	for (int i = 0; i < 2; i++)
		CHECK((p->qp[i] = ibv_create_qp(p->pd, &init)));
	for (int i = 0; i < 2; i++)
		connect_to(p->qp[i], p->qp[!i]->qp_num, port.lid);
}

static inline void pair_open(struct pair *p, const char *name, uint32_t depth)
{
	pair_open_device(p, name);
	pair_open_channel(p);
	pair_open_queues(p, depth);
}

static inline void pair_post(struct pair *p)
{
	struct ibv_sge sge = { (uintptr_t)p->buffer, 64, p->mr->lkey };
	struct ibv_send_wr wr = { .wr_id = p->posted, .sg_list = &sge, .num_sge = 1, .opcode = IBV_WR_RDMA_WRITE,
				  .send_flags = IBV_SEND_SIGNALED, .wr.rdma = { (uintptr_t)p->buffer + 4096, p->mr->rkey } }, *bad;
	CHECK(p->posted - p->ended < p->depth && !ibv_post_send(p->qp[0], &wr, &bad));
	p->posted++;
}

// How many were there to be polled.
static inline int pair_take(struct pair *p)
{
	struct ibv_wc wc;
	int n, all = 0;
	while ((n = ibv_poll_cq(p->cq, 1, &wc)) == 1) {
		CHECK(wc.wr_id == p->ended && p->ended < p->posted && wc.qp_num == p->qp[0]->qp_num);
		CHECK(wc.status == IBV_WC_WR_FLUSH_ERR || (wc.status == IBV_WC_SUCCESS && !p->flushed));
		p->flushed += wc.status == IBV_WC_WR_FLUSH_ERR;
		p->ended++;
		all++;
	}
	CHECK(n == 0);
	return all;
}

// All that is outstanding ends, and nothing else.
static inline void pair_drain(struct pair *p)
{
	while (p->ended < p->posted)
		pair_take(p);
	CHECK(ibv_poll_cq(p->cq, 1, &(struct ibv_wc){ 0 }) == 0);
}

static inline void pair_destroy(struct pair *p)
{
	for (int i = 0; i < 2; i++)
		CHECK(!ibv_destroy_qp(p->qp[i]));
	CHECK(!ibv_destroy_cq(p->cq) && !ibv_dereg_mr(p->mr) && !ibv_dealloc_pd(p->pd) && !ibv_destroy_comp_channel(p->channel));
}
