//! The system calls that no crate wraps: interface and ethtool ioctls, and socket options of AF_XDP and AF_PACKET.
//! Each function is safe to call with any argument.

use std::{
    io, mem,
    os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd},
    ptr,
};

/// `linux/if_xdp.h`, since Linux 6.17.
const XDP_MAX_TX_SKB_BUDGET: libc::c_int = 9;

const ETHTOOL_GDRVINFO: u32 = 0x3;
const ETHTOOL_GCHANNELS: u32 = 0x3c;

/// `struct ethtool_drvinfo` of `linux/ethtool.h`.
#[repr(C)]
struct DriverInfo {
    command: u32,
    driver: [u8; 32],
    version: [u8; 32],
    firmware: [u8; 32],
    bus_info: [u8; 32],
    expansion_rom: [u8; 32],
    reserved: [u8; 12],
    flags: u32,
    stats: u32,
    test: u32,
    eeprom: u32,
    registers: u32,
}

/// `struct ethtool_channels` of `linux/ethtool.h`.
#[repr(C)]
#[derive(Default)]
struct Channels {
    command: u32,
    max_rx: u32,
    max_tx: u32,
    max_other: u32,
    max_combined: u32,
    rx: u32,
    tx: u32,
    other: u32,
    combined: u32,
}

/// A datagram socket for interface ioctls. It works in the network namespace of the calling thread.
pub(crate) struct Control(OwnedFd);

impl Control {
    pub(crate) fn open() -> io::Result<Control> {
        // SAFETY: `socket` takes no pointers; a result >= 0 is a new descriptor that nobody else owns.
        unsafe { owned(libc::socket(libc::AF_INET, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0)) }.map(Control)
    }

    /// Bytes of an IP packet.
    pub(crate) fn mtu(&self, name: &str) -> io::Result<u32> {
        let request = self.interface(libc::SIOCGIFMTU as _, request(name)?)?;
        // SAFETY: SIOCGIFMTU succeeded, so the kernel wrote this member.
        Ok(unsafe { request.ifr_ifru.ifru_mtu }.cast_unsigned())
    }

    /// Whether the interface is up (IFF_UP).
    pub(crate) fn is_up(&self, name: &str) -> io::Result<bool> {
        let request = self.interface(libc::SIOCGIFFLAGS as _, request(name)?)?;
        // SAFETY: SIOCGIFFLAGS succeeded, so the kernel wrote this member.
        let flags = unsafe { request.ifr_ifru.ifru_flags };
        Ok(i32::from(flags) & libc::IFF_UP != 0)
    }

    /// The link layer (ARPHRD_*) and its address.
    pub(crate) fn hardware_address(&self, name: &str) -> io::Result<(u16, [u8; 6])> {
        let request = self.interface(libc::SIOCGIFHWADDR as _, request(name)?)?;
        // SAFETY: SIOCGIFHWADDR succeeded, so the kernel wrote this member.
        let address = unsafe { request.ifr_ifru.ifru_hwaddr };
        let mut bytes = [0; 6];
        for (to, from) in bytes.iter_mut().zip(address.sa_data) {
            *to = from.to_ne_bytes()[0];
        }
        Ok((address.sa_family, bytes))
    }

    /// The driver's name, as `ethtool -i` shows it.
    pub(crate) fn driver(&self, name: &str) -> io::Result<String> {
        // SAFETY: all fields are integers or arrays of them, for which zero is a value.
        let mut info: DriverInfo = unsafe { mem::zeroed() };
        info.command = ETHTOOL_GDRVINFO;
        self.ethtool(name, (&raw mut info).cast())?;
        let text = info.driver.split(|&byte| byte == 0).next().unwrap_or_default();
        Ok(String::from_utf8_lossy(text).into_owned())
    }

    /// The number of rx queues in use, as `ethtool -l` shows it: rx and combined channels.
    pub(crate) fn rx_channels(&self, name: &str) -> io::Result<u32> {
        let mut channels = Channels { command: ETHTOOL_GCHANNELS, ..Channels::default() };
        self.ethtool(name, (&raw mut channels).cast())?;
        Ok(channels.rx + channels.combined)
    }

    /// `command` points to the structure that its first field, an ETHTOOL_G* command, asks for.
    fn ethtool(&self, name: &str, command: *mut libc::c_char) -> io::Result<()> {
        let mut request = request(name)?;
        request.ifr_ifru.ifru_data = command;
        self.interface(libc::SIOCETHTOOL as _, request).map(drop)
    }

