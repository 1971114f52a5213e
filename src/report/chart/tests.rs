use super::*;
use crate::report::metrics::Row;

fn row(candidate: &str, mib: f64, kld: f64) -> Row {
    Row {
        candidate: candidate.to_owned(),
        eval: "quality".to_owned(),
        bytes: (mib * f64::from(1 << 20)) as u64,
        bpw: 4.5,
        ppl: 20.0 + kld,
        ppl_ci95: [19.0, 21.0],
        ppl_reference: Some(19.5),
        kld_mean: Some(kld),
        kld_mean_ci95: Some([kld * 0.85, kld * 1.15]),
        kld_median: None,
        kld_p90: None,
        kld_p95: None,
        kld_p99: None,
        kld_p999: None,
        kld_max: None,
        top1_agreement: None,
        top1_agreement_ci95: None,
        rms_dp: None,
        kld_predicted: None,
        kld_predicted_pi95: None,
        prediction_holds: None,
        chunks: 32,
        tokens: 8160,
        context: 512,
        pareto: false,
        blake3: candidate.to_owned(),
        fingerprint: "f".repeat(64),
        overlaps: Vec::new(),
    }
}

fn measured(series: &str, label: &str, mib: f64, kld: f64, predicted: Option<f64>) -> Measured {
    Measured {
        row: row(&format!("{series}-{label}"), mib, kld),
        info: CandidateInfo {
            series: series.to_owned(),
            label: label.to_owned(),
            mix: predicted.is_none(),
            predicted,
        },
    }
}

/// Mixes, and policies at the bytes of each, as they come out.
pub(super) fn sample() -> Vec<Measured> {
    let mixes = [
        ("Q2_K", 2.40, 0.0452),
        ("IQ3_XXS", 2.55, 0.0335),
        ("Q3_K_M", 3.02, 0.0121),
        ("IQ4_XS", 3.34, 0.0109),
        ("Q4_K_M", 3.66, 0.0074),
        ("Q5_K_M", 4.26, 0.0022),
        ("Q6_K", 4.90, 0.0009),
    ];
    let mut all: Vec<Measured> = mixes
        .iter()
        .map(|(name, mib, kld)| measured("tiny", name, *mib, *kld, None))
        .collect();
    for (name, mib, kld) in mixes {
        all.push(measured("best", name, mib - 0.001, kld * 0.6, Some(kld * 0.57)));
    }
    all
}

#[test]
fn the_front_is_of_candidates_measured_alike() {
    let mut all = sample();
    let mut old = measured("tiny", "Q4_0", 3.5, 0.0001, None);
    old.row.fingerprint = "e".repeat(64);
    all.push(old);
    all.push(all[0].clone());
    let mut exact = measured("tiny", "F16", 9.0, 0.0, None);
    exact.row.kld_mean = Some(0.0);
    all.push(exact);
    let chart = Chart::of("tiny", &all).unwrap();
    assert_eq!(chart.loss, Loss::Kld);
    let names: Vec<_> = chart
        .series
        .iter()
        .map(|series| (series.name.as_str(), series.mixes))
        .collect();
    assert_eq!(names, [("tiny", true), ("best", false)]);
    assert_eq!(chart.series[0].points.len(), 8, "one that is there twice is shown once");
    assert!(chart.series[1].points.iter().all(|point| point.front));
    assert!(chart.series[0].points.iter().all(|point| !point.front));
    let historical: Vec<_> = chart.points().filter(|point| point.historical).collect();
    assert_eq!(historical.len(), 1);
    assert!(
        chart.notes[0].starts_with("32 chunks of 512 tokens"),
        "{:?}",
        chart.notes
    );
    assert!(chart.notes.iter().any(|note| note.starts_with("tiny-F16 is not shown")));
    assert!(chart.notes.last().unwrap().starts_with("historical"));
    assert_eq!(Chart::of("nothing", &[]), None);
    // Perplexity, where one candidate has nothing else; predictions are of divergences.
    all[0].row.kld_mean = None;
    let chart = Chart::of("tiny", &all).unwrap();
    assert_eq!(chart.loss, Loss::Ppl);
    assert!(!chart.has(|point| point.predicted.is_some()));
}

