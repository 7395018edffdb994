//! What must hold at the end of a run, whatever happened under way.

use crate::host::{End, Host, Session};
use crate::scenario::{ApplicationPlan, ConnectionPlan, REFUSED, SILENT, Scenario, TAPPED_PORT, UNTAPPED_PORT};

/// What a run had in it, by name, so that a swarm can be seen to have covered something.
pub type Tally = Vec<(&'static str, u64)>;

/// Judges a run in which all is quiet.
pub fn judge(scenario: &Scenario, hosts: &[Host; 2]) -> Result<Tally, String> {
    let mut tally = Tally::new();
    for (number, plan) in scenario.connections.iter().enumerate() {
        let judged = judge_connection(number, plan, hosts);
        tally.push((judged.map_err(|error| format!("connection {number}: {error}"))?, 1));
        tally.push(("dropped messages planned", plan.applications.iter().map(|side| side.dropped as u64).sum()));
    }
    let bytes = hosts.iter().flat_map(|host| &host.sessions).map(|session| session.received.len() as u64).sum();
    tally.push(("bytes received", bytes));
    Ok(tally)
}

fn judge_connection(number: usize, plan: &ConnectionPlan, hosts: &[Host; 2]) -> Result<&'static str, String> {
    let of = |host: &Host| -> Vec<usize> {
        let sessions = host.sessions.iter().enumerate();
        sessions.filter(|(_, session)| session.connection == number).map(|(position, _)| position).collect()
    };
    let [clients, servers] = [of(&hosts[0]), of(&hosts[1])];
    let [client] = clients[..] else { return Err(format!("{} sessions of the client", clients.len())) };
    let client = &hosts[0].sessions[client];
    let nobody_there =
        [TAPPED_PORT, UNTAPPED_PORT].iter().any(|port| [port + REFUSED, port + SILENT].contains(&plan.server_port));
    if nobody_there {
        return judge_unanswered(plan, client, &servers);
    }
    // An old SYN that arrived late may have opened more sessions at the server; they come to nothing.
    let server = servers.iter().copied().max_by_key(|&position| {
        let session = &hosts[1].sessions[position];
        (session.received.len(), session.eof, session.established, std::cmp::Reverse(position))
    });
    for &position in &servers {
        let session = &hosts[1].sessions[position];
        if Some(position) != server && (!session.received.is_empty() || session.eof) {
            return Err(format!(
                "a second session of the server read {} bytes, eof {}",
                session.received.len(),
                session.eof
            ));
        }
    }
    let aborts = plan.applications.iter().any(|application| application.abort.is_some());
    let Some(server) = server.map(|position| &hosts[1].sessions[position]) else {
        return if aborts { Ok("aborted early") } else { Err("the server never heard of it".into()) };
    };
    let sessions = [client, server];
    for side in 0..2 {
        let name = ["client", "server"][side];
        let said = judge_bytes(sessions[side], sessions[1 - side], &plan.applications[1 - side]);
        said.map_err(|error| format!("{name}: {error}"))?;
    }
    if aborts {
        return Ok("with an abort");
    }
    let disconnects = plan.applications.iter().any(|application| application.disconnects);
    for side in 0..2 {
        let name = ["client", "server"][side];
        let session = sessions[side];
        let finished = session.eof && session.closed && session.end == Some(End::Closed);
        if disconnects {
            // It may have closed everything before what it had sent was judged; the receiver cannot.
            let may_have_closed = !plan.applications[1 - side].disconnects;
            if session.end != Some(End::Reset) && !(may_have_closed && finished) {
                return Err(format!("{name} was not reset by a disconnect, but ended as {:?}", session.end));
            }
        } else if !finished {
            return Err(format!("{name} ended as {:?}, closed {} eof {}", session.end, session.closed, session.eof));
        } else if session.received.len() != plan.applications[1 - side].passed.len() {
            return Err(format!("{name} read {} bytes", session.received.len()));
        }
    }
    Ok(if disconnects { "disconnected" } else { "closed by both" })
}

/// What was read is a beginning of what passed; the end of the stream comes only after all of it.
fn judge_bytes(reader: &Session, writer: &Session, writes: &ApplicationPlan) -> Result<(), String> {
    let passed = &writes.passed;
    if !passed.starts_with(&reader.received) {
        let same = passed.iter().zip(&reader.received).take_while(|(left, right)| left == right).count();
        return Err(format!(
            "read {} bytes that are not what passed ({} bytes), first differing at {same}",
            reader.received.len(),
            passed.len()
        ));
    }
    if reader.eof && (reader.received.len() != passed.len() || writes.disconnects || !writer.closed) {
        return Err(format!(
            "saw an end of stream after {} of {} bytes; the writer closed: {}, disconnects: {}",
            reader.received.len(),
            passed.len(),
            writer.closed,
            writes.disconnects
        ));
    }
    Ok(())
}

/// A connection that the server refuses, or never hears of, must never look open to the client.
fn judge_unanswered(plan: &ConnectionPlan, client: &Session, servers: &[usize]) -> Result<&'static str, String> {
    if !servers.is_empty() || client.established || !client.received.is_empty() || client.eof {
        return Err("nobody was there, and yet it was established".into());
    }
    let aborts = plan.applications[0].abort.is_some() || plan.applications[0].patience.is_some();
    match client.end {
        Some(End::Reset) if ![TAPPED_PORT + SILENT, UNTAPPED_PORT + SILENT].contains(&plan.server_port) => {
            Ok("refused")
        }
        Some(End::Aborted | End::GaveUp) if aborts => Ok("never answered"),
        end => Err(format!("nobody was there, and the client ended as {end:?}")),
    }
}
