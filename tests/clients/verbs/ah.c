/* SPDX-License-Identifier: MIT OR Apache-2.0
 *
 * Address handles of every kind of GID, datagrams with their GRH, and multicast groups.
 */
#include "walk.h"

#include <arpa/inet.h>
#include <net/if.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

static void created(struct topo *t)
{
	static const struct {
		const char *name;
		uint8_t global, port, sgid_index;
		int dgid; /* index of a GID of the peer, or -1 zero, -2 multicast, -3 nobody's */
	} c[] = {
		{ "link_local", 1, 1, 0, 0 }, { "ipv4", 1, 1, 1, 1 },	 { "ipv6", 1, 1, 2, 2 },
		{ "no_grh", 0, 1, 1, 1 },     { "port_0", 1, 0, 1, 1 },	 { "port_9", 1, 9, 1, 1 },
		{ "sgid_99", 1, 1, 99, 1 },   { "sgid_255", 1, 1, 255, 1 }, { "dgid_zero", 1, 1, 1, -1 },
		{ "multicast", 1, 1, 0, -2 }, { "nobody", 1, 1, 1, -3 },
	};
	for (size_t i = 0; i < ARRAY_SIZE(c); i++) {
		char name[64];
		struct ibv_ah_attr a = { .is_global = c[i].global, .port_num = c[i].port,
					 .grh = { .sgid_index = c[i].sgid_index, .hop_limit = 5, .traffic_class = 8 } };
		if (c[i].dgid >= 0)
			need(!ibv_query_gid(t->b->ctx, 1, c[i].dgid, &a.grh.dgid), "query a GID");
		else if (c[i].dgid == -2)
			inet_pton(AF_INET6, "ff02::1:5", a.grh.dgid.raw);
		else if (c[i].dgid == -3)
			inet_pton(AF_INET6, "::ffff:10.0.0.77", a.grh.dgid.raw);
		errno = 0;
		struct ibv_ah *ah = ibv_create_ah(t->a->pd, &a);
		snprintf(name, sizeof(name), "create.%s", c[i].name);
		/* Who has no entry in the neighbour table is asked for on the wire: how that ends is not ours. */
		if (c[i].dgid == -3) {
			say(name, "%s", ah || errno ? "answered" : "no errno");
		} else {
			say(name, "%s", ah ? "0" : errname(errno));
		}
		if (!ah)
			continue;
		snprintf(name, sizeof(name), "create.%s.members", c[i].name);
		check(name, ah->pd == t->a->pd && ah->context == t->a->ctx);
		snprintf(name, sizeof(name), "create.%s.destroy", c[i].name);
		want_errno(name, ibv_destroy_ah(ah), 0);
	}
	/* Many at once. */
	struct ibv_ah *ah[64];
	struct ibv_ah_attr a = { .is_global = 1, .port_num = 1, .grh = { .sgid_index = 1, .hop_limit = 5 } };
	need(!ibv_query_gid(t->b->ctx, 1, 1, &a.grh.dgid), "query a GID");
	bool ok = true;
	for (size_t i = 0; i < ARRAY_SIZE(ah); i++)
		ok = (ah[i] = ibv_create_ah(t->a->pd, &a)) && ok;
	for (size_t i = 0; i < ARRAY_SIZE(ah); i++)
		ok = ah[i] && !ibv_destroy_ah(ah[i]) && ok;
	check("many", ok);
}

