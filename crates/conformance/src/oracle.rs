//! The judge of fault tests: compares what a store shows after a fault with
//! what its clients were told before.
//!
//! A test gives every write a number, announces it with [`Oracle::trying`]
//! before the call and reports the answer with [`Oracle::learned`]. After the
//! fault it lists what it finds. [`Oracle::judge`] knows four rules:
//!
//! * *Acknowledged*: all of the write is there, exactly once, for ever.
//! * *Refused*: none of it is there.
//! * *Unknown*: all or none of it is there, and that never changes again. An
//!   unanswered write is unknown.
//! * Nothing is there that was never tried.
//!
//! ```
//! use fleethold_conformance::oracle::{Fate, Oracle, Violation};
//!
//! let mut oracle = Oracle::default();
//! oracle.trying(1, 2); // write 1 has two parts
//! oracle.learned(1, Fate::Acknowledged);
//! oracle.trying(2, 1);
//! // A crash; the store is opened again and shows one part of write 1.
//! let violations = oracle.judge([(1, 0)]).unwrap_err();
//! assert_eq!(violations, [Violation::Torn { write: 1, found: 1, parts: 2 }]);
//! ```

use std::collections::BTreeMap;
use std::fmt;

/// What a client knows about a write it attempted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Fate {
    /// The store said yes.
    Acknowledged,
    /// The store said "certainly not".
    Refused,
    /// Anything else.
    Unknown,
}

/// A broken rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Violation {
    /// An acknowledged write is gone.
    Lost {
        /// Its number.
        write: u64,
    },
    /// Some parts of a write are there and others are not.
    Torn {
        /// Its number.
        write: u64,
        /// How many of its parts are there.
        found: u32,
        /// How many it has.
        parts: u32,
    },
    /// A part of a write is there more than once.
    Repeated {
        /// Its number.
        write: u64,
        /// The part.
        part: u32,
    },
    /// A refused write is there.
    Resurrected {
        /// Its number.
        write: u64,
    },
    /// An unknown write was there and is gone.
    Vanished {
        /// Its number.
        write: u64,
    },
    /// An unknown write was absent and is there now.
    Emerged {
        /// Its number.
        write: u64,
    },
    /// A write is there that was never tried, or a part that it does not have.
    Invented {
        /// Its number.
        write: u64,
        /// The part.
        part: u32,
    },
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Lost { write } => write!(f, "write {write} was acknowledged and is lost"),
            Self::Torn {
                write,
                found,
                parts,
            } => write!(
                f,
                "only {found} of {parts} parts of write {write} are there"
            ),
            Self::Repeated { write, part } => {
                write!(f, "part {part} of write {write} is there more than once")
            }
            Self::Resurrected { write } => write!(f, "write {write} was refused and is there"),
            Self::Vanished { write } => {
                write!(f, "write {write}, unanswered, was there and is gone")
            }
            Self::Emerged { write } => {
                write!(f, "write {write}, unanswered, was absent and is there now")
            }
            Self::Invented { write, part } => {
                write!(f, "part {part} of write {write} was never tried")
            }
        }
    }
}

/// What is found when no rule is broken.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Findings {
    /// The writes that are there, by number.
    pub present: Vec<u64>,
    /// How many unknown writes turned out to have happened.
    pub happened: usize,
    /// How many unknown writes turned out not to have happened.
    pub not_happened: usize,
}

impl Findings {
    /// Returns how many of the first writes in `order` are there; `None` if a
    /// write is there without all before it, or one that `order` lacks.
    pub fn prefix_of(&self, order: &[u64]) -> Option<usize> {
        let mut first = order.get(..self.present.len())?.to_vec();
        first.sort_unstable();
        (first == self.present).then_some(first.len())
    }
}

/// What is known about all writes of a test.
#[derive(Clone, Debug, Default)]
pub struct Oracle {
    writes: BTreeMap<u64, Write>,
}

#[derive(Clone, Copy, Debug)]
struct Write {
    parts: u32,
    fate: Fate,
    /// What was found of an unknown write.
    was_there: Option<bool>,
}

