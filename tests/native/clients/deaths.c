// deaths QPS EACH DEATHS: how long after its device died a program with much outstanding knows what became of it: distributions over
// so many deaths, each with QPS queue pairs that have EACH work requests outstanding, on one completion queue that is polled
// without a rest. For the null engine, which completes nothing. Prints a table's rows; with stock, which flushes nothing, how
// long it was waited.
#include "pair.h"
#include <dlfcn.h>
#include <time.h>
#include "../../../include/holdfast.h"

enum { BATCH = 32, MOST = 64 };

static uint64_t clock_ns(clockid_t id)
{
	struct timespec t;
	clock_gettime(id, &t);
	return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static uint64_t now(void)
{
	return clock_ns(CLOCK_MONOTONIC);
}

enum what { TOLD, CLOSED, GATE, FIRST, LAST, CPU, DESTROYED, TIMES };
static const char *const names[] = {
	"early event given by the kernel to first sign noted",
	"first sign noted to gate closed",
	"early event given by the kernel to gate closed",
	"final event to first flushed completion polled",
	"final event to last one polled",
	"CPU of polling all",
	"all destroyed and the device closed",
};
static uint64_t *times[TIMES];

static struct ibv_context *context;
static struct ibv_pd *pd;
static struct ibv_mr *mr;
static struct ibv_cq *cq;
static struct ibv_qp **qp;
static unsigned *ended;
static char buffer[8192];
static unsigned qps, each;

static __typeof__(holdfast_context_status) *ask;

static struct holdfast_status status(void)
{
	struct holdfast_status s;
	CHECK(!ask(context, &s, sizeof s));
	return s;
}

static void set_up(void)
{
	struct ibv_send_wr wr[MOST], *bad;
	struct ibv_sge sge;
	CHECK((context = open_device("mlx5_0")) && (pd = ibv_alloc_pd(context)));
	CHECK((mr = ibv_reg_mr(pd, buffer, sizeof buffer, IBV_ACCESS_LOCAL_WRITE | IBV_ACCESS_REMOTE_WRITE)));
	CHECK((cq = ibv_create_cq(context, (int)(qps * each), NULL, NULL, 0)));
	sge = (struct ibv_sge){ (uintptr_t)buffer, 64, mr->lkey };
	struct ibv_qp_init_attr init = { .send_cq = cq, .recv_cq = cq, .qp_type = IBV_QPT_RC,
					 .cap = { .max_send_wr = each, .max_recv_wr = 1, .max_send_sge = 1, .max_recv_sge = 1 } };
	for (unsigned i = 0; i < qps; i++) {
		CHECK((qp[i] = ibv_create_qp(pd, &init)));
		connect_to(qp[i], qp[i]->qp_num, 1);
		ended[i] = 0;
		for (unsigned k = 0; k < each; k++)
			wr[k] = (struct ibv_send_wr){ .wr_id = (uint64_t)i << 32 | k, .next = k + 1 < each ? &wr[k + 1] : NULL, .sg_list = &sge,
						      .num_sge = 1, .opcode = IBV_WR_RDMA_WRITE, .send_flags = IBV_SEND_SIGNALED,
						      .wr.rdma = { (uintptr_t)buffer + 4096, mr->rkey } };
		CHECK(!ibv_post_send(qp[i], wr, &bad));
	}
}

static void tear_down(unsigned death)
{
	uint64_t began = now();
	for (unsigned i = 0; i < qps; i++)
		CHECK(!ibv_destroy_qp(qp[i]));
	CHECK(!ibv_destroy_cq(cq) && !ibv_dereg_mr(mr) && !ibv_dealloc_pd(pd) && !ibv_close_device(context));
	times[DESTROYED][death] = now() - began;
}

// Whether any came within so long.
static bool flushes(unsigned death, uint64_t limit)
{
	struct ibv_wc wc[BATCH];
	uint64_t final = now(), cpu = clock_ns(CLOCK_THREAD_CPUTIME_ID), all = 0, total = (uint64_t)qps * each;
	int n;
	while (all < total) {
		CHECK((n = ibv_poll_cq(cq, BATCH, wc)) >= 0);
		if (!n) {
			// Until there is something to poll it is waiting.
			if (!all)
				cpu = clock_ns(CLOCK_THREAD_CPUTIME_ID);
			if (!all && now() - final > limit)
				return false;
			continue;
		}
		if (!all)
			times[FIRST][death] = now() - final;
		all += (uint64_t)n;
		for (int i = 0; i < n; i++) {
			unsigned at = (unsigned)(wc[i].wr_id >> 32);
			CHECK(at < qps && wc[i].status == IBV_WC_WR_FLUSH_ERR && (unsigned)wc[i].wr_id == ended[at]++);
		}
	}
	times[CPU][death] = clock_ns(CLOCK_THREAD_CPUTIME_ID) - cpu;
	times[LAST][death] = now() - final;
	CHECK(ibv_poll_cq(cq, BATCH, wc) == 0);
	return true;
}

static void one_death(unsigned death)
{
	set_up();
	uint64_t told = now();
	control("fatal");
	struct holdfast_status s;
	do
		s = status();
	while (s.closed_ns == HOLDFAST_NEVER);
	// That one may have read its clock before either time was written.
	s = status();
	uint64_t at = now();
	times[TOLD][death] = at - s.since_ns - told;
	times[GATE][death] = at - s.closed_ns - told;
	times[CLOSED][death] = s.since_ns - s.closed_ns;
	control("remove");
	CHECK(flushes(death, UINT64_MAX));
	tear_down(death);
	control("return");
}

static int by_size(const void *a, const void *b)
{
	uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
	return (x > y) - (x < y);
}

static void print(uint64_t ns)
{
	if (ns < 1000000)
		printf(" %.1f us |", (double)ns / 1e3);
	else
		printf(" %.2f ms |", (double)ns / 1e6);
}

int main(int argc, char **argv)
{
	CHECK(argc == 4);
	unsigned deaths = (unsigned)atoi(argv[3]);
	qps = (unsigned)atoi(argv[1]);
	each = (unsigned)atoi(argv[2]);
	CHECK(qps && each && each <= MOST && deaths);
	CHECK((qp = calloc(qps, sizeof *qp)) && (ended = calloc(qps, sizeof *ended)));
	for (int i = 0; i < TIMES; i++)
		CHECK((times[i] = calloc(deaths, sizeof **times)));
	CHECK((context = open_device("mlx5_0")) && !ibv_close_device(context));
	void *holdfast = dlopen("libholdfast.so", RTLD_LAZY | RTLD_NOLOAD);
	if (!holdfast) {
		set_up();
		control("kill");
		CHECK(!flushes(0, 10000000000));
		tear_down(0);
		printf("| %u x %u | stock | 1 | any flushed completion | never: none in 10 s | | | |\n", qps, each);
		return 0;
	}
	CHECK((ask = (__typeof__(ask))dlsym(holdfast, "holdfast_context_status")));
	for (unsigned death = 0; death < deaths; death++)
		one_death(death);
	for (int i = 0; i < TIMES; i++) {
		qsort(times[i], deaths, sizeof **times, by_size);
		printf("| %u x %u | holdfast | %u | %s |", qps, each, deaths, names[i]);
		for (int p = 0; p < 4; p++)
			print(times[i][(deaths - 1) * (uint64_t[]){ 50, 90, 99, 100 }[p] / 100]);
		printf("\n");
	}
	return 0;
}
