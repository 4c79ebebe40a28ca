/* SPDX-License-Identifier: MIT OR Apache-2.0
 *
 * Those of verbs-death who wait: for completions, in every way there is, and for asynchronous events. They sleep without a
 * limit, as programs do; whoever has to end them interrupts them by a signal.
 */
#include "death.h"

#include <fcntl.h>
#include <poll.h>
#include <stdarg.h>
#include <sys/epoll.h>
#include <unistd.h>

const char *const wait_names[] = { "busy", "start", "block", "poll", "epoll", "edge" };

#define BATCH 16

/* ------------------------------------------------------------------ polling */

static int poll_start(struct ibv_cq_ex *cq, struct ibv_wc *wc)
{
	struct ibv_poll_cq_attr a = { 0 };
	int err = ibv_start_poll(cq, &a), n = 0;
	if (err)
		return err == ENOENT ? 0 : -1;
	do {
		wc[n++] = (struct ibv_wc){ .wr_id = cq->wr_id, .status = cq->status, .opcode = ibv_wc_read_opcode(cq),
					   .qp_num = ibv_wc_read_qp_num(cq), .vendor_err = ibv_wc_read_vendor_err(cq) };
	} while (n < BATCH && !(err = ibv_next_poll(cq)));
	ibv_end_poll(cq);
	return n < BATCH && err != ENOENT ? -1 : n;
}

int load_drain(struct load *l)
{
	struct ibv_wc wc[BATCH];
	int all = 0, n;
	for (unsigned i = 0; i < l->cqs; i++) {
		do {
			n = l->wait == START ? poll_start(l->cqx[i], wc) : ibv_poll_cq(l->cq[i], BATCH, wc);
			if (n < 0)
				device_wrong(l->dev, "poll", "%s: %d", l->name, n);
			for (int k = 0; k < n; k++)
				ledger_ended(l->dev, &wc[k]);
			all += n > 0 ? n : 0;
		} while (n == BATCH);
	}
	return all;
}

static void drain(struct load *l)
{
	if (load_drain(l))
		load_replenish(l);
}

static void arm(struct load *l)
{
	int err = 0;
	for (unsigned i = 0; i < l->cqs; i++)
		err |= ibv_req_notify_cq(l->cq[i], 0);
	if (err)
		device_wrong(l->dev, "arm", "%s: %s", l->name, errname(err));
}

/* ------------------------------------------------------------------ sleeping */

static void woke(struct load *l, const char *fmt, ...) PRINTF(2, 3);
static void woke(struct load *l, const char *fmt, ...)
{
	va_list ap;
	if (l->woken)
		return;
	va_start(ap, fmt);
	vsnprintf(l->wake, sizeof(l->wake), fmt, ap);
	va_end(ap);
	l->woken = true;
}

/* Takes what the channel has; false when it can give nothing any more. */
static bool take_events(struct load *l, const char *seen)
{
	struct ibv_cq *cq;
	void *context;
	const char *refused = "";
	double end = 0;
	for (;;) {
		errno = 0;
		if (ibv_get_cq_event(l->channel, &cq, &context)) {
			int err = errno;
			if (err == EINTR || err == EAGAIN)
				return true;
			if (!*refused) {
				note("%s: ibv_get_cq_event: %s", l->name, errname(err));
				end = now() + 3;
			}
			refused = errname(err);
			/* A program may be woken by the kernel that closes the channel: is it so for good? */
			if (now() < end && !l->stop_waiting) {
				rest(10000);
				continue;
			}
			if (l->kind == IDLE)
				woke(l, "%s%s for good", seen, refused);
			return false;
		}
		if (context != l || (cq != l->cq[0] && cq != l->cq[l->cqs - 1])) {
			device_wrong(l->dev, "event_cq", "%s: an event of another CQ", l->name);
			return true;
		}
		if (l->kind == IDLE)
			woke(l, "%s%s%sevent", seen, refused, *refused ? ", " : "");
		if (l->kind == IDLE && l->keeps_event) {
			/* The event stays unacknowledged while its CQ is polled on, until somebody waits to destroy that. */
			l->held = cq;
			l->has_event = true;
			while (!l->release && !l->stop_waiting) {
				if (l->no_polls)
					l->polls_no_more = true;
				else
					load_drain(l);
				rest(set.rest_us ? set.rest_us : 100);
			}
			ibv_ack_cq_events(cq, 1);
			return true;
		}
		ibv_ack_cq_events(cq, 1);
		if (l->wait == BLOCK)
			return true;
	}
}

static const char *bits(unsigned revents)
{
	/* POLL* and EPOLL* are the same bits. */
	bool in = revents & POLLIN, error = revents & POLLERR;
	return in && error ? "IN|ERR, " : in ? "" : error ? "ERR, " : "neither, ";
}

/* Sleeps until there may be something; false when there is no more sleeping here. */
static bool sleep_once(struct load *l)
{
	struct pollfd p = { .fd = l->wait == BLOCK ? -1 : l->channel->fd, .events = POLLIN };
	struct epoll_event e = { 0 };
	switch (l->wait) {
	case BLOCK:
		return take_events(l, "");
	case POLL:
		if (poll(&p, 1, -1) != 1)
			return true;
		return take_events(l, bits((unsigned)p.revents));
	default:
		if (epoll_wait(l->epoll_fd, &e, 1, -1) != 1)
			return true;
		return take_events(l, bits(e.events));
	}
}

