// crowd: a device's death where many know the device: forked children, threads that all sleep on one channel, events that
// nobody acknowledges in time, and a handler of events that closes all before it acknowledges. With holdfast only: stock waits
// for ever in most of it. Nothing here may hang: an alarm ends the process, and so the test.
#include "bed.h"
#include <pthread.h>
#include <stdatomic.h>
#include <sys/wait.h>
#include <unistd.h>

enum { DEPTH = 64, CHILDREN = 6, READERS = 8, LIMIT = 120 };

static struct ibv_context *context;
static struct ibv_pd *pd;
static struct ibv_mr *mr;
static struct ibv_comp_channel *channel;
static struct ibv_cq *cq;
static struct ibv_qp *qp[2];
static char buffer[8192];
static uint64_t posted, ended, flushed;

static void set_up(void)
{
	struct ibv_port_attr port;
	context = open_device("mlx5_0");
	CHECK(context && !ibv_query_port(context, 1, &port));
	pd = ibv_alloc_pd(context);
	CHECK(pd);
	mr = ibv_reg_mr(pd, buffer, sizeof buffer, IBV_ACCESS_LOCAL_WRITE | IBV_ACCESS_REMOTE_WRITE);
	channel = ibv_create_comp_channel(context);
	CHECK(mr && channel);
	cq = ibv_create_cq(context, 2 * DEPTH - 1, NULL, channel, 0);
	CHECK(cq);
	struct ibv_qp_init_attr init = { .send_cq = cq, .recv_cq = cq, .qp_type = IBV_QPT_RC,
					 .cap = { .max_send_wr = DEPTH, .max_recv_wr = 1, .max_send_sge = 1, .max_recv_sge = 1 } };
	for (int i = 0; i < 2; i++)
		CHECK((qp[i] = ibv_create_qp(pd, &init)));
	for (int i = 0; i < 2; i++)
		connect_to(qp[i], qp[!i]->qp_num, port.lid);
	posted = ended = flushed = 0;
}

static void post(void)
{
	struct ibv_sge sge = { (uintptr_t)buffer, 64, mr->lkey };
	struct ibv_send_wr wr = { .wr_id = posted, .sg_list = &sge, .num_sge = 1, .opcode = IBV_WR_RDMA_WRITE,
				  .send_flags = IBV_SEND_SIGNALED, .wr.rdma = { (uintptr_t)buffer + 4096, mr->rkey } }, *bad;
	CHECK(posted - ended < DEPTH && !ibv_post_send(qp[0], &wr, &bad));
	posted++;
}

// Each once, in order, and none good after one that is flushed.
static void take(void)
{
	struct ibv_wc wc;
	int n;
	while ((n = ibv_poll_cq(cq, 1, &wc)) == 1) {
		CHECK(wc.wr_id == ended && ended < posted && wc.qp_num == qp[0]->qp_num);
		CHECK(wc.status == IBV_WC_WR_FLUSH_ERR || (wc.status == IBV_WC_SUCCESS && !flushed));
		flushed += wc.status == IBV_WC_WR_FLUSH_ERR;
		ended++;
	}
	CHECK(n == 0);
}

static void drain(void)
{
	while (ended < posted)
		take();
	CHECK(ibv_poll_cq(cq, 1, &(struct ibv_wc){ 0 }) == 0);
}

static void destroy_all(void)
{
	for (int i = 0; i < 2; i++)
		CHECK(!ibv_destroy_qp(qp[i]));
	CHECK(!ibv_destroy_cq(cq) && !ibv_dereg_mr(mr) && !ibv_dealloc_pd(pd) && !ibv_destroy_comp_channel(channel));
}

/* ------------------------------------------------------------------ children */

static int go[2]; // closed for the children when the device is dead and drained
static pid_t child[CHILDREN];

// Some only exit, some close what they inherited, in the parent's order.
static void fork_one(int number)
{
	child[number] = fork();
	CHECK(child[number] >= 0);
	if (child[number])
		return;
	char byte;
	alarm(LIMIT);
	close(go[1]);
	CHECK(read(go[0], &byte, 1) == 0);
	if (number & 1) {
		for (int i = 0; i < 2; i++)
			ibv_destroy_qp(qp[i]);
		ibv_destroy_cq(cq);
		ibv_dereg_mr(mr);
		ibv_dealloc_pd(pd);
		ibv_destroy_comp_channel(channel);
		ibv_close_device(context);
	}
	exit(0);
}

enum moment { BEFORE, DURING, AFTER };

