//! Places for labels: near their marks, and clear of all else.

/// A rectangle; `y` grows downwards.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Frame {
    pub(super) x: f64,
    pub(super) y: f64,
    pub(super) width: f64,
    pub(super) height: f64,
}

/// A line from one point to another.
pub(super) type Line = [(f64, f64); 2];

/// How far a label may be from its mark, in steps.
const RINGS: i32 = 14;
/// What it costs to lie on a line, in steps away from the mark.
const ON_A_LINE: f64 = 4.0;

impl Frame {
    /// A frame around a point.
    pub(super) fn around((x, y): (f64, f64), width: f64, height: f64) -> Self {
        Self {
            x: x - width / 2.0,
            y: y - height / 2.0,
            width,
            height,
        }
    }

    pub(super) fn overlaps(&self, other: &Self) -> bool {
        self.x < other.x + other.width
            && other.x < self.x + self.width
            && self.y < other.y + other.height
            && other.y < self.y + self.height
    }

    fn holds(&self, other: &Self) -> bool {
        self.x <= other.x
            && self.y <= other.y
            && other.x + other.width <= self.x + self.width
            && other.y + other.height <= self.y + self.height
    }

    /// Whether a line touches it (Liang and Barsky's clipping).
    fn is_crossed_by(&self, [(x0, y0), (x1, y1)]: &Line) -> bool {
        let (dx, dy) = (x1 - x0, y1 - y0);
        let (mut enter, mut leave) = (0.0_f64, 1.0_f64);
        for (step, distance) in [
            (-dx, x0 - self.x),
            (dx, self.x + self.width - x0),
            (-dy, y0 - self.y),
            (dy, self.y + self.height - y0),
        ] {
            if step == 0.0 {
                if distance < 0.0 {
                    return false;
                }
            } else if step < 0.0 {
                enter = enter.max(distance / step);
            } else {
                leave = leave.min(distance / step);
            }
        }
        enter <= leave
    }

    /// The point of the frame that is nearest to another one.
    pub(super) fn nearest(&self, (x, y): (f64, f64)) -> (f64, f64) {
        (
            x.clamp(self.x, self.x + self.width),
            y.clamp(self.y, self.y + self.height),
        )
    }
}

/// A label that wants a place.
#[derive(Debug, Clone, Copy)]
pub(super) struct Wanted {
    /// The middle of its mark.
    pub(super) at: (f64, f64),
    pub(super) width: f64,
    pub(super) height: f64,
}

/// What there is around.
pub(super) struct Around<'a> {
    /// Labels stay inside.
    pub(super) within: Frame,
    /// What no label may lie on.
    pub(super) taken: &'a [Frame],
    /// What a label had better not lie on.
    pub(super) lines: &'a [Line],
    /// How far a label's edge is from the middle of its mark at the least, and by how much that grows, across and down.
    pub(super) step: (f64, f64),
}

/// Finds a place for each label, in their order; none where nothing near is free.
pub(super) fn place(wanted: &[Wanted], around: &Around<'_>) -> Vec<Option<Frame>> {
    let mut placed: Vec<Frame> = Vec::new();
    let mut places = Vec::with_capacity(wanted.len());
    for label in wanted {
        let mut best: Option<(f64, Frame)> = None;
        for ring in 1..=RINGS {
            if best.is_some_and(|(cost, _)| cost <= f64::from(ring)) {
                break;
            }
            for (turn, frame) in ring_of(label, ring, around.step).into_iter().enumerate() {
                let free = around.within.holds(&frame)
                    && !around.taken.iter().chain(&placed).any(|other| frame.overlaps(other));
                if !free {
                    continue;
                }
                let crossed = around.lines.iter().filter(|line| frame.is_crossed_by(line)).count();
                // Of equal places the first; beside the mark goes before above and below.
                let cost = f64::from(ring) + ON_A_LINE * crossed as f64 + turn as f64 * 0.01;
                if best.is_none_or(|(least, _)| cost < least) {
                    best = Some((cost, frame));
                }
            }
        }
        let found = best.map(|(_, frame)| frame);
        placed.extend(found);
        places.push(found);
    }
    places
}

/// The eight places around a mark at a distance.
fn ring_of(label: &Wanted, ring: i32, (across, down): (f64, f64)) -> [Frame; 8] {
    let (x, y) = label.at;
    let (dx, dy) = (across * f64::from(ring), down * f64::from(ring));
    let (width, height) = (label.width, label.height);
    let frame = |x: f64, y: f64| Frame { x, y, width, height };
    let (right, left, above, below) = (x + dx, x - dx - width, y - dy - height, y + dy);
    let (middle_x, middle_y) = (x - width / 2.0, y - height / 2.0);
    [
        frame(right, middle_y),
        frame(left, middle_y),
        frame(right, above),
        frame(left, below),
        frame(middle_x, above),
        frame(middle_x, below),
        frame(right, below),
        frame(left, above),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_of_a_crowd_keep_clear_of_marks_and_of_each_other() {
        // Marks in a heap, on a line, and in the corner.
        let mut marks: Vec<(f64, f64)> = (0..5)
            .flat_map(|a| (0..4).map(move |b| (300.0 + 9.0 * f64::from(a), 200.0 + 7.0 * f64::from(b))))
            .collect();
        marks.extend((0..12).map(|at| (40.0 + 30.0 * f64::from(at), 100.0)));
        marks.extend([(1.0, 1.0), (599.0, 399.0)]);
        let taken: Vec<Frame> = marks.iter().map(|mark| Frame::around(*mark, 8.0, 8.0)).collect();
        let wanted: Vec<Wanted> = marks
            .iter()
            .map(|at| Wanted {
                at: *at,
                width: 48.0,
                height: 14.0,
            })
            .collect();
        let within = Frame {
            x: 0.0,
            y: 0.0,
            width: 600.0,
            height: 400.0,
        };
        let around = Around {
            within,
            taken: &taken,
            lines: &[],
            step: (7.0, 6.0),
        };
        let places: Vec<Frame> = place(&wanted, &around).into_iter().flatten().collect();
        assert_eq!(places.len(), wanted.len(), "each has a place");
        for (at, place) in places.iter().enumerate() {
            assert!(within.holds(place), "{place:?}");
            assert!(!taken.iter().any(|mark| mark.overlaps(place)), "{place:?}");
            assert!(!places[..at].iter().any(|other| other.overlaps(place)), "{place:?}");
        }
    }

    #[test]
    fn labels_avoid_lines_where_they_can() {
        let wanted = [Wanted {
            at: (50.0, 50.0),
            width: 20.0,
            height: 8.0,
        }];
        let lines = [[(50.0, 50.0), (100.0, 50.0)]];
        let around = |lines| Around {
            within: Frame::around((50.0, 50.0), 100.0, 100.0),
            taken: &[],
            lines,
            step: (6.0, 6.0),
        };
        let free = place(&wanted, &around(&[]))[0].unwrap();
        assert!(
            free.x > 50.0 && free.is_crossed_by(&lines[0]),
            "beside the mark: {free:?}"
        );
        let clear = place(&wanted, &around(&lines))[0].unwrap();
        assert!(!clear.is_crossed_by(&lines[0]), "{clear:?}");
        assert!(!clear.is_crossed_by(&[(0.0, 0.0), (0.0, 100.0)]));
    }
}