impl Oracle {
    /// Takes note of a write, before the call.
    ///
    /// An unknown write that was found absent may be tried again.
    ///
    /// # Panics
    ///
    /// If the write has no parts, or was tried and may have happened.
    pub fn trying(&mut self, write: u64, parts: u32) {
        assert!(parts > 0, "write {write} has no parts");
        let new = Write {
            parts,
            fate: Fate::Unknown,
            was_there: None,
        };
        if let Some(old) = self.writes.insert(write, new) {
            let is_absent = old.fate == Fate::Refused || old.was_there == Some(false);
            assert!(is_absent, "write {write} was tried before");
        }
    }

    /// Takes note of the answer to a write.
    ///
    /// # Panics
    ///
    /// If the write was not tried, or was answered before.
    pub fn learned(&mut self, write: u64, fate: Fate) {
        let known = self.writes.get_mut(&write);
        let known = known.unwrap_or_else(|| panic!("write {write} was not tried"));
        let is_open = known.fate == Fate::Unknown && known.was_there.is_none();
        assert!(is_open, "write {write} was answered before");
        known.fate = fate;
    }

    /// Returns how many writes were acknowledged, refused, and neither.
    pub fn counts(&self) -> [usize; 3] {
        [Fate::Acknowledged, Fate::Refused, Fate::Unknown].map(|fate| {
            let writes = self.writes.values();
            writes.filter(|write| write.fate == fate).count()
        })
    }

