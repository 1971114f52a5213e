//! Groups and options, checked and in canonical order.

/// The most that losses, or uses of a capacity, may add up to: products of both still fit into 128 bits.
pub(crate) const MOST: i64 = 1 << 61;

/// Most capacities of a problem.
pub(crate) const MOST_CAPACITIES: usize = 8;

/// Something of which there is only so much: bytes of the file, memory of a device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Capacity {
    /// What it is, as `file`.
    pub name: String,
    /// What is used whatever is chosen: the header, padding, tensors without a choice, a cache of keys and values.
    pub constant: u64,
}

/// One way to have a group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Candidate {
    /// Its name within the group, as `Q4_K`.
    pub name: String,
    /// Its loss in units of a [`Scale`](crate::allocation::Scale).
    pub loss: i64,
    /// What it uses of each capacity, padding included.
    pub uses: Vec<u64>,
}

/// Things of which exactly one option is chosen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Group {
    /// Its name.
    pub name: String,
    /// Its options, at least one.
    pub options: Vec<Candidate>,
}

/// What makes no problem.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ProblemError {
    /// No capacity, or too many.
    #[error("expected 1 to {MOST_CAPACITIES} capacities, found {found}")]
    Capacities {
        /// How many.
        found: usize,
    },
    /// A group without options.
    #[error("group `{group}` has no options")]
    NoOptions {
        /// The group.
        group: String,
    },
    /// Two groups of one name.
    #[error("two groups are named `{group}`")]
    GroupTwice {
        /// The name.
        group: String,
    },
    /// Two options of one name.
    #[error("group `{group}` has two options `{option}`")]
    OptionTwice {
        /// The group.
        group: String,
        /// The name.
        option: String,
    },
    /// An option that does not say what it uses of each capacity.
    #[error("option `{option}` of group `{group}` names {found} uses for {expected} capacities")]
    Uses {
        /// The group.
        group: String,
        /// The option.
        option: String,
        /// How many it names.
        found: usize,
        /// How many capacities there are.
        expected: usize,
    },
    /// Losses that add up to too much.
    #[error("the losses add up to more than 2^61 units")]
    LossTooLarge,
    /// Uses of a capacity that add up to too much.
    #[error("the uses of `{capacity}` add up to more than 2^61")]
    UseTooLarge {
        /// The capacity.
        capacity: String,
    },
}

/// Groups and options of a problem. Groups stand in the order of their names, and so do the options of each: nothing
/// depends on the order in which they were given.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    capacities: Vec<Capacity>,
    groups: Vec<Group>,
}

impl Problem {
    /// Checks groups and options. The first capacity is the one that ties are broken by.
    ///
    /// # Errors
    /// [`ProblemError`] says what is wrong.
    pub fn new(capacities: Vec<Capacity>, mut groups: Vec<Group>) -> Result<Self, ProblemError> {
        if capacities.is_empty() || capacities.len() > MOST_CAPACITIES {
            return Err(ProblemError::Capacities {
                found: capacities.len(),
            });
        }
        groups.sort_by(|a, b| a.name.cmp(&b.name));
        if let Some(pair) = groups.windows(2).find(|pair| pair[0].name == pair[1].name) {
            return Err(ProblemError::GroupTwice {
                group: pair[0].name.clone(),
            });
        }
        let mut losses = Sum::default();
        let mut uses: Vec<Sum> = capacities
            .iter()
            .map(|capacity| Sum(u128::from(capacity.constant)))
            .collect();
        for group in &mut groups {
            group.options.sort_by(|a, b| a.name.cmp(&b.name));
            if group.options.is_empty() {
                return Err(ProblemError::NoOptions {
                    group: group.name.clone(),
                });
            }
            if let Some(pair) = group.options.windows(2).find(|pair| pair[0].name == pair[1].name) {
                return Err(ProblemError::OptionTwice {
                    group: group.name.clone(),
                    option: pair[0].name.clone(),
                });
            }
            if let Some(wrong) = group
                .options
                .iter()
                .find(|option| option.uses.len() != capacities.len())
            {
                return Err(ProblemError::Uses {
                    group: group.name.clone(),
                    option: wrong.name.clone(),
                    found: wrong.uses.len(),
                    expected: capacities.len(),
                });
            }
            losses.add(group.options.iter().map(|option| option.loss.unsigned_abs()));
            for (at, sum) in uses.iter_mut().enumerate() {
                sum.add(group.options.iter().map(|option| option.uses[at]));
            }
        }
        if losses.too_large() {
            return Err(ProblemError::LossTooLarge);
        }
        if let Some((_, capacity)) = uses.iter().zip(&capacities).find(|(sum, _)| sum.too_large()) {
            return Err(ProblemError::UseTooLarge {
                capacity: capacity.name.clone(),
            });
        }
        Ok(Self { capacities, groups })
    }

    /// Returns the capacities.
    pub fn capacities(&self) -> &[Capacity] {
        &self.capacities
    }

    /// Returns the groups, by name.
    pub fn groups(&self) -> &[Group] {
        &self.groups
    }

    /// Returns the least that can be used of a capacity, and the most: the smallest and the largest option of every group.
    /// None for a capacity that is not there.
    pub fn range(&self, capacity: usize) -> Option<(u64, u64)> {
        let constant = self.capacities.get(capacity)?.constant;
        let of = |group: &Group, most: bool| {
            let uses = group.options.iter().map(|option| option.uses[capacity]);
            if most { uses.max() } else { uses.min() }.unwrap_or_default()
        };
        let sum = |most| constant + self.groups.iter().map(|group| of(group, most)).sum::<u64>();
        Some((sum(false), sum(true)))
    }

    /// Returns the loss and the uses of an assignment: the index of an option for each group.
    pub(crate) fn totals(&self, choice: &[usize]) -> (i64, Vec<u64>) {
        let mut uses: Vec<u64> = self.capacities.iter().map(|capacity| capacity.constant).collect();
        let mut loss = 0;
        for (group, option) in self.groups.iter().zip(choice) {
            let option = &group.options[*option];
            loss += option.loss;
            for (sum, use_) in uses.iter_mut().zip(&option.uses) {
                *sum += use_;
            }
        }
        (loss, uses)
    }
}

/// A sum over groups of the largest of each.
#[derive(Default, Clone, Copy)]
struct Sum(u128);

impl Sum {
    fn add(&mut self, of_a_group: impl Iterator<Item = u64>) {
        self.0 += u128::from(of_a_group.max().unwrap_or_default());
    }

    fn too_large(self) -> bool {
        self.0 > MOST as u128
    }
}
