//! Taking the time.

use std::time::Duration;

use anyhow::Result;

use crate::embedded::Scale;

/// Most calls that are made ahead for one repetition.
const MOST_CALLS: f64 = 200_000.0;

/// Returns how many calls per second `run` makes, once per repetition.
///
/// `run` makes so many calls and says how long that took. It is first run for a
/// short time, which also warms caches, to know how many calls fill the window.
pub(crate) async fn rates(
    scale: Scale,
    mut run: impl AsyncFnMut(u32) -> Result<Duration>,
) -> Result<Vec<f64>> {
    let mut calls = 1;
    let rate = loop {
        let time = run(calls).await?;
        if time >= scale.window / 8 {
            break f64::from(calls) / time.as_secs_f64();
        }
        calls *= 4;
    };
    let calls = whole((rate * scale.window.as_secs_f64()).clamp(1.0, MOST_CALLS));
    let mut rates = Vec::new();
    for _ in 0..scale.repetitions {
        rates.push(f64::from(calls) / run(calls).await?.as_secs_f64());
    }
    Ok(rates)
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "between 1 and MOST_CALLS"
)]
fn whole(calls: f64) -> u32 {
    calls as u32
}
