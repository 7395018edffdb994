//! Which functions an object's code calls. aya-obj tells functions apart by their places within their sections only when it links them, so
//! two that are called and lie at the same place of different sections would be one: such an object is refused.

use std::collections::{BTreeMap, BTreeSet};

use object::{Object as _, ObjectSection as _, ObjectSymbol as _, RelocationTarget, SectionKind};

const CALL: u8 = 0x85;
const LD_IMM64: u8 = 0x18;
/// `BPF_PSEUDO_CALL`.
const PSEUDO_CALL: u8 = 1;

/// Says which place two functions share, if any do.
pub(crate) fn check(file: &object::File<'_>) -> Result<(), String> {
    let mut sections: BTreeMap<u64, usize> = BTreeMap::new();
    for (section, place) in callees(file) {
        if sections.insert(place, section).is_some_and(|other| other != section) {
            return Err(format!(
                "functions that it calls are in several sections, two of them {place} bytes from the start: put all into one section"
            ));
        }
    }
    Ok(())
}

/// Section and place of all functions that are called, or whose addresses are taken.
fn callees(file: &object::File<'_>) -> BTreeSet<(usize, u64)> {
    let mut callees = BTreeSet::new();
    for section in file.sections().filter(|section| section.kind() == SectionKind::Text) {
        let relocations: BTreeMap<u64, RelocationTarget> =
            section.relocations().map(|(at, relocation)| (at, relocation.target())).collect();
        for (at, code) in (0..).step_by(8).zip(section.data().unwrap_or_default().chunks_exact(8)) {
            let imm = i64::from(i32::from_ne_bytes([code[4], code[5], code[6], code[7]]));
            let is_call = code[0] == CALL && code[1] >> 4 == PSEUDO_CALL;
            if !is_call && code[0] != LD_IMM64 {
                continue;
            }
            // Calls count instructions from the next one on; where a symbol is a section, from the section's start.
            let within = if is_call { (imm + 1) * 8 } else { imm };
            let target = match relocations.get(&at) {
                Some(RelocationTarget::Symbol(symbol)) => file.symbol_by_index(*symbol).ok().and_then(|symbol| {
                    let place = symbol.address().checked_add_signed(within)?;
                    Some((file.section_by_index(symbol.section_index()?).ok()?, place))
                }),
                None if is_call => u64::checked_add_signed(at, 8 + imm * 8)
                    .and_then(|place| Some((file.section_by_index(section.index()).ok()?, place))),
                _ => None,
            };
            callees.extend(
                target
                    .filter(|(section, _)| section.kind() == SectionKind::Text)
                    .map(|(section, at)| (section.index().0, at)),
            );
        }
    }
    callees
}
