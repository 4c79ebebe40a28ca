/* SPDX-License-Identifier: MIT OR Apache-2.0
 *
 * verbs-storm: many contexts, threads, forks, and objects that come and go. Nothing may be lost, doubled, mixed up or
 * left behind.
 */
#include "common.h"

#include <dirent.h>
#include <pthread.h>
#include <sched.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

static struct options o;
static double scale = 1; /* of the numbers of rounds: smaller under valgrind */

static int rounds(int n)
{
	int r = (int)(n * scale);
	return r > 0 ? r : 1;
}

/* ------------------------------------------------------------------ what the process holds */

static int count_fds(void)
{
	DIR *d = opendir("/proc/self/fd");
	int n = 0;
	need(d, "open /proc/self/fd");
	while (readdir(d))
		n++;
	closedir(d);
	return n - 3; /* "." and ".." and the directory's own */
}

/* Mappings of the device: those are the queues. */
static int count_queue_maps(void)
{
	FILE *f = fopen("/proc/self/maps", "r");
	char *l = NULL;
	size_t size = 0;
	int n = 0;
	need(f, "open /proc/self/maps");
	while (getline(&l, &size, f) > 0)
		n += strstr(l, "/uverbs") != NULL || strstr(l, "infinibandevent") != NULL;
	free(l);
	fclose(f);
	return n;
}

static long resident_kb(void)
{
	long pages = 0, all;
	FILE *f = fopen("/proc/self/statm", "r");
	need(f && fscanf(f, "%ld %ld", &all, &pages) == 2, "read /proc/self/statm");
	fclose(f);
	return pages * 4;
}

/* ------------------------------------------------------------------ contexts */

static bool one_send(struct pair *p, uint64_t id)
{
	struct ibv_wc wc;
	struct ibv_sge sg = sge(&p->a, 0, 64);
	struct ibv_send_wr w = wr(IBV_WR_SEND, id, &sg);
	fill(p->a.buf, 64, (unsigned)id);
	memset(p->b.buf, 0, 64);
	return !recv_one(&p->b, id, 0, 64) && !send_wr(&p->a, &w) && wait_one(p->a.scq, &wc) && !wc.status &&
	       wait_one(p->b.rcq, &wc) && !wc.status && wc.wr_id == id && same(p->b.buf, 64, (unsigned)id);
}

static void contexts(void)
{
	enum { N = 32 };
	static struct dev d[N];
	static struct pair p[N / 2];
	struct spec spec = { .type = IBV_QPT_RC };
	int fds = count_fds(), maps = count_queue_maps();
	prefix("contexts");
	for (int i = 0; i < N; i++)
		dev_open(&d[i], o.device[i & 1], o.gid_index);
	bool ok = true;
	for (int i = 0; i < N / 2; i++)
		ok = !pair_open(&p[i], &d[2 * i], &d[2 * i + 1], &spec) && ok;
	check("connected", ok);
	for (int r = 0; ok && r < 3; r++)
		for (int i = 0; i < N / 2; i++)
			ok = one_send(&p[i], (uint64_t)(r * 100 + i + 1)) && ok;
	check("traffic", ok);
	/* Every second one goes; the others do not notice. */
	for (int i = 0; i < N / 2; i += 2) {
		pair_close(&p[i]);
		dev_close(&d[2 * i]);
		dev_close(&d[2 * i + 1]);
	}
	for (int i = 1; i < N / 2; i += 2)
		ok = one_send(&p[i], 7) && ok;
	check("traffic_after", ok);
	for (int i = 1; i < N / 2; i += 2) {
		pair_close(&p[i]);
		dev_close(&d[2 * i]);
		dev_close(&d[2 * i + 1]);
	}
	/* The first opening may leave something of the library's own (a sysfs or netlink socket): none does. */
	want_int("fds_left", count_fds() - fds, 0);
	want_int("queue_maps_left", count_queue_maps() - maps, 0);
}

/* ------------------------------------------------------------------ eight posters, eight pollers */

#define POSTERS 8
#define MESSAGES 400

