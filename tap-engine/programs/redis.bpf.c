// SPDX-License-Identifier: MIT OR Apache-2.0
/*
 * Redis and its kin (RESP2, RESP3): commands from the client, replies from the server.
 *
 * A command is an array of bulk strings, or a line ("inline command"):
 *
 *     *2\r\n$3\r\nGET\r\n$3\r\nkey\r\n          GET key\r\n
 *
 * Payloads are skipped by their length and never looked at. What Redis takes but a second reader could take otherwise is
 * refused: signs, leading zeros and blanks in lengths, `*0` and `*-1`, a CR without its LF, NUL or control bytes in a
 * line, blanks before an inline command, quotes in its first word. networking.c (processInlineBuffer,
 * processMultibulkBuffer) and sds.c (sdssplitargs) say what Redis does with them.
 */
#include "socktap.h"

#define ELEMENTS_MAX 1024 /* bulk strings of one command */
#define TEXT_MAX 8192     /* bytes of a line in a reply */
#define DIGITS_MAX 7      /* of a length: 9,999,999 bytes */
#define INLINE_MAX 8192   /* bytes of an inline command, line end included */
#define NAME_MAX 32       /* bytes of the first word of an inline command */

/* What becomes of a forbidden command: SK_DROP, or STAP_DISCONNECT. (SHUTDOWN always disconnects.) */
const volatile int forbidden_verdict = SK_DROP;
/*
 * What becomes of CONFIG. Clients that send it (redis-benchmark, say) do so at the start and wait for its answer: a reset
 * tells them at once that there is none.
 */
const volatile int config_verdict = STAP_DISCONNECT;
/* Forbid what runs scripts on the server: a script can call FLUSHALL, out of our sight. */
const volatile u8 forbid_scripts = 1;
/* Forbid the other ways to empty the data set or to leave the protocol: DEBUG, MODULE, REPLICAOF, SYNC, ... */
const volatile u8 forbid_admin = 1;

/* A length line after its type byte: "<digits>\r\n". */
struct number {
	u64 value;
	u64 size; /* bytes, CRLF included */
	u64 bad;  /* not 0: not a number as we want it */
};

/*
 * The number whose text begins in `low`, eight bytes of which the first lies in the lowest byte; `high` holds the eight
 * bytes that begin one later. Without a branch: the verifier walks every path of every element.
 */
static __always_inline struct number number_in(u64 low, u64 high)
{
	struct number n;
	u64 mask = bytes_before(zero_marks(low ^ '\r' * ONES)), count = count_bytes(mask);
	u64 digits = (low ^ '0' * ONES) & mask;

	n.size = count + 2;
	n.bad = (((digits & ~HIGHS) + 0x76 * ONES) | digits) & HIGHS; /* a byte above 9 */
	n.bad |= (low >> 8 * count & 0xff) ^ '\r';
	n.bad |= (high >> 8 * count & 0xff) ^ '\n';
	n.bad |= (count - 1) >> 63;                                   /* no digit */
	n.bad |= (((digits & 0xff) - 1) & (1 - count)) >> 63;         /* a zero, and more behind it */
	/* Eight digits, the last in the highest byte: pairs, then fours, then all. */
	digits <<= (64 - 8 * count) & 63;
	digits = digits * 10 + (digits >> 8);
	n.value = ((digits & 0x000000ff000000ffULL) * (100 + (1000000ULL << 32)) +
		   (digits >> 16 & 0x000000ff000000ffULL) * (1 + (10000ULL << 32))) >> 32;
	return n;
}

/* The same number, byte by byte, where fewer bytes are there. Returns `size`, NEED_MORE, or MALFORMED. */
static __always_inline long read_number(const u8 *p, const u8 *end, u64 *value)
{
	u64 v = 0;

	for (u64 i = 0; i <= DIGITS_MAX; i++) {
		u64 c;

		if (p + i + 1 > end)
			return NEED_MORE;
		c = p[i];
		if (c == '\r') {
			if (!i || (i > 1 && p[0] == '0'))
				return MALFORMED;
			if (p + i + 2 > end)
				return NEED_MORE;
			*value = v;
			return p[i + 1] == '\n' ? (long)i + 2 : MALFORMED;
		}
		c -= '0';
		if (c > 9)
			return MALFORMED;
		v = v * 10 + c;
	}
	return MALFORMED;
}

