/* SPDX-License-Identifier: MIT OR Apache-2.0
 *
 * The ledger of verbs-death: each work request that was accepted is owed one end, in its place.
 */
#include "death.h"

#include <stdarg.h>

struct queue *queue_new(struct device *dev, const char *name, uint32_t qp_num, bool receives, uint32_t size)
{
	struct queue *q = calloc(1, sizeof(*q));
	need(q, "allocate a queue's ledger");
	*q = (struct queue){ .dev = dev, .qp_num = qp_num, .receives = receives, .size = size,
			     .number = dev->queues + 1, .lock = PTHREAD_MUTEX_INITIALIZER };
	snprintf(q->name, sizeof(q->name), "%s", name);
	q->ring = calloc(size, sizeof(*q->ring));
	dev->queue = realloc(dev->queue, (dev->queues + 1) * sizeof(*dev->queue));
	need(q->ring && dev->queue, "allocate a queue's ledger");
	dev->queue[dev->queues++] = q;
	return q;
}

static struct entry *at(struct queue *q, uint64_t n)
{
	return &q->ring[n % q->size];
}

uint32_t queue_room(struct queue *q)
{
	return q->size - (uint32_t)(q->tail - q->head);
}

uint64_t queue_posting(struct queue *q, uint8_t opcode, bool signalled)
{
	uint64_t n = q->tail++;
	*at(q, n) = (struct entry){ .opcode = opcode, .signalled = signalled };
	return (uint64_t)q->number << 32 | (uint32_t)n;
}

void queue_refused(struct queue *q, uint32_t n)
{
	q->tail -= n;
}

uint64_t queue_owed(struct queue *q)
{
	pthread_mutex_lock(&q->lock);
	uint64_t owed = q->tail - q->head;
	if (q->shared)
		for (uint64_t n = q->head; n < q->tail; n++)
			owed -= at(q, n)->ending != OWED;
	pthread_mutex_unlock(&q->lock);
	return owed;
}

void device_wrong(struct device *dev, const char *what, const char *fmt, ...)
{
	char text[256];
	bool first = false;
	va_list ap;
	va_start(ap, fmt);
	vsnprintf(text, sizeof(text), fmt, ap);
	va_end(ap);
	pthread_mutex_lock(&dev->lock);
	for (int i = 0; i < WRONGS; i++) {
		if (!dev->wrong[i].what) {
			dev->wrong[i].what = what;
			first = true;
		}
		if (!strcmp(dev->wrong[i].what, what)) {
			dev->wrong[i].count++;
			break;
		}
	}
	pthread_mutex_unlock(&dev->lock);
	if (first)
		note("wrong: %s: %s", what, text);
}

void ledger_wrong(struct device *dev, char *text, size_t size)
{
	*text = 0;
	pthread_mutex_lock(&dev->lock);
	for (int i = 0; i < WRONGS && dev->wrong[i].what; i++)
		append(text, size, ",", "%s", dev->wrong[i].what);
	pthread_mutex_unlock(&dev->lock);
	if (!*text)
		snprintf(text, size, "none");
}

static void end_entry(struct queue *q, uint64_t n, enum ending how)
{
	at(q, n)->ending = (uint8_t)how;
	q->well += how == ENDED_WELL;
	q->retired += how == RETIRED;
	q->flushed += how == FLUSHED;
	q->badly += how == ENDED_BADLY;
}

/* What went before a completion of a send queue that is no flush was executed: with no completion of its own if it wanted
 * none. */
static void retire(struct queue *q, uint64_t before)
{
	for (uint64_t n = q->head; n < before; n++) {
		if (at(q, n)->ending != OWED)
			continue;
		if (at(q, n)->signalled)
			device_wrong(q->dev, "overtaken", "%s: %llu ended before %llu", q->name, (unsigned long long)before,
				     (unsigned long long)n);
		else
			end_entry(q, n, RETIRED);
	}
}

