// dies CASE: a device dies, and something that its program or holdfast could do with is not to be had, or was taken away. With
// holdfast only. Nothing here may hang: an alarm ends the process, and so the test.
#include "pair.h"
#include <dlfcn.h>
#include <fcntl.h>
#include <malloc.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <poll.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stddef.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <time.h>
#include "../../../include/holdfast.h"

enum { DEPTH = 64, SOME = 20, LIMIT = 120 };

static struct pair p;

static double now(void)
{
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

// Some writes that the device, which does nothing any more, has not executed.
static void keep_busy(void)
{
	pair_post(&p);
	pair_drain(&p);
	control("silence");
	for (int i = 0; i < SOME; i++)
		pair_post(&p);
}

static void set_up(void)
{
	pair_open(&p, "mlx5_0", DEPTH);
	keep_busy();
}

static void all_flushed(void)
{
	pair_drain(&p);
	CHECK(p.flushed == p.posted - 1);
}

static void give_back(void)
{
	pair_destroy(&p);
	CHECK(!ibv_close_device(p.context));
}

/* ------------------------------------------------------------------ a sleeper */

// How a thread in ibv_get_cq_event came out of it, again and again until there was an event.
static struct {
	pthread_t thread;
	_Atomic unsigned eio;
	_Atomic bool arms, event, over;
} sleeper;

static void *sleep_in_channel(void *ignored)
{
	struct ibv_cq *of;
	void *mine;
	while (ibv_get_cq_event(p.channel, &of, &mine)) {
		CHECK(errno == EIO);
		sleeper.eio++;
		if (sleeper.over)
			return ignored;
		if (sleeper.arms)
			CHECK(!ibv_req_notify_cq(p.cq, 0));
	}
	CHECK(of == p.cq);
	ibv_ack_cq_events(of, 1);
	sleeper.event = true;
	return ignored;
}

static void put_to_sleep(bool arms)
{
	sleeper.arms = arms;
	CHECK(!ibv_req_notify_cq(p.cq, 0) && !pthread_create(&sleeper.thread, NULL, sleep_in_channel, NULL));
}

static void wakes(void)
{
	CHECK(!pthread_join(sleeper.thread, NULL) && sleeper.event);
}

/* ------------------------------------------------------------------ what is not to be had */

// System calls that fail from now on, in every thread. `free_if`: not with one of these bits in their fourth argument.
static void refuse(const int *calls, unsigned count, int err, unsigned free_if)
{
	struct sock_filter code[32];
	unsigned n = 0;
	CHECK(count + 8 < sizeof code / sizeof *code);
	code[n++] = (struct sock_filter)BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr));
	for (unsigned i = 0; i < count; i++)
		code[n++] = (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, (unsigned)calls[i], (unsigned char)(count - i), 0);
	code[n++] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW);
	code[n++] = (struct sock_filter)BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, args[3]));
	code[n++] = (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JSET | BPF_K, free_if, 1, 0);
	code[n++] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | (unsigned)err);
	code[n++] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW);
	struct sock_fprog program = { (unsigned short)n, code };
	CHECK(!prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0));
	CHECK(!syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_TSYNC, &program));
}

// Descriptors until there are no more.
static int taken[1024], takings;

static void take_all_files(void)
{
	CHECK(!setrlimit(RLIMIT_NOFILE, &(struct rlimit){ 256, 1024 }));
	for (int fd; (fd = dup(0)) >= 0; takings++)
		taken[takings] = fd;
	CHECK(errno == EMFILE && takings);
}

static void give_files_back(void)
{
	while (takings)
		close(taken[--takings]);
}

/* ------------------------------------------------------------------ the cases */

// Long before HOLDFAST_FLUSH_AFTER: that the kernel takes the device away is known, though its last word is lost.
static void final_lost(void)
{
	set_up();
	put_to_sleep(false);
	control("fatal");
	CHECK(!pair_take(&p));
	control("remove lost");
	double began = now();
	wakes();
	all_flushed();
	double took = now() - began;
	printf("flushed after %.1f s\n", took);
	CHECK(took > 1 && took < 15);
	give_back();
}

