/* A libibverbs of a given private ABI layout: just what a provider sees of one, none of what a program does.
 *
 * -DNUMBER=n -DCONTEXT_SIZE=bytes -DOPERATIONS=count -DCOMP_MASK=offset, and layout.h with one MIRROR(index, distance) for each
 * operation that verbs_set_ops also writes into the context, and one EXPORT(name) for each public function that exists.
 * ibv_get_device_list asks each provider registered which devices it takes, and prints the answers. */
#include <errno.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

enum { IBV_CONTEXT = 328, CMD_FD = 264, ASYNC_FD = 268, DEVICE = 0, SZ = -8, PRIV = -112, PRIV_OPS = 24, REFCOUNT = 672, MATCH = 24, DRIVER_ID = 952 };

#define EXPORT(name) void name(void); void name(void) {}
#define MIRROR(index, distance)
#include "layout.h"
#undef EXPORT
#undef MIRROR

#define PASTE(a, b) a##b
#define JOIN(a, b) PASTE(a, b)
struct provider_ops {
	const char *name;
	uint32_t min, max;
	const void *match_table, *static_providers;
	bool (*match_device)(char *sysfs_dev);
};

static const struct provider_ops *registered[64];
static int registrations;

void JOIN(verbs_register_driver_, NUMBER)(const struct provider_ops *ops);
void JOIN(verbs_register_driver_, NUMBER)(const struct provider_ops *ops)
{
	/* The real one leaves this to the loader's lock. */
	registered[__atomic_fetch_add(&registrations, 1, __ATOMIC_SEQ_CST)] = ops;
}

static char *context_of(char *verbs_context) { return verbs_context + CONTEXT_SIZE - IBV_CONTEXT; }
static void put(char *at, const void *word) { memcpy(at, &word, sizeof word); }
static void *get(const char *at) { void *word; memcpy(&word, at, sizeof word); return word; }
static void put_int(char *at, int value) { memcpy(at, &value, sizeof value); }
static int get_int(const char *at) { int value; memcpy(&value, at, sizeof value); return value; }

void *_verbs_init_and_alloc_context(char *device, int cmd_fd, size_t size, char *offset, uint32_t driver_id);
void verbs_set_ops(char *verbs_context, void *const *ops);
void verbs_uninit_context(char *verbs_context);
void *ibv_qp_to_qp_ex(char *qp);
void *ibv_get_device_list(int *count);

void *_verbs_init_and_alloc_context(char *device, int cmd_fd, size_t size, char *offset, uint32_t driver_id)
{
	char *wrapper, *context, *private;

	(void)driver_id;
#ifdef NO_CONTEXT
	close(cmd_fd);
	errno = ENOMEM;
	return NULL;
#endif
	wrapper = calloc(1, size);
	private = calloc(1, PRIV_OPS + 8 * OPERATIONS + 8);
	context = context_of(wrapper + (uintptr_t)offset);
	put_int(device + REFCOUNT, get_int(device + REFCOUNT) + 1);
	put(context + DEVICE, device);
	put_int(context + CMD_FD, cmd_fd);
	put_int(context + ASYNC_FD, -1);
	put(context + SZ, (void *)(uintptr_t)CONTEXT_SIZE);
	put(context + PRIV, private);
	ioctl(cmd_fd, 0xc0181b01, NULL);
	return wrapper;
}

void verbs_set_ops(char *verbs_context, void *const *ops)
{
	char *context = context_of(verbs_context), *private = get(context + PRIV);

	for (int i = 0; i < OPERATIONS; i++)
		if (ops[i])
			put(private + PRIV_OPS + 8 * i, ops[i]);
#define EXPORT(name)
#define MIRROR(index, distance) if (ops[index]) put(context + (distance), ops[index]);
#include "layout.h"
}

void verbs_uninit_context(char *verbs_context)
{
	char *context = context_of(verbs_context), *device = get(context + DEVICE);

	free(get(context + PRIV));
	close(get_int(context + CMD_FD));
	if (get_int(context + ASYNC_FD) != -1)
		close(get_int(context + ASYNC_FD));
	put_int(device + REFCOUNT, get_int(device + REFCOUNT) - 1);
	if (get_int(device + REFCOUNT) == 0)
		abort();
}

void *ibv_qp_to_qp_ex(char *qp)
{
	return get_int(qp + COMP_MASK) & 2 ? qp : NULL;
}

/* Whether `ops` takes a device of this driver (14 is soft-RoCE, 0 unknown), and whether its match table matched the name. */
static void ask(const struct provider_ops *ops, uint32_t driver_id, bool matched)
{
	char *sysfs_dev = calloc(1, 1024);

	memcpy(sysfs_dev + DRIVER_ID, &driver_id, sizeof driver_id);
	put(sysfs_dev + MATCH, matched ? ops->match_table : NULL);
	printf("%s: driver %u, %s: %s\n", ops->name, driver_id, matched ? "matched" : "no match",
	       ops->match_device(sysfs_dev) ? "yes" : "no");
	free(sysfs_dev);
}

void *ibv_get_device_list(int *count)
{
	for (int i = 0; i < registrations; i++) {
		ask(registered[i], 14, true);
		ask(registered[i], 0, true);
		ask(registered[i], 0, false);
		ask(registered[i], 1, true);
	}
	*count = registrations;
	return NULL;
}
