// SPDX-License-Identifier: MIT OR Apache-2.0
/*
 * HTTP/1.0 and HTTP/1.1 requests (RFC 9112): a message is a head and the body that its Content-Length announces.
 *
 *     POST /path HTTP/1.1\r\n
 *     Host: example\r\n
 *     Content-Length: 3\r\n
 *     \r\n
 *     abc
 *
 * Whoever reads a request's end otherwise than the server does lets a second request through inside the first. So what
 * two readers could read differently is refused: Transfer-Encoding, a second Content-Length, one that is not bare digits,
 * folded lines, bare CR or LF, blanks around names or doubled in the request line, empty lines before it, control bytes.
 */
#include "socktap.h"

#define HEAD_MAX 8192         /* bytes up to and with the empty line */
#define LENGTH_DIGITS_MAX 9   /* of Content-Length */
#define METHOD_MAX 32         /* bytes */
#define PATH_MAX_JUDGED 1024  /* bytes of the path, as it is written; a longer one is forbidden */
#define PREFIX_MAX 31         /* bytes */

/* Paths that begin with these bytes are forbidden, in capitals too. Ends at the first NUL. */
const volatile char forbidden_prefix[PREFIX_MAX + 1] = "/admin";
/* HTTP has no way to skip an answer: after a mere drop the client waits, and answers later come to the wrong request. */
const volatile int forbidden_verdict = STAP_DISCONNECT;

/* What a byte is to the grammar. Letters that the words below are made of stand for themselves. */
enum class {
	CONTROL, /* allowed nowhere */
	CR,
	LF,
	TAB,
	SPACE,
	COLON,
	DIGIT,   /* but 0 and 1 */
	ZERO,
	ONE,
	DOT,
	SLASH,
	TOKEN,   /* what else may stand in a method or a name */
	VISIBLE, /* what else may stand in a target */
	HIGH,    /* 0x80 and up: in values only */
	DASH,
	LETTER_A, LETTER_C, LETTER_D, LETTER_E, LETTER_F, LETTER_G, LETTER_H, LETTER_I, LETTER_L, LETTER_N, LETTER_O,
	LETTER_R, LETTER_S, LETTER_T,
	/* "HTTP" counts in capitals only. */
	UPPER_H, UPPER_T, UPPER_P,
	CLASSES,
};

_Static_assert(CLASSES <= 32, "an entry's index has five bits for the class");

/* GNU C: a later entry of an array's initialiser replaces an earlier one. That is how the rule comes before its exceptions. */
#pragma clang diagnostic ignored "-Winitializer-overrides"

static const u8 classes[256] = {
	[0x80 ... 0xff] = HIGH, ['!' ... '~'] = VISIBLE,
	['A' ... 'Z'] = TOKEN, ['a' ... 'z'] = TOKEN, ['2' ... '9'] = DIGIT, ['0'] = ZERO, ['1'] = ONE,
	['!'] = TOKEN, ['#'] = TOKEN, ['$'] = TOKEN, ['%'] = TOKEN, ['&'] = TOKEN, ['\''] = TOKEN, ['*'] = TOKEN,
	['+'] = TOKEN, ['^'] = TOKEN, ['_'] = TOKEN, ['`'] = TOKEN, ['|'] = TOKEN, ['~'] = TOKEN,
	['-'] = DASH, ['.'] = DOT, ['/'] = SLASH, [':'] = COLON, [' '] = SPACE, ['\t'] = TAB, ['\r'] = CR, ['\n'] = LF,
	['a'] = LETTER_A, ['A'] = LETTER_A, ['c'] = LETTER_C, ['C'] = LETTER_C, ['d'] = LETTER_D, ['D'] = LETTER_D,
	['e'] = LETTER_E, ['E'] = LETTER_E, ['f'] = LETTER_F, ['F'] = LETTER_F, ['g'] = LETTER_G, ['G'] = LETTER_G,
	['h'] = LETTER_H, ['H'] = UPPER_H, ['i'] = LETTER_I, ['I'] = LETTER_I, ['l'] = LETTER_L, ['L'] = LETTER_L,
	['n'] = LETTER_N, ['N'] = LETTER_N, ['o'] = LETTER_O, ['O'] = LETTER_O, ['P'] = UPPER_P, ['r'] = LETTER_R,
	['R'] = LETTER_R, ['s'] = LETTER_S, ['S'] = LETTER_S, ['t'] = LETTER_T, ['T'] = UPPER_T,
};

