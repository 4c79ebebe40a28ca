/* SPDX-License-Identifier: MIT OR Apache-2.0
 * The C API of holdfast. Made from src/capi by cbindgen; do not edit.
 */

#ifndef HOLDFAST_H
#define HOLDFAST_H

#include <stddef.h>
#include <stdint.h>

struct ibv_context; /* <infiniband/verbs.h> */
struct ibv_qp;

/**
 * Nothing is known to be wrong with the device.
 */
#define HOLDFAST_ALIVE 0

/**
 * Nothing is asked of the device any more; what it completes is still believed. Posts are kept.
 */
#define HOLDFAST_DYING 1

/**
 * What is owed is flushed.
 */
#define HOLDFAST_GONE 2

/**
 * The device is alive.
 */
#define HOLDFAST_REASON_NONE 0

/**
 * The driver reported a fatal error (IBV_EVENT_DEVICE_FATAL while the device was still there).
 */
#define HOLDFAST_REASON_FATAL 1

/**
 * The kernel took the device away.
 */
#define HOLDFAST_REASON_REMOVED 2

/**
 * The kernel is taking the device away.
 */
#define HOLDFAST_REASON_REMOVING 3

/**
 * The device's node is gone.
 */
#define HOLDFAST_REASON_NODE_GONE 4

/**
 * holdfast_context_kill was called.
 */
#define HOLDFAST_REASON_KILLED 5

/**
 * Not yet.
 */
#define HOLDFAST_NEVER UINT64_MAX

/**
 * The device was told of it, and may have executed it, in part or as a whole.
 */
#define HOLDFAST_FATE_UNKNOWN 0

/**
 * A completion that says so waits to be polled.
 */
#define HOLDFAST_FATE_EXECUTED 1

/**
 * The device was never told of it.
 */
#define HOLDFAST_FATE_NOT_EXECUTED 2

/**
 * Where a context is on its way from alive to gone.
 */
struct holdfast_status {
  /**
   * HOLDFAST_ALIVE, HOLDFAST_DYING, HOLDFAST_GONE
   */
  uint32_t state;
  /**
   * HOLDFAST_REASON_...: the first sign of death
   */
  uint32_t reason;
  /**
   * nanoseconds since the first sign, or HOLDFAST_NEVER
   */
  uint64_t since_ns;
  /**
   * nanoseconds since the last store to the device was over, or HOLDFAST_NEVER
   */
  uint64_t closed_ns;
  /**
   * nanoseconds since what is owed is flushed, or HOLDFAST_NEVER
   */
  uint64_t gone_ns;
};

/**
 * A work request that has not completed.
 */
struct holdfast_wr {
  /**
   * as it was posted
   */
  uint64_t wr_id;
  /**
   * IBV_WC_...: what its completion will say
   */
  uint32_t opcode;
  /**
   * HOLDFAST_FATE_...
   */
  uint32_t fate;
};

#ifdef __cplusplus
extern "C" {
#endif // __cplusplus

/**
 * Holdfast's version, such as "0.1.0".
 *
 * @return  a string that lives as long as the process
 */
const char *holdfast_version(void);

/**
 * Which private ABI of libibverbs holdfast found in this process, for people to read: its number and the rdma-core
 * releases that have it, such as "34 (rdma-core 44)".
 *
 * @return  a string that lives as long as the process; NULL when no libibverbs is loaded, or one that holdfast does not
 *          serve (then `holdfast doctor` says why)
 */
const char *holdfast_abi_layout(void);

/**
 * The family of an open device, such as "rxe", if holdfast serves it.
 *
 * @param context  from ibv_open_device or ibv_import_device and not yet closed, or NULL
 * @return         a string that lives as long as the process; NULL when another provider serves the device, or for NULL
 */
const char *holdfast_context_family(const struct ibv_context *context);

/**
 * Where a context is on its way.
 *
 * @param context  from ibv_open_device and not yet closed
 * @param status   filled up to `size` bytes
 * @param size     sizeof(struct holdfast_status) as the program knows it: later versions may have more fields
 * @return         0; -EINVAL for NULL or a size of no version; -EOPNOTSUPP where another provider serves the device
 */
int holdfast_context_status(struct ibv_context *context,
                            struct holdfast_status *status,
                            uintptr_t size);

/**
 * A descriptor that becomes readable when the context's state changes (an eventfd: each change adds 1). It belongs to the
 * context, which closes it.
 *
 * @param context  from ibv_open_device and not yet closed
 * @return         the descriptor; -EINVAL for NULL, -EOPNOTSUPP where another provider serves the device, or what the
 *                 kernel said, such as -EMFILE
 */
int holdfast_context_change_fd(struct ibv_context *context);

/**
 * How long the context waits, after the driver reported a fatal error, for the kernel to take the device off the program's
 * memory, before what is owed is flushed all the same. Default: HOLDFAST_FLUSH_AFTER, 30 s.
 *
 * @param context       from ibv_open_device and not yet closed
 * @param milliseconds  0: not at all
 * @return              0; -EINVAL for NULL, -EOPNOTSUPP where another provider serves the device
 */
int holdfast_context_flush_after(struct ibv_context *context,
                                 uint32_t milliseconds);

/**
 * Lets a context die as if its device had, to leave a device on purpose: its queue pairs are destroyed in the kernel, and
 * then all that is owed is flushed. IBV_EVENT_DEVICE_FATAL is the kernel's alone: it does not come. There is no way back but
 * to open the device anew.
 *
 * @param context  from ibv_open_device and not yet closed
 * @return         0, also where it was dead already; -EINVAL for NULL, -EOPNOTSUPP where another provider serves the device
 */
int holdfast_context_kill(struct ibv_context *context);

/**
 * What a queue pair has outstanding: sends in posting order, then the receives of its own queue. Nobody posts or polls
 * meanwhile. What was polled, flushed too, is not outstanding any more.
 *
 * @param qp     of an open device
 * @param list   room for `room` entries, or NULL
 * @param room   how many are filled at most
 * @return       how many there are, which may be more than `room`; -EINVAL for NULL, -EOPNOTSUPP where another provider
 *               serves the device
 */
int holdfast_qp_outstanding(struct ibv_qp *qp,
                            struct holdfast_wr *list,
                            uintptr_t room);

#ifdef __cplusplus
}  // extern "C"
#endif  // __cplusplus

#endif  /* HOLDFAST_H */
