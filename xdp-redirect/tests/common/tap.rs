//! A host's network card as a test uses it: frames in, frames out (AF_PACKET), and a ping.

use std::{
    io, mem,
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
    time::Duration,
};

use super::{PATIENCE, now};

/// Sends and receives whole frames on the interface `host` of the calling thread's namespace.
pub struct Wire {
    socket: OwnedFd,
}

impl Wire {
    pub fn open() -> Wire {
        let all = libc::ETH_P_ALL.cast_unsigned() as u16;
        // SAFETY: no pointers; the result is checked and owned once.
        let socket = unsafe {
            let raw = libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0);
            assert!(raw >= 0, "{}", io::Error::last_os_error());
            OwnedFd::from_raw_fd(raw)
        };
        let buffer: libc::c_int = 16 << 20;
        set_option(&socket, libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, &buffer);
        // Not what this host itself sends.
        set_option(&socket, libc::SOL_PACKET, libc::PACKET_IGNORE_OUTGOING, &1i32);
        // SAFETY: all fields are integers, for which zero is a value.
        let mut name: libc::sockaddr_ll = unsafe { mem::zeroed() };
        name.sll_family = libc::AF_PACKET as u16;
        name.sll_protocol = all.to_be();
        name.sll_ifindex = nix::net::if_::if_nametoindex("host").expect("host").cast_signed();
        // SAFETY: pointer and length are of one live value.
        let result = unsafe {
            libc::bind(
                socket.as_raw_fd(),
                (&raw const name).cast(),
                mem::size_of::<libc::sockaddr_ll>() as libc::socklen_t,
            )
        };
        assert!(result == 0, "{}", io::Error::last_os_error());
        Wire { socket }
    }

    pub fn send(&self, frame: &[u8]) {
        // SAFETY: pointer and length are of one live slice.
        let sent = unsafe { libc::send(self.socket.as_raw_fd(), frame.as_ptr().cast(), frame.len(), 0) };
        assert_eq!(sent, frame.len() as isize, "{}", io::Error::last_os_error());
    }

    /// The next frame; `None` after `patience`.
    pub fn receive_within(&self, patience: Duration) -> Option<Vec<u8>> {
        let time = libc::timeval {
            tv_sec: patience.as_secs().cast_signed(),
            tv_usec: i64::from(patience.subsec_micros()).max(1),
        };
        set_option(&self.socket, libc::SOL_SOCKET, libc::SO_RCVTIMEO, &time);
        let mut buffer = vec![0; 65536];
        // SAFETY: pointer and length are of one live buffer.
        let length = unsafe { libc::recv(self.socket.as_raw_fd(), buffer.as_mut_ptr().cast(), buffer.len(), 0) };
        buffer.truncate(usize::try_from(length).ok()?);
        Some(buffer)
    }

    /// The next frame.
    #[track_caller]
    pub fn receive(&self) -> Vec<u8> {
        self.receive_within(PATIENCE).expect("a frame")
    }
}

/// Sends an ICMP echo request from the calling thread's namespace and waits for the answer; again each 200 ms, because
/// the first one may find the other side not ready.
pub fn ping(to: &str) -> bool {
    // SAFETY: no pointers; the result is checked and owned once.
    let socket = unsafe {
        let raw = libc::socket(libc::AF_INET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, libc::IPPROTO_ICMP);
        assert!(raw >= 0, "{}", io::Error::last_os_error());
        OwnedFd::from_raw_fd(raw)
    };
    let time = libc::timeval { tv_sec: 0, tv_usec: 200_000 };
    set_option(&socket, libc::SOL_SOCKET, libc::SO_RCVTIMEO, &time);
    let address: std::net::Ipv4Addr = to.parse().expect("an address");
    let name = libc::sockaddr_in {
        sin_family: libc::AF_INET as u16,
        sin_port: 0,
        sin_addr: libc::in_addr { s_addr: u32::from_ne_bytes(address.octets()) },
        sin_zero: [0; 8],
    };
    // Type 8, code 0, checksum over these eight bytes, identifier 0x1234, sequence number 1.
    let request = [8u8, 0, 0xe5, 0xca, 0x12, 0x34, 0, 1];
    let end = now() + PATIENCE / 4;
    while now() < end {
        // SAFETY: pointers and lengths are of live values.
        let sent = unsafe {
            libc::sendto(
                socket.as_raw_fd(),
                request.as_ptr().cast(),
                request.len(),
                0,
                (&raw const name).cast(),
                mem::size_of::<libc::sockaddr_in>() as libc::socklen_t,
            )
        };
        if sent < 0 {
            continue;
        }
        let mut buffer = [0u8; 256];
        // SAFETY: pointer and length are of one live buffer.
        let length = unsafe { libc::recv(socket.as_raw_fd(), buffer.as_mut_ptr().cast(), buffer.len(), 0) };
        if length >= 28 && buffer[20] == 0 && buffer[12..16] == address.octets() {
            return true;
        }
    }
    false
}

fn set_option<T>(socket: &OwnedFd, level: libc::c_int, name: libc::c_int, value: &T) {
    // SAFETY: pointer and length are of one live value.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            level,
            name,
            (&raw const *value).cast(),
            mem::size_of::<T>() as libc::socklen_t,
        )
    };
    assert!(result == 0, "{}", io::Error::last_os_error());
}