/* Where in a head we are, named by what comes next or, for words, by what was read. */
enum state {
	REFUSED, /* stays */
	BEGIN,
	METHOD,
	TARGET,  /* its first byte */
	IN_TARGET,
	VERSION, V_H, V_HT, V_HTT, V_HTTP, V_SLASH, V_MAJOR, V_DOT, V_MINOR,
	LINE_LF,
	LINE,    /* a field line, or the empty line */
	NAME,    /* of a field that does not concern us */
	VALUE,
	LENGTH_VALUE, /* blanks before the digits of Content-Length */
	LENGTH_ZERO,  /* a first digit 0, which no other may follow */
	LENGTH_DIGITS,
	END_LF,
	C, CO, CON, CONT, CONTE, CONTEN, CONTENT, CONTENT_, CONTENT_L, CONTENT_LE, CONTENT_LEN, CONTENT_LENG, CONTENT_LENGT,
	CONTENT_LENGTH,
	T, TR, TRA, TRAN, TRANS, TRANSF, TRANSFE, TRANSFER, TRANSFER_, TRANSFER_E, TRANSFER_EN, TRANSFER_ENC,
	TRANSFER_ENCO, TRANSFER_ENCOD, TRANSFER_ENCODI, TRANSFER_ENCODIN, TRANSFER_ENCODING,
	END,     /* stays */
	STATES,
};

_Static_assert(STATES <= 64, "an entry's index has six bits for the state");

/* An entry: the next state, and what the byte that leads to it means. */
#define STATE 0x3f
#define STOP 0x40       /* REFUSED or END */
#define OUTSIDE 0x80    /* the byte is not part of the head */
#define IS_DIGIT 0x100  /* a digit of Content-Length */
#define IS_LENGTH 0x200 /* a Content-Length begins */
#define INDEX(state, class) ((state) << 5 | (class))

#define TOKENS(state, next)                                                                                 \
	[INDEX(state, DIGIT)... INDEX(state, DOT)] = next, [INDEX(state, TOKEN)] = next,                    \
	[INDEX(state, DASH)... INDEX(state, UPPER_P)] = next
#define TARGETS(state, next)                                                                                \
	TOKENS(state, next), [INDEX(state, COLON)] = next, [INDEX(state, SLASH)] = next, [INDEX(state, VISIBLE)] = next
#define ON(state, class, next) [INDEX(state, class)] = next
/* In a name: one letter goes on in a word that we look for, all others are any name. */
#define WORD(state, class, next) TOKENS(state, NAME), ON(state, COLON, VALUE), ON(state, class, next)
#define WORD_H(state, next) WORD(state, LETTER_H, next), ON(state, UPPER_H, next)
#define WORD_T(state, next) WORD(state, LETTER_T, next), ON(state, UPPER_T, next)
#define DIGITS(state, next) ON(state, DIGIT, next), ON(state, ZERO, next), ON(state, ONE, next)

