//! The names of the XDP program's counters.

/// The counters of `bpf/steer.bpf.c`, in the order of its `REASONS` list. They count frames, per side.
///
/// The first nine say why; each frame counts in exactly one of them:
/// - `selected`: a tap selects it.
/// - `not_selected`: TCP that no tap selects.
/// - `not_ip`: neither IPv4 nor IPv6, or behind more than two VLAN tags.
/// - `not_tcp`: IP, but not TCP.
/// - `icmp_error`: an ICMP or ICMPv6 error about a TCP segment, tapped or not.
/// - `fragment`: an IP fragment, but not one of `fragment_of_tap`.
/// - `fragment_of_tap`: an IP fragment of TCP between two addresses that a tap selects; unless fragments cross.
/// - `malformed`: cannot be parsed as far as the TCP ports (or has more than eight IPv6 extension headers), and is of no
///   addresses that a tap selects.
/// - `unreadable_of_tap`: the same, and it is or may be TCP between two addresses that a tap selects.
///
/// The others say what became of it; each frame counts in exactly one of them:
/// - `tapped`: selected and given to the AF_XDP socket of its rx queue.
/// - `no_socket`: selected, but its rx queue has no socket: dropped.
/// - `unjudgeable`: one of `fragment_of_tap` or `unreadable_of_tap`: dropped.
/// - `crossed`: redirected to the other port. Whether the port sent it is the driver's to count.
/// - `to_worker`: not selected and given to the AF_XDP socket, so that the worker forwards it; of ICMP errors, which the
///   worker is to see, also when all others cross by themselves.
/// - `redirect_error`: the other port could not be the target of a redirection: dropped.
pub const COUNTERS: [&str; 15] = [
    "selected",
    "not_selected",
    "not_ip",
    "not_tcp",
    "icmp_error",
    "fragment",
    "fragment_of_tap",
    "malformed",
    "unreadable_of_tap",
    "tapped",
    "no_socket",
    "unjudgeable",
    "crossed",
    "to_worker",
    "redirect_error",
];

#[cfg(test)]
mod tests {
    use super::COUNTERS;

    #[test]
    fn names_agree_with_the_xdp_program() {
        let source = include_str!("../bpf/steer.bpf.c");
        let start = source.find("#define REASONS(X)").expect("the list of reasons");
        let list = &source[start..];
        // A macro's definition ends with the first line that has no continuation.
        let list = &list[..list.find(")\n").expect("the end of the list") + 1];
        let names: Vec<&str> =
            list.split("X(").skip(1).map(|rest| rest.split(')').next().unwrap_or_default()).collect();
        assert_eq!(names, COUNTERS);
    }
}
