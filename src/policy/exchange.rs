//! Writes and reads the types of tensors as lines of `pattern=type`, the format of `llama-quantize --tensor-type-file`. The first
//! pattern that matches a tensor's name decides.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use regex::Regex;

use crate::policy::Rule;
use crate::policy::Target;
use crate::policy::role::block_index;
use crate::tensor_type::TensorType;

/// A tensor and its type.
pub type Typed<'a> = (&'a str, TensorType);

/// Returns a line for every tensor, anchored on both sides. `llama-quantize` gives tensors that the file leaves out the type of
/// the mix. A mix counts tensors, so naming only some silently changes the types of others. Pass all quantizable tensors.
pub fn lines_of_tensors(tensors: &[Typed<'_>]) -> String {
    let mut text = String::new();
    for (name, ty) in tensors {
        let _ = writeln!(text, "^{}$={}", literal(name), ty.name().to_ascii_lowercase());
    }
    text
}

/// Returns a pattern for a name. `llama-quantize` reads a pattern up to the first `=` or white space, and in lower case. So these
/// characters and capital letters are written as character classes.
fn literal(name: &str) -> String {
    let mut pattern = String::with_capacity(name.len() + 8);
    for c in name.chars() {
        match c {
            'A'..='Z' => pattern.push_str("[[:upper:]]"),
            '=' => pattern.push_str("[[:punct:]]"),
            c if c.is_ascii_whitespace() => pattern.push_str("[[:space:]]"),
            c => pattern.push_str(&regex::escape(c.encode_utf8(&mut [0; 4]))),
        }
    }
    pattern
}

/// Returns one line for all layers in which the tensor of a name has the same type, and one for each tensor outside of layers.
/// All are anchored, so no two lines match the same tensor and their order does not matter. Larger types come first.
pub fn lines_of_rules(tensors: &[Typed<'_>]) -> String {
    let mut layers: BTreeMap<(&str, &'static str), Vec<i64>> = BTreeMap::new();
    let mut alone: Vec<(TensorType, String)> = Vec::new();
    for (name, ty) in tensors {
        let part = name.strip_prefix("blk.").and_then(|rest| rest.split_once('.'));
        match (block_index(name), part) {
            // Leaves out numbers with leading zeros or a sign.
            (Some(layer), Some((number, rest))) if number == layer.to_string() => {
                layers.entry((rest, ty.name())).or_default().push(layer);
            }
            _ => alone.push((*ty, format!("^{}$", literal(name)))),
        }
    }
    let mut rules: Vec<(TensorType, String)> = layers
        .into_iter()
        .filter_map(|((rest, ty), mut layers)| {
            layers.sort_unstable();
            let numbers: Vec<String> = layers.iter().map(i64::to_string).collect();
            let pattern = format!(r"^blk\.(?:{})\.{}$", numbers.join("|"), literal(rest));
            TensorType::from_name(ty).map(|ty| (ty, pattern))
        })
        .collect();
    rules.extend(alone);
    rules.sort_by(|(a, left), (b, right)| b.bpw().total_cmp(&a.bpw()).then_with(|| left.cmp(right)));
    let mut text = String::new();
    for (ty, pattern) in rules {
        let _ = writeln!(text, "{pattern}={}", ty.name().to_ascii_lowercase());
    }
    text
}

/// A line that is not a rule.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: {message}")]
pub struct LineError {
    /// Its number, from 1.
    pub line: usize,
    /// What is wrong with it.
    pub message: String,
}

/// Reads lines with one or more `pattern=type`. Empty lines and lines that begin with `#` are skipped. Types may be in any case.
/// Patterns are converted to lower case, as `llama-quantize` does.
///
/// # Errors
/// One error for each word that is not a rule.
pub fn rules_of_lines(text: &str) -> Result<Vec<Rule>, Vec<LineError>> {
    let (mut rules, mut errors) = (Vec::new(), Vec::new());
    for (at, line) in text.lines().enumerate() {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let whole = |word: &str| {
            word.split_once('=')
                .is_some_and(|(pattern, ty)| !pattern.is_empty() && !ty.is_empty())
        };
        let words: Vec<&str> = if line.split_whitespace().all(whole) {
            line.split_whitespace().collect()
        } else {
            vec![line]
        };
        for word in words {
            match rule_of(word) {
                Ok(rule) => rules.push(rule),
                Err(message) => errors.push(LineError { line: at + 1, message }),
            }
        }
    }
    if errors.is_empty() { Ok(rules) } else { Err(errors) }
}

fn rule_of(line: &str) -> Result<Rule, String> {
    // A pattern may contain `=`, a type does not.
    let (pattern, ty) = line
        .rsplit_once('=')
        .ok_or_else(|| format!("expected `pattern=type`, found `{line}`"))?;
    let ty: TensorType = ty
        .trim()
        .parse()
        .map_err(|error: crate::tensor_type::ParseTensorTypeError| error.to_string())?;
    if !ty.quantizable_target() {
        return Err(format!("the engine can't quantize tensors to {ty}"));
    }
    let pattern = Regex::new(&pattern.trim().to_ascii_lowercase()).map_err(|error| {
        format!(
            "`{pattern}` is not a regular expression: {}",
            last_line(&error.to_string())
        )
    })?;
    Ok(Rule {
        pattern,
        to: Target::Type(ty),
    })
}

fn last_line(text: &str) -> String {
    let last = text.lines().last().unwrap_or_default();
    last.trim_start_matches("error: ").to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use TensorType as T;

    const TENSORS: &[Typed<'_>] = &[
        ("token_embd.weight", T::Q5_K),
        ("blk.0.attn_k.weight", T::Q8_0),
        ("blk.1.attn_k.weight", T::Q4_K),
        ("blk.10.attn_k.weight", T::Q8_0),
        ("blk.0.attn_k_b.weight", T::Q4_K),
        ("blk.01.attn_k.weight", T::IQ4_XS),
        ("output.weight", T::F16),
    ];

    fn reads_back(text: &str) {
        let rules = rules_of_lines(text).unwrap();
        for (name, ty) in TENSORS {
            let matching: Vec<&Rule> = rules.iter().filter(|rule| rule.pattern.is_match(name)).collect();
            assert_eq!(matching.len(), 1, "{name}: {matching:?}");
            assert_eq!(matching[0].to, Target::Type(*ty), "{name}");
        }
    }

    #[test]
    fn every_tensor_has_one_line_that_is_its_own() {
        let text = lines_of_tensors(TENSORS);
        assert_eq!(text.lines().count(), TENSORS.len());
        assert!(
            text.starts_with("^token_embd\\.weight$=q5_k\n^blk\\.0\\.attn_k\\.weight$=q8_0\n"),
            "{text}"
        );
        reads_back(&text);
    }

    #[test]
    fn characters_that_the_tool_changes_become_classes() {
        let odd = "blk.0.Attn=K x-y.weight";
        for text in [lines_of_tensors(&[(odd, T::Q4_K)]), lines_of_rules(&[(odd, T::Q4_K)])] {
            let (pattern, ty) = text.trim_end().split_once('=').unwrap();
            assert_eq!(ty, "q4_k", "the first `=` ends the pattern");
            assert!(
                !pattern.contains(char::is_whitespace) && pattern == pattern.to_lowercase(),
                "{pattern}"
            );
            assert!(Regex::new(pattern).unwrap().is_match(odd), "{pattern}");
            assert!(
                !Regex::new(pattern).unwrap().is_match("blk.0.attn=K x-y.weight"),
                "{pattern}"
            );
            assert_eq!(rules_of_lines(&text).unwrap().len(), 1);
        }
    }

    #[test]
    fn layers_of_one_type_share_a_line() {
        let text = lines_of_rules(TENSORS);
        assert_eq!(
            text,
            "^output\\.weight$=f16\n\
             ^blk\\.(?:0|10)\\.attn_k\\.weight$=q8_0\n\
             ^token_embd\\.weight$=q5_k\n\
             ^blk\\.(?:0)\\.attn_k_b\\.weight$=q4_k\n\
             ^blk\\.(?:1)\\.attn_k\\.weight$=q4_k\n\
             ^blk\\.01\\.attn_k\\.weight$=iq4_xs\n"
        );
        reads_back(&text);
    }

    #[test]
    fn errors_name_the_line_of_an_invalid_rule() {
        let rules = rules_of_lines("# types\n\n  attn_k = Q4_K  \na=b=q8_0\n").unwrap();
        assert_eq!(rules.len(), 2);
        assert_eq!(rules[1].pattern.as_str(), "a=b");
        let rules = rules_of_lines(r"(blk|BLK)\.(3|7|11)\.attn_k=Q8_0 .*ffn_up.*=IQ4_XS").unwrap();
        let patterns: Vec<&str> = rules.iter().map(|rule| rule.pattern.as_str()).collect();
        assert_eq!(patterns, [r"(blk|blk)\.(3|7|11)\.attn_k", ".*ffn_up.*"]);
        let errors = rules_of_lines("attn_k\n(=q4_k\na=q4k\nb=q8_k\nc=q6_k").unwrap_err();
        let lines: Vec<usize> = errors.iter().map(|error| error.line).collect();
        assert_eq!(lines, [1, 2, 3, 4], "{errors:?}");
        assert!(errors[2].to_string().contains("did you mean `Q4_K`"), "{}", errors[2]);
    }
}