static const u16 transitions[64 * 32] = {
	[INDEX(REFUSED, 0)... INDEX(END - 1, 31)] = REFUSED | STOP | OUTSIDE,
	[INDEX(END, 0)... INDEX(END, 31)] = END | STOP | OUTSIDE,

	/* RFC 9112 section 3: method SP request-target SP HTTP-version CRLF */
	TOKENS(BEGIN, METHOD),
	TOKENS(METHOD, METHOD), ON(METHOD, SPACE, TARGET),
	TARGETS(TARGET, IN_TARGET),
	TARGETS(IN_TARGET, IN_TARGET), ON(IN_TARGET, SPACE, VERSION),
	ON(VERSION, UPPER_H, V_H), ON(V_H, UPPER_T, V_HT), ON(V_HT, UPPER_T, V_HTT), ON(V_HTT, UPPER_P, V_HTTP),
	ON(V_HTTP, SLASH, V_SLASH), ON(V_SLASH, ONE, V_MAJOR), ON(V_MAJOR, DOT, V_DOT),
	ON(V_DOT, ZERO, V_MINOR), ON(V_DOT, ONE, V_MINOR), ON(V_MINOR, CR, LINE_LF),

	/* Section 5: field-name ":" OWS field-value OWS CRLF */
	ON(LINE_LF, LF, LINE),
	TOKENS(LINE, NAME), ON(LINE, LETTER_C, C), ON(LINE, LETTER_T, T), ON(LINE, UPPER_T, T), ON(LINE, CR, END_LF),
	TOKENS(NAME, NAME), ON(NAME, COLON, VALUE),
	TARGETS(VALUE, VALUE), ON(VALUE, SPACE, VALUE), ON(VALUE, TAB, VALUE), ON(VALUE, HIGH, VALUE),
	ON(VALUE, CR, LINE_LF),
	ON(END_LF, LF, END | STOP),

	WORD(C, LETTER_O, CO), WORD(CO, LETTER_N, CON), WORD_T(CON, CONT), WORD(CONT, LETTER_E, CONTE),
	WORD(CONTE, LETTER_N, CONTEN), WORD_T(CONTEN, CONTENT), WORD(CONTENT, DASH, CONTENT_),
	WORD(CONTENT_, LETTER_L, CONTENT_L), WORD(CONTENT_L, LETTER_E, CONTENT_LE),
	WORD(CONTENT_LE, LETTER_N, CONTENT_LEN), WORD(CONTENT_LEN, LETTER_G, CONTENT_LENG),
	WORD_T(CONTENT_LENG, CONTENT_LENGT), WORD_H(CONTENT_LENGT, CONTENT_LENGTH),
	TOKENS(CONTENT_LENGTH, NAME), ON(CONTENT_LENGTH, COLON, LENGTH_VALUE | IS_LENGTH),
	ON(LENGTH_VALUE, SPACE, LENGTH_VALUE), DIGITS(LENGTH_VALUE, LENGTH_DIGITS | IS_DIGIT),
	ON(LENGTH_VALUE, ZERO, LENGTH_ZERO | IS_DIGIT), ON(LENGTH_ZERO, CR, LINE_LF),
	DIGITS(LENGTH_DIGITS, LENGTH_DIGITS | IS_DIGIT), ON(LENGTH_DIGITS, CR, LINE_LF),

	WORD(T, LETTER_R, TR), WORD(TR, LETTER_A, TRA), WORD(TRA, LETTER_N, TRAN), WORD(TRAN, LETTER_S, TRANS),
	WORD(TRANS, LETTER_F, TRANSF), WORD(TRANSF, LETTER_E, TRANSFE), WORD(TRANSFE, LETTER_R, TRANSFER),
	WORD(TRANSFER, DASH, TRANSFER_), WORD(TRANSFER_, LETTER_E, TRANSFER_E), WORD(TRANSFER_E, LETTER_N, TRANSFER_EN),
	WORD(TRANSFER_EN, LETTER_C, TRANSFER_ENC), WORD(TRANSFER_ENC, LETTER_O, TRANSFER_ENCO),
	WORD(TRANSFER_ENCO, LETTER_D, TRANSFER_ENCOD), WORD(TRANSFER_ENCOD, LETTER_I, TRANSFER_ENCODI),
	WORD(TRANSFER_ENCODI, LETTER_N, TRANSFER_ENCODIN), WORD(TRANSFER_ENCODIN, LETTER_G, TRANSFER_ENCODING),
	TOKENS(TRANSFER_ENCODING, NAME), /* and its colon is refused */
};

struct head {
	u64 state;
	u64 size;    /* bytes */
	u64 length;  /* Content-Length */
	u64 digits;  /* of it */
	u64 lengths; /* how many there are */
};