struct board {
	struct ibv_cq *scq, *rcq;
	struct poster {
		struct board *board;
		struct ibv_qp *from, *to;
		struct ibv_mr *smr, *rmr;
		uint8_t *sbuf, *rbuf;
		struct ibv_pd *pd;
		int index, failed;
		uint32_t sent_done;	  /* send completions seen */
		uint32_t received;	  /* receive completions seen */
		uint8_t seen[MESSAGES];
	} posters[POSTERS];
	uint32_t by_qp[POSTERS];
	int left; /* completions still to come, of both kinds */
	int messages;
	int bad;
};

#define SLOT 64
#define DEPTH 16

/* Whose, and its slot or number. */
static uint64_t tag(int poster, uint32_t what)
{
	return (uint64_t)poster << 32 | what;
}

static void post_slot(struct poster *s, uint32_t slot)
{
	struct ibv_sge sg = { .addr = (uintptr_t)(s->rbuf + slot * SLOT), .length = SLOT, .lkey = s->rmr->lkey };
	struct ibv_recv_wr r = { .wr_id = tag(s->index, slot), .sg_list = &sg, .num_sge = 1 }, *bad;
	if (ibv_post_recv(s->to, &r, &bad))
		__atomic_store_n(&s->failed, 1, __ATOMIC_RELAXED);
}

static void *post_thread(void *arg)
{
	struct poster *s = arg;
	uint32_t n = (uint32_t)s->board->messages;
	double end = now() + 4 * LIMIT_S;
	for (uint32_t seq = 0; seq < n && !__atomic_load_n(&s->failed, __ATOMIC_RELAXED);) {
		/* Half of the receives' depth is in flight at most, so that no slot is overwritten unread. */
		while (seq >= __atomic_load_n(&s->received, __ATOMIC_ACQUIRE) + DEPTH / 2 ||
		       seq >= __atomic_load_n(&s->sent_done, __ATOMIC_ACQUIRE) + DEPTH / 2) {
			if (now() > end) {
				s->failed = 1;
				return NULL;
			}
			sched_yield();
		}
		uint32_t *words = (uint32_t *)(s->sbuf + (seq % DEPTH) * SLOT);
		words[0] = (uint32_t)s->index;
		words[1] = seq;
		for (uint32_t i = 2; i < SLOT / 4; i++)
			words[i] = seq * 2654435761u + i + (uint32_t)s->index;
		struct ibv_sge sg = { .addr = (uintptr_t)words, .length = SLOT, .lkey = s->smr->lkey };
		struct ibv_send_wr w = wr(IBV_WR_SEND, tag(s->index, seq), &sg), *bad;
		int err = ibv_post_send(s->from, &w, &bad);
		if (err) {
			s->failed = 1;
			break;
		}
		seq++;
	}
	return NULL;
}

static void *poll_thread(void *arg)
{
	struct board *b = arg;
	struct ibv_wc wc[5];
	double end = now() + 4 * LIMIT_S;
	while (__atomic_load_n(&b->left, __ATOMIC_RELAXED) > 0 && now() < end) {
		int n = ibv_poll_cq(b->scq, 5, wc); /* the one CQ of all */
		for (int i = 0; i < n; i++) {
			int index = (int)(wc[i].wr_id >> 32);
			uint32_t slot = (uint32_t)wc[i].wr_id;
			if (wc[i].status || index >= POSTERS || (wc[i].opcode != IBV_WC_SEND && slot >= DEPTH)) {
				__atomic_fetch_add(&b->bad, 1, __ATOMIC_RELAXED);
				continue;
			}
			struct poster *s = &b->posters[index];
			if (wc[i].opcode == IBV_WC_SEND) {
				__atomic_fetch_add(&s->sent_done, 1, __ATOMIC_RELEASE);
				continue;
			}
			/* Slots come back in any order, as pollers overtake each other: the message says its number. */
			uint32_t *words = (uint32_t *)(s->rbuf + slot * SLOT), seq = words[1];
			bool ok = wc[i].byte_len == SLOT && wc[i].qp_num == s->to->qp_num && words[0] == (uint32_t)index &&
				  seq < (uint32_t)b->messages && !__atomic_fetch_add(&s->seen[seq], 1, __ATOMIC_RELAXED);
			for (uint32_t k = 2; ok && k < SLOT / 4; k++)
				ok = words[k] == seq * 2654435761u + k + (uint32_t)index;
			if (!ok)
				__atomic_fetch_add(&b->bad, 1, __ATOMIC_RELAXED);
			post_slot(s, slot);
			__atomic_fetch_add(&s->received, 1, __ATOMIC_RELEASE);
		}
		if (n > 0)
			__atomic_fetch_sub(&b->left, n, __ATOMIC_RELAXED);
		else
			sched_yield();
	}
	return NULL;
}

