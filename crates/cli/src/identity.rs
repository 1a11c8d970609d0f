//! Decides which keys and certificates of a server are kept, which are made, and which cannot be used.
//!
//! What is there comes in as PEM texts and what has to be written goes out the same way, so that a data directory and
//! the files of `init` follow the same rules: a CA is never replaced, and a key only made where there is none.

use std::time::{Duration, SystemTime};

use anyhow::Context;
use fleethold_store::Random;
use rustls::pki_types::ServerName;

use crate::certificates::{self, Ca, RENEWAL};
use crate::output::{Exit, Failure};

/// A CA with less than this left should be replaced: its server certificates last a year.
const CA_WARNING: Duration = Duration::from_secs(365 * 24 * 60 * 60);

/// The keys and certificates that are there, as PEM, or their places.
#[derive(Clone, Debug, Default)]
pub(crate) struct Parts<T> {
    pub(crate) ca_key: T,
    pub(crate) ca: T,
    pub(crate) server_key: T,
    pub(crate) server: T,
}

/// One of [`Parts`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Part {
    CaKey,
    Ca,
    ServerKey,
    Server,
}

/// When a server certificate that is there is replaced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Replace {
    /// When agents would not accept it any more in a month.
    Unusable,
    /// The same, but only if the CA has issued it; one from elsewhere is for people to replace.
    Own,
    /// Now.
    Always,
}

/// What a server needs.
pub(crate) struct Wanted<'a> {
    /// The name in a new CA certificate.
    pub(crate) ca_name: &'a str,
    /// The name in a new server certificate; agents do not look at it.
    pub(crate) server_name: &'a str,
    /// What a new server certificate is valid for.
    pub(crate) names: &'a [ServerName<'a>],
    /// What agents look for in it.
    pub(crate) looked_for: &'a [ServerName<'a>],
    pub(crate) replace: Replace,
    pub(crate) now: SystemTime,
    /// Where the parts lie, for what people are told.
    pub(crate) places: Parts<String>,
}

/// What a server uses, and what of it is new.
#[derive(Debug)]
pub(crate) struct Identity {
    pub(crate) ca_pem: String,
    pub(crate) server_pem: String,
    pub(crate) server_key_pem: String,
    /// What has to be written, in this order: after a crash in between, the next run completes it.
    pub(crate) made: Vec<(Part, String)>,
    pub(crate) warnings: Vec<String>,
}

