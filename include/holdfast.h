/* SPDX-License-Identifier: MIT OR Apache-2.0
 * The C API of holdfast. Made from src/capi by cbindgen; do not edit.
 */

#ifndef HOLDFAST_H
#define HOLDFAST_H


struct ibv_context; /* <infiniband/verbs.h> */

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

#ifdef __cplusplus
}  // extern "C"
#endif  // __cplusplus

#endif  /* HOLDFAST_H */
