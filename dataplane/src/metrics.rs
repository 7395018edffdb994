//! The counters, for Prometheus: a small HTTP server in a thread of its own.

use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};

use prometheus_client::collector::Collector;
use prometheus_client::encoding::text::encode;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Registry;
use tiny_http::{Header, Method, Request, Response, Server};
use tracing::debug;

/// What a number is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SampleKind {
    /// It only grows. In the text its name ends with `_total`.
    Counter,
    /// It goes up and down.
    Gauge,
}

/// One number with its name and labels. Samples of one name have the same `help` and `kind`, and different labels.
#[derive(Clone, Debug)]
pub struct Sample {
    /// Such as `socktap_messages`; without `_total`.
    pub name: &'static str,
    /// What it counts, in what unit; one sentence.
    pub help: &'static str,
    /// Names and values of its labels.
    pub labels: Vec<(&'static str, String)>,
    /// The number.
    pub value: u64,
    /// What it is.
    pub kind: SampleKind,
}

/// The metrics cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum MetricsError {
    /// The address cannot be listened on.
    #[error(
        "cannot listen on {listen} for Prometheus: {reason}\nhelp: change `listen` in [metrics], or remove the section"
    )]
    Listen {
        /// The address.
        listen: SocketAddr,
        /// Why.
        reason: String,
    },
    /// The thread cannot be started.
    #[error("cannot start the metrics thread: {0}")]
    Thread(#[from] std::io::Error),
}

/// A running server; dropping it ends it and its thread.
pub struct MetricsServer {
    server: Arc<Server>,
    stop: Arc<AtomicBool>,
    address: SocketAddr,
    thread: Option<JoinHandle<()>>,
}

impl MetricsServer {
    /// Serves `GET /metrics` on `listen`, in the OpenMetrics text format. `snapshot` is called once for each request, in
    /// the server's thread.
    ///
    /// # Errors
    /// [`MetricsError`] if the address is taken or not ours.
    pub fn serve(
        listen: SocketAddr,
        snapshot: impl Fn() -> Vec<Sample> + Send + 'static,
    ) -> Result<MetricsServer, MetricsError> {
        let failed = |reason: String| MetricsError::Listen { listen, reason };
        let listener = TcpListener::bind(listen).map_err(|error| failed(error.to_string()))?;
        let address = listener.local_addr()?;
        let server = Server::from_listener(listener, None).map_err(|error| failed(error.to_string()))?;
        let (server, stop) = (Arc::new(server), Arc::new(AtomicBool::new(false)));
        let (thread_server, thread_stop) = (Arc::clone(&server), Arc::clone(&stop));
        let thread = thread::Builder::new().name("metrics".to_owned()).spawn(move || {
            while !thread_stop.load(Ordering::Acquire) {
                // An error here is either our own `unblock` or a failed accept; the loop's condition tells.
                if let Ok(request) = thread_server.recv() {
                    answer(request, &snapshot);
                }
            }
        })?;
        Ok(MetricsServer { server, stop, address, thread: Some(thread) })
    }

    /// Where it listens: the port is known even if the ops file said 0.
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for MetricsServer {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        self.server.unblock();
        if let Some(thread) = self.thread.take() {
            // Its panic, if any, was reported when it happened.
            let _ = thread.join();
        }
    }
}

fn answer(request: Request, snapshot: &impl Fn() -> Vec<Sample>) {
    let path = request.url().split('?').next().unwrap_or("");
    let known = matches!(path, "/metrics" | "/");
    let readable = matches!(request.method(), Method::Get | Method::Head);
    let (status, kind, body) = match (known, readable) {
        (false, _) => (404, PLAIN, "not found: the metrics are at /metrics\n".to_owned()),
        (true, false) => (405, PLAIN, "use GET\n".to_owned()),
        (true, true) if path == "/" => (200, PLAIN, "socktap: the metrics are at /metrics\n".to_owned()),
        (true, true) => match to_text(snapshot()) {
            Ok(body) => (200, OPEN_METRICS, body),
            Err(_) => (500, PLAIN, "the counters cannot be written as text\n".to_owned()),
        },
    };
    let header = Header::from_bytes("Content-Type", kind).expect("both types are plain ASCII");
    let response = Response::from_string(body).with_status_code(status).with_header(header);
    if let Err(error) = request.respond(response) {
        debug!("metrics: the client went away: {error}");
    }
}