#define CRLF ('\r' | '\n' << 8)

/* A parser returns an int. No sum of readable lengths comes near its limit; the verifier and the reader need not know. */
static __always_inline int message_length(u64 length)
{
	return length <= 0x7fffffff ? (int)length : TOO_LONG;
}

/* "\r\n$" and a length line: what precedes the payload of an element. */
#define ELEMENT_HEAD (3 + DIGITS_MAX + 2)

/*
 * The elements of an array. `at` is always the place of a CRLF, that of the array's header or of the element before, so
 * that each step checks the end of the last payload together with the next header.
 */
static __always_inline int parse_array(struct __sk_buff *skb)
{
	const u8 *start = message_start(skb), *end = message_end(skb);
	u64 at, left = 0;
	long size = read_number(start + 1, end, &left);

	if (size <= 0)
		return size;
	if (!left)
		return MALFORMED;
	if (left > ELEMENTS_MAX)
		return TOO_LONG;
	left = forget(skb, left);
	at = forget(skb, 1 + size - 2);

	for (u64 i = 0; i < ELEMENTS_MAX; i++) {
		struct number n;
		const u8 *p;

		start = message_start(skb);
		end = message_end(skb);
		if (!HOLDS(at, <=, READABLE))
			return TOO_LONG;
		p = start + at;
		if (!HOLDS(p + ELEMENT_HEAD, <=, end))
			break;
		n = number_in(read8(p + 3), read8(p + 4));
		n.bad |= (read8(p) & 0xffffff) ^ (CRLF | '$' << 16);
		if (!HOLDS(n.bad, ==, 0))
			return MALFORMED;
		at = distance(start, p) + 3 + n.size + n.value;
		/* The last payload and its CRLF need not be there yet. */
		left -= 1;
		if (!HOLDS(left, !=, 0))
			return message_length(at + 2);
	}

	/* Less than one longest header is left: at most one complete short one, and the beginning of another. */
	at = forget(skb, at);
	for (u64 i = 0; i < 2; i++) {
		const u8 *p;
		u64 value = 0;

		start = message_start(skb);
		end = message_end(skb);
		if (at > READABLE)
			return TOO_LONG;
		p = start + at;
		if (p + 1 > end)
			return NEED_MORE;
		if (p[0] != '\r')
			return MALFORMED;
		if (p + 2 > end)
			return NEED_MORE;
		if (p[1] != '\n')
			return MALFORMED;
		if (p + 3 > end)
			return NEED_MORE;
		if (p[2] != '$')
			return MALFORMED;
		size = read_number(p + 3, end, &value);
		if (size <= 0)
			return size;
		at = distance(start, p) + 3 + size + value;
		if (--left == 0)
			return message_length(at + 2);
	}
	return NEED_MORE;
}

static __always_inline int is_letter(u64 c)
{
	return (c | 0x20) - 'a' < 26;
}

/*
 * The bytes of a plain name, in capitals; 0 for all others. A table, not comparisons: the verifier would follow every
 * branch for every character.
 */
static const u8 capitals[256] = {
#define LETTER(upper, lower) [lower] = upper, [upper] = upper
	LETTER('A', 'a'), LETTER('B', 'b'), LETTER('C', 'c'), LETTER('D', 'd'), LETTER('E', 'e'), LETTER('F', 'f'),
	LETTER('G', 'g'), LETTER('H', 'h'), LETTER('I', 'i'), LETTER('J', 'j'), LETTER('K', 'k'), LETTER('L', 'l'),
	LETTER('M', 'm'), LETTER('N', 'n'), LETTER('O', 'o'), LETTER('P', 'p'), LETTER('Q', 'q'), LETTER('R', 'r'),
	LETTER('S', 's'), LETTER('T', 't'), LETTER('U', 'u'), LETTER('V', 'v'), LETTER('W', 'w'), LETTER('X', 'x'),
	LETTER('Y', 'y'), LETTER('Z', 'z'),
	['0'] = '0', ['1'] = '1', ['2'] = '2', ['3'] = '3', ['4'] = '4', ['5'] = '5', ['6'] = '6', ['7'] = '7',
	['8'] = '8', ['9'] = '9', ['_'] = '_', ['-'] = '-', ['.'] = '.', [':'] = ':', ['|'] = '|',
};

