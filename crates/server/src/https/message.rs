//! Polls: one contact per request (protocol specification section 2.5).

use std::collections::VecDeque;
use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use fleethold_proto::fleetspeak::{ContactData, Message};
use http::header::CONTENT_LENGTH;
use http::{HeaderMap, Request, StatusCode};
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use prost::Message as _;

use super::body::{Encoding, PlainBody};
use super::connection::Connection;
use super::framing::take_messages;
use super::reply::{Refusal, Reply, octets, peer};
use super::{HANDLING_LIMIT, MOST_CONTACT_BYTES};
use crate::contacts::{ContactKind, Delivery};
use crate::metrics::{Exchange, PollType};
use crate::wire;

/// How much of an answer is encoded at a time.
const PART_BYTES: usize = 64 * 1024;

/// Answers a poll.
pub(super) async fn poll(
    connection: &Connection,
    request: Request<Incoming>,
) -> Result<Reply, Refusal> {
    let metrics = &connection.shared.contacts.engine.metrics;
    let mut exchange = metrics.exchange(PollType::Poll);
    match poll_measured(connection, request, &mut exchange).await {
        Ok(mut answer) => {
            exchange.answers(StatusCode::OK);
            answer.exchange = Some(exchange);
            Ok(octets(answer))
        }
        Err(refusal) => {
            exchange.answers(refusal.status());
            Err(refusal)
        }
    }
}

async fn poll_measured(
    connection: &Connection,
    request: Request<Incoming>,
    measured: &mut Exchange,
) -> Result<Answer, Refusal> {
    let announced = announced_length(request.headers())?;
    let peer = peer(connection, request.headers())?;
    let encoding = Encoding::of(request.headers())?;
    let client = peer.client;

    let shared = &connection.shared;
    // Held until the messages are processed.
    let mut charge = shared.budget.charge(client);
    let announced = announced.filter(|_| encoding == Encoding::Plain);
    let body = PlainBody::new(request.into_body(), encoding).collect(
        MOST_CONTACT_BYTES,
        announced,
        shared.budget.pace(),
        &mut charge,
    );
    let body = shared.waiting.arrival(body).await?;
    measured.has_read(body.len());
    let record = wire::decode_record(body)
        .map_err(|error| Refusal::bad_request(format!("the body is no contact: {error}")))?;

    let exchange = async {
        let contact = shared
            .contacts
            .begin(peer, record, ContactKind::Poll)
            .await?;
        measured.set_cache_hit(contact.cache_hit());
        // The contact is recorded and its messages are stored: an error now
        // would make the agent send them again, after minutes.
        let delivery = contact.take_messages().await.unwrap_or_else(|error| {
            tracing::warn!(%client, %error, "answered a poll without messages");
            Delivery::default()
        });
        Ok::<_, Refusal>(Answer::new(contact.nonce(), delivery.messages))
    };
    let answer = tokio::time::timeout(HANDLING_LIMIT, Box::pin(exchange))
        .await
        .map_err(|_| {
            let reason = format!("a poll took more than {} s", HANDLING_LIMIT.as_secs());
            Refusal::new(StatusCode::INTERNAL_SERVER_ERROR, reason)
        })??;
    tracing::debug!(%client, messages = answer.messages.len(), "answered a poll");
    Ok(answer)
}

/// Returns the length a request claims, unless it is too large.
fn announced_length(headers: &HeaderMap) -> Result<Option<usize>, Refusal> {
    let Some(length) = headers.get(CONTENT_LENGTH) else {
        return Ok(None);
    };
    match length.to_str().ok().and_then(|text| text.parse().ok()) {
        Some(length) if length <= MOST_CONTACT_BYTES => Ok(Some(length)),
        _ => Err(Refusal::bad_request("the body is too large")),
    }
}

/// A serialized `ContactData` that is made while it is sent, so that messages
/// are not in memory twice.
///
/// It relies on protobuf's rule that concatenated parts are one message.
struct Answer {
    nonce: Option<u64>,
    messages: VecDeque<Message>,
    left_bytes: u64,
    /// Lasts until all is sent.
    exchange: Option<Exchange>,
}

impl Answer {
    fn new(nonce: u64, messages: Vec<Message>) -> Self {
        let whole = ContactData {
            sequencing_nonce: nonce,
            messages,
            ..ContactData::default()
        };
        Self {
            nonce: Some(nonce),
            left_bytes: u64::try_from(whole.encoded_len()).expect("fits"),
            messages: whole.messages.into(),
            exchange: None,
        }
    }
}

impl Body for Answer {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let this = &mut *self;
        if this.is_end_stream() {
            return Poll::Ready(None);
        }
        let part = ContactData {
            sequencing_nonce: this.nonce.take().unwrap_or_default(),
            messages: take_messages(&mut this.messages, PART_BYTES),
            ..ContactData::default()
        };
        let part = Bytes::from(part.encode_to_vec());
        this.left_bytes -= u64::try_from(part.len()).expect("fits");
        if let Some(exchange) = &mut this.exchange {
            exchange.has_written(part.len());
        }
        Poll::Ready(Some(Ok(Frame::data(part))))
    }

    fn is_end_stream(&self) -> bool {
        self.nonce.is_none() && self.messages.is_empty()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.left_bytes)
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt;

    use super::*;

    #[tokio::test]
    async fn parts_of_an_answer_are_one_message() {
        let messages: Vec<_> = (0..250_u32)
            .map(|n| Message {
                message_id: n.to_be_bytes().to_vec().into(),
                message_type: "x".repeat(usize::try_from(n).unwrap() * 10),
                ..Message::default()
            })
            .collect();
        let answer = Answer::new(7, messages.clone());
        let announced = answer.size_hint().exact();
        let body = answer.collect().await.unwrap().to_bytes();
        assert_eq!(announced, u64::try_from(body.len()).ok());
        let data = ContactData::decode(body).unwrap();
        assert_eq!(data.sequencing_nonce, 7);
        assert_eq!(data.messages, messages);
    }
}
