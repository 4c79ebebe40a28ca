/* SPDX-License-Identifier: MIT OR Apache-2.0
 *
 * verbs-death [OPTIONS] DEVICE: a program with much in flight while its device dies, by the public API of libibverbs alone.
 *
 * It keeps a ledger of every work request it has posted, and afterwards says how each ended, who was woken, what may still
 * be called, whether all can be destroyed, what is left behind, and whether the device that comes back can be used.
 * It prints `SECONDS TEXT` (CLOCK_MONOTONIC), and `fact NAME VALUE`, in which nothing varies between two runs.
 *
 * Who lets the device die reads what it prints, and writes orders to its stdin:
 *
 *     it says `traffic flows`   now the device may die
 *     it says `told`            by an event or a completion in error; with -m it posts nothing more until `marked` is ordered
 *     order `final`             what happens to the device has happened; completions may come for as long as -l says
 *     it says `bring it back`   the device may return
 *     it says `over`
 *
 * With -a nobody orders: `final` is the kernel's own final event. On the native bed (holdfast_sim.h) it then lets the device
 * die by itself, in a way of chance, and return.
 */
#include "death.h"

#include <dirent.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdarg.h>
#include <time.h>
#include <unistd.h>

struct settings set = { .gid_index = 1, .by_wr = -1, .couples = 1, .depth = 64, .rest_us = 500, .seed = 1, .limit = 10 };
static unsigned rounds = 1;
static bool marks, automatic;

/* ------------------------------------------------------------------ chance */

struct chance chance_of(uint64_t seed, uint64_t what)
{
	struct chance r = { .state = (seed + 1) * 0x9e3779b97f4a7c15u ^ (what + 1) * 0xbf58476d1ce4e5b9u };
	for (int i = 0; i < 4; i++)
		pick(&r, 1);
	return r;
}

uint32_t pick(struct chance *r, uint32_t below)
{
	/* xorshift64*, which never is 0 */
	r->state |= !r->state;
	r->state ^= r->state >> 12;
	r->state ^= r->state << 25;
	r->state ^= r->state >> 27;
	return (uint32_t)((r->state * 0x2545f4914f6cdd1du) >> 33) % below;
}

/* ------------------------------------------------------------------ what is printed */

void note(const char *fmt, ...)
{
	char text[1024];
	va_list ap;
	va_start(ap, fmt);
	vsnprintf(text, sizeof(text), fmt, ap);
	va_end(ap);
	printf("%.6f %s\n", now(), text);
}

void append(char *text, size_t size, const char *separator, const char *fmt, ...)
{
	size_t n = strlen(text);
	va_list ap;
	if (n)
		n += (size_t)snprintf(text + n, size - n, "%s", separator);
	if (n >= size)
		return;
	va_start(ap, fmt);
	vsnprintf(text + n, size - n, fmt, ap);
	va_end(ap);
}

/* Of several rounds: each value that a fact had, and how often. */
static struct known {
	char name[40];
	struct {
		char value[400];
		unsigned count;
	} values[6];
} known[64];

void fact(const char *fmt, ...)
{
	char text[sizeof(((struct device *)0)->events) + 64];
	va_list ap;
	va_start(ap, fmt);
	vsnprintf(text, sizeof(text), fmt, ap);
	va_end(ap);
	if (rounds == 1) {
		printf("fact %s\n", text);
		return;
	}
	char *value = strchr(text, ' ');
	*value++ = 0;
	for (size_t k = 0; k < ARRAY_SIZE(known); k++) {
		if (*known[k].name && strcmp(known[k].name, text))
			continue;
		snprintf(known[k].name, sizeof(known[k].name), "%.39s", text);
		for (size_t v = 0; v < ARRAY_SIZE(known[k].values); v++) {
			if (known[k].values[v].count && strcmp(known[k].values[v].value, value))
				continue;
			snprintf(known[k].values[v].value, sizeof(known[k].values[v].value), "%.399s", value);
			known[k].values[v].count++;
			return;
		}
		need(false, "room for one more value of a fact");
	}
	need(false, "room for one more fact");
}

