//! `method = "manual"`: the user's own rules; the first that matches wins.

use serde::Deserialize;
use serde::Serialize;

use super::interface::Chosen;
use super::interface::Inputs;
use super::interface::Material;
use super::interface::PolicyDocument;
use super::interface::PolicyMethod;
use super::open::Open;
use super::problem::MethodError;
use super::rules;
use super::rules::Rule;
use super::rules::RuleDocument;
use super::rules::RuleType;
use super::rules::documents_of;
use super::rules::put_rules;
use super::rules::rule_type;
use super::rules::rules_of;
use super::rules::target_of;
use super::section::PolicySection;
use crate::policy;
use crate::policy::ManualOptions;
use crate::vocab::role::Field;
use crate::vocab::role::Role::Setting;
use crate::vocab::role::field;

/// The settings of a recipe.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Settings {
    /// The rules, in order.
    pub rules: Vec<Rule>,
    /// The type of tensors that no rule matches; when absent, such a quantizable tensor is an error.
    pub otherwise: Option<RuleType>,
}

/// The settings of an action.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Document {
    /// The rules, in order.
    pub rules: Vec<RuleDocument>,
    /// What tensors get that no rule matches; without it they are an error.
    pub otherwise: Option<String>,
}

impl PolicyMethod for Settings {
    const NAME: &'static str = "manual";
    const KEYS: &'static [&'static str] = &["rules", "otherwise"];
    type Document = Document;

    fn read(section: &mut PolicySection<'_, '_, '_>) -> Option<Open<Self>> {
        let reader = &mut *section.reader;
        if !reader.has("rules") && !reader.has("otherwise") {
            reader.need("rules", "rules = [{ match = \"ffn_down\", type = \"Q6_K\" }]");
        }
        let rules = rules::read(reader, "rules", rule_type);
        let otherwise = reader.sweep("otherwise", |to| to.as_str().to_owned(), rule_type);
        let rules = rules?;
        put_rules(reader, "rules", &rules);
        if let Some(otherwise) = &otherwise {
            reader.put("otherwise", otherwise.to_toml(|to| toml::Value::from(to.as_str())));
        }
        let open = Open::optional(otherwise, |to| format!("otherwise-{}", to.as_str()));
        Some(open.map(move |otherwise| Self {
            rules: rules.clone(),
            otherwise,
        }))
    }

    fn document<I: Inputs>(&self, keep: Vec<String>, _inputs: &I) -> Result<Document, I::Error> {
        // What is kept comes before every rule: it is a rule itself.
        let kept = keep.iter().map(|pattern| RuleDocument::keep(pattern));
        Ok(Document {
            rules: kept.chain(documents_of(&self.rules)).collect(),
            otherwise: self.otherwise.map(|otherwise| otherwise.as_str().to_owned()),
        })
    }
}

impl PolicyDocument for Document {
    const FIELDS: &'static [Field] = &[field("rules", RuleDocument::ROLE), field("otherwise", Setting)];

    fn choose<M: Material>(&self, material: &M) -> Result<Chosen, M::Error> {
        let options = ManualOptions {
            otherwise: self.otherwise.as_deref().map(target_of).transpose()?,
            // Whether quantized tensors may be quantized again is for promote to say, of the tensors that really change.
            allow_requantize: true,
        };
        let rules = rules_of(&self.rules)?;
        let table = policy::manual(material.facts(), &rules, options, material.has_imatrix());
        Ok(Chosen::of(table.map_err(MethodError::from)?))
    }
}
