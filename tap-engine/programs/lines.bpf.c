// SPDX-License-Identifier: MIT OR Apache-2.0
/*
 * Lines of text. A message is a line with its '\n'; a '\r' before it is part of the line like any other byte.
 */
#include "socktap.h"

#define LINE_MAX 32768 /* bytes, newline included; longer lines are unrecoverable */
#define BLOCK 32       /* bytes looked at per step: few steps, because the verifier follows each of them */

SEC("sk_skb/stream_parser")
int parse_line(struct __sk_buff *skb)
{
	const u8 *start = message_start(skb), *end = message_end(skb);
	const u8 *p = start;
	const u64 newlines = '\n' * ONES;
	u64 offset;

	/* Find the block that holds the first newline, or the end. */
	for (u64 i = 0; i < LINE_MAX / BLOCK; i++) {
		if (p + BLOCK > end)
			break;
		if (has_zero(read8(p) ^ newlines) | has_zero(read8(p + 8) ^ newlines) |
		    has_zero(read8(p + 16) ^ newlines) | has_zero(read8(p + 24) ^ newlines))
			break;
		p += BLOCK;
	}

	offset = distance(start, p);
	if (offset >= LINE_MAX)
		return TOO_LONG;
	p = message_start(skb) + offset;
	end = message_end(skb);
	for (u64 i = 0; i < BLOCK; i++) {
		if (p + i + 1 > end)
			return NEED_MORE;
		if (p[i] == '\n')
			return offset + i + 1;
	}
	return TOO_LONG; /* not reached: the block has a newline or is cut short */
}

char _license[] SEC("license") = "Dual MIT/GPL";
