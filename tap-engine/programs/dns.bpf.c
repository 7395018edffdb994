// SPDX-License-Identifier: MIT OR Apache-2.0
/*
 * DNS over TCP (RFC 1035 section 4.2.2, RFC 7766): a 2-byte length before each message.
 *
 *     0        2        4        6        8                 14
 *     ┌────────┬────────┬────────┬────────┬──────── ── ─────┬───────┬───────┬────────┐
 *     │ length │ id     │ flags  │ qdcount│ other counts    │ qname │ qtype │ qclass │ ...
 *     └────────┴────────┴────────┴────────┴──────── ── ─────┴───────┴───────┴────────┘
 *
 * For the direction to a server: zone transfers, ANY and dynamic updates are forbidden. See dns.md.
 */
#include "socktap.h"

#define PREFIX 2
#define HEADER 12
#define LONGEST_NAME 255
#define LABELS 128

#define OPCODE_QUERY 0
#define OPCODE_NOTIFY 4
#define OPCODE_UPDATE 5

#define TYPES 16

/* Types of questions that are forbidden; 0 ends the list. IXFR, AXFR, MAILB, MAILA, ANY. */
const volatile u16 forbidden_types[TYPES] = { 251, 252, 253, 254, 255 };
/* NOTIFY (RFC 1996) and UPDATE (RFC 2136) pass if these are 1. */
const volatile u8 allow_notify = 0;
const volatile u8 allow_update = 0;
/* What becomes of what is forbidden: 0 drops it, and its client waits; 2 disconnects. */
const volatile u8 forbidden_verdict = STAP_DISCONNECT;

SEC("sk_skb/stream_parser")
int parse_dns(struct __sk_buff *skb)
{
	const u8 *p = message_start(skb);
	u64 n;

	if (p + PREFIX > message_end(skb))
		return NEED_MORE;
	n = (u64)p[0] << 8 | p[1];
	return n < HEADER ? MALFORMED : PREFIX + n;
}

/* The offset of what follows the name at `offset`; 0 if it is not one that all servers read alike. */
static __always_inline u64 skip_name(struct __sk_buff *skb, u64 offset)
{
	const u64 limit = offset + LONGEST_NAME;

	for (int label = 0; label < LABELS; label++) {
		const u8 *p = message_start(skb);
		u64 n;

		if (offset >= limit || p + offset + 1 > message_end(skb))
			return 0;
		n = p[offset];
		offset += 1 + n;
		if (n == 0)
			return offset;
		/* Compression has nothing to point to yet, and other kinds of labels are long gone. */
		if (n > 63)
			return 0;
	}
	return 0;
}

SEC("sk_skb/stream_verdict")
int no_transfer(struct __sk_buff *skb)
{
	const u8 *p = message_start(skb);
	u64 offset, opcode;
	u16 type;

	if (p + PREFIX + HEADER > message_end(skb))
		return forbidden_verdict;
	/* An answer has no business on its way to a server. */
	if (p[4] & 0x80)
		return forbidden_verdict;
	opcode = p[4] >> 3 & 15;
	if (opcode == OPCODE_NOTIFY)
		return allow_notify ? SK_PASS : forbidden_verdict;
	if (opcode == OPCODE_UPDATE)
		return allow_update ? SK_PASS : forbidden_verdict;
	if (opcode != OPCODE_QUERY)
		return forbidden_verdict;
	/* No server answers more than one question (RFC 9619), and which of several it would read is its own affair. */
	if (p[6] != 0 || p[7] != 1)
		return forbidden_verdict;
	offset = skip_name(skb, PREFIX + HEADER);
	if (offset == 0 || offset > PREFIX + HEADER + LONGEST_NAME)
		return forbidden_verdict;
	p = message_start(skb) + offset;
	if (p + 4 > message_end(skb))
		return forbidden_verdict;
	type = (u16)p[0] << 8 | p[1];
	for (int i = 0; i < TYPES; i++)
		if (forbidden_types[i] != 0 && forbidden_types[i] == type)
			return forbidden_verdict;
	return SK_PASS;
}

char _license[] SEC("license") = "Dual MIT/GPL";