// No pipe can be put under the channel's number: the kernel's file stays.
static void no_files(void)
{
	set_up();
	put_to_sleep(false);
	take_all_files();
	control("kill");
	all_flushed();
	while (sleeper.eio < 100)
		usleep(100);
	sleeper.over = true;
	CHECK(!pthread_join(sleeper.thread, NULL) && !sleeper.event);
	pair_post(&p);
	all_flushed();
	pair_destroy(&p);
	give_files_back();
	CHECK(!ibv_close_device(p.context));
}

// As the device dies there is none, as it is gone there is: then the pipe is put there.
static void files_later(void)
{
	set_up();
	put_to_sleep(false);
	take_all_files();
	control("fatal");
	CHECK(!pair_take(&p));
	give_files_back();
	control("remove");
	wakes();
	all_flushed();
	give_back();
}

// Nobody may so much as wait for files.
static void no_waiting(void)
{
	struct rlimit before;
	set_up();
	put_to_sleep(true);
	CHECK(!getrlimit(RLIMIT_NOFILE, &before) && !setrlimit(RLIMIT_NOFILE, &(struct rlimit){ 0, before.rlim_max }));
	control("kill");
	all_flushed();
	CHECK(!setrlimit(RLIMIT_NOFILE, &before));
	sleeper.over = true;
	CHECK(!pthread_join(sleeper.thread, NULL));
	give_back();
}

static void no_memory(void)
{
	static const int calls[] = { SYS_mmap, SYS_mremap, SYS_brk };
	// Small pieces are left, to every thread: the C library ends a program where it cannot register a thread's first destructor.
	CHECK(mallopt(M_ARENA_MAX, 1));
	set_up();
	put_to_sleep(false);
	void *volatile spare = malloc(1 << 16);
	CHECK(spare);
	free(spare);
	// But over what is there, as the bed swaps its pages.
	refuse(calls, 3, ENOMEM, MAP_FIXED);
	CHECK(mmap(NULL, 4096, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0) == MAP_FAILED);
	control("kill");
	wakes();
	// What is flushed is told of in memory of its own; nothing is lost while there is none.
	for (int i = 0, n; i < 2; i++) {
		while (!(n = ibv_poll_cq(p.cq, 1, &(struct ibv_wc){ 0 })))
			;
		CHECK(n == -ENOMEM);
	}
	give_back();
	// The bed could not end in an orderly way without any.
	puts("fine");
	fflush(stdout);
	_exit(0);
}

static uint64_t closed_ns(void)
{
	void *holdfast = dlopen("libholdfast.so", RTLD_LAZY | RTLD_NOLOAD);
	CHECK(holdfast);
	__typeof__(holdfast_context_status) *ask = (__typeof__(ask))dlsym(holdfast, "holdfast_context_status");
	struct holdfast_status status;
	CHECK(ask && !ask(p.context, &status, sizeof status));
	dlclose(holdfast);
	return status.closed_ns;
}

// The kernel has no memory for the page that it puts under doorbells, and whoever touches one gets SIGBUS: behind the gate
// nobody does. Here they are protected.
static void no_dummy(void)
{
	char line[512];
	int pages = 0;
	set_up();
	put_to_sleep(false);
	control("fatal");
	while (closed_ns() == HOLDFAST_NEVER)
		usleep(100);
	FILE *maps = fopen("/proc/self/maps", "r");
	CHECK(maps);
	while (fgets(line, sizeof line, maps)) {
		uintptr_t from, to;
		// The devices' own view of all of them is not the program's.
		if (strstr(line, "w-s ") && strstr(line, "memfd:vhca") && sscanf(line, "%lx-%lx", &from, &to) == 2 && to - from < 1 << 20) {
			CHECK(!mprotect((void *)from, to - from, PROT_NONE));
			pages++;
		}
	}
	fclose(maps);
	CHECK(pages);
	pair_post(&p);
	CHECK(!ibv_req_notify_cq(p.cq, 0) && !pair_take(&p));
	control("remove");
	wakes();
	all_flushed();
	pair_post(&p);
	CHECK(!ibv_req_notify_cq(p.cq, 0));
	all_flushed();
	give_back();
}

