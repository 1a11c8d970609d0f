//! What to write instead of a text that is not of its message.

use fleethold_proto::DESCRIPTORS;
use fleethold_proto::text::TextError;
use prost_reflect::DescriptorPool;

/// A components file in one line.
pub(super) const COMPONENTS_EXAMPLE: &str = "admin_config { listen_address: \"localhost:9000\" }";

/// A services file in one line.
pub(super) const SERVICES_EXAMPLE: &str = "services { name: \"GRR\" factory: \"GRPC\" \
     config { [type.googleapis.com/fleetspeak.grpcservice.Config] { target: \"localhost:11111\" insecure: true } } }";

/// Returns what to write instead; `example` is a text without errors.
pub(super) fn hint(error: &TextError, example: &str) -> String {
    let problem = error.message();
    known_fields(problem)
        .or_else(|| set_twice(problem))
        .unwrap_or_else(|| format!("write fields as in `{example}`"))
}

/// Lists the fields that there are, if one is unknown.
fn known_fields(problem: &str) -> Option<String> {
    // The parser tells names in its text only.
    let (_, message) = problem
        .strip_prefix("field '")?
        .split_once("' not found for message '")?;
    let pool = DescriptorPool::decode(DESCRIPTORS).ok()?;
    let message = pool.get_message_by_name(message.strip_suffix('\'')?)?;
    let fields: Vec<_> = message
        .fields()
        .map(|field| format!("`{}`", field.name()))
        .collect();
    Some(match fields.is_empty() {
        true => format!("remove it, {} has no fields", message.full_name()),
        false => format!("the fields here are {}", fields.join(", ")),
    })
}

/// Names the field that is set again.
fn set_twice(problem: &str) -> Option<String> {
    let field = problem
        .strip_prefix('\'')?
        .strip_suffix("' is already set")?;
    Some(format!("write `{field}` only once"))
}
