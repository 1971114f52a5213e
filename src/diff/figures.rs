//! The figures of two candidates: what differs, and whether that is more than chance. Figures are paired chunk by chunk; those of
//! different engines or texts are never compared.

use serde::Serialize;

use super::Paired;
use super::Part;
use super::Row;
use crate::action;
use crate::figures;
use crate::figures::Resampling;
use crate::work::Chunk;
use crate::work::Figures;

/// The confidence of the intervals.
const CONFIDENCE: f64 = 0.95;

/// A candidate in an evaluation, with its figures if they are known.
#[derive(Debug, Clone)]
pub struct Evaluation {
    /// The name of the evaluation.
    pub eval: String,
    /// The name of the candidate.
    pub candidate: String,
    /// How it was measured, and its figures chunk by chunk: if the store has them.
    pub measured: Option<Measured>,
}

/// How a candidate was measured, and its figures chunk by chunk.
#[derive(Debug, Clone)]
pub struct Measured {
    /// The action that measured.
    pub action: action::Eval,
    /// The figures.
    pub figures: Figures,
}

/// What a comparison says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    /// The second loses less, and the interval of the difference does not contain 0.
    Better,
    /// The second loses more, and the interval does not contain 0.
    Worse,
    /// The interval contains 0.
    NoDifference,
    /// Both are the same evaluation of the same candidate.
    Same,
    /// They cannot be compared.
    Unknown,
}

/// Why figures cannot be compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Unpaired {
    /// The store has no figures of the first.
    FirstMissing,
    /// The store has no figures of the second.
    SecondMissing,
    /// It has none of both.
    BothMissing,
    /// They were measured by different engines.
    OtherEngine,
    /// They were measured on different texts, with chunks of different lengths, or against different references.
    OtherText,
    /// There are fewer than two chunks that both measured.
    FewChunks,
}

/// Whether a candidate became better.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Comparison {
    /// The candidate.
    pub candidate: String,
    /// The evaluation.
    pub eval: String,
    /// What is compared: `mean KLD`, or `ln PPL` where no KLD was measured.
    pub figure: &'static str,
    /// Of the first, on the chunks that both measured if they can be paired.
    pub before: Option<f64>,
    /// Of the second.
    pub after: Option<f64>,
    /// The difference, second less first.
    pub paired: Option<Paired>,
    /// The chunks that both measured.
    pub chunks: Option<u64>,
    /// What it says.
    pub verdict: Verdict,
    /// Why they cannot be compared.
    pub unpaired: Option<Unpaired>,
}

impl Comparison {
    fn unpaired(a: &Evaluation, figures: [Option<f64>; 2], figure: &'static str, unpaired: Unpaired) -> Self {
        let [before, after] = figures;
        Self {
            candidate: a.candidate.clone(),
            eval: a.eval.clone(),
            figure,
            before,
            after,
            paired: None,
            chunks: None,
            verdict: Verdict::Unknown,
            unpaired: Some(unpaired),
        }
    }
}

/// A figure that is a mean over chunks.
struct Mean {
    name: &'static str,
    of_chunk: fn(&Chunk) -> f64,
    lower_is_better: bool,
}

const KLD: Mean = Mean {
    name: "mean KLD",
    of_chunk: |chunk| chunk.kld,
    lower_is_better: true,
};
const PPL: Mean = Mean {
    name: "ln PPL",
    of_chunk: |chunk| chunk.nll,
    lower_is_better: true,
};
const TOP1: Mean = Mean {
    name: "top-1 agreement",
    of_chunk: |chunk| chunk.top1,
    lower_is_better: false,
};

/// Two evaluations on the same chunks: those that both measured.
pub(super) struct Pair<'m> {
    a: &'m Measured,
    b: &'m Measured,
    chunks: usize,
}

impl<'m> Pair<'m> {
    /// Pairs two evaluations. One that took more chunks of the same text begins with those of the other.
    pub(super) fn of(a: &'m Measured, b: &'m Measured) -> Result<Self, Unpaired> {
        let (of_a, of_b) = (&a.action, &b.action);
        if of_a.engine != of_b.engine || of_a.codec != of_b.codec {
            return Err(Unpaired::OtherEngine);
        }
        let text = |eval: &action::Eval| (eval.reference, eval.tokenizer, eval.corpus, eval.context);
        if text(of_a) != text(of_b) {
            return Err(Unpaired::OtherText);
        }
        let chunks = a.figures.chunks.len().min(b.figures.chunks.len());
        if chunks < 2 {
            return Err(Unpaired::FewChunks);
        }
        Ok(Self { a, b, chunks })
    }

    fn has_kld(&self) -> bool {
        self.a.figures.divergence.is_some() && self.b.figures.divergence.is_some()
    }

    fn values(&self, measured: &Measured, mean: &Mean) -> Vec<f64> {
        let chunks = measured.figures.chunks.iter().take(self.chunks);
        chunks.map(mean.of_chunk).collect()
    }