// Without the thread it is calls that notice. The engine of the bed has its thread from before.
static void no_threads(void)
{
	static const int calls[] = { SYS_clone, SYS_clone3, SYS_fork, SYS_vfork };
	struct ibv_cq *of;
	void *mine;
	struct ibv_context *before = open_device("mlx5_0");
	CHECK(before && !ibv_close_device(before));
	refuse(calls, 4, EAGAIN, 0);
	set_up();
	CHECK(!ibv_req_notify_cq(p.cq, 0));
	control("remove lost");
	CHECK(ibv_get_cq_event(p.channel, &of, &mine) && errno == EIO);
	double began = now();
	all_flushed();
	printf("flushed after %.1f s\n", now() - began);
	CHECK(!ibv_get_cq_event(p.channel, &of, &mine) && of == p.cq);
	ibv_ack_cq_events(of, 1);
	give_back();
}

// HOLDFAST_WATCH=off: as README has it.
static void off(void)
{
	struct pollfd file;
	struct ibv_cq *of;
	void *mine;
	set_up();
	put_to_sleep(true);
	file = (struct pollfd){ p.channel->fd, POLLIN, 0 };
	control("fatal");
	CHECK(!ibv_req_notify_cq(p.cq, 0) && !pair_take(&p) && !poll(&file, 1, 0) && !sleeper.eio);
	control("remove");
	wakes();
	CHECK(sleeper.eio);
	all_flushed();
	CHECK(!ibv_req_notify_cq(p.cq, 0) && poll(&file, 1, -1) == 1 && file.revents == POLLIN);
	CHECK(!ibv_get_cq_event(p.channel, &of, &mine));
	ibv_ack_cq_events(of, 1);
	give_back();
}

// A kernel without the command for async event files is none that holdfast serves.
static void no_async(void)
{
	control("refuse async but 0");
	CHECK(!open_device("mlx5_0") && errno == EPROTONOSUPPORT);
	control("allow");
	set_up();
	control("kill");
	all_flushed();
	give_back();
}

// Of the two files that holdfast has for itself, one or none is to be had.
static void no_file_of_ours(bool async, bool channel, const char *end)
{
	struct ibv_async_event event;
	// The first is the program's.
	if (async)
		control("refuse async but 1");
	if (channel)
		control("refuse channel");
	pair_open_device(&p, "mlx5_0");
	control("allow");
	pair_open_channel(&p);
	if (channel)
		control("refuse channel");
	pair_open_queues(&p, DEPTH);
	keep_busy();
	put_to_sleep(true);
	control(end);
	// Whoever waits for events, as programs do.
	for (bool told = !!strstr(end, "lost"); !told; ibv_ack_async_event(&event)) {
		CHECK(!ibv_get_async_event(p.context, &event));
		told = event.event_type == IBV_EVENT_DEVICE_FATAL && !event.element.port_num;
	}
	double began = now();
	wakes();
	all_flushed();
	// That of the one is lost, and the other only tells that it begins; else the event is all that is needed.
	CHECK(now() - began < (strstr(end, "lost") ? 15 : 1.5));
	give_back();
}

static void no_events_of_ours(void)
{
	no_file_of_ours(true, false, "remove lost");
}

static void no_channel_of_ours(void)
{
	no_file_of_ours(false, true, "remove");
}

static void nothing_of_ours(void)
{
	no_file_of_ours(true, true, "remove");
}

static void closed_async(void)
{
	set_up();
	put_to_sleep(false);
	CHECK(!close(p.context->async_fd));
	control("kill");
	wakes();
	all_flushed();
	give_back();
}

// What stands under the number now is the program's, and stays it.
static void closed_channel(void)
{
	int own[2];
	char byte;
	set_up();
	CHECK(!ibv_req_notify_cq(p.cq, 0));
	int number = p.channel->fd;
	CHECK(!close(number) && !pipe(own));
	if (own[0] != number)
		CHECK(dup2(own[0], number) == number && !close(own[0]));
	control("kill");
	all_flushed();
	pair_post(&p);
	CHECK(!ibv_req_notify_cq(p.cq, 0));
	all_flushed();
	CHECK(write(own[1], "x", 1) == 1 && read(number, &byte, 1) == 1 && byte == 'x');
	// libibverbs closes it.
	give_back();
	CHECK(!close(own[1]));
}

/* ------------------------------------------------------------------ ten thousand */

enum { QPS = 1000, EACH = 10 };

