//! `forge policy show` and `forge policy diff`: the types of candidates, for people and for programs.

use std::collections::BTreeMap;
use std::collections::HashMap;
use std::fmt::Write as _;

use anstyle::AnsiColor;
use anstyle::Style;
use indexmap::IndexSet;
use serde_json::Value;
use serde_json::json;

use crate::cli::Exit;
use crate::cli::Failure;
use crate::cli::args;
use crate::cli::args::GroupBy;
use crate::cli::escape::escape;
use crate::cli::files::Files;
use crate::cli::json::SCHEMA;
use crate::cli::policy_source::listing;
use crate::cli::table;
use crate::cli::table::Cell;
use crate::cli::table::left;
use crate::cli::table::right;
use crate::cli::terminal::Terminal;
use crate::diff;
use crate::policy::Listed;
use crate::policy::Listing;
use crate::policy::Sum;
use crate::prose;
use crate::tensor_type::TensorType;

/// The maximum width in columns, in a terminal and in a pipe.
const WIDTH: usize = 80;
/// Blanks between columns.
const COLUMN_GAP: u16 = 2;

pub(super) fn run(args: &args::PolicyShow, files: &Files, terminal: &Terminal) -> Result<Exit, Failure> {
    let listing = listing(&args.of, &args.recipe, files, terminal)?;
    if terminal.is_json() {
        terminal.data(&line(&args.of, &listing));
        return Ok(Exit::Done);
    }
    let mut text = head(&args.of, &listing);
    text.push_str(&match args.by {
        GroupBy::Class => by_class(&listing),
        GroupBy::Layer => by_layer(&listing),
        GroupBy::Tensor => by_tensor(&listing),
    });
    terminal.styled(&text);
    Ok(Exit::Done)
}

pub(super) fn diff(args: &args::PolicyDiff, files: &Files, terminal: &Terminal) -> Result<Exit, Failure> {
    let a = listing(&args.a, &args.recipe, files, terminal)?;
    let b = listing(&args.b, &args.recipe, files, terminal)?;
    let found = diff::compare_listings(&a, &b, [&args.a, &args.b]);
    crate::cli::diff::show(&found, args.format, args.rows, terminal);
    Ok(if args.exit_code && found.differ {
        Exit::Recipe
    } else {
        Exit::Done
    })
}

fn of_type(ty: TensorType) -> Cell {
    Cell {
        style: colour(ty),
        ..left(ty.name())
    }
}

/// Colours for bits per weight, from red (few) to blue (many); plain floats have none.
fn colour(ty: TensorType) -> Style {
    let colour = match ty.bpw() {
        _ if !ty.is_quantized() => return Style::new(),
        ..3.0 => AnsiColor::Red,
        3.0..4.0 => AnsiColor::Yellow,
        4.0..5.0 => AnsiColor::Green,
        5.0..6.0 => AnsiColor::Cyan,
        _ => AnsiColor::Blue,
    };
    colour.on_default()
}

fn faint(cell: Cell) -> Cell {
    Cell {
        style: Style::new().dimmed(),
        ..cell
    }
}

fn loss(loss: Option<f64>) -> Cell {
    right(loss.map(|loss| format!("{loss:.2e}")).unwrap_or_default())
}

/// What the whole is.
fn head(name: &str, listing: &Listing) -> String {
    let sum = Sum::of(&listing.tensors);
    let mut text = format!(
        "{}: {}",
        escape(name),
        match (listing.size(), prose::count(sum.tensors, "tensor")) {
            (Some(size), tensors) => format!("{size}, {tensors}"),
            // Of a table of types alone: the file has a header, too.
            (None, tensors) => format!("{tensors} of {}", prose::bytes(sum.bytes)),
        }
    );
    let number = listing
        .predicted_loss
        .as_deref()
        .and_then(|loss| loss.parse::<f64>().ok());
    if let Some(loss) = number {
        let _ = write!(text, ", predicted loss {loss:.3e}");
    }
    let shares: Vec<String> = sum
        .by_bytes()
        .into_iter()
        .map(|(ty, _, bytes)| {
            let style = colour(ty);
            let share = bytes as f64 * 100.0 / sum.bytes.max(1) as f64;
            format!("{style}{ty}{style:#} {share:.1} %")
        })
        .collect();
    let mut line = 0;
    text.push('\n');
    for (at, share) in shares.iter().enumerate() {
        // Colour codes have no width.
        let width = anstream::adapter::strip_str(share).to_string().chars().count() + 2;
        if line + width > WIDTH {
            text.push_str("\n  ");
            line = 2;
        } else if at > 0 {
            text.push_str(", ");
        }
        text.push_str(share);
        line += width;
    }
    text.push_str("\n\n");
    text
}