static void print_facts(void)
{
	for (size_t k = 0; k < ARRAY_SIZE(known) && *known[k].name; k++) {
		printf("fact %s", known[k].name);
		for (size_t v = 0; v < ARRAY_SIZE(known[k].values) && known[k].values[v].count; v++)
			if (known[k].values[v].count == rounds)
				printf(" %s", known[k].values[v].value);
			else
				printf("%s %s (%u of %u)", v ? "," : "", known[k].values[v].value, known[k].values[v].count, rounds);
		printf("\n");
	}
}

/* ------------------------------------------------------------------ the process */

void rest(long us)
{
	struct timespec t = { .tv_sec = us / 1000000, .tv_nsec = us % 1000000 * 1000 };
	if (us)
		nanosleep(&t, NULL);
	else
		sched_yield();
}

void start_thread(pthread_t *t, void *(*f)(void *), void *arg)
{
	pthread_attr_t a;
	need(!pthread_attr_init(&a) && !pthread_attr_setstacksize(&a, 256 * 1024), "a thread's attributes");
	need(!(errno = pthread_create(t, &a, f, arg)), "start a thread");
	pthread_attr_destroy(&a);
}

static void on_interrupt(int sig)
{
	(void)sig;
}

void end_thread(pthread_t t, _Atomic bool *ended)
{
	/* Again, should it not have been asleep yet. */
	while (!*ended) {
		pthread_kill(t, SIGUSR1);
		rest(1000);
	}
	pthread_join(t, NULL);
}

static int entries(const char *path)
{
	DIR *d = opendir(path);
	int n = 0;
	need(d, path);
	for (struct dirent *e; (e = readdir(d));)
		n += *e->d_name != '.';
	closedir(d);
	return n;
}

static void note_descriptors(void)
{
	DIR *d = opendir("/proc/self/fd");
	char is[64];
	need(d, "open /proc/self/fd");
	for (struct dirent *e; (e = readdir(d));) {
		ssize_t n = readlinkat(dirfd(d), e->d_name, is, sizeof(is));
		if (n > 0 && atoi(e->d_name) != dirfd(d))
			note("descriptor %s: %.*s", e->d_name, (int)n, is);
	}
	closedir(d);
}

struct holdings holdings(void)
{
	struct holdings h = { .fds = entries("/proc/self/fd") - 1, .threads = entries("/proc/self/task") };
	long all, pages = 0;
	char *l = NULL;
	size_t size = 0;
	FILE *f = fopen("/proc/self/maps", "r");
	need(f, "open /proc/self/maps");
	while (getline(&l, &size, f) > 0)
		h.maps += strstr(l, "uverbs") || strstr(l, "infinibandevent");
	free(l);
	fclose(f);
	f = fopen("/proc/self/statm", "r");
	need(f && fscanf(f, "%ld %ld", &all, &pages) == 2, "read /proc/self/statm");
	fclose(f);
	h.resident_kb = pages * (sysconf(_SC_PAGESIZE) / 1024);
	return h;
}

/* ------------------------------------------------------------------ orders */

static char ordered[64]; /* the last order that nobody has taken yet */

static void read_orders(int ms)
{
	static char line[64];
	static size_t have;
	struct pollfd p = { .fd = 0, .events = POLLIN };
	while (!*ordered && poll(&p, 1, ms) == 1) {
		if (read(0, line + have, 1) != 1) {
			fprintf(stderr, "verbs-death: no more orders\n");
			_exit(5);
		}
		if (line[have] == '\n') {
			line[have] = 0;
			have = 0;
			strcpy(ordered, line);
		} else {
			need(++have < sizeof(line), "a short order");
		}
	}
}