static void threads(void)
{
	static struct board b;
	static struct pair p[POSTERS];
	struct dev d;
	pthread_t post[POSTERS], poll[POSTERS];
	prefix("threads");
	dev_open(&d, o.device[0], o.gid_index);
	struct ibv_cq *cq = ibv_create_cq(d.ctx, 2 * POSTERS * DEPTH + 16, NULL, NULL, 0);
	need(cq, "create a CQ");
	b.scq = b.rcq = cq;
	b.messages = rounds(MESSAGES);
	b.left = 2 * POSTERS * b.messages;
	struct spec spec = { .type = IBV_QPT_RC };
	for (int i = 0; i < POSTERS; i++) {
		struct poster *s = &b.posters[i];
		struct side *sides[2] = { &p[i].a, &p[i].b };
		need(!side_open(&p[i].a, &d, &spec) && !side_open(&p[i].b, &d, &spec), "create QPs");
		/* Their QPs are replaced by such as all complete on the one CQ. */
		for (int k = 0; k < 2; k++) {
			need(!ibv_destroy_qp(sides[k]->qp), "destroy a QP");
			struct ibv_qp_init_attr a =
				qp_init(IBV_QPT_RC, cq, cq, (struct ibv_qp_cap){ 2 * DEPTH, 2 * DEPTH, 1, 1, 0 });
			sides[k]->qp = ibv_create_qp(d.pd, &a);
			need(sides[k]->qp, "create a QP");
		}
		need(!to_init(&p[i].a, &spec) && !to_init(&p[i].b, &spec) && !to_rtr(&p[i].a, &p[i].b, &spec) &&
			     !to_rtr(&p[i].b, &p[i].a, &spec) && !to_rts(&p[i].a, &spec) && !to_rts(&p[i].b, &spec),
		     "connect");
		*s = (struct poster){ .board = &b, .from = p[i].a.qp, .to = p[i].b.qp, .smr = p[i].a.mr, .rmr = p[i].b.mr,
				      .sbuf = p[i].a.buf, .rbuf = p[i].b.buf, .index = i };
		for (uint32_t k = 0; k < DEPTH; k++)
			post_slot(s, k);
	}
	for (int i = 0; i < POSTERS; i++)
		need(!pthread_create(&poll[i], NULL, poll_thread, &b) &&
			     !pthread_create(&post[i], NULL, post_thread, &b.posters[i]),
		     "start threads");
	for (int i = 0; i < POSTERS; i++) {
		pthread_join(post[i], NULL);
		pthread_join(poll[i], NULL);
	}
	want_int("completions_missing", b.left, 0);
	want_int("completions_wrong", b.bad, 0);
	int failed = 0, missing = 0;
	for (int i = 0; i < POSTERS; i++) {
		failed += b.posters[i].failed;
		for (int k = 0; k < b.messages; k++)
			missing += b.posters[i].seen[k] != 1;
	}
	want_int("posters_failed", failed, 0);
	want_int("messages_not_seen_once", missing, 0);
	for (int i = 0; i < POSTERS; i++) {
		need(!ibv_destroy_qp(p[i].a.qp) && !ibv_destroy_qp(p[i].b.qp), "destroy QPs");
		p[i].a.qp = p[i].b.qp = NULL;
		pair_close(&p[i]);
	}
	want_errno("cq.destroy", ibv_destroy_cq(cq), 0);
	dev_close(&d);
}

