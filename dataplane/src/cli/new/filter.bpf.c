/*
 * NAME: messages are lines of up to 255 bytes; lines that begin with the forbidden character are dropped.
 *
 * A stream parser gets the bytes that are there from the head of a message on, and returns the message's length, 0 for "need
 * more", or a negative number for "this cannot be cut". A verdict gets one whole message.
 */
#include "socktap.h"

char LICENSE[] SEC("license") = "GPL";

/* The ops file can change it: set = { forbidden = 33 } */
const volatile u8 forbidden = '#';

#define LONGEST 255

SEC("sk_skb/stream_parser") int parse(struct __sk_buff *skb)
{
	const u8 *data = message_start(skb), *end = message_end(skb);

	for (int i = 0; i < LONGEST && data + i + 1 <= end; i++)
		if (data[i] == '\n')
			return i + 1;
	return data + LONGEST <= end ? TOO_LONG : NEED_MORE;
}

SEC("sk_skb/stream_verdict") int judge(struct __sk_buff *skb)
{
	const u8 *data = message_start(skb);

	if (data + 1 > message_end(skb))
		return SK_PASS;
	if (data[0] == forbidden) {
		bpf_printk("a line of %d bytes is forbidden", skb->len);
		return SK_DROP; /* or STAP_DISCONNECT, which resets both sides too */
	}
	return SK_PASS;
}
