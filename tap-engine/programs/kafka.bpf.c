// SPDX-License-Identifier: MIT OR Apache-2.0
/*
 * Requests to an Apache Kafka broker: https://kafka.apache.org/protocol
 *
 *     0        4         6             8                12
 *     ┌────────┬─────────┬─────────────┬────────────────┬─────
 *     │ length │ api key │ api version │ correlation id │ ...     all big endian; length counts what follows it
 *     └────────┴─────────┴─────────────┴────────────────┴─────
 *
 * Each request names its kind, so what administrators do can be told from what producers and consumers do. See kafka.md.
 */
#include "socktap.h"

#define PREFIX 4
#define HEADER 8
#define PAYLOAD_MAX (0x7fffffff - PREFIX)
#define KEYS 32

/*
 * Kinds of requests (api keys) that are forbidden; 0 ends the list. Between brokers: 4 LeaderAndIsr, 5 StopReplica, 6 UpdateMetadata,
 * 7 ControlledShutdown. Of administrators: 20 DeleteTopics, 21 DeleteRecords, 30 CreateAcls, 31 DeleteAcls, 33 AlterConfigs,
 * 34 AlterReplicaLogDirs, 42 DeleteGroups, 44 IncrementalAlterConfigs, 45 AlterPartitionReassignments, 47 OffsetDelete,
 * 51 AlterUserScramCredentials, 57 UpdateFeatures, 64 UnregisterBroker.
 */
const volatile s16 forbidden_keys[KEYS] = {
	4, 5, 6, 7, 20, 21, 30, 31, 33, 34, 42, 44, 45, 47, 51, 57, 64,
};
/* Produce, whose kind is 0, passes if this is 1. */
const volatile u8 allow_produce = 1;
/* The highest kind that passes: what comes after this list was written is not known. */
const volatile s16 highest_key = 92;
/* What becomes of what is forbidden. Answers are counted: a client whose request is dropped (0) waits. */
const volatile u8 forbidden_verdict = STAP_DISCONNECT;

SEC("sk_skb/stream_parser")
int parse_request(struct __sk_buff *skb)
{
	const u8 *p = message_start(skb);
	u64 n;

	if (p + PREFIX > message_end(skb))
		return NEED_MORE;
	n = (u64)p[0] << 24 | (u64)p[1] << 16 | (u64)p[2] << 8 | p[3];
	/* A negative length, and one without room for a header. */
	if (n > PAYLOAD_MAX)
		return TOO_LONG;
	return n < HEADER ? MALFORMED : PREFIX + n;
}

SEC("sk_skb/stream_verdict")
int no_admin(struct __sk_buff *skb)
{
	const u8 *p = message_start(skb);
	s16 key;

	if (p + PREFIX + HEADER > message_end(skb))
		return forbidden_verdict;
	key = (u16)p[PREFIX] << 8 | p[PREFIX + 1];
	if (key < 0 || key > highest_key)
		return forbidden_verdict;
	if (key == 0)
		return allow_produce ? SK_PASS : forbidden_verdict;
	for (int i = 0; i < KEYS; i++)
		if (forbidden_keys[i] == key)
			return forbidden_verdict;
	return SK_PASS;
}

char _license[] SEC("license") = "Dual MIT/GPL";