/* One QP, many threads that post on it: no message is lost or torn, whoever wins. */
struct crowd {
	struct pair *p;
	int index, failed;
};

static void *crowd_thread(void *arg)
{
	struct crowd *c = arg;
	for (int i = 0; i < 20; i++) {
		struct ibv_sge sg[2] = { sge(&c->p->a, (size_t)c->index * 64, 32), sge(&c->p->a, (size_t)c->index * 64 + 32, 32) };
		struct ibv_send_wr w[2] = { wr(IBV_WR_SEND, (uint64_t)c->index, sg), wr(IBV_WR_SEND, (uint64_t)c->index, sg) };
		struct ibv_send_wr *bad;
		w[0].num_sge = w[1].num_sge = 2;
		w[0].next = &w[1];
		if (ibv_post_send(c->p->a.qp, w, &bad))
			c->failed = 1;
	}
	return NULL;
}

static void crowded(void)
{
	struct dev d;
	struct pair p;
	pthread_t t[8];
	struct crowd c[8];
	struct spec spec = { .type = IBV_QPT_RC, .send_wr = 512, .recv_wr = 512, .cqe = 1024 };
	prefix("crowd");
	dev_open(&d, o.device[0], o.gid_index);
	need(!pair_open(&p, &d, &d, &spec), "connect");
	for (int i = 0; i < 320; i++)
		need(!recv_one(&p.b, (uint64_t)i, (size_t)i * 64, 64), "post a receive");
	for (int i = 0; i < 8; i++) {
		fill(p.a.buf + i * 64, 64, (unsigned)i);
		c[i] = (struct crowd){ &p, i, 0 };
	}
	for (int i = 0; i < 8; i++)
		need(!pthread_create(&t[i], NULL, crowd_thread, &c[i]), "start a thread");
	int failed = 0;
	for (int i = 0; i < 8; i++) {
		pthread_join(t[i], NULL);
		failed += c[i].failed;
	}
	want_int("failed", failed, 0);
	int count[8] = { 0 }, torn = 0;
	struct ibv_wc wc;
	for (int i = 0; i < 320 && wait_one(p.b.rcq, &wc); i++) {
		int who = -1;
		for (unsigned k = 0; k < 8; k++)
			if (same(p.b.buf + wc.wr_id * 64, 64, k))
				who = (int)k;
		if (who < 0 || wc.status)
			torn++;
		else
			count[who]++;
	}
	want_int("torn", torn, 0);
	bool ok = true;
	for (int i = 0; i < 8; i++)
		ok = ok && count[i] == 40;
	check("forty_each", ok);
	struct ibv_wc all[320];
	want_int("sent", wait_wc(p.a.scq, all, 320), 320);
	pair_close(&p);
	dev_close(&d);
}

/* ------------------------------------------------------------------ objects that come and go */

static void *storm_thread(void *arg)
{
	struct dev *d = arg;
	struct pair p;
	for (int i = 0; i < rounds(20); i++) {
		static const enum ibv_qp_type types[] = { IBV_QPT_RC, IBV_QPT_UC, IBV_QPT_UD };
		struct spec spec = { .type = types[i % 3], .srq = i % 4 == 3 && i % 3 == 0, .channel = i & 1, .cqe = 32 };
		if (pair_open(&p, d, d, &spec))
			return "refused";
		if (spec.type == IBV_QPT_RC && !one_send(&p, (uint64_t)i + 1))
			return "lost";
		if (i & 2) {
			/* Destroyed with work inside. */
			recv_one(&p.b, 1, 0, 64);
			struct ibv_sge sg = sge(&p.a, 0, 64);
			struct ibv_send_wr w = wr(IBV_WR_SEND, 2, &sg);
			if (spec.type == IBV_QPT_UD)
				wr_ud(&w, &p.a, &p.b);
			send_wr(&p.a, &w);
		}
		if (ibv_resize_cq(p.a.scq, 64 + i))
			return "resize";
		pair_close(&p);
	}
	return NULL;
}

