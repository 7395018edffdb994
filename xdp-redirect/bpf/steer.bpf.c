// SPDX-License-Identifier: MIT OR Apache-2.0
/*
 * The XDP program: decides from a frame's headers what becomes of it.
 *
 *   selected by a tap  -> the AF_XDP socket of its rx queue; no socket there: dropped (closed for what a tap selects)
 *   an ICMP error      -> if it quotes TCP: the same socket, since it may be about a tapped flow, and the worker sends it
 *   about TCP             across; no socket there: across
 *   everything else    -> across, to the other port: through the devmap, or through the AF_XDP socket when the
 *                         worker forwards it (`cross_by_worker`)
 *
 * Two entry points, one per port, share all maps. On the client port a frame's destination is the server, on the
 * server port its source is.
 *
 * What cannot be parsed as far as the TCP ports cannot be judged. If it is, or may be, TCP between two addresses that a
 * tap selects, whatever its ports, it is dropped: it could be of a tapped flow. (Taps that only observe are not meant.) That
 * goes for IP fragments too, unless
 * the ops file lets them cross (`cross_fragments`). All else of this kind crosses, and is counted.
 */
#include <linux/bpf.h>
#include <linux/icmpv6.h>
#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/ipv6.h>

#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

/* The same numbers stand in src/program.rs. */
#define CLIENT 0
#define SERVER 1
#define MAX_QUEUES 1024 /* per port */

#define VLAN_TAGS 2
#define IP_FRAGMENT 0x3fff   /* more fragments, or an offset; not "don't fragment" */
#define EXTENSION_HEADERS 8  /* IPv6 extension headers that are walked */

/* RFC 792. linux/icmp.h has them too, but needs the C library. */
#define ICMP_DEST_UNREACH 3
#define ICMP_SOURCE_QUENCH 4
#define ICMP_TIME_EXCEEDED 11
#define ICMP_PARAMETERPROB 12

/*
 * Why: every frame counts in exactly one of the first nine. What: every frame counts in exactly one of the others.
 * src/counters.rs has the same names in the same order; a test compares them.
 */
#define REASONS(X)                                                                                                     \
	X(selected)                                                                                                    \
	X(not_selected)                                                                                                \
	X(not_ip)                                                                                                      \
	X(not_tcp)                                                                                                     \
	X(icmp_error)                                                                                                  \
	X(fragment)                                                                                                    \
	X(fragment_of_tap)                                                                                             \
	X(malformed)                                                                                                   \
	X(unreadable_of_tap)                                                                                           \
	X(tapped)                                                                                                      \
	X(no_socket)                                                                                                   \
	X(unjudgeable)                                                                                                 \
	X(crossed)                                                                                                     \
	X(to_worker)                                                                                                   \
	X(redirect_error)

#define X(name) reason_##name,
enum reason { REASONS(X) reason_count };
#undef X

/* 1: frames that no tap selects go to the AF_XDP socket too. */
volatile const __u32 cross_by_worker = 0;

/* 1: fragments of TCP cross, whatever addresses a tap selects. */
volatile const __u32 cross_fragments = 0;

struct key4 {
	__u32 prefix_length;
	__u8 address[4];
};

struct key6 {
	__u32 prefix_length;
	__u8 address[16];
};

/* A value is the set of taps (bit n = tap n) whose prefixes cover the key: those of shorter prefixes included. */
#define PREFIX_MAP(name, key_type)                                                                                     \
	struct {                                                                                                       \
		__uint(type, BPF_MAP_TYPE_LPM_TRIE);                                                                   \
		__uint(map_flags, BPF_F_NO_PREALLOC);                                                                  \
		__uint(max_entries, 1);                                                                                \
		__type(key, key_type);                                                                                 \
		__type(value, __u64);                                                                                  \
	} name SEC(".maps")

PREFIX_MAP(servers4, struct key4);
PREFIX_MAP(servers6, struct key6);
PREFIX_MAP(clients4, struct key4);
PREFIX_MAP(clients6, struct key6);

/* The set of taps for each server port. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 65536);
	__type(key, __u32);
	__type(value, __u64);
} server_ports SEC(".maps");

/* The set of taps that pass everything: what could be theirs and cannot be judged crosses. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u64);
} observing SEC(".maps");

/* Index: side * MAX_QUEUES + rx queue. */
struct {
	__uint(type, BPF_MAP_TYPE_XSKMAP);
	__uint(max_entries, 2 * MAX_QUEUES);
	__type(key, __u32);
	__type(value, __u32);
} sockets SEC(".maps");

/* Index: the side that the port faces. */
struct {
	__uint(type, BPF_MAP_TYPE_DEVMAP);
	__uint(max_entries, 2);
	__type(key, __u32);
	__type(value, struct bpf_devmap_val);
} ports SEC(".maps");

/* Index: side * reason_count + reason. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 2 * reason_count);
	__type(key, __u32);
	__type(value, __u64);
} counters SEC(".maps");

struct vlan_tag {
	__be16 control;
	__be16 protocol;
};

struct extension_header {
	__u8 next;
	__u8 length; /* in 8 bytes, the first 8 not counted */
};

