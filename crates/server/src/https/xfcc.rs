//! The header `X-Forwarded-Client-Cert`: elements separated by commas, fields
//! by semicolons (protocol specification section 5.1).

use crate::config::XfccElement;

/// Returns the value of the first field `key`, of all elements or of the last
/// one only; `None` if there is none or the header is malformed before it.
pub(super) fn find(header: &str, key: &str, which: XfccElement) -> Option<String> {
    let mut fields = Fields {
        rest: header,
        strict: which == XfccElement::Last,
    };
    let mut found = None;
    while let Some(field) = fields.next()? {
        if field.key == key && found.is_none() {
            found = Some(field.value);
        }
        match which {
            XfccElement::First if found.is_some() => return found,
            // What comes from before the last proxy is for whoever believes it.
            XfccElement::Last if field.ends_element => found = None,
            _ => {}
        }
    }
    found
}

struct Field {
    key: String,
    value: String,
    /// Another element follows.
    ends_element: bool,
}

struct Fields<'a> {
    rest: &'a str,
    /// Refuse what lets one element reach into the next.
    strict: bool,
}

impl Fields<'_> {
    /// Returns the next field; `Some(None)` at the end, `None` where the header
    /// is malformed.
    fn next(&mut self) -> Option<Option<Field>> {
        if self.rest.is_empty() {
            return Some(None);
        }
        let mut key = String::new();
        let mut value = String::new();
        let (mut in_value, mut quoted, mut was_quoted) = (false, false, false);
        let mut separator = None;
        let mut characters = self.rest.chars();
        while let Some(character) = characters.next() {
            let after_quotes = was_quoted && !quoted;
            match character {
                ';' | ',' if !quoted => {
                    separator = Some(character);
                    break;
                }
                _ if after_quotes && self.strict => return None,
                '"' if in_value => {
                    if self.strict && !quoted && !value.is_empty() {
                        return None;
                    }
                    quoted = !quoted;
                    was_quoted = true;
                }
                '=' if !in_value => in_value = true,
                // It could swallow the comma before the next element.
                '\\' if self.strict && !quoted => return None,
                '\\' => {
                    let escaped = characters.next()?;
                    if in_value { &mut value } else { &mut key }.push(escaped);
                }
                _ => if in_value { &mut value } else { &mut key }.push(character),
            }
        }
        if key.is_empty() || (quoted && self.strict) {
            return None;
        }
        self.rest = characters.as_str();
        Some(Some(Field {
            key,
            value,
            ends_element: separator == Some(','),
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EXAMPLE: &str = r#"By=http://a;Hash=ab12;Subject="/C=US/CN=x, y";URI=http://b"#;

    fn first(header: &str, key: &str) -> Option<String> {
        find(header, key, XfccElement::First)
    }

    fn last(header: &str, key: &str) -> Option<String> {
        find(header, key, XfccElement::Last)
    }

    // Vectors: protocol specification C.5.
    #[test]
    fn p_193_fields_are_found_as_upstream_finds_them() {
        for (key, value) in [
            ("By", Some("http://a")),
            ("Hash", Some("ab12")),
            ("Subject", Some("/C=US/CN=x, y")),
            ("URI", Some("http://b")),
            ("Cert", None),
            ("uri", None),
        ] {
            assert_eq!(first(EXAMPLE, key).as_deref(), value, "{key}");
            assert_eq!(last(EXAMPLE, key).as_deref(), value, "{key}");
            let in_quotes = format!(r#"Note="a \"quoted\" text",{EXAMPLE}"#);
            assert_eq!(last(&in_quotes, key).as_deref(), value, "{key}");
        }
        let escaped = format!(r#"{EXAMPLE};Key=unquoted\"value"#);
        assert_eq!(first(&escaped, "Key").as_deref(), Some("unquoted\"value"));
        let cut = format!(r#"{EXAMPLE};Key="\"#);
        assert_eq!(first(&cut, "Key"), None);
        assert_eq!(first("", "Cert"), None);
        assert_eq!(first("=x;Cert=y", "Cert"), None);
        assert_eq!(first("a=1;;Cert=y", "Cert"), None);
        assert_eq!(first(" Cert=y", "Cert"), None);
        assert_eq!(first("a=1,b=2,Cert=y", "Cert").as_deref(), Some("y"));
        assert_eq!(first("Cert=y;Cert=z", "Cert").as_deref(), Some("y"));
    }

    #[test]
    fn s7_last_element_is_the_one_of_the_nearest_proxy() {
        assert_eq!(last("Cert=a,By=p;Cert=b", "Cert").as_deref(), Some("b"));
        assert_eq!(last("Cert=a,By=p", "Cert"), None);
        // What an agent could write to reach into the element of the proxy.
        for forged in [
            "Cert=a;Pad=\"",
            "Cert=a;Pad=\\",
            "Cert=a;Pad=\"\\",
            "Cert=\"a",
        ] {
            for appended in [
                ",By=p;Hash=h;Cert=\"b\"",
                ",By=p;Hash=h;Cert=\"b\";Chain=\"c\"",
                ",By=p;Cert=b",
            ] {
                let header = format!("{forged}{appended}");
                let found = last(&header, "Cert");
                assert_ne!(found.as_deref(), Some("a"), "{header}");
            }
        }
    }
}
