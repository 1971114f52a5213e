//! Policies: one step for each combination of what a section leaves open.

use crate::recipe::decl::BoostBases;
use crate::recipe::decl::BoostLayers;
use crate::recipe::decl::Decl;
use crate::recipe::decl::Decls;
use crate::recipe::decl::Method;
use crate::recipe::decl::Policy;
use crate::recipe::expand::Choice;
use crate::recipe::expand::Expansion;
use crate::recipe::expand::choices;
use crate::recipe::expand::flag;
use crate::recipe::expand::joined;
use crate::recipe::expand::optional;
use crate::recipe::expand::optional_choices;
use crate::recipe::field::Sweep;
use crate::recipe::model::Ashq1Policy;
use crate::recipe::model::BoostBase;
use crate::recipe::model::BoostLayers as StepLayers;
use crate::recipe::model::BoostPolicy;
use crate::recipe::model::DensityPolicy;
use crate::recipe::model::ErrorPolicy;
use crate::recipe::model::ManualPolicy;
use crate::recipe::model::MeasuredPolicy;
use crate::recipe::model::Method as PolicyMethod;
use crate::recipe::model::MixPolicy;
use crate::recipe::model::PolicyStep;
use crate::recipe::model::PriorPolicy;
use crate::recipe::model::Probes;
use crate::recipe::model::StepBody;
use crate::recipe::model::StepId;
use crate::recipe::model::StepKind;

/// Of the chunks of a probe, the first look takes one in so many, unless the recipe says how many.
const SCREENED: u64 = 4;

