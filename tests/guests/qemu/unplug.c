/* SPDX-License-Identifier: MIT OR Apache-2.0
 *
 * Preloaded into QEMU: lets it survive the unplug of a vfio-user-pci device that has MSI-X.
 *
 * QEMU 11.1 takes the device's pending bit array out of its BAR twice: once when the BAR, a child of the device, is
 * freed, and once more in the device's own instance_finalize, where memory_region_del_subregion() asserts that the
 * region is still in the BAR and finds that it is in none. What the function was to do is done by then, so this
 * assertion, from that function and with a region that is nowhere, returns to the function's caller instead of ending
 * QEMU. The function has begun a transaction before it asserts; it is committed here, or no later change of the memory
 * map would ever take effect. Every other assertion fails as it should.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unwind.h>

/* The registers of x86-64 that a function keeps for its caller, by their DWARF numbers: rbx, rbp, r12 to r15. */
static const int kept[] = { 3, 6, 12, 13, 14, 15 };

struct frame {
	int depth;
	uint64_t kept[6], sp, ip;
};

/* Frames: 0 is __assert_fail, 1 the function that asserts, 2 its caller. */
static _Unwind_Reason_Code third(struct _Unwind_Context *context, void *arg)
{
	struct frame *f = arg;
	if (f->depth++ < 2)
		return _URC_NO_REASON;
	for (int i = 0; i < 6; i++)
		f->kept[i] = _Unwind_GetGR(context, kept[i]);
	f->sp = _Unwind_GetCFA(context);
	f->ip = _Unwind_GetIP(context);
	return _URC_END_OF_STACK;
}

__attribute__((noreturn)) static void go_on(const struct frame *f)
{
	__asm__ volatile("mov 0(%0), %%rbx\n\t"
			 "mov 16(%0), %%r12\n\t"
			 "mov 24(%0), %%r13\n\t"
			 "mov 32(%0), %%r14\n\t"
			 "mov 40(%0), %%r15\n\t"
			 "mov 48(%0), %%rsp\n\t"
			 "mov 56(%0), %%rcx\n\t"
			 "mov 8(%0), %%rbp\n\t"
			 "jmp *%%rcx"
			 :
			 : "a"(f->kept)
			 : "memory");
	__builtin_unreachable();
}

__attribute__((noreturn)) void __assert_fail(const char *assertion, const char *file, unsigned line, const char *function)
{
	void (*commit)(void) = (void (*)(void))dlsym(RTLD_DEFAULT, "memory_region_transaction_commit");
	if (commit && !strcmp(function, "memory_region_del_subregion") && strstr(assertion, "subregion->container == mr")) {
		struct frame f = { 0 };
		_Unwind_Backtrace(third, &f);
		if (f.ip) {
			commit();
			go_on(&f);
		}
	}
	fprintf(stderr, "%s:%u: %s: Assertion `%s' failed.\n", file, line, function, assertion);
	abort();
}
