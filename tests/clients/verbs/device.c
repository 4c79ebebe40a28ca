/* SPDX-License-Identifier: MIT OR Apache-2.0
 *
 * Queries of the device, its port and its tables; verbs that soft-RoCE does not have, each with its refusal.
 */
#include "walk.h"

#include <fcntl.h>
#include <limits.h>
#include <unistd.h>

#define SAY_U(name, v) say(name, "%llu", (unsigned long long)(v))

static void hex(char *text, const void *p, size_t n)
{
	for (size_t i = 0; i < n; i++)
		sprintf(text + 2 * i, "%02x", ((const uint8_t *)p)[i]);
}

static void attributes(struct topo *t)
{
	struct ibv_device_attr a;
	memset(&a, 0xa5, sizeof(a));
	if (!want_errno("query_device", ibv_query_device(t->a->ctx, &a), 0))
		return;
#define F(f) SAY_U("device." #f, a.f)
	say("device.fw_ver", "%.64s", a.fw_ver);
	say("device.node_guid", "%016llx", (unsigned long long)be64toh(a.node_guid));
	say("device.sys_image_guid", "%016llx", (unsigned long long)be64toh(a.sys_image_guid));
	F(max_mr_size); F(page_size_cap); F(vendor_id); F(vendor_part_id); F(hw_ver); F(max_qp); F(max_qp_wr);
	F(device_cap_flags); F(max_sge); F(max_sge_rd); F(max_cq); F(max_cqe); F(max_mr); F(max_pd);
	F(max_qp_rd_atom); F(max_ee_rd_atom); F(max_res_rd_atom); F(max_qp_init_rd_atom); F(max_ee_init_rd_atom);
	F(atomic_cap); F(max_ee); F(max_rdd); F(max_mw); F(max_raw_ipv6_qp); F(max_raw_ethy_qp); F(max_mcast_grp);
	F(max_mcast_qp_attach); F(max_total_mcast_qp_attach); F(max_ah); F(max_fmr); F(max_map_per_fmr); F(max_srq);
	F(max_srq_wr); F(max_srq_sge); F(max_pkeys); F(local_ca_ack_delay); F(phys_port_cnt);
#undef F
	struct ibv_device_attr_ex x;
	memset(&x, 0xa5, sizeof(x));
	if (!want_errno("query_device_ex", ibv_query_device_ex(t->a->ctx, NULL, &x), 0))
		return;
#define F(f) SAY_U("device_ex." #f, x.f)
	check("device_ex.same", !memcmp(&x.orig_attr.max_mr_size, &a.max_mr_size, sizeof(a.max_mr_size)) &&
					x.orig_attr.max_qp_wr == a.max_qp_wr && x.orig_attr.max_cqe == a.max_cqe &&
					!strcmp(x.orig_attr.fw_ver, a.fw_ver));
	F(comp_mask); F(odp_caps.general_caps); F(odp_caps.per_transport_caps.rc_odp_caps);
	F(odp_caps.per_transport_caps.uc_odp_caps); F(odp_caps.per_transport_caps.ud_odp_caps);
	F(completion_timestamp_mask); F(hca_core_clock); F(device_cap_flags_ex); F(tso_caps.max_tso);
	F(tso_caps.supported_qpts); F(rss_caps.supported_qpts); F(rss_caps.max_rwq_indirection_tables);
	F(rss_caps.max_rwq_indirection_table_size); F(rss_caps.rx_hash_fields_mask); F(rss_caps.rx_hash_function);
	F(max_wq_type_rq); F(packet_pacing_caps.qp_rate_limit_min); F(packet_pacing_caps.qp_rate_limit_max);
	F(packet_pacing_caps.supported_qpts); F(raw_packet_caps); F(tm_caps.max_rndv_hdr_size); F(tm_caps.max_num_tags);
	F(tm_caps.flags); F(tm_caps.max_ops); F(tm_caps.max_sge); F(cq_mod_caps.max_cq_count);
	F(cq_mod_caps.max_cq_period); F(max_dm_size); F(pci_atomic_caps.fetch_add); F(pci_atomic_caps.swap);
	F(pci_atomic_caps.compare_swap); F(xrc_odp_caps);
#if HAVE_REG_DMABUF
	F(phys_port_cnt_ex);
#endif
#undef F
	struct ibv_query_device_ex_input in = { .comp_mask = 1 };
	say("query_device_ex.input_mask", "%s", errname(ibv_query_device_ex(t->a->ctx, &in, &x)));
	in.comp_mask = 0;
	want_errno("query_device_ex.input", ibv_query_device_ex(t->a->ctx, &in, &x), 0);
	struct ibv_values_ex v = { .comp_mask = IBV_VALUES_MASK_RAW_CLOCK };
	say("query_rt_values_ex", "%s", errname(ibv_query_rt_values_ex(t->a->ctx, &v)));
}

