//! What a program sees besides the bytes: `struct __sk_buff` with the layout of `include/uapi/linux/bpf.h`.
//!
//! Fields hold what the kernel shows to an `sk_skb` program of the application's own socket (`sk_skb_convert_ctx_access` and
//! `bpf_convert_ctx_access` in `net/core/filter.c`), in the same byte orders. All others are 0. The context is made anew for
//! every call: what a program writes to it is forgotten.

use std::net::{IpAddr, SocketAddr};

/// `sizeof(struct __sk_buff)`.
pub(crate) const CONTEXT_SIZE: usize = 192;

/// Offsets of the fields of `struct __sk_buff` that are filled in.
mod offset {
    pub(super) const LEN: usize = 0;
    pub(super) const PROTOCOL: usize = 16;
    pub(super) const INGRESS_IFINDEX: usize = 36;
    pub(super) const IFINDEX: usize = 40;
    pub(super) const DATA: usize = 76;
    pub(super) const DATA_END: usize = 80;
    pub(super) const FAMILY: usize = 88;
    pub(super) const REMOTE_IP4: usize = 92;
    pub(super) const LOCAL_IP4: usize = 96;
    pub(super) const REMOTE_IP6: usize = 100;
    pub(super) const LOCAL_IP6: usize = 116;
    pub(super) const REMOTE_PORT: usize = 132;
    pub(super) const LOCAL_PORT: usize = 136;
}

const AF_INET: u32 = 2;
const AF_INET6: u32 = 10;
const ETH_P_IP: u16 = 0x0800;
const ETH_P_IPV6: u16 = 0x86dd;

/// What programs may know of a flow. `local` is the protected application's end of it, `remote` the other, in both directions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FlowInfo {
    /// The application's address and port.
    pub local: SocketAddr,
    /// Its peer's.
    pub remote: SocketAddr,
    /// Index of the interface, 0 = not told.
    pub ifindex: u32,
}

impl FlowInfo {
    /// A flow between the application at `local` and its peer; no interface.
    pub fn new(local: SocketAddr, remote: SocketAddr) -> Self {
        Self { local, remote, ifindex: 0 }
    }

    /// The same, with `ifindex` and `ingress_ifindex` told.
    pub fn with_ifindex(self, ifindex: u32) -> Self {
        Self { ifindex, ..self }
    }

    /// The context for `length` bytes that lie at address `data`.
    pub(crate) fn context(&self, data: u32, length: u32) -> [u8; CONTEXT_SIZE] {
        let mut context = [0; CONTEXT_SIZE];
        let mut put = |offset: usize, bytes: &[u8]| context[offset..offset + bytes.len()].copy_from_slice(bytes);
        put(offset::LEN, &length.to_ne_bytes());
        put(offset::DATA, &data.to_ne_bytes());
        put(offset::DATA_END, &(data + length).to_ne_bytes());
        put(offset::INGRESS_IFINDEX, &self.ifindex.to_ne_bytes());
        put(offset::IFINDEX, &self.ifindex.to_ne_bytes());
        let (family, protocol) = if self.local.is_ipv4() { (AF_INET, ETH_P_IP) } else { (AF_INET6, ETH_P_IPV6) };
        put(offset::FAMILY, &family.to_ne_bytes());
        // skb->protocol is a __be16, loaded as a number: bpf_htons(ETH_P_IP) is what programs compare it with.
        put(offset::PROTOCOL, &u32::from(protocol.to_be()).to_ne_bytes());
        for (address, ip4, ip6) in [
            (self.remote.ip(), offset::REMOTE_IP4, offset::REMOTE_IP6),
            (self.local.ip(), offset::LOCAL_IP4, offset::LOCAL_IP6),
        ] {
            match address {
                IpAddr::V4(address) => put(ip4, &address.octets()),
                IpAddr::V6(address) => put(ip6, &address.octets()),
            }
        }
        // The whole 32-bit field is in network byte order: the kernel shifts the __be16 up on little-endian hosts, so that
        // bpf_ntohl(skb->remote_port) is the port.
        put(offset::REMOTE_PORT, &u32::from(self.remote.port()).to_be_bytes());
        // skc_num: host byte order.
        put(offset::LOCAL_PORT, &u32::from(self.local.port()).to_ne_bytes());
        context
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn u32_at(context: &[u8], offset: usize) -> u32 {
        u32::from_ne_bytes(context[offset..offset + 4].try_into().unwrap())
    }

    #[test]
    fn ipv4_fields_are_in_the_kernels_byte_orders() {
        let flow =
            FlowInfo::new("10.0.0.1:6379".parse().unwrap(), "192.168.7.9:40000".parse().unwrap()).with_ifindex(5);
        let context = flow.context(0x1000_0000, 99);
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
        assert!(context[100..132].iter().all(|&byte| byte == 0));
    }

    #[test]
    fn ipv6_fields_hold_the_addresses() {
        let flow = FlowInfo::new("[fd00::1]:80".parse().unwrap(), "[fd00::2]:5".parse().unwrap());
        let context = flow.context(0, 0);
        assert_eq!(u32_at(&context, 88), 10);
        assert_eq!((context[100], context[115]), (0xfd, 2));
        assert_eq!((context[116], context[131]), (0xfd, 1));
        assert!(context[92..100].iter().all(|&byte| byte == 0));
    }
}
