//! The files that forge wrote to the output folder of a recipe: which of them the recipe no longer makes, and their removal.
//!
//! A file counts as forge's own only if that is proved: its name and its digest are those of a consistent manifest of the same recipe
//! beside it, or those of the result of a step that the store has a record of. All other files are left alone.

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::path::Path;
use std::path::PathBuf;

use super::Session;
use crate::action;
use crate::digest::BlobDigest;
use crate::fs;
use crate::fs::FileKind;
use crate::fs::Stamp;
use crate::graph::Graph;
use crate::graph::GraphError;
use crate::manifest::Manifest;
use crate::observer::Event;
use crate::observer::Observer;
use crate::observer::StaleFile;
use crate::recipe::Recipe;
use crate::recipe::StepId;
use crate::recipe::StepKind;
use crate::sign;
use crate::sign::Envelope;
use crate::step;
use crate::step::metrics;
use crate::step::policy;
use crate::step::promote;
use crate::store::Store;
use crate::store::StoreError;
use crate::verify;
use crate::verify::Target;
use crate::work::fact_of;
use crate::work::output_of;

/// A file of this length or less is read at the end of a build to prove that forge wrote it.
const SMALL: u64 = 1 << 20;

/// Which files to remove.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    /// Those that the recipe no longer makes.
    Stale,
    /// All that forge wrote.
    All,
}

/// How a file is compared with its digest.
#[derive(Clone, Copy)]
enum Depth<'p> {
    /// By its stamp, if the store knows that; a large file is not read.
    Quick,
    /// A file with an unknown stamp is read. The function gets the number of bytes that were read so far.
    Full(&'p dyn Fn(u64)),
}

/// A file that forge wrote.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OwnFile {
    /// Its path.
    pub path: PathBuf,
    /// Its content.
    pub digest: BlobDigest,
    stamp: Stamp,
}

/// Files that belong together: a candidate with its signatures and its manifest, or one other file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OwnGroup {
    /// The name of the file that the others belong to.
    pub name: String,
    /// The files, in the order in which they are removed. A manifest is the last, so that no candidate is without one.
    pub files: Vec<OwnFile>,
    /// The tensors of a candidate, by digest.
    tensors: BTreeMap<BlobDigest, String>,
}

/// A file that has the name of one of forge's and is left alone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LeftFile {
    /// Its path.
    pub path: PathBuf,
    /// Why it is left alone.
    pub why: String,
}

/// What was found in an output folder.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Found {
    /// What forge wrote.
    pub groups: Vec<OwnGroup>,
    /// What is left alone.
    pub left: Vec<LeftFile>,
}

impl Found {
    /// Returns all files that forge wrote.
    pub fn files(&self) -> impl Iterator<Item = &OwnFile> {
        self.groups.iter().flat_map(|group| &group.files)
    }
}

/// The tensors that are lost with some files.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Lost {
    /// The number of tensors with different bytes.
    pub tensors: u64,
    /// Their size.
    pub bytes: u64,
    /// Their names, as far as manifests say them, each once.
    pub names: Vec<String>,
}

/// What was removed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Removed {
    /// The number of files.
    pub files: u64,
    /// Their size.
    pub bytes: u64,
    /// What could not be removed.
    pub left: Vec<LeftFile>,
}

/// What a file proved to be.
enum Proof {
    Missing,
    Own(OwnFile),
    Other,
    Unknown,
}

/// The output folder of a recipe.
pub struct OutputFolder<'a> {
    recipe: String,
    out: &'a Path,
    store: &'a Store,
    made: BTreeSet<String>,
}

/// Returns the names of all files that a recipe makes: outputs, the manifests of candidates, and signatures of these.
///
/// # Errors
///
/// [`GraphError`] if the recipe has no graph.
pub fn made_by(recipe: &Recipe) -> Result<BTreeSet<String>, GraphError> {
    let graph = Graph::of(recipe)?;
    let only_table = metrics::tables(recipe).count() < 2;
    let mut made = BTreeSet::new();
    for node in graph.nodes() {
        made.extend(step::kind_of(node).output_names(node, None, only_table));
        if let Some(candidate) = promote::candidate(node) {
            let manifest = promote::manifest_name(candidate);
            made.insert(format!("{manifest}{}", sign::SUFFIX));
            made.insert(manifest);
        }
    }
    Ok(made)
}

