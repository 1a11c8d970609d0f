//! A Debian package of an agent's configuration.
//!
//! Such a package is an `ar` archive of three members: the version of the format, what the package manager reads, and
//! the files. `dpkg` is not needed to make one.

use std::io::{self, Write};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use flate2::Compression;
use flate2::write::GzEncoder;
use fleethold_proto::Timestamp;
use tar::{Builder, EntryType, Header};

use crate::agent_config::DIRECTORY;

/// The name of the package.
pub(super) const NAME: &str = "fleetspeak-client-config";

/// Starts an agent that waits for its configuration, and restarts one that has read an older one.
const AFTER_INSTALLATION: &str = "\
#!/bin/sh
set -e
if [ \"$1\" = configure ] && [ -d /run/systemd/system ]; then
    if systemctl --quiet is-enabled fleetspeak-client.service 2>/dev/null; then
        systemctl reset-failed fleetspeak-client.service || true
        systemctl --no-block restart fleetspeak-client.service || true
    fi
fi
";

/// Returns the package of a configuration; one that is made later counts as newer.
pub(super) fn package(
    configuration_name: &str,
    client_config: &str,
    now: SystemTime,
) -> io::Result<Vec<u8>> {
    let seconds = now.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    let installed_kib = client_config.len().div_ceil(1024) + 2;
    let control = format!(
        "Package: {NAME}\n\
         Version: {}\n\
         Architecture: all\n\
         Maintainer: root <root@localhost>\n\
         Installed-Size: {installed_kib}\n\
         Enhances: fleetspeak-client\n\
         Section: admin\n\
         Priority: optional\n\
         Description: configuration of the Fleetspeak agent for {}\n \
         It names the servers and the certificates that the agent trusts.\n",
        version(seconds),
        one_line(configuration_name),
    );
    let file = format!("{DIRECTORY}/client.config");

    let mut metadata = Archive::new(seconds);
    metadata.directory("./")?;
    metadata.file("./conffiles", 0o644, &format!("{file}\n"))?;
    metadata.file("./control", 0o644, &control)?;
    metadata.file("./postinst", 0o755, AFTER_INSTALLATION)?;

    let mut files = Archive::new(seconds);
    for directory in ["./", "./etc/"] {
        files.directory(directory)?;
    }
    files.directory(&format!(".{DIRECTORY}/"))?;
    files.file(&format!(".{file}"), 0o644, client_config)?;
    files.directory(&format!(".{DIRECTORY}/textservices/"))?;

    ar(
        seconds,
        &[
            ("debian-binary", b"2.0\n"),
            ("control.tar.gz", &metadata.finish()?),
            ("data.tar.gz", &files.finish()?),
        ],
    )
}

/// Returns a version that grows with time.
fn version(seconds: u64) -> String {
    let time = UNIX_EPOCH + Duration::from_secs(seconds);
    let text = Timestamp::from(time).to_string();
    let digits = |part: &str| {
        part.chars()
            .filter(char::is_ascii_digit)
            .collect::<String>()
    };
    let (date, time) = text.split_once('T').unwrap_or((&text, ""));
    format!("{}.{}", digits(date), digits(time))
}

/// Returns a name that cannot begin another field.
fn one_line(name: &str) -> String {
    name.replace(char::is_control, " ")
}

/// A compressed `tar` archive of files that belong to root.
struct Archive {
    builder: Builder<GzEncoder<Vec<u8>>>,
    seconds: u64,
}

impl Archive {
    fn new(seconds: u64) -> Self {
        let compressed = GzEncoder::new(Vec::new(), Compression::best());
        Self {
            builder: Builder::new(compressed),
            seconds,
        }
    }

    fn directory(&mut self, path: &str) -> io::Result<()> {
        self.entry(path, EntryType::Directory, 0o755, "")
    }

    fn file(&mut self, path: &str, mode: u32, text: &str) -> io::Result<()> {
        self.entry(path, EntryType::Regular, mode, text)
    }

    fn entry(&mut self, path: &str, kind: EntryType, mode: u32, text: &str) -> io::Result<()> {
        let mut header = Header::new_gnu();
        // The crate's own setter drops the `./` that Debian's archives have.
        let name = &mut header.as_old_mut().name;
        name[..path.len()].copy_from_slice(path.as_bytes());
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_uid(0);
        header.set_gid(0);
        header.set_username("root")?;
        header.set_groupname("root")?;
        header.set_mtime(self.seconds);
        header.set_size(u64::try_from(text.len()).unwrap_or(u64::MAX));
        header.set_cksum();
        self.builder.append(&header, text.as_bytes())
    }

    fn finish(self) -> io::Result<Vec<u8>> {
        self.builder.into_inner()?.finish()
    }
}

/// Returns an `ar` archive; names have at most 16 bytes.
fn ar(seconds: u64, members: &[(&str, &[u8])]) -> io::Result<Vec<u8>> {
    let mut archive = b"!<arch>\n".to_vec();
    for (name, bytes) in members {
        let (owner, group, mode) = (0, 0, "100644");
        writeln!(
            archive,
            "{name:<16}{seconds:<12}{owner:<6}{group:<6}{mode:<8}{:<10}`",
            bytes.len()
        )?;
        archive.extend_from_slice(bytes);
        if bytes.len() % 2 == 1 {
            archive.push(b'\n');
        }
    }
    Ok(archive)
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use flate2::read::GzDecoder;

    use super::*;

    fn made() -> Vec<u8> {
        let now = UNIX_EPOCH + Duration::from_secs(1_800_000_000);
        package("Lazy\nCorp: 1", "server: \"a:1\"\n", now).unwrap()
    }

    /// Reads an archive back as name and content, by the description of the format.
    fn members(mut archive: &[u8]) -> Vec<(String, Vec<u8>)> {
        archive = archive.strip_prefix(b"!<arch>\n").unwrap();
        let mut members = Vec::new();
        while !archive.is_empty() {
            let (header, rest) = archive.split_at(60);
            assert_eq!(&header[58..], b"`\n");
            let text = |range: std::ops::Range<usize>| {
                String::from_utf8(header[range].to_vec())
                    .unwrap()
                    .trim_end()
                    .to_owned()
            };
            let size: usize = text(48..58).parse().unwrap();
            members.push((text(0..16), rest[..size].to_vec()));
            archive = &rest[size + size % 2..];
        }
        members
    }

    fn unpacked(archive: &[u8]) -> Vec<(String, u32, String)> {
        let mut archive = tar::Archive::new(GzDecoder::new(archive));
        let entries = archive.entries().unwrap();
        entries
            .map(|entry| {
                let mut entry = entry.unwrap();
                let name = String::from_utf8(entry.path_bytes().into_owned()).unwrap();
                let mode = entry.header().mode().unwrap();
                let mut text = String::new();
                entry.read_to_string(&mut text).unwrap();
                (name, mode, text)
            })
            .collect()
    }

    #[test]
    fn a_package_has_the_members_that_debian_asks_for() {
        let members = members(&made());
        let names: Vec<_> = members.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, ["debian-binary", "control.tar.gz", "data.tar.gz"]);
        assert_eq!(members[0].1, b"2.0\n");

        let control = unpacked(&members[1].1);
        let control = |name: &str| &control.iter().find(|(n, ..)| n == name).unwrap().2;
        assert_eq!(
            control("./conffiles"),
            "/etc/fleetspeak-client/client.config\n"
        );
        let fields = control("./control");
        assert!(fields.contains("\nVersion: 20270115.080000\n"), "{fields}");
        assert!(fields.contains("agent for Lazy Corp: 1\n"), "{fields}");

        let files = unpacked(&members[2].1);
        let config = &files[3];
        assert_eq!(config.0, "./etc/fleetspeak-client/client.config");
        assert_eq!((config.1, config.2.as_str()), (0o644, "server: \"a:1\"\n"));
    }

    #[test]
    fn later_versions_are_newer() {
        let first = version(1_800_000_000);
        assert!(version(1_800_000_001) > first);
        assert!(version(1_900_000_000) > first);
    }
}
