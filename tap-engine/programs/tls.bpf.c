// SPDX-License-Identifier: MIT OR Apache-2.0
/*
 * TLS records from a client (RFC 8446 section 5.1), judged by what the ClientHello asks for: server name (SNI, RFC 6066) and protocols (ALPN,
 * RFC 7301). All else is encrypted, or says nothing.
 *
 *     0      1         3        5
 *     ┌──────┬─────────┬────────┬──────────┐
 *     │ type │ version │ length │ fragment │     record = 5 + length bytes
 *     └──────┴─────────┴────────┴──────────┘
 *
 * See tls.md.
 */
#include "socktap.h"

#define HEADER 5
/* RFC 8446 section 5.2: a ciphertext may be 256 bytes longer than a plaintext (TLS 1.2: 2048). */
#define FRAGMENT_MAX (16384 + 2048)

#define RECORD_HANDSHAKE 22
#define RECORD_MIN 20
#define RECORD_MAX 24
#define CLIENT_HELLO 1
#define EXTENSION_SNI 0
#define EXTENSION_ALPN 16
#define EXTENSION_ECH 0xfe0d

#define EXTENSIONS 64
#define NAMES 8
#define NAME_MAX 64

/*
 * Server names, in small letters. ".example.com" means all names below example.com, and "example.com" that one; an empty entry none. They are the
 * forbidden ones, or, if `names_are_allowed` is 1, all that is allowed.
 */
const volatile char names[NAMES][NAME_MAX] = { ".internal" };
const volatile u8 names_are_allowed = 0;
/* A ClientHello without a name, and one whose name is encrypted (ECH), pass if these are 1. */
const volatile u8 allow_no_name = 0;
const volatile u8 allow_encrypted_name = 0;
/* One protocol (ALPN) that is forbidden, wherever it stands in the list; empty: none. */
const volatile char forbidden_protocol[16] = "";
/* What becomes of a forbidden ClientHello; a client that gets no answer (0) waits. */
const volatile u8 forbidden_verdict = STAP_DISCONNECT;

SEC("sk_skb/stream_parser")
int parse_record(struct __sk_buff *skb)
{
	const u8 *p = message_start(skb);
	u64 n;

	if (p + HEADER > message_end(skb))
		return NEED_MORE;
	/* SSL 2 and whatever is no TLS end here. */
	if (p[0] < RECORD_MIN || p[0] > RECORD_MAX || p[1] != 3)
		return MALFORMED;
	n = (u64)p[3] << 8 | p[4];
	if (n > FRAGMENT_MAX)
		return TOO_LONG;
	/* An empty record is allowed for application data only, and says nothing. */
	return HEADER + n;
}

/* The big-endian number of two bytes at `offset`, or -1 beyond the end. */
static __always_inline long read2(struct __sk_buff *skb, u64 offset)
{
	const u8 *p = message_start(skb) + (offset & 0x7fff);

	if (p + 2 > message_end(skb))
		return -1;
	return (long)p[0] << 8 | p[1];
}

static __always_inline long read1(struct __sk_buff *skb, u64 offset)
{
	const u8 *p = message_start(skb) + (offset & 0x7fff);

	return p + 1 > message_end(skb) ? -1 : p[0];
}

/* The state of a comparison from the end: bpf_loop calls back for each byte. */
struct comparison {
	struct __sk_buff *skb;
	/* Where the name ends, and its length. */
	u32 end, length;
	/* Which of the names, and its length. */
	u32 index, pattern;
	u32 equal;
};

static long compare_byte(u32 turn, struct comparison *c)
{
	u64 at = c->pattern - 1 - turn, index = c->index;
	long byte = read1(c->skb, c->end - 1 - turn);

	if (byte >= 'A' && byte <= 'Z')
		byte |= 0x20;
	/* Both are small; the masks tell the verifier so. */
	at &= NAME_MAX - 1;
	index &= NAMES - 1;
	OPAQUE(at);
	OPAQUE(index);
	if (at >= NAME_MAX || index >= NAMES || byte != names[index][at]) {
		c->equal = 0;
		return 1;
	}
	return 0;
}

static __always_inline u32 pattern_length(u32 index)
{
	u32 n = 0;

	for (u32 i = 0; i < NAME_MAX; i++) {
		if (names[index & (NAMES - 1)][i] == 0)
			break;
		n = i + 1;
	}
	return n;
}

/* Whether the name of `length` bytes at `offset` is in the list. */
static __noinline int is_listed(struct __sk_buff *skb, u32 offset, u32 length)
{
	for (u32 i = 0; i < NAMES; i++) {
		struct comparison c = { .skb = skb, .end = offset + length, .length = length, .index = i, .equal = 1 };

		c.pattern = pattern_length(i);
		if (c.pattern == 0 || c.pattern > length || (names[i][0] != '.' && c.pattern != length))
			continue;
		bpf_loop(c.pattern, compare_byte, &c, 0);
		if (c.equal)
			return 1;
	}
	return 0;
}