static void ended_in(struct queue *q, const struct ibv_wc *wc)
{
	struct device *dev = q->dev;
	const char *status = ibv_wc_status_str(wc->status);
	/* The number's lower half came back: the entry that is nearest to those that are owed. */
	uint64_t n = q->head + (uint64_t)(int64_t)(int32_t)((uint32_t)wc->wr_id - (uint32_t)q->head);
	bool flush = wc->status == IBV_WC_WR_FLUSH_ERR;
	if (n >= q->tail && n < q->head + (1u << 31)) {
		device_wrong(dev, "unknown", "%s: %llu was never posted (%s)", q->name, (unsigned long long)n, status);
		return;
	}
	if (n - q->head > (1u << 31) || at(q, n)->ending != OWED) {
		device_wrong(dev, "twice", "%s: %llu has ended before (%s)", q->name, (unsigned long long)n, status);
		return;
	}
	struct entry *e = at(q, n);
	if (q->qp_num && wc->qp_num != q->qp_num)
		device_wrong(dev, "qp_num", "%s: qp %u in place of %u", q->name, wc->qp_num, q->qp_num);
	bool right = q->receives ? (wc->opcode & IBV_WC_RECV) != 0 : wc->opcode == (enum ibv_wc_opcode)e->opcode;
	if (!right && wc->status == IBV_WC_SUCCESS)
		device_wrong(dev, "opcode", "%s: %d in place of %d", q->name, (int)wc->opcode, (int)e->opcode);
	/* Verbs leave it open, a program that asks all the same is better served. */
	else if (!right && flush)
		device_wrong(dev, "flush_opcode", "%s: %d in place of %d", q->name, (int)wc->opcode, (int)e->opcode);
	if (wc->status == IBV_WC_SUCCESS && q->flushing)
		device_wrong(dev, "success_after_flush", "%s: %llu", q->name, (unsigned long long)n);
	if (wc->status == IBV_WC_SUCCESS && !q->receives && !e->signalled)
		device_wrong(dev, "unasked", "%s: %llu", q->name, (unsigned long long)n);
	if (!q->shared && !q->quiet) {
		/* soft-RoCE knows which sends it executed before the first that it flushed; ConnectX flushes what may be so. */
		bool knows = dev->port.link_layer == IBV_LINK_LAYER_ETHERNET;
		if (!q->receives && (!flush || (knows && !q->flushing)))
			retire(q, n);
		else if (n != q->head)
			device_wrong(dev, "overtaken", "%s: %llu ended before %llu (%s)", q->name, (unsigned long long)n,
				     (unsigned long long)q->head, status);
	}
	if (wc->status != IBV_WC_SUCCESS && !q->shared)
		q->flushing = true;
	end_entry(q, n, wc->status == IBV_WC_SUCCESS ? ENDED_WELL : flush ? FLUSHED : ENDED_BADLY);
	while (q->head < q->tail && at(q, q->head)->ending != OWED)
		q->head++;
}

void ledger_ended(struct device *dev, const struct ibv_wc *wc)
{
	uint64_t number = wc->wr_id >> 32;
	double t = now();
	bool bad = wc->status != IBV_WC_SUCCESS;
	pthread_mutex_lock(&dev->lock);
	dev->completions++;
	if (dev->last_completion && t - dev->last_completion > dev->longest_gap)
		dev->longest_gap = t - dev->last_completion;
	dev->last_completion = t;
	if (wc->status == IBV_WC_WR_FLUSH_ERR) {
		if (!dev->first_flush)
			dev->first_flush = t;
		dev->last_flush = t;
	} else if (bad && !strstr(dev->statuses, ibv_wc_status_str(wc->status))) {
		append(dev->statuses, sizeof(dev->statuses), ",", "%s", ibv_wc_status_str(wc->status));
	}
	pthread_mutex_unlock(&dev->lock);
	if (!number || number > dev->queues) {
		device_wrong(dev, "unknown", "wr_id %#llx (%s)", (unsigned long long)wc->wr_id, ibv_wc_status_str(wc->status));
		return;
	}
	struct queue *q = dev->queue[number - 1];
	pthread_mutex_lock(&q->lock);
	ended_in(q, wc);
	pthread_mutex_unlock(&q->lock);
	if (bad)
		dev->told = true;
}

struct sums ledger_sums(struct device *dev, const char *begins)
{
	struct sums s = { 0 };
	for (uint32_t i = 0; i < dev->queues; i++) {
		struct queue *q = dev->queue[i];
		if (strncmp(q->name, begins, strlen(begins)))
			continue;
		s.owed += queue_owed(q);
		pthread_mutex_lock(&q->lock);
		s.well += q->well;
		s.retired += q->retired;
		s.flushed += q->flushed;
		s.badly += q->badly;
		pthread_mutex_unlock(&q->lock);
	}
	return s;
}