static __always_inline int is_name(u64 c)
{
	return capitals[c & 0xff];
}

/* A line whose first word is a plain name, or an empty line, which Redis ignores. */
static __always_inline int parse_inline(struct __sk_buff *skb)
{
	const u8 *start = message_start(skb), *end = message_end(skb);
	const u8 *p = start;
	u64 at, length = 0;

	/* Skip blocks without control bytes. */
	for (u64 i = 0; i < INLINE_MAX / 16; i++) {
		u64 a, b;

		if (p + 16 > end)
			break;
		a = read8(p);
		b = read8(p + 8);
		if (marks_below(a, ' ') | marks_below(b, ' '))
			break;
		p += 16;
	}
	at = distance(start, p);
	if (at >= INLINE_MAX)
		return TOO_LONG;
	start = message_start(skb);
	end = message_end(skb);
	p = start + at;
	for (u64 i = 0; i < 16; i++) {
		if (p + i + 1 > end)
			return NEED_MORE;
		if (p[i] >= ' ')
			continue;
		length = at + i + 1;
		if (p[i] == '\n')
			break;
		if (p[i] != '\r')
			return MALFORMED;
		if (p + i + 2 > end)
			return NEED_MORE;
		if (p[i + 1] != '\n')
			return MALFORMED;
		length += 1;
		break;
	}
	if (!length)
		return TOO_LONG; /* not reached: the block has a control byte or is cut short */
	length = forget(skb, length);

	start = message_start(skb);
	end = message_end(skb);
	for (u64 i = 0; i < NAME_MAX; i++) {
		u64 c;

		if (start + i + 1 > end)
			return NEED_MORE; /* not reached: a line end is there */
		c = start[i];
		if (c == '\n' || c == '\r' || (c == ' ' && i))
			return length;
		if (!is_name(c) || (!i && !is_letter(c)))
			return MALFORMED;
	}
	return MALFORMED;
}

SEC("sk_skb/stream_parser")
int parse_command(struct __sk_buff *skb)
{
	const u8 *start = message_start(skb);

	if (start + 1 > message_end(skb))
		return NEED_MORE;
	return *start == '*' ? parse_array(skb) : parse_inline(skb);
}

/* Eight characters as read8() gives them; shorter names end in 0. */
#define NAME8(a, b, c, d, e, f, g, h)                                                                       \
	((u64)(a) | (u64)(b) << 8 | (u64)(c) << 16 | (u64)(d) << 24 | (u64)(e) << 32 | (u64)(f) << 40 |     \
	 (u64)(g) << 48 | (u64)(h) << 56)
#define NAME4(a, b, c, d) NAME8(a, b, c, d, 0, 0, 0, 0)
#define NAME5(a, b, c, d, e) NAME8(a, b, c, d, e, 0, 0, 0)
#define NAME6(a, b, c, d, e, f) NAME8(a, b, c, d, e, f, 0, 0)
#define NAME7(a, b, c, d, e, f, g) NAME8(a, b, c, d, e, f, g, 0)

#define COMPARED 16 /* bytes of a name that are compared: more than the longest forbidden one */

/* A name in capitals: its first sixteen characters, filled up with 0. */
struct name {
	u64 first, second;
	u64 longer; /* than COMPARED: no name that we know */
};

/* The `length` bytes at `p`; a line's word (`word` not 0) ends at the first byte that is no name's. */
static __always_inline long read_name(const u8 *p, const u8 *end, u64 length, int word, struct name *name)
{
	name->first = name->second = name->longer = 0;
	for (u64 i = 0; i <= COMPARED; i++) {
		u64 c;

		if (i >= length)
			return 0;
		if (p + i + 1 > end)
			return MALFORMED;
		if (i == COMPARED)
			break;
		c = capitals[p[i]];
		if (!c) {
			/* The end of a line's word; in an array, a byte that no name that we know has. */
			name->longer = !word;
			return 0;
		}
		if (i < 8)
			name->first |= c << 8 * i;
		else
			name->second |= c << 8 * (i - 8);
	}
	name->longer = 1;
	return 0;
}