/// How many tensors have which type, in as many columns as there are; what does not fit is counted.
fn types(sum: &Sum, width: usize) -> String {
    let all = sum.by_bytes();
    let mut text = String::new();
    for (at, (ty, tensors, _)) in all.iter().enumerate() {
        let word = format!("{}{ty} {tensors}", if at > 0 { ", " } else { "" });
        let rest = all.len() - at - 1;
        let more = if rest > 0 { ", +9".len() } else { 0 };
        if at > 0 && text.len() + word.len() + more > width {
            let _ = write!(text, ", +{}", all.len() - at);
            break;
        }
        text.push_str(&word);
    }
    text
}

fn predicted(listing: &Listing) -> bool {
    listing.tensors.iter().any(|tensor| tensor.loss.is_some())
}

fn by_class(listing: &Listing) -> String {
    let predicted = predicted(listing);
    let (open, closed): (Vec<&Listed>, Vec<&Listed>) = listing.tensors.iter().partition(|tensor| tensor.is_open());
    let open = Listing {
        tensors: open.into_iter().cloned().collect(),
        ..Listing::default()
    };
    let classes = open.classes();
    let mut header = vec![left("class"), right("tensors"), right("size"), right("bpw")];
    if predicted {
        header.push(right("loss"));
    }
    header.push(left("types"));
    let mut rows = vec![header];
    let name = classes
        .iter()
        .map(|(class, _)| class.chars().count())
        .max()
        .unwrap_or(0);
    let width = WIDTH.saturating_sub(name.max(15) + 2 + 9 + 11 + 8 + if predicted { 10 } else { 0 });
    let row = |name: &str, sum: &Sum| {
        let mut row = vec![
            left(name),
            right(sum.tensors.to_string()),
            right(prose::bytes(sum.bytes)),
            right(format!("{:.3}", sum.bpw())),
        ];
        if predicted {
            row.push(loss(sum.loss));
        }
        let only = sum.types.keys().next().filter(|_| sum.types.len() == 1);
        row.push(match only {
            Some(ty) => of_type(*ty),
            None => left(types(sum, width)),
        });
        row
    };
    rows.extend(classes.iter().map(|(class, sum)| row(class, sum)));
    if !closed.is_empty() {
        rows.push(
            row("never quantized", &Sum::of(closed))
                .into_iter()
                .map(faint)
                .collect(),
        );
    }
    table::rows(&rows, COLUMN_GAP)
}

fn by_tensor(listing: &Listing) -> String {
    let predicted = predicted(listing);
    let mut header = vec![left("tensor"), left("type"), right("size")];
    if predicted {
        header.push(right("loss"));
    }
    header.push(left("why"));
    let mut rows = vec![header];
    for tensor in &listing.tensors {
        let mut row = vec![
            left(&tensor.name),
            of_type(tensor.to),
            right(prose::bytes(tensor.bytes)),
        ];
        if predicted {
            row.push(loss(tensor.loss));
        }
        let mut why = tensor.why.as_ref().map(crate::policy::Why::words).unwrap_or_default();
        if let Some(wanted) = tensor.instead_of {
            let _ = write!(why, ", not {wanted}");
        }
        row.push(left(why));
        rows.push(if tensor.is_open() {
            row
        } else {
            row.into_iter().map(faint).collect()
        });
    }
    table::rows(&rows, COLUMN_GAP)
}

/// A class' name over two lines: `attn` and `output` of `attn_output`.
fn halves(class: &str) -> (&str, &str) {
    class.split_once('_').unwrap_or(("", class))
}

