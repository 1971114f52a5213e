//! What a recipe is locked to: the digest of every file that it reads, and the engines. For version control: sorted, one
//! fact a line, nothing of a machine in it.

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::path::Path;

use serde::Deserialize;
use serde::Serialize;

use super::Session;
use super::SessionError;
use crate::digest::BlobDigest;
use crate::digest::Hash;
use crate::engine::Identity;
use crate::fs;
use crate::graph::Graph;
use crate::graph::Node;
use crate::graph::NodeId;
use crate::observer::Event;
use crate::observer::Observer;
use crate::recipe::model::Step;
use crate::recipe::model::StepId;
use crate::scheduler;
use crate::scheduler::Report;
use crate::step;
use crate::vocab::verdict::StepOutcome;

/// The version of the form of lock files.
const SCHEMA: u32 = 2;
/// An older version, which has no steps.
const WITHOUT_STEPS: u32 = 1;

/// The maximum length of a lock file.
const CAP: u64 = 64 << 20;

/// A lock file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Lock {
    /// The version of this form: 2. Version 1 has no steps.
    pub schema: u32,
    /// The recipe's name.
    pub recipe: String,
    /// The engines, by what they are used for: `evaluator`, `quantizer`.
    pub engine: BTreeMap<String, LockedEngine>,
    /// The settings of each step, as a digest of the resolved recipe's.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub step: BTreeMap<String, Hash>,
    /// Every file that the recipe reads, by node and path.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub source: Vec<LockedFile>,
}

/// An engine in a lock file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LockedEngine {
    /// The digest of its identity document.
    pub fingerprint: String,
    /// The facts of that document, so that a difference can be named.
    pub facts: BTreeMap<String, String>,
}

/// A file in a lock file.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LockedFile {
    /// The node that reads it: `source.model`, `corpus.calibration`.
    pub node: String,
    /// Where it is, from the recipe's folder; as the recipe has it where it is elsewhere.
    pub path: String,
    /// The BLAKE3 of its bytes.
    pub blake3: Hash,
    /// How many bytes it has.
    pub bytes: u64,
}

/// Why a lock file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// The file.
    #[error(transparent)]
    Path(#[from] fs::PathError),
    /// Not a lock file.
    #[error("it is not a lock file: {0}")]
    Malformed(String),
    /// Something in it that TOML has no form for.
    #[error("it cannot be written as TOML: {0}")]
    Unwritable(#[from] toml::ser::Error),
    /// One of another version.
    #[error("it is a lock file of schema {found}; this version of forge reads {SCHEMA}")]
    Schema {
        /// The version.
        found: u32,
    },
    /// Nothing says what the recipe was locked to.
    #[error("nothing records what the sources and engines should be")]
    Nothing,
    /// The sources could not be read: what failed is in the report.
    #[error("the sources could not be read")]
    Failed(Box<Report>),
    /// The session.
    #[error(transparent)]
    Session(#[from] SessionError),
}

/// Something that is not as it was locked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LockDifference {
    /// The lock is another recipe's.
    #[error("it is the lock file of recipe `{locked}`, but this recipe is `{found}`")]
    Recipe {
        /// The recipe in the lock.
        locked: String,
        /// This one.
        found: String,
    },
    /// A step has other settings.
    #[error("`{step}` has other settings in the recipe")]
    StepChanged {
        /// The step.
        step: String,
    },
    /// A step that the recipe did not have.
    #[error("`{step}` is new in the recipe")]
    StepNew {
        /// The step.
        step: String,
    },
    /// A step that the recipe no longer has.
    #[error("`{step}` is no longer in the recipe")]
    StepGone {
        /// The step.
        step: String,
    },
    /// A fact of an engine.
    #[error("the {role}'s `{fact}` is `{found}`, and was `{locked}`")]
    Engine {
        /// What the engine is used for.
        role: String,
        /// The fact; `fingerprint` if no fact differs.
        fact: String,
        /// What it was.
        locked: String,
        /// What it is.
        found: String,
    },
    /// A file has other bytes.
    #[error("`{path}` of `{node}` is {found}, and was {locked}")]
    Changed {
        /// The node.
        node: String,
        /// The file.
        path: String,
        /// What it was.
        locked: BlobDigest,
        /// What it is.
        found: BlobDigest,
    },
    /// A file that is read now and was not.
    #[error("`{path}` of `{node}` is new")]
    New {
        /// The node.
        node: String,
        /// The file.
        path: String,
    },
    /// A file that was read and is not any more.
    #[error("`{path}` of `{node}` is no longer read")]
    Gone {
        /// The node.
        node: String,
        /// The file.
        path: String,
    },
    /// A candidate without a manifest.
    #[error("`{candidate}` has no manifest that says what it was made from")]
    NoManifest {
        /// The candidate.
        candidate: String,
    },
    /// Something that only evaluations read, and no build on record has read.
    #[error("no recorded build has read `{node}`, and no manifest lists it, since only evaluations read it")]
    NoRecord {
        /// The node.
        node: String,
    },
}

impl LockDifference {
    /// Returns whether the recipe says something else, and not what it reads.
    pub fn is_of_recipe(&self) -> bool {
        matches!(
            self,
            Self::StepChanged { .. } | Self::StepNew { .. } | Self::StepGone { .. }
        )
    }
}

/// Forwards events except those of hits, while sources are read before a build.
struct SkipHits<'a>(&'a dyn Observer);

