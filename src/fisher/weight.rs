//! All factors of a weight, and of the weights of a model.

use std::collections::BTreeMap;

use super::InputSums;
use super::LookupFactors;
use super::OutputFactors;
use super::file::FactorsError;
use super::file::Reader;
use super::file::Writer;

/// What files begin with.
const WEIGHT: &[u8; 16] = b"forge-fisher-w1\n";
const MODEL: &[u8; 16] = b"forge-fisher-m1\n";

/// The factors of a weight that is multiplied with.
#[derive(Debug, Clone, PartialEq)]
pub struct ProductFactors {
    /// Of its outputs.
    pub outputs: OutputFactors,
    /// Of its inputs.
    pub inputs: InputSums,
}

/// The factors of a weight. An embedding that also computes the logits has both.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct WeightFactors {
    /// If it is multiplied with.
    pub product: Option<ProductFactors>,
    /// If its rows are looked up.
    pub lookup: Option<LookupFactors>,
}

/// Adds what two of a kind have, or takes what one of them has.
fn merge<T: Clone>(
    own: &mut Option<T>,
    other: Option<&T>,
    add: impl FnOnce(&mut T, &T) -> Result<(), FactorsError>,
) -> Result<(), FactorsError> {
    match (own, other) {
        (Some(own), Some(other)) => add(own, other),
        (own @ None, other) => {
            *own = other.cloned();
            Ok(())
        }
        (Some(_), None) => Ok(()),
    }
}

impl WeightFactors {
    /// Counts tokens that labels were sampled at, whether or not they used this weight.
    pub fn add_tokens(&mut self, tokens: u64) {
        if let Some(product) = &mut self.product {
            product.outputs.add_tokens(tokens);
        }
    }

    /// Adds the factors over other tokens.
    ///
    /// # Errors
    ///
    /// [`FactorsError::Shape`] for those of another shape.
    pub fn merge(&mut self, other: &Self) -> Result<(), FactorsError> {
        merge(&mut self.product, other.product.as_ref(), |own, other| {
            own.outputs.merge(&other.outputs)?;
            own.inputs.merge(&other.inputs)
        })?;
        merge(&mut self.lookup, other.lookup.as_ref(), LookupFactors::merge)
    }

    /// Returns the factors as a file.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut writer = Writer::new(WEIGHT);
        let product = self.product.as_ref();
        writer.part(product.map(|product| product.outputs.to_bytes()).as_deref());
        writer.part(product.map(|product| product.inputs.to_bytes()).as_deref());
        writer.part(self.lookup.as_ref().map(LookupFactors::to_bytes).as_deref());
        writer.finish()
    }

    /// Reads a file.
    ///
    /// # Errors
    ///
    /// [`FactorsError`].
    pub fn parse(bytes: &[u8]) -> Result<Self, FactorsError> {
        let mut reader = Reader::new(bytes, WEIGHT)?;
        let (outputs, inputs, lookup) = (reader.part()?, reader.part()?, reader.part()?);
        reader.end()?;
        let product = match (outputs, inputs) {
            (Some(outputs), Some(inputs)) => Some(ProductFactors {
                outputs: OutputFactors::parse(outputs)?,
                inputs: InputSums::parse(inputs)?,
            }),
            (None, None) => None,
            _ => return Err(FactorsError::Shape),
        };
        Ok(Self {
            product,
            lookup: lookup.map(LookupFactors::parse).transpose()?,
        })
    }
}

/// The factors of the weights of a model, by the weights' names.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct ModelFactors {
    /// By name.
    pub weights: BTreeMap<String, WeightFactors>,
}

impl ModelFactors {
    /// Adds the factors over other tokens.
    ///
    /// # Errors
    ///
    /// [`FactorsError::Shape`] for those of another model.
    pub fn merge(&mut self, other: &Self) -> Result<(), FactorsError> {
        if self.weights.keys().ne(other.weights.keys()) {
            return Err(FactorsError::Shape);
        }
        let both = self.weights.values_mut().zip(other.weights.values());
        both.into_iter().try_for_each(|(own, other)| own.merge(other))
    }

    /// Returns the factors as a file.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut writer = Writer::new(MODEL);
        writer.count(self.weights.len() as u64);
        for (name, factors) in &self.weights {
            writer.part(Some(name.as_bytes()));
            writer.part(Some(&factors.to_bytes()));
        }
        writer.finish()
    }

    /// Reads a file.
    ///
    /// # Errors
    ///
    /// [`FactorsError`].
    pub fn parse(bytes: &[u8]) -> Result<Self, FactorsError> {
        let mut reader = Reader::new(bytes, MODEL)?;
        let count = reader.count()?;
        let mut weights = BTreeMap::new();
        for _ in 0..count {
            let (Some(name), Some(factors)) = (reader.part()?, reader.part()?) else {
                return Err(FactorsError::Shape);
            };
            let name = String::from_utf8(name.to_vec()).map_err(|_| FactorsError::Shape)?;
            weights.insert(name, WeightFactors::parse(factors)?);
        }
        reader.end()?;
        Ok(Self { weights })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn factors() -> WeightFactors {
        let (mut outputs, mut inputs) = (OutputFactors::new(2, 1), InputSums::new(3, 1));
        outputs.add(0, &[1.0, 2.0]).unwrap();
        inputs.add(0, &[1.0, 2.0, 3.0]).unwrap();
        let mut lookup = LookupFactors::new(2, 3);
        lookup.add(&[1], &[1.0, 0.0, 2.0]).unwrap();
        WeightFactors {
            product: Some(ProductFactors { outputs, inputs }),
            lookup: Some(lookup),
        }
    }

    #[test]
    fn files_come_back() {
        let both = factors();
        let product = WeightFactors {
            lookup: None,
            ..both.clone()
        };
        let lookup = WeightFactors {
            product: None,
            ..both.clone()
        };
        let weights = [
            ("a", both),
            ("b", product),
            ("c", lookup),
            ("d", WeightFactors::default()),
        ];
        let model = ModelFactors {
            weights: weights.map(|(name, factors)| (name.to_owned(), factors)).into(),
        };
        let bytes = model.to_bytes();
        assert_eq!(ModelFactors::parse(&bytes), Ok(model.clone()));
        for len in 0..bytes.len() {
            assert!(ModelFactors::parse(&bytes[..len]).is_err(), "{len}");
        }
        let mut longer = bytes;
        longer.push(0);
        assert!(ModelFactors::parse(&longer).is_err());
        let mut twice = model.clone();
        twice.merge(&model).unwrap();
        let product = twice.weights["b"].product.as_ref().unwrap();
        assert_eq!(product.outputs.squares(0), Some(&[2.0, 8.0][..]));
        assert_eq!(twice.weights["c"].lookup.as_ref().unwrap().tokens(), 2);
        assert_eq!(twice.merge(&ModelFactors::default()), Err(FactorsError::Shape));
    }
}
