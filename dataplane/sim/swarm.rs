//! Many seeds, each a run of its own; a failing seed is a bug report.

use std::any::Any;
use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::middle::{Middle, Wire};
use crate::network::Network;
use crate::oracle::{self, Tally};
use crate::scenario::{Between, Scenario};
use crate::workers::Workers;

/// What became of a seed that went well.
struct Run {
    hash: u64,
    tally: Tally,
}

fn run(seed: u64, between: Between, trace: bool) -> Result<Run, String> {
    let scenario = Scenario::new(seed, between);
    if trace {
        println!("{scenario:#?}");
    }
    let middle: Box<dyn Middle> = match between {
        Between::Workers => Box::new(Workers::new(seed, &scenario).with_changes()),
        Between::Wire => Box::new(Wire),
    };
    let mut network = Network::new(seed, &scenario, middle, trace);
    let go = AssertUnwindSafe(|| -> Result<Run, String> {
        let hash = network.run()?;
        let mut tally =
            oracle::judge(&scenario, &network.hosts).map_err(|error| format!("{error}\n{}", network.describe()))?;
        tally.extend(network.middle.counts());
        tally.push(("events", network.event_count() as u64));
        Ok(Run { hash, tally })
    });
    catch_unwind(go).unwrap_or_else(|panic| Err(format!("panicked: {}", message(&*panic))))
}

fn message(panic: &dyn Any) -> &str {
    panic.downcast_ref::<String>().map(String::as_str).or(panic.downcast_ref::<&str>().copied()).unwrap_or("?")
}

fn number(variable: &str) -> Option<u64> {
    std::env::var(variable)
        .ok()
        .map(|value| value.parse().unwrap_or_else(|_| panic!("{variable}={value}: not a number")))
}

/// Failures by seed, and the sum of all tallies.
type Results = (BTreeMap<u64, String>, BTreeMap<&'static str, u64>);

/// Runs so many seeds on all cores, from number `SOCKTAP_FIRST` (or 0) on; panics with the first failures and how to see them
/// again.
fn swarm(between: Between, seeds: u64) {
    let first = number("SOCKTAP_FIRST").unwrap_or(0);
    let next = AtomicU64::new(first);
    let results: Mutex<Results> = Mutex::default();
    let threads = std::thread::available_parallelism().map_or(2, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= first + seeds {
                        break;
                    }
                    let result = run(seed, between, false);
                    let (failures, tally) = &mut *results.lock().expect("no thread panics with the lock");
                    match result {
                        Ok(run) => {
                            run.tally.into_iter().for_each(|(name, count)| *tally.entry(name).or_default() += count)
                        }
                        Err(error) => {
                            failures.insert(seed, error);
                        }
                    }
                }
            });
        }
    });
    let (failures, tally) = results.into_inner().expect("no thread panics with the lock");
    println!("{seeds} seeds from {first}: {tally:#?}");
    for (seed, error) in failures.iter().take(number("SOCKTAP_SHOW").unwrap_or(5) as usize) {
        println!("seed {seed}: {error}");
    }
    let Some(first) = failures.keys().next() else { return };
    let variable = if between == Between::Wire { "SOCKTAP_WIRE=1 " } else { "" };
    let all: Vec<_> = failures.keys().collect();
    panic!(
        "{} of {seeds} seeds failed: {all:?}\nto see one again:\n  \
         {variable}SOCKTAP_SEED={first} cargo test -p dataplane --test sim one_seed -- --nocapture",
        failures.len()
    );
}

/// Hosts, links and oracle are right: nothing fails when there is only a wire.
#[test]
fn control_over_a_wire() {
    swarm(Between::Wire, number("SOCKTAP_SEEDS").unwrap_or(300));
}

/// socktap between the hosts.
#[test]
fn swarm_of_seeds() {
    swarm(Between::Workers, number("SOCKTAP_SEEDS").unwrap_or(10_000));
}

/// A second run of a seed is the same to the bit.
#[test]
fn a_seed_repeats() {
    for seed in 0..number("SOCKTAP_SEEDS").unwrap_or(1000) / 20 {
        let hash = || run(seed, Between::Workers, false).map(|run| run.hash);
        assert_eq!(hash(), hash(), "seed {seed}");
    }
}

/// Runs one seed and prints every frame: `SOCKTAP_SEED=123`, and `SOCKTAP_WIRE=1` for the control.
#[test]
fn one_seed() {
    let seed = number("SOCKTAP_SEED");
    let between = if number("SOCKTAP_WIRE") == Some(1) { Between::Wire } else { Between::Workers };
    match run(seed.unwrap_or(0), between, seed.is_some()) {
        Ok(run) => println!("hash {:016x} {:?}", run.hash, run.tally),
        Err(error) => panic!("{error}"),
    }
}