static void port(struct topo *t)
{
	struct ibv_port_attr p;
	memset(&p, 0xa5, sizeof(p));
	if (!want_errno("query_port", ibv_query_port(t->a->ctx, 1, &p), 0))
		return;
#define F(f) SAY_U("port." #f, p.f)
	F(state); F(max_mtu); F(active_mtu); F(gid_tbl_len); F(port_cap_flags); F(max_msg_sz);
	/* Not bad_pkey_cntr and qkey_viol_cntr: they count what earlier runs did. */
	F(pkey_tbl_len); F(lid); F(sm_lid); F(lmc); F(max_vl_num); F(sm_sl); F(subnet_timeout);
	F(init_type_reply); F(active_width); F(active_speed); F(phys_state); F(link_layer); F(flags);
	F(port_cap_flags2);
#if HAVE_FLUSH
	F(active_speed_ex);
#endif
#undef F
	say("query_port.0", "%s", errname(ibv_query_port(t->a->ctx, 0, &p)));
	say("query_port.2", "%s", errname(ibv_query_port(t->a->ctx, 2, &p)));
	say("query_port.255", "%s", errname(ibv_query_port(t->a->ctx, 255, &p)));
#if HAVE_PORT_SPEED
	uint64_t speed = 0;
	int err = ibv_query_port_speed(t->a->ctx, 1, &speed);
	say("query_port_speed", "%s %llu", errname(err), (unsigned long long)speed);
#endif

	char text[64];
	for (int i = 0; i < 4; i++) {
		union ibv_gid g;
		char name[32];
		snprintf(name, sizeof(name), "gid.%d", i);
		int r = ibv_query_gid(t->a->ctx, 1, i, &g);
		hex(text, g.raw, 16);
		say(name, "%s", r ? "refused" : text);
		struct ibv_gid_entry e;
		memset(&e, 0, sizeof(e));
		snprintf(name, sizeof(name), "gid_ex.%d", i);
		r = ibv_query_gid_ex(t->a->ctx, 1, (uint32_t)i, &e, 0);
		hex(text, e.gid.raw, 16);
		if (r)
			say(name, "%s", errname(r));
		else
			say(name, "%s index %u port %u type %u, a netdev: %d", text, e.gid_index, e.port_num, e.gid_type,
			    e.ndev_ifindex != 0);
	}
	union ibv_gid g;
	struct ibv_gid_entry e[8];
	say("gid.port_2", "%s", ibv_query_gid(t->a->ctx, 2, 0, &g) ? "refused" : "answered");
	say("gid.100000", "%s", ibv_query_gid(t->a->ctx, 1, 100000, &g) ? "refused" : "answered");
	say("gid_ex.flags", "%s", errname(ibv_query_gid_ex(t->a->ctx, 1, 0, e, 1)));
	say("gid_table", "%d", (int)ibv_query_gid_table(t->a->ctx, e, ARRAY_SIZE(e), 0));
	say("gid_table.0", "%d", (int)ibv_query_gid_table(t->a->ctx, e, 0, 0));
	__be16 key = 0;
	int r = ibv_query_pkey(t->a->ctx, 1, 0, &key);
	say("pkey.0", "%d %#x", r, be16toh(key));
	say("pkey.1000", "%s", ibv_query_pkey(t->a->ctx, 1, 1000, &key) ? "refused" : "answered");
	say("pkey_index", "%d", ibv_get_pkey_index(t->a->ctx, 1, htobe16(0xffff)));
	say("pkey_index.unknown", "%d", ibv_get_pkey_index(t->a->ctx, 1, htobe16(0x1234)));
}

