//! Makes a candidate again from its manifest alone: finds what it was made of, rebuilds it in a store of its own, and says
//! whether the same came out, or where the two histories diverge.
//!
//! A manifest is untrusted text. Its paths say where to look and never where to write; its sources are
//! taken by digest; names that become file names are checked as those of recipes are.

mod compare;
mod find;

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::path::Path;
use std::path::PathBuf;

use super::Runtime;
use super::Session;
use super::SessionError;
use super::Settings;
use super::lock::differing_facts;
use crate::action::role;
use crate::container;
use crate::digest::BlobDigest;
use crate::engine::Cancel;
use crate::engine::Engines;
use crate::engine::Identity;
use crate::engine::Role;
use crate::fs;
use crate::fs::PathError;
use crate::fs::TempDir;
use crate::graph::Graph;
use crate::graph::NodeId;
use crate::manifest;
use crate::manifest::Manifest;
use crate::observer::Observer;
use crate::recipe;
use crate::recipe::Recipe;
use crate::recipe::StepId;
use crate::scheduler;
use crate::scheduler::Report;
use crate::text::Source;
use crate::verify;
use crate::verify::Problem;

pub use compare::Comparison;
pub use compare::Divergence;
pub use compare::TensorDifference;
pub use compare::Verdict;
pub use compare::compare;
pub use find::Wanted;

/// Why a candidate cannot be made again.
#[derive(Debug, thiserror::Error)]
pub enum ReproduceError {
    /// The manifest cannot be read.
    #[error("`{}`: {problem}", path.display())]
    Manifest {
        /// The manifest.
        path: PathBuf,
        /// What is wrong.
        problem: String,
    },
    /// The manifest contradicts itself.
    #[error("`{}` contradicts itself in {} places", path.display(), problems.len())]
    Inconsistent {
        /// The manifest.
        path: PathBuf,
        /// The places.
        problems: Vec<Problem>,
    },
    /// A file or folder.
    #[error(transparent)]
    Path(#[from] PathError),
    /// Something has the name of the output already.
    #[error("`{}` already exists", path.display())]
    OutputExists {
        /// The path.
        path: PathBuf,
    },
    /// The store has results already, which would be found instead of made.
    #[error("the store `{}` has results already", path.display())]
    StoreNotEmpty {
        /// The store.
        path: PathBuf,
    },
    /// The session.
    #[error(transparent)]
    Session(#[from] SessionError),
}

/// Something that is needed and not there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Missing {
    /// A file that the candidate was made of.
    Source {
        /// The file.
        wanted: Wanted,
        /// A file that has its name and other bytes.
        other: Option<PathBuf>,
    },
    /// The engine that made it; this program's differs.
    Engine {
        /// What it is used for.
        role: String,
        /// Its fingerprint.
        wanted: String,
        /// This program's.
        found: String,
        /// The facts that differ: name, the manifest's value, this program's.
        facts: Vec<(String, String, String)>,
    },
    /// Free space for the store and the candidate.
    Space {
        /// The folder.
        folder: PathBuf,
        /// How many bytes are needed at least.
        needed: u64,
        /// How many there are.
        found: u64,
    },
}

/// Where things are looked for and put.
#[derive(Debug, Clone)]
pub struct Places {
    /// Folders from which the recipe's paths may start.
    pub bases: Vec<PathBuf>,
    /// Folders that are searched with all below them.
    pub search: Vec<PathBuf>,
    /// Where folders of temporary files may be made.
    pub temporary: PathBuf,
    /// A store that stays; else one in a temporary folder.
    pub store: Option<PathBuf>,
    /// Whether the store may have results of an earlier attempt.
    pub resume: bool,
    /// A folder in which the candidate stays; else it goes away.
    pub out: Option<PathBuf>,
}

/// A manifest that was read, and what was found of what it needs.
#[derive(Debug)]
pub struct Reproduction {
    manifest: Manifest,
    recipe: Recipe,
    step: StepId,
    /// Where each of the sources is, with what it is.
    pub found: Vec<(Wanted, PathBuf)>,
    /// What is missing.
    pub missing: Vec<Missing>,
    places: Places,
    runtime: Runtime,
}

/// The outcome of making a candidate again.
#[derive(Debug)]
pub struct Reproduced {
    /// The build.
    pub report: Report,
    /// How it compares; nothing where the build failed.
    pub comparison: Option<Comparison>,
    /// The candidate, if it was to stay.
    pub output: Option<PathBuf>,
    /// Whether the store had results of an earlier attempt.
    pub resumed: bool,
}

/// Returns the engines that a manifest's actions name.
pub(super) fn engines_used(manifest: &Manifest) -> Vec<Identity> {
    let forge = &manifest.predicate.forge;
    let mut named = BTreeSet::new();
    for record in forge.actions.values() {
        let engines = role::engines_in(&record.document).into_iter();
        named.extend(engines.map(|(_, _, fingerprint)| fingerprint));
    }
    let documents = named
        .into_iter()
        .filter_map(|fingerprint| forge.engines.get(fingerprint));
    let mut engines: Vec<Identity> = documents
        .filter_map(|document| serde_json::from_value(document.clone()).ok())
        .collect();
    engines.sort_by(|a, b| a.role.cmp(&b.role));
    engines
}

impl Reproduction {
    /// Reads a manifest and looks for what it needs. Nothing is written.
    ///
    /// # Errors
    ///
    /// A manifest that is none, or that contradicts itself.
    pub fn prepare(
        path: &Path,
        places: Places,
        runtime: Runtime,
        progress: &dyn Fn(u64),
    ) -> Result<Self, ReproduceError> {
        let broken = |problem: String| ReproduceError::Manifest {
            path: path.to_owned(),
            problem,
        };
        let bytes = verify::read_manifest(path).map_err(|error| {
            broken(if error.is_not_found() {
                fs::no_such_file(path)
            } else {
                error.source.to_string()
            })
        })?;
        let manifest = Manifest::parse(&bytes).map_err(|error| broken(error.to_string()))?;
        let (_, problems) = verify::check_document(&manifest, &bytes);
        if !problems.is_empty() {
            return Err(ReproduceError::Inconsistent {
                path: path.to_owned(),
                problems,
            });
        }
        let parameters = &manifest.predicate.build_definition.external_parameters;
        let recipe = recipe::parse_alone(&Source::new("recipeToml", parameters.recipe_toml.as_str()))
            .map_err(|_| broken("its recipe cannot be read".to_owned()))?
            .recipe;
        let step: StepId = parameters
            .step
            .parse()
            .map_err(|error: recipe::ParseStepIdError| broken(error.to_string()))?;
        let graph = Graph::of(&recipe).map_err(SessionError::from)?;
        let wanted = find::wanted(&manifest).map_err(broken)?;
        let located = find::locate(path, &graph, wanted, &places, progress);
        let mut this = Self {
            manifest,
            recipe,
            step,
            found: located.found,
            missing: Vec::new(),
            places,
            runtime,
        };
        let missing = located.missing.into_iter();
        this.missing
            .extend(missing.map(|(wanted, other)| Missing::Source { wanted, other }));
        this.missing.extend(this.other_engines(&this.runtime.engines));
        this.missing.extend(this.missing_space()?);
        Ok(this)
    }

