/// Returns the offset of the first bracket that is nested deeper than `limit`.
///
/// The scan knows comments and strings, but leaves all other rules to the parser: brackets need not match, and an
/// unterminated string ends with its line.
pub(super) fn too_deep(text: &str, limit: usize) -> Option<usize> {
    let mut depth = 0_usize;
    let mut bytes = text.bytes().enumerate();
    while let Some((offset, byte)) = bytes.next() {
        match byte {
            b'{' | b'<' | b'[' => {
                depth += 1;
                if depth > limit {
                    return Some(offset);
                }
            }
            b'}' | b'>' | b']' => depth = depth.saturating_sub(1),
            b'#' => {
                bytes.find(|&(_, b)| b == b'\n');
            }
            quote @ (b'"' | b'\'') => {
                while let Some((_, b)) = bytes.next() {
                    match b {
                        b'\\' => {
                            bytes.next();
                        }
                        b'\n' => break,
                        b if b == quote => break,
                        _ => {}
                    }
                }
            }
            _ => {}
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_bracket_over_the_limit_is_found() {
        assert_eq!(too_deep("a { b < c [] > }", 3), None);
        assert_eq!(too_deep("a { b < c [] > }", 2), Some(10));
        assert_eq!(too_deep("a {} b {} c {}", 1), None);
        assert_eq!(too_deep("}}} a { b {} }", 1), Some(10));
    }

    #[test]
    fn brackets_in_strings_and_comments_do_not_count() {
        assert_eq!(too_deep(r#"a: "{{{" b: '<"[' c: "\"{" # {{{"#, 0), None);
        assert_eq!(too_deep("# {{{\n{", 0), Some(6));
    }

    #[test]
    fn unterminated_strings_end_with_their_line() {
        assert_eq!(too_deep("a: \"{\n{", 0), Some(6));
        assert_eq!(too_deep("a: \"{\\", 0), None);
    }
}
