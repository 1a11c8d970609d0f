//! The rules for one entry of a services file.

use std::path::Path;

use fleethold_proto::fleethold::service::v1::BatchConfig;
use fleethold_proto::fleetspeak::grpcservice;
use fleethold_proto::fleetspeak::server::ServiceConfig;
use fleethold_proto::unpack;
use fleethold_store::limits::MAX_NAME_CHARS;

use super::ConfigError;
use crate::services::grpc::batch;

/// What to write for a service that this server can run.
const EXAMPLE: &str = "write `config { [type.googleapis.com/fleetspeak.grpcservice.Config] \
                       { target: \"localhost:11111\" insecure: true } }`";

/// Refuses a service that cannot be installed; `index` is its place in the file.
pub(super) fn check(service: &ServiceConfig, index: usize, path: &Path) -> Result<(), ConfigError> {
    let invalid = |field: &str, problem: String, hint: &str| {
        Err(ConfigError::invalid(
            path,
            format!("services[{index}].{field}"),
            problem,
            hint,
        ))
    };
    let name = &service.name;
    match name.as_str() {
        "" => return invalid("name", "is missing".to_owned(), "write `name: \"GRR\"`"),
        "system" | "client" => {
            return invalid(
                "name",
                format!("`{name}` is reserved"),
                "choose another name",
            );
        }
        _ if name.chars().count() > MAX_NAME_CHARS => {
            let problem = format!("is longer than {MAX_NAME_CHARS} characters");
            return invalid("name", problem, "choose a shorter name");
        }
        _ => {}
    }
    match service.factory.as_str() {
        "GRPC" => {}
        "NOOP" => return Ok(()),
        "CPS" => {
            let field = format!("services[{index}].factory");
            let hint = format!("service `{name}`: Pub/Sub is not available, use factory `GRPC`");
            return Err(ConfigError::unsupported(path, field, hint));
        }
        "" => {
            let problem = format!("of service `{name}` is missing");
            return invalid(
                "factory",
                problem,
                "write `factory: \"GRPC\"` or `factory: \"NOOP\"`",
            );
        }
        other => {
            let problem = format!("of service `{name}` is `{other}`, which does not exist");
            return invalid(
                "factory",
                problem,
                "write `factory: \"GRPC\"` or `factory: \"NOOP\"`",
            );
        }
    }

    let Some(any) = &service.config else {
        return invalid("config", format!("of service `{name}` is missing"), EXAMPLE);
    };
    let unpacked = if batch::is_config(any) {
        unpack(any).map(|config: BatchConfig| {
            batch::BatchLimits::read(&config).map(|_| config.connection.unwrap_or_default())
        })
    } else {
        unpack(any).map(Ok)
    };
    let unpacked = match unpacked {
        Ok(Ok(back_end)) => Ok(back_end),
        Ok(Err(problem)) => Err(problem),
        Err(error) => Err(error.to_string()),
    };
    let back_end: grpcservice::Config = match unpacked {
        Ok(back_end) => back_end,
        Err(error) => {
            return invalid(
                "config",
                format!("of service `{name}` cannot be used: {error}"),
                EXAMPLE,
            );
        }
    };
    if back_end.target.is_empty() {
        return invalid(
            "config.target",
            format!("of service `{name}` is missing"),
            EXAMPLE,
        );
    }
    if !back_end.insecure && back_end.cert_file.is_empty() {
        let problem =
            format!("of service `{name}` says neither `insecure: true` nor a `cert_file`");
        return invalid(
            "config",
            problem,
            "write `insecure: true`, or `cert_file` with the path of PEM roots",
        );
    }
    Ok(())
}
