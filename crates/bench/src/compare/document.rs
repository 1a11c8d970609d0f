//! Parts of documents that are written by a program.

use anyhow::{Result, bail};

/// Puts `text` between the markers of the part `name` of a document in Markdown.
///
/// # Errors
/// If the document has not exactly one such part.
pub fn replace(document: &str, name: &str, text: &str) -> Result<String> {
    let (begin, end) = (
        format!("<!-- {name}: begin -->"),
        format!("<!-- {name}: end -->"),
    );
    if document.matches(&begin).count() != 1 || document.matches(&end).count() != 1 {
        bail!("it has not exactly one part from `{begin}` to `{end}`");
    }
    let (before, rest) = document.split_once(&begin).unwrap_or_default();
    let Some((_, after)) = rest.split_once(&end) else {
        bail!("`{end}` comes before `{begin}`");
    };
    Ok(format!(
        "{before}{begin}\n\n{}\n\n{end}{after}",
        text.trim()
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_part_between_the_markers_changes() {
        let document = "a\n<!-- x: begin -->\nold\n<!-- x: end -->\nb\n";
        let replaced = replace(document, "x", "new\n").unwrap();
        assert_eq!(
            replaced,
            "a\n<!-- x: begin -->\n\nnew\n\n<!-- x: end -->\nb\n"
        );
        assert_eq!(replace(&replaced, "x", "new").unwrap(), replaced);
        assert!(replace(document, "y", "new").is_err());
        assert!(replace("<!-- x: end --><!-- x: begin -->", "x", "new").is_err());
    }
}
