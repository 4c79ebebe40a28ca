/* A provider that the program links itself, as perftest does libmlx5: registered before main, and before any preloaded
 * constructor runs. It claims every device whose name begins with rxe, of kernel drivers up to version 9. */
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

struct provider_ops {
	const char *name;
	uint32_t min, max;
	const void *match_table, *static_providers;
	bool (*match_device)(char *sysfs_dev);
	void *alloc_context, *import_context;
	void *(*alloc_device)(char *sysfs_dev);
	void (*uninit_device)(void *device);
};

#define PASTE(a, b) a##b
#define JOIN(a, b) PASTE(a, b)
void JOIN(verbs_register_driver_, NUMBER)(const struct provider_ops *ops);

enum { IBDEV_NAME = 112, VERBS_DEVICE_SIZE = 712 };

static bool match_device(char *sysfs_dev) { return strncmp(sysfs_dev + IBDEV_NAME, "rxe", 3) == 0; }
static void *alloc_device(char *sysfs_dev) { (void)sysfs_dev; return calloc(1, VERBS_DEVICE_SIZE); }

static const struct provider_ops ops = {
	.name = "linked",
	.min = 1,
	.max = 9,
	.match_device = match_device,
	.alloc_device = alloc_device,
	.uninit_device = free,
};

int linked_provider(void);
int linked_provider(void) { return 1; }

__attribute__((constructor)) static void constructor(void) { JOIN(verbs_register_driver_, NUMBER)(&ops); }
