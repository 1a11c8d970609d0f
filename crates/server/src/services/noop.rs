//! Factory `NOOP`: accepts and drops every message.

use async_trait::async_trait;
use fleethold_proto::fleetspeak::Message;
use tokio::time::Instant;

use super::{Service, ServiceError};

pub(crate) struct NoopService;

#[async_trait]
impl Service for NoopService {
    async fn process(&self, _message: &Message, _deadline: Instant) -> Result<(), ServiceError> {
        Ok(())
    }
}
