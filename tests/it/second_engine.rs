//! A second engine, written for the tests: the embedded one under a name and an identity of its own, without the capability to
//! probe. What it shows: an engine is one file and one line in a registry, and engines share no results.

use std::collections::BTreeSet;
use std::io::Write;
use std::path::Path;
use std::sync::Arc;

use forge::cli::check::Messages;
use forge::cli::diagnostic::Style;
use forge::engine::Cancel;
use forge::engine::Capability;
use forge::engine::Engine;
use forge::engine::EngineError;
use forge::engine::EngineSettings;
use forge::engine::Engines;
use forge::engine::Identity;
use forge::engine::MatrixError;
use forge::engine::Model;
use forge::engine::ModelFiles;
use forge::engine::QuantizeJob;
use forge::engine::Quantizer;
use forge::engine::ReadAt;
use forge::engine::Role;
use forge::engine::SumsOfRows;
use forge::engine::Tokenizer;
use forge::observer::ActionOutcome;
use forge::observer::Event;
use forge::observer::Observer;
use forge::scheduler;
use forge::session::Runtime;
use forge::session::Session;
use forge::session::Settings;
use forge::text::Source;

use crate::one_layer_project;
use crate::one_layer_project::edited;
use crate::support::Forge;
use crate::support::quickstart;

/// What is done to quantized bytes before they are written.
type Change = dyn Fn(&mut Vec<u8>) + Send + Sync;

/// The embedded engine under another name.
pub(crate) struct Renamed {
    inner: Engines,
    change: Option<Box<Change>>,
}

impl Renamed {
    pub(crate) const NAME: &'static str = "renamed";

    pub(crate) fn new() -> Self {
        Self {
            inner: Engines::new(2, &EngineSettings::new()),
            change: None,
        }
    }

    /// An engine that changes what it quantizes.
    pub(crate) fn changing(change: impl Fn(&mut Vec<u8>) + Send + Sync + 'static) -> Self {
        Self {
            change: Some(Box::new(change)),
            ..Self::new()
        }
    }

    fn embedded(&self) -> &dyn Engine {
        self.inner.get("embedded").unwrap()
    }
}

impl std::fmt::Debug for Renamed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Renamed")
    }
}

impl Engine for Renamed {
    fn name(&self) -> &str {
        Self::NAME
    }

    fn capabilities(&self) -> &[Capability] {
        &[
            Capability::Tokenize,
            Capability::Collect,
            Capability::Score,
            Capability::Quantize,
            Capability::Compare,
        ]
    }

    fn identity(&self, role: Role) -> Identity {
        Identity::new(Self::NAME, role, self.embedded().identity(role).facts)
    }

    fn quick_identity(&self) -> String {
        self.embedded().quick_identity()
    }

    fn tokenizer(&self, files: &ModelFiles) -> Result<Box<dyn Tokenizer>, EngineError> {
        self.embedded().tokenizer(files)
    }

    fn model(&self, files: ModelFiles, context: u32) -> Result<Box<dyn Model>, EngineError> {
        self.embedded().model(files, context)
    }

    fn quantizer(&self) -> Result<&dyn Quantizer, EngineError> {
        Ok(self)
    }
}

impl Quantizer for Renamed {
    fn quantize(
        &self,
        job: &QuantizeJob<'_>,
        read: &ReadAt<'_>,
        out: &mut (dyn Write + Send),
        cancel: &Cancel,
        progress: &dyn Fn(u64),
    ) -> Result<(), EngineError> {
        let embedded = self.embedded().quantizer()?;
        let Some(change) = &self.change else {
            return embedded.quantize(job, read, out, cancel, progress);
        };
        let mut bytes = Vec::new();
        embedded.quantize(job, read, &mut bytes, cancel, progress)?;
        change(&mut bytes);
        out.write_all(&bytes).map_err(|source| EngineError::Write { source })
    }

    fn compare(
        &self,
        job: &QuantizeJob<'_>,
        read: &ReadAt<'_>,
        quantized: &[u8],
        cancel: &Cancel,
        progress: &dyn Fn(u64),
    ) -> Result<Vec<MatrixError>, EngineError> {
        let embedded = self.embedded().quantizer()?;
        embedded.compare(job, read, quantized, cancel, progress)
    }