static void context(struct topo *t)
{
	say("num_comp_vectors", "%d", t->a->ctx->num_comp_vectors);
	check("async_fd", t->a->ctx->async_fd >= 0 && fcntl(t->a->ctx->async_fd, F_GETFD) >= 0);
	check("cmd_fd", t->a->ctx->cmd_fd >= 0 && fcntl(t->a->ctx->cmd_fd, F_GETFD) >= 0);
	say("name", "%s", ibv_get_device_name(t->a->ctx->device));
	say("guid", "%016llx", (unsigned long long)be64toh(ibv_get_device_guid(t->a->ctx->device)));
	say("node_type", "%s", ibv_node_type_str(t->a->ctx->device->node_type));
	say("transport", "%d", (int)t->a->ctx->device->transport_type);
	check("index", ibv_get_device_index(t->a->ctx->device) >= 0);
	struct ibv_pd *pd = ibv_alloc_pd(t->a->ctx);
	check("alloc_pd", pd != NULL);
	if (pd) {
		check("pd.context", pd->context == t->a->ctx);
		want_errno("dealloc_pd", ibv_dealloc_pd(pd), 0);
	}
	check("open_unknown", !open_device("no-such-device") && errno == ENODEV);
}

/* What soft-RoCE has not: the refusals are the library's or the provider's, and must be the same. */
static void absent(struct topo *t)
{
	struct ibv_context *ctx = t->a->ctx;
	struct ibv_cq *cq = ibv_create_cq(ctx, 16, NULL, NULL, 0);
	need(cq, "create a CQ");
	struct ibv_qp_init_attr qa = qp_init(IBV_QPT_UD, cq, cq, (struct ibv_qp_cap){ 4, 4, 1, 1, 0 });
	struct ibv_qp *qp = ibv_create_qp(t->a->pd, &qa);
	need(qp, "create a QP");
#define ABSENT(name, expr) say("absent." name, "%s", errname(ERR_OF_PTR(expr)))
	struct ibv_td_init_attr td = { 0 };
	ABSENT("td", ibv_alloc_td(ctx, &td));
	struct ibv_parent_domain_init_attr pda = { .pd = t->a->pd };
	ABSENT("parent_domain", ibv_alloc_parent_domain(ctx, &pda));
	struct ibv_alloc_dm_attr dm = { .length = 4096 };
	ABSENT("dm", ibv_alloc_dm(ctx, &dm));
	ABSENT("null_mr", ibv_alloc_null_mr(t->a->pd));
	struct ibv_wq_init_attr wa = { .wq_type = IBV_WQT_RQ, .max_wr = 16, .max_sge = 1, .pd = t->a->pd, .cq = cq };
	ABSENT("wq", ibv_create_wq(ctx, &wa));
	struct ibv_wq *none = NULL;
	struct ibv_rwq_ind_table_init_attr ra = { .log_ind_tbl_size = 0, .ind_tbl = &none };
	ABSENT("rwq_ind_table", ibv_create_rwq_ind_table(ctx, &ra));
	struct {
		struct ibv_flow_attr a;
		struct ibv_flow_spec_eth eth;
	} flow = { .a = { .type = IBV_FLOW_ATTR_NORMAL, .size = sizeof(flow), .num_of_specs = 1, .port = 1 },
		   .eth = { .type = IBV_FLOW_SPEC_ETH, .size = sizeof(struct ibv_flow_spec_eth) } };
	ABSENT("flow", ibv_create_flow(qp, &flow.a));
	struct ibv_counters_init_attr ca = { 0 };
	ABSENT("counters", ibv_create_counters(ctx, &ca));
	struct ibv_flow_action_esp_attr esp = { 0 };
	ABSENT("flow_action_esp", ibv_create_flow_action_esp(ctx, &esp));
	struct ibv_qp_open_attr oa = { .comp_mask = IBV_QP_OPEN_ATTR_NUM | IBV_QP_OPEN_ATTR_XRCD | IBV_QP_OPEN_ATTR_TYPE,
				       .qp_type = IBV_QPT_XRC_RECV, .qp_num = 1 };
	ABSENT("open_qp", ibv_open_qp(ctx, &oa));
	struct ibv_modify_cq_attr mc = { .attr_mask = IBV_CQ_ATTR_MODERATE, .moderate = { 1, 1 } };
	say("absent.modify_cq", "%s", errname(ibv_modify_cq(cq, &mc)));
	struct ibv_qp_rate_limit_attr rl = { .rate_limit = 1 };
	say("absent.rate_limit", "%s", errname(ibv_modify_qp_rate_limit(qp, &rl)));
	struct ibv_ece ece = { .vendor_id = 1 };
	say("absent.set_ece", "%s", errname(ibv_set_ece(qp, &ece)));
	say("absent.query_ece", "%s", errname(ibv_query_ece(qp, &ece)));
#if HAVE_DATA_IN_ORDER
	say("absent.data_in_order", "%d", ibv_query_qp_data_in_order(qp, IBV_WR_RDMA_WRITE, 0));
#endif
#if HAVE_DMAH
	struct ibv_dmah_init_attr da = { 0 };
	ABSENT("dmah", ibv_alloc_dmah(ctx, &da));
#endif
#if HAVE_COMP_CNTR
	struct ibv_comp_cntr_caps caps;
	say("absent.comp_cntr_caps", "%s", errname(ibv_query_comp_cntr_caps(ctx, &caps)));
	struct ibv_comp_cntr_init_attr cca = { 0 };
	ABSENT("comp_cntr", ibv_create_comp_cntr(ctx, &cca));
#endif
#if HAVE_ALLOC_BUF
	struct ibv_buf *buf = NULL;
	void *p = ibv_alloc_buf(t->a->pd, 8192, &buf);
	say("alloc_buf", "%s", p ? "allocated" : errname(errno));
	if (p) {
		struct ibv_mr *mr = ibv_reg_buf_mr(t->a->pd, buf, p, 8192, IBV_ACCESS_LOCAL_WRITE);
		say("reg_buf_mr", "%s", mr ? "registered" : errname(errno));
		if (mr)
			want_errno("reg_buf_mr.dereg", ibv_dereg_mr(mr), 0);
		ibv_free_buf(buf);
	}
#endif
#undef ABSENT
	need(!ibv_destroy_qp(qp) && !ibv_destroy_cq(cq), "destroy");
}

