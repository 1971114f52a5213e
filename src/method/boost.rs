//! `method = "boost"`: a mix, or one type, and a better type for families of tensors in a few layers.

use std::collections::BTreeSet;

use serde::Deserialize;
use serde::Serialize;

use super::interface::Chosen;
use super::interface::Inputs;
use super::interface::Material;
use super::interface::PolicyDocument;
use super::interface::PolicyMethod;
use super::manual;
use super::mix;
use super::open::Open;
use super::problem::MethodError;
use super::rules::RuleDocument;
use super::rules::type_of;
use super::section::PolicySection;
use crate::digest::BlobDigest;
use crate::mix::Mix;
use crate::policy;
use crate::policy::Boost;
use crate::policy::Energies;
use crate::policy::Family;
use crate::policy::Ranking;
use crate::syntax::error::RecipeError;
use crate::syntax::field::Field as KeyField;
use crate::syntax::id::StepId;
use crate::syntax::id::StepKind;
use crate::syntax::raw::RawValue;
use crate::syntax::raw::inside;
use crate::syntax::shared::mixes_need_data;
use crate::syntax::shared::number;
use crate::syntax::shared::word_of;
use crate::syntax::sweep::Sweep;
use crate::tensor_type::TensorType;
use crate::vocab::inputs::IMATRICES;
use crate::vocab::inputs::JOINED;
use crate::vocab::role::Field;
use crate::vocab::role::Role::Input;
use crate::vocab::role::Role::OneOf;
use crate::vocab::role::Role::Setting;
use crate::vocab::role::field;

/// No model has more layers.
const MAX_LAYERS: u32 = 512;

const LAYERS: &str = "numbers of layers (`[0, 7]`, `\"0-3,7\"`) or how many (`\"auto:6\"`)";

/// What `families` can name.
const FAMILIES: &[&str] = &[
    Family::Gate.as_str(),
    Family::Up.as_str(),
    Family::Down.as_str(),
    Family::Shared.as_str(),
    Family::Attention.as_str(),
];

/// The families if a recipe names none.
const USUAL: [Family; 3] = [Family::Gate, Family::Up, Family::Down];

/// What `ranking` can be.
const RANKINGS: &[&str] = &[
    Ranking::Energy.as_str(),
    Ranking::Contrast.as_str(),
    Ranking::Sensitivity.as_str(),
];

/// The settings of a recipe.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Settings {
    /// What every tensor gets first.
    pub base: Base,
    /// Which layers are boosted.
    pub layers: Layers,
    /// Families of tensors.
    pub families: Vec<Family>,
    /// Their better type.
    pub promotion: TensorType,
}

/// What every tensor gets before some are boosted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Base {
    /// What a mix gives it.
    Mix(Mix),
    /// One type.
    Type(TensorType),
}

/// Which layers are boosted.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Layers {
    /// These, ascending.
    Listed(Vec<u32>),
    /// Those that the policy's importance data rank highest.
    Ranked {
        /// How many.
        count: u32,
        /// How they are ranked.
        ranking: Ranking,
        /// Importances of other texts, for `contrast`.
        baseline: Option<StepId>,
    },
}

/// The settings and inputs of an action.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Document {
    /// What every tensor gets first.
    pub base: BaseDocument,
    /// Which layers.
    pub layers: LayersDocument,
    /// Families of tensors.
    pub families: Vec<Family>,
    /// The better type.
    pub promotion: String,
    /// Patterns of tensors that keep the source's type.
    pub keep: Vec<String>,
}

/// What every tensor gets first, as documents have it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum BaseDocument {
    /// One of llama.cpp's mixes.
    Mix {
        /// Its name, as llama.cpp spells it.
        mix: String,
    },
    /// One type.
    Type {
        /// Its name.
        to: String,
    },
}

/// Which layers are boosted, as documents have it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum LayersDocument {
    /// These.
    Listed {
        /// Their numbers, ascending.
        layers: Vec<u32>,
    },
    /// Those that an imatrix ranks highest.
    Ranked {
        /// How many.
        count: u32,
        /// How they are ranked.
        ranking: Ranking,
        /// The importances.
        imatrix: BlobDigest,
        /// Those of other texts, where layers are ranked by what differs.
        baseline: Option<BlobDigest>,
    },
}