/// Completes what is there.
pub(crate) fn complete(
    found: Parts<Option<String>>,
    wanted: &Wanted<'_>,
    random: &Random,
) -> Result<Identity, Failure> {
    let mut made = Vec::new();
    let mut warnings = Vec::new();
    let (ca_pem, ca_key) = ca(&found, wanted, random, &mut made)?;
    let ca = read_ca(&ca_pem, wanted)?;
    if let Some(ca_key) = &ca_key {
        ca.check_key(ca_key)
            .with_context(|| format!("cannot use CA key `{}`", wanted.places.ca_key))
            .map_err(|error| {
                Failure::new(Exit::Usage, error).hint(format!(
                    "put the key of `{}` there; or give both files other names, and a new CA is made",
                    wanted.places.ca
                ))
            })?;
    }
    if ca.not_after < wanted.now + CA_WARNING {
        let days = days_left(ca.not_after, wanted.now);
        warnings.push(format!(
            "the CA `{}` expires in {days} days, and with it all its certificates; make a new one, and give agents both",
            wanted.places.ca
        ));
    }
    // Nothing lasts longer than the CA.
    let until = (wanted.now + RENEWAL).min(ca.not_after);
    let kept = kept_leaf(&found, wanted, &ca_pem, until, &mut warnings)?;
    if let Some((server_pem, server_key_pem)) = kept {
        return Ok(Identity {
            ca_pem,
            server_pem,
            server_key_pem,
            made,
            warnings,
        });
    }

    let Some(ca_key) = ca_key else {
        return Err(Failure::failed(format!(
            "cannot make the server certificate `{}` without the CA key `{}`",
            wanted.places.server, wanted.places.ca_key
        ))
        .hint(format!(
            "put the key back; or put a certificate there that the CA has issued elsewhere; or remove `{}`, and give the new agent configuration to all agents",
            wanted.places.ca
        )));
    };
    if !ca.may_sign() {
        return Err(Failure::usage(format!(
            "cannot make the server certificate: `{}` is not the certificate of a CA",
            wanted.places.ca
        ))
        .hint("use one with basic constraint CA:TRUE, and key usage keyCertSign"));
    }
    let server_key_pem = match found.server_key {
        Some(key) => key,
        None => {
            let key = certificates::new_key()?;
            made.push((Part::ServerKey, key.clone()));
            key
        }
    };
    let server_pem = certificates::new_leaf(
        wanted.server_name,
        &ca_pem,
        &ca_key,
        &server_key_pem,
        wanted.names,
        wanted.now,
        random,
    )
    .and_then(|leaf| {
        let names = wanted.names;
        certificates::check_leaf(&ca_pem, &leaf, &server_key_pem, names, wanted.now, until)?;
        Ok(leaf)
    })
    .with_context(|| {
        format!(
            "cannot make a server certificate from `{}` and `{}`",
            wanted.places.ca, wanted.places.server_key
        )
    })
    .map_err(|error| {
        Failure::from(error).hint(format!(
            "issue one with the CA's own tools, and put it into `{}`",
            wanted.places.server
        ))
    })?;
    made.push((Part::Server, server_pem.clone()));
    Ok(Identity {
        ca_pem,
        server_pem,
        server_key_pem,
        made,
        warnings,
    })
}

/// Returns the CA and its key, if that is there; both are made if there is no CA.
fn ca(
    found: &Parts<Option<String>>,
    wanted: &Wanted<'_>,
    random: &Random,
    made: &mut Vec<(Part, String)>,
) -> Result<(String, Option<String>), Failure> {
    if let Some(ca_pem) = &found.ca {
        return Ok((ca_pem.clone(), found.ca_key.clone()));
    }
    if wanted.replace != Replace::Unusable && found.server.is_some() {
        return Err(Failure::usage(format!(
            "there is a server certificate `{}`, but not the CA `{}` that agents should trust",
            wanted.places.server, wanted.places.ca
        ))
        .hint("put the CA back; or, for a new one, remove the server certificate, and give the new agent configuration to all agents"));
    }
    let ca_key = match &found.ca_key {
        Some(key) => key.clone(),
        None => {
            let key = certificates::new_key()?;
            made.push((Part::CaKey, key.clone()));
            key
        }
    };
    let ca_pem = certificates::new_ca(wanted.ca_name, &ca_key, wanted.now, random)
        .with_context(|| format!("cannot make a CA from key `{}`", wanted.places.ca_key))
        .map_err(|error| {
            Failure::new(Exit::Usage, error).hint("put another key there, or give it another name")
        })?;
    made.push((Part::Ca, ca_pem.clone()));
    Ok((ca_pem, Some(ca_key)))
}

fn read_ca(ca_pem: &str, wanted: &Wanted<'_>) -> Result<Ca, Failure> {
    let failed = |error: anyhow::Error, hint: &str| {
        let error = error.context(format!("cannot use CA `{}`", wanted.places.ca));
        Failure::new(Exit::Usage, error).hint(hint)
    };
    let ca = Ca::read(ca_pem)
        .map_err(|error| failed(error, "put the CA certificate there, as PEM, and only that"))?;
    ca.check_time(wanted.now).map_err(|error| {
        failed(
            error,
            "agents accept no server with it; put another CA there, or move it away for a new one, and give the new agent configuration to all agents",
        )
    })?;
    Ok(ca)
}