/* A datagram over each GID, and an answer by the address handle made of its completion. InfiniBand ports here have one. */
static void answered(struct topo *t)
{
	for (int g = 0; g < (soft_roce() ? 3 : 1); g++) {
		char name[64];
		struct dev a = *t->a, b = *t->b;
		struct pair p;
		struct spec spec = { .type = IBV_QPT_UD };
		a.gid_index = b.gid_index = g;
		need(!ibv_query_gid(a.ctx, 1, g, &a.gid) && !ibv_query_gid(b.ctx, 1, g, &b.gid), "query the GIDs");
		snprintf(name, sizeof(name), "gid%d.open", g);
		int err = pair_open(&p, &a, &b, &spec);
		say(name, "%s", errname(err));
		if (err)
			continue;
		need(!recv_one(&p.b, 1, 0, 256), "post a receive");
		struct ibv_sge sg = sge(&p.a, 0, 100);
		fill(p.a.buf, 100, 6);
		memset(p.b.buf, 0xee, 40);
		struct ibv_send_wr w = wr(IBV_WR_SEND, 2, &sg);
		wr_ud(&w, &p.a, &p.b);
		need(!send_wr(&p.a, &w), "send");
		struct ibv_wc wc;
		snprintf(name, sizeof(name), "gid%d.sent", g);
		want_wc(name, p.a.scq, 2, IBV_WC_SUCCESS);
		snprintf(name, sizeof(name), "gid%d.received", g);
		if (g == 2 && t->a != t->b) {
			/* Two routable IPv6 addresses of one host: its routes go by the loopback device, not by the wire. */
			say(name, "%s", ibv_poll_cq(p.b.rcq, 1, &wc) == 1 ? "yes" : "not there");
			pair_close(&p);
			continue;
		}
		wc = want_wc(name, p.b.rcq, 1, IBV_WC_SUCCESS);
		if (wc.status) {
			pair_close(&p);
			continue;
		}
		snprintf(name, sizeof(name), "gid%d.data", g);
		check(name, wc.byte_len == 140 && (wc.wc_flags & IBV_WC_GRH) && same(p.b.buf + 40, 100, 6));
		/* IPv4: the header is in the last 20 bytes; IPv6: in all 40. Version, addresses. */
		snprintf(name, sizeof(name), "gid%d.header", g);
		if (g == 1)
			check(name, p.b.buf[20] == 0x45 && !memcmp(p.b.buf + 32, a.gid.raw + 12, 4) &&
					    !memcmp(p.b.buf + 36, b.gid.raw + 12, 4));
		else
			check(name, p.b.buf[0] >> 4 == 6 && !memcmp(p.b.buf + 8, a.gid.raw, 16) &&
					    !memcmp(p.b.buf + 24, b.gid.raw, 16));
		struct ibv_ah_attr attr;
		memset(&attr, 0, sizeof(attr));
		snprintf(name, sizeof(name), "gid%d.init_ah_from_wc", g);
		errno = 0;
		say(name, "%d", ibv_init_ah_from_wc(b.ctx, 1, &wc, (struct ibv_grh *)p.b.buf, &attr));
		snprintf(name, sizeof(name), "gid%d.init_ah_from_wc.attr", g);
		say(name, "global %u port %u index %u to the sender %d", attr.is_global, attr.port_num,
		    attr.grh.sgid_index, !memcmp(attr.grh.dgid.raw, a.gid.raw, 16));
		errno = 0;
		struct ibv_ah *ah = ibv_create_ah_from_wc(b.pd, &wc, (struct ibv_grh *)p.b.buf, 1);
		snprintf(name, sizeof(name), "gid%d.create_ah_from_wc", g);
		say(name, "%s", ah ? "0" : errname(errno));
		if (ah) {
			need(!recv_one(&p.a, 3, 0, 256), "post a receive");
			sg = sge(&p.b, 40, 100);
			w = wr(IBV_WR_SEND, 4, &sg);
			w.wr.ud.ah = ah;
			w.wr.ud.remote_qpn = wc.src_qp;
			w.wr.ud.remote_qkey = QKEY;
			need(!send_wr(&p.b, &w), "send");
			snprintf(name, sizeof(name), "gid%d.answer.sent", g);
			want_wc(name, p.b.scq, 4, IBV_WC_SUCCESS);
			snprintf(name, sizeof(name), "gid%d.answer.received", g);
			want_wc(name, p.a.rcq, 3, IBV_WC_SUCCESS);
			need(!ibv_destroy_ah(ah), "destroy the address handle");
		}
		pair_close(&p);
	}
}

void walk_ah(struct topo *t)
{
	created(t);
	answered(t);
}

static int join(struct dev *d, union ibv_gid *group)
{
	char path[128], ifname[IF_NAMESIZE + 1] = "";
	/* InfiniBand has its own groups, and what is attached is in. */
	if (d->port.link_layer == IBV_LINK_LAYER_INFINIBAND)
		return -1;
	snprintf(path, sizeof(path), "/sys/class/infiniband/%s/ports/1/gid_attrs/ndevs/0", d->name);
	FILE *f = fopen(path, "r");
	need(f && fscanf(f, "%16s", ifname) == 1, "find the network device");
	fclose(f);
	struct ipv6_mreq m = { .ipv6mr_interface = if_nametoindex(ifname) };
	memcpy(&m.ipv6mr_multiaddr, group->raw, 16);
	int s = socket(AF_INET6, SOCK_DGRAM, 0);
	need(s >= 0 && !setsockopt(s, IPPROTO_IPV6, IPV6_JOIN_GROUP, &m, sizeof(m)), "join the group");
	return s;
}