impl PolicyMethod for Settings {
    const NAME: &'static str = "boost";
    const KEYS: &'static [&'static str] = &["mix", "base", "promotion", "layers", "ranking", "baseline", "families"];
    type Document = Document;

    fn read(section: &mut PolicySection<'_, '_, '_>) -> Option<Open<Self>> {
        let base = bases(section);
        let reader = &mut *section.reader;
        reader.need("promotion", "promotion = \"Q6_K\"");
        let name = |ty: &TensorType| ty.name().to_owned();
        let promotion = reader.sweep("promotion", name, |field| field.tensor_type());
        let families = if reader.has("families") {
            let families = reader.list("families", "a list of families", |field| {
                word_of(&field, "a family of tensors", FAMILIES)
            });
            let family = |(name, _): (&str, _)| Family::from_name(name);
            families.map(|families| families.into_iter().filter_map(family).collect())
        } else {
            Some(USUAL.to_vec())
        };
        let layers = layers(section);
        let (layers, base, promotion, families) = (layers?, base?, promotion?, families?);
        let reader = &mut *section.reader;
        match &base {
            Bases::Mix(mix) => reader.put("mix", mix.to_toml(|mix| toml::Value::from(mix.name()))),
            Bases::Type(ty) => reader.put("base", ty.to_toml(|ty| toml::Value::from(ty.name()))),
        }
        reader.put("promotion", promotion.to_toml(|ty| toml::Value::from(ty.name())));
        layers.put(section);
        let list: Vec<_> = families
            .iter()
            .map(|family| toml::Value::from(family.as_str()))
            .collect();
        section.reader.put("families", list);
        let base = match base {
            Bases::Mix(mix) => Open::values(mix, |mix| mix.name().to_owned()).map(Base::Mix),
            Bases::Type(ty) => Open::values(ty, |ty| ty.name().to_owned()).map(Base::Type),
        };
        let promotion = Open::values(promotion, |ty| ty.name().to_owned());
        let layers = layers.variants(section);
        Some(
            base.and(promotion)
                .and(layers)
                .map(move |((base, promotion), layers)| Self {
                    base,
                    layers,
                    families: families.clone(),
                    promotion,
                }),
        )
    }

    fn document<I: Inputs>(&self, keep: Vec<String>, inputs: &I) -> Result<Document, I::Error> {
        Ok(Document {
            base: match self.base {
                Base::Mix(mix) => BaseDocument::Mix {
                    mix: mix.name().to_owned(),
                },
                Base::Type(ty) => BaseDocument::Type {
                    to: ty.name().to_owned(),
                },
            },
            layers: match &self.layers {
                Layers::Listed(layers) => LayersDocument::Listed { layers: layers.clone() },
                Layers::Ranked {
                    count,
                    ranking,
                    baseline,
                } => LayersDocument::Ranked {
                    count: *count,
                    ranking: *ranking,
                    imatrix: inputs.needed_imatrix(Self::NAME)?,
                    baseline: baseline.as_ref().map(|step| inputs.imatrix_of(step)).transpose()?,
                },
            },
            families: self.families.clone(),
            promotion: self.promotion.name().to_owned(),
            keep,
        })
    }

    fn references(&self) -> Vec<&StepId> {
        match &self.layers {
            Layers::Listed(_) => Vec::new(),
            Layers::Ranked { baseline, .. } => baseline.iter().collect(),
        }
    }
}