/* One byte. All is arithmetic: a branch per byte would be more than the verifier can set aside. */
static __always_inline void next_byte(struct head *h, u64 byte)
{
	u64 entry = transitions[INDEX(h->state & STATE, classes[byte & 0xff] & 31)];
	u64 digit = entry / IS_DIGIT & 1;

	h->state = entry;
	h->size += 1 - (entry / OUTSIDE & 1);
	h->length += (h->length * 9 + (byte & 15)) * digit;
	h->digits += digit;
	h->lengths += entry / IS_LENGTH & 1;
}

SEC("sk_skb/stream_parser")
int parse_request(struct __sk_buff *skb)
{
	struct head h = { .state = BEGIN };
	const u8 *start = message_start(skb), *end = message_end(skb), *p = start;
	u64 at;

	for (u64 i = 0; i < HEAD_MAX / 8; i++) {
		u64 bytes;

		if (!HOLDS(p + 8, <=, end))
			break;
		bytes = read8(p);
		for (int j = 0; j < 8; j++)
			next_byte(&h, bytes >> 8 * j);
		if (!HOLDS(h.state & STOP, ==, 0))
			break;
		p += 8;
	}
	h.state = forget(skb, h.state);
	at = distance(start, p);
	if (!(h.state & STOP)) {
		if (at >= HEAD_MAX)
			return TOO_LONG;
		/* Fewer than eight bytes are left. */
		start = message_start(skb);
		end = message_end(skb);
		p = start + at;
		for (u64 i = 0; i < 7; i++) {
			if (p + i + 1 > end)
				break;
			next_byte(&h, p[i]);
		}
		if (!(h.state & STOP))
			return NEED_MORE;
	}
	if ((h.state & STATE) != END)
		return MALFORMED;
	if (h.lengths > 1)
		return MALFORMED;
	if (h.digits > LENGTH_DIGITS_MAX)
		return TOO_LONG;
	return h.size + h.length;
}

/* What a decoded byte of a path is to its segments. */
enum part { OTHER, SLASH_PART, DOT_PART, SEMICOLON, ODD, PARTS };

static const u8 parts[256] = {
	['/'] = SLASH_PART, ['.'] = DOT_PART, [';'] = SEMICOLON,
	/* A backslash is a slash to some; a decoded '%' is decoded once more by some; 0xc0 and 0xc1 begin the overlong UTF-8. */
	['\\'] = ODD, ['%'] = ODD, [0x00 ... 0x1f] = ODD, [0x7f] = ODD, [0xc0 ... 0xc1] = ODD,
};

/* What a segment of the path holds so far. */
enum segment { NOTHING, ONE_DOT, TWO_DOTS, NAMED, WRONG, SEGMENTS };

/*
 * Segments that a server may remove or merge: empty ones, "." and "..", also with a parameter (";x"), which some servers cut
 * off. No client that means well sends them.
 */
static const u8 segments[8 * 8] = {
#define SEGMENT(segment, part, next) [(segment) * 8 + (part)] = next
	SEGMENT(NOTHING, OTHER, NAMED), SEGMENT(NOTHING, SLASH_PART, WRONG), SEGMENT(NOTHING, DOT_PART, ONE_DOT),
	SEGMENT(NOTHING, SEMICOLON, WRONG), SEGMENT(NOTHING, ODD, WRONG),
	SEGMENT(ONE_DOT, OTHER, NAMED), SEGMENT(ONE_DOT, SLASH_PART, WRONG), SEGMENT(ONE_DOT, DOT_PART, TWO_DOTS),
	SEGMENT(ONE_DOT, SEMICOLON, WRONG), SEGMENT(ONE_DOT, ODD, WRONG),
	SEGMENT(TWO_DOTS, OTHER, NAMED), SEGMENT(TWO_DOTS, SLASH_PART, WRONG), SEGMENT(TWO_DOTS, DOT_PART, NAMED),
	SEGMENT(TWO_DOTS, SEMICOLON, WRONG), SEGMENT(TWO_DOTS, ODD, WRONG),
	SEGMENT(NAMED, OTHER, NAMED), SEGMENT(NAMED, SLASH_PART, NOTHING), SEGMENT(NAMED, DOT_PART, NAMED),
	SEGMENT(NAMED, SEMICOLON, NAMED), SEGMENT(NAMED, ODD, WRONG),
	[WRONG * 8 ... WRONG * 8 + 7] = WRONG,
};