impl Observer for SkipHits<'_> {
    fn event(&self, event: &Event) {
        let old = matches!(
            event,
            Event::StepFinished {
                outcome: StepOutcome::Hit,
                ..
            }
        );
        if !old {
            self.0.event(event);
        }
    }
}

/// Files by node and name.
pub(super) type Files = BTreeMap<(String, String), BlobDigest>;

impl Lock {
    /// Reads a lock file.
    pub fn parse(text: &str) -> Result<Self, LockError> {
        let lock: Self =
            toml::from_str(text).map_err(|error| LockError::Malformed(error.message().chars().take(300).collect()))?;
        if lock.schema == SCHEMA || (lock.schema == WITHOUT_STEPS && lock.step.is_empty()) {
            Ok(lock)
        } else {
            Err(LockError::Schema { found: lock.schema })
        }
    }

    /// Reads a lock file; `None` if there is none.
    pub fn load(path: &Path) -> Result<Option<Self>, LockError> {
        let bytes = match fs::read_small(path, CAP) {
            Ok(bytes) => bytes,
            Err(error) if error.is_not_found() => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        let text = String::from_utf8(bytes).map_err(|_| LockError::Malformed("it is not UTF-8".to_owned()))?;
        Self::parse(&text).map(Some)
    }

    /// Returns the file's text.
    pub fn to_toml(&self) -> Result<String, toml::ser::Error> {
        let facts = toml::to_string(self)?;
        Ok(format!(
            "# Written by `forge lock`; `forge build --frozen` refuses what differs from it.\n{facts}"
        ))
    }

    /// Writes the file.
    pub fn save(&self, path: &Path) -> Result<(), LockError> {
        Ok(fs::write_atomic(
            path,
            self.to_toml()?.as_bytes(),
            fs::Durability::Synced,
        )?)
    }

    fn files(&self) -> Files {
        let files = self.source.iter().map(|source| {
            let digest = BlobDigest {
                hash: source.blake3,
                len: source.bytes,
            };
            ((source.node.clone(), source.path.clone()), digest)
        });
        files.collect()
    }

    /// Returns in what this differs from what was found. With `nodes`, only files and settings of these count.
    pub fn differences(&self, found: &Self, nodes: Option<&BTreeSet<String>>) -> Vec<LockDifference> {
        let mut differences = Vec::new();
        if self.recipe != found.recipe {
            differences.push(LockDifference::Recipe {
                locked: self.recipe.clone(),
                found: found.recipe.clone(),
            });
        }
        differences.extend(engine_differences(&self.engine, &found.engine));
        let counts = |node: &str| nodes.is_none_or(|nodes| nodes.contains(node));
        differences.extend(file_differences(&self.files(), &found.files(), &counts));
        if self.schema != WITHOUT_STEPS {
            differences.extend(self.step_differences(found, &counts));
        }
        differences
    }

    fn step_differences(&self, found: &Self, counts: &dyn Fn(&str) -> bool) -> Vec<LockDifference> {
        let names: BTreeSet<&String> = self.step.keys().chain(found.step.keys()).collect();
        let differs = |step: &String| match (self.step.get(step), found.step.get(step)) {
            (Some(before), Some(now)) if before != now => Some(LockDifference::StepChanged { step: step.clone() }),
            (None, Some(_)) => Some(LockDifference::StepNew { step: step.clone() }),
            (Some(_), None) => Some(LockDifference::StepGone { step: step.clone() }),
            _ => None,
        };
        let counted = names.into_iter().filter(|step| counts(step));
        counted.filter_map(differs).collect()
    }
}

pub(super) fn engine_differences(
    locked: &BTreeMap<String, LockedEngine>,
    found: &BTreeMap<String, LockedEngine>,
) -> Vec<LockDifference> {
    let mut differences = Vec::new();
    for (role, engine) in found {
        let nothing = LockedEngine {
            fingerprint: "nothing".to_owned(),
            facts: BTreeMap::new(),
        };
        let before = locked.get(role).unwrap_or(&nothing);
        if before == engine {
            continue;
        }
        let mut facts = differing_facts(&before.facts, &engine.facts);
        if facts.is_empty() || before.facts.is_empty() {
            facts = vec![(
                "fingerprint".to_owned(),
                before.fingerprint.clone(),
                engine.fingerprint.clone(),
            )];
        }
        differences.extend(facts.into_iter().map(|(fact, locked, found)| LockDifference::Engine {
            role: role.clone(),
            fact,
            locked,
            found,
        }));
    }
    differences
}

/// Returns the facts in which two identities differ, with both values; `nothing` where one has no such fact.
pub(super) fn differing_facts(
    before: &BTreeMap<String, String>,
    after: &BTreeMap<String, String>,
) -> Vec<(String, String, String)> {
    let names: BTreeSet<&String> = before.keys().chain(after.keys()).collect();
    let text = |value: Option<&String>| value.cloned().unwrap_or_else(|| "nothing".to_owned());
    names
        .into_iter()
        .filter(|name| before.get(*name) != after.get(*name))
        .map(|name| (name.clone(), text(before.get(name)), text(after.get(name))))
        .collect()
}

pub(super) fn file_differences(locked: &Files, found: &Files, counts: &dyn Fn(&str) -> bool) -> Vec<LockDifference> {
    let mut differences = Vec::new();
    let names: BTreeSet<&(String, String)> = locked.keys().chain(found.keys()).collect();
    for name in names {
        let (node, path) = name.clone();
        if !counts(&node) {
            continue;
        }
        match (locked.get(name), found.get(name)) {
            (Some(before), Some(now)) if before != now => differences.push(LockDifference::Changed {
                node,
                path,
                locked: *before,
                found: *now,
            }),
            (None, Some(_)) => differences.push(LockDifference::New { node, path }),
            (Some(_), None) => differences.push(LockDifference::Gone { node, path }),
            _ => {}
        }
    }
    differences
}

/// Returns an engine as a lock file has it, by what it is used for: its role, or, of an engine that is not the recipe's, its name
/// and its role.
pub(super) fn locked_engine(identity: &Identity, main: &str) -> (String, LockedEngine) {
    let engine = LockedEngine {
        fingerprint: identity.fingerprint().to_string(),
        facts: identity.facts.clone(),
    };
    let name = if identity.engine == main {
        identity.role.clone()
    } else {
        format!("{}.{}", identity.engine, identity.role)
    };
    (name, engine)
}

impl Session {
    /// Returns the engines that the recipe uses, as a lock file has them.
    pub(super) fn locked_engines(&self) -> BTreeMap<String, LockedEngine> {
        let identities = self.identities(&self.graph).into_iter();
        identities
            .map(|identity| locked_engine(identity, &self.recipe.engine.name))
            .collect()
    }