/* CLUSTER subcommands that throw keys away; clients need the others. */
static __always_inline int is_forbidden_of_cluster(const struct name *name)
{
	if (name->longer)
		return 0;
	if (!name->second && name->first == NAME5('R', 'E', 'S', 'E', 'T'))
		return 1;
	return name->first == NAME8('F', 'L', 'U', 'S', 'H', 'S', 'L', 'O'); /* FLUSHSLOT, FLUSHSLOTS */
}

static __always_inline int is_script(const struct name *name)
{
	switch (name->first) {
	case NAME4('E', 'V', 'A', 'L'):
	case NAME5('F', 'C', 'A', 'L', 'L'):
	case NAME6('S', 'C', 'R', 'I', 'P', 'T'):
	case NAME7('E', 'V', 'A', 'L', '_', 'R', 'O'):
	case NAME7('E', 'V', 'A', 'L', 'S', 'H', 'A'):
	case NAME8('F', 'C', 'A', 'L', 'L', '_', 'R', 'O'):
	case NAME8('F', 'U', 'N', 'C', 'T', 'I', 'O', 'N'):
		return !name->second;
	case NAME8('E', 'V', 'A', 'L', 'S', 'H', 'A', '_'):
		return name->second == NAME4('R', 'O', 0, 0);
	}
	return 0;
}

static __always_inline int is_admin(const struct name *name)
{
	switch (name->first) {
	case NAME4('S', 'Y', 'N', 'C'):
	case NAME5('P', 'S', 'Y', 'N', 'C'):
	case NAME5('D', 'E', 'B', 'U', 'G'):
	case NAME6('M', 'O', 'D', 'U', 'L', 'E'):
	case NAME6('S', 'F', 'L', 'U', 'S', 'H'):
	case NAME7('S', 'L', 'A', 'V', 'E', 'O', 'F'):
		return !name->second;
	case NAME8('R', 'E', 'P', 'L', 'I', 'C', 'A', 'O'):
		return name->second == NAME4('F', 0, 0, 0);
	}
	return 0;
}

/*
 * The parser tells an array's length before the last payload's CRLF is there. Redis never looks at these two bytes; a reader
 * that does would part with it here.
 */
static __always_inline int ends_in_crlf(struct __sk_buff *skb)
{
	const u8 *start = message_start(skb), *end = message_end(skb);
	u64 at = distance(start, end) - 2;

	OPAQUE(at);
	if (at > READABLE)
		return 1; /* out of sight */
	start = message_start(skb) + at;
	return start + 2 <= end && start[0] == '\r' && start[1] == '\n';
}

