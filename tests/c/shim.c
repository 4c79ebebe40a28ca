/* Preloaded: makes the machine look as if it had uverbs devices and no RDMA netlink, so that libibverbs reads SYSFS_PATH. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

enum { RDMA_NETLINK = 20 };

/* /dev/null is a character device that anybody has; the fake sysfs gives its number to every uverbs device. */
static const char *real_path(const char *path)
{
	return path && strncmp(path, "/dev/infiniband/uverbs", 22) == 0 ? "/dev/null" : path;
}

int socket(int domain, int type, int protocol)
{
	if (domain == 16 && protocol == RDMA_NETLINK) {
		errno = EPROTONOSUPPORT;
		return -1;
	}
	return syscall(SYS_socket, domain, type, protocol);
}

int stat(const char *restrict path, struct stat *restrict buf)
{
	return syscall(SYS_newfstatat, AT_FDCWD, real_path(path), buf, 0);
}

int __xstat(int version, const char *path, struct stat *buf);
int __xstat(int version, const char *path, struct stat *buf)
{
	(void)version;
	return stat(path, buf);
}

int open(const char *path, int flags, ...)
{
	va_list arguments;
	mode_t mode;

	va_start(arguments, flags);
	mode = va_arg(arguments, mode_t);
	va_end(arguments);
	return syscall(SYS_openat, AT_FDCWD, real_path(path), flags, mode);
}

int open64(const char *path, int flags, ...) __attribute__((alias("open")));
