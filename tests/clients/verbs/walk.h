/* SPDX-License-Identifier: MIT OR Apache-2.0 */
#ifndef HOLDFAST_CLIENTS_WALK_H
#define HOLDFAST_CLIENTS_WALK_H

#include "common.h"

/* Where a group runs: both ends on one device, or each on its own. */
struct topo {
	const char *name; /* "loop" or "wire" */
	struct dev *a, *b;
};

struct group {
	const char *name;
	const char *what;
	void (*run)(struct topo *t);
	bool once; /* does not talk to a peer: run on one topology only */
	bool named; /* only when asked for by name: it disturbs the devices */
};

void walk_device(struct topo *t);
void walk_rc(struct topo *t);
void walk_uc(struct topo *t);
void walk_ud(struct topo *t);
void walk_errors(struct topo *t);
void walk_states(struct topo *t);
void walk_builders(struct topo *t);
void walk_cq(struct topo *t);
void walk_cqx(struct topo *t);
void walk_events(struct topo *t);
void walk_srq(struct topo *t);
void walk_mr(struct topo *t);
void walk_mw(struct topo *t);
void walk_ah(struct topo *t);
void walk_mcast(struct topo *t);
void walk_async(struct topo *t);
void walk_port(struct topo *t);
void walk_bad_post(struct topo *t);
void walk_bad_create(struct topo *t);
void walk_busy(struct topo *t);
void walk_hazard(struct topo *t);
void walk_dm(struct topo *t);
void walk_import(struct topo *t);
void walk_wqes(struct topo *t);
void walk_registers(struct topo *t);

#endif
