/* Lists the RDMA devices with the provider that serves each, and what else a provider must not have touched.
 *
 * -DLOCAL: libibverbs is not linked but loaded RTLD_LOCAL, as by a program whose RDMA part is a plug-in. */
#define _GNU_SOURCE
#include <dirent.h>
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <infiniband/verbs.h>

extern char **environ;

/* struct verbs_device of libibverbs's private header: the operations follow the public part, and begin with the name. */
static const char *provider_of(struct ibv_device *device)
{
	const char *const **ops = (void *)(device + 1);

	return **ops;
}

static int open_files(void)
{
	DIR *dir = opendir("/proc/self/fd");
	int count = 0;

	while (readdir(dir))
		count++;
	closedir(dir);
	return count;
}

static int times_mapped(const char *name)
{
	FILE *maps = fopen("/proc/self/maps", "r");
	char line[4096], last[4096] = "";
	int count = 0;

	while (fgets(line, sizeof line, maps)) {
		char *path = strchr(line, '/');

		if (path && strstr(path, name) && strcmp(path, last)) {
			strcpy(last, path);
			count++;
		}
	}
	fclose(maps);
	return count;
}

int main(void)
{
	struct ibv_device **(*get)(int *) = ibv_get_device_list;
	void (*put)(struct ibv_device **) = ibv_free_device_list;
	struct ibv_device **list;
	const char *error = dlerror();
	int count, before, after;

	printf("dlerror %s\n", error ? error : "none");
	for (char **variable = environ; *variable; variable++)
		printf("env %s\n", *variable);
#ifdef LOCAL
	void *handle = dlopen("libibverbs.so.1", RTLD_NOW | RTLD_LOCAL);

	*(void **)&get = dlsym(handle, "ibv_get_device_list");
	*(void **)&put = dlsym(handle, "ibv_free_device_list");
#endif
	before = open_files();
	list = get(&count);
	if (!list) {
		perror("ibv_get_device_list");
		return 1;
	}
	for (int i = 0; i < count; i++)
		printf("device %s %s\n", list[i]->name, provider_of(list[i]));
	put(list);
	list = get(&count);
	put(list);
	after = open_files();
	printf("files %s\n", before == after ? "as before" : "left open");
	printf("copies %d\n", times_mapped("libholdfast"));
	return 0;
}

#ifdef LOCAL
/* Referred to above, and not to be linked. */
struct ibv_device **ibv_get_device_list(int *count) { *count = 0; return NULL; }
void ibv_free_device_list(struct ibv_device **list) { (void)list; }
#endif