/* What is known of a connection: its ClientHello has passed. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 65536);
	__type(key, u64);
	__type(value, u8);
} greeted SEC(".maps");

struct hello {
	struct __sk_buff *skb;
	/* The extension that is next, and where they end. */
	u32 offset, end;
	u8 has_name, is_listed, is_encrypted, has_protocol, is_broken;
};

static long protocol_matches(struct __sk_buff *skb, u32 offset, u32 length)
{
	for (u32 i = 0; i < sizeof(forbidden_protocol); i++) {
		if (i == length)
			return forbidden_protocol[i] == 0;
		if (read1(skb, offset + i) != forbidden_protocol[i])
			return 0;
	}
	return 0;
}

/* server_name: a list of one host name (RFC 6066 section 3). */
static __always_inline void read_name(struct hello *hello, u32 at, u32 length)
{
	long list = read2(hello->skb, at), name = read2(hello->skb, at + 3);

	if (list < 0 || name <= 0 || list + 2 != length || name + 3 != list || read1(hello->skb, at + 2) != 0 ||
	    hello->has_name) {
		hello->is_broken = 1;
		return;
	}
	hello->has_name = 1;
	if (is_listed(hello->skb, at + 5, name))
		hello->is_listed = 1;
}

/* application_layer_protocol_negotiation: a list of names with a byte of length each (RFC 7301 section 3.1). */
static __always_inline void read_protocols(struct hello *hello, u32 at, u32 length)
{
	u32 end = at + length;

	if (read2(hello->skb, at) + 2 != length)
		hello->is_broken = 1;
	at += 2;
	for (int i = 0; i < 16; i++) {
		long n = read1(hello->skb, at);

		if (at >= end)
			return;
		if (n <= 0 || at + 1 + n > end) {
			hello->is_broken = 1;
			return;
		}
		if (protocol_matches(hello->skb, at + 1, n))
			hello->has_protocol = 1;
		at += 1 + n;
	}
	/* More than anybody offers. */
	hello->is_broken = 1;
}

static long read_extension(u32 turn, struct hello *hello)
{
	u32 at = hello->offset & 0x7fff;
	long type = read2(hello->skb, at), length = read2(hello->skb, at + 2);

	if (at == hello->end)
		return 1;
	if (type < 0 || length < 0 || at + 4 + length > hello->end) {
		hello->is_broken = 1;
		return 1;
	}
	if (type == EXTENSION_SNI)
		read_name(hello, at + 4, length);
	else if (type == EXTENSION_ALPN && forbidden_protocol[0] != 0)
		read_protocols(hello, at + 4, length);
	else if (type == EXTENSION_ECH)
		hello->is_encrypted = 1;
	hello->offset = at + 4 + length;
	return hello->is_broken ? 1 : 0;
}

/* Whether the ClientHello, which is to be the whole record, may pass. */
static __noinline int may_greet(struct __sk_buff *skb)
{
	struct hello hello = { .skb = skb };
	u32 at = HEADER, end = skb->len;
	long n = read2(skb, at + 2);

	/* One message, whole: what is spread over records could be put together otherwise by the server. */
	if (read1(skb, 0) != RECORD_HANDSHAKE || read1(skb, at) != CLIENT_HELLO || read1(skb, at + 1) != 0 || n < 0 ||
	    at + 4 + n != end)
		return 0;
	/* Version and random; session, ciphers, compression. */
	at += 4 + 2 + 32;
	n = read1(skb, at);
	if (n < 0 || n > 32)
		return 0;
	at += 1 + n;
	n = read2(skb, at);
	if (n < 0)
		return 0;
	at += 2 + n;
	n = read1(skb, at);
	if (n < 0)
		return 0;
	at += 1 + n;
	if (at != end) {
		n = read2(skb, at);
		if (n < 0 || at + 2 + n != end)
			return 0;
		hello.offset = at + 2;
		hello.end = end;
		bpf_loop(EXTENSIONS, read_extension, &hello, 0);
		if (hello.is_broken || hello.offset != end)
			return 0;
	}
	if (hello.has_protocol || (hello.is_encrypted && !allow_encrypted_name))
		return 0;
	if (!hello.has_name)
		return allow_no_name != 0;
	return hello.is_listed == (names_are_allowed != 0);
}

SEC("sk_skb/stream_verdict")
int by_name(struct __sk_buff *skb)
{
	u64 flow = bpf_get_socket_cookie(skb);
	u8 yes = 1;

	if (bpf_map_lookup_elem(&greeted, &flow))
		return SK_PASS;
	if (!may_greet(skb))
		return forbidden_verdict;
	bpf_map_update_elem(&greeted, &flow, &yes, BPF_ANY);
	return SK_PASS;
}

char _license[] SEC("license") = "Dual MIT/GPL";