    /// Reads the sources that are not known yet, and returns what the recipe would be locked to now. Results of
    /// reading stay in the store; no output is written.
    pub fn lock(&self, options: scheduler::Options, observer: &dyn Observer) -> Result<Lock, LockError> {
        let report = self.read_sources(options, observer)?;
        let mut source = Vec::new();
        for node in readers(&self.graph) {
            let files = report.outcomes.get(&node.id).map(|outcome| &outcome.files);
            for file in files.into_iter().flatten() {
                let path = file.path.strip_prefix(&self.settings.folder).unwrap_or(&file.path);
                source.push(LockedFile {
                    node: node.id.to_string(),
                    path: path.to_string_lossy().into_owned(),
                    blake3: file.digest.hash,
                    bytes: file.digest.len,
                });
            }
        }
        source.sort();
        Ok(Lock {
            schema: SCHEMA,
            recipe: self.recipe.name.clone(),
            engine: self.locked_engines(),
            step: self.locked_steps(),
            source,
        })
    }

    /// Returns a digest of the settings of every step of the session.
    fn locked_steps(&self) -> BTreeMap<String, Hash> {
        let wanted: BTreeSet<&StepId> = self
            .graph
            .nodes()
            .filter_map(|node| Some(&node.work.step()?.id))
            .collect();
        let steps = self.recipe.steps.iter().filter(|step| wanted.contains(&step.id));
        let digest = |step: &Step| Hash::of(&serde_json::to_vec(step).unwrap_or_default());
        steps.map(|step| (step.id.to_string(), digest(step))).collect()
    }

