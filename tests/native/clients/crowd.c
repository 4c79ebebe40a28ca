// crowd: a device's death where many know the device: forked children, threads that all sleep on one channel, events that
// nobody acknowledges in time, and a handler of events that closes all before it acknowledges. With holdfast only: stock waits
// for ever in most of it. Nothing here may hang: an alarm ends the process, and so the test. It does what README says of
// HOLDFAST_WATCH=off, which is needless otherwise: who gets EIO from a channel arms before it tries again.
#include "pair.h"
#include <pthread.h>
#include <stdatomic.h>
#include <sys/wait.h>

enum { DEPTH = 64, CHILDREN = 6, READERS = 8, LIMIT = 120 };

static struct pair p;

static void set_up(void)
{
	pair_open(&p, "mlx5_0", DEPTH);
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
			ibv_destroy_qp(p.qp[i]);
		ibv_destroy_cq(p.cq);
		ibv_dereg_mr(p.mr);
		ibv_dealloc_pd(p.pd);
		ibv_destroy_comp_channel(p.channel);
		ibv_close_device(p.context);
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
		pair_post(&p);
	while (moment == BEFORE && forked < CHILDREN)
		fork_one(forked++);
	control(moment == DURING ? "at doorbell 3: kill" : "at doorbell 1: kill");
	for (int i = 0; i < DEPTH || !p.flushed; i++) {
		pair_take(&p);
		while (p.posted - p.ended < DEPTH / 2)
			pair_post(&p);
		// From here on the device is dying on another thread.
		if (moment == DURING && i && forked < CHILDREN)
			fork_one(forked++);
	}
	pair_drain(&p);
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
	pair_post(&p);
	pair_drain(&p);
	pair_destroy(&p);
	CHECK(!ibv_close_device(p.context));
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
		if (ibv_get_cq_event(p.channel, &of, &mine)) {
			CHECK(errno == EIO || errno == EINTR);
			CHECK(!ibv_req_notify_cq(p.cq, 0));
			continue;
		}
		pthread_mutex_lock(&lock);
		CHECK(of == p.cq);
		leaves = over;
		if (leaves && --readers == 0)
			unacknowledged = of;
		else
			ibv_ack_cq_events(of, 1);
		CHECK(!ibv_req_notify_cq(p.cq, 0));
		pair_take(&p);
		if (!leaves || readers)
			pair_post(&p);
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
	CHECK(!ibv_req_notify_cq(p.cq, 0));
	for (int i = 0; i < READERS; i++)
		CHECK(!pthread_create(&thread[i], NULL, read_events, NULL));
	pair_post(&p);
	for (uint64_t seen = 0; seen < 20; usleep(100)) {
		pthread_mutex_lock(&lock);
		seen = p.ended;
		pthread_mutex_unlock(&lock);
	}
	control("kill");
	for (bool told = false; !told; usleep(100)) {
		pthread_mutex_lock(&lock);
		told = over = p.flushed > READERS;
		pthread_mutex_unlock(&lock);
	}
	for (int i = 0; i < READERS; i++)
		CHECK(!pthread_join(thread[i], NULL));
	pair_drain(&p);
	// Its event is acknowledged when it is gone.
	CHECK(unacknowledged == p.cq);
	pair_destroy(&p);
	ibv_ack_cq_events(unacknowledged, 1);
	CHECK(!ibv_close_device(p.context));
	control("return");
}

/* ------------------------------------------------------------------ the handler of events */

static void *handle(void *ignored)
{
	struct ibv_async_event failed, fatal;
	CHECK(!ibv_get_async_event(p.context, &failed) && failed.event_type == IBV_EVENT_QP_FATAL && failed.element.qp == p.qp[0]);
	control("kill");
	do
		CHECK(!ibv_get_async_event(p.context, &fatal));
	while (fatal.event_type != IBV_EVENT_DEVICE_FATAL || fatal.element.port_num);
	pair_destroy(&p);
	ibv_ack_async_event(&failed);
	CHECK(!ibv_close_device(p.context));
	ibv_ack_async_event(&fatal);
	return ignored;
}

static void closing_handler(void)
{
	pthread_t thread;
	char command[64];
	set_up();
	pair_post(&p);
	snprintf(command, sizeof command, "qp %u error", p.qp[0]->qp_num);
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