/* Judges one message of parse_command. */
SEC("sk_skb/stream_verdict")
int no_flush(struct __sk_buff *skb)
{
	const u8 *start = message_start(skb), *end = message_end(skb), *p;
	u64 elements = 0, length = 0, at;
	struct name name;
	long size;

	if (start + 1 > end)
		return STAP_DISCONNECT; /* no message of ours; the same below */
	if (*start == '*') {
		size = read_number(start + 1, end, &elements);
		if (size <= 0)
			return STAP_DISCONNECT;
		/* Through forget(), each place that depends on a length is followed once. */
		at = forget(skb, 1 + size);
		if (at > 1 + DIGITS_MAX + 2)
			return STAP_DISCONNECT;
		start = message_start(skb);
		end = message_end(skb);
		p = start + at;
		if (p + 1 > end || *p != '$')
			return STAP_DISCONNECT;
		size = read_number(p + 1, end, &length);
		if (size <= 0)
			return STAP_DISCONNECT;
		at = distance(start, p) + 1 + size;
		length = forget(skb, length);
		if (!ends_in_crlf(skb))
			return STAP_DISCONNECT;
	} else {
		at = 0;
		length = NAME_MAX;
	}
	OPAQUE(at);
	if (at > 2 * (1 + DIGITS_MAX + 2))
		return STAP_DISCONNECT;
	start = message_start(skb);
	end = message_end(skb);
	if (read_name(start + at, end, length, !elements, &name))
		return STAP_DISCONNECT;
	name.first = forget(skb, name.first);
	name.second = forget(skb, name.second);
	if (name.longer)
		return SK_PASS;

	if (!name.second) {
		switch (name.first) {
		case NAME6('C', 'O', 'N', 'F', 'I', 'G'):
			return config_verdict;
		case NAME7('F', 'L', 'U', 'S', 'H', 'D', 'B'):
		case NAME8('F', 'L', 'U', 'S', 'H', 'A', 'L', 'L'):
			return forbidden_verdict;
		case NAME8('S', 'H', 'U', 'T', 'D', 'O', 'W', 'N'):
			return STAP_DISCONNECT;
		}
	}
	if (forbid_scripts && is_script(&name))
		return forbidden_verdict;
	if (!forbid_admin)
		return SK_PASS;
	if (is_admin(&name))
		return forbidden_verdict;
	if (name.second || name.first != NAME7('C', 'L', 'U', 'S', 'T', 'E', 'R'))
		return SK_PASS;

	/* CLUSTER: its second word decides. In a line that word may be quoted, so none passes. */
	if (!elements)
		return forbidden_verdict;
	if (elements == 1)
		return SK_PASS; /* an error to the server */
	at += 7 + 2; /* the word and its CRLF */
	start = message_start(skb);
	end = message_end(skb);
	p = start + at;
	if (p + 1 > end || *p != '$')
		return STAP_DISCONNECT;
	size = read_number(p + 1, end, &length);
	if (size <= 0)
		return STAP_DISCONNECT;
	at = distance(start, p) + 1 + size;
	OPAQUE(at);
	if (at > 3 * (1 + DIGITS_MAX + 2) + 7 + 2)
		return STAP_DISCONNECT;
	length = forget(skb, length);
	start = message_start(skb);
	end = message_end(skb);
	if (read_name(start + at, end, length, 0, &name))
		return STAP_DISCONNECT;
	return is_forbidden_of_cluster(&name) ? forbidden_verdict : SK_PASS;
}

/*
 * One element of a reply: a line, a number, a bulk string with its payload, or the header of an aggregate, whose members
 * follow as elements of their own. So there is no limit to how deep replies nest, or how long they are; what is lost is
 * the unit "one reply", which a verdict on replies would need.
 */
SEC("sk_skb/stream_parser")
int parse_reply(struct __sk_buff *skb)
{
	const u8 *start = message_start(skb), *end = message_end(skb), *p;
	u64 value = 0, at;
	long size;

	if (start + 1 > end)
		return NEED_MORE;
	switch (*start) {
	case '$': case '!': case '=': /* bulk: so many bytes and CRLF */
		if (start + 2 > end)
			return NEED_MORE;
		if (start[1] == '-')
			break; /* RESP2's null: a line */
		size = read_number(start + 1, end, &value);
		if (size <= 0)
			return size;
		return message_length(1 + size + value + 2);
	case '+': case '-': case ':': case ',': case '(': case '#': case '_': /* lines */
	case '*': case '~': case '>': case '%': case '|':                     /* headers */
		break;
	default:
		return MALFORMED;
	}
	/* A line. Blocks without CR and LF first. */
	p = start;
	for (u64 i = 0; i < TEXT_MAX / 8; i++) {
		u64 a;

		if (p + 8 > end)
			break;
		a = read8(p);
		if (zero_marks(a ^ '\r' * ONES) | zero_marks(a ^ '\n' * ONES))
			break;
		p += 8;
	}
	at = distance(start, p);
	if (at >= TEXT_MAX)
		return TOO_LONG;
	start = message_start(skb);
	end = message_end(skb);
	p = start + at;
	for (u64 i = 0; i < 8; i++) {
		if (p + i + 1 > end)
			return NEED_MORE;
		if (p[i] == '\n')
			return MALFORMED;
		if (p[i] != '\r')
			continue;
		if (p + i + 2 > end)
			return NEED_MORE;
		return p[i + 1] == '\n' ? message_length(at + i + 2) : MALFORMED;
	}
	return TOO_LONG; /* not reached: the block has a CR or LF, or is cut short */
}

char _license[] SEC("license") = "Dual MIT/GPL";
