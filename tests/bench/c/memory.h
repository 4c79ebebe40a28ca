// Counts what a provider and libibverbs ask for: the program's own malloc and mmap stand in front of the C library's. Which
// of them asks is told by the address that the call returns to; what the bed asks for, in place of a kernel, is not counted.
#include <dlfcn.h>
#include <link.h>
#include <malloc.h>
#include <sys/mman.h>

#define MOST_RANGES 16
#define HEADER 8 // of malloc's own, before each block

static long counted_bytes;
static struct {
	uintptr_t from, to;
} counted_ranges[MOST_RANGES];
static int counted_range_count;

extern void *__libc_malloc(size_t), *__libc_calloc(size_t, size_t), *__libc_realloc(void *, size_t), *__libc_memalign(size_t, size_t);
extern void __libc_free(void *);

static bool counts(void *caller)
{
	for (int i = 0; i < counted_range_count; i++)
		if ((uintptr_t)caller >= counted_ranges[i].from && (uintptr_t)caller < counted_ranges[i].to)
			return true;
	return false;
}

static void *allocated(void *block, void *caller)
{
	if (block && counts(caller))
		counted_bytes += (long)malloc_usable_size(block) + HEADER;
	return block;
}

static void freed(void *block, void *caller)
{
	if (block && counts(caller))
		counted_bytes -= (long)malloc_usable_size(block) + HEADER;
}

#define CALLER __builtin_return_address(0)

void *malloc(size_t size)
{
	return allocated(__libc_malloc(size), CALLER);
}

void *calloc(size_t count, size_t size)
{
	return allocated(__libc_calloc(count, size), CALLER);
}

void *realloc(void *block, size_t size)
{
	freed(block, CALLER);
	return allocated(__libc_realloc(block, size), CALLER);
}

void *aligned_alloc(size_t alignment, size_t size)
{
	return allocated(__libc_memalign(alignment, size), CALLER);
}

void *memalign(size_t alignment, size_t size)
{
	return allocated(__libc_memalign(alignment, size), CALLER);
}

int posix_memalign(void **block, size_t alignment, size_t size)
{
	*block = allocated(__libc_memalign(alignment, size), CALLER);
	return *block ? 0 : ENOMEM;
}

void free(void *block)
{
	freed(block, CALLER);
	__libc_free(block);
}

static long pages(size_t length)
{
	return (long)((length + 4095) & ~(size_t)4095);
}

// Memory of the program's own only: a doorbell page is the device's.
static void *mapped(void *at, size_t length, int flags, void *caller)
{
	if (at != MAP_FAILED && flags & MAP_ANONYMOUS && counts(caller))
		counted_bytes += pages(length);
	return at;
}

void *mmap(void *at, size_t length, int prot, int flags, int fd, off_t offset)
{
	static void *(*next)(void *, size_t, int, int, int, off_t);
	if (!next)
		next = dlsym(RTLD_NEXT, "mmap");
	return mapped(next(at, length, prot, flags, fd, offset), length, flags, CALLER);
}

void *mmap64(void *at, size_t length, int prot, int flags, int fd, off64_t offset)
{
	static void *(*next)(void *, size_t, int, int, int, off64_t);
	if (!next)
		next = dlsym(RTLD_NEXT, "mmap64");
	return mapped(next(at, length, prot, flags, fd, offset), length, flags, CALLER);
}

static int find_range(struct dl_phdr_info *info, size_t size, void *unused)
{
	(void)size, (void)unused;
	const char *name = info->dlpi_name;
	bool provider = strstr(name, "libholdfast") && !strstr(name, "libholdfast_sim");
	if (!provider && !strstr(name, "libibverbs.so") && !strstr(name, "libmlx5"))
		return 0;
	for (int i = 0; i < info->dlpi_phnum; i++) {
		const ElfW(Phdr) *part = &info->dlpi_phdr[i];
		if (part->p_type == PT_LOAD && part->p_flags & PF_X && counted_range_count < MOST_RANGES) {
			counted_ranges[counted_range_count].from = info->dlpi_addr + part->p_vaddr;
			counted_ranges[counted_range_count++].to = info->dlpi_addr + part->p_vaddr + part->p_memsz;
		}
	}
	return 0;
}

// Bytes that `work` left allocated.
#define COUNTED(work) \
	({ \
		long before_ = counted_bytes; \
		work; \
		counted_bytes - before_; \
	})

#define MANY 256

// Bytes of each kind of object, as the mean of many: what several share counts for each in part.
static void size(void)
{
	static struct ibv_qp *made_qps[2][MANY];
	static struct ibv_cq *made_cqs[MANY];
	static struct ibv_srq *made_srqs[MANY];
	static struct ibv_mr *made_mrs[MANY];
	struct ibv_context *opened[2];
	dl_iterate_phdr(find_range, NULL);
	CHECK(counted_range_count >= 2);
	struct ibv_qp_init_attr attr = {
		.send_cq = ibv_cq_ex_to_cq(send_cq), .recv_cq = ibv_cq_ex_to_cq(recv_cq), .qp_type = IBV_QPT_RC,
		.cap = { .max_send_wr = 128, .max_recv_wr = 128, .max_send_sge = 1, .max_recv_sge = 1, .max_inline_data = 64 },
	};
	struct ibv_srq_init_attr shape = { .attr = { .max_wr = 255, .max_sge = 1 } };
	printf("size-qp %ld\n", COUNTED(for (int i = 0; i < MANY; i++) CHECK(made_qps[0][i] = ibv_create_qp(pd, &attr))) / MANY);
	printf("size-qp-ex %ld\n",
	       COUNTED(for (int i = 0; i < MANY; i++) made_qps[1][i] = make_qp(send_cq, recv_cq, NULL, 128, 1)) / MANY);
	printf("size-cq %ld\n", COUNTED(for (int i = 0; i < MANY; i++) CHECK(made_cqs[i] = ibv_create_cq(context, 255, NULL, NULL, 0))) / MANY);
	printf("size-srq %ld\n", COUNTED(for (int i = 0; i < MANY; i++) CHECK(made_srqs[i] = ibv_create_srq(pd, &shape))) / MANY);
	printf("size-mr %ld\n", COUNTED(for (int i = 0; i < MANY; i++)
						CHECK(made_mrs[i] = ibv_reg_mr(pd, buffer, 4096, IBV_ACCESS_LOCAL_WRITE))) / MANY);
	printf("size-context %ld\n", COUNTED(for (int i = 0; i < 2; i++) CHECK(opened[i] = ibv_open_device(context->device))) / 2);
	puts(".");
	for (int i = 0; i < MANY; i++)
		CHECK(!ibv_destroy_qp(made_qps[0][i]) && !ibv_destroy_qp(made_qps[1][i]) && !ibv_destroy_cq(made_cqs[i]) &&
		      !ibv_destroy_srq(made_srqs[i]) && !ibv_dereg_mr(made_mrs[i]));
	for (int i = 0; i < 2; i++)
		CHECK(!ibv_close_device(opened[i]));
}