/// The map: a row per layer, a column per class, the type in each cell. Classes that do not fit go into blocks below.
fn by_layer(listing: &Listing) -> String {
    // The classes in the order in which they come.
    let mut classes: IndexSet<&str> = IndexSet::new();
    let mut outside = Vec::new();
    for tensor in listing.tensors.iter().filter(|tensor| tensor.is_open()) {
        if tensor.layer().is_none() {
            outside.push(tensor);
        } else {
            classes.insert(tensor.class());
        }
    }
    let mut text = String::new();
    if !outside.is_empty() {
        let rows: Vec<Vec<Cell>> = outside
            .iter()
            .map(|tensor| {
                let size = right(prose::bytes(tensor.bytes));
                vec![left(tensor.class()), of_type(tensor.to), size, loss(tensor.loss)]
            })
            .collect();
        text.push_str(&table::rows(&rows, COLUMN_GAP));
        text.push('\n');
    }
    let layers: Vec<(u32, Sum)> = listing
        .layers()
        .into_iter()
        .filter_map(|(layer, sum)| Some((layer?, sum)))
        .collect();
    let mut cells: HashMap<&str, BTreeMap<u32, TensorType>> = HashMap::new();
    for tensor in &listing.tensors {
        if let Some(layer) = tensor.layer() {
            let column = cells.entry(tensor.class()).or_default();
            column.entry(layer).or_insert(tensor.to);
        }
    }
    let types = |layer: u32, class: &str| cells.get(class)?.get(&layer).copied();
    let begin = "layer".len();
    let width = |class: &str| {
        let (above, below) = halves(class);
        let column = cells.get(class).into_iter().flat_map(BTreeMap::values);
        let widest = column.map(|ty| ty.name().len()).max().unwrap_or(0);
        widest.max(above.chars().count()).max(below.chars().count()) + 1
    };
    let mut blocks: Vec<Vec<&str>> = vec![Vec::new()];
    let mut used = begin;
    for class in classes {
        let width = width(class);
        if used + width > WIDTH {
            blocks.push(Vec::new());
            used = begin;
        }
        used += width;
        if let Some(block) = blocks.last_mut() {
            block.push(class);
        }
    }
    // The last block ends with the sums that fit: a bpw has six columns with its blank, a loss nine, a size ten.
    if used + 6 > WIDTH {
        blocks.push(Vec::new());
        used = begin;
    }
    let with_loss = predicted(listing) && used + 6 + 9 <= WIDTH;
    let with_size = used + 6 + if with_loss { 9 } else { 0 } + 10 <= WIDTH;
    let count = blocks.len();
    for (at, block) in blocks.iter().enumerate() {
        let sums = at + 1 == count;
        let mut above = vec![left("")];
        let mut below = vec![right("layer")];
        for class in block {
            let (first, second) = halves(class);
            above.push(left(first));
            below.push(left(second));
        }
        if sums {
            below.push(right("bpw"));
            if with_loss {
                below.push(right("loss"));
            }
            if with_size {
                below.push(right("size"));
            }
        }
        let mut rows = vec![above, below];
        for (layer, sum) in &layers {
            let mut row = vec![right(layer.to_string())];
            row.extend(
                block
                    .iter()
                    .map(|class| types(*layer, class).map_or_else(|| left("-"), of_type)),
            );
            if sums {
                row.push(right(format!("{:.3}", sum.bpw())));
                if with_loss {
                    row.push(loss(sum.loss));
                }
                if with_size {
                    row.push(right(prose::bytes(sum.bytes)));
                }
            }
            rows.push(row);
        }
        if at > 0 {
            text.push('\n');
        }
        text.push_str(&table::rows(&rows, 1));
    }
    text
}

fn line(name: &str, listing: &Listing) -> String {
    let of_sum = |sum: &Sum| {
        let types = sum
            .by_bytes()
            .into_iter()
            .map(|(ty, tensors, bytes)| json!({ "type": ty.name(), "tensors": tensors, "bytes": bytes }));
        json!({
            "tensors": sum.tensors,
            "elements": sum.elements,
            "bytes": sum.bytes,
            "bpw": sum.bpw(),
            "predicted_loss": sum.loss,
            "types": types.collect::<Vec<Value>>(),
        })
    };
    let tensors = listing.tensors.iter().map(|tensor| {
        json!({
            "tensor": tensor.name,
            "layer": tensor.layer(),
            "class": tensor.class(),
            "from": tensor.from.map(TensorType::name),
            "to": tensor.to.name(),
            "instead_of": tensor.instead_of.map(TensorType::name),
            "elements": tensor.elements(),
            "bytes": tensor.bytes,
            "why": tensor.why,
            "predicted_loss": tensor.loss,
        })
    });
    let classes = listing.classes();
    let classes = classes
        .iter()
        .map(|(class, sum)| json!({ "class": class, "sum": of_sum(sum) }));
    let layers = listing.layers();
    let layers = layers
        .iter()
        .map(|(layer, sum)| json!({ "layer": layer, "sum": of_sum(sum) }));
    let sum = Sum::of(&listing.tensors);
    let line = json!({
        "schema": SCHEMA,
        "reason": "types",
        "of": name,
        "file_bytes": listing.file_bytes,
        "bpw": listing.file_bytes.map(|bytes| prose::bpw(bytes, sum.elements)),
        "sum": of_sum(&sum),
        "predicted_loss": listing.predicted_loss,
        "classes": classes.collect::<Vec<Value>>(),
        "layers": layers.collect::<Vec<Value>>(),
        "tensors": tensors.collect::<Vec<Value>>(),
    });
    format!("{line}\n")
}
