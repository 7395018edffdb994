//! Real servers on a host of the laboratory, ready when their constructor returns.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use tempfile::TempDir;

use super::{Host, Lab, Process, SERVER_V4, SERVER_V6, SERVERS, STEP_LIMIT, connect_from};

/// nginx on IPv4 and IPv6, files from `www/`, uploads with PUT to `/upload/`. Ports 80 and 8080: HTTP/1; 8081: HTTP/2
/// without TLS; 8443, if it has a certificate: TLS with HTTP/1 or HTTP/2.
pub struct Nginx {
    /// The process.
    pub process: Process,
    /// The folder that it serves.
    pub www: PathBuf,
}

impl Nginx {
    /// Starts it on the server host.
    pub fn start(lab: &Lab) -> Nginx {
        Nginx::start_with(lab, "")
    }

    /// The same with TLS.
    pub fn start_with_tls(lab: &Lab, certificate: &Certificate) -> Nginx {
        let (key, file) = (certificate.key.display(), certificate.file.display());
        Nginx::start_with(
            lab,
            &format!(
                "listen 8443 ssl http2 backlog=4096; listen [::]:8443 ssl http2 backlog=4096;\n\
                 ssl_certificate {file}; ssl_certificate_key {key};\n"
            ),
        )
    }

    /// Starts it with more lines for its server.
    fn start_with(lab: &Lab, more: &str) -> Nginx {
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
                 listen 8081 http2 backlog=4096; listen [::]:8081 http2 backlog=4096;\n\
                 {more}\
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

/// A certificate of the server host, by its own word.
pub struct Certificate {
    /// The certificate.
    pub file: PathBuf,
    /// Its private key.
    pub key: PathBuf,
}

impl Certificate {
    /// Makes one for both addresses.
    pub fn make(lab: &Lab) -> Certificate {
        let (file, key) = (lab.path("certificate.pem"), lab.path("key.pem"));
        let names = format!("subjectAltName=IP:{SERVER_V4},IP:{SERVER_V6}");
        let mut arguments = vec!["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"];
        let (key_path, file_path) = (key.to_string_lossy(), file.to_string_lossy());
        arguments.extend(["-keyout", &key_path, "-out", &file_path, "-days", "2", "-subj", "/CN=server"]);
        arguments.extend(["-addext", &names]);
        lab.server.run("openssl", &arguments);
        Certificate { file, key }
    }
}

/// sshd on port 2222, IPv4 and IPv6, for root with a key of this laboratory.
pub struct Sshd {
    /// The process.
    pub process: Process,
    folder: PathBuf,
}

impl Sshd {
    /// Starts it on the server host.
    pub fn start(lab: &Lab) -> Sshd {
        // sshd wants its own folder in /run, and an account that is not locked: it gets both in a file system of its own.
        const IN_ITS_OWN_ROOM: &str = "mount -t tmpfs -o mode=755 none /run && mkdir /run/sshd && \
            mount --bind \"$0\" /etc/shadow && exec \"$@\"";
        let shadow = lab.write("ssh/shadow", "root:*:20000:0:99999:7:::\nsshd:!:20000::::::\n");
        let folder = lab.path("ssh");
        for key in ["host", "user"] {
            let file = folder.join(key);
            lab.server.run("ssh-keygen", &["-q", "-t", "ed25519", "-N", "", "-f", &file.to_string_lossy()]);
        }
        let configuration = format!(
            "Port 2222\nHostKey {folder}/host\nAuthorizedKeysFile {folder}/user.pub\nPidFile none\n\
             UsePAM no\nPasswordAuthentication no\nPermitRootLogin prohibit-password\nStrictModes no\n\
             ClientAliveInterval 5\nClientAliveCountMax 4\nSubsystem sftp internal-sftp\n",
            folder = folder.display()
        );
        let configuration = lab.write("ssh/sshd_config", configuration);
        super::need(&["/usr/sbin/sshd"]);
        let room = ["--mount", "sh", "-c", IN_ITS_OWN_ROOM, &shadow.to_string_lossy()];
        let sshd = ["/usr/sbin/sshd", "-D", "-e", "-f", &configuration.to_string_lossy()];
        let mut process = lab.server.spawn("sshd", "unshare", &[&room[..], &sshd[..]].concat());
        process.wait_until("sshd to listen", STEP_LIMIT, |process| {
            process.log().matches("Server listening on").count() == SERVERS.len()
        });
        Sshd { process, folder }
    }

    /// Runs `scp` on a host with what it needs to log in here: `root@ADDRESS:PATH` is a file of the server host.
    pub fn scp(&self, host: &Host, from: &str, to: &str) {
        let key = self.folder.join("user");
        let known = format!("UserKnownHostsFile={}", self.folder.join("known").display());
        let mut arguments = vec!["-q", "-F", "/dev/null", "-P", "2222", "-i", key.to_str().expect("a path")];
        arguments.extend(["-o", "BatchMode=yes", "-o", "StrictHostKeyChecking=no", "-o", &known, from, to]);
        host.run("scp", &arguments);
    }
}

/// PostgreSQL on port 5432, IPv4 and IPv6, open to all, nothing safe on disk.
pub struct Postgres {
    /// The process.
    pub process: Process,
    programs: PathBuf,
    // It does not run as root, and the laboratory's folder is root's alone.
    _folder: TempDir,
}

impl Postgres {
    /// Starts it on the server host.
    pub fn start(lab: &Lab) -> Postgres {
        let programs = Postgres::programs();
        let folder = tempfile::Builder::new().prefix("socktap-postgres-").tempdir().expect("a temporary folder");
        let user = nix::unistd::User::from_name("postgres").ok().flatten().expect("the user postgres of its package");
        nix::unistd::chown(folder.path(), Some(user.uid), Some(user.gid)).expect("a folder of another user");
        let data = folder.path().to_string_lossy().into_owned();
        let program = |name: &str| programs.join(name).to_string_lossy().into_owned();

        let mut as_postgres =
            vec!["--reuid", "postgres", "--regid", "postgres", "--clear-groups", "env", "--chdir", "/"];
        let initdb = program("initdb");
        let make = ["-D", &data, "-U", "postgres", "-A", "trust", "--locale", "C", "--encoding", "UTF8", "--no-sync"];
        lab.server.run("setpriv", &[&as_postgres[..], &[&initdb], &make].concat());
        std::fs::write(folder.path().join("pg_hba.conf"), "local all all trust\nhost all all all trust\n")
            .expect("a file of PostgreSQL");

        // The signal that ends it with its parent is forgotten when the user changes: once more.
        as_postgres.extend(["setpriv", "--pdeathsig", "INT"]);
        let postgres = program("postgres");
        let sockets = format!("unix_socket_directories={data}");
        let mut serve = vec![postgres.as_str(), "-D", &data, "-p", "5432"];
        let settings =
            ["listen_addresses=*", "fsync=off", "shared_memory_type=mmap", "dynamic_shared_memory_type=mmap"];
        settings.into_iter().chain([&*sockets]).for_each(|setting| serve.extend(["-c", setting]));
        let mut process = lab.server.spawn("postgres", "setpriv", &[as_postgres, serve].concat());
        process.wait_until("PostgreSQL to be ready", STEP_LIMIT, |process| {
            process.log().contains("database system is ready to accept connections")
        });
        Postgres { process, programs, _folder: folder }
    }

    /// Runs `psql` or `pgbench` on a host, connected to `server`, and gives what it prints.
    pub fn run(&self, host: &Host, program: &str, server: IpAddr, arguments: &[&str]) -> String {
        let server = server.to_string();
        let program = self.programs.join(program);
        let connection = ["-h", &server, "-p", "5432", "-U", "postgres"];
        host.run(&program.to_string_lossy(), &[&connection[..], arguments, &["postgres"]].concat())
    }

    /// The folder of the programs of the newest version.
    fn programs() -> PathBuf {
        let versions = std::fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
        let mut folders: Vec<_> = versions.map(|version| version.path().join("bin")).collect();
        folders.retain(|folder| folder.join("initdb").is_file() && folder.join("pgbench").is_file());
        folders.sort();
        folders
            .pop()
            .expect("PostgreSQL is missing; install it with: apt-get install -y postgresql  (or run `make setup`)")
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        // Its other processes end with it, and it removes what it shares with them.
        self.process.end_gently(nix::sys::signal::Signal::SIGINT);
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
pub fn wait_for_port(host: &Host, process: &mut Process, port: u16) {
    let address: SocketAddr = (IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), port).into();
    debug_assert_ne!(address.ip(), SERVER_V4, "asked over loopback, not over the wire");
    process.wait_until(&format!("connections to port {port}"), STEP_LIMIT, |_| {
        connect_from(host, address, Duration::from_secs(1)).is_ok()
    });
}