static void *waiter(void *arg)
{
	struct load *l = arg;
	bool sleeping = sleeps(l->wait);
	if (l->wait == EPOLL || l->wait == EDGE) {
		struct epoll_event e = { .events = EPOLLIN | (l->wait == EDGE ? (unsigned)EPOLLET : 0u) };
		l->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
		need(l->epoll_fd >= 0 && !epoll_ctl(l->epoll_fd, EPOLL_CTL_ADD, l->channel->fd, &e), "epoll");
	}
	if (sleeping && l->wait != BLOCK)
		need(!fcntl(l->channel->fd, F_SETFL, fcntl(l->channel->fd, F_GETFL) | O_NONBLOCK), "fcntl");
	while (!l->stop_waiting) {
		if (sleeping)
			arm(l);
		drain(l);
		if (!sleeping)
			rest(set.rest_us);
		else if (!l->stop_waiting && !sleep_once(l))
			sleeping = false; /* it could not wait any more, and looks now and then */
		if (l->release)
			break; /* the CQ is being destroyed */
	}
	if (l->epoll_fd >= 0)
		close(l->epoll_fd);
	l->waiter_ended = true;
	return NULL;
}

void waiter_start(struct load *l)
{
	start_thread(&l->waiter, waiter, l);
	l->waiting = true;
}

void waiter_stop(struct load *l)
{
	if (!l->waiting)
		return;
	l->stop_waiting = true;
	end_thread(l->waiter, &l->waiter_ended);
	l->waiting = false;
}

/* ------------------------------------------------------------------ asynchronous events */

static void take_event(struct device *dev, struct ibv_async_event *e)
{
	char text[64];
	double t = now();
	static const struct {
		int type;
		const char *name;
	} names[] = {
#define E(e) { IBV_EVENT_##e, #e }
		E(CQ_ERR), E(QP_FATAL), E(QP_REQ_ERR), E(QP_ACCESS_ERR), E(COMM_EST), E(SQ_DRAINED), E(DEVICE_FATAL), E(PORT_ACTIVE),
		E(PORT_ERR), E(LID_CHANGE), E(PKEY_CHANGE), E(SM_CHANGE), E(SRQ_ERR), E(SRQ_LIMIT_REACHED), E(QP_LAST_WQE_REACHED),
		E(CLIENT_REREGISTER), E(GID_CHANGE), E(WQ_FATAL),
#undef E
		{ 20, "DEVICE_SPEED_CHANGE" }, /* newer than some of the headers */
	};
	snprintf(text, sizeof(text), "%d", (int)e->event_type);
	for (size_t i = 0; i < ARRAY_SIZE(names); i++)
		if (names[i].type == (int)e->event_type)
			snprintf(text, sizeof(text), "%s", names[i].name);
	switch (e->event_type) {
	case IBV_EVENT_CQ_ERR: case IBV_EVENT_QP_FATAL: case IBV_EVENT_QP_REQ_ERR: case IBV_EVENT_QP_ACCESS_ERR:
	case IBV_EVENT_COMM_EST: case IBV_EVENT_SQ_DRAINED: case IBV_EVENT_QP_LAST_WQE_REACHED: case IBV_EVENT_SRQ_ERR:
	case IBV_EVENT_SRQ_LIMIT_REACHED:
		break;
	default:
		append(text, sizeof(text), "/", "%d", e->element.port_num);
	}
	note("event %s", text);
	pthread_mutex_lock(&dev->lock);
	/* Whether a first message overtakes the modify_qp to RTS is chance. */
	if (e->event_type != IBV_EVENT_COMM_EST)
		append(dev->events, sizeof(dev->events), ",", "%s", text);
	if (e->event_type == IBV_EVENT_DEVICE_FATAL) {
		/* The element of the driver's own event is the port; that of the kernel's, when the device is taken away, is 0. */
		_Atomic double *of = e->element.port_num ? &dev->early : &dev->final;
		if (!*of)
			*of = t;
	}
	pthread_mutex_unlock(&dev->lock);
	if (e->event_type == IBV_EVENT_DEVICE_FATAL)
		dev->told = true;
}

static void *reader(void *arg)
{
	struct device *dev = arg;
	struct ibv_async_event e;
	while (!dev->stop_reading) {
		errno = 0;
		if (!ibv_get_async_event(dev->ctx, &e)) {
			take_event(dev, &e);
			ibv_ack_async_event(&e);
		} else if (errno != EINTR) {
			device_wrong(dev, "get_async_event", "%s", errname(errno));
			break;
		}
	}
	dev->reader_ended = true;
	return NULL;
}

void reader_start(struct device *dev)
{
	start_thread(&dev->reader, reader, dev);
	dev->reading = true;
}

void reader_stop(struct device *dev)
{
	if (!dev->reading)
		return;
	dev->stop_reading = true;
	end_thread(dev->reader, &dev->reader_ended);
	dev->reading = false;
}