    /// Returns the step that is made again.
    pub fn step(&self) -> &StepId {
        &self.step
    }

    /// Returns the recipe that the manifest holds.
    pub fn recipe(&self) -> &Recipe {
        &self.recipe
    }

    /// Returns the steps that lead to the candidate.
    pub fn graph(&self) -> Result<Graph, ReproduceError> {
        let graph = Graph::of(&self.recipe).map_err(SessionError::from)?;
        Ok(graph.only(&[NodeId::Step(self.step.clone())]))
    }

    /// Returns how many bytes the candidate has.
    pub fn bytes(&self) -> u64 {
        let subject = self.manifest.subject.first();
        let bytes = subject.and_then(|subject| subject.annotations.get("bytes")?.parse().ok());
        bytes.unwrap_or(0)
    }

    fn other_engines(&self, engines: &Engines) -> Vec<Missing> {
        let mut missing = Vec::new();
        for wanted in engines_used(&self.manifest) {
            let same_role = Role::ALL
                .iter()
                .find(|role| role.as_str() == wanted.role)
                .and_then(|role| engines.identity(&wanted.engine, *role));
            let found = same_role.map_or_else(String::new, |identity| identity.fingerprint().to_string());
            if found == wanted.fingerprint().to_string() {
                continue;
            }
            let nothing = BTreeMap::new();
            let facts = same_role.map_or(&nothing, |identity| &identity.facts);
            missing.push(Missing::Engine {
                facts: differing_facts(&wanted.facts, facts),
                wanted: wanted.fingerprint().to_string(),
                role: wanted.role,
                found,
            });
        }
        missing
    }

    /// Adds up what will lie in the store and next to it: what the manifest's actions made, and the candidate.
    fn missing_space(&self) -> Result<Vec<Missing>, ReproduceError> {
        let mut blobs = BTreeSet::new();
        for record in self.manifest.predicate.forge.actions.values() {
            blobs.extend(
                record
                    .outputs
                    .values()
                    .filter_map(|digest| digest.parse::<BlobDigest>().ok()),
            );
        }
        let stored = blobs.iter().fold(0_u64, |sum, blob| sum.saturating_add(blob.len));
        let mut needs: BTreeMap<u64, (PathBuf, u64)> = BTreeMap::new();
        let places = [
            (self.places.store.as_ref(), stored),
            (self.places.out.as_ref(), self.bytes()),
        ];
        for (place, bytes) in places {
            let folder = existing(place.unwrap_or(&self.places.temporary));
            let device = fs::Stamp::of(&folder)?.dev;
            let need = needs.entry(device).or_insert((folder, 0));
            need.1 = need.1.saturating_add(bytes);
        }
        let mut missing = Vec::new();
        for (folder, needed) in needs.into_values() {
            let found = fs::free_space(&folder)?;
            if found < needed {
                missing.push(Missing::Space { folder, needed, found });
            }
        }
        Ok(missing)
    }

