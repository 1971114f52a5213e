//! `method = "mix"`: the types that one of llama.cpp's mixes gives.

use serde::Deserialize;
use serde::Serialize;

use super::interface::Chosen;
use super::interface::Inputs;
use super::interface::Material;
use super::interface::PolicyDocument;
use super::interface::PolicyMethod;
use super::open::Open;
use super::problem::MethodError;
use super::rules::kept;
use super::rules::type_of;
use super::section::PolicySection;
use crate::mix::Mix;
use crate::policy;
use crate::policy::MixOptions;
use crate::syntax::shared::mixes_need_data;
use crate::syntax::sweep::flag;
use crate::tensor_type::TensorType;
use crate::vocab::role::Field;
use crate::vocab::role::Role::Setting;
use crate::vocab::role::field;

/// The settings of a recipe.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Settings {
    /// Which mix.
    pub mix: Mix,
    /// Whether all tensors take the mix's base type.
    pub pure: bool,
    /// The type of the output tensor, if not the mix's.
    pub output_type: Option<TensorType>,
    /// The type of the token embedding, if not the mix's.
    pub embedding_type: Option<TensorType>,
}

/// The settings of an action.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Document {
    /// Its name, as llama.cpp spells it.
    pub mix: String,
    /// No mix, one type.
    pub pure: bool,
    /// The type of the output tensor.
    pub output_type: Option<String>,
    /// The type of the token embedding.
    pub embedding_type: Option<String>,
    /// Patterns of tensors that keep the source's type.
    pub keep: Vec<String>,
}

impl PolicyMethod for Settings {
    const NAME: &'static str = "mix";
    const KEYS: &'static [&'static str] = &["mix", "pure", "output_type", "embedding_type"];
    type Document = Document;

    fn read(section: &mut PolicySection<'_, '_, '_>) -> Option<Open<Self>> {
        section.reader.need("mix", "mix = \"Q4_K_M\"");
        let mix = section
            .reader
            .sweep("mix", |mix: &Mix| mix.name().to_owned(), |field| field.mix());
        let pure = section.switches("pure");
        let (has_imatrix, names, reader) = (section.has_imatrix, section.names, &mut *section.reader);
        let mut types = |key| {
            let name = |ty: &TensorType| ty.name().to_owned();
            reader.sweep(key, name, |field| field.tensor_type())
        };
        let (output_type, embedding_type) = (types("output_type"), types("embedding_type"));
        let (mix, pure) = (mix?, pure?);
        if !has_imatrix {
            mixes_need_data(reader, &mix, names);
        }
        reader.put("mix", mix.to_toml(|mix| toml::Value::from(mix.name())));
        reader.put("pure", pure.to_toml(|value| toml::Value::from(*value)));
        for (key, types) in [("output_type", &output_type), ("embedding_type", &embedding_type)] {
            if let Some(types) = types {
                reader.put(key, types.to_toml(|ty| toml::Value::from(ty.name())));
            }
        }
        let open = Open::values(mix, |mix| mix.name().to_owned())
            .and(Open::values(pure, flag("pure")))
            .and(Open::optional(output_type, |ty| format!("output-{}", ty.name())))
            .and(Open::optional(embedding_type, |ty| format!("embedding-{}", ty.name())));
        Some(open.map(|(((mix, pure), output_type), embedding_type)| Self {
            mix,
            pure,
            output_type,
            embedding_type,
        }))
    }

    fn document<I: Inputs>(&self, keep: Vec<String>, _inputs: &I) -> Result<Document, I::Error> {
        Ok(Document {
            mix: self.mix.name().to_owned(),
            pure: self.pure,
            output_type: self.output_type.map(|ty| ty.name().to_owned()),
            embedding_type: self.embedding_type.map(|ty| ty.name().to_owned()),
            keep,
        })
    }
}

impl PolicyDocument for Document {
    const FIELDS: &'static [Field] = &[
        field("mix", Setting),
        field("pure", Setting),
        field("output_type", Setting),
        field("embedding_type", Setting),
        field("keep", Setting),
    ];

    fn choose<M: Material>(&self, material: &M) -> Result<Chosen, M::Error> {
        let missing = || MethodError::new(format!("llama.cpp has no mix `{}`", self.mix));
        let mix = Mix::from_name(&self.mix).ok_or_else(missing)?;
        let options = MixOptions {
            pure: self.pure,
            output_type: self.output_type.as_deref().map(type_of).transpose()?,
            embedding_type: self.embedding_type.as_deref().map(type_of).transpose()?,
            rules: kept(&self.keep)?,
            // Whether quantized tensors may be quantized again is for promote to say, of the tensors that really change.
            allow_requantize: true,
        };
        let facts = material.facts();
        let table = policy::mix(facts, mix, &options, material.has_imatrix()).map_err(MethodError::from)?;
        Ok(Chosen {
            file_type: mix.default_type().map(|_| policy::file_type_of(mix, facts)),
            ..Chosen::of(table)
        })
    }
}