#[test]
fn the_terminal_shows_marks_labels_and_a_table_in_80_columns() {
    let chart = Chart::of("tiny, evaluation quality", &sample()).unwrap();
    for ascii in [false, true] {
        let text = chart.terminal(Style {
            ascii,
            ..Style::default()
        });
        assert_eq!(text.is_ascii(), ascii, "{text}");
        for line in text.lines().filter(|line| !line.contains("bootstrap")) {
            assert!(line.chars().count() <= 80, "{line}");
        }
        let (front, mix) = if ascii { ('A', 'o') } else { ('●', '◇') };
        let field: String = text.lines().skip(3).take(22).collect();
        assert_eq!(field.chars().filter(|c| *c == front).count(), 7, "{text}");
        assert_eq!(field.chars().filter(|c| *c == mix).count(), 7, "{text}");
        assert!(field.contains("Q6_K") && field.contains("Q2_K"), "{text}");
        assert!(text.contains("best-Q4_K_M") && text.contains("0.00444"), "{text}");
    }
}

#[test]
fn a_single_candidate_and_a_wide_range_can_be_drawn() {
    let one = [measured("p", "p", 3.0, 0.01, Some(0.011))];
    let chart = Chart::of("one", &one).unwrap();
    assert!(chart.terminal(Style::default()).contains('●'));
    assert!(chart.svg().contains("<circle"));
    let wide: Vec<Measured> = (0..30)
        .map(|at| {
            measured(
                "p",
                &format!("v{at}"),
                1.0 + f64::from(at),
                10_f64.powi(3 - at),
                Some(1e-9),
            )
        })
        .collect();
    let chart = Chart::of("wide", &wide).unwrap();
    assert!(
        chart
            .terminal(Style {
                width: 10,
                height: 1,
                ascii: false
            })
            .contains('●')
    );
    assert_eq!(chart.svg().matches("<circle").count(), 32, "30, and two of the key");
}

#[test]
fn the_svg_needs_no_other_files_and_its_labels_do_not_overlap() {
    let mut all = sample();
    all[0].info.label = "<Q2&K>\u{1}".to_owned();
    let svg = Chart::of("tiny & \"more\"", &all).unwrap().svg();
    assert!(
        svg.contains("&lt;Q2&amp;K&gt;\u{fffd}") && svg.contains("tiny &amp; &quot;more&quot;"),
        "{svg}"
    );
    for outside in ["href", "url(", "@import", "<script", "<image", "font-face"] {
        assert!(!svg.contains(outside), "{outside}");
    }
    assert!(svg.contains("prefers-color-scheme:dark"));
    // Every mark has a title, and every candidate a label of its own.
    assert_eq!(svg.matches("<g><title>").count(), 14);
    let frames: Vec<labels::Frame> = svg
        .lines()
        .filter(|line| {
            line.starts_with("<text class=\"ink\"") && !line.contains("font-size") && !line.contains("rotate")
        })
        .filter(|line| !line.contains("file size"))
        .map(|line| {
            let number = |key: &str| -> f64 {
                let rest = line.split_once(&format!(" {key}=\"")).unwrap().1;
                rest.split('"').next().unwrap().parse().unwrap()
            };
            let text = line.split_once('>').unwrap().1.split("</text>").next().unwrap();
            let text = text.replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&");
            let width = text.chars().count() as f64 * 7.0;
            let x = match line {
                line if line.contains("\"end\"") => number("x") - width,
                line if line.contains("\"middle\"") => number("x") - width / 2.0,
                _ => number("x"),
            };
            labels::Frame {
                x,
                y: number("y") - 10.0,
                width,
                height: 12.0,
            }
        })
        .collect();
    assert_eq!(frames.len(), 14, "{svg}");
    for (at, frame) in frames.iter().enumerate() {
        assert!(!frames[..at].iter().any(|other| other.overlaps(frame)), "{frame:?}");
    }
}
