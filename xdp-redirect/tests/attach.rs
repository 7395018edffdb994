//! Attaching, its modes and errors, and that nothing stays attached.

mod common;

use std::{
    env,
    io::{BufRead, BufReader, Read},
    os::fd::AsFd,
    process::{Child, Command, Stdio},
};

use common::{Network, Place, Setup, enter, eventually, open_ports, run, skipped};
use xdp_redirect::{
    Attached, BindError, Cross, Fragments, Port, PortError, Rule, Socket, SocketConfig, Steering, SteeringError, Umem,
    XdpMode,
};

/// In the environment of the child process: the namespace in which it attaches.
const HOLD: &str = "XDP_REDIRECT_TEST_HOLD";

fn attach(ports: &[Port; 2], mode: XdpMode) -> Result<Steering, SteeringError> {
    Steering::attach(&ports[0], &ports[1], &[], mode, Cross::Devmap, Fragments::Drop)
}

#[test]
fn native_and_skb_mode_and_nothing_left_after_a_drop() {
    if skipped() {
        return;
    }
    let network = Network::new(&Setup::default());
    network.within(Place::Middle, || {
        let ports = open_ports();
        assert!(!network.links().contains("xdp"));
        for (mode, attached, shown) in [
            (XdpMode::Auto, Attached::Native, " xdp "),
            (XdpMode::Native, Attached::Native, " xdp "),
            (XdpMode::Skb, Attached::Skb, " xdpgeneric "),
        ] {
            let steering = attach(&ports, mode).expect("attached");
            assert_eq!(steering.modes(), (attached, attached));
            let links = network.links();
            assert_eq!(links.matches(shown).count(), 2, "{mode:?}: {links}");
            assert_eq!(links.matches("promiscuity 1").count(), 2, "{mode:?}: {links}");
            drop(steering);
            network.detached();
            eventually("not promiscuous", || !network.links().contains("promiscuity 1"));
        }
    });
}

/// Not a test by itself: the child process of the next one.
#[test]
fn child_that_holds_the_ports() {
    let Ok(namespace) = env::var(HOLD) else { return };
    enter(&namespace);
    let ports = open_ports();
    let mut steering = attach(&ports, XdpMode::Auto).expect("attached");
    let (umem, mut frames) = Umem::new(64, 4096).expect("a umem");
    let mut socket = Socket::bind(&umem, &ports[0], 0, &SocketConfig::default()).expect("a socket");
    socket.fill(&mut frames);
    steering.register(xdp_redirect::Side::Client, 0, socket.as_fd()).expect("registered");
    println!("\nholding");
    // Until the parent kills this process, or is gone itself.
    let _ = std::io::stdin().read(&mut [0]);
}

struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn nothing_left_after_a_kill() {
    if skipped() {
        return;
    }
    let network = Network::new(&Setup::default());
    let child = Command::new(env::current_exe().expect("this program"))
        .args(["--exact", "child_that_holds_the_ports", "--nocapture"])
        .env(HOLD, network.name(Place::Middle))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("a child");
    let mut child = Killed(child);
    let mut lines = BufReader::new(child.0.stdout.take().expect("its output")).lines();
    assert!(lines.any(|line| line.is_ok_and(|line| line == "holding")), "the child attached");
    assert_eq!(network.links().matches(" xdp ").count(), 2);
    drop(child); // SIGKILL
    network.detached();
    // And the queue is free again.
    network.within(Place::Middle, || {
        let ports = open_ports();
        let (umem, _frames) = Umem::new(64, 4096).expect("a umem");
        eventually("the queue is free", || Socket::bind(&umem, &ports[0], 0, &SocketConfig::default()).is_ok());
    });
}

#[test]
fn an_mtu_too_big_for_native_falls_back_or_is_told() {
    if skipped() {
        return;
    }
    let network = Network::new(&Setup { mtu: 3700, ..Setup::default() });
    network.within(Place::Middle, || {
        let ports = open_ports();
        let error = attach(&ports, XdpMode::Native).unwrap_err().to_string();
        assert!(error.contains("port `client` in native mode") && error.contains("MTU of 3700"), "{error}");
        let steering = attach(&ports, XdpMode::Auto).expect("skb mode");
        assert_eq!(steering.modes(), (Attached::Skb, Attached::Skb));
    });
}

#[test]
fn each_port_falls_back_for_itself() {
    if skipped() {
        return;
    }
    // The client's host has two tx queues; the port has one rx queue until it is told to use two.
    let network = Network::new(&Setup { queues: 2, host_queues: 2, ..Setup::default() });
    network.within(Place::Middle, || {
        run("ip", &["netns", "exec", &network.name(Place::Middle), "ethtool", "-L", "client", "rx", "1"]);
        let ports = open_ports();
        assert_eq!(ports.each_ref().map(|port| port.rx_queues), [1, 2]);
        let error = attach(&ports, XdpMode::Native).unwrap_err().to_string();
        assert!(error.contains("fewer rx queues (1) than its peer has tx queues"), "{error}");
        let steering = attach(&ports, XdpMode::Auto).expect("attached");
        assert_eq!(steering.modes(), (Attached::Skb, Attached::Native));
    });
}