    /// Makes the candidate again and compares. To be called when nothing is missing, or what is missing may differ.
    ///
    /// # Errors
    ///
    /// What keeps the build from beginning; a step that fails is in the report.
    pub fn run(
        self,
        command: Vec<String>,
        cancel: Cancel,
        options: scheduler::Options,
        observer: &dyn Observer,
    ) -> Result<Reproduced, ReproduceError> {
        fs::create_dir_all(&self.places.temporary)?;
        let scratch = TempDir::new_in(&self.places.temporary)?;
        let name = container::file_name(&self.step.label());
        let out = match &self.places.out {
            Some(out) => {
                for name in [name.clone(), format!("{name}{}", manifest::SUFFIX)] {
                    let path = out.join(name);
                    if fs::exists(&path)? {
                        return Err(ReproduceError::OutputExists { path });
                    }
                }
                out.clone()
            }
            None => scratch.path().join("out"),
        };
        let mut resumed = false;
        let store = match &self.places.store {
            Some(store) => {
                let results = store.join("actions-v1");
                resumed = fs::exists(&results)? && !fs::list(&results)?.is_empty();
                if resumed && !self.places.resume {
                    return Err(ReproduceError::StoreNotEmpty { path: store.clone() });
                }
                store.clone()
            }
            None => scratch.path().join("store"),
        };
        let file_overrides = self.place(&scratch.path().join("inputs"))?;
        let settings = Settings {
            folder: scratch.path().join("inputs"),
            out: out.clone(),
            cache_dir: store,
            runtime: self.runtime.clone(),
            repeat: None,
            command,
            // The candidate may go away: a store that stays must hold its tensors itself.
            borrow: false,
        };
        let wanted = [self.step_name()];
        let session = Session::open(self.recipe, settings, &wanted, cancel)?
            .with_files(file_overrides)
            .with_overlaps(self.manifest.predicate.forge.overlaps.clone());
        let report = session.build(options, observer)?;
        let output = out.join(&name);
        let mut comparison = None;
        if report.failures.is_empty() && !report.stopped {
            let path = out.join(format!("{name}{}", manifest::SUFFIX));
            let bytes = verify::read_manifest(&path)?;
            let again = Manifest::parse(&bytes).map_err(|error| ReproduceError::Manifest {
                path,
                problem: error.to_string(),
            })?;
            comparison = Some(compare(&self.manifest, &again, session.graph()));
        }
        Ok(Reproduced {
            report,
            comparison,
            output: self.places.out.is_some().then_some(output),
            resumed,
        })
    }

    fn step_name(&self) -> String {
        self.manifest
            .predicate
            .build_definition
            .external_parameters
            .step
            .clone()
    }

    /// Gives the files that were found the names that they had, as links in a folder of ours, one folder for each file of a
    /// corpus and one for all parts of a model.
    fn place(&self, inputs: &Path) -> Result<BTreeMap<NodeId, Vec<PathBuf>>, ReproduceError> {
        fs::create_dir_all(inputs)?;
        let graph = Graph::of(&self.recipe).map_err(SessionError::from)?;
        let nodes: BTreeMap<String, NodeId> = graph
            .nodes()
            .map(|node| (node.id.to_string(), node.id.clone()))
            .collect();
        let mut file_overrides: BTreeMap<NodeId, Vec<PathBuf>> = BTreeMap::new();
        for (at, (wanted, path)) in self.found.iter().enumerate() {
            let Some(node) = nodes.get(&wanted.node) else { continue };
            let files = file_overrides.entry(node.clone()).or_default();
            let beside = files.first().and_then(|first| first.parent());
            let folder = if let (NodeId::Source(_), Some(folder)) = (node, beside) {
                folder.to_owned()
            } else {
                let folder = inputs.join(at.to_string());
                fs::create_dir(&folder)?;
                folder
            };
            // Names were checked to be names when the manifest was read.
            let link = folder.join(&wanted.name);
            fs::link_to(path, &link)?;
            files.push(link);
        }
        Ok(file_overrides)
    }
}

/// Returns the nearest folder above a path, or the path itself, that is there.
fn existing(path: &Path) -> PathBuf {
    let path = fs::absolute(path);
    let there = path.ancestors().find(|path| fs::exists(path).unwrap_or(false));
    there.unwrap_or(Path::new("/")).to_owned()
}