    fn interface(&self, code: libc::Ioctl, mut request: libc::ifreq) -> io::Result<libc::ifreq> {
        // SAFETY: every code used above takes a pointer to `struct ifreq`, which lives here; for SIOCETHTOOL its data
        // pointer is to a live structure of the size that the command asks for, set by the callers above.
        let result = unsafe { libc::ioctl(self.0.as_raw_fd(), code, &raw mut request) };
        if result < 0 { Err(io::Error::last_os_error()) } else { Ok(request) }
    }
}

/// A request for the interface `name`; an error if no interface can have such a name.
fn request(name: &str) -> io::Result<libc::ifreq> {
    // SAFETY: integers, arrays and pointers, for which zero is a value.
    let mut request: libc::ifreq = unsafe { mem::zeroed() };
    if name.is_empty() || name.len() >= request.ifr_name.len() || name.contains('\0') {
        return Err(io::Error::from_raw_os_error(libc::ENODEV));
    }
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = libc::c_char::from_ne_bytes([from]);
    }
    Ok(request)
}

/// Makes the interface promiscuous for as long as the returned descriptor is open (AF_PACKET membership): the count is
/// the kernel's, so a dying process leaves nothing behind.
pub(crate) fn hold_promiscuous(ifindex: u32) -> io::Result<OwnedFd> {
    // SAFETY: `socket` takes no pointers. Protocol 0: this socket never receives a frame.
    let socket = unsafe { owned(libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0)) }?;
    let membership = libc::packet_mreq {
        mr_ifindex: ifindex.cast_signed(),
        mr_type: libc::PACKET_MR_PROMISC as _,
        mr_alen: 0,
        mr_address: [0; 8],
    };
    set_option(&socket, libc::SOL_PACKET, libc::PACKET_ADD_MEMBERSHIP, &membership)?;
    Ok(socket)
}

/// How many frames one `sendto` may send in copy mode. ENOPROTOOPT before Linux 6.17.
pub(crate) fn set_tx_budget(socket: BorrowedFd<'_>, frames: u32) -> io::Result<()> {
    set_option(&socket, libc::SOL_XDP, XDP_MAX_TX_SKB_BUDGET, &frames)
}

/// The bytes that may be on their way to the driver; not bounded by `net.core.wmem_max`.
pub(crate) fn set_send_buffer(socket: BorrowedFd<'_>, bytes: i32) -> io::Result<()> {
    set_option(&socket, libc::SOL_SOCKET, libc::SO_SNDBUFFORCE, &bytes)
}

/// Tells the kernel to work on the tx ring. `Ok(false)`: it stopped before the end of the ring, for now.
pub(crate) fn kick_tx(socket: BorrowedFd<'_>) -> io::Result<bool> {
    // SAFETY: a null buffer of length 0 is what AF_XDP expects; no address.
    let result = unsafe { libc::sendto(socket.as_raw_fd(), ptr::null(), 0, libc::MSG_DONTWAIT, ptr::null(), 0) };
    when_busy(result)
}

/// Tells the kernel to work on the fill ring.
pub(crate) fn kick_rx(socket: BorrowedFd<'_>) -> io::Result<bool> {
    // SAFETY: a null buffer of length 0 is what AF_XDP expects; no address.
    let result = unsafe {
        libc::recvfrom(socket.as_raw_fd(), ptr::null_mut(), 0, libc::MSG_DONTWAIT, ptr::null_mut(), ptr::null_mut())
    };
    when_busy(result)
}

/// EAGAIN (the budget or the completion ring is used up), EBUSY (the device's queue is full) and ENOBUFS (no memory for
/// a packet) are the kernel's ways to say "again, later".
fn when_busy(result: libc::ssize_t) -> io::Result<bool> {
    if result >= 0 {
        return Ok(true);
    }
    let error = io::Error::last_os_error();
    match error.raw_os_error() {
        Some(libc::EAGAIN | libc::EBUSY | libc::ENOBUFS | libc::EINTR) => Ok(false),
        _ => Err(error),
    }
}

fn set_option<T: Copy>(socket: &impl AsRawFd, level: libc::c_int, name: libc::c_int, value: &T) -> io::Result<()> {
    // SAFETY: the pointer and the length are of one live value, which the kernel only reads.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            level,
            name,
            ptr::from_ref(value).cast(),
            mem::size_of::<T>() as libc::socklen_t,
        )
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// # Safety
/// `result` is what a system call returned that makes a descriptor.
unsafe fn owned(result: libc::c_int) -> io::Result<OwnedFd> {
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: by contract a new descriptor, of which this is the only owner.
    Ok(unsafe { OwnedFd::from_raw_fd(result) })
}