static void storms(void)
{
	struct dev d;
	pthread_t t[8];
	prefix("storm");
	dev_open(&d, o.device[0], o.gid_index);
	int fds = count_fds(), maps = count_queue_maps();
	for (int i = 0; i < 8; i++)
		need(!pthread_create(&t[i], NULL, storm_thread, &d), "start a thread");
	for (int i = 0; i < 8; i++) {
		void *what = NULL;
		char name[32];
		pthread_join(t[i], &what);
		snprintf(name, sizeof(name), "thread.%d", i);
		say(name, "%s", what ? (char *)what : "ok");
		check("thread", !what);
	}
	want_int("fds_left", count_fds() - fds, 0);
	want_int("queue_maps_left", count_queue_maps() - maps, 0);
	dev_close(&d);
}

static void *open_thread(void *arg)
{
	(void)arg;
	for (int i = 0; i < rounds(15); i++) {
		struct ibv_context *c = open_device(o.device[i & 1]);
		struct ibv_pd *pd = c ? ibv_alloc_pd(c) : NULL;
		struct ibv_cq *cq = c ? ibv_create_cq(c, 16, NULL, NULL, 0) : NULL;
		if (!c || !pd || !cq || ibv_destroy_cq(cq) || ibv_dealloc_pd(pd) || ibv_close_device(c))
			return "failed";
	}
	return NULL;
}

static void open_storm(void)
{
	pthread_t t[8];
	int fds = count_fds(), bad = 0;
	prefix("open_storm");
	for (int i = 0; i < 8; i++)
		need(!pthread_create(&t[i], NULL, open_thread, NULL), "start a thread");
	for (int i = 0; i < 8; i++) {
		void *what = NULL;
		pthread_join(t[i], &what);
		bad += what != NULL;
	}
	want_int("failed", bad, 0);
	want_int("fds_left", count_fds() - fds, 0);
}

/* ------------------------------------------------------------------ leaks */

static void leaks(void)
{
	struct dev d;
	prefix("leaks");
	struct ibv_context *c = open_device(o.device[0]);
	need(c && !ibv_close_device(c), "open and close");
	int fds = count_fds(), maps = count_queue_maps(), n = rounds(1000);
	bool ok = true;
	long kb = 0;
	for (int i = 0; i < n && ok; i++) {
		c = open_device(o.device[0]);
		ok = c && !ibv_close_device(c);
		if (i == n / 4)
			kb = resident_kb();
	}
	check("open_close", ok);
	want_int("open_close.fds_left", count_fds() - fds, 0);
	want_int("open_close.queue_maps_left", count_queue_maps() - maps, 0);
	check("open_close.memory", resident_kb() - kb < 1024);

	dev_open(&d, o.device[0], o.gid_index);
	fds = count_fds();
	maps = count_queue_maps();
	for (int i = 0; i < n && ok; i++) {
		struct ibv_comp_channel *ch = ibv_create_comp_channel(d.ctx);
		struct ibv_cq *cq = ibv_create_cq(d.ctx, 16, NULL, ch, 0);
		struct ibv_srq_init_attr sa = { .attr = { 8, 1, 0 } };
		struct ibv_srq *srq = ibv_create_srq(d.pd, &sa);
		struct ibv_qp_init_attr a = qp_init(IBV_QPT_RC, cq, cq, (struct ibv_qp_cap){ 8, 8, 1, 1, 0 });
		struct ibv_qp *qp = cq ? ibv_create_qp(d.pd, &a) : NULL;
		struct ibv_mr *mr = ibv_reg_mr(d.pd, &d, sizeof(d), IBV_ACCESS_LOCAL_WRITE);
		struct ibv_ah_attr ah_attr = { .is_global = 1, .port_num = 1,
					       .grh = { .dgid = d.gid, .sgid_index = (uint8_t)d.gid_index } };
		struct ibv_ah *ah = ibv_create_ah(d.pd, &ah_attr);
		ok = ch && cq && srq && qp && mr && ah && !ibv_resize_cq(cq, 40) && !ibv_destroy_ah(ah) &&
		     !ibv_dereg_mr(mr) && !ibv_destroy_qp(qp) && !ibv_destroy_srq(srq) && !ibv_destroy_cq(cq) &&
		     !ibv_destroy_comp_channel(ch);
		/* And what is refused leaves nothing either. */
		struct ibv_qp_init_attr bad = qp_init(IBV_QPT_RC, NULL, NULL, (struct ibv_qp_cap){ 1u << 31, 8, 1, 1, 0 });
		struct ibv_cq *none = ibv_create_cq(d.ctx, -1, NULL, NULL, 0);
		struct ibv_mr *nothing = ibv_reg_mr(d.pd, NULL, 4096, IBV_ACCESS_LOCAL_WRITE);
		ok = ok && !none && !nothing;
		struct ibv_cq *some = ibv_create_cq(d.ctx, 16, NULL, NULL, 0);
		bad.send_cq = bad.recv_cq = some;
		ok = ok && some && !ibv_create_qp(d.pd, &bad) && !ibv_destroy_cq(some);
		if (i == n / 4)
			kb = resident_kb();
	}
	check("create_destroy", ok);
	want_int("create_destroy.fds_left", count_fds() - fds, 0);
	want_int("create_destroy.queue_maps_left", count_queue_maps() - maps, 0);
	check("create_destroy.memory", resident_kb() - kb < 1024);
	dev_close(&d);
}