    pub(super) fn read_sources(
        &self,
        options: scheduler::Options,
        observer: &dyn Observer,
    ) -> Result<Report, LockError> {
        let _lease = self.store.lease().map_err(SessionError::from)?;
        let changes = SkipHits(observer);
        let env = self.env(&changes);
        self.check_files(&env)?;
        let readers: Vec<NodeId> = readers(&self.graph).map(|node| node.id.clone()).collect();
        let graph = self.graph.only(&readers);
        let options = scheduler::Options { note: false, ..options };
        let report = scheduler::build(&graph, &env, options, &|| true, &mut |_| Vec::new());
        if report.failures.is_empty() && !report.stopped {
            Ok(report)
        } else {
            Err(LockError::Failed(Box::new(report)))
        }
    }
}

/// Returns the nodes that read files.
pub(super) fn readers(graph: &Graph) -> impl Iterator<Item = &Node> {
    graph.nodes().filter(|node| step::reads_files(node))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lock() -> Lock {
        let engine = |role: &str| LockedEngine {
            fingerprint: Hash::of(role.as_bytes()).to_string(),
            facts: BTreeMap::from([("c flags".to_owned(), "-O3 \"x\"".to_owned())]),
        };
        Lock {
            schema: SCHEMA,
            recipe: "a".to_owned(),
            engine: ["quantizer", "evaluator"]
                .map(|role| (role.to_owned(), engine(role)))
                .into(),
            step: BTreeMap::from([("policy.a".to_owned(), Hash::of(b"p"))]),
            source: vec![LockedFile {
                node: "corpus.prose".to_owned(),
                path: "texts/ein \\ Text.txt".to_owned(),
                blake3: Hash::of(b"a"),
                bytes: 1,
            }],
        }
    }

    #[test]
    fn a_lock_file_has_one_fact_a_line() {
        let digest = |text: &str| Hash::of(text.as_bytes());
        let expected = format!(
            "# Written by `forge lock`; `forge build --frozen` refuses what differs from it.\n\
             schema = 2\n\
             recipe = \"a\"\n\
             \n\
             [engine.evaluator]\n\
             fingerprint = \"{evaluator}\"\n\
             \n\
             [engine.evaluator.facts]\n\
             \"c flags\" = '-O3 \"x\"'\n\
             \n\
             [engine.\"other.quantizer\"]\n\
             fingerprint = \"{quantizer}\"\n\
             \n\
             [engine.\"other.quantizer\".facts]\n\
             \n\
             [step]\n\
             \"policy.a\" = \"{policy}\"\n\
             \n\
             [[source]]\n\
             node = \"corpus.prose\"\n\
             path = 'texts/ein \\ Text.txt'\n\
             blake3 = \"{file}\"\n\
             bytes = 1\n",
            evaluator = digest("evaluator"),
            quantizer = digest("quantizer"),
            file = digest("a"),
            policy = digest("p"),
        );
        let mut lock = lock();
        let mut quantizer = lock.engine.remove("quantizer").unwrap();
        quantizer.facts.clear();
        lock.engine.insert("other.quantizer".to_owned(), quantizer);
        assert_eq!(lock.to_toml().unwrap(), expected);
        assert_eq!(Lock::parse(&expected).unwrap(), lock);
    }

    #[test]
    fn a_lock_file_reads_back() {
        let text = lock().to_toml().unwrap();
        assert_eq!(Lock::parse(&text).unwrap(), lock());
        let empty = Lock {
            source: Vec::new(),
            ..lock()
        };
        assert_eq!(Lock::parse(&empty.to_toml().unwrap()).unwrap(), empty);
        for odd in [
            "",
            "\"",
            "'''\"\"\"",
            "\\",
            "a\nb\r\n",
            "\u{0}\u{7f}\u{1b}[0m",
            "ä \u{1f600}\u{202e}",
            "a.b = [c]#",
        ] {
            let mut lock = lock();
            let engine = lock.engine["quantizer"].clone();
            let facts = BTreeMap::from([(odd.to_owned(), odd.to_owned())]);
            lock.engine.insert(odd.to_owned(), LockedEngine { facts, ..engine });
            odd.clone_into(&mut lock.recipe);
            odd.clone_into(&mut lock.source[0].path);
            assert_eq!(Lock::parse(&lock.to_toml().unwrap()).unwrap(), lock);
        }
        let newer = text.replace("schema = 2", "schema = 3");
        assert!(matches!(Lock::parse(&newer), Err(LockError::Schema { found: 3 })));
        for bad in [
            "",
            "schema = 2",
            "schema = \"2\"",
            "\u{0}",
            &text.replace("bytes = 1", "bytes = -1"),
        ] {
            assert!(matches!(Lock::parse(bad), Err(LockError::Malformed(_))), "{bad}");
        }
        // An earlier version has no steps.
        let earlier = text.replace("schema = 2", "schema = 1");
        assert!(matches!(Lock::parse(&earlier), Err(LockError::Schema { found: 1 })));
        let lines: Vec<&str> = earlier.lines().filter(|line| !line.contains("policy.a")).collect();
        let earlier = lines.join(
            "
",
        );
        let earlier = Lock::parse(&earlier).unwrap();
        assert_eq!(earlier.differences(&lock(), None), []);
        let more = format!("more = 1\n{text}");
        assert!(matches!(Lock::parse(&more), Err(LockError::Malformed(_))));
    }

    #[test]
    fn all_differences_are_listed_in_one_error() {
        let (before, mut now) = (lock(), lock());
        assert_eq!(before.differences(&now, None), []);
        now.recipe = "b".to_owned();
        now.source[0].blake3 = Hash::of(b"b");
        now.source.push(LockedFile {
            path: "new".to_owned(),
            ..now.source[0].clone()
        });
        let quantizer = now.engine.get_mut("quantizer").unwrap();
        quantizer.fingerprint = "other".to_owned();
        quantizer.facts.insert("cpu".to_owned(), "avx2".to_owned());
        let differences: Vec<String> = before.differences(&now, None).iter().map(ToString::to_string).collect();
        assert_eq!(differences.len(), 4, "{differences:#?}");
        assert!(differences[0].contains("recipe `a`") && differences[1].contains("`cpu` is `avx2`, and was `nothing`"));
        assert!(
            differences[2].contains("`new` of `corpus.prose` is new"),
            "{differences:#?}"
        );
        assert!(differences[3].contains("Text.txt"), "{differences:#?}");
        let gone = now.differences(&before, None);
        assert!(
            gone.iter()
                .any(|it| matches!(it, LockDifference::Gone { path, .. } if path == "new"))
        );
        let nodes = BTreeSet::new();
        assert_eq!(before.differences(&now, Some(&nodes)).len(), 2, "no file counts");
    }
}