impl PolicyDocument for Document {
    const FIELDS: &'static [Field] = &[
        field(
            "base",
            OneOf {
                tag: "kind",
                variants: &[("mix", &[field("mix", Setting)]), ("type", &[field("to", Setting)])],
            },
        ),
        field(
            "layers",
            OneOf {
                tag: "kind",
                variants: &[
                    ("listed", &[field("layers", Setting)]),
                    (
                        "ranked",
                        &[
                            field("count", Setting),
                            field("ranking", Setting),
                            field("imatrix", Input(JOINED)),
                            field("baseline", Input(IMATRICES)),
                        ],
                    ),
                ],
            },
        ),
        field("families", Setting),
        field("promotion", Setting),
        field("keep", Setting),
    ];

    fn choose<M: Material>(&self, material: &M) -> Result<Chosen, M::Error> {
        let (facts, has) = (material.facts(), material.has_imatrix());
        let base = match &self.base {
            BaseDocument::Mix { mix } => {
                let mix = mix::Document {
                    mix: mix.clone(),
                    pure: false,
                    output_type: None,
                    embedding_type: None,
                    keep: self.keep.clone(),
                };
                mix.choose(material)?
            }
            BaseDocument::Type { to } => {
                let rules = manual::Document {
                    rules: self.keep.iter().map(|pattern| RuleDocument::keep(pattern)).collect(),
                    otherwise: Some(to.clone()),
                };
                rules.choose(material)?
            }
        };
        let layers = match &self.layers {
            LayersDocument::Listed { layers } => layers.iter().copied().collect(),
            LayersDocument::Ranked {
                count,
                ranking,
                imatrix,
                baseline,
            } => {
                let domain = material.covered_energies(*imatrix)?;
                let baseline = match baseline {
                    Some(baseline) => material.energies(*baseline)?,
                    None => Energies::new(),
                };
                let ranked = policy::rank_layers(facts, &self.families, *ranking, &domain, &baseline);
                let ranked = ranked.map_err(MethodError::from)?;
                let first = ranked.iter().take(*count as usize).map(|(layer, _)| *layer);
                first.collect::<BTreeSet<u32>>()
            }
        };
        let options = Boost {
            layers: &layers,
            families: &self.families,
            promotion: type_of(&self.promotion)?,
        };
        let table = policy::boost(facts, base.table, &options, has).map_err(MethodError::from)?;
        Ok(Chosen {
            file_type: base.file_type.or_else(|| Some(table.file_type())),
            ..Chosen::of(table)
        })
    }
}

/// What every tensor gets first, as it is written.
enum Bases {
    Mix(Sweep<Mix>),
    Type(Sweep<TensorType>),
}

/// Reads the mix or the type that every tensor gets first: one of the two keys.
fn bases(section: &mut PolicySection<'_, '_, '_>) -> Option<Bases> {
    let reader = &mut *section.reader;
    if reader.conflict("mix", "base") {
        return None;
    }
    if reader.has("base") {
        let name = |ty: &TensorType| ty.name().to_owned();
        return reader.sweep("base", name, |field| field.tensor_type()).map(Bases::Type);
    }
    reader.need("mix", "mix = \"Q4_K_M\"");
    let mix = reader.sweep("mix", |mix: &Mix| mix.name().to_owned(), |field| field.mix())?;
    if !section.has_imatrix {
        mixes_need_data(reader, &mix, section.names);
    }
    Some(Bases::Mix(mix))
}

/// Layers as they are written.
enum WrittenLayers {
    Listed(BTreeSet<u32>),
    Ranked {
        count: u32,
        ranking: Ranking,
        baseline: Option<String>,
    },
}

impl WrittenLayers {
    /// Notes them for the resolved recipe.
    fn put(&self, section: &mut PolicySection<'_, '_, '_>) {
        let reader = &mut *section.reader;
        match self {
            Self::Listed(layers) => {
                let list: Vec<_> = layers.iter().map(|layer| number(u64::from(*layer))).collect();
                reader.put("layers", list);
            }
            Self::Ranked {
                count,
                ranking,
                baseline,
            } => {
                reader.put("layers", format!("auto:{count}"));
                reader.put("ranking", ranking.as_str());
                if let Some(baseline) = baseline {
                    reader.put("baseline", baseline.as_str());
                }
            }
        }
    }

    /// Returns the layers of each variant: one for each imatrix that the baseline may be.
    fn variants(self, section: &PolicySection<'_, '_, '_>) -> Open<Layers> {
        let (count, ranking, baseline) = match self {
            Self::Listed(layers) => return Open::one(Layers::Listed(layers.into_iter().collect())),
            Self::Ranked {
                count,
                ranking,
                baseline,
            } => (count, ranking, baseline),
        };
        let baseline = match baseline {
            Some(name) => Open::step(StepKind::Imatrix, name, &section.reader.head).map(Some),
            None => Open::one(None),
        };
        baseline.map(move |baseline| Layers::Ranked {
            count,
            ranking,
            baseline,
        })
    }
}

