//! The command lines of the stock server and configurator: where they are used, ours takes their place.
//!
//! Upstream's programs read Go flags: one dash or two, `-flag=value` or `-flag value`, and names with underscores. So a
//! unit file, a container or GRR may start this program as it started `fleetspeak-server` or `fleetspeak-config`. Flags of its logging library
//! are accepted and have no effect; `--log` and `--log-format` are ours.

use std::ffi::{OsStr, OsString};
use std::path::Path;

/// Names under which the stock server is installed, in packages and in its container.
const STOCK_NAMES: [&str; 2] = ["fleetspeak-server", "server"];

/// The same for the stock configurator.
const STOCK_CONFIGURATOR_NAMES: [&str; 2] = ["fleetspeak-config", "fleetspeak_config"];

/// A flag of the stock server that names a file.
struct FileFlag {
    stock: &'static str,
    ours: &'static str,
    /// Where the stock server looks without the flag.
    default: Option<&'static str>,
}

const FILES: [FileFlag; 2] = [
    FileFlag {
        stock: "components_config",
        ours: "--components-config",
        default: Some("/etc/fleetspeak-server/server.components.config"),
    },
    FileFlag {
        stock: "services_config",
        ours: "--services-config",
        default: Some("/etc/fleetspeak-server/server.services.config"),
    },
];

const CONFIGURATOR_FILES: [FileFlag; 1] = [FileFlag {
    stock: "config",
    ours: "--config",
    default: None,
}];

/// Flags of its logging library that need no value, and those that do.
const LOG_SWITCHES: [&str; 2] = ["logtostderr", "alsologtostderr"];
const LOG_VALUES: [&str; 7] = [
    "stderrthreshold",
    "v",
    "vmodule",
    "log_dir",
    "log_link",
    "log_backtrace_at",
    "logbuflevel",
];

/// Returns a command line with the stock server's spelling replaced by ours; any other is returned unchanged.
pub(crate) fn translate(line: impl IntoIterator<Item = OsString>) -> Vec<OsString> {
    let mut line = line.into_iter();
    let program = line.next().unwrap_or_default();
    let is_called = |names: &[&str]| {
        let called = Path::new(&program).file_name();
        called.is_some_and(|called| names.iter().any(|name| called == *name))
    };
    let is_configurator = is_called(&STOCK_CONFIGURATOR_NAMES);
    let is_stock_name = is_configurator || is_called(&STOCK_NAMES);
    let mut rest = line.peekable();
    let named = rest.next_if(|first| {
        ["serve", "check-config", "init"]
            .iter()
            .any(|command| first == command)
    });
    let command = named.clone().unwrap_or_else(|| {
        if is_configurator {
            "init".into()
        } else {
            "serve".into()
        }
    });
    let files: &[FileFlag] = match command == "init" {
        true => &CONFIGURATOR_FILES,
        false => &FILES,
    };
    let begins_with_stock_flag = rest
        .peek()
        .and_then(|first| Flag::read(first))
        .is_some_and(|flag| flag.kind(files).is_some());
    if !is_stock_name && named.is_none() && !begins_with_stock_flag {
        return std::iter::once(program).chain(rest).collect();
    }
    let mut translated = vec![program, command];
    let mut files_named = vec![false; files.len()];
    while let Some(word) = rest.next() {
        let flag = Flag::read(&word);
        match flag
            .as_ref()
            .and_then(|flag| Some((flag, flag.kind(files)?)))
        {
            Some((flag, Kind::File(file))) => {
                files_named[file] = true;
                translated.push(files[file].ours.into());
                translated.extend(flag.value.map(OsString::from).or_else(|| rest.next()));
            }
            Some((_, Kind::Switch)) => {}
            Some((flag, Kind::Value)) => {
                if flag.value.is_none() {
                    rest.next();
                }
            }
            None => translated.push(word),
        }
    }
    if is_stock_name {
        for (file, _) in files.iter().zip(files_named).filter(|(_, named)| !named) {
            if let Some(default) = file.default {
                translated.extend([file.ours, default].map(OsString::from));
            }
        }
    }
    translated
}