    /// Judges all that is there: the number of the write and of the part, once
    /// for each time it is found, in any order.
    ///
    /// What is found of unknown writes is remembered for the next time.
    ///
    /// # Errors
    /// Every broken rule, in the order of the writes.
    pub fn judge(
        &mut self,
        found: impl IntoIterator<Item = (u64, u32)>,
    ) -> Result<Findings, Vec<Violation>> {
        let mut times = BTreeMap::<u64, BTreeMap<u32, u64>>::new();
        for (write, part) in found {
            *times.entry(write).or_default().entry(part).or_default() += 1;
        }
        let mut violations = Vec::new();
        for (&write, parts) in &times {
            let known = self.writes.get(&write).map_or(0, |write| write.parts);
            for (&part, &times) in parts {
                if part >= known {
                    violations.push(Violation::Invented { write, part });
                } else if times > 1 {
                    violations.push(Violation::Repeated { write, part });
                }
            }
        }
        let mut findings = Findings::default();
        for (&write, known) in &mut self.writes {
            let parts = times.get(&write).map_or(0, |parts| {
                parts.keys().filter(|part| **part < known.parts).count()
            });
            // At most `known.parts`.
            let found = u32::try_from(parts).unwrap_or(u32::MAX);
            if found > 0 && found < known.parts {
                let parts = known.parts;
                violations.push(Violation::Torn {
                    write,
                    found,
                    parts,
                });
                continue;
            }
            let is_there = found > 0;
            let violation = match (known.fate, is_there, known.was_there) {
                (Fate::Acknowledged, false, _) => Some(Violation::Lost { write }),
                (Fate::Refused, true, _) => Some(Violation::Resurrected { write }),
                (Fate::Unknown, false, Some(true)) => Some(Violation::Vanished { write }),
                (Fate::Unknown, true, Some(false)) => Some(Violation::Emerged { write }),
                _ => None,
            };
            violations.extend(violation);
            if is_there {
                findings.present.push(write);
            }
            if known.fate == Fate::Unknown && known.was_there.is_none() {
                known.was_there = Some(is_there);
                if is_there {
                    findings.happened += 1;
                } else {
                    findings.not_happened += 1;
                }
            }
        }
        if violations.is_empty() {
            Ok(findings)
        } else {
            Err(violations)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Fate::{Acknowledged, Refused, Unknown};
    use super::*;

    /// Writes 1, 2, … with these fates, each of two parts.
    fn history(fates: &[Fate]) -> Oracle {
        let mut oracle = Oracle::default();
        for (write, fate) in (1..).zip(fates) {
            oracle.trying(write, 2);
            oracle.learned(write, *fate);
        }
        oracle
    }

    /// All parts of these writes.
    fn whole(writes: &[u64]) -> Vec<(u64, u32)> {
        let parts = |&write: &u64| [(write, 1), (write, 0)];
        writes.iter().flat_map(parts).collect()
    }

    #[test]
    fn acknowledged_writes_are_there_exactly_once() {
        let mut oracle = history(&[Acknowledged, Acknowledged]);
        let findings = oracle.judge(whole(&[2, 1])).unwrap();
        assert_eq!(findings.present, [1, 2]);

        let violations = oracle.judge(whole(&[1])).unwrap_err();
        assert_eq!(violations, [Violation::Lost { write: 2 }]);

        let twice = whole(&[1, 2]).into_iter().chain([(2, 1)]);
        let violations = oracle.judge(twice).unwrap_err();
        assert_eq!(violations, [Violation::Repeated { write: 2, part: 1 }]);
    }

    #[test]
    fn refused_writes_are_absent() {
        let mut oracle = history(&[Refused]);
        assert_eq!(oracle.judge([]).unwrap(), Findings::default());
        let violations = oracle.judge(whole(&[1])).unwrap_err();
        assert_eq!(violations, [Violation::Resurrected { write: 1 }]);
    }

    #[test]
    fn unknown_writes_are_either_and_stay_so() {
        for there in [false, true] {
            let [then, other] = [there, !there].map(|there| whole(if there { &[1] } else { &[] }));
            let mut oracle = history(&[Unknown]);
            let findings = oracle.judge(then.clone()).unwrap();
            assert_eq!(
                (findings.happened, findings.not_happened),
                (usize::from(there), usize::from(!there))
            );
            // Settled, and counted once.
            assert_eq!(oracle.judge(then).unwrap().happened, 0);
            let violations = oracle.judge(other).unwrap_err();
            let expected = if there {
                Violation::Vanished { write: 1 }
            } else {
                Violation::Emerged { write: 1 }
            };
            assert_eq!(violations, [expected]);
        }
    }

    #[test]
    fn unanswered_writes_are_unknown() {
        let mut oracle = Oracle::default();
        oracle.trying(1, 1);
        assert_eq!(oracle.counts(), [0, 0, 1]);
        assert_eq!(oracle.judge([(1, 0)]).unwrap().happened, 1);
    }

    #[test]
    fn no_write_is_there_in_part_whatever_its_fate() {
        for fate in [Acknowledged, Refused, Unknown] {
            let violations = history(&[fate]).judge([(1, 0)]).unwrap_err();
            let torn = Violation::Torn {
                write: 1,
                found: 1,
                parts: 2,
            };
            assert_eq!(violations, [torn]);
        }
    }

    #[test]
    fn nothing_is_there_that_was_never_tried() {
        let mut oracle = history(&[Acknowledged]);
        let found = whole(&[1]).into_iter().chain([(1, 2), (9, 0)]);
        let violations = oracle.judge(found).unwrap_err();
        let invented = [(1, 2), (9, 0)].map(|(write, part)| Violation::Invented { write, part });
        assert_eq!(violations, invented);
    }

    #[test]
    fn every_violation_of_a_history_is_reported() {
        let mut oracle = history(&[Acknowledged, Refused, Acknowledged]);
        let violations = oracle.judge(whole(&[2])).unwrap_err();
        let expected = [
            Violation::Lost { write: 1 },
            Violation::Resurrected { write: 2 },
            Violation::Lost { write: 3 },
        ];
        assert_eq!(violations, expected);
    }

    #[test]
    fn absent_write_may_be_tried_again_and_must_stay_once_acknowledged() {
        let mut oracle = history(&[Unknown]);
        oracle.judge([]).unwrap();
        oracle.trying(1, 2);
        oracle.learned(1, Acknowledged);
        oracle.judge(whole(&[1])).unwrap();
        let violations = oracle.judge([]).unwrap_err();
        assert_eq!(violations, [Violation::Lost { write: 1 }]);
    }

    #[test]
    #[should_panic(expected = "write 1 was tried before")]
    fn write_that_may_have_happened_is_not_tried_again() {
        history(&[Unknown]).trying(1, 2);
    }

    #[test]
    fn prefixes_follow_the_order_of_the_commits() {
        let order = [5, 3, 9];
        let present = |present: &[u64]| Findings {
            present: present.to_vec(),
            ..Findings::default()
        };
        for (found, prefix) in [
            (&[][..], Some(0)),
            (&[5], Some(1)),
            (&[3, 5], Some(2)),
            (&[3, 5, 9], Some(3)),
            (&[3], None),
            (&[5, 9], None),
            (&[1, 3, 5, 9], None),
        ] {
            assert_eq!(present(found).prefix_of(&order), prefix, "{found:?}");
        }
    }
}
