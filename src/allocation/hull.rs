//! The options of a group that can matter, and their lower convex hull.

use crate::allocation::problem::Group;

/// An option of a group with one capacity.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Point {
    /// Its index in the group.
    pub(crate) option: usize,
    /// What it uses.
    pub(crate) bytes: i64,
    /// Its loss.
    pub(crate) loss: i64,
}

/// The options of a group that no other one dominates.
#[derive(Debug, Clone)]
pub(crate) struct Front {
    /// By bytes, ascending; losses strictly descend. Of options with equal bytes and loss, the first by name.
    pub(crate) points: Vec<Point>,
    /// The corners of the lower convex hull: indices of `points`. No three are in line, so the slopes strictly fall.
    pub(crate) hull: Vec<usize>,
}

impl Front {
    /// Returns the front of a group in its first capacity.
    pub(crate) fn of(group: &Group) -> Self {
        let mut all: Vec<Point> = group
            .options
            .iter()
            .enumerate()
            .map(|(option, candidate)| Point {
                option,
                bytes: candidate.uses[0].cast_signed(),
                loss: candidate.loss,
            })
            .collect();
        // Options stand in the order of names.
        all.sort_by_key(|point| (point.bytes, point.loss, point.option));
        let mut points: Vec<Point> = Vec::new();
        for point in all {
            if points.last().is_none_or(|last| point.loss < last.loss) {
                points.push(point);
            }
        }
        let mut hull: Vec<usize> = Vec::new();
        for (at, point) in points.iter().enumerate() {
            while let [.., before, last] = hull.as_slice() {
                if Slope::between(points[*before], points[*last]) > Slope::between(points[*last], *point) {
                    break;
                }
                hull.pop();
            }
            hull.push(at);
        }
        Self { points, hull }
    }
}

/// How much loss a byte saves: a fraction of non-negative numbers. Ordered by value.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Slope {
    /// Loss.
    pub(crate) loss: i64,
    /// Bytes, more than 0.
    pub(crate) bytes: i64,
}

impl Slope {
    /// Nothing is saved.
    pub(crate) const ZERO: Self = Self { loss: 0, bytes: 1 };

    /// Returns the slope from a point to a larger one of less loss.
    pub(crate) fn between(small: Point, large: Point) -> Self {
        Self {
            loss: small.loss - large.loss,
            bytes: large.bytes - small.bytes,
        }
    }

    /// Returns the same slope in lowest terms.
    pub(crate) fn reduced(self) -> Self {
        let (mut a, mut b) = (self.bytes, self.loss);
        while b != 0 {
            (a, b) = (b, a % b);
        }
        Self {
            loss: self.loss / a,
            bytes: self.bytes / a,
        }
    }
}

impl PartialEq for Slope {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Slope {}

impl PartialOrd for Slope {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Slope {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        let left = i128::from(self.loss) * i128::from(other.bytes);
        left.cmp(&(i128::from(other.loss) * i128::from(self.bytes)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::allocation::problem::Candidate;

    fn front(options: &[(u64, i64)]) -> (Vec<(i64, i64)>, Vec<usize>) {
        let options = options.iter().enumerate().map(|(at, (bytes, loss))| Candidate {
            name: format!("{at:02}"),
            loss: *loss,
            uses: vec![*bytes],
        });
        let group = Group {
            name: String::new(),
            options: options.collect(),
        };
        let front = Front::of(&group);
        (
            front.points.iter().map(|point| (point.bytes, point.loss)).collect(),
            front.hull,
        )
    }

    #[test]
    fn dominated_options_are_removed_and_the_hull_is_convex() {
        let (points, hull) = front(&[(1, 10), (2, 9), (3, 4), (3, 5), (4, 4), (6, 1), (5, 2), (7, 0)]);
        assert_eq!(points, [(1, 10), (2, 9), (3, 4), (5, 2), (6, 1), (7, 0)]);
        assert_eq!(hull, [0, 2, 5], "points in line are no corners");
        assert_eq!(front(&[(5, 5)]), (vec![(5, 5)], vec![0]));
        assert_eq!(front(&[(5, 5), (5, 5), (9, 5)]), (vec![(5, 5)], vec![0]));
    }
}
