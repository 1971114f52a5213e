//! Texts as tokens.

use super::ActionOutputs;
use super::Context;
use super::SourceFile;
use super::StepError;
use super::Work;
use super::blocks::encode;
use super::documents::TEXT_CAP;
use crate::action::Tokens;
use crate::digest::Fingerprint;
use crate::fs;

impl Tokens {
    fn texts(&self, context: &Context<'_>) -> Result<Vec<SourceFile>, StepError> {
        let located = context.located();
        let files = self.texts.iter().map(|digest| located.file(digest).cloned());
        files.collect()
    }
}

impl Work for Tokens {
    fn reads(&self, context: &Context<'_>) -> Result<Vec<SourceFile>, StepError> {
        let located = context.located();
        let mut files = self.texts(context)?;
        files.extend_from_slice(&located.with_tokenizer(&self.tokenizer)?.files);
        Ok(files)
    }

    fn evaluator(&self) -> Option<Fingerprint> {
        Some(self.engine)
    }

    fn run(&self, context: &Context<'_>) -> Result<ActionOutputs, StepError> {
        let text = read_texts(&self.texts(context)?)?;
        let located = context.located();
        let model = located.with_tokenizer(&self.tokenizer)?;
        context.with_tokenizer(self.engine, model, |tokenizer| {
            let tokens = tokenizer
                .tokenize(&text, self.parse_special)
                .map_err(StepError::engine("tokenizing the corpus"))?;
            let mut made = ActionOutputs::default();
            made.output(Self::TOKENS, context.store().put(&encode(&tokens))?);
            made.fact(Self::COUNT, tokens.len());
            made.fact(Self::BOS, tokenizer.first_token().unwrap_or(-1));
            Ok(made)
        })
    }
}

fn read_texts(files: &[SourceFile]) -> Result<String, StepError> {
    let mut text = String::new();
    for file in files {
        let bytes = fs::read_open(&file.open()?, &file.path, TEXT_CAP)?;
        let piece = String::from_utf8(bytes).map_err(|_| StepError::SourceChanged {
            path: file.path.clone(),
        })?;
        text.push_str(&piece);
    }
    Ok(text)
}
