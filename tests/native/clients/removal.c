// removal: what a process sees of its device's end, call by call, as the kernel shows it to a program with the stock provider:
// facts of drivers/infiniband/core, not of any provider.
#include "bed.h"
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/select.h>
#include <sys/stat.h>
#include <unistd.h>

struct async_record {
	uint64_t element;
	uint32_t type, reserved;
};

static struct ibv_context *context;
static struct ibv_pd *pd;
static struct ibv_mr *mr;
static struct ibv_comp_channel *channel, *idle;
static struct ibv_cq *cq;
static struct ibv_qp *qp[2];
static char buffer[8192];
static unsigned long posted;

static short shown(int fd)
{
	struct pollfd p = { fd, POLLIN | POLLPRI, 0 };
	CHECK(poll(&p, 1, 0) >= 0);
	return p.revents;
}

static bool nothing_to_read(int fd)
{
	struct async_record record;
	fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) | O_NONBLOCK);
	errno = 0;
	bool none = read(fd, &record, sizeof record) == -1 && errno == EAGAIN;
	fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) & ~O_NONBLOCK);
	return none;
}

static void set_up(void)
{
	context = open_device("mlx5_0");
	CHECK(context);
	struct ibv_port_attr port;
	CHECK(!ibv_query_port(context, 1, &port));
	pd = ibv_alloc_pd(context);
	CHECK(pd);
	mr = ibv_reg_mr(pd, buffer, sizeof buffer, IBV_ACCESS_LOCAL_WRITE | IBV_ACCESS_REMOTE_WRITE);
	CHECK(mr);
	channel = ibv_create_comp_channel(context);
	idle = ibv_create_comp_channel(context);
	CHECK(channel && idle);
	cq = ibv_create_cq(context, 127, NULL, channel, 0);
	CHECK(cq);
	struct ibv_qp_init_attr init = { .send_cq = cq, .recv_cq = cq, .qp_type = IBV_QPT_RC,
					 .cap = { .max_send_wr = 64, .max_recv_wr = 1, .max_send_sge = 1, .max_recv_sge = 1 } };
	for (int i = 0; i < 2; i++) {
		qp[i] = ibv_create_qp(pd, &init);
		CHECK(qp[i]);
	}
	for (int i = 0; i < 2; i++)
		connect_to(qp[i], qp[!i]->qp_num, port.lid);
}

static int post(void)
{
	struct ibv_sge sge = { (uintptr_t)buffer, 64, mr->lkey };
	struct ibv_send_wr wr = { .wr_id = posted, .sg_list = &sge, .num_sge = 1, .opcode = IBV_WR_RDMA_WRITE,
				  .send_flags = IBV_SEND_SIGNALED, .wr.rdma = { (uintptr_t)buffer + 4096, mr->rkey } }, *bad;
	int err = ibv_post_send(qp[0], &wr, &bad);
	posted += !err;
	return err;
}

// One write, by way of the channel.
static void traffic(void)
{
	struct ibv_cq *of;
	void *mine;
	struct ibv_wc wc;
	memset(buffer, posted, 64);
	CHECK(!ibv_req_notify_cq(cq, 0) && !post());
	CHECK(!ibv_get_cq_event(channel, &of, &mine) && of == cq);
	ibv_ack_cq_events(cq, 1);
	CHECK(ibv_poll_cq(cq, 1, &wc) == 1 && wc.status == IBV_WC_SUCCESS && wc.wr_id == posted - 1);
	CHECK(!memcmp(buffer, buffer + 4096, 64));
}

static void *sleep_in_channel(void *of)
{
	struct ibv_comp_channel *in = of;
	uint64_t record;
	return (void *)(intptr_t)(read(in->fd, &record, sizeof record) == -1 ? errno : 0);
}

static void *sleep_in_async(void *fd)
{
	static struct async_record record;
	CHECK(read((intptr_t)fd, &record, sizeof record) == sizeof record);
	return &record;
}