/// Reads which layers are boosted, and how they are ranked.
fn layers(section: &mut PolicySection<'_, '_, '_>) -> Option<WrittenLayers> {
    section.reader.need("layers", "layers = \"auto:6\"");
    let layers = section.reader.read("layers", layers_of);
    let layers_place = section.place_of("layers");
    let ranking = section
        .reader
        .read("ranking", |field| word_of(&field, "a ranking of layers", RANKINGS));
    let ranking_place = section.place_of("ranking");
    let words = section.reader.words.clone();
    let names = section.names;
    let baseline = section.reader.read("baseline", |field| {
        names.reference(field, "imatrix", "an imatrix", &words)
    });
    match layers? {
        LayersKey::Listed(layers) => {
            let keys = ["ranking", "baseline"];
            section
                .reader
                .misplaced(&keys, "`layers = \"auto:N\"`", layers_place.as_ref());
            Some(WrittenLayers::Listed(layers))
        }
        LayersKey::Auto(count) => {
            section.needs_imatrix(layers_place.as_ref());
            let ranking = match ranking_place {
                Some(_) => Ranking::from_name(ranking?)?,
                None => Ranking::Energy,
            };
            let reader = &mut *section.reader;
            if ranking != Ranking::Contrast {
                reader.misplaced(&["baseline"], "`ranking = \"contrast\"`", ranking_place.as_ref());
            } else if !reader.has("baseline") {
                reader.errors.push(RecipeError::MissingKey {
                    place: reader.head.clone(),
                    section: reader.words.clone(),
                    key: "baseline",
                    example: "baseline = \"NAME\"",
                    because: ranking_place,
                });
            }
            Some(WrittenLayers::Ranked {
                count,
                ranking,
                baseline,
            })
        }
    }
}

/// The value of `layers`.
enum LayersKey {
    Listed(BTreeSet<u32>),
    Auto(u32),
}

/// Reads layers: a list of numbers, a text of numbers and ranges, or how many are to be taken.
fn layers_of(field: KeyField<'_>) -> Result<LayersKey, RecipeError> {
    if let RawValue::Array(values) = &field.raw.value {
        if values.is_empty() {
            return Err(RecipeError::EmptyList {
                place: field.place(),
                key: field.key.to_owned(),
            });
        }
        let number = |raw| KeyField { key: field.key, raw }.integer32(0..=MAX_LAYERS - 1);
        return values
            .iter()
            .map(number)
            .collect::<Result<_, _>>()
            .map(LayersKey::Listed);
    }
    let text = field.string(LAYERS)?;
    let wrong = |part: &str, expected: &str| {
        let at = part.as_ptr() as usize - text.as_ptr() as usize;
        RecipeError::OutOfRange {
            place: inside(&field.raw.place, text, at..at + part.len()),
            key: field.key.to_owned(),
            expected: expected.to_owned(),
            found: format!("`{part}`"),
        }
    };
    if let Some(count) = text.strip_prefix("auto:") {
        let number = count
            .trim()
            .parse()
            .ok()
            .filter(|number| (1..=MAX_LAYERS).contains(number));
        return number
            .map(LayersKey::Auto)
            .ok_or_else(|| wrong(count, &format!("`auto:` and a number from 1 to {MAX_LAYERS}")));
    }
    let number = |text: &str| text.trim().parse::<u32>().ok().filter(|number| *number < MAX_LAYERS);
    let mut layers = BTreeSet::new();
    for part in text.split(',') {
        let range = match part.split_once('-') {
            Some((first, last)) => number(first).zip(number(last)).filter(|(first, last)| first <= last),
            None => number(part).map(|number| (number, number)),
        };
        let Some((first, last)) = range else {
            return Err(wrong(part, LAYERS));
        };
        layers.extend(first..=last);
    }
    Ok(LayersKey::Listed(layers))
}
