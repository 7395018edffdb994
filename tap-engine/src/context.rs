//! What a program sees besides the bytes: `struct __sk_buff` with the layout of `include/uapi/linux/bpf.h`.
//!
//! Fields hold what the kernel shows to an `sk_skb` program of the application's own socket (`sk_skb_convert_ctx_access` and
//! `bpf_convert_ctx_access` in `net/core/filter.c`), in the same byte orders. All others are 0. What a program writes
//! to it (`priority`, `tc_index`, `cb[]`) is kept from the parser to the verdict of a message, and no longer.

use std::net::{IpAddr, SocketAddr};

/// `sizeof(struct __sk_buff)`.
pub(crate) const CONTEXT_SIZE: usize = 192;

/// Offsets of the fields of `struct __sk_buff` that are filled in.
mod offset {
    pub(super) const LEN: usize = 0;
    pub(super) const PROTOCOL: usize = 16;
    pub(super) const VLAN_PRESENT: usize = 20;
    pub(super) const VLAN_TCI: usize = 24;
    pub(super) const VLAN_PROTO: usize = 28;
    pub(super) const PRIORITY: usize = 32;
    pub(super) const INGRESS_IFINDEX: usize = 36;
    pub(super) const IFINDEX: usize = 40;
    pub(super) const TC_INDEX: usize = 44;
    pub(super) const HASH: usize = 68;
    pub(super) const DATA: usize = 76;
    pub(super) const DATA_END: usize = 80;
    pub(super) const FAMILY: usize = 88;
    pub(super) const REMOTE_IP4: usize = 92;
    pub(super) const LOCAL_IP4: usize = 96;
    pub(super) const REMOTE_IP6: usize = 100;
    pub(super) const LOCAL_IP6: usize = 116;
    pub(super) const REMOTE_PORT: usize = 132;
    pub(super) const LOCAL_PORT: usize = 136;
    /// `hwtstamp`, which `sk_skb` programs may not read: when the flow began.
    pub(super) const BIRTH: usize = 184;
}

const AF_INET: u32 = 2;
const AF_INET6: u32 = 10;
const ETH_P_IP: u16 = 0x0800;
const ETH_P_IPV6: u16 = 0x86dd;

/// A `struct __sk_buff`, as words.
pub(crate) type ContextImage = [u64; CONTEXT_SIZE / 8];

/// Whether programs may write `length` bytes at `offset`: `priority`, and `tc_index` and `cb[]`, which lie together.
pub(crate) fn is_writable(offset: u64, length: u64) -> bool {
    const WRITABLE: [std::ops::Range<u64>; 2] = [32..36, 44..68];
    WRITABLE.iter().any(|field| field.start <= offset && offset + length <= field.end)
}

/// What a program wrote to its context: `priority`, `tc_index` and `cb[]`, kept between the parser and the verdict of a message.
pub(crate) type Notes = [u32; 7];

/// What programs may know of a flow, in the shape in which they see it. `local` is the protected application's end of it, `remote` the
/// other, in both directions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FlowInfo {
    image: ContextImage,
}

impl FlowInfo {
    /// A flow between the application at `local` and its peer; no interface, no VLAN, no hash.
    pub fn new(local: SocketAddr, remote: SocketAddr) -> Self {
        let mut flow = Self { image: [0; CONTEXT_SIZE / 8] };
        let (family, protocol) = if local.is_ipv4() { (AF_INET, ETH_P_IP) } else { (AF_INET6, ETH_P_IPV6) };
        flow.put(offset::FAMILY, family);
        // skb->protocol is a __be16, loaded as a number: bpf_htons(ETH_P_IP) is what programs compare it with.
        flow.put(offset::PROTOCOL, u32::from(protocol.to_be()));
        for (address, ip4, ip6) in
            [(remote.ip(), offset::REMOTE_IP4, offset::REMOTE_IP6), (local.ip(), offset::LOCAL_IP4, offset::LOCAL_IP6)]
        {
            match address {
                IpAddr::V4(address) => flow.put(ip4, u32::from_ne_bytes(address.octets())),
                IpAddr::V6(address) => {
                    for (index, word) in address.octets().chunks_exact(4).enumerate() {
                        flow.put(ip6 + 4 * index, u32::from_ne_bytes([word[0], word[1], word[2], word[3]]));
                    }
                }
            }
        }
        // The whole 32-bit field is in network byte order: the kernel shifts the __be16 up on little-endian hosts, so that
        // bpf_ntohl(skb->remote_port) is the port.
        flow.put(offset::REMOTE_PORT, u32::from(remote.port()).to_be());
        // skc_num: host byte order.
        flow.put(offset::LOCAL_PORT, local.port().into());
        flow
    }

    /// The same, with `ifindex` and `ingress_ifindex` told.
    pub fn with_ifindex(mut self, ifindex: u32) -> Self {
        self.put(offset::INGRESS_IFINDEX, ifindex);
        self.put(offset::IFINDEX, ifindex);
        self
    }

    /// The same, with the tag of its frames: the control information, and the protocol as in the frame (0x8100, 0x88a8).
    pub fn with_vlan(mut self, control: u16, protocol: u16) -> Self {
        self.put(offset::VLAN_PRESENT, 1);
        self.put(offset::VLAN_TCI, control.into());
        self.put(offset::VLAN_PROTO, protocol.to_be().into());
        self
    }