static void tear_down(int expected)
{
	for (int i = 0; i < 2; i++)
		CHECK(ibv_destroy_qp(qp[i]) == expected);
	CHECK(ibv_destroy_cq(cq) == expected && ibv_dereg_mr(mr) == expected && ibv_dealloc_pd(pd) == expected);
	CHECK(ibv_destroy_comp_channel(channel) == expected && ibv_destroy_comp_channel(idle) == expected);
	CHECK(!ibv_close_device(context));
}

// What is true of every command but a destroy, once the device is gone.
static void commands_fail(void)
{
	struct ibv_port_attr port;
	struct ibv_qp_attr attr = { .qp_state = IBV_QPS_ERR };
	CHECK(ibv_query_port(context, 1, &port) == EIO);
	CHECK(!ibv_create_cq(context, 1, NULL, NULL, 0) && errno == EIO);
	CHECK(!ibv_reg_mr(pd, buffer, 64, 0) && errno == EIO);
	CHECK(!ibv_alloc_pd(context) && errno == EIO);
	CHECK(!ibv_create_comp_channel(context) && errno == EIO);
	CHECK(ibv_modify_qp(qp[1], &attr, IBV_QP_STATE) == EIO);
	CHECK(mmap(NULL, 4096, PROT_WRITE, MAP_SHARED, context->cmd_fd, 9 << 20) == MAP_FAILED && errno == EIO);
	CHECK(shown(context->cmd_fd) & POLLIN);
}

static void gone(void)
{
	struct stat st;
	CHECK(stat("/dev/infiniband/uverbs0", &st) == -1 && errno == ENOENT);
	CHECK(open("/dev/infiniband/uverbs0", O_RDWR) == -1 && (errno == ENOENT || errno == ENXIO));
	CHECK(!open_device("mlx5_0") && errno == ENODEV);
}

static void orderly(void)
{
	set_up();
	traffic();
	CHECK(shown(context->async_fd) == 0 && shown(channel->fd) == 0);
	int epoll = epoll_create1(0);
	struct epoll_event interest = { .events = EPOLLIN, .data.fd = channel->fd }, happened;
	CHECK(!epoll_ctl(epoll, EPOLL_CTL_ADD, channel->fd, &interest) && epoll_wait(epoll, &happened, 1, 0) == 0);
	int copy = dup(channel->fd);
	pthread_t sleepers[3];
	CHECK(!pthread_create(&sleepers[0], NULL, sleep_in_channel, channel));
	CHECK(!pthread_create(&sleepers[1], NULL, sleep_in_channel, channel));
	CHECK(!pthread_create(&sleepers[2], NULL, sleep_in_async, (void *)(intptr_t)context->async_fd));
	control("remove");
	void *result;
	for (int i = 0; i < 2; i++)
		CHECK(!pthread_join(sleepers[i], &result) && (intptr_t)result == EIO);
	CHECK(!pthread_join(sleepers[2], &result));
	struct async_record *record = result;
	CHECK(record->type == IBV_EVENT_DEVICE_FATAL && record->element == 0 && record->reserved == 0);
	// The async file has said all; the channels say it for good.
	CHECK(shown(context->async_fd) == 0 && nothing_to_read(context->async_fd));
	uint64_t event;
	int fds[] = { channel->fd, idle->fd, copy };
	for (int round = 0; round < 3; round++)
		for (int i = 0; i < 3; i++) {
			CHECK(shown(fds[i]) == POLLERR);
			CHECK(read(fds[i], &event, sizeof event) == -1 && errno == EIO);
		}
	for (int round = 0; round < 2; round++)
		CHECK(epoll_wait(epoll, &happened, 1, 0) == 1 && happened.events == EPOLLERR && happened.data.fd == channel->fd);
	fd_set set;
	FD_ZERO(&set);
	FD_SET(channel->fd, &set);
	CHECK(select(channel->fd + 1, &set, NULL, NULL, &(struct timeval){ 0 }) == 1);
	close(copy);
	close(epoll);
	commands_fail();
	gone();
	// Doorbells go to memory that nobody looks at, until the queue is full.
	int err;
	unsigned long before = posted;
	while (!(err = post()))
		CHECK(posted - before <= 64);
	CHECK(err == ENOMEM && !ibv_req_notify_cq(cq, 0));
	struct ibv_wc wc;
	CHECK(ibv_poll_cq(cq, 1, &wc) == 0);
	tear_down(0);
	control("return");
}