    fn means(&self, mean: &Mean) -> [f64; 2] {
        [self.a, self.b].map(|measured| self.values(measured, mean).iter().sum::<f64>() / self.chunks as f64)
    }

    fn paired(&self, mean: &Mean) -> Option<Paired> {
        let resampling = Resampling {
            resamples: self.a.action.bootstrap,
            seed: self.a.action.seed,
            confidence: CONFIDENCE,
        };
        let (of_a, of_b) = (self.values(self.a, mean), self.values(self.b, mean));
        let found = figures::paired_difference(&of_b, &of_a, &resampling).ok()?;
        Some(Paired {
            value: found.value,
            ci95: [found.low, found.high],
        })
    }

    /// Returns a row for each mean that differs; `of` is what was measured.
    pub(super) fn rows(&self, of: &str) -> Vec<Row> {
        let means: &[Mean] = if self.has_kld() { &[KLD, PPL, TOP1] } else { &[PPL] };
        let rows = means.iter().filter_map(|mean| {
            let [before, after] = self.means(mean).map(|value| Some(format!("{value:.6}")));
            let paired = self.paired(mean);
            let row = Row::of(before, after)?;
            let note = paired.map(|paired| match verdict(&paired, mean) {
                Verdict::Better => "better",
                Verdict::Worse => "worse",
                _ => "no significant difference",
            });
            Some(Row {
                what: format!("{}, {of}", mean.name),
                note: note.map(str::to_owned),
                paired,
                ..row
            })
        });
        rows.collect()
    }
}

fn verdict(paired: &Paired, mean: &Mean) -> Verdict {
    match paired.ci95 {
        [low, high] if low <= 0.0 && high >= 0.0 => Verdict::NoDifference,
        [low, _] if (low > 0.0) == mean.lower_is_better => Verdict::Worse,
        _ => Verdict::Better,
    }
}

/// Compares the candidates that are in both, evaluation by evaluation.
pub(super) fn compare(a: &[Evaluation], b: &[Evaluation]) -> (Part, Vec<Comparison>) {
    let mut part = Part::new("figures");
    let mut comparisons = Vec::new();
    for of_a in a {
        let twin = |of_b: &&Evaluation| (&of_b.eval, &of_b.candidate) == (&of_a.eval, &of_a.candidate);
        let Some(of_b) = b.iter().find(twin) else { continue };
        let comparison = comparison(of_a, of_b);
        if comparison.verdict == Verdict::Same {
            part.same += 1;
        }
        if let (Some(measured_a), Some(measured_b)) = (&of_a.measured, &of_b.measured)
            && let Ok(pair) = Pair::of(measured_a, measured_b)
        {
            for row in pair.rows(&format!("{} of {}", of_a.eval, of_a.candidate)) {
                part.push(row);
            }
        }
        comparisons.push(comparison);
    }
    (part, comparisons)
}

