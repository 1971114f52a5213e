//! Words evaluations on text that candidates were calibrated on.

use std::path::PathBuf;

use super::Diagnostic;
use super::Label;
use crate::prose;
use crate::session::overlap::CommonText;
use crate::session::overlap::Declared;
use crate::session::overlap::Overlap;

/// How many pairs of equal files are named.
const LISTED: usize = 3;

impl Diagnostic {
    /// Words overlaps of texts, one error for each evaluation and corpus.
    pub fn overlaps(overlaps: &[Overlap]) -> Vec<Self> {
        overlaps.iter().map(Self::overlap).collect()
    }

    fn overlap(overlap: &Overlap) -> Self {
        let Overlap {
            eval,
            corpus,
            calibration,
            uses,
            candidates,
            what,
        } = overlap;
        let uses: Vec<&str> = uses.iter().map(|calibration_use| calibration_use.as_str()).collect();
        let mut error = Self::error(format!(
            "`eval.{}` uses text that candidates were calibrated on: {}",
            eval.name,
            match what {
                CommonText::SameCorpus => format!("the corpus `{}`", corpus.name),
                _ => format!("`{}` overlaps with `{}`", corpus.name, calibration.name),
            }
        ));
        error = error.code("recipe::eval-on-calibration");
        for cause in causes(what) {
            error = error.caused_by(cause);
        }
        error = error.caused_by(format!(
            "the {} of {} {} `{}`",
            uses.join(" and the "),
            prose::names(candidates, LISTED),
            if uses == ["imatrix"] || uses == ["policy"] {
                "uses"
            } else {
                "use"
            },
            calibration.name,
        ));
        let label = |declared: &Declared, text: String| Label {
            place: declared.place.clone(),
            text,
        };
        error.primary = Some(label(eval, format!("evaluates on `{}`", corpus.name)));
        error
            .context
            .push(label(corpus, "the text of the evaluation".to_owned()));
        if *what != CommonText::SameCorpus {
            error
                .context
                .push(label(calibration, "the text of the calibration".to_owned()));
        }
        error
            .hint("evaluate on text that was not used to make the candidates; on this text their figures look too good")
            .hint(format!(
                "to evaluate on it all the same, set `allow_overlap = true` in `[eval.{}]`; forge marks the figures",
                eval.name
            ))
    }
}

fn causes(what: &CommonText) -> Vec<String> {
    let of = |[evaluation, calibration]: &[PathBuf; 2]| {
        (evaluation.display().to_string(), calibration.display().to_string())
    };
    match what {
        CommonText::SameCorpus => Vec::new(),
        CommonText::SameFiles(files) => {
            let mut causes: Vec<String> = files
                .iter()
                .take(LISTED)
                .map(|files| match of(files) {
                    (evaluation, calibration) if evaluation == calibration => format!("both contain `{evaluation}`"),
                    (evaluation, calibration) => format!("`{evaluation}` has the same content as `{calibration}`"),
                })
                .collect();
            if files.len() > LISTED {
                let more = prose::count((files.len() - LISTED) as u64, "more file");
                causes.push(format!("and {more} that both contain"));
            }
            causes
        }
        CommonText::Share { share, files } => {
            let (evaluation, calibration) = of(files);
            let percent = f64::from(*share) / 10.0;
            vec![format!("{percent:.1} % of `{evaluation}` is also in `{calibration}`")]
        }
        CommonText::Passage { words, begins, files } => {
            let (evaluation, calibration) = of(files);
            vec![format!(
                "`{evaluation}` and `{calibration}` share a passage of {words} words that begins \"{begins}\""
            )]
        }
    }
}
