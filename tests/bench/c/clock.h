// Time, in the unit that repeats: cycles of the core.
//
// The time stamp counter runs at one rate, the core at whatever rate the minute allows. So each timed part has a chain of
// multiplications of known length just before it, and its ticks are taken times what a tick was worth there. (A chain of
// additions will not do: new cores fold it.)
#ifndef CLOCK_H
#define CLOCK_H

#include <stdint.h>
#include <time.h>
#include <x86intrin.h>

#define CHAIN 512
#define CHAIN_CYCLES (3 * CHAIN)

// Ticks that reading the counter twice takes, and nanoseconds of a tick.
static uint64_t clock_overhead;
static double ns_per_tick;

static inline uint64_t ticks_before(void)
{
	_mm_lfence();
	uint64_t ticks = __rdtsc();
	_mm_lfence();
	return ticks;
}

static inline uint64_t ticks_after(void)
{
	unsigned cpu;
	uint64_t ticks = __rdtscp(&cpu);
	_mm_lfence();
	return ticks;
}

// Core cycles of a tick, now.
static inline double cycles_per_tick(void)
{
	uint64_t x = 1, start = ticks_before();
	__asm__ volatile(".rept 512\n\timul %0, %0\n\t.endr" : "+r"(x));
	return (double)CHAIN_CYCLES / (double)(ticks_after() - start - clock_overhead);
}

static inline void clock_init(void)
{
	struct timespec from, to;
	clock_overhead = UINT64_MAX;
	for (int i = 0; i < 1000; i++) {
		uint64_t start = ticks_before(), took = ticks_after() - start;
		if (took < clock_overhead)
			clock_overhead = took;
	}
	clock_gettime(CLOCK_MONOTONIC, &from);
	uint64_t start = __rdtsc();
	do
		clock_gettime(CLOCK_MONOTONIC, &to);
	while ((to.tv_sec - from.tv_sec) * 1000000000L + to.tv_nsec - from.tv_nsec < 20000000);
	double ns = (double)(to.tv_sec - from.tv_sec) * 1e9 + (double)(to.tv_nsec - from.tv_nsec);
	ns_per_tick = ns / (double)(__rdtsc() - start);
}

// A timed part: what it took, of `work`.
struct took {
	double cycles, ns;
};

#define TIMED(work) \
	({ \
		double rate_ = cycles_per_tick(); \
		uint64_t start_ = ticks_before(); \
		work; \
		double ticks_ = (double)(ticks_after() - start_ - clock_overhead); \
		(struct took){ ticks_ * rate_, ticks_ * ns_per_tick }; \
	})

#endif
