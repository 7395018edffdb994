//! Real servers on a host of the laboratory, ready when their constructor returns.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use super::{Host, Lab, Process, SERVER_V4, STEP_LIMIT, connect_from};

/// nginx on ports 80 and 8080, IPv4 and IPv6; files from `www/`, uploads with PUT to `/upload/`.
pub struct Nginx {
    /// The process.
    pub process: Process,
    /// The folder that it serves.
    pub www: PathBuf,
}

impl Nginx {
    /// Starts it on the server host.
    pub fn start(lab: &Lab) -> Nginx {
        let www = lab.path("www");
        std::fs::create_dir_all(www.join("upload")).expect("a folder");
        let folder = lab.path("nginx");
        std::fs::create_dir_all(&folder).expect("a folder");
        // One process without master: whoever kills it leaves no worker behind.
        let configuration = format!(
            "daemon off; master_process off; error_log stderr warn; pid {folder}/pid; worker_rlimit_nofile 65536;\n\
             events {{ worker_connections 8192; }}\n\
             http {{\n\
               access_log off; sendfile on; keepalive_requests 1000000; default_type application/octet-stream;\n\
               client_max_body_size 100m; client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy;\n\
               fastcgi_temp_path {folder}/fastcgi; uwsgi_temp_path {folder}/uwsgi; scgi_temp_path {folder}/scgi;\n\
               server {{\n\
                 listen 80 backlog=4096; listen [::]:80 backlog=4096; listen 8080 backlog=4096; listen [::]:8080 backlog=4096;\n\
                 location / {{ root {www}; }}\n\
                 location /upload/ {{ root {www}; dav_methods PUT; }}\n\
                 location /admin {{ return 200 \"the secret page\\n\"; }}\n\
               }}\n\
             }}\n",
            folder = folder.display(),
            www = www.display()
        );
        let file = lab.write("nginx/nginx.conf", configuration);
        let arguments = ["-e", "stderr", "-p", &folder.to_string_lossy(), "-c", &file.to_string_lossy()];
        let mut process = lab.server.spawn("nginx", "nginx", &arguments);
        wait_for_port(&lab.server, &mut process, 80);
        Nginx { process, www }
    }

    /// Puts a file into the served folder.
    pub fn add(&self, name: &str, contents: &[u8]) {
        std::fs::write(self.www.join(name), contents).expect("a file of nginx");
    }
}

/// redis-server on port 6379, IPv4 and IPv6, nothing on disk.
pub struct Redis {
    /// The process.
    pub process: Process,
}

impl Redis {
    /// Starts it on the server host.
    pub fn start(lab: &Lab) -> Redis {
        let mut process = lab.server.spawn(
            "redis",
            "redis-server",
            &[
                "--port",
                "6379",
                "--bind",
                "0.0.0.0",
                "::",
                "--protected-mode",
                "no",
                "--save",
                "",
                "--appendonly",
                "no",
                "--tcp-backlog",
                "1024",
            ],
        );
        wait_for_port(&lab.server, &mut process, 6379);
        Redis { process }
    }
}

/// An iperf3 server on port 5201.
pub struct Iperf {
    /// The process.
    pub process: Process,
}

impl Iperf {
    /// Starts it on the server host.
    pub fn start(lab: &Lab) -> Iperf {
        let mut process = lab.server.spawn("iperf3", "iperf3", &["-s", "-p", "5201", "--forceflush"]);
        // A probing connection would count as a (failed) test: wait for its own word instead.
        process.wait_until("iperf3 to listen", STEP_LIMIT, |process| process.log().contains("Server listening"));
        Iperf { process }
    }
}

/// Waits until a process of `host` accepts connections on `port`.
fn wait_for_port(host: &Host, process: &mut Process, port: u16) {
    let address: SocketAddr = (IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), port).into();
    debug_assert_ne!(address.ip(), SERVER_V4, "asked over loopback, not over the wire");
    process.wait_until(&format!("connections to port {port}"), STEP_LIMIT, |_| {
        connect_from(host, address, Duration::from_secs(1)).is_ok()
    });
}