    fn sum_rows(
        &self,
        job: &QuantizeJob<'_>,
        matrix: u64,
        read: &ReadAt<'_>,
        quantized: &[u8],
        cancel: &Cancel,
        progress: &dyn Fn(u64),
        sums: &SumsOfRows<'_>,
    ) -> Result<Vec<f64>, EngineError> {
        let embedded = self.embedded().quantizer()?;
        embedded.sum_rows(job, matrix, read, quantized, cancel, progress, sums)
    }
}

/// The engines of the program and the one of the tests: the line of the registry.
pub(crate) fn engines(second: Renamed) -> Engines {
    Engines::new(2, &EngineSettings::new()).with(Arc::new(second))
}

/// Opens a recipe as the program does, with the engines of the tests.
fn session(folder: &Path, store: &Path, out: &Path, recipe: &str) -> Session {
    let parsed = forge::recipe::parse_alone(&Source::new("recipe.toml", recipe)).unwrap();
    let settings = Settings {
        folder: folder.to_owned(),
        out: out.to_owned(),
        cache_dir: store.to_owned(),
        runtime: Runtime {
            memory: None,
            engines: engines(Renamed::new()),
            threads: 2,
            worker: None,
        },
        command: Vec::new(),
        borrow: true,
        repeat: None,
    };
    Session::open(parsed.recipe, settings, &[], Cancel::new()).unwrap()
}

