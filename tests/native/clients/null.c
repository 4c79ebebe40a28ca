// null: one queue pair on the null engine, step by step: what is posted is completed by a call, and by nothing else.
#include "bed.h"

// A shared receive queue: its receives complete by one of its queue pairs, in the order in which they were posted.
static void shared(struct ibv_pd *pd, struct ibv_cq *scq, struct ibv_cq *rcq, struct ibv_sge *sge)
{
	struct ibv_srq_init_attr shape = { .attr = { .max_wr = 15, .max_sge = 1 } };
	struct ibv_srq *srq = ibv_create_srq(pd, &shape);
	CHECK(srq);
	struct ibv_qp_init_attr init = {
		.send_cq = scq, .recv_cq = rcq, .qp_type = IBV_QPT_RC, .srq = srq, .cap = { .max_send_wr = 8, .max_send_sge = 1 },
	};
	struct ibv_qp *qp = ibv_create_qp(pd, &init);
	CHECK(qp);
	connect_to(qp, qp->qp_num, 1);
	unsigned long posted = 0;
	for (int round = 0; round < 50; round++) {
		CHECK(holdfast_sim_rq(qp->qp_num, 5) == 0);
		for (int i = 0; i < 9; i++) {
			struct ibv_recv_wr recv = { .wr_id = posted + i, .sg_list = sge, .num_sge = 1 }, *bad;
			CHECK(!ibv_post_srq_recv(srq, &recv, &bad));
		}
		CHECK(holdfast_sim_rq(qp->qp_num, 5) == 9);
		struct ibv_wc wc[16];
		CHECK(ibv_poll_cq(rcq, 16, wc) == 9);
		for (int i = 0; i < 9; i++)
			CHECK(wc[i].status == IBV_WC_SUCCESS && wc[i].opcode == IBV_WC_RECV && wc[i].wr_id == posted + i &&
			      wc[i].qp_num == qp->qp_num && wc[i].byte_len == 5);
		posted += 9;
	}
	CHECK(!ibv_destroy_qp(qp) && !ibv_destroy_srq(srq));
}

int main(void)
{
	CHECK(holdfast_sim_sq);
	struct ibv_context *context = open_device("mlx5_0");
	CHECK(context);
	struct ibv_pd *pd = ibv_alloc_pd(context);
	CHECK(pd);
	static char buffer[4096];
	struct ibv_mr *mr = ibv_reg_mr(pd, buffer, sizeof buffer, IBV_ACCESS_LOCAL_WRITE);
	CHECK(mr);
	struct ibv_cq *scq = ibv_create_cq(context, 63, NULL, NULL, 0), *rcq = ibv_create_cq(context, 63, NULL, NULL, 0);
	CHECK(scq && rcq);
	struct ibv_qp_init_attr init = {
		.send_cq = scq, .recv_cq = rcq, .qp_type = IBV_QPT_RC,
		.cap = { .max_send_wr = 32, .max_recv_wr = 32, .max_send_sge = 2, .max_recv_sge = 1, .max_inline_data = 64 },
	};
	struct ibv_qp *qp = ibv_create_qp(pd, &init);
	CHECK(qp);
	connect_to(qp, qp->qp_num, 1);

	struct holdfast_sim_info info;
	CHECK(holdfast_sim_info(qp->qp_num, &info) == 0 && info.qpn == qp->qp_num && info.sq && info.rq && info.uar);
	CHECK(holdfast_sim_info(qp->qp_num + 1, &info) == -1 && holdfast_sim_sq(qp->qp_num + 1) == -1);

	// More than once round the queues, and every ownership bit.
	struct ibv_sge sge = { (uintptr_t)buffer, 8, mr->lkey };
	unsigned long sent = 0, received = 0;
	for (int round = 0; round < 50; round++) {
		for (int i = 0; i < 8; i++) {
			struct ibv_send_wr wr = { .wr_id = sent + i, .sg_list = &sge, .num_sge = 1, .opcode = IBV_WR_RDMA_WRITE,
				.send_flags = (i % 4 == 3 ? IBV_SEND_SIGNALED : 0) | (i & 1 ? IBV_SEND_INLINE : 0),
				.wr.rdma = { 0x100000, 0x1234 } }, *bad;
			CHECK(!ibv_post_send(qp, &wr, &bad));
			struct ibv_recv_wr recv = { .wr_id = received + i, .sg_list = &sge, .num_sge = 1 }, *bad_recv;
			CHECK(!ibv_post_recv(qp, &recv, &bad_recv));
		}
		struct ibv_wc wc[16];
		CHECK(ibv_poll_cq(scq, 16, wc) == 0 && ibv_poll_cq(rcq, 16, wc) == 0);
		for (int i = 0; i < 4; i++)
			CHECK(holdfast_sim_sq1(qp->qp_num) == (i == 3));
		CHECK(holdfast_sim_sq(qp->qp_num) == 1 && holdfast_sim_sq(qp->qp_num) == 0);
		CHECK(holdfast_sim_rq(qp->qp_num, 5) == 8 && holdfast_sim_rq(qp->qp_num, 5) == 0);
		holdfast_sim_flush(qp->qp_num, HOLDFAST_SIM_FLUSH_CQ | HOLDFAST_SIM_FLUSH_SQ);
		CHECK(ibv_poll_cq(scq, 16, wc) == 2);
		for (int i = 0; i < 2; i++)
			CHECK(wc[i].status == IBV_WC_SUCCESS && wc[i].opcode == IBV_WC_RDMA_WRITE && wc[i].wr_id == sent + 4 * i + 3 &&
			      wc[i].qp_num == qp->qp_num);
		CHECK(ibv_poll_cq(rcq, 16, wc) == 8);
		for (int i = 0; i < 8; i++)
			CHECK(wc[i].status == IBV_WC_SUCCESS && wc[i].opcode == IBV_WC_RECV && wc[i].wr_id == received + i && wc[i].byte_len == 5);
		sent += 8, received += 8;
	}
	CHECK(holdfast_sim_info(qp->qp_num, &info) == 0 && info.cq_pi == 100 && info.rcq_pi == 400 && info.rq_ci == 400);
	shared(pd, scq, rcq, &sge);
	CHECK(!ibv_destroy_qp(qp) && holdfast_sim_sq(info.qpn) == -1);
	CHECK(!ibv_destroy_cq(scq) && !ibv_destroy_cq(rcq) && !ibv_dereg_mr(mr) && !ibv_dealloc_pd(pd) && !ibv_close_device(context));
	puts("fine");
	return 0;
}
