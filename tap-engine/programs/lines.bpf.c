// SPDX-License-Identifier: MIT OR Apache-2.0
/*
 * Lines of text. A message is a line with its '\n'; a '\r' before it is part of the line like any other byte.
 */
#include "socktap.h"

#define LINE_MAX 16384 /* bytes, newline included; longer lines are unrecoverable */
#define BLOCK 32       /* bytes looked at per step: few steps, because the verifier follows each of them */

#define WORD_MAX 16    /* bytes of the forbidden word */

/* A line that contains these bytes is dropped. Ends at the first NUL; the empty word is in no line. */
const volatile char forbidden_word[WORD_MAX + 1] = "secret";
/* Also in capitals (ASCII). */
const volatile u8 ignore_case = 1;

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
		if (zero_marks(read8(p) ^ newlines) | zero_marks(read8(p + 8) ^ newlines) |
		    zero_marks(read8(p + 16) ^ newlines) | zero_marks(read8(p + 24) ^ newlines))
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

/* A character of the word: `case_bit` is 0x20 if it is a letter whose case does not count, and `folded` has it set. */
struct letter {
	u64 case_bit, folded; /* eight times each */
};

/*
 * Sixteen starting places at once: byte i of `a` and `b` collects, over all characters of the word, how what lies at place
 * i + j differs from character j. It stays 0 where the word stands.
 */
SEC("sk_skb/stream_verdict")
int no_word(struct __sk_buff *skb)
{
	const u8 *start = message_start(skb), *end = message_end(skb);
	const u8 *p = start;
	struct letter letters[WORD_MAX];
	u64 length = 0, offset;

	for (u64 j = 0; j < WORD_MAX; j++) {
		u64 c = (u8)forbidden_word[j], bit = ignore_case && (c | 0x20) - 'a' < 26 ? 0x20 : 0;

		if (!c)
			break;
		letters[j].case_bit = bit * ONES;
		letters[j].folded = (c | bit) * ONES;
		length = j + 1;
	}
	if (!length)
		return SK_PASS;
	for (u64 i = 0; i < LINE_MAX / 16; i++) {
		u64 a = 0, b = 0;

		if (!HOLDS(p + 16 + WORD_MAX, <=, end))
			break;
		for (u64 j = 0; j < WORD_MAX && j < length; j++) {
			a |= (read8(p + j) | letters[j].case_bit) ^ letters[j].folded;
			b |= (read8(p + j + 8) | letters[j].case_bit) ^ letters[j].folded;
		}
		if (!HOLDS(zero_marks(a) | zero_marks(b), ==, 0))
			return SK_DROP;
		p += 16;
	}

	/* The last places, one by one. */
	offset = distance(start, p);
	if (offset > LINE_MAX)
		return SK_DROP; /* no line of ours */
	p = message_start(skb) + offset;
	end = message_end(skb);
	for (u64 i = 0; i < 16 + WORD_MAX; i++) {
		u64 differs = 0;

		if (p + i + length > end)
			return SK_PASS;
		for (u64 j = 0; j < WORD_MAX && j < length; j++)
			differs |= ((p[i + j] | letters[j].case_bit) ^ letters[j].folded) & 0xff;
		if (!differs)
			return SK_DROP;
	}
	return SK_DROP; /* longer than a line can be */
}

char _license[] SEC("license") = "Dual MIT/GPL";