void walk_mcast(struct topo *t)
{
	struct pair p;
	struct spec spec = { .type = IBV_QPT_UD };
	union ibv_gid group, group4;
	inet_pton(AF_INET6, "ff02::1:7", group.raw);
	inet_pton(AF_INET6, "::ffff:239.1.2.3", group4.raw);
	struct dev a = *t->a, b = *t->b;
	a.gid_index = b.gid_index = 0;
	need(!ibv_query_gid(a.ctx, 1, 0, &a.gid) && !ibv_query_gid(b.ctx, 1, 0, &b.gid), "query the GIDs");
	need(!pair_open(&p, &a, &b, &spec), "connect");

	want_errno("detach.not_attached", ibv_detach_mcast(p.b.qp, &group, 0) ? EINVAL : 0, EINVAL);
	int err = ibv_attach_mcast(p.b.qp, &group, 0);
	say("attach", "%s", errname(err));
	say("attach.twice", "%s", errname(ibv_attach_mcast(p.b.qp, &group, 0)));
	say("attach.ipv4", "%s", errname(ibv_attach_mcast(p.b.qp, &group4, 0)));
	say("attach.unicast", "%s", errname(ibv_attach_mcast(p.b.qp, &b.gid, 0)));
	/* Not the same group with another LID: rxe detaches both at once, and the QP can never be destroyed then. */

	/* The kernel takes in only what somebody on the host has joined. */
	int member = join(t->b, &group);
	struct ibv_ah_attr attr = { .is_global = 1, .port_num = 1, .grh = { .dgid = group, .sgid_index = 0, .hop_limit = 1 } };
	if (member < 0)
		attr.dlid = 0xc001;
	errno = 0;
	struct ibv_ah *ah = ibv_create_ah(a.pd, &attr);
	say("ah", "%s", ah ? "0" : errname(errno));
	if (!err && ah) {
		need(!recv_one(&p.b, 1, 0, 256), "post a receive");
		fill(p.a.buf, 64, 8);
		struct ibv_sge sg = sge(&p.a, 0, 64);
		struct ibv_send_wr w = wr(IBV_WR_SEND, 2, &sg);
		w.wr.ud.ah = ah;
		w.wr.ud.remote_qpn = 0xffffff;
		w.wr.ud.remote_qkey = QKEY;
		want_errno("send.post", send_wr(&p.a, &w), 0);
		struct ibv_wc wc;
		want_wc("send.sent", p.a.scq, 2, IBV_WC_SUCCESS);
		/* It goes out by the wire: never back to the device that sent it. */
		double end = now() + 2;
		int r;
		while (!(r = ibv_poll_cq(p.b.rcq, 1, &wc)) && now() < end)
			;
		say("send.received", "%s", r == 1 ? "yes" : "no");
	}
	if (member >= 0)
		close(member);
	if (ah)
		need(!ibv_destroy_ah(ah), "destroy the address handle");
	if (!err)
		want_errno("detach", ibv_detach_mcast(p.b.qp, &group, 0), 0);
	say("detach.ipv4", "%s", errname(ibv_detach_mcast(p.b.qp, &group4, 0)));
	say("detach.twice", "%s", ibv_detach_mcast(p.b.qp, &group, 0) ? "refused" : "0");
	pair_close(&p);

	spec.type = IBV_QPT_RC;
	need(!pair_open(&p, t->a, t->b, &spec), "connect");
	say("attach.rc", "%s", errname(ibv_attach_mcast(p.b.qp, &group, 0)));
	pair_close(&p);

	/* Destroyed while attached: the kernel says busy, or lets go. */
	spec.type = IBV_QPT_UD;
	need(!pair_open(&p, t->a, t->b, &spec), "connect");
	err = ibv_attach_mcast(p.b.qp, &group, 0);
	if (!err) {
		err = ibv_destroy_qp(p.b.qp);
		say("destroy_attached", "%s", errname(err));
		if (err)
			need(!ibv_detach_mcast(p.b.qp, &group, 0), "detach");
		else
			p.b.qp = NULL;
	}
	pair_close(&p);
}
