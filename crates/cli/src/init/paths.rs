//! Paths as people write them: with `~` and environment variables.

use std::path::PathBuf;

/// Returns the absolute path that `text` stands for; relative ones begin in the current directory, as upstream's do.
///
/// # Errors
///
/// Says what is wrong, as the rest of a sentence that begins with the field.
pub(super) fn expand(
    text: &str,
    variable: impl Fn(&str) -> Option<String>,
) -> Result<PathBuf, String> {
    let mut path = String::new();
    let mut rest = text;
    if let Some(after) = text.strip_prefix('~') {
        if !(after.is_empty() || after.starts_with('/')) {
            return Err(format!(
                "is `{text}`, but only your own home directory can be written as `~`; write the whole path"
            ));
        }
        path = value("HOME", &variable)?;
        rest = after;
    }
    while let Some((before, after)) = rest.split_once('$') {
        path.push_str(before);
        if let Some(after) = after.strip_prefix('$') {
            path.push('$');
            rest = after;
            continue;
        }
        let (name, after) = match after.strip_prefix('{') {
            Some(braced) => braced
                .split_once('}')
                .ok_or_else(|| format!("is `{text}`, where a `${{` has no `}}`"))?,
            None => {
                let end = after.find(|c: char| !(c.is_ascii_alphanumeric() || c == '_'));
                after.split_at(end.unwrap_or(after.len()))
            }
        };
        if name.is_empty() {
            return Err(format!(
                "is `{text}`, where a `$` names no variable; write `$$` for a plain `$`"
            ));
        }
        path.push_str(&value(name, &variable)?);
        rest = after;
    }
    path.push_str(rest);
    if path.contains(char::is_control) {
        return Err("has control characters; write a path in one line".to_owned());
    }
    if path.is_empty() || path.ends_with('/') {
        return Err(format!("is `{text}`, which names no file"));
    }
    let path = std::path::absolute(&path)
        .map_err(|error| format!("is `{text}`, which cannot be used: {error}"))?;
    match path.to_str() {
        // Everything that is made names its files, and does so in UTF-8.
        None => Err(format!(
            "is `{text}`, and the current directory is not UTF-8; write the whole path"
        )),
        Some(_) => Ok(path),
    }
}

fn value(name: &str, variable: impl Fn(&str) -> Option<String>) -> Result<String, String> {
    variable(name).filter(|value| !value.is_empty()).ok_or_else(|| {
        format!(
            "uses the environment variable `{name}`, which is not set; set it, or write the whole path"
        )
    })
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn expanded(text: &str) -> Result<PathBuf, String> {
        expand(text, |name| match name {
            "HOME" => Some("/home/lazy".to_owned()),
            "SITE" => Some("berlin".to_owned()),
            "EMPTY" => Some(String::new()),
            _ => None,
        })
    }

    #[test]
    fn home_variables_and_relative_paths_are_expanded() {
        for (text, expected) in [
            ("/etc/ca.pem", "/etc/ca.pem"),
            ("~/ca.pem", "/home/lazy/ca.pem"),
            ("$HOME/$SITE.pem", "/home/lazy/berlin.pem"),
            ("/a/${SITE}_1/~b", "/a/berlin_1/~b"),
            ("/a/$$SITE", "/a/$SITE"),
        ] {
            assert_eq!(expanded(text).unwrap(), Path::new(expected), "{text}");
        }
        let here = std::env::current_dir().unwrap();
        assert_eq!(expanded("ca.pem").unwrap(), here.join("ca.pem"));
    }

    #[test]
    fn what_cannot_be_expanded_is_said() {
        for (text, problem) in [
            ("~root/ca.pem", "write the whole path"),
            ("/a/$MISSING/b", "`MISSING`, which is not set"),
            ("$EMPTY/b", "`EMPTY`, which is not set"),
            ("/a/${SITE", "has no `}`"),
            ("/a/$/b", "write `$$`"),
            ("/a/", "names no file"),
            ("~", ""),
            ("a\nb", "control characters"),
        ] {
            let result = expanded(text);
            match problem {
                "" => assert_eq!(result.unwrap(), Path::new("/home/lazy")),
                _ => assert!(result.clone().unwrap_err().contains(problem), "{result:?}"),
            }
        }
    }
}
