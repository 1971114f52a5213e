//! The list of methods, and what is done for each of them.

use serde::Deserialize;
use serde::Serialize;

use super::budget::Budget;
use super::constraints::Constraints;
use super::interface::Chosen;
use super::interface::Inputs;
use super::interface::Material;
use super::interface::Measures;
use super::interface::PolicyDocument;
use super::interface::PolicyMethod;
use super::interface::Probing;
use super::open::Open;
use super::section::PolicySection;
use crate::engine::Capability;
use crate::syntax::id::StepId;
use crate::vocab::role::Field;

/// A method, for the reader of recipes.
pub(crate) struct MethodEntry {
    /// The word for it.
    pub(crate) name: &'static str,
    /// The line of a recipe that names it.
    pub(crate) line: &'static str,
    /// The keys that it has.
    pub(crate) keys: &'static [&'static str],
    /// Reads them.
    pub(crate) read: fn(&mut PolicySection<'_, '_, '_>) -> Option<Open<Method>>,
}

macro_rules! methods {
    ($($variant:ident = $module:ident,)*) => {
        /// How types are chosen, as a recipe has it.
        #[derive(Debug, Clone, PartialEq, Serialize)]
        #[serde(tag = "kind", rename_all = "kebab-case")]
        pub enum Method {
            $(#[doc = concat!("`method = \"", stringify!($module), "\"`: see [`super::", stringify!($module), "`].")]
            $variant(Box<super::$module::Settings>),)*
        }

        /// How types are chosen, as an action's document has it.
        #[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
        #[serde(tag = "name", rename_all = "kebab-case")]
        pub enum MethodDocument {
            $(#[doc = concat!("`method = \"", stringify!($module), "\"`: see [`super::", stringify!($module), "`].")]
            $variant(Box<super::$module::Document>),)*
        }

        /// All methods, in the order in which messages list them.
        pub(crate) const METHODS: &[MethodEntry] = &[$(MethodEntry {
            name: <super::$module::Settings as PolicyMethod>::NAME,
            line: concat!("method = \"", stringify!($module), "\""),
            keys: <super::$module::Settings as PolicyMethod>::KEYS,
            read: |section| {
                let open = <super::$module::Settings as PolicyMethod>::read(section)?;
                Some(open.map(|settings| Method::$variant(Box::new(settings))))
            },
        }),*];

        impl MethodDocument {
            /// The fields of each method's document.
            pub(crate) const VARIANTS: &[(&'static str, &'static [Field])] = &[$((
                <super::$module::Settings as PolicyMethod>::NAME,
                <super::$module::Document as PolicyDocument>::FIELDS,
            )),*];

            /// Chooses by documents alone.
            ///
            /// # Errors
            ///
            /// What the document says does not fit the model, or the method runs the model.
            pub(crate) fn choose<M: Material>(&self, material: &M) -> Result<Chosen, M::Error> {
                match self {
                    $(Self::$variant(document) => document.choose(material),)*
                }
            }
        }

        impl Method {
            /// Returns everything that decides on the choice. `keep` are patterns of tensors that keep their types.
            pub(crate) fn document<I: Inputs>(&self, keep: Vec<String>, inputs: &I) -> Result<MethodDocument, I::Error> {
                match self {
                    $(Self::$variant(settings) => {
                        Ok(MethodDocument::$variant(Box::new(settings.document(keep, inputs)?)))
                    })*
                }
            }

            /// Returns the most that the file may have, if the method keeps to a budget.
            pub fn budget(&self) -> Option<&Budget> {
                match self {
                    $(Self::$variant(settings) => settings.budget(),)*
                }
            }

            /// Returns the text that the method measures on, and how much of it.
            pub fn measures(&self) -> Option<Measures<'_>> {
                match self {
                    $(Self::$variant(settings) => settings.measures(),)*
                }
            }

            /// Returns other steps whose outputs the method reads.
            pub fn references(&self) -> Vec<&StepId> {
                match self {
                    $(Self::$variant(settings) => settings.references(),)*
                }
            }

            /// Returns what an engine must be able to do.
            pub fn needs(&self) -> Vec<Capability> {
                match self {
                    $(Self::$variant(settings) => settings.needs(),)*
                }
            }

            /// Returns what bounds the choice, of a method that solves for losses.
            pub fn constraints(&self) -> Option<&Constraints> {
                match self {
                    $(Self::$variant(settings) => settings.constraints(),)*
                }
            }

            /// Returns which types of each group are measured.
            pub fn probing(&self) -> Probing {
                match self {
                    $(Self::$variant(settings) => settings.probing(),)*
                }
            }
        }
    };
}

methods! {
    Mix = mix,
    Manual = manual,
    Ashq1 = ashq1,
    Density = density,
    Prior = prior,
    Measured = measured,
    Boost = boost,
    Error = error,
    Fisher = fisher,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_method_has_one_name() {
        for (method, (tag, _)) in METHODS.iter().zip(MethodDocument::VARIANTS) {
            assert_eq!(method.line, format!("method = \"{}\"", method.name));
            assert_eq!(*tag, method.name);
            let none = format!("{{\"name\":\"{tag}\"}}");
            let error = serde_json::from_str::<MethodDocument>(&none).unwrap_err().to_string();
            assert!(error.contains("missing field"), "{error}");
        }
    }
}