/* What is before the quoted packet in an error of ICMP (RFC 792) or ICMPv6 (RFC 4443). */
struct icmp_error {
	__u8 type;
	__u8 code;
	__be16 checksum;
	__be32 of_type;
};

struct tcp_ports {
	__be16 source;
	__be16 destination;
};

static __always_inline void count(__u32 side, enum reason reason)
{
	__u32 index = side * reason_count + reason;
	__u64 *counter = bpf_map_lookup_elem(&counters, &index);

	if (counter)
		*counter += 1; /* per CPU: no atomics needed */
}

/* The taps that select this pair of addresses. `source` and `destination` are 4 or 16 bytes, by family. */
#define ADDRESS_MASK(family, key_type, length)                                                                         \
	static __always_inline __u64 mask##family(__u32 side, const void *source, const void *destination)             \
	{                                                                                                              \
		key_type server = {.prefix_length = 8 * length}, client = {.prefix_length = 8 * length};               \
		__u64 *servers, *clients;                                                                              \
                                                                                                                       \
		__builtin_memcpy(server.address, side == CLIENT ? destination : source, length);                       \
		__builtin_memcpy(client.address, side == CLIENT ? source : destination, length);                       \
		servers = bpf_map_lookup_elem(&servers##family, &server);                                              \
		if (!servers)                                                                                          \
			return 0;                                                                                      \
		clients = bpf_map_lookup_elem(&clients##family, &client);                                              \
		return clients ? *servers & *clients : 0;                                                              \
	}

ADDRESS_MASK(4, struct key4, 4)
ADDRESS_MASK(6, struct key6, 16)

/* Whether one of the taps of `mask` must not be gone around. */
static __always_inline int is_guarded(__u64 mask)
{
	__u32 zero = 0;
	__u64 *taps;

	if (!mask)
		return 0;
	taps = bpf_map_lookup_elem(&observing, &zero);
	return !taps || (mask & ~*taps);
}

/* What is, or may be, TCP and cannot be read. `mask`: the taps that select its addresses. */
static __always_inline enum reason by_mask(__u64 mask)
{
	return is_guarded(mask) ? reason_unreadable_of_tap : reason_malformed;
}

/* The same for a fragment, which only its receiver can read. */
static __always_inline enum reason by_mask_of_fragment(__u64 mask)
{
	return !cross_fragments && is_guarded(mask) ? reason_fragment_of_tap : reason_fragment;
}

/* Whether one of the taps of `mask` has the server's port of this segment. */
static __always_inline enum reason by_port(__u32 side, const struct tcp_ports *tcp, const void *end, __u64 mask)
{
	__u64 *taps;
	__u32 port;

	if ((void *)(tcp + 1) > end)
		return by_mask(mask);
	if (!mask)
		return reason_not_selected;
	port = bpf_ntohs(side == CLIENT ? tcp->destination : tcp->source);
	taps = bpf_map_lookup_elem(&server_ports, &port);
	return taps && (*taps & mask) ? reason_selected : reason_not_selected;
}

/* Whether an ICMP message is an error about TCP. A redirect says nothing about the packet that it quotes. */
static __always_inline enum reason by_icmp(const struct icmp_error *icmp, const void *end)
{
	const struct iphdr *quoted = (const void *)(icmp + 1);

	if ((void *)(quoted + 1) > end || quoted->protocol != IPPROTO_TCP)
		return reason_not_tcp;
	switch (icmp->type) {
	case ICMP_DEST_UNREACH:
	case ICMP_SOURCE_QUENCH:
	case ICMP_TIME_EXCEEDED:
	case ICMP_PARAMETERPROB:
		return reason_icmp_error;
	default:
		return reason_not_tcp;
	}
}

/* The same for ICMPv6. What is behind extension headers of the quoted packet is the worker's to find. */
static __always_inline enum reason by_icmpv6(const struct icmp_error *icmp, const void *end)
{
	const struct ipv6hdr *quoted = (const void *)(icmp + 1);

	if ((void *)(quoted + 1) > end || icmp->type < ICMPV6_DEST_UNREACH || icmp->type > ICMPV6_PARAMPROB)
		return reason_not_tcp;
	switch (quoted->nexthdr) {
	case IPPROTO_TCP:
	case IPPROTO_HOPOPTS:
	case IPPROTO_ROUTING:
	case IPPROTO_DSTOPTS:
		return reason_icmp_error;
	default:
		return reason_not_tcp;
	}
}

static __always_inline enum reason by_ipv4(__u32 side, const void *position, const void *end)
{
	const struct iphdr *ip = position;
	__u64 mask;

	if ((void *)(ip + 1) > end || ip->version != 4)
		return reason_malformed;
	if (ip->protocol == IPPROTO_TCP) {
		mask = mask4(side, &ip->saddr, &ip->daddr);
		if (ip->ihl < 5)
			return by_mask(mask);
		if (ip->frag_off & bpf_htons(IP_FRAGMENT))
			return by_mask_of_fragment(mask);
		return by_port(side, position + ip->ihl * 4, end, mask);
	}
	if (ip->ihl < 5)
		return reason_malformed;
	if (ip->frag_off & bpf_htons(IP_FRAGMENT))
		return reason_fragment;
	if (ip->protocol == IPPROTO_ICMP)
		return by_icmp(position + ip->ihl * 4, end);
	return reason_not_tcp;
}

/* Extension headers that are walked. Behind AH and ESP, TCP is the business of two hosts with a key for it. */
static __always_inline int is_walked(__u8 next)
{
	return next == IPPROTO_HOPOPTS || next == IPPROTO_ROUTING || next == IPPROTO_DSTOPTS;
}

/* Whether what has this number is TCP, or something that TCP may be behind. */
static __always_inline int may_be_tcp(__u8 next)
{
	return next == IPPROTO_TCP || next == IPPROTO_FRAGMENT || is_walked(next);
}

static __always_inline enum reason by_ipv6(__u32 side, const void *position, const void *end)
{
	const struct ipv6hdr *ip = position;
	const struct extension_header *extension;
	int is_fragment = 0;
	__u64 mask;
	__u8 next;

	if ((void *)(ip + 1) > end || ip->version != 6)
		return reason_malformed;
	next = ip->nexthdr;
	position += sizeof(*ip);

	for (int i = 0; i < EXTENSION_HEADERS && is_walked(next); i++) {
		extension = position;
		if ((void *)(extension + 1) > end)
			break;
		next = extension->next;
		position += (extension->length + 1) * 8;
	}

	if (next == IPPROTO_ICMPV6)
		return by_icmpv6(position, end);
	if (!may_be_tcp(next))
		return reason_not_tcp;
	if (next == IPPROTO_FRAGMENT) {
		extension = position;
		is_fragment = (void *)(extension + 1) <= end;
		/* Each fragment says what the packet begins with, and the receiver believes the first (RFC 8200, 4.5). */
		if (is_fragment && !may_be_tcp(extension->next))
			return reason_fragment;
	}

	mask = mask6(side, &ip->saddr, &ip->daddr);
	if (is_fragment)
		return by_mask_of_fragment(mask);
	/* Without a length, the packet's end is in an option (RFC 2675), or where the receiver thinks. */
	if (next == IPPROTO_TCP && ip->payload_len)
		return by_port(side, position, end, mask);
	return by_mask(mask); /* or more headers than we walk, or one that is not all there */
}

static __always_inline enum reason classify(struct xdp_md *ctx, __u32 side)
{
	const void *position = (void *)(long)ctx->data;
	const void *end = (void *)(long)ctx->data_end;
	const struct ethhdr *ethernet = position;
	const struct vlan_tag *tag;
	__be16 protocol;

	if ((void *)(ethernet + 1) > end)
		return reason_malformed;
	protocol = ethernet->h_proto;
	position += sizeof(*ethernet);

#pragma unroll
	for (int i = 0; i < VLAN_TAGS; i++) {
		if (protocol != bpf_htons(ETH_P_8021Q) && protocol != bpf_htons(ETH_P_8021AD))
			break;
		tag = position;
		if ((void *)(tag + 1) > end)
			return reason_malformed;
		protocol = tag->protocol;
		position += sizeof(*tag);
	}

	if (protocol == bpf_htons(ETH_P_IP))
		return by_ipv4(side, position, end);
	if (protocol == bpf_htons(ETH_P_IPV6))
		return by_ipv6(side, position, end);
	return reason_not_ip;
}

static __always_inline int steer(struct xdp_md *ctx, __u32 side)
{
	enum reason why = classify(ctx, side);
	__u32 queue = ctx->rx_queue_index;

	count(side, why);
	if (why == reason_fragment_of_tap || why == reason_unreadable_of_tap) {
		count(side, reason_unjudgeable);
		return XDP_DROP;
	}
	if (why == reason_selected || why == reason_icmp_error || cross_by_worker) {
		if (queue < MAX_QUEUES &&
		    bpf_redirect_map(&sockets, side * MAX_QUEUES + queue, XDP_DROP) == XDP_REDIRECT) {
			count(side, why == reason_selected ? reason_tapped : reason_to_worker);
			return XDP_REDIRECT;
		}
		if (why == reason_selected) {
			count(side, reason_no_socket);
			return XDP_DROP;
		}
	}
	if (bpf_redirect_map(&ports, side == CLIENT ? SERVER : CLIENT, XDP_DROP) == XDP_REDIRECT) {
		count(side, reason_crossed);
		return XDP_REDIRECT;
	}
	count(side, reason_redirect_error);
	return XDP_DROP;
}

SEC("xdp")
int steer_client(struct xdp_md *ctx)
{
	return steer(ctx, CLIENT);
}

SEC("xdp")
int steer_server(struct xdp_md *ctx)
{
	return steer(ctx, SERVER);
}

char _license[] SEC("license") = "Dual MIT/GPL";