static void imports(struct topo *t)
{
	errno = 0;
	struct ibv_context *c = ibv_import_device(-1);
	say("import_device.minus_1", "%s", c ? "imported" : errname(errno));
	int fd = open("/dev/null", O_RDWR);
	errno = 0;
	c = ibv_import_device(fd);
	say("import_device.null", "%s", c ? "imported" : errname(errno));
	close(fd);
	fd = dup(t->a->ctx->cmd_fd);
	errno = 0;
	c = ibv_import_device(fd);
	say("import_device.dup", "%s", c ? "imported" : errname(errno));
	if (c) {
		struct ibv_device_attr a;
		want_errno("import_device.query", ibv_query_device(c, &a), 0);
		errno = 0;
		struct ibv_pd *pd = ibv_import_pd(c, t->a->pd->handle);
		say("import_pd", "%s", pd ? "imported" : errname(errno));
		if (pd)
			ibv_unimport_pd(pd);
		want_int("import_device.close", ibv_close_device(c), 0);
	} else {
		close(fd);
	}
	errno = 0;
	struct ibv_pd *pd = ibv_import_pd(t->a->ctx, t->a->pd->handle);
	say("import_pd.same_context", "%s", pd ? "imported" : errname(errno));
	if (pd)
		ibv_unimport_pd(pd);
	errno = 0;
	struct ibv_mr *mr = ibv_import_mr(t->a->pd, 0);
	say("import_mr.same_context", "%s", mr ? "imported" : errname(errno));
#if HAVE_IMPORT_DM
	errno = 0;
	struct ibv_dm *dm = ibv_import_dm(t->a->ctx, 0);
	say("import_dm.same_context", "%s", dm ? "imported" : errname(errno));
#endif
}