const PLAIN: &str = "text/plain; charset=utf-8";
const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// The samples in the OpenMetrics text format.
fn to_text(samples: Vec<Sample>) -> Result<String, std::fmt::Error> {
    let mut registry = Registry::default();
    registry.register_collector(Box::new(Samples(samples)));
    let mut text = String::new();
    encode(&mut text, &registry)?;
    Ok(text)
}

#[derive(Debug)]
struct Samples(Vec<Sample>);

impl Collector for Samples {
    fn encode(&self, mut encoder: DescriptorEncoder) -> Result<(), std::fmt::Error> {
        // All samples of one name must stand together, in the order in which the names first come.
        let mut names: Vec<&'static str> = Vec::new();
        for sample in &self.0 {
            if !names.contains(&sample.name) {
                names.push(sample.name);
            }
        }
        for name in names {
            let mut family = self.0.iter().filter(|sample| sample.name == name).peekable();
            let Some(first) = family.peek().copied() else { continue };
            let kind = match first.kind {
                SampleKind::Counter => MetricType::Counter,
                SampleKind::Gauge => MetricType::Gauge,
            };
            let mut metric = encoder.encode_descriptor(name, first.help, None, kind)?;
            for sample in family {
                let one = metric.encode_family(&sample.labels)?;
                match sample.kind {
                    SampleKind::Counter => ConstCounter::new(sample.value).encode(one)?,
                    SampleKind::Gauge => ConstGauge::new(sample.value).encode(one)?,
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::TcpStream;
    use std::sync::atomic::AtomicU64;

    use super::*;

    fn sample(name: &'static str, tap: &str, value: u64, kind: SampleKind) -> Sample {
        Sample { name, help: "What it is.", labels: vec![("tap", tap.to_owned())], value, kind }
    }

    fn get(address: SocketAddr, method: &str, path: &str) -> String {
        let mut stream = TcpStream::connect(address).unwrap();
        write!(stream, "{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    }

    #[test]
    fn text_groups_by_name() {
        use SampleKind::*;
        let text = to_text(vec![
            sample("socktap_messages", "a", 1, Counter),
            sample("socktap_flows", "a\"\n", 2, Gauge),
            sample("socktap_messages", "b", u64::MAX, Counter),
            Sample { labels: vec![], ..sample("socktap_up", "", 1, Gauge) },
        ])
        .unwrap();
        assert_eq!(
            text,
            "# HELP socktap_messages What it is.\n# TYPE socktap_messages counter\n\
             socktap_messages_total{tap=\"a\"} 1\nsocktap_messages_total{tap=\"b\"} 18446744073709551615\n\
             # HELP socktap_flows What it is.\n# TYPE socktap_flows gauge\n\
             socktap_flows{tap=\"a\\\"\\n\"} 2\n\
             # HELP socktap_up What it is.\n# TYPE socktap_up gauge\nsocktap_up{} 1\n# EOF\n"
        );
    }

    #[test]
    fn serves_until_dropped() {
        let count = Arc::new(AtomicU64::new(7));
        let shared = Arc::clone(&count);
        let server = MetricsServer::serve("127.0.0.1:0".parse().unwrap(), move || {
            vec![sample("socktap_messages", "a", shared.load(Ordering::Relaxed), SampleKind::Counter)]
        })
        .unwrap();
        let address = server.address();
        let answer = get(address, "GET", "/metrics");
        assert!(answer.starts_with("HTTP/1.1 200 ") && answer.contains("openmetrics-text"), "{answer}");
        assert!(answer.contains("socktap_messages_total{tap=\"a\"} 7\n"), "{answer}");
        count.store(8, Ordering::Relaxed);
        assert!(get(address, "GET", "/metrics?x=1").contains("} 8\n"));
        assert!(get(address, "GET", "/").contains("/metrics"));
        assert!(get(address, "GET", "/passwd").starts_with("HTTP/1.1 404 "));
        assert!(get(address, "POST", "/metrics").starts_with("HTTP/1.1 405 "));

        let taken = MetricsServer::serve(address, Vec::new).err().unwrap().to_string();
        assert!(taken.starts_with(&format!("cannot listen on {address} for Prometheus: ")), "{taken}");
        drop(server);
        // The closure is gone, so its thread is.
        assert_eq!(Arc::strong_count(&count), 1);
    }
}