static bool take_order(const char *which)
{
	if (automatic)
		return false;
	read_orders(0);
	if (strcmp(ordered, which))
		return false;
	*ordered = 0;
	return true;
}

static void await_order(const char *which)
{
	while (!automatic && !take_order(which))
		read_orders(100);
}

/* ------------------------------------------------------------------ the native bed */

int holdfast_sim_control(const char *command, char *answer, size_t room) __attribute__((weak));

static bool by_itself(void)
{
	return automatic && holdfast_sim_control;
}

static void control(const char *command)
{
	char answer[256];
	if (holdfast_sim_control(command, answer, sizeof(answer))) {
		printf("FAIL '%s' is refused: %s\n", command, answer);
		exit(1);
	}
}

/* The steps by which a device goes; the last one is final. */
static const struct way {
	const char *name, *steps[3];
	bool silent; /* no final event comes */
} ways[] = {
	{ "remove", { "remove" } },
	{ "kill", { "kill" } },
	{ "die", { "die", "fatal", "remove" } },
	{ "die-alive", { "die alive", "fatal", "remove" } },
	{ "error", { "fatal", "remove" } },
	{ "lost", { "remove lost" }, true },
	{ "early-lost", { "fatal lost", "remove" } },
	{ "final-lost", { "fatal", "remove lost" }, true },
	{ "twice", { "fatal twice", "remove twice" } },
	{ "silence", { "silence", "fatal", "remove" } },
};

static const struct way *choose_way(unsigned round, struct chance *r)
{
	*r = chance_of(set.seed + round, 50);
	return &ways[pick(r, ARRAY_SIZE(ways))];
}

/* All steps but the last, or the last. */
static void take_steps(const struct way *way, struct chance *r, bool last)
{
	size_t n = 0;
	while (n < ARRAY_SIZE(way->steps) && way->steps[n])
		n++;
	for (size_t i = last ? n - 1 : 0; i < (last ? n : n - 1); i++) {
		rest((long)pick(r, 3000));
		control(way->steps[i]);
	}
}

/* ------------------------------------------------------------------ one death */

static uint64_t owed(struct device *dev)
{
	uint64_t n = 0;
	for (uint32_t i = 0; i < dev->queues; i++)
		if (!dev->queue[i]->shared)
			n += queue_owed(dev->queue[i]);
	return n;
}

static void print_ledger(struct device *dev)
{
	char text[512] = "", name[32];
	uint64_t flushed_shared = 0;
	for (unsigned i = 0; i < dev->loads; i++) {
		struct load *l = &dev->load[i];
		snprintf(name, sizeof(name), "%s.", l->name);
		struct sums all = ledger_sums(dev, name);
		struct sums shared = { 0 };
		if (l->shared) {
			snprintf(name, sizeof(name), "%s.shared", l->name);
			shared = ledger_sums(dev, name);
			flushed_shared += shared.flushed;
		}
		if (rounds == 1 || all.owed > shared.owed)
			note("ledger %s (%s, %s): %llu well, %llu retired, %llu flushed, %llu in error, %llu owed, %llu in the SRQ", l->name,
		     wait_names[l->wait], l->by_wr ? "ibv_wr" : "lists", (unsigned long long)all.well, (unsigned long long)all.retired,
		     (unsigned long long)all.flushed, (unsigned long long)all.badly, (unsigned long long)(all.owed - shared.owed),
		     (unsigned long long)shared.owed);
		append(text, sizeof(text), " ", "%s=%s", l->name, all.owed - shared.owed ? "some" : "none");
	}
	fact("never_completed %s", text);
	ledger_wrong(dev, text, sizeof(text));
	fact("wrong %s", text);
	fact("statuses %s", *dev->statuses ? dev->statuses : "none");
	if (set.kind[SRQ] || set.kind[XRC])
		fact("srq_receives %s", flushed_shared ? "flushed" : "kept");
}

