//! Several servers on one store, on the command line.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context;
use clap::Args;
use fleethold_server::config::DEFAULT_STREAM_LOOK;
use fleethold_server::{Config, NotificationSecret};

use super::operation::refuse_mode;
use super::public_address;
use crate::admin::host_port;
use crate::output::Failure;

const SEVERAL: &str = "Several servers on one store (docs/operations.md)";

#[derive(Args, Clone, Debug)]
pub(crate) struct NotificationArgs {
    /// Where other servers tell this one of messages for its agents
    #[arg(long, value_name = "HOST:PORT", help_heading = SEVERAL, value_parser = host_port)]
    notification_listen: Option<String>,
    /// The address under which other servers find that [default: the one of --notification-listen, or the machine's name]
    #[arg(long, value_name = "HOST:PORT", help_heading = SEVERAL, value_parser = public_address)]
    notification_address: Option<String>,
    /// A file with what all servers know and nobody else: who does not know it tells this server nothing
    #[arg(long, value_name = "FILE", help_heading = SEVERAL)]
    notification_secret_file: Option<PathBuf>,
    /// Believe servers that do not know the secret, too, as stock servers do not
    #[arg(long, help_heading = SEVERAL, requires = "notification_secret_file")]
    notification_accept_unsigned: bool,
    /// How often an open stream looks for messages of which no other server told this one; 0 for never
    #[arg(long, value_name = "SECONDS", help_heading = SEVERAL)]
    #[arg(default_value_t = DEFAULT_STREAM_LOOK.as_secs(), value_parser = clap::value_parser!(u64).range(0..=3600))]
    stream_look: u64,
}

impl NotificationArgs {
    /// Puts the options into a configuration; they win over those of its files.
    pub(super) fn apply(&self, config: &mut Config) -> Result<(), Failure> {
        let notifications = &mut config.notifications;
        if let Some(listen) = &self.notification_listen {
            notifications.listen = Some(listen.clone());
        }
        if let Some(address) = &self.notification_address {
            if notifications.listen.is_none() {
                return Err(Failure::usage(
                    "--notification-address is of no use, because this server takes no notifications",
                )
                .hint("add --notification-listen HOST:PORT"));
            }
            notifications.public_address = Some(address.clone());
        }
        notifications.secret = self.secret()?;
        notifications.accept_unsigned = self.notification_accept_unsigned;
        config.stream_look = Duration::from_secs(self.stream_look);
        Ok(())
    }

    fn secret(&self) -> Result<Option<NotificationSecret>, Failure> {
        let Some(path) = &self.notification_secret_file else {
            return Ok(None);
        };
        refuse_mode(path, 0o007, "can be read by everybody", "chmod o-rwx")?;
        let content = fs::read(path)
            .with_context(|| format!("cannot read `{}`", path.display()))
            .map_err(|error| Failure::usage(format!("{error:#}")))?;
        let secret = NotificationSecret::new(&content)
            .with_context(|| format!("cannot use secret file `{}`", path.display()))
            .map_err(|error| {
                Failure::usage(format!("{error:#}"))
                    .hint("make one: head -c 32 /dev/urandom | base64 > FILE")
            })?;
        Ok(Some(secret))
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;
    use std::path::Path;

    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        notifications: NotificationArgs,
    }

    fn apply(words: &[&str]) -> Result<Config, String> {
        let words = std::iter::once(&"serve").chain(words);
        let line = Line::try_parse_from(words).map_err(|error| error.to_string())?;
        let mut config = Config::default();
        let applied = line.notifications.apply(&mut config);
        applied.map_err(|failure| format!("{:#}", failure.error()))?;
        Ok(config)
    }

    fn secret_file(dir: &Path, content: &str, mode: u32) -> String {
        let path = dir.join(format!("secret-{mode:o}-{}", content.len()));
        fs::write(&path, content).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        path.to_str().unwrap().to_owned()
    }

    #[test]
    fn options_say_where_others_find_this_server_and_what_they_have_to_know() {
        let config = apply(&[]).unwrap();
        assert_eq!(config.notifications.listen, None);
        assert_eq!(config.stream_look, DEFAULT_STREAM_LOOK);
        let dir = tempfile::tempdir().unwrap();
        let secret = secret_file(dir.path(), "0123456789abcdef\n", 0o600);
        let config = apply(&[
            "--notification-listen",
            "127.0.0.1:0",
            "--notification-address",
            "a.example:8080",
            "--notification-secret-file",
            &secret,
            "--notification-accept-unsigned",
            "--stream-look",
            "0",
        ]);
        let config = config.unwrap();
        let notifications = config.notifications;
        assert_eq!(notifications.listen.as_deref(), Some("127.0.0.1:0"));
        assert_eq!(
            notifications.public_address.as_deref(),
            Some("a.example:8080")
        );
        assert!(notifications.secret.is_some() && notifications.accept_unsigned);
        assert!(config.stream_look.is_zero());
    }

    #[test]
    fn options_that_make_no_sense_are_refused_without_showing_a_secret() {
        let dir = tempfile::tempdir().unwrap();
        let short = secret_file(dir.path(), "too short", 0o600);
        let open = secret_file(dir.path(), "0123456789abcdef", 0o604);
        for (words, expected) in [
            (vec!["--notification-address", "a:1"], "is of no use"),
            (vec!["--notification-address", ":1"], "has no host"),
            (vec!["--notification-listen", "nine"], "port"),
            (vec!["--notification-accept-unsigned"], "required"),
            (vec!["--notification-secret-file", &short], "16"),
            (
                vec!["--notification-secret-file", &open],
                "read by everybody",
            ),
            (
                vec!["--notification-secret-file", "/no/such/file"],
                "cannot read",
            ),
            (vec!["--stream-look", "3601"], "3600"),
        ] {
            let error = apply(&words).expect_err(expected);
            assert!(error.contains(expected), "{error}");
            assert!(!error.contains("too short"), "{error}");
        }
    }
}
