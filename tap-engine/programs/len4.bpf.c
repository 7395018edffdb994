// SPDX-License-Identifier: MIT OR Apache-2.0
/*
 * Length-prefixed messages:
 *
 *     0        4
 *     ┌────────┬───────────────────┐
 *     │ n (BE) │ n bytes of payload│     message = 4 + n bytes
 *     └────────┴───────────────────┘
 */
#include "socktap.h"

#define HEADER 4
/* A parser returns an int. The engine's own limit (`max_message`) is far below. */
#define PAYLOAD_MAX (0x7fffffff - HEADER)

/* Payloads that begin with these bytes are dropped, or disconnect. */
const volatile u8 drop_byte = 'D';
const volatile u8 disconnect_byte = 'X';

SEC("sk_skb/stream_parser")
int parse_len4(struct __sk_buff *skb)
{
	const u8 *p = message_start(skb);
	u64 n;

	if (p + HEADER > message_end(skb))
		return NEED_MORE;
	n = (u64)p[0] << 24 | (u64)p[1] << 16 | (u64)p[2] << 8 | p[3];
	if (n > PAYLOAD_MAX)
		return TOO_LONG;
	return HEADER + n;
}

SEC("sk_skb/stream_verdict")
int by_first_byte(struct __sk_buff *skb)
{
	const u8 *p = message_start(skb);

	if (p + HEADER + 1 > message_end(skb))
		return SK_PASS; /* empty payload */
	if (p[HEADER] == disconnect_byte)
		return STAP_DISCONNECT;
	if (p[HEADER] == drop_byte)
		return SK_DROP;
	return SK_PASS;
}

char _license[] SEC("license") = "Dual MIT/GPL";