/* What needs an Ethernet port, or is of little use without, and what else a ConnectX has. */
static void more(struct topo *t)
{
	struct ibv_context *ctx = t->a->ctx;
	struct ibv_cq *cq = ibv_create_cq(ctx, 16, NULL, NULL, 0);
	need(cq, "create a CQ");
	struct ibv_qp_init_attr qa = qp_init(IBV_QPT_UD, cq, cq, (struct ibv_qp_cap){ 4, 4, 1, 1, 0 });
	struct ibv_qp *qp = ibv_create_qp(t->a->pd, &qa), *raw;
	need(qp, "create a QP");
#define TRY(name, object, expr, gone)                                                                                  \
	do {                                                                                                           \
		errno = 0;                                                                                             \
		object = expr;                                                                                         \
		say(name, "%s", object ? "created" : errname(errno));                                                  \
		if (object)                                                                                            \
			want_errno(name ".destroy", gone(object), 0);                                                  \
	} while (0)
	struct ibv_mr *mr;
	TRY("null_mr", mr, ibv_alloc_null_mr(t->a->pd), ibv_dereg_mr);
	struct ibv_wq_init_attr wa = { .wq_type = IBV_WQT_RQ, .max_wr = 16, .max_sge = 1, .pd = t->a->pd, .cq = cq };
	struct ibv_wq *wq;
	TRY("wq", wq, ibv_create_wq(ctx, &wa), ibv_destroy_wq);
	struct {
		struct ibv_flow_attr a;
		struct ibv_flow_spec_eth eth;
	} flow = { .a = { .type = IBV_FLOW_ATTR_NORMAL, .size = sizeof(flow), .num_of_specs = 1, .port = 1 },
		   .eth = { .type = IBV_FLOW_SPEC_ETH, .size = sizeof(struct ibv_flow_spec_eth) } };
	struct ibv_flow *rule;
	TRY("flow", rule, ibv_create_flow(qp, &flow.a), ibv_destroy_flow);
	struct ibv_counters_init_attr ca = { 0 };
	struct ibv_counters *counters;
	TRY("counters", counters, ibv_create_counters(ctx, &ca), ibv_destroy_counters);
	qa.qp_type = IBV_QPT_RAW_PACKET;
	TRY("raw_packet", raw, ibv_create_qp(t->a->pd, &qa), ibv_destroy_qp);
	struct ibv_qp_rate_limit_attr rl = { .rate_limit = 1 };
	say("rate_limit", "%s", errname(ibv_modify_qp_rate_limit(qp, &rl)));
	struct ibv_modify_cq_attr mc = { .attr_mask = IBV_CQ_ATTR_MODERATE, .moderate = { 8, 16 } };
	want_errno("modify_cq", ibv_modify_cq(cq, &mc), 0);
	mc.attr_mask = 2;
	say("modify_cq.unknown", "%s", errname(ibv_modify_cq(cq, &mc)));
	struct ibv_ece ece = { .vendor_id = 1 };
	say("set_ece.other_vendor", "%s", errname(ibv_set_ece(qp, &ece)));
	int err = ibv_query_ece(qp, &ece);
	say("query_ece", "%s %#x %#x", errname(err), ece.vendor_id, ece.options);
	say("set_ece", "%s", errname(ibv_set_ece(qp, &ece)));
#if HAVE_DATA_IN_ORDER
	say("data_in_order", "%d", ibv_query_qp_data_in_order(qp, IBV_WR_RDMA_WRITE, 0));
#endif
	struct ibv_td_init_attr ta = { 0 };
	struct ibv_td *td = ibv_alloc_td(ctx, &ta);
	need(td, "allocate a thread domain");
	struct ibv_parent_domain_init_attr pa = { .pd = t->a->pd, .td = td };
	struct ibv_pd *domain = ibv_alloc_parent_domain(ctx, &pa), *none;
	need(domain, "allocate a parent domain");
	want_errno("td.busy", ibv_dealloc_td(td), EBUSY);
	pa.comp_mask = 1u << 30;
	TRY("parent_domain.comp_mask", none, ibv_alloc_parent_domain(ctx, &pa), ibv_dealloc_pd);
	pa.comp_mask = 0;
	pa.pd = NULL;
	TRY("parent_domain.no_pd", none, ibv_alloc_parent_domain(ctx, &pa), ibv_dealloc_pd);
	struct ibv_pd *plain = ibv_alloc_pd(ctx);
	need(plain, "allocate a PD");
	pa.pd = plain;
	pa.td = NULL;
	struct ibv_pd *without = ibv_alloc_parent_domain(ctx, &pa);
	check("parent_domain.no_td", without != NULL);
	want_errno("pd.busy", ibv_dealloc_pd(plain), EBUSY);
	if (without)
		want_errno("parent_domain.dealloc", ibv_dealloc_pd(without), 0);
	want_errno("pd.dealloc", ibv_dealloc_pd(plain), 0);
	qa.qp_type = IBV_QPT_RC;
	raw = ibv_create_qp(domain, &qa);
	check("domain.qp", raw != NULL);
	say("domain.busy", "%s", errname(ibv_dealloc_pd(domain)));
	if (raw)
		want_errno("domain.qp.destroy", ibv_destroy_qp(raw), 0);
	want_errno("domain.dealloc", ibv_dealloc_pd(domain), 0);
	want_errno("td.dealloc", ibv_dealloc_td(td), 0);
#undef TRY
	need(!ibv_destroy_qp(qp) && !ibv_destroy_cq(cq), "destroy");
}

void walk_device(struct topo *t)
{
	context(t);
	attributes(t);
	port(t);
	if (soft_roce()) {
		absent(t);
		imports(t);
	} else {
		more(t);
	}
}
