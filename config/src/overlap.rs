//! Taps that share flows.
//!
//! The first tap that matches wins, so a tap wholly inside a later, wider one is an exception to it, and
//! its place says so. Anything else that overlaps is a slip: what happens to a flow would hang on an order
//! that nothing in the taps explains.

use crate::document::Reader;
use crate::selection::Selection;
use crate::tap::Tap;

/// Notes taps that select nothing, are never reached, or overlap without being ordered.
pub(crate) fn check(reader: &mut Reader, taps: &[Tap]) {
    let selections: Vec<Selection> = taps.iter().map(Selection::of).collect();
    for (index, tap) in taps.iter().enumerate() {
        if selections[index].is_empty() {
            let message = format!("tap \"{}\" selects nothing", tap.name.value);
            let help = "`server` and `client` have no address family in common: no flow joins IPv4 and IPv6";
            reader.problem(tap.name.at, message, help);
        }
        // One message a tap is enough: mending the first usually mends the rest.
        if let Some(earlier) = (0..index).find(|&earlier| conflict(&selections[earlier], &selections[index])) {
            report(reader, (&taps[earlier], &selections[earlier]), (tap, &selections[index]));
        }
    }
}

/// Whether a later tap shares flows with an earlier one that is not an exception to it.
fn conflict(earlier: &Selection, later: &Selection) -> bool {
    let exception = later.covers(earlier) && !earlier.covers(later);
    earlier.common(later).is_some() && !exception
}

fn report(reader: &mut Reader, earlier: (&Tap, &Selection), later: (&Tap, &Selection)) {
    let (first, second) = (&earlier.0.name, &later.0.name);
    let (name, other, line) = (&second.value, &first.value, first.at.line);
    if earlier.1.covers(later.1) {
        let message =
            format!("tap \"{name}\" is never reached: tap \"{other}\" in line {line} selects all of its flows");
        let help = if later.1.covers(earlier.1) {
            format!("the first tap that matches wins: give \"{name}\" other flows, or remove one of the two")
        } else {
            format!("the first tap that matches wins: put \"{name}\" before \"{other}\", or narrow \"{other}\"")
        };
        return reader.problem(second.at, message, help);
    }
    let Some((client, server)) = earlier.1.common(later.1) else {
        return;
    };
    let message =
        format!("tap \"{name}\" overlaps tap \"{other}\" in line {line}: both select flows from {client} to {server}");
    let help =
        "narrow one of them; only a tap that lies wholly inside another one may overlap it, and stands before it";
    reader.problem(second.at, message, help);
}
