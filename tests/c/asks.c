/* Asks every registered provider which devices it takes, twice: see libibverbs.c. */
#include <dlfcn.h>
#include <stdio.h>

void *ibv_get_device_list(int *count);

int main(void)
{
	const char *error = dlerror();
	int count;

	if (error)
		fprintf(stderr, "an error left behind for the program's dlerror: %s\n", error);
	ibv_get_device_list(&count);
	ibv_get_device_list(&count);
	return 0;
}
