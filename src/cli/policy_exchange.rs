//! `forge policy export` and `import`: types in formats that other programs read, and back. What is read is always a `manual` policy.

use crate::cli::Exit;
use crate::cli::Failure;
use crate::cli::args;
use crate::cli::args::ExportFormat;
use crate::cli::args::ImportFormat;
use crate::cli::diagnostic::Diagnostic;
use crate::cli::files::Files;
use crate::cli::policy_source::candidate;
use crate::cli::policy_source::read;
use crate::cli::terminal::Terminal;
use crate::container;
use crate::policy;
use crate::policy::ModelFacts;
use crate::policy::Rule;
use crate::policy::TensorFacts;
use crate::syntax::names::TYPES;
use crate::tensor_type::TensorType;

/// The maximum length of a file of rules.
const RULES_CAP: u64 = 64 << 20;

pub(super) fn export(args: &args::PolicyExport, files: &Files, terminal: &Terminal) -> Result<Exit, Failure> {
    let path = candidate(&args.candidate, &args.of, files, terminal)?;
    let unreadable = |cause: String| {
        let what = format!("can't read `{}`", path.display());
        Failure::new(
            Exit::Recipe,
            Diagnostic::error(what).code("policy::unreadable").caused_by(cause),
        )
    };
    let model = container::open(&path).map_err(|error| unreadable(error.to_string()))?;
    let tensors = model.tensors().iter().map(|tensor| TensorFacts::from(&tensor.info));
    let facts = ModelFacts::from_metadata(model.metadata(), tensors.collect())
        .map_err(|error| unreadable(error.to_string()))?;
    let all = facts.tensors.iter();
    let typed: Vec<(&str, TensorType)> = all
        .filter(|tensor| policy::quantizable(&facts, &tensor.name, &tensor.dims).is_ok())
        .map(|tensor| (tensor.name.as_str(), tensor.ty))
        .collect();
    let text = match args.format {
        ExportFormat::Tensors => policy::lines_of_tensors(&typed),
        ExportFormat::Rules => policy::lines_of_rules(&typed),
        ExportFormat::Forgequant => {
            let name = path.file_stem().unwrap_or_default().to_string_lossy();
            policy::forgequant_of(&facts, &name).map_err(|error| {
                let diagnostic = Diagnostic::error(error.to_string()).code("policy::forgequant");
                let hint = "choose types that it has (`types = [...]` of a policy), or export with `--format tensors`";
                Failure::new(Exit::Recipe, diagnostic.hint(hint))
            })?
        }
    };
    terminal.document(&text);
    Ok(Exit::Done)
}

pub(super) fn import(args: &args::PolicyImport, files: &Files, terminal: &Terminal) -> Result<Exit, Failure> {
    let failed = |diagnostics| Failure {
        diagnostics,
        exit: Exit::Recipe,
    };
    let text = read(&args.rules, RULES_CAP, files)?;
    let of = |message: String| Diagnostic::error(format!("`{}`: {message}", args.rules)).code("policy::rules");
    let format = args.format.unwrap_or(if text.trim_start().starts_with('{') {
        ImportFormat::Forgequant
    } else {
        ImportFormat::Rules
    });
    let all = |errors: Vec<String>| failed(errors.into_iter().map(of).collect());
    let rules = match format {
        ImportFormat::Rules => policy::rules_of_lines(&text).map_err(|errors| all(sentences(&errors)))?,
        ImportFormat::Forgequant => policy::rules_of_forgequant(&text).map_err(|errors| all(sentences(&errors)))?,
    };
    if rules.is_empty() {
        return Err(failed(vec![of("it contains no rules".to_owned())]));
    }
    let mut section = format!(
        "[policy.{}]\nmethod = \"manual\"\n\
         # imatrix = \"NAME\"   # the imatrix that the types were made with; without it the bytes differ, and types below Q2_K cannot be made\n\
         rules = [\n",
        toml_key(&args.name)
    );
    for rule in &rules {
        section += &line_of(rule).map_err(|message| failed(vec![of(message)]))?;
    }
    section += "]\n";
    if format == ImportFormat::Forgequant {
        section += "# Tensors that a forgequant recipe does not name keep their type.\notherwise = \"keep\"\n";
    }
    terminal.document(&section);
    Ok(Exit::Done)
}

fn sentences(errors: &[impl std::fmt::Display]) -> Vec<String> {
    errors.iter().map(ToString::to_string).collect()
}

fn line_of(rule: &Rule) -> Result<String, String> {
    let ty = match rule.to {
        policy::Target::Keep => "keep",
        policy::Target::Type(ty) => TYPES
            .contains(&ty)
            .then_some(ty.name())
            .ok_or_else(|| format!("recipes cannot use the type {ty}"))?,
    };
    let pattern = toml::Value::from(rule.pattern.as_str());
    Ok(format!("  {{ match = {pattern}, type = \"{ty}\" }},\n"))
}

/// Names are bare keys unless they contain something else than letters, digits, `-` and `_`.
fn toml_key(name: &str) -> String {
    let bare = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_');
    if !name.is_empty() && name.chars().all(bare) {
        name.to_owned()
    } else {
        toml::Value::from(name).to_string()
    }
}