// The driver finds the device in error first.
static void early(void)
{
	set_up();
	traffic();
	struct ibv_async_event event;
	control("fatal");
	CHECK(shown(context->async_fd) == POLLIN);
	CHECK(!ibv_get_async_event(context, &event) && event.event_type == IBV_EVENT_DEVICE_FATAL && event.element.port_num == 1);
	ibv_ack_async_event(&event);
	CHECK(shown(context->async_fd) == 0 && shown(channel->fd) == 0);
	struct ibv_port_attr port;
	struct ibv_qp_attr attr = { .qp_state = IBV_QPS_ERR };
	CHECK(ibv_query_port(context, 1, &port) == ENOLINK);
	CHECK(!ibv_create_cq(context, 1, NULL, NULL, 0) && errno == ENOLINK);
	CHECK(!ibv_modify_qp(qp[1], &attr, IBV_QP_STATE));
	CHECK(!open_device("mlx5_0") && errno == EAGAIN);
	struct ibv_device **list = ibv_get_device_list(NULL);
	CHECK(list && list[0]);
	ibv_free_device_list(list);
	control("remove");
	CHECK(!ibv_get_async_event(context, &event) && event.event_type == IBV_EVENT_DEVICE_FATAL && event.element.port_num == 0);
	commands_fail();
	tear_down(0);
	control("return");
}

// Events that were not read when their object went are not counted, and those that come twice or never.
static void odd(void)
{
	struct async_record record;
	struct ibv_async_event event;
	char command[64];
	set_up();
	snprintf(command, sizeof command, "qp %u error", qp[0]->qp_num);
	control(command);
	CHECK(shown(context->async_fd) == POLLIN);
	CHECK(!ibv_destroy_qp(qp[0]));
	CHECK(shown(context->async_fd) == 0 && nothing_to_read(context->async_fd));
	struct ibv_qp_init_attr init = { .send_cq = cq, .recv_cq = cq, .qp_type = IBV_QPT_RC,
					 .cap = { .max_send_wr = 1, .max_recv_wr = 1, .max_send_sge = 1, .max_recv_sge = 1 } };
	qp[0] = ibv_create_qp(pd, &init);
	CHECK(qp[0]);
	// Two at a time, and a read that is too short for one.
	control("fatal twice");
	CHECK(read(context->async_fd, &record, 15) == -1 && errno == EINVAL);
	for (int i = 0; i < 2; i++)
		CHECK(!ibv_get_async_event(context, &event) && event.element.port_num == 1);
	control("remove lost");
	CHECK(nothing_to_read(context->async_fd) && shown(idle->fd) == POLLERR);
	tear_down(0);
	control("return");
	set_up();
	control("remove twice");
	for (int i = 0; i < 2; i++)
		CHECK(!ibv_get_async_event(context, &event) && event.element.port_num == 0);
	tear_down(0);
	control("return");
	// Another in its place.
	struct ibv_device_attr attr;
	set_up();
	CHECK(!ibv_query_device(context, &attr));
	uint64_t guid = attr.node_guid;
	control("kill");
	tear_down(0);
	control("return other");
	set_up();
	traffic();
	CHECK(!ibv_query_device(context, &attr) && attr.node_guid != guid);
	tear_down(0);
}

// A private file beside the program's own, made before and after.
static void many(int rounds)
{
	struct ibv_async_event event;
	for (int round = 0; round < rounds; round++) {
		set_up();
		traffic();
		control("at doorbell 3: kill");
		while (shown(channel->fd) != POLLERR) {
			struct ibv_wc wc;
			post();
			ibv_poll_cq(cq, 1, &wc);
		}
		CHECK(!ibv_get_async_event(context, &event) && event.element.port_num == 1);
		CHECK(!ibv_get_async_event(context, &event) && event.element.port_num == 0);
		tear_down(0);
		control("return");
	}
	printf("%d deaths\n", rounds);
}

int main(int argc, char **argv)
{
	orderly();
	early();
	odd();
	many(argc > 1 ? atoi(argv[1]) : 1000);
	puts("fine");
	return 0;
}