/* By queue, for whoever compares it with what the device did. */
static void print_queues(struct device *dev)
{
	for (uint32_t i = 0; i < dev->queues; i++) {
		struct queue *q = dev->queue[i];
		char qps[256] = "";
		for (unsigned n = 0; q->shared && n < dev->loads; n++)
			for (unsigned c = 0; dev->load[n].shared == q && c < dev->load[n].couples; c++)
				append(qps, sizeof(qps), ",", "%u,%u", dev->load[n].couple[c].qp[0]->qp_num, dev->load[n].couple[c].qp[1]->qp_num);
		if (!q->shared)
			append(qps, sizeof(qps), "", "%u", q->qp_num);
		note("queue %s of qp %s: %llu well, %llu retired, %llu flushed, %llu in error, %llu owed", q->name, qps,
		     (unsigned long long)q->well, (unsigned long long)q->retired, (unsigned long long)q->flushed,
		     (unsigned long long)q->badly, (unsigned long long)queue_owed(q));
	}
}

static void print_sleepers(struct device *dev)
{
	for (unsigned i = 0; i < dev->loads; i++) {
		struct load *l = &dev->load[i];
		if (l->kind == IDLE)
			fact("sleeper.%s %s", wait_names[l->wait], l->woken ? l->wake : "sleeps on");
	}
}

static void print_times(struct device *dev)
{
	double since = dev->final ? dev->final : dev->early;
	if (dev->early && dev->final)
		note("time early_to_final %.6f", dev->final - dev->early);
	if (since && dev->first_flush && dev->all_flushed) {
		note("time first_flush %.6f", dev->first_flush - since);
		note("time all_flushed %.6f", dev->all_flushed - since);
	}
}

/* The last event is there as soon as its thread has had its turn, where the way has one. */
static void await_event(struct device *dev, const struct way *way)
{
	double end = now() + set.limit;
	while (!way->silent && !dev->final && now() < end)
		rest(1000);
}

static void await_final(struct device *dev)
{
	double since = now();
	while (automatic ? !dev->final && now() - since < set.limit : !take_order("final"))
		rest(2000);
}

static struct device *open_again(const char *name, uint64_t seed, bool small)
{
	struct device *dev;
	double end = now() + 300;
	const char *what;
	char seen[256] = "";
	for (;;) {
		what = device_open(&dev, name, seed, small);
		if (!what)
			break;
		char text[64];
		snprintf(text, sizeof(text), "%s: %s", what, errname(errno));
		if (!strstr(seen, text)) {
			append(seen, sizeof(seen), ", ", "%s", text);
			note("not yet opened: %s", text);
		}
		device_destroy(dev, false);
		if (now() > end) {
			note("cannot be opened");
			return NULL;
		}
		rest(20000);
	}
	note("opened %s", name);
	return dev;
}

static void await_flow(struct device *dev, uint64_t each)
{
	double end = now() + 300;
	while (!device_flows(dev, each)) {
		if (now() > end) {
			print_ledger(dev);
			need(false, "traffic");
		}
		rest(2000);
	}
}

/* A device that came back carries traffic, and its objects go in an orderly way. */
static void use_again(uint64_t guid)
{
	struct device *dev = open_again(set.name, set.seed + 1000, false);
	char wrong[256];
	if (!dev) {
		fact("reopened no");
		return;
	}
	bool same_guid = dev->guid == guid;
	device_start(dev);
	await_flow(dev, 20);
	device_stop_posting(dev);
	ledger_wrong(dev, wrong, sizeof(wrong));
	fact("reopened ok, guid=%s, wrong=%s, statuses=%s", same_guid ? "same" : "other", wrong,
	     *dev->statuses ? dev->statuses : "none");
	device_destroy(dev, false);
}

static void return_of(uint64_t guid)
{
	note("bring it back");
	if (by_itself())
		control("return");
	/* Of many rounds, the next one is its use. */
	if (rounds == 1)
		use_again(guid);
}

