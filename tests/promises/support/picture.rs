//! The screen of a terminal as an SVG picture: text in a box, without scripts or external files.

/// The size of a character cell.
const CELL: (f64, f64) = (8.4, 19.0);

/// The space around the text.
const MARGIN: f64 = 16.0;

/// The eight colours of a terminal; black and white are the text's own.
const COLOURS: [&str; 8] =
    ["#d4d4d4", "#f48771", "#89d185", "#e5c07b", "#6cb6ff", "#d2a8ff", "#76d9e6", "#d4d4d4"];

/// The style of the next characters.
#[derive(Clone, Copy, Default)]
struct Style {
    bold: bool,
    dim: bool,
    colour: usize,
}

impl Style {
    /// Applies the sequence between `ESC [` and `m`.
    fn change(&mut self, sequence: &str) {
        let mut codes = sequence.split(';').map(|code| code.parse().unwrap_or(0));
        while let Some(code) = codes.next() {
            match code {
                0 => *self = Self::default(),
                1 => self.bold = true,
                2 => self.dim = true,
                30..=37 => self.colour = code - 30,
                39 => self.colour = 0,
                38 if codes.next() == Some(5) => self.colour = codes.next().unwrap_or(0) % 8,
                _ => {}
            }
        }
    }

    fn attributes(self) -> String {
        let mut attributes = String::new();
        if self.colour > 0 {
            attributes.push_str(&format!(" fill=\"{}\"", COLOURS[self.colour]));
        }
        if self.bold {
            attributes.push_str(" font-weight=\"bold\"");
        }
        if self.dim {
            attributes.push_str(" opacity=\"0.55\"");
        }
        attributes
    }
}

/// The picture of a screen with style sequences, that many columns wide.
pub(crate) fn svg(title: &str, screen: &str, columns: u16) -> String {
    let screen = screen.trim_end();
    let width = f64::from(columns) * CELL.0 + 2.0 * MARGIN;
    let height = screen.lines().count() as f64 * CELL.1 + 2.0 * MARGIN;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width:.0} {height:.0}\" role=\"img\">\n\
         <title>{title}</title>\n\
         <rect width=\"100%\" height=\"100%\" rx=\"8\" fill=\"#1e1f24\"/>\n\
         <g font-family=\"ui-monospace, Menlo, Consolas, 'DejaVu Sans Mono', monospace\" font-size=\"14\" fill=\"#d4d4d4\">\n"
    );
    let mut style = Style::default();
    for (row, line) in screen.lines().enumerate() {
        let mut column = 0;
        for (number, part) in line.split("\u{1b}[").enumerate() {
            let text = match part.split_once('m').filter(|_| number > 0) {
                Some((sequence, text)) => {
                    style.change(sequence);
                    text
                }
                None => part,
            };
            // Place each table column separately, so that it lines up in any font.
            for piece in text.split_inclusive("  ") {
                let begin = column + piece.chars().take_while(|c| *c == ' ').count();
                column += piece.chars().count();
                if !piece.trim().is_empty() {
                    svg.push_str(&at(begin, row, style, piece.trim()));
                }
            }
        }
    }
    svg + "</g>\n</svg>\n"
}

/// A text element at a column and a row.
fn at(column: usize, row: usize, style: Style, text: &str) -> String {
    let x = MARGIN + column as f64 * CELL.0;
    let y = MARGIN + (row as f64 + 0.75) * CELL.1;
    let length = text.chars().count() as f64 * CELL.0;
    let text = text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;");
    let style = style.attributes();
    format!("<text x=\"{x:.1}\" y=\"{y:.1}\" textLength=\"{length:.1}\"{style}>{text}</text>\n")
}
