//! Tables without borders, for the terminal.

use anstyle::Style;
use comfy_table::CellAlignment;
use comfy_table::ContentArrangement;
use comfy_table::Table;
use comfy_table::presets;

use crate::cli::escape::Block;
use crate::cli::escape::escape;

/// A cell of a table.
pub(super) struct Cell {
    pub(super) text: String,
    pub(super) style: Style,
    pub(super) right: bool,
}

/// Returns a cell whose text is aligned to the left.
pub(super) fn left(text: impl Into<String>) -> Cell {
    Cell {
        text: text.into(),
        style: Style::new(),
        right: false,
    }
}

/// Returns a cell whose text is aligned to the right.
pub(super) fn right(text: impl Into<String>) -> Cell {
    Cell {
        right: true,
        ..left(text)
    }
}

/// Lays out rows in columns that are as wide as their widest cell, `gap` blanks apart. Control characters are escaped, and no line
/// ends with blanks.
pub(super) fn rows(rows: &[Vec<Cell>], gap: u16) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_content_arrangement(ContentArrangement::Disabled);
    for row in rows {
        table.add_row(row.iter().map(|cell| {
            let (style, text) = (cell.style, escape(&cell.text));
            let alignment = if cell.right {
                CellAlignment::Right
            } else {
                CellAlignment::Left
            };
            comfy_table::Cell::new(format!("{style}{text}{style:#}")).set_alignment(alignment)
        }));
    }
    for column in table.column_iter_mut() {
        column.set_padding((0, gap));
    }
    let mut text = String::new();
    for line in table.lines() {
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

/// Adds rows to a block, each line indented.
pub(super) fn add(block: &mut Block, indent: &str, table: &[Vec<Cell>]) {
    for line in rows(table, 2).lines() {
        let _ = writeln!(block, "{indent}{line}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned_and_lines_end_without_blanks() {
        let table = [
            vec![left("a"), right("1.5 GiB"), left("")],
            vec![left("longer"), right("2 B"), left("x\ny")],
        ];
        assert_eq!(rows(&table, 2), "a       1.5 GiB\nlonger      2 B  x\\ny\n");
        assert_eq!(rows(&[], 2), "");
    }
}
