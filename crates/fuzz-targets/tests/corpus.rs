//! Every input of the corpora in `/fuzz/corpus`, and random changes of them,
//! without a fuzzer: what it found once stays found.
//!
//! `FLEETHOLD_FUZZ_SEED` and `FLEETHOLD_FUZZ_MUTATIONS` ask for other changes
//! and for more of them for each target.

use std::panic::catch_unwind;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::{env, fs};

use fleethold_fuzz_targets::{TARGETS, Target};
use libtest_mimic::{Arguments, Failed, Trial};
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};

const MUTATIONS: u64 = 2_000;

/// Larger inputs are for the fuzzer.
const MOST_MUTATED_BYTES: usize = 16 * 1024;

fn main() -> ExitCode {
    let mut arguments = Arguments::from_args();
    // The memory of all threads is counted together.
    arguments.test_threads = Some(1);
    let mut trials: Vec<_> = TARGETS
        .iter()
        .flat_map(|target| {
            let (name, _) = target;
            [
                Trial::test(format!("{name}::corpus_holds"), || whole_corpus(target)),
                Trial::test(format!("{name}::mutations_hold"), || mutations(target)),
            ]
        })
        .collect();
    trials.push(Trial::test("every_corpus_has_a_target", || {
        let folders = list(&corpora());
        let known = |folder: &PathBuf| TARGETS.iter().any(|(name, _)| folder.ends_with(name));
        match folders.iter().find(|folder| !known(folder)) {
            Some(folder) => Err(format!("no target reads {}", folder.display()).into()),
            None => Ok(()),
        }
    }));
    libtest_mimic::run(&arguments, trials).exit_code()
}

fn whole_corpus(&(name, run): &Target) -> Result<(), Failed> {
    for (path, input) in corpus(name)? {
        catch_unwind(|| run(&input)).map_err(|_| format!("see above: {}", path.display()))?;
    }
    Ok(())
}

fn mutations(&(name, run): &Target) -> Result<(), Failed> {
    let number = |variable: &str, default| {
        env::var(variable).map_or(Ok(default), |text| {
            text.parse()
                .map_err(|_| format!("{variable} is no number: {text}"))
        })
    };
    let first = number("FLEETHOLD_FUZZ_SEED", 1)?;
    let count = number("FLEETHOLD_FUZZ_MUTATIONS", MUTATIONS)?;
    let inputs: Vec<_> = corpus(name)?.into_iter().map(|(_, input)| input).collect();
    for seed in first..first + count {
        let mut random = StdRng::seed_from_u64(seed);
        let input = mutated(&mut random, &inputs);
        catch_unwind(|| run(&input)).map_err(|_| {
            let start = &input[..input.len().min(300)];
            format!(
                "see above; the input has {} bytes and begins with {}; again: \
                 FLEETHOLD_FUZZ_SEED={seed} FLEETHOLD_FUZZ_MUTATIONS=1",
                input.len(),
                start.escape_ascii()
            )
        })?;
    }
    Ok(())
}

/// Changes one of `inputs` in one to eight places.
fn mutated(random: &mut StdRng, inputs: &[Vec<u8>]) -> Vec<u8> {
    let mut input = choose(random, inputs).to_vec();
    for _ in 0..random.random_range(1..=8) {
        let at = random.random_range(0..=input.len());
        let end = input.len().min(at + random.random_range(1..=16));
        match random.random_range(0..7) {
            0 => drop(input.drain(at..end)),
            1 => input.insert(at, random.random()),
            2 => {
                let copy = input[at..end].to_vec();
                input.splice(at..at, copy);
            }
            3 => {
                let other = choose(random, inputs);
                let from = random.random_range(0..=other.len());
                let part = &other[from..other.len().min(from + 64)];
                input.splice(at..end, part.iter().copied());
            }
            change => {
                let Some(byte) = input.get_mut(at) else {
                    continue;
                };
                *byte = match change {
                    4 => *byte ^ 1 << random.random_range(0..8),
                    5 => *[0, 1, 0x7f, 0x80, 0xff].choose(random).expect("some"),
                    _ => byte
                        .wrapping_add(random.random_range(0..=8))
                        .wrapping_sub(4),
                };
            }
        }
    }
    input.truncate(MOST_MUTATED_BYTES);
    input
}

fn choose<'a>(random: &mut StdRng, inputs: &'a [Vec<u8>]) -> &'a [u8] {
    inputs.choose(random).expect("no corpus is empty")
}

/// Reads the inputs of a target, each with its path.
fn corpus(target: &str) -> Result<Vec<(PathBuf, Vec<u8>)>, Failed> {
    let inputs = list(&corpora().join(target))
        .into_iter()
        .map(|path| fs::read(&path).map(|input| (path, input)))
        .collect::<Result<Vec<_>, _>>()?;
    match inputs.is_empty() {
        true => Err(format!("target `{target}` has no corpus").into()),
        false => Ok(inputs),
    }
}

fn corpora() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/corpus")
}

/// Lists a folder in order of names, so that a seed means the same input again.
fn list(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).unwrap_or_else(|error| panic!("{error}: {folder:?}"));
    let mut paths: Vec<_> = entries
        .map(|entry| entry.expect("the corpora do not change").path())
        .collect();
    paths.sort();
    paths
}