/// A word that may be a Go flag.
struct Flag<'a> {
    name: &'a str,
    value: Option<&'a str>,
}

enum Kind {
    /// Which of the program's files.
    File(usize),
    Switch,
    Value,
}

impl<'a> Flag<'a> {
    fn read(word: &'a OsStr) -> Option<Self> {
        let text = word.to_str()?.strip_prefix('-')?;
        let text = text.strip_prefix('-').unwrap_or(text);
        Some(match text.split_once('=') {
            Some((name, value)) => Self {
                name,
                value: Some(value),
            },
            None => Self {
                name: text,
                value: None,
            },
        })
    }

    fn kind(&self, files: &[FileFlag]) -> Option<Kind> {
        let file = files.iter().position(|file| file.stock == self.name);
        let switch = LOG_SWITCHES.contains(&self.name).then_some(Kind::Switch);
        let value = LOG_VALUES.contains(&self.name).then_some(Kind::Value);
        file.map(Kind::File).or(switch).or(value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn translated(line: &str) -> String {
        let words = translate(line.split(' ').map(OsString::from));
        let words: Vec<_> = words.iter().map(|word| word.to_str().unwrap()).collect();
        words.join(" ")
    }

    #[test]
    fn p_212_flags_of_the_stock_server_are_read_in_all_forms() {
        for (stock, ours) in [
            (
                "fleethold -components_config c -services_config s -alsologtostderr -v 1000",
                "fleethold serve --components-config c --services-config s",
            ),
            (
                "fleethold --logtostderr --services_config s --components_config c",
                "fleethold serve --services-config s --components-config c",
            ),
            (
                "fleethold serve -components_config=c -v=2 --services_config=s --store sqlite:f",
                "fleethold serve --components-config c --services-config s --store sqlite:f",
            ),
            (
                "fleethold -logtostderr=false -components_config c",
                "fleethold serve --components-config c",
            ),
            (
                "fleethold check-config -components_config c",
                "fleethold check-config --components-config c",
            ),
            (
                "fleethold -stderrthreshold INFO -vmodule a=1 -log_dir d -log_link l \
                 -log_backtrace_at f:1 -logbuflevel 0 -components_config c",
                "fleethold serve --components-config c",
            ),
        ] {
            assert_eq!(translated(stock), ours, "{stock}");
        }
    }

    #[test]
    fn program_installed_in_the_place_of_the_stock_server_uses_its_files() {
        let both = "--components-config /etc/fleetspeak-server/server.components.config \
                    --services-config /etc/fleetspeak-server/server.services.config";
        for program in ["/usr/bin/fleetspeak-server", "server"] {
            let ours = format!("{program} serve {both}");
            assert_eq!(translated(program), ours);
            assert_eq!(translated(&format!("{program} -logtostderr")), ours);
        }
        assert_eq!(
            translated("fleetspeak-server -components_config c"),
            "fleetspeak-server serve --components-config c \
             --services-config /etc/fleetspeak-server/server.services.config"
        );
    }

    #[test]
    fn p_212_the_stock_configurator_is_taken_over() {
        for (stock, ours) in [
            (
                "/usr/bin/fleetspeak-config -logtostderr -config c",
                "/usr/bin/fleetspeak-config init --config c",
            ),
            (
                "fleetspeak_config --config=c -v 2",
                "fleetspeak_config init --config c",
            ),
            ("fleetspeak-config", "fleetspeak-config init"),
            ("fleethold init -config c", "fleethold init --config c"),
            (
                "fleethold init --config c --renew",
                "fleethold init --config c --renew",
            ),
        ] {
            assert_eq!(translated(stock), ours, "{stock}");
        }
    }

    #[test]
    fn other_command_lines_stay_as_they_are() {
        for line in [
            "fleethold",
            "fleethold client list",
            "fleethold --version",
            "fleethold -h",
            "fleethold message send --data -v",
            "fleethold serve --components-config c --log debug",
        ] {
            assert_eq!(translated(line), line);
        }
    }
}