static long resident_early, resident_last;

static void one_death(unsigned round)
{
	struct holdings before = holdings();
	struct device *dev = open_again(set.name, set.seed + round, false);
	char text[512];
	need(dev, "open the device");
	uint64_t guid = dev->guid;
	device_start(dev);
	await_flow(dev, 20);
	note("round %u: traffic flows", round);

	bool is_final = false;
	struct chance chance;
	const struct way *way = choose_way(round, &chance);
	if (by_itself()) {
		note("way: %s", way->name);
		take_steps(way, &chance, false);
		if (pick(&chance, 2)) {
			take_steps(way, &chance, true);
			is_final = true;
		}
		rest((long)pick(&chance, 3000));
	} else {
		while (!dev->told && !(is_final = take_order("final")))
			rest(1000);
		note("round %u: told", round);
		if (marks && !is_final)
			await_order("marked");
	}
	device_stop_posting(dev);
	device_post_late(dev, text, sizeof(text));
	fact("late %s", text);
	if (by_itself() && !is_final)
		take_steps(way, &chance, true);
	else if (!is_final)
		await_final(dev);
	if (by_itself())
		await_event(dev, way);
	note("final");
	pthread_mutex_lock(&dev->lock);
	dev->all_flushed = dev->last_flush;
	pthread_mutex_unlock(&dev->lock);
	device_post_late(dev, text, sizeof(text));
	fact("after_final %s", text);
	double end = now() + set.limit;
	while (owed(dev) && now() < end)
		rest(2000);
	fact("events%s%s %s", by_itself() ? "." : "", by_itself() ? way->name : "", *dev->events ? dev->events : "none");
	print_ledger(dev);
	if (marks)
		print_queues(dev);
	print_sleepers(dev);
	print_times(dev);
	device_try_calls(dev);
	/* The device that returns may be opened while objects of the dead one are still there, or after. */
	bool first = (set.seed + round) & 1;
	if (first)
		return_of(guid);
	device_destroy(dev, true);
	if (!first)
		return_of(guid);
	struct holdings after = holdings();
	/* The kernel still lists a thread for a moment after pthread_join(3) has seen it end. */
	for (end = now() + set.limit; after.threads > before.threads && now() < end; after = holdings())
		rest(1000);
	fact("left fds=%d maps=%d threads=%d", after.fds - before.fds, after.maps - before.maps, after.threads - before.threads);
	if (after.fds != before.fds)
		note_descriptors();
	note("resident %ld kB", after.resident_kb);
	if (round <= 1 + rounds / 4)
		resident_early = after.resident_kb;
	resident_last = after.resident_kb;
	note("round %u: over", round);
}

/* ------------------------------------------------------------------ the run */

static void choose_words(const char *list, const char *const *names, int n, bool *chosen)
{
	for (int i = 0; i < n; i++) {
		size_t length = strlen(names[i]);
		chosen[i] = !strcmp(list, "all");
		for (const char *p = list; (p = strstr(p, names[i])); p += length)
			chosen[i] |= (p == list || p[-1] == ',') && (!p[length] || p[length] == ',');
	}
}

static void on_alarm(int sig)
{
	(void)sig;
	static const char text[] = "FAIL verbs-death: the time is up\n";
	_exit(write(1, text, sizeof(text) - 1) < 0 ? 4 : 3);
}