fn comparison(a: &Evaluation, b: &Evaluation) -> Comparison {
    let single = |measured: &Option<Measured>| {
        let figures = &measured.as_ref()?.figures;
        let kld = figures.divergence.as_ref().map(|divergence| divergence.kld_mean.value);
        Some((kld, figures.ppl.value.ln()))
    };
    let (of_a, of_b) = (single(&a.measured), single(&b.measured));
    let measures_kld = |of: &Option<(Option<f64>, f64)>| of.is_none_or(|(kld, _)| kld.is_some());
    let mean = if measures_kld(&of_a) && measures_kld(&of_b) {
        KLD
    } else {
        PPL
    };
    let value =
        |of: Option<(Option<f64>, f64)>| of.map(|(kld, ppl)| kld.filter(|_| mean.name == KLD.name).unwrap_or(ppl));
    let both = [value(of_a), value(of_b)];
    let (measured_a, measured_b) = match (&a.measured, &b.measured) {
        (Some(a), Some(b)) => (a, b),
        (None, None) => return Comparison::unpaired(a, both, mean.name, Unpaired::BothMissing),
        (None, _) => return Comparison::unpaired(a, both, mean.name, Unpaired::FirstMissing),
        (_, None) => return Comparison::unpaired(a, both, mean.name, Unpaired::SecondMissing),
    };
    let pair = match Pair::of(measured_a, measured_b) {
        Ok(pair) => pair,
        Err(why) => return Comparison::unpaired(a, both, mean.name, why),
    };
    let [before, after] = pair.means(&mean);
    let paired = pair.paired(&mean);
    let same = measured_a.figures == measured_b.figures;
    Comparison {
        candidate: a.candidate.clone(),
        eval: a.eval.clone(),
        figure: mean.name,
        before: Some(before),
        after: Some(after),
        paired,
        chunks: Some(pair.chunks as u64),
        verdict: match &paired {
            _ if same => Verdict::Same,
            Some(paired) => verdict(paired, &mean),
            None => Verdict::Unknown,
        },
        unpaired: None,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::Value;
    use serde_json::json;

    use super::*;
    use crate::digest::BlobDigest;
    use crate::digest::Fingerprint;

    fn evaluation(klds: &[f64]) -> Evaluation {
        let digest = BlobDigest::of(b"");
        let mean = klds.iter().sum::<f64>() / klds.len() as f64;
        let figure = |value: f64| json!({ "value": value, "ci95": [value, value] });
        let chunks: Vec<Value> = klds
            .iter()
            .map(|kld| json!({ "nll": 2.0 + kld, "kld": kld, "dp2": 0.0, "top1": 1.0 }))
            .collect();
        let figures = json!({
            "schema": 1,
            "context": 64,
            "tokens": 31 * klds.len(),
            "ppl": figure((2.0 + mean).exp()),
            "divergence": {
                "ppl_reference": figure(7.0),
                "ln_ppl_ratio": figure(mean),
                "kld_mean": figure(mean),
                "kld_median": mean,
                "kld_p90": mean,
                "kld_p95": mean,
                "kld_p99": mean,
                "kld_p999": mean,
                "kld_max": mean,
                "top1_agreement": figure(1.0),
                "rms_dp": figure(0.0),
            },
            "chunks": chunks,
        });
        let action = action::Eval {
            candidate: digest,
            reference: Some(digest),
            tokenizer: digest,
            corpus: digest,
            context: 64,
            chunks: Some(klds.len() as u64),
            block: 8,
            bootstrap: 1000,
            seed: 0,
            codec: 1,
            engine: Fingerprint::of(b"an engine"),
        };
        let figures = serde_json::from_value(figures).unwrap();
        Evaluation {
            eval: "quality".to_owned(),
            candidate: "small-Q4_0".to_owned(),
            measured: Some(Measured { action, figures }),
        }
    }

    fn verdict_of(a: &Evaluation, b: &Evaluation) -> (Verdict, Option<Unpaired>) {
        let (_, found) = compare(std::slice::from_ref(a), std::slice::from_ref(b));
        (found[0].verdict, found[0].unpaired)
    }

    #[test]
    fn better_and_worse_are_what_the_paired_interval_says() {
        let before: Vec<f64> = (0..16).map(|chunk| 0.01 + 0.01 * f64::from(chunk)).collect();
        // Far less than the chunks differ from each other, but on every chunk.
        let after: Vec<f64> = before.iter().map(|kld| kld - 0.001).collect();
        let noise: Vec<f64> = before
            .iter()
            .enumerate()
            .map(|(at, kld)| kld + [0.003, -0.003][at % 2])
            .collect();
        let (a, b) = (evaluation(&before), evaluation(&after));
        assert_eq!(verdict_of(&a, &b), (Verdict::Better, None));
        assert_eq!(verdict_of(&b, &a), (Verdict::Worse, None));
        assert_eq!(verdict_of(&a, &a), (Verdict::Same, None));
        assert_eq!(verdict_of(&a, &evaluation(&noise)), (Verdict::NoDifference, None));
    }

    #[test]
    fn more_chunks_of_the_same_text_are_paired_on_those_that_both_have() {
        let before = [0.02, 0.03, 0.04, 0.03];
        let after = [0.01, 0.02, 0.03, 0.02, 9.0, 9.0];
        let (part, found) = compare(&[evaluation(&before)], &[evaluation(&after)]);
        assert_eq!((found[0].verdict, found[0].chunks), (Verdict::Better, Some(4)));
        assert!((found[0].after.unwrap() - 0.02).abs() < 1e-12);
        assert_eq!(part.rows[0].what, "mean KLD, quality of small-Q4_0");
    }

    #[test]
    fn what_was_measured_otherwise_is_not_compared() {
        let a = evaluation(&[0.1, 0.2]);
        let changed = |change: fn(&mut Evaluation)| {
            let mut b = evaluation(&[0.3, 0.4]);
            change(&mut b);
            verdict_of(&a, &b)
        };
        assert_eq!(
            changed(|b| b.measured.as_mut().unwrap().action.engine = Fingerprint::of(b"another")),
            (Verdict::Unknown, Some(Unpaired::OtherEngine))
        );
        assert_eq!(
            changed(|b| b.measured.as_mut().unwrap().action.corpus = BlobDigest::of(b"another")),
            (Verdict::Unknown, Some(Unpaired::OtherText))
        );
        assert_eq!(
            changed(|b| b.measured.as_mut().unwrap().figures.chunks.truncate(1)),
            (Verdict::Unknown, Some(Unpaired::FewChunks))
        );
        assert_eq!(
            changed(|b| b.measured = None),
            (Verdict::Unknown, Some(Unpaired::SecondMissing))
        );
    }
}