impl Expansion<'_> {
    /// Makes the steps of a policy's section.
    pub(crate) fn policy(&mut self, decl: &Decl<Policy>, decls: &Decls) {
        let kind = StepKind::Policy;
        let Some(data) = self.data(decl, decls) else { return };
        let push = |this: &mut Self, join: &Choice<Option<StepId>>, parts: &[Option<String>], method| {
            let parts = [std::slice::from_ref(&join.part), parts].concat();
            let (model, keep) = (decl.body.model.clone(), decl.body.keep.clone());
            let body = StepBody::Policy(PolicyStep {
                model,
                join: join.value.clone(),
                method,
                keep,
            });
            this.push(kind, &decl.name, joined(&parts), body, &decl.place);
        };
        match &decl.body.method {
            Method::Mix {
                mix,
                pure,
                output_type,
                embedding_type,
            } => {
                let mixes = choices(mix, |mix| mix.as_str().to_owned());
                let pures = choices(pure, flag("pure"));
                let outputs = optional(output_type.as_ref(), |name| format!("output-{}", name.as_str()));
                let embeddings = optional(embedding_type.as_ref(), |name| format!("embedding-{}", name.as_str()));
                let sizes = [data.len(), mixes.len(), pures.len(), outputs.len(), embeddings.len()];
                for row in self.rows(decl, kind, &sizes).into_iter().flatten() {
                    let (mix, pure) = (&mixes[row[1]], &pures[row[2]]);
                    let (output, embedding) = (&outputs[row[3]], &embeddings[row[4]]);
                    let parts = [
                        mix.part.clone(),
                        pure.part.clone(),
                        output.part.clone(),
                        embedding.part.clone(),
                    ];
                    let method = PolicyMethod::Mix(MixPolicy {
                        mix: mix.value,
                        pure: pure.value,
                        output_type: output.value,
                        embedding_type: embedding.value,
                    });
                    push(self, &data[row[0]], &parts, method);
                }
            }
            Method::Manual { rules, otherwise } => {
                let others = optional(otherwise.as_ref(), |to| format!("otherwise-{}", to.as_str()));
                for row in self.rows(decl, kind, &[data.len(), others.len()]).into_iter().flatten() {
                    let other = &others[row[1]];
                    let rules = rules.clone();
                    let method = PolicyMethod::Manual(ManualPolicy {
                        rules,
                        otherwise: other.value,
                    });
                    push(self, &data[row[0]], std::slice::from_ref(&other.part), method);
                }
            }
            Method::Ashq1 {
                budget,
                depth,
                free,
                qat,
                floors,
                ceilings,
            } => {
                let budgets = self.budgets(budget);
                let depths = choices(depth, flag("depth"));
                let frees = choices(free, flag("free"));
                let sizes = [data.len(), budgets.len(), depths.len(), frees.len()];
                for row in self.rows(decl, kind, &sizes).into_iter().flatten() {
                    let (budget, depth, free) = (&budgets[row[1]], &depths[row[2]], &frees[row[3]]);
                    let parts = [budget.part.clone(), depth.part.clone(), free.part.clone()];
                    let method = PolicyMethod::Ashq1(Ashq1Policy {
                        budget: budget.value.clone(),
                        depth: depth.value,
                        free: free.value,
                        qat: *qat,
                        floors: floors.clone(),
                        ceilings: ceilings.clone(),
                    });
                    push(self, &data[row[0]], &parts, method);
                }
            }
            Method::Density {
                budget,
                base,
                promotion,
                anchors,
            } => {
                let budgets = self.budgets(budget);
                for row in self
                    .rows(decl, kind, &[data.len(), budgets.len()])
                    .into_iter()
                    .flatten()
                {
                    let budget = &budgets[row[1]];
                    let method = PolicyMethod::Density(DensityPolicy {
                        budget: budget.value.clone(),
                        base: *base,
                        promotion: *promotion,
                        anchors: *anchors,
                    });
                    push(self, &data[row[0]], std::slice::from_ref(&budget.part), method);
                }
            }
            Method::Boost {
                base,
                layers,
                families,
                promotion,
            } => {
                let bases = match base {
                    BoostBases::Mix(mix) => choices(mix, |mix| mix.as_str().to_owned())
                        .into_iter()
                        .map(|choice| (choice.part, BoostBase::Mix(choice.value)))
                        .collect::<Vec<_>>(),
                    BoostBases::Type(ty) => choices(ty, |ty| ty.as_str().to_owned())
                        .into_iter()
                        .map(|choice| (choice.part, BoostBase::Type(choice.value)))
                        .collect(),
                };
                let promotions = choices(promotion, |ty| ty.as_str().to_owned());
                let baselines = match layers {
                    BoostLayers::Ranked {
                        baseline: Some(name), ..
                    } => Some(self.references(StepKind::Imatrix, &Sweep::one(name.clone(), &decl.place))),
                    _ => None,
                };
                let baselines = optional_choices(baselines);
                let sizes = [data.len(), bases.len(), promotions.len(), baselines.len()];
                for row in self.rows(decl, kind, &sizes).into_iter().flatten() {
                    let (base, promotion, baseline) = (&bases[row[1]], &promotions[row[2]], &baselines[row[3]]);
                    let parts = [base.0.clone(), promotion.part.clone(), baseline.part.clone()];
                    let layers = match layers {
                        BoostLayers::Listed(layers) => StepLayers::Listed(layers.clone()),
                        BoostLayers::Ranked { count, ranking, .. } => StepLayers::Ranked {
                            count: *count,
                            ranking,
                            baseline: baseline.value.clone(),
                        },
                    };
                    let method = PolicyMethod::Boost(BoostPolicy {
                        base: base.1,
                        layers,
                        families: families.clone(),
                        promotion: promotion.value,
                    });
                    push(self, &data[row[0]], &parts, method);
                }
            }
            Method::Prior {
                budget,
                types,
                fuse,
                floors,
                ceilings,
                devices,
            } => {
                let budgets = self.budgets(budget);
                for row in self
                    .rows(decl, kind, &[data.len(), budgets.len()])
                    .into_iter()
                    .flatten()
                {
                    let budget = &budgets[row[1]];
                    let method = PolicyMethod::Prior(PriorPolicy {
                        budget: budget.value.clone(),
                        types: types.clone(),
                        fuse: fuse.clone(),
                        floors: floors.clone(),
                        ceilings: ceilings.clone(),
                        devices: devices.clone(),
                    });
                    push(self, &data[row[0]], std::slice::from_ref(&budget.part), method);
                }
            }
            Method::Measured {
                budget,
                corpus,
                context,
                chunks,
                block,
                screen,
                max_probes,
                refine,
                types,
                fuse,
                floors,
                ceilings,
                devices,
            } => {
                let budgets = self.budgets(budget);
                let corpora = self.references(StepKind::Corpus, corpus);
                let counts = choices(chunks, |value| format!("chunks{value}"));
                let sizes = [data.len(), budgets.len(), corpora.len(), counts.len()];
                for row in self.rows(decl, kind, &sizes).into_iter().flatten() {
                    let (budget, corpus, chunks) = (&budgets[row[1]], &corpora[row[2]], &counts[row[3]]);
                    let parts = [budget.part.clone(), corpus.part.clone(), chunks.part.clone()];
                    let method = PolicyMethod::Measured(Box::new(MeasuredPolicy {
                        budget: budget.value.clone(),
                        corpus: corpus.value.clone(),
                        context: *context,
                        chunks: chunks.value,
                        block: *block,
                        screen: screen.unwrap_or_else(|| chunks.value.div_ceil(SCREENED)),
                        max_probes: *max_probes,
                        refine: *refine,
                        types: types.clone(),
                        fuse: fuse.clone(),
                        floors: floors.clone(),
                        ceilings: ceilings.clone(),
                        devices: devices.clone(),
                    }));
                    push(self, &data[row[0]], &parts, method);
                }
            }
            Method::Error {
                budget,
                probes,
                types,
                fuse,
                floors,
                ceilings,
                devices,
            } => {
                let budgets = self.budgets(budget);
                let corpora = probes
                    .as_ref()
                    .map(|probes| self.references(StepKind::Corpus, &probes.corpus));
                let corpora = optional_choices(corpora);
                let counts = optional(probes.as_ref().map(|probes| &probes.chunks), |value| {
                    format!("chunks{value}")
                });
                let sizes = [data.len(), budgets.len(), corpora.len(), counts.len()];
                for row in self.rows(decl, kind, &sizes).into_iter().flatten() {
                    let (budget, corpus, chunks) = (&budgets[row[1]], &corpora[row[2]], &counts[row[3]]);
                    let parts = [budget.part.clone(), corpus.part.clone(), chunks.part.clone()];
                    let measured = corpus.value.clone().zip(chunks.value);
                    let probes = probes.as_ref().zip(measured).map(|(probes, (corpus, chunks))| Probes {
                        count: probes.count,
                        corpus,
                        context: probes.context,
                        chunks,
                        block: probes.block,
                    });
                    let method = PolicyMethod::Error(Box::new(ErrorPolicy {
                        budget: budget.value.clone(),
                        probes,
                        types: types.clone(),
                        fuse: fuse.clone(),
                        floors: floors.clone(),
                        ceilings: ceilings.clone(),
                        devices: devices.clone(),
                    }));
                    push(self, &data[row[0]], &parts, method);
                }
            }
        }
    }
}
