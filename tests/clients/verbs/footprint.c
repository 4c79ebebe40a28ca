/* SPDX-License-Identifier: MIT OR Apache-2.0
 *
 * verbs-footprint: what queues cost in memory of the process, kernel and device left out. Each figure is the growth of the
 * resident memory that belongs to the process alone, over many objects.
 */
#include "common.h"

#define MANY 400

static long long resident(void)
{
	FILE *f = fopen("/proc/self/status", "r");
	char *l = NULL;
	size_t size = 0;
	long long kb = -1;
	need(f, "open /proc/self/status");
	while (getline(&l, &size, f) > 0)
		sscanf(l, "RssAnon: %lld kB", &kb);
	free(l);
	fclose(f);
	need(kb > 0, "find RssAnon");
	return kb * 1024;
}

int main(int argc, char **argv)
{
	struct options o;
	struct dev d;
	static struct ibv_qp *qp[MANY];
	static struct ibv_cq *cq[MANY];
	parse_options(&o, argc, argv, "");
	dev_open(&d, o.device[0], o.gid_index);
	check_provider(&o);
	struct ibv_cq *common = ibv_create_cq(d.ctx, 16, NULL, NULL, 0);
	need(common, "create a CQ");
	/* The first ones bring what is there once. */
	for (int warm = 0; warm < 2; warm++) {
		int n = warm ? MANY : 8;
		long long before = resident();
		for (int i = 0; i < n; i++)
			need((cq[i] = ibv_create_cq(d.ctx, 1024, NULL, NULL, 0)) != NULL, "create a CQ");
		if (warm)
			printf("cq.1024 %lld bytes\n", (resident() - before) / n);
		before = resident();
		for (int i = 0; i < n; i++) {
			struct ibv_qp_init_attr a =
				qp_init(IBV_QPT_RC, common, common, (struct ibv_qp_cap){ 128, 128, 2, 2, 0 });
			need((qp[i] = ibv_create_qp(d.pd, &a)) != NULL, "create a QP");
		}
		if (warm)
			printf("rc_qp.128.128.2 %lld bytes\n", (resident() - before) / n);
		for (int i = 0; i < n; i++)
			need(!ibv_destroy_qp(qp[i]) && !ibv_destroy_cq(cq[i]), "destroy");
	}
	need(!ibv_destroy_cq(common), "destroy a CQ");
	dev_close(&d);
	return 0;
}
