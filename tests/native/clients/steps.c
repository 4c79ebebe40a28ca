// steps: one of each operation between two queue pairs, on the null engine, which executes when it is told to and not before:
// what the devices see is the same in every run.
#include "bed.h"
#include <errno.h>
#include <unistd.h>

int main(void)
{
	struct ibv_context *context = open_device("mlx5_0");
	CHECK(context && holdfast_sim_step);
	struct ibv_pd *pd = ibv_alloc_pd(context);
	static char buffer[2][4096] __attribute__((aligned(4096)));
	int access = IBV_ACCESS_LOCAL_WRITE | IBV_ACCESS_REMOTE_WRITE | IBV_ACCESS_REMOTE_READ | IBV_ACCESS_REMOTE_ATOMIC;
	struct ibv_mr *mr[2];
	struct ibv_cq *cq = ibv_create_cq(context, 63, NULL, NULL, 0);
	struct ibv_qp *qp[2];
	CHECK(pd && cq);
	struct ibv_qp_init_attr init = {
		.send_cq = cq, .recv_cq = cq, .qp_type = IBV_QPT_RC,
		.cap = { .max_send_wr = 16, .max_recv_wr = 16, .max_send_sge = 4, .max_recv_sge = 2, .max_inline_data = 200 },
	};
	for (int i = 0; i < 2; i++) {
		mr[i] = ibv_reg_mr(pd, buffer[i], sizeof buffer[i], access);
		qp[i] = ibv_create_qp(pd, &init);
		CHECK(mr[i] && qp[i]);
	}
	for (int i = 0; i < 2; i++)
		connect_to(qp[i], qp[!i]->qp_num, 1);
	for (unsigned i = 0; i < sizeof buffer[0]; i++)
		buffer[0][i] = (char)(i * 7);

	static const struct {
		enum ibv_wr_opcode opcode;
		int pieces, length, flags;
		bool receives;
	} steps[] = {
		{ IBV_WR_SEND, 1, 64, 0, true },
		{ IBV_WR_SEND, 3, 100, IBV_SEND_SOLICITED, true },
		{ IBV_WR_SEND, 1, 150, IBV_SEND_INLINE, true },
		{ IBV_WR_SEND_WITH_IMM, 2, 8, IBV_SEND_INLINE, true },
		{ IBV_WR_SEND, 0, 0, 0, true },
		{ IBV_WR_RDMA_WRITE, 1, 4096, 0, false },
		{ IBV_WR_RDMA_WRITE, 4, 33, IBV_SEND_FENCE, false },
		{ IBV_WR_RDMA_WRITE_WITH_IMM, 1, 12, IBV_SEND_INLINE, true },
		{ IBV_WR_RDMA_READ, 2, 500, 0, false },
		{ IBV_WR_ATOMIC_CMP_AND_SWP, 1, 8, 0, false },
		{ IBV_WR_ATOMIC_FETCH_AND_ADD, 1, 8, 0, false },
	};
	// Twice round the queues.
	for (unsigned round = 0; round < 4; round++)
		for (unsigned s = 0; s < sizeof steps / sizeof *steps; s++) {
			struct ibv_sge sge[4], into = { (uintptr_t)buffer[1] + 2048, 1024, mr[1]->lkey };
			for (int i = 0; i < steps[s].pieces; i++)
				sge[i] = (struct ibv_sge){ (uintptr_t)buffer[0] + i * steps[s].length, steps[s].length, mr[0]->lkey };
			if (steps[s].length * steps[s].pieces > 4096)
				sge[0].length = 4096;
			struct ibv_recv_wr recv = { .wr_id = 1000 + s, .sg_list = &into, .num_sge = 1 }, *bad_recv;
			struct ibv_send_wr wr = { .wr_id = s, .sg_list = sge, .num_sge = steps[s].pieces, .opcode = steps[s].opcode,
						  .send_flags = IBV_SEND_SIGNALED | steps[s].flags, .imm_data = htobe32(0x1234) }, *bad;
			if (steps[s].opcode == IBV_WR_ATOMIC_CMP_AND_SWP || steps[s].opcode == IBV_WR_ATOMIC_FETCH_AND_ADD) {
				wr.wr.atomic.remote_addr = (uintptr_t)buffer[1];
				wr.wr.atomic.rkey = mr[1]->rkey;
				wr.wr.atomic.compare_add = 3;
				wr.wr.atomic.swap = steps[s].opcode == IBV_WR_ATOMIC_CMP_AND_SWP ? 5 : 0;
			} else {
				wr.wr.rdma.remote_addr = (uintptr_t)buffer[1];
				wr.wr.rdma.rkey = mr[1]->rkey;
			}
			if (steps[s].receives)
				CHECK(!ibv_post_recv(qp[1], &recv, &bad_recv));
			CHECK(!ibv_post_send(qp[0], &wr, &bad));
			struct ibv_wc wc[3];
			CHECK(ibv_poll_cq(cq, 3, wc) == 0);
			CHECK(holdfast_sim_step() > 0);
			int n = ibv_poll_cq(cq, 3, wc);
			CHECK(n == 1 + steps[s].receives);
			for (int i = 0; i < n; i++)
				CHECK(wc[i].status == IBV_WC_SUCCESS && wc[i].wr_id % 1000 == s);
		}
	// What something else needs stays, as long as anything does.
	for (int i = 0; i < 2; i++) {
		CHECK(ibv_dealloc_pd(pd) == EBUSY && ibv_destroy_cq(cq) == EBUSY);
		CHECK(!ibv_destroy_qp(qp[i]));
	}
	for (int i = 0; i < 2; i++)
		CHECK(ibv_dealloc_pd(pd) == EBUSY && !ibv_dereg_mr(mr[i]));
	CHECK(!ibv_destroy_cq(cq) && !ibv_dealloc_pd(pd) && !ibv_close_device(context));
	control("sync");
	return 0;
}