static void many(void)
{
	static struct ibv_qp *qp[QPS];
	static unsigned ended[QPS];
	struct ibv_wc wc[64];
	struct ibv_cq *of;
	void *mine;
	int n, all = 0;
	set_up();
	struct ibv_cq *cq = ibv_create_cq(p.context, QPS * EACH, NULL, p.channel, 0);
	struct ibv_qp_init_attr init = { .send_cq = cq, .recv_cq = cq, .qp_type = IBV_QPT_RC,
					 .cap = { .max_send_wr = EACH, .max_recv_wr = 1, .max_send_sge = 1, .max_recv_sge = 1 } };
	CHECK(cq);
	// Commands are answered, but for nothing is executed.
	for (int i = 0; i < QPS; i++) {
		CHECK((qp[i] = ibv_create_qp(p.pd, &init)));
		connect_to(qp[i], qp[i]->qp_num, 1);
	}
	CHECK(!ibv_req_notify_cq(cq, 0));
	for (unsigned k = 0; k < EACH; k++)
		for (unsigned i = 0; i < QPS; i++) {
			struct ibv_sge sge = { (uintptr_t)p.buffer, 64, p.mr->lkey };
			// Every third is unsignalled: it fails all the same.
			struct ibv_send_wr wr = { .wr_id = (uint64_t)i << 32 | k, .sg_list = &sge, .num_sge = 1, .opcode = IBV_WR_RDMA_WRITE,
						  .send_flags = k % 3 ? IBV_SEND_SIGNALED : 0,
						  .wr.rdma = { (uintptr_t)p.buffer + 4096, p.mr->rkey } }, *bad;
			CHECK(!ibv_post_send(qp[i], &wr, &bad));
		}
	control("kill");
	while (ibv_get_cq_event(p.channel, &of, &mine))
		CHECK(errno == EIO);
	CHECK(of == cq);
	ibv_ack_cq_events(of, 1);
	while (all < QPS * EACH) {
		CHECK((n = ibv_poll_cq(cq, 64, wc)) >= 0);
		for (int i = 0; i < n; i++) {
			unsigned at = (unsigned)(wc[i].wr_id >> 32);
			CHECK(at < QPS && wc[i].qp_num == qp[at]->qp_num && wc[i].status == IBV_WC_WR_FLUSH_ERR);
			CHECK((unsigned)wc[i].wr_id == ended[at]++);
		}
		all += n;
	}
	CHECK(ibv_poll_cq(cq, 64, wc) == 0 && all == QPS * EACH);
	for (int i = 0; i < QPS; i++)
		CHECK(!ibv_destroy_qp(qp[i]));
	CHECK(!ibv_destroy_cq(cq));
	all_flushed();
	give_back();
}

/* ------------------------------------------------------------------ everything at once */

enum { THREADS = 6, DEATHS = 40 };

static _Atomic bool over;
static _Atomic unsigned lives;

