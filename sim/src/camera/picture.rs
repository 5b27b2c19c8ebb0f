//! What the camera sees: the line drawn from its model, shifted and enlarged by the head's position.

use jiff::Timestamp;
use jpeg_encoder::{ColorType, Encoder, EncodingError};

use super::font;
use crate::line::{Kind, Line, State};

type Colour = [u8; 3];

const FLOOR: Colour = [58, 62, 68];
const WALL: Colour = [150, 156, 162];
const BELT: Colour = [28, 30, 33];
const INK: Colour = [245, 245, 240];
const BOTTLE: Colour = [96, 168, 220];

fn colour(state: State) -> Colour {
    match state {
        State::Running => [46, 140, 74],
        State::Starved => [196, 160, 40],
        State::Blocked => [206, 120, 36],
        State::Faulted => [190, 48, 44],
        State::Stopped => [110, 112, 116],
    }
}

/// A picture whose coordinates run from 0 to 1, seen through the head.
struct Canvas {
    pixels: Vec<u8>,
    width: usize,
    height: usize,
    shift: (f64, f64),
    scale: f64,
}

impl Canvas {
    fn rectangle(&mut self, left: f64, top: f64, width: f64, height: f64, colour: Colour) {
        let (columns, rows) = (self.columns(left, width), self.rows(top, height));
        for row in rows {
            let line = row * self.width;
            let Some(pixels) = self
                .pixels
                .get_mut((line + columns.start) * 3..(line + columns.end) * 3)
            else {
                continue;
            };
            for pixel in pixels.chunks_exact_mut(3) {
                pixel.copy_from_slice(&colour);
            }
        }
    }

    fn columns(&self, left: f64, width: f64) -> std::ops::Range<usize> {
        let place = |x: f64| {
            pixel(
                ((x - 0.5 - self.shift.0) * self.scale + 0.5) * to_f64(self.width),
                self.width,
            )
        };
        place(left)..place(left + width)
    }

    fn rows(&self, top: f64, height: f64) -> std::ops::Range<usize> {
        let place = |y: f64| {
            pixel(
                ((y - 0.5 - self.shift.1) * self.scale + 0.5) * to_f64(self.height),
                self.height,
            )
        };
        place(top)..place(top + height)
    }

    fn text(&mut self, left: f64, top: f64, dot: f64, text: &str) {
        let aspect = to_f64(self.width) / to_f64(self.height);
        for (index, character) in text.chars().enumerate() {
            let start = left + to_f64(index * (font::WIDTH + 1)) * dot;
            for (row, bits) in font::glyph(character).into_iter().enumerate() {
                for column in (0..font::WIDTH).filter(|column| bits & (16 >> column) != 0) {
                    let (x, y) = (start + to_f64(column) * dot, top + to_f64(row) * dot * aspect);
                    self.rectangle(x, y, dot, dot * aspect, INK);
                }
            }
        }
    }
}

#[expect(clippy::cast_precision_loss, reason = "pixels are few")]
fn to_f64(value: usize) -> f64 {
    value as f64
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "clamped to the picture"
)]
fn pixel(place: f64, limit: usize) -> usize {
    place.clamp(0.0, to_f64(limit)) as usize
}

/// Draws the line as a JPEG.
pub(super) fn draw(
    line: &Line,
    (pan, tilt, zoom): (f64, f64, f64),
    (width, height): (u16, u16),
    now: Timestamp,
) -> Result<Vec<u8>, EncodingError> {
    let (columns, rows) = (usize::from(width), usize::from(height));
    let mut canvas = Canvas {
        pixels: WALL.repeat(columns * rows),
        width: columns,
        height: rows,
        shift: (pan * 0.4, -tilt * 0.4),
        scale: 1.0 + 2.0 * zoom,
    };
    canvas.rectangle(-1.0, 0.62, 3.0, 1.4, FLOOR);
    canvas.rectangle(0.02, 0.58, 0.96, 0.05, BELT);
    bottles(&mut canvas, line.steps());
    for (index, kind) in Kind::ALL.into_iter().enumerate() {
        let machine = line.machine(kind);
        let left = 0.05 + 0.235 * to_f64(index);
        canvas.rectangle(left, 0.26, 0.19, 0.36, colour(machine.state()));
        canvas.text(left + 0.01, 0.29, 0.0028, kind.name());
        canvas.text(left + 0.01, 0.37, 0.0028, machine.state().name());
        canvas.text(left + 0.01, 0.45, 0.0028, &machine.count().to_string());
    }
    canvas.text(0.05, 0.75, 0.005, &format!("pallets {}", line.pallets()));
    // The time stands on the glass, not in the hall.
    (canvas.shift, canvas.scale) = ((0.0, 0.0), 1.0);
    canvas.text(0.02, 0.03, 0.004, &format!("{now:.1}").replace('T', " "));
    let mut jpeg = Vec::with_capacity(64 * 1024);
    Encoder::new(&mut jpeg, 80).encode(&canvas.pixels, width, height, ColorType::Rgb)?;
    Ok(jpeg)
}

fn bottles(canvas: &mut Canvas, steps: u64) {
    let offset = f64::from(u8::try_from(steps % 10).unwrap_or(0)) / 10.0 * 0.04;
    for index in 0..24 {
        let left = 0.02 + 0.04 * to_f64(index) + offset;
        canvas.rectangle(left, 0.50, 0.012, 0.08, BOTTLE);
    }
}
