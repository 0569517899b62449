//! A sheet of pictures with what the model says of each, to be looked at.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use image::{Rgb, RgbImage, imageops};

use super::font;

const COLUMNS: u32 = 4;
const SIDE: u32 = 224;
const MARGIN: u32 = 8;
/// Two pixels a font pixel would not leave room for a caption.
const LINE: u32 = font::HEIGHT as u32 + 3;
const LINES: u32 = 5;
const CELL_WIDTH: u32 = SIDE + 2 * MARGIN;
const CELL_HEIGHT: u32 = SIDE + 2 * MARGIN + LINES * LINE;

const PAPER: Rgb<u8> = Rgb([255, 255, 255]);
const INK: Rgb<u8> = Rgb([20, 20, 20]);
const RIGHT: Rgb<u8> = Rgb([0, 130, 40]);
const WRONG: Rgb<u8> = Rgb([200, 20, 20]);

/// A picture and what is said of it, in ASCII (the font has no other letters).
#[derive(Clone, Debug)]
pub struct SheetEntry {
    /// Any size; shown at 224×224.
    pub picture: RgbImage,
    /// The model's words.
    pub caption: String,
    /// What the picture shows; written below where it differs.
    pub reference: String,
}

/// Writes the sheet as PNG, four pictures a row: green captions are exact, red ones are not and
/// have the truth below.
/// # Errors
/// No entry; a file that cannot be written.
pub fn draw_contact_sheet(path: &Path, entries: &[SheetEntry]) -> Result<()> {
    ensure!(!entries.is_empty(), "a contact sheet of no pictures");
    let rows = (entries.len() as u32).div_ceil(COLUMNS);
    let columns = COLUMNS.min(entries.len() as u32);
    let mut sheet = RgbImage::from_pixel(columns * CELL_WIDTH, rows * CELL_HEIGHT, PAPER);
    for (index, entry) in (0u32..).zip(entries) {
        let left = index % COLUMNS * CELL_WIDTH + MARGIN;
        let top = index / COLUMNS * CELL_HEIGHT + MARGIN;
        let picture = imageops::thumbnail(&entry.picture, SIDE, SIDE);
        imageops::replace(&mut sheet, &picture, left.into(), top.into());
        let is_exact = entry.caption == entry.reference;
        let ink = if is_exact { RIGHT } else { WRONG };
        let mut line = write_text(&mut sheet, &entry.caption, (left, top + SIDE + 4), ink);
        if !is_exact {
            line = line.min(top + SIDE + 4 + (LINES - 2) * LINE);
            write_text(&mut sheet, &entry.reference, (left, line), INK);
        }
    }
    sheet.save(path).with_context(|| format!("write {}", path.display()))
}

/// Writes `text` in lines no wider than a picture, at most two; returns where the next would stand.
fn write_text(sheet: &mut RgbImage, text: &str, (left, top): (u32, u32), ink: Rgb<u8>) -> u32 {
    const ADVANCE: u32 = font::WIDTH as u32 + 1;
    let mut y = top;
    for line in wrap(text, (SIDE / ADVANCE) as usize).iter().take(2) {
        for (x, character) in (left..).step_by(ADVANCE as usize).zip(line.chars()) {
            for (column, row) in font::pixels(character) {
                let (x, y) = (x + column as u32, y + row as u32);
                if x < sheet.width() && y < sheet.height() {
                    sheet.put_pixel(x, y, ink);
                }
            }
        }
        y += LINE;
    }
    y
}

/// Lines of at most `width` characters, broken between words where there is a gap to break at.
fn wrap(text: &str, width: usize) -> Vec<String> {
    let mut lines = vec![String::new()];
    for word in text.split_whitespace() {
        for piece in word.chars().collect::<Vec<_>>().chunks(width) {
            let last = lines.len() - 1;
            let used = lines[last].chars().count();
            if used > 0 && used + 1 + piece.len() > width {
                lines.push(piece.iter().collect());
            } else {
                let gap = if used > 0 { " " } else { "" };
                lines[last] += &format!("{gap}{}", piece.iter().collect::<String>());
            }
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_no_longer_than_asked_and_lose_no_word() {
        let text = "A large purple triangle left of a small yellow square and verylongwordindeed";
        let lines = wrap(text, 12);
        assert!(lines.iter().all(|line| line.len() <= 12), "{lines:?}");
        assert_eq!(lines.concat().replace(' ', ""), text.replace(' ', ""));
    }

    #[test]
    fn the_sheet_holds_every_picture_and_shows_right_from_wrong() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("sheet.png");
        let entry = |caption: &str| SheetEntry {
            picture: RgbImage::from_pixel(224, 224, Rgb([9, 9, 90])),
            caption: caption.into(),
            reference: "A ring.".into(),
        };
        let entries: Vec<_> =
            (0..5).map(|index| entry(if index == 0 { "A ring." } else { "A star." })).collect();
        draw_contact_sheet(&path, &entries).unwrap();
        let sheet = image::open(&path).unwrap().to_rgb8();
        assert_eq!(sheet.dimensions(), (4 * CELL_WIDTH, 2 * CELL_HEIGHT));
        let count = |colour| sheet.pixels().filter(|&&pixel| pixel == colour).count();
        assert_eq!(count(Rgb([9, 9, 90])), 5 * 224 * 224);
        assert!(count(RIGHT) > 0 && count(WRONG) > 3 * count(RIGHT));
        assert!(draw_contact_sheet(&path, &[]).is_err());
    }
}