// Opens the device, posts, polls, arms, and at a moment of chance destroys all and begins anew, whether the device lives or not.
static void *churn(void *seed)
{
	unsigned state = (unsigned)(uintptr_t)seed;
	struct pair *own = malloc(sizeof *own);
	CHECK(own);
	while (!over) {
		// A device that is not there, or is about to go, cannot be opened, or no object made on it.
		struct ibv_context *context = open_device("mlx5_0");
		if (!context) {
			CHECK(errno == ENODEV || errno == EAGAIN || errno == EIO || errno == ENOENT);
			continue;
		}
		*own = (struct pair){ .depth = DEPTH, .context = context };
		struct ibv_port_attr port;
		bool whole = !ibv_query_port(context, 1, &port) && (own->pd = ibv_alloc_pd(context)) &&
			     (own->mr = ibv_reg_mr(own->pd, own->buffer, sizeof own->buffer, IBV_ACCESS_LOCAL_WRITE | IBV_ACCESS_REMOTE_WRITE)) &&
			     (own->channel = ibv_create_comp_channel(context)) &&
			     (own->cq = ibv_create_cq(context, 2 * DEPTH - 1, NULL, own->channel, 0));
		struct ibv_qp_init_attr init = { .send_cq = own->cq, .recv_cq = own->cq, .qp_type = IBV_QPT_RC,
						 .cap = { .max_send_wr = DEPTH, .max_recv_wr = 1, .max_send_sge = 1, .max_recv_sge = 1 } };
		for (int i = 0; i < 2; i++)
			whole = whole && (own->qp[i] = ibv_create_qp(own->pd, &init));
		for (int i = 0; i < 2; i++)
			whole = whole && try_to_connect(own->qp[i], own->qp[!i]->qp_num, port.lid);
		for (unsigned steps = 1 + (unsigned)rand_r(&state) % 200; whole && steps; steps--) {
			for (unsigned n = (unsigned)rand_r(&state) % 8; n && own->posted - own->ended < DEPTH; n--)
				pair_post(own);
			if (rand_r(&state) % 4 == 0)
				CHECK(!ibv_req_notify_cq(own->cq, 0));
			pair_take(own);
		}
		if (whole && rand_r(&state) % 2)
			pair_drain(own);
		lives += whole;
		// In the order in which a program gives back what it has; at times with its QPs alive at the end of their CQ's device.
		for (int i = 0; i < 2; i++)
			CHECK(!own->qp[i] || !ibv_destroy_qp(own->qp[i]));
		CHECK(!own->cq || !ibv_destroy_cq(own->cq));
		CHECK(!own->channel || !ibv_destroy_comp_channel(own->channel));
		CHECK(!own->mr || !ibv_dereg_mr(own->mr));
		CHECK(!own->pd || !ibv_dealloc_pd(own->pd));
		CHECK(!ibv_close_device(context));
	}
	free(own);
	return NULL;
}

static void at_once(void)
{
	static const char *const ways[] = { "kill", "remove", "fatal twice", "remove lost", "kill" };
	pthread_t threads[THREADS];
	unsigned state = 1;
	for (uintptr_t i = 0; i < THREADS; i++)
		CHECK(!pthread_create(&threads[i], NULL, churn, (void *)(i + 1)));
	for (unsigned death = 0; death < DEATHS; death++) {
		// Between two deaths some come to live.
		for (unsigned before = lives; lives - before < 1 + (unsigned)rand_r(&state) % (2 * THREADS);)
			usleep(200);
		const char *way = ways[death % 5];
		control(way);
		if (strstr(way, "fatal"))
			control("remove");
		usleep((unsigned)rand_r(&state) % 3000);
		control("return");
	}
	over = true;
	for (int i = 0; i < THREADS; i++)
		CHECK(!pthread_join(threads[i], NULL));
	printf("%u lives, %d deaths\n", lives, DEATHS);
}

static const struct {
	const char *name;
	void (*run)(void);
} cases[] = {
#define C(name) { #name, name }
	C(final_lost), C(no_files), C(files_later), C(no_waiting), C(no_memory), C(no_dummy), C(no_threads), C(off), C(no_async),
	C(no_events_of_ours), C(no_channel_of_ours), C(nothing_of_ours), C(closed_async), C(closed_channel), C(many), C(at_once),
#undef C
};

// What each descriptor of the process is.
static char names[2][1024][64];

static void note_files(int when)
{
	char path[64];
	for (int fd = 0; fd < 1024; fd++) {
		snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
		if (readlink(path, names[when][fd], sizeof names[when][fd] - 1) < 0)
			*names[when][fd] = 0;
	}
}

static bool files_as_before(void)
{
	bool same = true;
	note_files(1);
	for (int fd = 0; fd < 1024; fd++)
		if (strcmp(names[0][fd], names[1][fd])) {
			fprintf(stderr, "file %d is '%s', was '%s'\n", fd, names[1][fd], names[0][fd]);
			same = false;
		}
	return same;
}

int main(int argc, char **argv)
{
	alarm(LIMIT);
	// The bed has what it needs.
	struct stat ignored;
	struct ibv_context *before = open_device("mlx5_0");
	CHECK(argc == 2 && before && !ibv_close_device(before) && !stat("/sys/class/infiniband/mlx5_0", &ignored));
	note_files(0);
	for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
		if (!strcmp(argv[1], cases[i].name)) {
			cases[i].run();
			CHECK(files_as_before());
			puts("fine");
			return 0;
		}
	fprintf(stderr, "there is no case %s\n", argv[1]);
	return 2;
}