static void usage(const char *name)
{
	fprintf(stderr,
		"usage: %s [OPTIONS] DEVICE < ORDERS\n"
		"  -L KINDS   of load: write,send,srq,ud,xrc,atomic,idle (all but xrc)\n"
		"  -w STYLES  of waiting: busy,start,block,poll,epoll,edge (all)\n"
		"  -A 0|1     0: post lists, 1: ibv_wr_* (by chance)\n"
		"  -q N       couples of queue pairs of each load (1)     -D N  depth of their queues (64)\n"
		"  -r US      rest after each window and empty poll (500)\n"
		"  -s SEED    (1)        -n N  deaths (1)     -N DEVICE  a neighbour with traffic of its own\n"
		"  -l S       seconds that completions may take after the final sign (10)\n"
		"  -o         destroy in any order, users of an object after it\n"
		"  -m         with marks        -a  without orders       -g INDEX  of GIDs (1)\n"
		"  -p stock|holdfast  fail if another provider serves    -t S  end after that time (3600)\n",
		name);
	exit(2);
}

int main(int argc, char **argv)
{
	struct options o = { 0 };
	const char *kinds = "write,send,srq,ud,atomic,idle", *styles = "all";
	unsigned time_limit = 3600;
	int c;
	while ((c = getopt(argc, argv, "L:w:A:q:D:r:s:n:N:l:omag:p:t:h")) != -1) {
		switch (c) {
		case 'L': kinds = optarg; break;
		case 'w': styles = optarg; break;
		case 'A': set.by_wr = atoi(optarg); break;
		case 'q': set.couples = (unsigned)atoi(optarg); break;
		case 'D': set.depth = (unsigned)atoi(optarg); break;
		case 'r': set.rest_us = atol(optarg); break;
		case 's': set.seed = strtoull(optarg, NULL, 0); break;
		case 'n': rounds = (unsigned)atoi(optarg); break;
		case 'N': set.neighbour = optarg; break;
		case 'l': set.limit = atof(optarg); break;
		case 'o': set.any_order = true; break;
		case 'm': marks = true; break;
		case 'a': automatic = true; break;
		case 'g': set.gid_index = atoi(optarg); break;
		case 'p': o.expect = optarg; break;
		case 't': time_limit = (unsigned)atoi(optarg); break;
		default: usage(argv[0]);
		}
	}
	if (optind + 1 != argc || !rounds || set.depth < 32)
		usage(argv[0]);
	set.name = argv[optind];
	choose_words(kinds, load_names, LOAD_KINDS, set.kind);
	choose_words(styles, wait_names, WAIT_STYLES, set.style);
	setvbuf(stdout, NULL, _IOLBF, 0);
	/* No SA_RESTART: it interrupts. */
	struct sigaction interrupt = { .sa_handler = on_interrupt };
	sigaction(SIGUSR1, &interrupt, NULL);
	signal(SIGALRM, on_alarm);
	alarm(time_limit);
	/* The first list of devices loads the providers, which stay, with what they keep open: a log. No death is to blame for that. */
	open_device("");

	struct device *neighbour = NULL;
	if (set.neighbour) {
		const char *what = device_open(&neighbour, set.neighbour, set.seed, true);
		need(!what, "open the neighbour");
		device_start(neighbour);
		await_flow(neighbour, 20);
	}
	for (unsigned round = 1; round <= rounds; round++)
		one_death(round);
	check_provider(&o);
	if (neighbour) {
		char wrong[256];
		uint64_t had = neighbour->completions;
		double end = now() + 60;
		while (neighbour->completions < had + 20 && now() < end)
			rest(2000);
		device_stop_posting(neighbour);
		ledger_wrong(neighbour, wrong, sizeof(wrong));
		note("neighbour: %llu completions, longest gap %.3f s", (unsigned long long)neighbour->completions,
		     neighbour->longest_gap);
		printf("fact neighbour goes_on=%s wrong=%s statuses=%s events=%s\n", neighbour->completions >= had + 20 ? "yes" : "no", wrong,
		     *neighbour->statuses ? neighbour->statuses : "none", *neighbour->events ? neighbour->events : "none");
		device_destroy(neighbour, false);
	}
	if (rounds > 1) {
		print_facts();
		/* Allocators have what they need after a few. */
		printf("fact resident %s\n", resident_last - resident_early > 1024 ? "grows" : "steady");
	}
	return failed();
}