/// Returns the candidates in an output folder that have a manifest of a recipe and that the recipe no longer makes. Nothing but the
/// manifests is read.
///
/// # Errors
///
/// [`GraphError`] if the recipe has no graph.
pub fn stale_targets(recipe: &Recipe, out: &Path) -> Result<Vec<Target>, GraphError> {
    let made = made_by(recipe)?;
    let names = names_in(out).unwrap_or_default();
    let stale = names.iter().filter(|name| !made.contains(*name));
    let targets = stale.filter_map(|name| Target::of_manifest(&out.join(name)));
    Ok(targets
        .filter(|target| {
            let bytes = verify::read_manifest(&target.manifest);
            bytes.is_ok_and(|bytes| Manifest::parse(&bytes).is_ok_and(|manifest| is_of(&manifest, &recipe.name)))
        })
        .collect())
}

/// Returns the names of the files in a folder; none if it is missing.
fn names_in(folder: &Path) -> Result<BTreeSet<String>, fs::PathError> {
    let entries = match fs::list(folder) {
        Err(error) if error.is_not_found() => Vec::new(),
        listed => listed?,
    };
    let files = entries.into_iter().filter(|entry| !entry.is_dir);
    Ok(files.filter_map(|entry| entry.name.into_string().ok()).collect())
}

/// Returns whether a manifest is of a recipe of this name.
fn is_of(manifest: &Manifest, recipe: &str) -> bool {
    let parameters = &manifest.predicate.build_definition.external_parameters;
    parameters.recipe.get("name").and_then(serde_json::Value::as_str) == Some(recipe)
}

impl Session {
    /// Reports the files in the output folder that the recipe no longer makes, and returns them.
    pub(super) fn report_stale(&self, observer: &dyn Observer) -> Vec<StaleFile> {
        // They are only named, so nothing that goes wrong here fails a build.
        let folder = OutputFolder::new(&self.recipe, &self.settings.out, &self.store);
        let files = folder.map(|folder| folder.stale()).unwrap_or_default();
        if !files.is_empty() {
            observer.event(&Event::StaleOutputs {
                folder: self.settings.out.display().to_string(),
                files: files.clone(),
            });
        }
        files
    }
}

impl<'a> OutputFolder<'a> {
    /// Returns the output folder of a recipe.
    ///
    /// # Errors
    ///
    /// [`GraphError`] if the recipe has no graph.
    pub fn new(recipe: &Recipe, out: &'a Path, store: &'a Store) -> Result<Self, GraphError> {
        Ok(Self {
            recipe: recipe.name.clone(),
            out,
            store,
            made: made_by(recipe)?,
        })
    }

    /// Returns the files that the recipe no longer makes. Reads no large file: one with an unknown stamp is left out.
    pub fn stale(&self) -> Vec<StaleFile> {
        let found = self.look(Scope::Stale, Depth::Quick).unwrap_or_default();
        let files = found.files().map(|file| StaleFile {
            path: file.path.display().to_string(),
            bytes: file.digest.len,
        });
        files.collect()
    }

    /// Returns the files that forge wrote. Reads each file whose stamp the store does not know; `progress` gets the number of bytes
    /// of the current file that were read so far.
    ///
    /// # Errors
    ///
    /// [`StoreError::Path`] if the folder or a file in it cannot be read.
    pub fn examine(&self, scope: Scope, progress: &dyn Fn(u64)) -> Result<Found, StoreError> {
        self.look(scope, Depth::Full(progress))
    }

    fn look(&self, scope: Scope, depth: Depth<'_>) -> Result<Found, StoreError> {
        let mut names = names_in(self.out)?;
        if scope == Scope::Stale {
            names.retain(|name| !self.made.contains(name));
        }
        let mut found = Found::default();
        let manifests: Vec<Target> = names
            .iter()
            .filter_map(|name| Target::of_manifest(&self.out.join(name)))
            .collect();
        for target in manifests {
            self.look_at_candidate(&target, &mut names, depth, &mut found)?;
        }
        if !names.is_empty() {
            let written = self.recorded();
            for name in names {
                let Some(digests) = written.get(&name) else { continue };
                let path = self.out.join(&name);
                match self.prove(&path, digests, depth)? {
                    Proof::Own(file) => found.groups.push(OwnGroup {
                        name,
                        files: vec![file],
                        tensors: BTreeMap::new(),
                    }),
                    Proof::Other => found.left.push(LeftFile {
                        path,
                        why: "its content is not what forge wrote".to_owned(),
                    }),
                    Proof::Missing | Proof::Unknown => {}
                }
            }
        }
        found.groups.sort_by(|a, b| a.name.cmp(&b.name));
        found.left.sort_by(|a, b| a.path.cmp(&b.path));
        Ok(found)
    }

