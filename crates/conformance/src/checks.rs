//! Comparisons that explain a failure: what was expected, what came back, and
//! the sentence of the contract.

use std::fmt::{Debug, Write};
use std::future::poll_fn;
use std::pin::pin;
use std::task::Poll;

use fleethold_proto::fleetspeak::Message;
use fleethold_store::{ErrorKind, Outcome, Result};

/// Compares all messages, in order and with every field.
#[track_caller]
pub(crate) fn assert_messages(contract: &str, found: &[Message], expected: &[Message]) {
    if found == expected {
        return;
    }
    let mut report = format!(
        "{contract}\n  expected {} messages, found {}",
        expected.len(),
        found.len()
    );
    let expected_ids = describe_ids(expected);
    let found_ids = describe_ids(found);
    if expected_ids == found_ids {
        let (expected, found) = expected
            .iter()
            .zip(found)
            .find(|(expected, found)| expected != found)
            .expect("the lists differ");
        let _ = write!(report, "\n  expected {expected:#?}\n  found {found:#?}");
    } else {
        let _ = write!(
            report,
            "\n  expected {expected_ids}\n  found    {found_ids}"
        );
    }
    panic!("{report}");
}

/// Compares anything else.
#[track_caller]
pub(crate) fn assert_same<T: PartialEq<U> + Debug, U: Debug>(
    contract: &str,
    found: &T,
    expected: &U,
) {
    assert!(
        found == expected,
        "{contract}\n  expected {expected:#?}\n  found {found:#?}"
    );
}

/// Checks that a call was refused, for this reason and without effect.
#[track_caller]
pub(crate) fn assert_refused<T: Debug>(contract: &str, result: Result<T>, kind: ErrorKind) {
    match result {
        Err(error) if error.kind() == kind => assert_eq!(
            error.outcome(),
            Outcome::NotApplied,
            "{contract}\n  a refused call changes nothing: {error:?}"
        ),
        other => panic!("{contract}\n  expected {kind:?}\n  found {other:#?}"),
    }
}

/// Polls `call` at most `polls` times and then drops it; `None` if it had not
/// finished by then.
pub(crate) async fn cancel_after<T>(polls: usize, call: impl Future<Output = T>) -> Option<T> {
    let mut call = pin!(call);
    let mut polled = 0;
    poll_fn(|context| {
        polled += 1;
        match call.as_mut().poll(context) {
            Poll::Ready(output) => Poll::Ready(Some(output)),
            Poll::Pending if polled >= polls => Poll::Ready(None),
            Poll::Pending => Poll::Pending,
        }
    })
    .await
}

/// Names messages by the last digits of their ids, the first hundred of them.
fn describe_ids(messages: &[Message]) -> String {
    let mut text: Vec<String> = messages
        .iter()
        .take(100)
        .map(|message| {
            let id = &message.message_id;
            let tail = &id[id.len().saturating_sub(4)..];
            tail.iter().map(|byte| format!("{byte:02x}")).collect()
        })
        .collect();
    if messages.len() > text.len() {
        text.push("…".into());
    }
    format!("…[{}]", text.join(" "))
}
