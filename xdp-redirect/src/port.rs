//! A port: one of the two network interfaces, and what has to be known of it.

use std::{fs, io};

use crate::{
    sys::Control,
    umem::{FRAME_HEADROOM, VLAN_ETHERNET_HEADER},
};

/// The largest MTU (bytes of an IP packet) whose frames, two VLAN tags included, fit into a frame of 4096 bytes.
pub const MAX_MTU: u32 = 4096 - FRAME_HEADROOM - VLAN_ETHERNET_HEADER;

/// `ARPHRD_ETHER` of `linux/if_arp.h`.
const ETHERNET: u16 = 1;

/// The facts of one interface, read once. It holds nothing open.
#[derive(Debug, Clone)]
pub struct Port {
    /// The interface's name.
    pub name: String,
    /// Its index, in the network namespace in which it was opened.
    pub ifindex: u32,
    /// Bytes of an IP packet.
    pub mtu: u32,
    /// Its Ethernet address.
    pub mac: [u8; 6],
    /// The driver's name, as `ethtool -i` shows it; empty if the driver tells none.
    pub driver: String,
    /// The number of rx queues in use, at least 1. Each needs a socket.
    pub rx_queues: u32,
}

/// Why an interface cannot be a port.
#[derive(Debug, thiserror::Error)]
pub enum PortError {
    /// There is no such interface in this network namespace.
    #[error("there is no interface `{name}`; there are: {}", existing.join(", "))]
    NotFound {
        /// The name that was asked for.
        name: String,
        /// Those that there are.
        existing: Vec<String>,
    },
    /// The interface is down.
    #[error("interface `{name}` is down; set it up with: ip link set {name} up")]
    Down {
        /// The interface.
        name: String,
    },
    /// The interface's frames are not Ethernet frames.
    #[error("interface `{name}` is not Ethernet (its link layer is of type {link_layer}, `ip link` names it)")]
    NotEthernet {
        /// The interface.
        name: String,
        /// ARPHRD_* of `linux/if_arp.h`.
        link_layer: u16,
    },
    /// The interface's packets do not fit into a frame.
    #[error("interface `{name}` has an MTU of {mtu}, at most {MAX_MTU} is possible: ip link set {name} mtu 1500")]
    MtuTooBig {
        /// The interface.
        name: String,
        /// Its MTU.
        mtu: u32,
    },
    /// The kernel does not answer a question about the interface.
    #[error("cannot read the {what} of interface `{name}`: {source}")]
    Io {
        /// The interface.
        name: String,
        /// What was asked for.
        what: &'static str,
        /// The kernel's answer.
        source: io::Error,
    },
}

impl Port {
    /// Reads the facts of the interface `name` in the calling thread's network namespace.
    pub fn open(name: &str) -> Result<Port, PortError> {
        let failed = |what| move |source| PortError::Io { name: name.to_owned(), what, source };
        let ifindex = nix::net::if_::if_nametoindex(name).map_err(|_| not_found(name))?;
        let control = Control::open().map_err(failed("facts"))?;

        let (link_layer, mac) = control.hardware_address(name).map_err(failed("address"))?;
        if link_layer != ETHERNET {
            return Err(PortError::NotEthernet { name: name.to_owned(), link_layer });
        }
        if !control.is_up(name).map_err(failed("flags"))? {
            return Err(PortError::Down { name: name.to_owned() });
        }
        let mtu = control.mtu(name).map_err(failed("MTU"))?;
        if mtu > MAX_MTU {
            return Err(PortError::MtuTooBig { name: name.to_owned(), mtu });
        }
        // A driver need not know ethtool.
        let driver = control.driver(name).unwrap_or_default();
        let rx_queues =
            control.rx_channels(name).ok().or_else(|| sysfs_rx_queues(name, ifindex, mac)).unwrap_or(1).max(1);
        Ok(Port { name: name.to_owned(), ifindex, mtu, mac, driver, rx_queues })
    }

    /// Whether frames that this port receives may have partial checksums (CHECKSUM_PARTIAL): the checksum field holds
    /// the sum of the pseudo-header alone, because a sender on the same machine left the rest to a device that is not
    /// there. Never true for what comes from a wire.
    pub fn partial_checksums(&self) -> bool {
        const VIRTUAL: [&str; 5] = ["veth", "virtio_net", "tun", "netkit", "vif"];
        VIRTUAL.contains(&self.driver.as_str())
    }

    /// Whether a frame that XDP redirects out of this port (through a devmap) is known to leave it.
    ///
    /// Not on veth: its peer takes such frames only if it has NAPI on (`ethtool -K PEER gro on`, or an XDP program),
    /// and otherwise they vanish without an error. The list is of drivers that have `ndo_xdp_xmit` and need nothing
    /// but an XDP program on the port itself.
    pub fn passes_redirect(&self) -> bool {
        const KNOWN: [&str; 14] = [
            "atlantic",
            "bnxt_en",
            "ena",
            "gve",
            "i40e",
            "ice",
            "igb",
            "igc",
            "ixgbe",
            "ixgbevf",
            "mlx5_core",
            "mvneta",
            "mvpp2",
            "virtio_net",
        ];
        KNOWN.contains(&self.driver.as_str())
    }
}

fn not_found(name: &str) -> PortError {
    let existing = nix::net::if_::if_nameindex()
        .map(|list| list.iter().map(|interface| interface.name().to_string_lossy().into_owned()).collect())
        .unwrap_or_default();
    PortError::NotFound { name: name.to_owned(), existing }
}

/// For drivers that do not tell their channels: the queues in sysfs, if what is mounted there shows this interface and
/// not a namesake in another network namespace.
fn sysfs_rx_queues(name: &str, ifindex: u32, mac: [u8; 6]) -> Option<u32> {
    let directory = format!("/sys/class/net/{name}");
    let read = |file: &str| fs::read_to_string(format!("{directory}/{file}")).ok();
    let address = mac.map(|byte| format!("{byte:02x}")).join(":");
    if read("ifindex")?.trim().parse() != Ok(ifindex) || read("address")?.trim() != address {
        return None;
    }
    let queues = fs::read_dir(format!("{directory}/queues")).ok()?;
    let rx =
        queues.filter_map(Result::ok).filter(|entry| entry.file_name().to_string_lossy().starts_with("rx-")).count();
    u32::try_from(rx).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_interface_is_told_with_those_there_are() {
        let error = Port::open("nosuchport0").unwrap_err();
        assert!(matches!(&error, PortError::NotFound { existing, .. } if existing.iter().any(|name| name == "lo")));
        assert!(error.to_string().contains("nosuchport0"), "{error}");
    }

    #[test]
    fn odd_names_are_errors() {
        for name in ["", "a-name-that-is-much-too-long", "nul\0byte", "../lo", "ü"] {
            assert!(Port::open(name).is_err(), "{name:?}");
        }
    }
}