/// Keeps how every action came to its result.
#[derive(Default)]
struct Actions(std::sync::Mutex<Vec<(&'static str, ActionOutcome)>>);

impl Observer for Actions {
    fn event(&self, event: &Event) {
        if let Event::ActionFinished { kind, outcome, .. } = event {
            self.0.lock().unwrap().push((kind, *outcome));
        }
    }
}

#[test]
fn a_second_engine_builds_the_quickstart_and_shares_no_result_with_the_embedded_one() {
    let forge = Forge::new();
    let text = std::fs::read_to_string(quickstart().join("recipe.toml")).unwrap();
    // Two of the seven candidates, and fewer chunks: the steps are all there.
    let text = edited(&text, "chunks = 64", "chunks = 4");
    let text = edited(&text, "chunks = 32", "chunks = 4");
    let text = edited(
        &text,
        "mix = [\"Q2_K\", \"IQ3_XXS\", \"Q3_K_M\", \"IQ4_XS\", \"Q4_K_M\", \"Q5_K_M\", \"Q6_K\"]",
        "mix = [\"Q2_K\", \"Q6_K\"]",
    );
    let second = edited(&text, "schema = 1\n", "schema = 1\nengine = \"renamed\"\n");
    let build = |recipe: &str, out: &str| {
        let session = session(&quickstart(), forge.store(), &forge.path(out), recipe);
        let actions = Actions::default();
        let report = session.build(scheduler::Options::default(), &actions).unwrap();
        assert!(report.failures.is_empty(), "{:?}", report.failures);
        let tables = session.tables(&report);
        (tables, actions.0.into_inner().unwrap())
    };
    let (first, _) = build(&text, "first");
    let (tables, actions) = build(&second, "second");
    let kinds: BTreeSet<&str> = actions.iter().map(|(kind, _)| *kind).collect();
    let of_an_engine = [
        "tokens",
        "imatrix-block",
        "imatrix-collect",
        "tensor",
        "promote",
        "reference-block",
        "eval-block",
        "eval",
        "metrics",
        "gate",
    ];
    for kind in of_an_engine {
        let mut found = actions.iter().filter(|(known, _)| *known == kind);
        assert!(kinds.contains(kind), "{kind}: {kinds:?}");
        // The two candidates of one build share tensors and references; nothing comes from the other engine.
        assert_eq!(
            found.next().map(|(_, outcome)| *outcome),
            Some(ActionOutcome::Ran),
            "{kind}"
        );
    }
    let ran = |kind: &str| {
        let ran = |(known, outcome): &&(&str, ActionOutcome)| *known == kind && *outcome == ActionOutcome::Ran;
        actions.iter().filter(ran).count()
    };
    assert_eq!(ran("imatrix-block"), 1, "all four chunks again");
    // The same mathematics, so the same figures, with another fingerprint beside them.
    let (ours, theirs) = (&tables[0].rows, &first[0].rows);
    assert_eq!(ours.len(), 2);
    for (ours, theirs) in ours.iter().zip(theirs) {
        assert_eq!((ours.kld_mean, ours.ppl), (theirs.kld_mean, theirs.ppl));
        assert_ne!(ours.fingerprint, theirs.fingerprint);
        assert_eq!(ours.blake3, theirs.blake3);
    }
    // A third build with the first engine finds all of it.
    let (_, actions) = build(&text, "first");
    assert!(
        actions.iter().all(|(_, outcome)| *outcome == ActionOutcome::Hit),
        "{actions:?}"
    );
}

#[test]
fn a_step_can_name_an_engine_of_its_own() {
    let forge = one_layer_project::project();
    let recipe = edited(
        one_layer_project::RECIPE,
        "[eval.quality]\n",
        "[eval.quality]\nengine = \"renamed\"\n",
    );
    let session = session(forge.dir(), forge.store(), &forge.path("out"), &recipe);
    let report = session
        .build(scheduler::Options::default(), &Actions::default())
        .unwrap();
    assert!(report.failures.is_empty(), "{:?}", report.failures);
    let engines = engines(Renamed::new());
    let fingerprint = |name: &str, role| engines.fingerprint(name, role).unwrap().to_string();
    let table = &session.tables(&report)[0];
    for row in &table.rows {
        assert_eq!(row.fingerprint, fingerprint("renamed", Role::Evaluator));
    }
    let manifest = one_layer_project::manifest(&forge.path("out/a.gguf"));
    let named: BTreeSet<String> = manifest["predicate"]["forge"]["engines"]
        .as_object()
        .unwrap()
        .keys()
        .cloned()
        .collect();
    let own = [Role::Evaluator, Role::Quantizer].map(|role| fingerprint("embedded", role));
    assert_eq!(
        named,
        BTreeSet::from(own),
        "the candidate was made by the recipe's engine"
    );
}

fn checked(text: &str) -> (bool, String) {
    let (mut out, mut err) = (Vec::new(), Vec::new());
    let fine = forge::cli::check::run(
        &["recipe.toml".to_owned()],
        &mut |name| Ok(Source::new(name, text)),
        &mut |_, _| unreachable!("nothing is extended"),
        &engines(Renamed::new()),
        &mut |_, _| Vec::new(),
        Messages::Text(Style::PLAIN),
        &mut out,
        &mut err,
    );
    (fine.unwrap(), String::from_utf8(err).unwrap())
}

const MEASURED: &str = "schema = 1\nname = \"m\"\n[source.model]\npath = \"m.gguf\"\n[corpus.c]\nfiles = [\"c.txt\"]\n\
                        [policy.p]\nmethod = \"measured\"\ncorpus = \"c\"\nbudget = \"5 bpw\"\nengine = \"renamed\"\n\
                        [promote.p]\npolicy = \"p\"\n";

#[test]
fn check_refuses_an_engine_that_cannot_probe_with_the_line() {
    let (fine, err) = checked(MEASURED);
    assert!(!fine);
    assert!(
        err.contains("error[recipe::engine-lacks]: the engine `renamed` cannot measure tensor types on a loaded model, which `policy.p` needs"),
        "{err}"
    );
    assert!(err.contains("recipe.toml:11:"), "{err}");
    assert!(err.contains("name another engine in that section: `embedded`"), "{err}");
    let (fine, err) = checked(&edited(MEASURED, "engine = \"renamed\"\n", ""));
    assert!(fine, "{err}");
}

#[test]
fn check_refuses_an_engine_that_does_not_exist_with_the_line() {
    let (fine, err) = checked(&edited(MEASURED, "\"renamed\"", "\"embeded\""));
    assert!(!fine);
    assert!(
        err.contains("error[recipe::unknown-engine]: there is no engine `embeded`"),
        "{err}"
    );
    assert!(err.contains("did you mean `embedded`?"), "{err}");
    assert!(err.contains("recipe.toml:11:"), "{err}");
    // The recipe's own engine must exist even if no step uses it.
    let (fine, err) = checked("schema = 1\nname = \"t\"\nengine = \"llama.cpp\"\n[source.m]\npath = \"m.gguf\"\n");
    assert!(!fine);
    assert!(err.contains("there is no engine `llama.cpp`"), "{err}");
    assert!(err.contains("recipe.toml:3:"), "{err}");
}

#[test]
fn settings_of_an_engine_that_does_not_exist_are_refused() {
    let forge = one_layer_project::project();
    forge.write("forge.toml", "[engine.\"llama.cpp\"]\npath = \"/opt/llama\"\n");
    let run = forge.run(&["plan"]).status(3);
    assert!(run.stderr.contains("forge.toml:1:"), "{}", run.stderr);
    assert!(run.stderr.contains("llama.cpp"), "{}", run.stderr);
}