/* Closing a context with live objects: its file descriptors go, whatever becomes of the objects' memory. */
static void close_live(void)
{
	prefix("close_live");
	int fds = count_fds();
	for (int i = 0; i < 3; i++) {
		struct dev d;
		struct pair p;
		struct spec spec = { .type = IBV_QPT_RC, .srq = i == 1, .channel = i == 2 };
		dev_open(&d, o.device[0], o.gid_index);
		need(!pair_open(&p, &d, &d, &spec), "connect");
		check("traffic", one_send(&p, 1));
		need(!recv_one(&p.a, 2, 0, 64), "post a receive");
		if (p.a.channel)
			fds += 2; /* the application's own */
		want_int("close", ibv_close_device(d.ctx), 0);
	}
	want_int("fds_left", count_fds() - fds, 0);
	/* The device is as usable as before. */
	struct dev d;
	struct pair p;
	struct spec spec = { .type = IBV_QPT_RC };
	dev_open(&d, o.device[0], o.gid_index);
	if (want_errno("after.open", pair_open(&p, &d, &d, &spec), 0)) {
		check("after.traffic", one_send(&p, 3));
		pair_close(&p);
	}
	dev_close(&d);
}

/* ------------------------------------------------------------------ fork */

static struct dev *fork_dev;
static struct pair *fork_pair;

static void child_nothing(void *arg)
{
	(void)arg;
}

static void child_own(void *arg)
{
	(void)arg;
	struct dev d;
	struct pair p;
	struct spec spec = { .type = IBV_QPT_RC };
	dev_open(&d, o.device[0], o.gid_index);
	need(!pair_open(&p, &d, &d, &spec), "connect");
	check("child.traffic", one_send(&p, 5));
	pair_close(&p);
	dev_close(&d);
}

/* The queues and the command fd are shared with the parent, which keeps away while we post and poll. */
static void child_uses(void *arg)
{
	(void)arg;
	struct ibv_wc wc;
	struct ibv_port_attr pa;
	say("child.poll", "%d", ibv_poll_cq(fork_pair->a.scq, 1, &wc));
	say("child.query_port", "%s", errname(ibv_query_port(fork_dev->ctx, 1, &pa)));
	say("child.notify", "%s", errname(ibv_req_notify_cq(fork_pair->a.scq, 0)));
	struct ibv_pd *pd = ibv_alloc_pd(fork_dev->ctx);
	say("child.alloc_pd", "%s", pd ? "0" : errname(errno));
	if (pd)
		say("child.dealloc_pd", "%s", errname(ibv_dealloc_pd(pd)));
}

static void child_closes(void *arg)
{
	(void)arg;
	/* Only this process's descriptors and mappings go: the objects live as long as the parent has them open. */
	say("child.close", "%d", close(fork_dev->ctx->cmd_fd));
}

