/* Another interposer, such as a tracing tool preloads: says which provider registers, and hands the call on. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdio.h>

#define PASTE(a, b) a##b
#define JOIN(a, b) PASTE(a, b)
#define TEXT(a) #a
#define STRING(a) TEXT(a)
#define FUNCTION JOIN(verbs_register_driver_, NUMBER)

void FUNCTION(const char *const *ops);
void FUNCTION(const char *const *ops)
{
	void (*next)(const char *const *);

	printf("traced %s\n", *ops);
	*(void **)&next = dlsym(RTLD_NEXT, STRING(FUNCTION));
	next(ops);
}
