/* SPDX-License-Identifier: MIT OR Apache-2.0
 *
 * verbs-walk: every verb and opcode, right and wrong, one line for each finding.
 */
#include "walk.h"

#include <fnmatch.h>

static const struct group groups[] = {
	{ "rc", "every opcode by ibv_post_send on RC, inline, SGE lists, signalling, fence", walk_rc, false, false },
	{ "uc", "the same on UC", walk_uc, false, false },
	{ "ud", "the same on UD", walk_ud, false, false },
	{ "bad-post", "work requests and lists that make no sense", walk_bad_post, false, false },
	{ "bad-create", "capabilities and attributes that make no sense", walk_bad_create, true, false },
	{ "busy", "destroying what is in use, handles that name nothing", walk_busy, true, false },
	{ "hazard", "what the stock provider does not check at all", walk_hazard, true, true },
};

int main(int argc, char **argv)
{
	struct options o;
	struct dev a, b;
	parse_options(&o, argc, argv, "[--list | GROUP...]    (GROUP may be a pattern, such as 'bad-*')");
	if (o.argc && !strcmp(o.argv[0], "--list")) {
		for (size_t i = 0; i < ARRAY_SIZE(groups); i++)
			printf("%-12s %s%s\n", groups[i].name, groups[i].what,
			       groups[i].named ? " (only when named)" : "");
		return 0;
	}
	dev_open(&a, o.device[0], o.gid_index);
	dev_open(&b, o.device[1], o.gid_index);
	check_provider(&o);
	struct topo topos[] = { { "loop", &a, &a }, { "wire", &a, &b } };
	for (size_t g = 0; g < ARRAY_SIZE(groups); g++) {
		bool chosen = !o.argc && (!groups[g].named || (groups[g].run == walk_hazard &&
							       provider() == PROVIDER_HOLDFAST));
		for (int i = 0; i < o.argc; i++)
			chosen = chosen || !fnmatch(o.argv[i], groups[g].name, 0);
		for (size_t t = 0; chosen && t < (groups[g].once ? 1 : ARRAY_SIZE(topos)); t++) {
			prefix("%s.%s", groups[g].name, topos[t].name);
			groups[g].run(&topos[t]);
		}
	}
	dev_close(&a);
	dev_close(&b);
	return finish();
}