/// Returns certificate and key of the server, if they can stay.
fn kept_leaf(
    found: &Parts<Option<String>>,
    wanted: &Wanted<'_>,
    ca_pem: &str,
    until: SystemTime,
    warnings: &mut Vec<String>,
) -> Result<Option<(String, String)>, Failure> {
    let Some(leaf) = &found.server else {
        return Ok(None);
    };
    if wanted.replace == Replace::Always {
        return Ok(None);
    }
    let place = &wanted.places.server;
    let Some(key) = &found.server_key else {
        if wanted.replace == Replace::Unusable {
            return Ok(None);
        }
        return Err(Failure::usage(format!(
            "there is a server certificate `{place}`, but not its key `{}`",
            wanted.places.server_key
        ))
        .hint("put the key back; or remove the certificate, and both are made"));
    };
    let kept = Ok(Some((leaf.clone(), key.clone())));
    let check =
        |until| certificates::check_leaf(ca_pem, leaf, key, wanted.looked_for, wanted.now, until);
    let Err(problem) = check(until) else {
        return kept;
    };
    if wanted.replace == Replace::Unusable {
        return Ok(None);
    }
    let is_own = certificates::check_pair(leaf, key)
        .and_then(|()| certificates::is_issued_by_ca(ca_pem, leaf))
        .with_context(|| format!("cannot use server certificate `{place}`"))
        .map_err(|error| {
            Failure::new(Exit::Usage, error).hint(
                "put certificate and key in their places; or pass --renew for another certificate",
            )
        })?;
    if is_own && (found.ca_key.is_some() || check(wanted.now).is_err()) {
        return Ok(None);
    }
    let how = match is_own {
        true => "put the CA key back and try again",
        false => "put another one there, or pass --renew for one that the CA issues",
    };
    let what = match check(wanted.now) {
        Ok(()) => {
            let expiry = certificates::expiry(leaf).unwrap_or(wanted.now);
            format!("it expires in {} days", days_left(expiry, wanted.now))
        }
        Err(_) => format!("{problem:#}"),
    };
    warnings.push(format!(
        "the server certificate `{place}` is kept, but {what}; {how}"
    ));
    kept
}

fn days_left(end: SystemTime, now: SystemTime) -> u64 {
    end.duration_since(now).unwrap_or_default().as_secs() / 86_400
}

#[cfg(test)]
mod tests {
    use std::time::UNIX_EPOCH;

    use super::*;

    const DAY: Duration = Duration::from_secs(24 * 60 * 60);

    #[test]
    fn certificates_of_a_ca_in_its_last_days_end_with_it_and_are_not_made_again_and_again() {
        let names = [ServerName::try_from("localhost").unwrap()];
        let random = Random::seeded(1);
        let start = UNIX_EPOCH + Duration::from_secs(1_800_000_000);
        let run = |found: Parts<Option<String>>, now| {
            let wanted = Wanted {
                ca_name: "a CA",
                server_name: "a server",
                names: &names,
                looked_for: &names,
                replace: Replace::Unusable,
                now,
                places: Parts::default(),
            };
            complete(found, &wanted, &random)
        };
        let first = run(Parts::default(), start).unwrap();
        assert_eq!(first.warnings, Vec::<String>::new());
        let (_, ca_key) = &first.made[0];
        let mut found = Parts {
            ca_key: Some(ca_key.clone()),
            ca: Some(first.ca_pem),
            server_key: Some(first.server_key_pem),
            server: Some(first.server_pem),
        };

        let late = start + 3640 * DAY;
        let last = run(found.clone(), late).unwrap();
        let parts: Vec<_> = last.made.iter().map(|(part, _)| *part).collect();
        assert_eq!(parts, [Part::Server]);
        assert!(last.warnings[0].contains("expires in 10 days"));
        let end = Ca::read(&last.ca_pem).unwrap().not_after;
        assert_eq!(certificates::expiry(&last.server_pem).unwrap(), end);

        found.server = Some(last.server_pem);
        assert_eq!(run(found.clone(), late + DAY).unwrap().made, []);
        let refused = run(found, end + DAY).unwrap_err();
        assert!(format!("{:#}", refused.error()).contains("it has expired"));
    }
}