#[test]
fn another_program_is_told_and_left_alone() {
    if skipped() {
        return;
    }
    let network = Network::new(&Setup::default());
    network.within(Place::Middle, || {
        let ports = open_ports();
        for (first, second) in [
            (XdpMode::Native, XdpMode::Auto),
            (XdpMode::Native, XdpMode::Skb),
            (XdpMode::Skb, XdpMode::Auto),
            (XdpMode::Skb, XdpMode::Native),
        ] {
            let holder = attach(&ports, first).expect("attached");
            let error = attach(&ports, second).unwrap_err().to_string();
            assert!(error.contains("another XDP program is attached"), "{first:?} {second:?}: {error}");
            assert_eq!(network.links().matches(" xdp").count(), 2);
            drop(holder);
            network.detached();
        }
    });
}

#[test]
fn when_the_second_port_fails_the_first_is_released() {
    if skipped() {
        return;
    }
    let network = Network::new(&Setup::default());
    network.within(Place::Middle, || {
        let mut ports = open_ports();
        ports[1].ifindex = 4242;
        assert!(attach(&ports, XdpMode::Auto).is_err());
        network.detached();
        ports[1] = ports[0].clone();
        let error = attach(&ports, XdpMode::Auto).unwrap_err().to_string();
        assert!(error.contains("client port and the server port"), "{error}");
    });
}

#[test]
fn facts_of_a_port() {
    if skipped() {
        return;
    }
    let network = Network::new(&Setup { mtu: 1400, queues: 3, ..Setup::default() });
    network.within(Place::Middle, || {
        run("ip", &["netns", "exec", &network.name(Place::Middle), "ethtool", "-L", "client", "rx", "3"]);
        let [client, _] = open_ports();
        assert_eq!((client.mtu, client.rx_queues, client.driver.as_str()), (1400, 3, "veth"));
        assert!(client.partial_checksums() && !client.passes_redirect());

        let namespace = network.name(Place::Middle);
        run("ip", &["-n", &namespace, "link", "set", "client", "down"]);
        assert!(matches!(Port::open("client"), Err(PortError::Down { .. })));
        run("ip", &["-n", &namespace, "link", "set", "client", "up", "mtu", "9000"]);
        assert!(matches!(Port::open("client"), Err(PortError::MtuTooBig { mtu: 9000, .. })));
        run("ip", &["-n", &namespace, "link", "set", "lo", "up"]);
        assert!(matches!(Port::open("lo"), Err(PortError::NotEthernet { .. })));
        let error = Port::open("eth7").unwrap_err().to_string();
        assert!(error.contains("client") && error.contains("server"), "{error}");
    });
}

#[test]
fn binding_says_what_is_wrong() {
    if skipped() {
        return;
    }
    let network = Network::new(&Setup { mtu: 3000, ..Setup::default() });
    network.within(Place::Middle, || {
        let ports = open_ports();
        let config = SocketConfig::default();
        let (umem, _frames) = Umem::new(64, 4096).expect("a umem");
        let bind = |umem: &Umem, queue, config: &SocketConfig| Socket::bind(umem, &ports[0], queue, config);

        let result = bind(&umem, 1, &config);
        assert!(matches!(result, Err(BindError::NoSuchQueue { queue: 1, queues: 1, .. })));
        let result = bind(&umem, 0, &SocketConfig { rx_size: 100, ..config });
        assert!(matches!(result, Err(BindError::Size(_))));
        let (small, _frames) = Umem::new(64, 2048).expect("a umem");
        assert!(matches!(bind(&small, 0, &config), Err(BindError::FrameTooSmall { capacity: 1792, .. })));

        let _socket = bind(&umem, 0, &config).expect("a socket");
        assert!(matches!(bind(&umem, 0, &config), Err(BindError::QueueTaken { .. })));
        let (other, _frames) = Umem::new(64, 4096).expect("a umem");
        let error = bind(&other, 0, &config).unwrap_err().to_string();
        assert!(error.contains("another program has a socket on it"), "{error}");
    });
}

#[test]
fn values_are_dropped_in_any_order() {
    if skipped() {
        return;
    }
    let network = Network::new(&Setup::default());
    network.within(Place::Middle, || {
        // The three values, in all orders.
        for order in [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]] {
            let (mut steering, ports) = Network::attach(&[Rule::default()], XdpMode::Auto, Cross::Devmap);
            let (umem, mut frames) = Umem::new(64, 4096).expect("a umem");
            let mut slot = None;
            eventually("the queue is free", || {
                slot = Socket::bind(&umem, &ports[0], 0, &SocketConfig::default()).ok();
                slot.is_some()
            });
            let mut socket = slot.expect("a socket");
            steering.register(xdp_redirect::Side::Client, 0, socket.as_fd()).expect("registered");
            let mut own = frames.split_off(40);
            own[0].set_len(100);
            own[0].fill(7);
            assert_eq!(socket.fill(&mut frames), 40);

            let (mut umem, mut socket, mut own) = (Some(umem), Some(socket), Some(own));
            for step in order {
                match step {
                    0 => drop(umem.take()),
                    1 => {
                        drop(socket.take());
                        if let Some(umem) = &umem {
                            assert_eq!(umem.census().closed, 40);
                        }
                    }
                    _ => {
                        let own = own.take().expect("once");
                        assert!(own[0].len() == 100 && own[0].iter().all(|byte| *byte == 7));
                    }
                }
            }
        }
    });
}