    /// Adds a candidate with a manifest of this recipe, and removes its files from `names`.
    fn look_at_candidate(
        &self,
        target: &Target,
        names: &mut BTreeSet<String>,
        depth: Depth<'_>,
        found: &mut Found,
    ) -> Result<(), StoreError> {
        let name = name_of(&target.output);
        let Ok(bytes) = verify::read_manifest(&target.manifest) else {
            return Ok(());
        };
        let Ok(manifest) = Manifest::parse(&bytes) else {
            return Ok(());
        };
        if !is_of(&manifest, &self.recipe) {
            return Ok(());
        }
        for path in [&target.output, &target.manifest, &target.signatures()] {
            names.remove(&name_of(path));
        }
        let mut leave = |path: &Path, why: &str| {
            found.left.push(LeftFile {
                path: path.to_owned(),
                why: why.to_owned(),
            });
        };
        let (facts, problems) = verify::check_document(&manifest, &bytes);
        let named = manifest.subject.first().is_some_and(|subject| subject.name == name);
        let Some(digest) = facts.file.filter(|_| problems.is_empty() && named) else {
            leave(
                &target.manifest,
                "it is not a manifest as forge wrote it for a file of this name",
            );
            return Ok(());
        };
        let mut files = Vec::new();
        match self.prove(&target.output, &[digest], depth)? {
            Proof::Own(file) => files.push(file),
            Proof::Missing => {}
            Proof::Other => {
                leave(&target.output, "its content is not what its manifest says");
                return Ok(());
            }
            Proof::Unknown => return Ok(()),
        }
        let signatures = target.signatures();
        if let Ok(Some(there)) = verify::read_signatures(&signatures) {
            let is_of_manifest = Envelope::parse(&there).is_ok_and(|envelope| envelope.is_of(&bytes));
            match self.prove(&signatures, &[BlobDigest::of(&there)], depth)? {
                Proof::Own(file) if is_of_manifest => files.push(file),
                Proof::Missing => {}
                _ => leave(&signatures, "it does not sign the manifest beside it"),
            }
        }
        match self.prove(&target.manifest, &[BlobDigest::of(&bytes)], depth)? {
            Proof::Own(file) => files.push(file),
            _ => return Ok(()),
        }
        let tensors = facts.tensors.into_iter();
        found.groups.push(OwnGroup {
            name,
            files,
            tensors: tensors
                .filter_map(|tensor| Some((tensor.bytes?, tensor.name)))
                .collect(),
        });
        Ok(())
    }

    /// Compares a file with the digests that it may have.
    fn prove(&self, path: &Path, digests: &[BlobDigest], depth: Depth<'_>) -> Result<Proof, StoreError> {
        let Some(facts) = fs::facts(path)? else {
            return Ok(Proof::Missing);
        };
        let may_be = |digest: &BlobDigest| digest.len == facts.stamp.size;
        if facts.kind != FileKind::Plain || !digests.iter().any(may_be) {
            return Ok(Proof::Other);
        }
        let looked = match (depth, self.store.known(&facts.stamp)) {
            (_, Some(digest)) => Ok((digest, facts.stamp)),
            (Depth::Quick, None) if facts.stamp.size > SMALL => return Ok(Proof::Unknown),
            (Depth::Quick, None) => self.store.digest_file(path, &|_| {}),
            (Depth::Full(progress), None) => self.store.digest_file(path, progress),
        };
        match looked {
            Ok((digest, stamp)) if digests.contains(&digest) => Ok(Proof::Own(OwnFile {
                path: path.to_owned(),
                digest,
                stamp,
            })),
            Ok(_) | Err(StoreError::SourceChanged { .. }) => Ok(Proof::Other),
            Err(error) => Err(error),
        }
    }

