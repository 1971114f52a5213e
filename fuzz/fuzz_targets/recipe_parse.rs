//! No text makes the recipe reader panic, and what it accepts it also writes so that it reads back the same.
#![no_main]

use forge::cli::diagnostic::Diagnostic;
use forge::cli::diagnostic::Style;
use forge::recipe::parse_alone;
use forge::settings::Settings;
use forge::text::Source;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    let source = Source::new("fuzz.toml", text);
    match parse_alone(&source) {
        Ok(parsed) => {
            let shown = parsed.recipe.to_toml();
            let again = parse_alone(&Source::new("shown.toml", shown.as_str())).expect("what is shown reads back");
            assert_eq!(again.recipe, parsed.recipe);
            assert_eq!(again.recipe.to_toml(), shown);
        }
        Err(errors) => {
            assert!(!errors.is_empty());
            for error in errors.iter().take(20) {
                let _ = Diagnostic::recipe(error).render(Style::PLAIN);
            }
        }
    }
    let _ = Settings::parse(&source);
});
