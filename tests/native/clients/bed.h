// What the clients of the native bed share.
#include "../include/holdfast_sim.h"
#include <errno.h>
#include <infiniband/verbs.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define CHECK(what) \
	do { \
		if (!(what)) { \
			fprintf(stderr, "%s:%d: not so: %s (errno %d, %s)\n", __FILE__, __LINE__, #what, errno, strerror(errno)); \
			exit(1); \
		} \
	} while (0)

// Runs a command of the bed.
static inline void control(const char *command)
{
	char answer[256];
	if (holdfast_sim_control(command, answer, sizeof answer)) {
		fprintf(stderr, "'%s' is refused: %s\n", command, answer);
		exit(1);
	}
}

static inline struct ibv_context *open_device(const char *name)
{
	int count, err = ENODEV;
	struct ibv_device **list = ibv_get_device_list(&count);
	struct ibv_context *context = NULL;
	for (int i = 0; list && i < count; i++)
		if (!strcmp(ibv_get_device_name(list[i]), name) && !(context = ibv_open_device(list[i])))
			err = errno;
	if (list)
		ibv_free_device_list(list);
	errno = context ? 0 : err;
	return context;
}

// A reliable connection of a queue pair with another of the same device.
static inline bool try_to_connect(struct ibv_qp *qp, uint32_t peer, uint16_t lid)
{
	struct ibv_qp_attr attr = { .qp_state = IBV_QPS_INIT, .port_num = 1,
				    .qp_access_flags = IBV_ACCESS_REMOTE_WRITE | IBV_ACCESS_REMOTE_READ | IBV_ACCESS_REMOTE_ATOMIC };
	if (ibv_modify_qp(qp, &attr, IBV_QP_STATE | IBV_QP_PKEY_INDEX | IBV_QP_PORT | IBV_QP_ACCESS_FLAGS))
		return false;
	attr = (struct ibv_qp_attr){ .qp_state = IBV_QPS_RTR, .path_mtu = IBV_MTU_1024, .dest_qp_num = peer, .max_dest_rd_atomic = 1,
				     .min_rnr_timer = 1, .ah_attr = { .dlid = lid, .port_num = 1 } };
	if (ibv_modify_qp(qp, &attr, IBV_QP_STATE | IBV_QP_AV | IBV_QP_PATH_MTU | IBV_QP_DEST_QPN | IBV_QP_RQ_PSN |
					     IBV_QP_MAX_DEST_RD_ATOMIC | IBV_QP_MIN_RNR_TIMER))
		return false;
	attr = (struct ibv_qp_attr){ .qp_state = IBV_QPS_RTS, .max_rd_atomic = 1, .timeout = 14, .retry_cnt = 7, .rnr_retry = 7 };
	return !ibv_modify_qp(qp, &attr, IBV_QP_STATE | IBV_QP_TIMEOUT | IBV_QP_RETRY_CNT | IBV_QP_RNR_RETRY | IBV_QP_SQ_PSN |
						 IBV_QP_MAX_QP_RD_ATOMIC);
}

static inline void connect_to(struct ibv_qp *qp, uint32_t peer, uint16_t lid)
{
	CHECK(try_to_connect(qp, peer, lid));
}