/* Values of hexadecimal digits; 0x10 for all other bytes. */
static const u8 nibbles[256] = {
	[0 ... 255] = 0x10,
	['0'] = 0, ['1'] = 1, ['2'] = 2, ['3'] = 3, ['4'] = 4, ['5'] = 5, ['6'] = 6, ['7'] = 7, ['8'] = 8, ['9'] = 9,
	['a'] = 10, ['b'] = 11, ['c'] = 12, ['d'] = 13, ['e'] = 14, ['f'] = 15,
	['A'] = 10, ['B'] = 11, ['C'] = 12, ['D'] = 13, ['E'] = 14, ['F'] = 15,
};

/* `c` in small letters. Arithmetic only, as in next_byte(). */
static __always_inline u64 small(u64 c)
{
	u64 from_a = c - 'A';

	return c + 0x20 * ((from_a - 26) >> 63 & ~(from_a >> 63));
}

#define NO_MATCH 32

/*
 * Judges one message of parse_request by its path, as a server would understand it: escapes are decoded, and what servers
 * understand differently is forbidden (see `parts` and `segments`), as is a target that is no path: "http://host/path",
 * CONNECT's "host:port".
 */
SEC("sk_skb/stream_verdict")
int no_admin(struct __sk_buff *skb)
{
	const u8 *start = message_start(skb), *end = message_end(skb), *p;
	u64 at = 0, matched = 0, segment = NAMED;

	if (!forbidden_prefix[0])
		return SK_PASS;
	for (u64 i = 0; i < METHOD_MAX; i++) {
		if (start + i + 1 > end)
			return forbidden_verdict;
		if (start[i] == ' ') {
			at = i + 1;
			break;
		}
	}
	at = forget(skb, at);
	if (!at || at > METHOD_MAX)
		return forbidden_verdict;
	start = message_start(skb);
	end = message_end(skb);
	p = start + at;
	if (p + 2 > end)
		return forbidden_verdict;
	if (p[0] == '*' && p[1] == ' ')
		return SK_PASS; /* OPTIONS * */
	if (p[0] != '/')
		return forbidden_verdict;

	for (u64 i = 0; i < PATH_MAX_JUDGED; i++) {
		u64 c, size = 1, equal;

		start = message_start(skb);
		end = message_end(skb);
		if (!HOLDS(at, <=, READABLE))
			return forbidden_verdict;
		p = start + at;
		if (!HOLDS(p + 3, <=, end))
			return forbidden_verdict; /* not reached: the head goes on behind the path */
		c = p[0];
		if (!HOLDS(c, !=, ' ') || !HOLDS(c, !=, '?'))
			return segment == NOTHING || segment == NAMED ? SK_PASS : forbidden_verdict;
		if (!HOLDS(c, !=, '#'))
			return forbidden_verdict; /* no fragment belongs here */
		if (c == '%') {
			u64 high = nibbles[p[1]], low = nibbles[p[2]];

			if (!HOLDS((high | low) & 0x10, ==, 0))
				return forbidden_verdict;
			c = high << 4 | low;
			size = 3;
		}
		c = forget(skb, c) & 0xff;
		segment = segments[(segment & 7) * 8 + (parts[c] & 7)];
		if (!HOLDS(segment, !=, WRONG))
			return forbidden_verdict;

		/* `matched` characters of the prefix were met, or it was missed: NO_MATCH. */
		equal = ((small(c) ^ small((u8)forbidden_prefix[matched & PREFIX_MAX])) - 1) >> 63;
		OPAQUE(equal);
		equal &= 1 - matched / NO_MATCH;
		matched = matched * equal + equal + NO_MATCH * (1 - equal);
		if (!HOLDS(forbidden_prefix[matched & PREFIX_MAX] | (matched & NO_MATCH), !=, 0))
			return forbidden_verdict;
		matched = forget(skb, matched);
		at = distance(start, p) + size;
	}
	return forbidden_verdict; /* too long to judge */
}

char _license[] SEC("license") = "Dual MIT/GPL";