static void children(enum moment moment)
{
	int forked = 0, status;
	set_up();
	CHECK(!pipe(go));
	for (int i = 0; i < DEPTH / 2; i++)
		post();
	while (moment == BEFORE && forked < CHILDREN)
		fork_one(forked++);
	control(moment == DURING ? "at doorbell 3: kill" : "at doorbell 1: kill");
	for (int i = 0; i < DEPTH || !flushed; i++) {
		take();
		while (posted - ended < DEPTH / 2)
			post();
		// From here on the device is dying on another thread.
		if (moment == DURING && i && forked < CHILDREN)
			fork_one(forked++);
	}
	drain();
	while (forked < CHILDREN)
		fork_one(forked++);
	close(go[0]);
	close(go[1]);
	for (int i = 0; i < CHILDREN; i++) {
		CHECK(waitpid(child[i], &status, 0) == child[i]);
		if (status) {
			fprintf(stderr, "child %d, forked at moment %d, ended with %#x\n", i, moment, status);
			exit(1);
		}
	}
	// What the children did changed nothing here.
	post();
	drain();
	destroy_all();
	CHECK(!ibv_close_device(context));
	control("return");
}

/* ------------------------------------------------------------------ readers of one channel */

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static int readers;
static bool over;
static struct ibv_cq *unacknowledged;

// A reader that was told of the end leaves, and sees to it that the next one is told.
static void *read_events(void *ignored)
{
	for (bool leaves = false; !leaves;) {
		struct ibv_cq *of;
		void *mine;
		if (ibv_get_cq_event(channel, &of, &mine)) {
			CHECK(errno == EIO || errno == EINTR);
			continue;
		}
		pthread_mutex_lock(&lock);
		CHECK(of == cq);
		leaves = over;
		if (leaves && --readers == 0)
			unacknowledged = of;
		else
			ibv_ack_cq_events(of, 1);
		CHECK(!ibv_req_notify_cq(cq, 0));
		take();
		if (!leaves || readers)
			post();
		pthread_mutex_unlock(&lock);
	}
	return ignored;
}

static void one_channel(void)
{
	pthread_t thread[READERS];
	set_up();
	over = false;
	readers = READERS;
	unacknowledged = NULL;
	CHECK(!ibv_req_notify_cq(cq, 0));
	for (int i = 0; i < READERS; i++)
		CHECK(!pthread_create(&thread[i], NULL, read_events, NULL));
	post();
	for (uint64_t seen = 0; seen < 20; usleep(100)) {
		pthread_mutex_lock(&lock);
		seen = ended;
		pthread_mutex_unlock(&lock);
	}
	control("kill");
	for (bool told = false; !told; usleep(100)) {
		pthread_mutex_lock(&lock);
		told = over = flushed > READERS;
		pthread_mutex_unlock(&lock);
	}
	for (int i = 0; i < READERS; i++)
		CHECK(!pthread_join(thread[i], NULL));
	drain();
	// Its event is acknowledged when it is gone.
	CHECK(unacknowledged == cq);
	destroy_all();
	ibv_ack_cq_events(unacknowledged, 1);
	CHECK(!ibv_close_device(context));
	control("return");
}

/* ------------------------------------------------------------------ the handler of events */

static void *handle(void *ignored)
{
	struct ibv_async_event failed, fatal;
	CHECK(!ibv_get_async_event(context, &failed) && failed.event_type == IBV_EVENT_QP_FATAL && failed.element.qp == qp[0]);
	control("kill");
	do
		CHECK(!ibv_get_async_event(context, &fatal));
	while (fatal.event_type != IBV_EVENT_DEVICE_FATAL || fatal.element.port_num);
	destroy_all();
	ibv_ack_async_event(&failed);
	CHECK(!ibv_close_device(context));
	ibv_ack_async_event(&fatal);
	return ignored;
}

static void closing_handler(void)
{
	pthread_t thread;
	char command[64];
	set_up();
	post();
	snprintf(command, sizeof command, "qp %u error", qp[0]->qp_num);
	CHECK(!pthread_create(&thread, NULL, handle, NULL));
	control(command);
	CHECK(!pthread_join(thread, NULL));
	control("return");
}

int main(int argc, char **argv)
{
	int rounds = argc > 1 ? atoi(argv[1]) : 1;
	alarm(LIMIT * (rounds + 1));
	for (int round = 0; round < rounds; round++) {
		for (enum moment moment = BEFORE; moment <= AFTER; moment++)
			children(moment);
		one_channel();
		closing_handler();
	}
	printf("%d rounds\n", rounds);
	return 0;
}
