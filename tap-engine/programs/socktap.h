/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/*
 * What every socktap filter includes: the kernel's names, the one verdict that socktap adds, and a few helpers that keep
 * the kernel's verifier content. Nothing in here is needed to write a filter; see README.md for the rules that are.
 */
#ifndef SOCKTAP_H
#define SOCKTAP_H

#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

/* Drop the message and reset both sides. The kernel treats any verdict but SK_PASS as a drop. */
#define STAP_DISCONNECT 2

/* What a parser returns besides a length (net/strparser/strparser.c). */
#define NEED_MORE 0
/* Negative: unrecoverable. The engine reports the value, so each cause has its own. */
#define MALFORMED -1  /* not this protocol, or spelt in a way that two readers could read differently */
#define TOO_LONG -2   /* a limit of the parser, named in its source, was met */
#define UNSUPPORTED -3 /* valid, but this parser does not follow it */

typedef __u8 u8;
typedef __u16 u16;
typedef __u32 u32;
typedef __u64 u64;
typedef __s16 s16;

/*
 * The verifier lets a program read the first 64 KiB of a message (MAX_PACKET_OFF). A parser may return a greater length;
 * it cannot look at what lies beyond. The margin leaves room for the longest single read.
 */
#define READABLE (65535 - 64)

/*
 * Both read the context afresh at each call. The verifier knows nothing of a fresh pointer but that it is one, so states
 * that differ only in how far an older pointer was checked become equal, and it follows the rest of the program once.
 */
static __always_inline const u8 *message_start(const struct __sk_buff *skb)
{
	return (const u8 *)(long)*(const volatile u32 *)&skb->data;
}

static __always_inline const u8 *message_end(const struct __sk_buff *skb)
{
	return (const u8 *)(long)*(const volatile u32 *)&skb->data_end;
}

/* Hides a value's origin from clang, so that it keeps a check that the verifier needs. */
#define OPAQUE(x) asm volatile("" : "+r"(x))

/* Eight bytes at once; both kernel and engine read packets unaligned. */
typedef u64 __attribute__((__may_alias__)) word;

static __always_inline u64 read8(const u8 *p)
{
	return *(const word *)p;
}

/*
 * The distance between two pointers into the message. To the verifier the result is any number, whatever it knew of the
 * pointers; the statement keeps clang from working with the pointers instead.
 */
static __always_inline u64 distance(const u8 *from, const u8 *to)
{
	u64 d = to - from;
	OPAQUE(d);
	return d;
}

/*
 * `left op right` (unsigned), as a branch that is taken where it holds. The verifier sets taken branches aside and follows
 * the other first; it sets at most 8192 aside. In a long loop, leave by the way that does not hold:
 *
 *     if (!HOLDS(p + 8, <=, end)) return NEED_MORE;
 *
 * `mask & constant` counts as a branch too if the verifier knows the mask to be 0 or -1 (maybe_fork_scalars), and Linux 6.18
 * crashes when that is the one too many. Use a flag of 0 or 1 and a multiplication instead.
 */
#define HOLDS(left, op, right)                                                                          \
	({                                                                                              \
		__label__ holds;                                                                        \
		int result = 1;                                                                         \
		asm volatile goto("if %0 " #op " %1 goto %l[holds]" ::"r"((u64)(left)), "r"((u64)(right)) \
				  : : holds);                                                           \
		result = 0;                                                                             \
	holds:                                                                                          \
		result;                                                                                 \
	})

/* `x`, of which the verifier knows nothing any more: paths that differ only in what it knew of `x` become one. */
static __always_inline u64 forget(const struct __sk_buff *skb, u64 x)
{
	const u8 *start = message_start(skb);

	return x + distance(start, start);
}

#define ONES 0x0101010101010101ULL
#define HIGHS 0x8080808080808080ULL

/*
 * Marks the bytes of `x` that are 0 with 0x80: none exactly if none is, and the lowest mark is right (one above it may be
 * a carry's).
 */
static __always_inline u64 zero_marks(u64 x)
{
	return (x - ONES) & ~x & HIGHS;
}

/* The same for the bytes below `limit`, which is 128 at most. */
static __always_inline u64 marks_below(u64 x, u64 limit)
{
	return (x - limit * ONES) & ~x & HIGHS;
}

/* All bits of the bytes below the lowest mark. */
static __always_inline u64 bytes_before(u64 marks)
{
	return (marks ^ (marks - 1)) >> 8;
}

/* How many whole bytes a mask of bytes_before() has: the index of the lowest mark, 7 if there is none. */
static __always_inline u64 count_bytes(u64 mask)
{
	return ((mask & ONES) * ONES) >> 56;
}

#endif