    /// The same, with `hash`: a number that packets of the flow share.
    pub fn with_hash(mut self, hash: u32) -> Self {
        self.put(offset::HASH, hash);
        self
    }

    /// The same, begun at `now_us`, in microseconds: `bpf_get_socket_cookie` is another one than that of an earlier flow between the same ends.
    pub fn with_birth(mut self, now_us: u64) -> Self {
        self.image[offset::BIRTH / 8] = now_us;
        self
    }

    /// From now on it shows `length` bytes that lie at address `data`.
    pub(crate) fn show(&mut self, data: u32, length: u32) {
        self.put(offset::LEN, length);
        self.put(offset::DATA, data);
        self.put(offset::DATA_END, data + length);
    }

    /// The whole, as programs see it.
    pub(crate) fn image_mut(&mut self) -> &mut ContextImage {
        &mut self.image
    }

    /// What programs have written. The kernel keeps 16 bits of `tc_index`.
    pub(crate) fn notes(&self) -> Notes {
        let mut notes: Notes = std::array::from_fn(|index| self.get(Self::note(index)));
        notes[1] &= 0xffff;
        notes
    }

    /// Gives programs what was written before.
    pub(crate) fn set_notes(&mut self, notes: &Notes) {
        for (index, note) in notes.iter().enumerate() {
            self.put(Self::note(index), *note);
        }
    }

    fn note(index: usize) -> usize {
        if index == 0 { offset::PRIORITY } else { offset::TC_INDEX + 4 * (index - 1) }
    }

    /// Field `at`, whose offset is a multiple of 4.
    fn get(&self, at: usize) -> u32 {
        let bytes = self.image[at / 8].to_ne_bytes();
        let half = at % 8;
        u32::from_ne_bytes([bytes[half], bytes[half + 1], bytes[half + 2], bytes[half + 3]])
    }

    fn put(&mut self, at: usize, value: u32) {
        let mut bytes = self.image[at / 8].to_ne_bytes();
        bytes[at % 8..at % 8 + 4].copy_from_slice(&value.to_ne_bytes());
        self.image[at / 8] = u64::from_ne_bytes(bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(flow: &FlowInfo) -> Vec<u8> {
        flow.image.iter().flat_map(|word| word.to_ne_bytes()).collect()
    }

    fn u32_at(context: &[u8], offset: usize) -> u32 {
        u32::from_ne_bytes(context[offset..offset + 4].try_into().unwrap())
    }

    #[test]
    fn ipv4_fields_are_in_the_kernels_byte_orders() {
        let (local, remote) = ("10.0.0.1:6379".parse().unwrap(), "192.168.7.9:40000".parse().unwrap());
        let mut flow = FlowInfo::new(local, remote).with_ifindex(5).with_vlan(0x6007, 0x8100).with_hash(77);
        flow.show(0x1000_0000, 99);
        let context = bytes(&flow);
        assert_eq!(u32_at(&context, 0), 99);
        assert_eq!(u32_at(&context, 76), 0x1000_0000);
        assert_eq!(u32_at(&context, 80), 0x1000_0063);
        assert_eq!(u32_at(&context, 88), 2);
        assert_eq!(context[92..96], [192, 168, 7, 9]);
        assert_eq!(context[96..100], [10, 0, 0, 1]);
        assert_eq!(u32::from_be(u32_at(&context, 132)), 40_000);
        assert_eq!(u32_at(&context, 136), 6379);
        assert_eq!(u32_at(&context, 36), 5);
        assert_eq!(u32_at(&context, 40), 5);
        assert_eq!(u32_at(&context, 16), u32::from(0x0800_u16.to_be()));
        assert_eq!((u32_at(&context, 20), u32_at(&context, 24)), (1, 0x6007));
        assert_eq!(u32_at(&context, 28), u32::from(0x8100_u16.to_be()));
        assert_eq!(u32_at(&context, 68), 77);
        assert!(context[100..132].iter().all(|&byte| byte == 0));
    }

    #[test]
    fn notes_are_what_programs_may_write() {
        let mut flow = FlowInfo::new("10.0.0.1:1".parse().unwrap(), "10.0.0.2:2".parse().unwrap());
        flow.set_notes(&[1, 2, 3, 4, 5, 6, 7]);
        let context = bytes(&flow);
        let written: Vec<usize> = (0..CONTEXT_SIZE).step_by(4).filter(|&at| is_writable(at as u64, 4)).collect();
        assert_eq!(written.iter().map(|&at| u32_at(&context, at)).collect::<Vec<_>>(), [1, 2, 3, 4, 5, 6, 7]);
        assert_eq!(flow.notes(), [1, 2, 3, 4, 5, 6, 7]);
        flow.set_notes(&[!0; 7]);
        assert_eq!(flow.notes(), [!0, 0xffff, !0, !0, !0, !0, !0]);
        assert!(!is_writable(36, 4) && !is_writable(34, 4) && !is_writable(64, 8) && !is_writable(76, 4));
    }

    #[test]
    fn ipv6_fields_hold_the_addresses() {
        let flow = FlowInfo::new("[fd00::1]:80".parse().unwrap(), "[fd00::2]:5".parse().unwrap());
        let context = bytes(&flow);
        assert_eq!(u32_at(&context, 88), 10);
        assert_eq!((context[100], context[115]), (0xfd, 2));
        assert_eq!((context[116], context[131]), (0xfd, 1));
        assert!(context[92..100].iter().all(|&byte| byte == 0));
    }
}
