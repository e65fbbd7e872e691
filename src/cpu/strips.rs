//! Windows over maps of few channels: the lines under a block of output positions are laid out
//! once as they are multiplied, zeros beyond the edges included, and each position copies its taps
//! from there.

use super::kernels::{MAX_DEPTH, MAX_ROWS};
use super::memory::View;
use super::stored::Stored;
use crate::graph::Window;
use std::ops::Range;

/// The most elements of one line of a window for which this is the faster way.
const RUN: usize = 32;

/// Strips of input lines: R for each output line that a block of positions touches.
pub(super) struct Strips {
    window: Window,
    /// Rows and columns.
    input: [usize; 2],
    output: [usize; 2],
    channels: usize,
    /// Elements of a strip.
    pitch: usize,
}

impl Strips {
    /// `None` for windows whose taps are better gathered one by one.
    pub fn new(
        window: Window,
        input: [usize; 2],
        output: [usize; 2],
        channels: usize,
    ) -> Option<Strips> {
        let run = window.kernel[1] * channels;
        let wide = window.kernel[1] == 1 || run > RUN || run * window.kernel[0] > MAX_DEPTH;
        if wide || window.dilation[1] != 1 {
            return None;
        }
        let columns = (output[1].min(MAX_ROWS) - 1) * window.stride[1] + window.kernel[1];
        Some(Strips { window, input, output, channels, pitch: columns * channels })
    }

    /// Elements of the strips of any block.
    pub fn len(&self) -> usize {
        let lines = (MAX_ROWS - 1).div_ceil(self.output[1]) + 1;
        lines * self.window.kernel[0] * self.pitch
    }

    /// Fills the strips of a block of output positions of a dense input by `take`; returns where the
    /// taps of each of these positions start.
    pub fn fill<T: bytemuck::Zeroable + Copy>(
        &self,
        x: &View,
        positions: Range<usize>,
        to: &mut [T],
        take: impl Fn(Stored<'_>, &mut [T]),
    ) -> [usize; MAX_ROWS] {
        let (mut starts, mut lines) = ([0; MAX_ROWS], 0);
        let ([h, w], c, columns) = (self.input, self.channels, self.output[1]);
        let Window { kernel, stride, pad, dilation } = self.window;
        let mut strips = to.chunks_exact_mut(self.pitch);
        let mut start = positions.start;
        while start < positions.end {
            let line = start / columns;
            let end = ((line + 1) * columns).min(positions.end);
            let (p, image) = (line % self.output[0], line / self.output[0]);
            let left = start % columns * stride[1];
            let count = (end - start - 1) * stride[1] + kernel[1];
            for (r, strip) in (0..kernel[0]).zip(&mut strips) {
                let y = (p * stride[0] + r * dilation[0]).wrapping_sub(pad[0]);
                // Columns of the strip that lie on the map.
                let on_map = if y < h { (w + pad[1]).saturating_sub(left) } else { 0 };
                let inside = pad[1].saturating_sub(left).min(count)..on_map.min(count);
                let (before, rest) = strip[..count * c].split_at_mut(inside.start * c);
                let (middle, after) = rest.split_at_mut(inside.len() * c);
                before.fill(T::zeroed());
                after.fill(T::zeroed());
                if !middle.is_empty() {
                    let position = (image * h + y) * w + left + inside.start - pad[1];
                    take(x.at(position, 0..middle.len()), middle);
                }
            }
            let of_line = &mut starts[start - positions.start..end - positions.start];
            for (column, to) in of_line.iter_mut().enumerate() {
                *to = lines * kernel[0] * self.pitch + column * stride[1] * c;
            }
            (start, lines) = (end, lines + 1);
        }
        starts
    }

    /// Writes the taps of the position that starts there, in order (r, s, c).
    pub fn gather<T: Copy>(&self, strips: &[T], start: usize, to: &mut [T]) {
        let run = self.window.kernel[1] * self.channels;
        for (r, to) in to.chunks_exact_mut(run).enumerate() {
            let start = start + r * self.pitch;
            copy(&strips[start..start + run], to);
        }
    }
}

/// A copy of few elements in whole registers, the last of which overlaps the one before.
#[inline]
fn copy<T: Copy>(from: &[T], to: &mut [T]) {
    const WHOLE: usize = 8;
    let (Some(from_last), Some(to_last)) = (from.last_chunk::<WHOLE>(), to.last_chunk_mut()) else {
        return to.copy_from_slice(from);
    };
    *to_last = *from_last;
    for (from, to) in from.as_chunks::<WHOLE>().0.iter().zip(to.as_chunks_mut::<WHOLE>().0) {
        *to = *from;
    }
}
