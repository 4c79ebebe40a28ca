/* Loads the libibverbs of libibverbs.c late and RTLD_LOCAL, registers a provider from each of many threads at once, and asks
 * all of them. -DNUMBER=n is its private ABI. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

struct provider_ops {
	const char *name;
	uint32_t min, max;
	const void *match_table, *static_providers;
	bool (*match_device)(void *sysfs_dev);
};

enum { COUNT = 12 };

static bool decline(void *sysfs_dev) { (void)sysfs_dev; return false; }

static char names[COUNT][16];
static struct provider_ops providers[COUNT];
static pthread_barrier_t barrier;
static void (*register_driver)(const struct provider_ops *ops);

static void *run(void *ops)
{
	pthread_barrier_wait(&barrier);
	register_driver(ops);
	return NULL;
}

int main(void)
{
	char symbol[64];
	int count;
	pthread_t threads[COUNT];
	int (*list)(int *);
	void *handle = dlopen("libibverbs.so.1", RTLD_NOW | RTLD_LOCAL);

	if (!handle) {
		fprintf(stderr, "%s\n", dlerror());
		return 1;
	}
	snprintf(symbol, sizeof symbol, "verbs_register_driver_%d", NUMBER);
	*(void **)&register_driver = dlsym(RTLD_DEFAULT, symbol);
	*(void **)&list = dlsym(handle, "ibv_get_device_list");
	if (!register_driver) {
		fprintf(stderr, "no interposer is loaded\n");
		return 1;
	}
	pthread_barrier_init(&barrier, NULL, COUNT);
	for (int i = 0; i < COUNT; i++) {
		snprintf(names[i], sizeof names[i], "thread%d", i);
		providers[i] = (struct provider_ops){ .name = names[i], .match_device = decline };
		pthread_create(&threads[i], NULL, run, &providers[i]);
	}
	for (int i = 0; i < COUNT; i++)
		pthread_join(threads[i], NULL);
	list(&count);
	printf("registered %d\n", count);
	return 0;
}
