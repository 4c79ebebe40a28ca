// forked: a child of a process with a device open. What its parent opened is the parent's; it can open its own.
#include "bed.h"
#include <sys/wait.h>
#include <unistd.h>

static struct ibv_context *context;
static struct ibv_mr *mr;
static struct ibv_cq *cq;
static struct ibv_qp *qp;
static char buffer[128];

static void set_up(void)
{
	context = open_device("mlx5_0");
	CHECK(context);
	struct ibv_pd *pd = ibv_alloc_pd(context);
	CHECK(pd);
	mr = ibv_reg_mr(pd, buffer, sizeof buffer, IBV_ACCESS_LOCAL_WRITE | IBV_ACCESS_REMOTE_WRITE);
	cq = ibv_create_cq(context, 1, NULL, NULL, 0);
	CHECK(mr && cq);
	struct ibv_qp_init_attr init = { .send_cq = cq, .recv_cq = cq, .qp_type = IBV_QPT_RC,
					 .cap = { .max_send_wr = 1, .max_recv_wr = 1, .max_send_sge = 1, .max_recv_sge = 1 } };
	qp = ibv_create_qp(pd, &init);
	CHECK(qp);
	connect_to(qp, qp->qp_num, 1);
}

static void traffic(int value)
{
	memset(buffer, value, 64);
	struct ibv_sge sge = { (uintptr_t)buffer, 64, mr->lkey };
	struct ibv_send_wr wr = { .sg_list = &sge, .num_sge = 1, .opcode = IBV_WR_RDMA_WRITE, .send_flags = IBV_SEND_SIGNALED,
				  .wr.rdma = { (uintptr_t)buffer + 64, mr->rkey } }, *bad;
	struct ibv_wc wc;
	int n;
	CHECK(!ibv_post_send(qp, &wr, &bad));
	while (!(n = ibv_poll_cq(cq, 1, &wc)))
		;
	CHECK(n == 1 && wc.status == IBV_WC_SUCCESS && !memcmp(buffer, buffer + 64, 64));
}

int main(void)
{
	set_up();
	traffic(1);
	for (int i = 0; i < 20; i++) {
		pid_t child = fork();
		CHECK(child >= 0);
		if (!child) {
			uint32_t parents = qp->qp_num;
			struct ibv_port_attr port;
			CHECK(ibv_query_port(context, 1, &port));
			set_up();
			CHECK(qp->qp_num != parents);
			traffic(2);
			_exit(0);
		}
		traffic(3 + i);
		int status;
		CHECK(waitpid(child, &status, 0) == child && WIFEXITED(status) && WEXITSTATUS(status) == 0);
	}
	traffic(100);
	puts("fine");
	return 0;
}