static void forks(void)
{
	char how[32];
	struct dev d;
	struct pair p;
	struct spec spec = { .type = IBV_QPT_RC };
	prefix("fork");
#if HAVE_FORK_STATUS
	say("status", "%d", ibv_is_fork_initialized());
#endif
	dev_open(&d, o.device[0], o.gid_index);
	need(!pair_open(&p, &d, &d, &spec), "connect");
	check("before", one_send(&p, 1));
	fork_dev = &d;
	fork_pair = &p;
	static const struct {
		const char *name;
		void (*f)(void *);
	} c[] = { { "child_exits", child_nothing }, { "child_opens_its_own", child_own }, { "child_uses", child_uses },
		  { "child_closes", child_closes } };
	for (size_t i = 0; i < ARRAY_SIZE(c); i++) {
		/* A message under way across the fork. */
		struct ibv_wc wc;
		prefix("fork.%s", c[i].name);
		fill(p.a.buf, 4096, (unsigned)i);
		need(!recv_one(&p.b, 10 + i, 0, 4096), "post a receive");
		in_child(c[i].f, NULL, how, sizeof(how));
		say("how", "%s", how);
		check("ok", !strcmp(how, "exit 0"));
		struct ibv_sge sg = sge(&p.a, 0, 4096);
		struct ibv_send_wr w = wr(IBV_WR_SEND, 20 + i, &sg);
		want_errno("parent.post", send_wr(&p.a, &w), 0);
		want_wc("parent.sent", p.a.scq, 20 + i, IBV_WC_SUCCESS);
		want_wc("parent.received", p.b.rcq, 10 + i, IBV_WC_SUCCESS);
		check("parent.data", same(p.b.buf, 4096, (unsigned)i));
		check("parent.again", one_send(&p, 30 + i));
		(void)wc;
	}
	/* Forked from a thread while others post. */
	prefix("fork.many");
	for (int i = 0; i < rounds(20); i++) {
		pid_t pid = fork();
		if (!pid)
			_exit(0);
		need(pid > 0, "fork");
		if (!one_send(&p, 100 + (uint64_t)i)) {
			check("traffic", false);
			break;
		}
		waitpid(pid, NULL, 0);
	}
	check("done", true);
	pair_close(&p);
	dev_close(&d);
}

int main(int argc, char **argv)
{
	static const struct {
		const char *name, *what;
		void (*run)(void);
	} parts[] = {
		{ "contexts", "32 contexts in one process", contexts },
		{ "threads", "8 threads post on their QPs, 8 poll the one CQ of all", threads },
		{ "crowd", "8 threads post on one QP", crowded },
		{ "storm", "8 threads create and destroy everything", storms },
		{ "open-storm", "8 threads open and close devices", open_storm },
		{ "leaks", "fds and mappings after 1000 rounds of each", leaks },
		{ "close-live", "closing a context with live objects", close_live },
		{ "fork", "children that exit, open, use, close; the parent goes on (ibv_fork_init)", forks },
	};
	parse_options(&o, argc, argv, "[--list | PART...]    (STORM_SCALE=0.1 makes it shorter)");
	if (o.argc && !strcmp(o.argv[0], "--list")) {
		for (size_t i = 0; i < ARRAY_SIZE(parts); i++)
			printf("%-12s %s\n", parts[i].name, parts[i].what);
		return 0;
	}
	if (getenv("STORM_SCALE"))
		scale = atof(getenv("STORM_SCALE"));
	bool fork_part = !o.argc;
	for (int i = 0; i < o.argc; i++)
		fork_part = fork_part || !strcmp(o.argv[i], "fork");
	prefix("start");
	/* Before anything is registered, or never. */
	if (fork_part)
		want_errno("ibv_fork_init", ibv_fork_init(), 0);
	struct ibv_context *c = open_device(o.device[0]);
	need(c, "open the device");
	check_provider(&o);
	need(!ibv_close_device(c), "close the device");
	for (size_t i = 0; i < ARRAY_SIZE(parts); i++) {
		bool chosen = !o.argc;
		for (int k = 0; k < o.argc; k++)
			chosen = chosen || !strcmp(o.argv[k], parts[i].name);
		if (chosen)
			parts[i].run();
	}
	return finish();
}