    /// Returns the files that steps of this recipe have written, as far as the store has records of them, and what they contained.
    fn recorded(&self) -> BTreeMap<String, Vec<BlobDigest>> {
        let mut written: BTreeMap<String, Vec<BlobDigest>> = BTreeMap::new();
        let last = self.store.all_last().unwrap_or_default();
        for last in last.into_iter().filter(|last| last.recipe == self.recipe) {
            let Ok(id) = last.step.parse::<StepId>() else { continue };
            if ![StepKind::Promote, StepKind::Policy, StepKind::Metrics].contains(&id.kind) {
                continue;
            }
            let mut records = self.store.earlier(&last.recipe, &last.step);
            records.push(last);
            for record in records {
                // The store may have lost it; then nothing is proved.
                let Ok(Some(result)) = self.store.lookup_shallow(&record.action) else {
                    continue;
                };
                let mut add = |name: String, digest: Option<BlobDigest>| {
                    if let Some(digest) = digest {
                        written.entry(name).or_default().push(digest);
                    }
                };
                match id.kind {
                    StepKind::Promote => {
                        add(promote::file_name(&id), fact_of(&result, action::Promote::FILE).ok());
                    }
                    StepKind::Policy => {
                        let certificate = output_of(&result, action::Policy::CERTIFICATE).ok();
                        add(policy::certificate_file(&id), certificate);
                    }
                    _ => {
                        for only in [true, false] {
                            for (name, output) in metrics::files_of(&id.name, only) {
                                add(name, output_of(&result, output).ok());
                            }
                        }
                    }
                }
            }
        }
        written
    }

    /// Returns the tensors that the store borrowed from these files and that nothing else contains.
    ///
    /// # Errors
    ///
    /// [`StoreError::Path`] if the indexes of borrowed tensors cannot be read.
    pub fn lost_with(&self, found: &Found) -> Result<Lost, StoreError> {
        let stamps: Vec<Stamp> = found.files().map(|file| file.stamp).collect();
        let only = self.store.only_in(&stamps)?;
        let names = only
            .iter()
            .filter_map(|digest| found.groups.iter().find_map(|group| group.tensors.get(digest)));
        let names: BTreeSet<String> = names.cloned().collect();
        Ok(Lost {
            tensors: only.len() as u64,
            bytes: only.iter().map(|digest| digest.len).sum(),
            names: names.into_iter().collect(),
        })
    }

    /// Removes files that forge wrote, after it has checked their digests again. A file that changed or that a build uses is left
    /// alone. With `keep_tensors` the store copies the tensors that only a file contains before the file is removed. `go_on` is asked
    /// before each group of files, and `on_removed` gets each file that was removed.
    ///
    /// # Errors
    ///
    /// [`StoreError::Path`] if a file cannot be removed or a tensor cannot be copied. What was removed before stays removed.
    pub fn remove(
        &self,
        found: &Found,
        keep_tensors: bool,
        go_on: &dyn Fn() -> bool,
        on_removed: &mut dyn FnMut(&OwnFile),
    ) -> Result<Removed, StoreError> {
        let mut removed = Removed::default();
        if found.groups.is_empty() {
            return Ok(removed);
        }
        let _lease = self.store.lease()?;
        for group in &found.groups {
            if !go_on() {
                break;
            }
            let mut leave = |path: &Path, why: &str| {
                removed.left.push(LeftFile {
                    path: path.to_owned(),
                    why: why.to_owned(),
                });
            };
            let output = self.out.join(&group.name);
            // In the order in which a build takes them. Whoever holds one may hold it for hours.
            let mut locks = Vec::new();
            for path in [output.clone(), Target::of_output(&output).manifest] {
                locks.extend(self.store.lock_output(&path, &mut |_| {}, &|| true)?);
            }
            if locks.len() < 2 {
                leave(&output, "a build is using it");
                continue;
            }
            let mut files = Vec::with_capacity(group.files.len());
            for file in &group.files {
                match self.prove(&file.path, &[file.digest], Depth::Full(&|_| {}))? {
                    Proof::Own(file) => files.push(file),
                    _ => leave(&file.path, "it changed meanwhile"),
                }
            }
            if files.len() < group.files.len() {
                continue;
            }
            for file in &files {
                let _copied = keep_tensors.then(|| self.store.copy_only_in(&file.stamp)).transpose()?;
                if fs::remove_file(&file.path)? {
                    removed.files += 1;
                    removed.bytes += file.digest.len;
                    on_removed(file);
                }
                // The order holds even if the machine stops now.
                fs::sync_dir(self.out)?;
            }
        }
        Ok(removed)
    }
}

fn name_of(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}
